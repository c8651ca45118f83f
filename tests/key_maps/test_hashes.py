"""A file's hashes, against plain implementations, the trainers' own code and the published test
vector.
"""

import hashlib
import json
import os
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_locksmith.files import hashes as module
from lora_locksmith.files.hashes import Hashes, file_hashes, verify
from lora_locksmith.files.header import LoraFileError
from lycoris.utils import precalculate_safetensors_hashes
from safetensors.torch import save, save_file


def some_tensors(rank: int = 4, width: int = 32) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(1)
    return {
        "lora_unet_z.lora_up.weight": torch.randn(width, rank, generator=noise),
        "lora_unet_a.lora_down.weight": torch.randn(rank, width, generator=noise).bfloat16(),
        "lora_unet_a.alpha": torch.tensor(4.0),
    }


def plain(path) -> Hashes:
    """Each definition by itself, over the whole file in memory."""
    data = path.read_bytes()
    tensors = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    sha256 = hashlib.sha256(data).hexdigest()
    autov1 = (
        hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8] if len(data) >= 0x110000 else ""
    )
    crc32 = f"{int.from_bytes(zlib.crc32(data).to_bytes(4, 'big'), 'little'):08X}"
    return Hashes(sha256, autov1, sha256[:10], tensors[:12], tensors, crc32)


@pytest.mark.parametrize("width", [8, 40_000, 90_000])
def test_what_safetensors_wrote(tmp_path, width):
    path = tmp_path / "x.safetensors"
    save_file(some_tensors(4, width), path, {"ss_steps": "100"})
    assert file_hashes(path) == plain(path)
    assert bool(file_hashes(path).autov1) == (path.stat().st_size >= 0x110000)


def test_the_tensors_hash_is_that_of_the_tensors(tmp_path):
    """One dtype: the file's data are the tensors by name, so that they can be hashed without a
    file.
    """
    tensors = {name: tensor.float() for name, tensor in some_tensors().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    by_name = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    assert (
        file_hashes(tmp_path / "x.safetensors").sshs_model_hash
        == hashlib.sha256(by_name).hexdigest()
    )


def test_civitais_test_vector(tmp_path):
    """orchestrator/ModelScannerTests of civitai/model-scanner: the file holds `hello world`."""
    (tmp_path / "dummy.txt").write_bytes(b"hello world")
    found = file_hashes(tmp_path / "dummy.txt")
    assert (found.crc32, found.autov2.upper(), found.autov1) == ("85114A0D", "B94D27B993", "")
    assert (found.autov3, found.sshs_model_hash) == ("", "")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(size=st.integers(0, 400), name=st.integers(1, 60), chunk=st.integers(9, 130))
def test_every_border_between_parts(tmp_path, monkeypatch, size, name, chunk):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(module, "AUTOV1_START", 100)
    monkeypatch.setattr(module, "AUTOV1_BYTES", 70)
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"n" * name: torch.arange(size, dtype=torch.uint8)}))
    data, found = path.read_bytes(), file_hashes(path)
    assert found._replace(autov1="") == plain(path)._replace(autov1="")
    assert found.autov1 == (
        hashlib.sha256(data[100:170]).hexdigest()[:8] if len(data) >= 170 else ""
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\x02\0\0\0\0\0\0\0",
        b"\xff" * 50,
        b"PK\x03\x04" + b"\0" * 50,
        b"\x40\0\0\0\0\0\0\0{}",
        b"\x02\0\0\0\0\0\0\0[]",
    ],
)
def test_files_without_a_header_have_no_tensors_hash(tmp_path, data):
    (tmp_path / "x.bin").write_bytes(data)
    found = file_hashes(tmp_path / "x.bin")
    assert (
        found.sha256 == hashlib.sha256(data).hexdigest()
        and not found.sshs_model_hash
        and not found.autov3
    )
    assert verify({"sshs_model_hash": "a" * 64}, found) == []


def test_errors_name_the_file(tmp_path):
    with pytest.raises(LoraFileError, match="there is no such file"):
        file_hashes(tmp_path / "none.safetensors")
    with pytest.raises(LoraFileError, match=str(tmp_path.name)):
        file_hashes(tmp_path)


def test_a_file_that_grows_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 50)
    path = tmp_path / "x.safetensors"
    save_file(some_tensors(), path)

    def grow(done, total):
        with open(path, "ab") as file:
            file.write(b"x")

    with pytest.raises(LoraFileError, match="changed while it was read"):
        file_hashes(path, grow)


