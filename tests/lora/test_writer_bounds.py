"""The bytes and the metadata of what is written: aligned, hashed, without what would be wrong of
it, and verified.
"""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
import torch
from lora_locksmith.files.header import read_header
from lora_locksmith.lora.io.writer import _number, exact, place_of, write_as, write_lora
from lora_locksmith.lora.rewrite.rename import Refused
from lora_locksmith.lora.rewrite.verify import VerificationError
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network
from safetensors.torch import load_file

QKV, PROJ = "double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj"
FLUX = {
    "img_in": (8, 16),
    QKV: (24, 8),
    PROJ: (8, 8),
    "double_blocks.0.img_mlp.0": (32, 8),
    "double_blocks.0.img_mod.lin": (48, 8),
    "single_blocks.0.linear1": (56, 8),
    "final_layer.linear": (16, 8),
}
DTYPES = (
    torch.int8,
    torch.float64,
    torch.bool,
    torch.float16,
    torch.int64,
    torch.bfloat16,
    torch.float32,
    torch.uint8,
    torch.float8_e4m3fn,
    torch.int16,
)


@pytest.fixture(scope="module", name="target_model")
def small_model():
    return TargetModel(
        [
            denoiser_network(
                {f"diffusion_model.{name}.weight": shape for name, shape in FLUX.items()}
            )
        ]
    )


@pytest.fixture
def planned(target_model):
    return lambda tensors, metadata=None: make_plan(
        {key: tuple(tensor.shape) for key, tensor in tensors.items()}, metadata or {}, target_model
    )


def kohya(*modules: str, rank: int = 2, alpha: float | None = 1.0) -> dict[str, torch.Tensor]:
    made = {}
    for module in modules or (QKV, PROJ):
        name, (out, inner) = f"lora_unet_{module.replace('.', '_')}", FLUX[module]
        made |= {
            f"{name}.lora_down.weight": torch.randn(rank, inner),
            f"{name}.lora_up.weight": torch.randn(out, rank),
        }
        if alpha is not None:
            made[f"{name}.alpha"] = torch.tensor(alpha)
    return made


def raw_header(path) -> tuple[bytes, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length], content[8 + length :]


@pytest.mark.parametrize("name", range(9))
def test_every_tensor_begins_where_its_dtype_may(tmp_path, name):
    """At a multiple of its size in the file: whoever maps the file has the tensors as they lie
    there.
    """
    tensors = {
        f"{number}.{'x' * name}": torch.ones(3, dtype=dtype) for number, dtype in enumerate(DTYPES)
    }
    path = write_lora(tmp_path / "a.safetensors", tensors)
    header = read_header(path)
    assert header.data_start % 8 == 0
    for key, tensor in tensors.items():
        assert (header.data_start + header.tensors[key].start) % tensor.dtype.itemsize == 0, (
            tensor.dtype
        )
    again = load_file(path)
    assert all(
        torch.equal(again[key].view(torch.uint8), tensor.view(torch.uint8))
        for key, tensor in tensors.items()
    )


def test_a_header_is_as_short_as_it_can_be(tmp_path):
    text, data = raw_header(
        write_lora(tmp_path / "a.safetensors", {"x": torch.ones(2, dtype=torch.int8)})
    )
    assert (
        text.rstrip(b" ") == b'{"x":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}'
        and len(text) % 8 == 0
        and data == b"\1\1"
    )
    assert len(text) - len(text.rstrip(b" ")) < 8
    text, _ = raw_header(write_lora(tmp_path / "b.safetensors", {"x": torch.ones(1)}, {"a": "b"}))
    assert text.startswith(b'{"__metadata__":{"a":"b"},"x":')
    nothing = write_lora(tmp_path / "c.safetensors", {})
    assert raw_header(nothing) == (b"{}      ", b"")
    assert load_file(nothing) == {}


def test_empty_tensors_leave_no_hole(tmp_path):
    tensors = {
        "none": torch.zeros(0, 4),
        "some": torch.ones(3, dtype=torch.int8),
        "last": torch.zeros(2, 0, dtype=torch.int8),
    }
    path = write_lora(tmp_path / "a.safetensors", tensors)
    assert {key: tuple(tensor.shape) for key, tensor in load_file(path).items()} == {
        "none": (0, 4),
        "some": (3,),
        "last": (2, 0),
    }
    assert raw_header(path)[1] == b"\1\1\1"