def test_progress_is_told_and_may_interrupt(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    path = tmp_path / "x.safetensors"
    save_file(some_tensors(), path)
    calls = []
    file_hashes(path, lambda *numbers: calls.append(numbers))
    size = path.stat().st_size
    assert calls[0] == (100, size) and calls[-1] == (size, size) and len(calls) == -(-size // 100)

    class Interrupted(OSError):
        """Even an operating system's error of the caller's own comes out as it is."""

    def interrupt(done, total):
        if done >= 300:
            raise Interrupted(done)

    with pytest.raises(Interrupted, match="300"):
        file_hashes(path, interrupt)


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    header = json.dumps(
        {"a": {"dtype": "U8", "shape": [96 << 20], "data_offsets": [0, 96 << 20]}}
    ).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        os.truncate(path, 8 + len(header) + (96 << 20))
    tracemalloc.start()
    found = file_hashes(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * module.CHUNK_BYTES
    assert found.sshs_model_hash == hashlib.sha256(bytes(96 << 20)).hexdigest()


def saved_by_sd_scripts(tensors, path) -> dict[str, str]:
    """What sd-scripts' networks do in save_weights: hash the serialised tensors behind the header,
    then write them with the hash.
    """
    metadata = {"ss_network_dim": "4", "ss_steps": "100"}
    data = save(tensors, metadata)
    metadata["sshs_model_hash"] = hashlib.sha256(
        data[8 + int.from_bytes(data[:8], "little") :]
    ).hexdigest()
    save_file(tensors, path, metadata)
    return metadata


def test_verify_agrees_and_disagrees(tmp_path):
    path, tensors = tmp_path / "x.safetensors", some_tensors()
    metadata = saved_by_sd_scripts(tensors, path)
    agrees = ["sshs_model_hash agrees: the tensors are those it was written for."]
    assert verify(metadata, file_hashes(path)) == agrees
    assert (
        verify({"sshs_model_hash": metadata["sshs_model_hash"].upper()}, file_hashes(path))
        == agrees
    )
    save_file(tensors, path, metadata | {"modelspec.title": "new"})
    assert verify(metadata, file_hashes(path)) == agrees, "other metadata, the same tensors"
    tensors["lora_unet_a.alpha"] = torch.tensor(2.0)
    save_file(tensors, path, metadata)
    (sentence,) = verify(metadata, file_hashes(path))
    assert (
        "the tensors were changed after training" in sentence
        and file_hashes(path).autov3 in sentence
    )


def test_verify_knows_that_lycoris_has_an_order_of_its_own(tmp_path):
    """LyCORIS' own function: in the order of training, not of the file, so that its hash disagrees
    with an untouched file.
    """
    path, tensors = tmp_path / "x.safetensors", some_tensors()
    metadata = {"sshs_model_hash": precalculate_safetensors_hashes(tensors)}
    save_file(tensors, path, metadata)
    (sentence,) = verify(metadata, file_hashes(path))
    assert "disagrees" in sentence and "or they were hashed in another order" in sentence
    ordered = {name: tensors[name].float() for name in sorted(tensors)}
    save_file(ordered, path)
    assert (
        "agrees: "
        in verify({"sshs_model_hash": precalculate_safetensors_hashes(ordered)}, file_hashes(path))[
            0
        ]
    )


def test_verify_reads_onetrainers_modelspec_hash(tmp_path):
    """OneTrainer hashes the tensors by name (DtypeModelSaverMixin): in a file of one dtype that is
    the file's order.
    """
    path = tmp_path / "x.safetensors"
    tensors = {name: tensor.half() for name, tensor in some_tensors().items()}
    digest = hashlib.sha256(
        b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    ).hexdigest()
    metadata = {"modelspec.hash_sha256": f"0x{digest}", "ot_revision": "abc"}
    save_file(tensors, path, metadata)
    assert verify(metadata, file_hashes(path)) == [
        "modelspec.hash_sha256 agrees: the tensors are those it was written for."
    ]


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        b"00",
        "",
        "0x",
        "g" * 64,
        "0" * 65,
        "\ud800" * 64,
        "0" * 10_000_000,
        ["0" * 64],
        "0x" + "00" * 31,
    ],
)
@pytest.mark.parametrize("key", module.STORED_KEYS)
def test_verify_never_raises(key, value):
    found = Hashes(*(["0" * 64] * 6))
    assert all(
        isinstance(sentence, str) and len(sentence) < 300
        for sentence in verify({key: value}, found)
    )


def test_verify_is_silent_where_nothing_is_stored():
    assert verify({"format": "pt"}, Hashes(*(["0" * 64] * 6))) == []
    assert verify({"sshs_model_hash": ""}, Hashes(*(["0" * 64] * 6))) == []