def test_hashes_are_those_of_the_data_and_stand_only_where_they_were(tmp_path):
    tensors = {"x": torch.randn(7, 300), "y": torch.randn(5).half()}
    for names in (
        [],
        ["sshs_model_hash"],
        ["modelspec.hash_sha256"],
        ["sshs_model_hash", "modelspec.hash_sha256"],
    ):
        path = write_lora(
            tmp_path / f"{len(names)}{names[:1]}.safetensors",
            tensors,
            {"a": "b"} | dict.fromkeys(names, "old"),
        )
        metadata, digest = (
            read_header(path).metadata,
            hashlib.sha256(raw_header(path)[1]).hexdigest(),
        )
        right = {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
        assert metadata == {"a": "b"} | {name: right[name] for name in names}
        assert load_file(path)["y"].dtype == torch.float16


@pytest.mark.parametrize("more", range(8))
def test_hashes_fit_where_their_room_was_left(tmp_path, more):
    """They are put into a header that is written already: of whatever length, nothing may move."""
    path = write_lora(
        tmp_path / "a.safetensors",
        {"x": torch.arange(5)},
        {"a": "b" * more, "sshs_model_hash": "", "modelspec.hash_sha256": ""},
    )
    assert torch.equal(load_file(path)["x"], torch.arange(5))
    assert len(read_header(path).metadata["modelspec.hash_sha256"]) == 66


def test_no_file_is_written_over_unless_it_is_asked_for(planned, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    with pytest.raises(FileExistsError):
        write_lora(path, {"x": torch.zeros(1)})
    tensors = kohya(PROJ)
    with pytest.raises(FileExistsError):
        write_as(planned(tensors), tensors, path, "kohya")
    assert torch.equal(load_file(path)["x"], torch.ones(1))


def test_a_dtype_that_safetensors_has_not(tmp_path):
    with pytest.raises(ValueError, match=r"x: safetensors has no torch.complex128"):
        write_lora(tmp_path / "a.safetensors", {"x": torch.zeros(1, dtype=torch.complex128)})
    assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_safetensors_has_not_is_refused_with_the_remedy(planned, tmp_path):
    tensors = kohya(PROJ)
    plan = planned(tensors)
    wide = {
        key: tensor.to(torch.complex128) if "up" in key else tensor
        for key, tensor in tensors.items()
    }
    with pytest.raises(
        Refused,
        match=r"lora_up.weight: tensors of torch.complex128 cannot be written; choose a dtype",
    ):
        write_as(plan, wide, tmp_path / "a.safetensors", "kohya")
    assert list(tmp_path.iterdir()) == []


def test_half_a_letter_in_metadata_becomes_a_mark(tmp_path):
    path = write_lora(
        tmp_path / "a.safetensors",
        {"x": torch.ones(1)},
        {"\ud800k": "a\udfff", "whole": "\U0001f600 \u00e9"},
    )
    assert read_header(path).metadata == {"\ufffdk": "a\ufffd", "whole": "\U0001f600 \u00e9"}


def test_what_was_done_to_it_is_told(planned, tmp_path):
    tensors = kohya() | {"lora_unet_nothing.diff": torch.randn(8, 16)}
    written = write_as(
        planned(tensors), tensors, tmp_path / "a.safetensors", "diffusers", drop=True
    )
    assert (written.dialect, written.renamed, written.computed, written.full) == (
        "diffusers",
        1,
        3,
        0,
    )  # q, k and v
    assert list(written.left_out) == ["lora_unet_nothing.diff"]
    assert written.bytes == written.path.stat().st_size == len(written.path.read_bytes())
    assert written.difference == 0.0


def test_what_is_refused_without_drop_is_written_with_it(planned, tmp_path):
    tensors = kohya(PROJ) | {"lora_unet_nothing.diff": torch.randn(8, 16)}
    with pytest.raises(Refused):
        write_as(planned(tensors), tensors, tmp_path / "a.safetensors", "diffusers")
    assert list(tmp_path.iterdir()) == []


def told(planned, tmp_path, tensors, metadata, dialect="kohya", **more) -> dict[str, str]:
    return dict(
        read_header(
            write_as(
                planned(tensors, metadata), tensors, tmp_path / "a.safetensors", dialect, **more
            ).path
        ).metadata
    )


def test_ranks_and_alphas_that_are_one_are_told_and_others_are_dynamic(planned, tmp_path):
    one = told(
        planned, tmp_path, kohya(alpha=1.5), {"ss_network_dim": "64", "ss_network_alpha": "7"}
    )
    assert (one["ss_network_dim"], one["ss_network_alpha"]) == ("2", "1.5")
    mixed = kohya(QKV, rank=2, alpha=1.0) | kohya(PROJ, rank=3, alpha=2.0)
    two = told(
        planned, tmp_path, mixed, {"ss_network_dim": "64", "ss_network_alpha": "7"}, overwrite=True
    )
    assert (two["ss_network_dim"], two["ss_network_alpha"]) == ("Dynamic", "Dynamic")


def test_a_dialect_that_has_no_alpha_is_told_to_have_that_of_its_rank(planned, tmp_path):
    """Strengths are in the factors then, and who reads dim and alpha must not apply them again."""
    metadata = told(
        planned,
        tmp_path,
        kohya(alpha=1.0),
        {"ss_network_dim": "2", "ss_network_alpha": "1"},
        "ai_toolkit",
    )
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2")


def test_dim_and_alpha_are_told_where_they_stood_or_where_kohyas_names_are(planned, tmp_path):
    assert {"ss_network_dim", "ss_network_alpha"} <= told(planned, tmp_path, kohya(), {}).keys()
    assert (
        not {"ss_network_dim", "ss_network_alpha"}
        & told(planned, tmp_path, kohya(), {}, "diffusers", overwrite=True).keys()
    )
    full = {"lora_unet_img_in.diff": torch.randn(8, 16)}
    kept = told(planned, tmp_path, full, {"ss_network_dim": "64"}, "comfyui", overwrite=True)
    assert kept["ss_network_dim"] == "64"  # no module has a rank


def test_what_metadata_keep_and_what_they_lose(planned, tmp_path):
    source = {
        "ss_output_name": "mine",
        "sshs_legacy_hash": "beef",
        "lora_adapter_metadata": '{"r": 9}',
        "format": "np",
    }
    metadata = told(planned, tmp_path, kohya(), source, provenance={"locksmith.source": "a"})
    assert "lora_adapter_metadata" not in metadata and "sshs_legacy_hash" not in metadata
    assert (metadata["ss_output_name"], metadata["format"], metadata["locksmith.source"]) == (
        "mine",
        "np",
        "a",
    )
    assert (metadata["locksmith.converter"], metadata["locksmith.dialect"]) == (
        "LoRA Locksmith",
        "kohya",
    )
    assert len(metadata["sshs_model_hash"]) == 64  # kohya's tools want one of the two
    bare = told(planned, tmp_path, kohya(), {}, overwrite=True)
    assert (
        bare["format"] == "pt" and "sshs_model_hash" not in bare and "locksmith.source" not in bare
    )


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ('{"split_qkv": "True", "x": "1"}', {"x": "1"}),
        ('{"split_qkv": "True"}', {}),
        ('{"x": "split_qkv"}', {"x": "split_qkv"}),
        ("split_qkv", {}),
        ('["split_qkv"]', {}),
        ("[" * 100_000 + "split_qkv", {}),
    ],
)
def test_a_correction_that_is_made_is_not_called_for_again(planned, tmp_path, arguments, left):
    metadata = told(
        planned, tmp_path, kohya(), {"ss_network_args": arguments, "ss_network_dim": "2"}
    )
    assert json.loads(metadata["ss_network_args"]) == left


def test_arguments_of_others_stay_as_they_are(planned, tmp_path):
    assert (
        told(planned, tmp_path, kohya(), {"ss_network_args": '{"a":  1}'})["ss_network_args"]
        == '{"a":  1}'
    )


def test_settings_for_peft_lie_beside_the_file_and_count_when_it_is_verified(
    planned, target_model, tmp_path
):
    tensors = kohya(PROJ, alpha=1.0)
    written = write_as(planned(tensors), tensors, tmp_path / "mine.safetensors", "peft")
    assert written.path == tmp_path / "mine" / "adapter_model.safetensors"
    settings = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (2, 1)
    assert written.bytes == written.path.stat().st_size


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mine.safetensors", "mine"),
        ("mine.SFT", "mine"),
        ("mine.pt", "mine"),
        ("my-lora-v1.5", "my-lora-v1.5"),
        ("my-lora-v1.5.safetensors", "my-lora-v1.5"),
        ("mine", "mine"),
    ],
)
def test_a_folder_for_peft_loses_only_the_ending_of_a_file(tmp_path, name, folder):
    assert place_of(tmp_path / name, "peft") == tmp_path / folder / "adapter_model.safetensors"
    assert place_of(tmp_path / name, "kohya") == tmp_path / name


def test_settings_of_another_file_that_lie_there_are_seen_before_it_is_put_in_place(
    planned, tmp_path
):
    """A dialect without alphas would take its strength from an adapter_config.json that happens to
    lie in the folder.
    """
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 64}')
    tensors = kohya(PROJ, alpha=2.0)
    with pytest.raises(VerificationError, match="differs"):
        write_as(planned(tensors), tensors, tmp_path / "a.safetensors", "ai_toolkit")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]
    write_as(planned(tensors), tensors, tmp_path / "a.safetensors", "kohya")


def test_at_last_is_asked_before_anything_is_put_in_place(planned, tmp_path):
    def not_now():
        raise OSError("not now")

    tensors = kohya(PROJ)
    for dialect in ("kohya", "peft"):
        with pytest.raises(OSError, match="not now"):
            write_as(
                planned(tensors), tensors, tmp_path / "a.safetensors", dialect, at_last=not_now
            )
        assert list(tmp_path.iterdir()) == []


def test_tensors_that_lie_scattered_in_memory(tmp_path):
    tensors = {
        "every second": torch.arange(12.0)[::2],
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "one for all": torch.ones(1).expand(3),
    }
    again = load_file(write_lora(tmp_path / "a.safetensors", tensors))
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_no_folder_is_made_for_a_file(planned, tmp_path):
    """Only PEFT's files have one of their own."""
    tensors = kohya(PROJ)
    with pytest.raises(FileNotFoundError):
        write_as(planned(tensors), tensors, tmp_path / "none" / "a.safetensors", "kohya")
    assert list(tmp_path.iterdir()) == []
    assert write_as(
        planned(tensors), tensors, tmp_path / "none" / "a.safetensors", "peft"
    ).path.is_file()


def test_settings_are_written_as_peft_writes_them(tmp_path):
    """peft config.py save_pretrained: json.dumps with an indent of two."""
    write_lora(tmp_path / "a.safetensors", {"x": torch.ones(1)}, config={"r": 2, "bias": "none"})
    assert (tmp_path / "adapter_config.json").read_text() == '{\n  "r": 2,\n  "bias": "none"\n}'


RS_LORA = {"ss_network_args": '{"rs_lora": "True"}', "ss_network_alpha": "2", "ss_network_dim": "4"}


@pytest.mark.parametrize(("alpha", "strength"), [(2.0, 1.0), (4.0, 1.0)])
@pytest.mark.parametrize("dialect", ["kohya", "comfyui", "diffusers"])
def test_a_strength_that_values_and_metadata_tell_is_read_back_by_them(
    target_model, tmp_path, alpha, strength, dialect
):
    """LyCORIS' rs_lora of version 3.0 (alpha as it is) and 3.1 (times the root of the rank): 1
    both.
    """
    tensors = kohya(PROJ, rank=4, alpha=alpha)
    number = {key: tensor.item() for key, tensor in tensors.items() if "alpha" in key}.get
    plan = make_plan(
        {key: tuple(tensor.shape) for key, tensor in tensors.items()},
        RS_LORA,
        target_model,
        number=number,
    )
    written = write_as(plan, tensors, tmp_path / "a.safetensors", dialect)
    assert written.difference == 0.0
    again, header = load_file(written.path), read_header(written.path)
    number = {key: tensor.item() for key, tensor in again.items() if "alpha" in key}.get
    (adapter,) = make_plan(header.tensors, header.metadata, target_model, number=number).adapters
    made = (
        adapter.strength.scale
        if adapter.strength.scale is not None
        else number(adapter.roles["alpha"]) / adapter.rank
    )
    assert made == pytest.approx(strength)


def test_only_one_number_is_a_number():
    tensors = {
        "one": torch.tensor([[2.5]]),
        "two": torch.ones(2),
        "none": torch.ones(0),
        "complex": torch.ones((), dtype=torch.complex64),
    }
    assert [_number(tensors, name) for name in tensors] == [2.5, None, None, None]


@pytest.mark.parametrize(
    ("alpha", "text"),
    [(16.0, "16"), (0.1234567891, "0.1234567891"), (1234567.5, "1234567.5"), (1e-9, "1e-09")],
)
def test_the_alpha_in_the_metadata_is_exact(alpha, text):
    """Six digits made another alpha of it."""
    assert exact(alpha) == text and float(text) == alpha
