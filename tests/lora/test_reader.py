"""Reading tensors, at once or one by one: dtypes survive, tensors outlive the file, and every fault
names the file and the remedy.
"""

import pytest
import torch
from lora_locksmith.files.header import read_header
from lora_locksmith.lora.io.mapped import (
    LoraFileError,
    map_tensors,
    open_with_safetensors,
    read_with_safetensors,
)
from lora_locksmith.lora.io.stream import TensorStream
from safetensors.torch import save_file

PLAIN = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int16,
    torch.bool,
]
OTHER = [torch.float8_e8m0fnu, torch.uint16]  # without a name of their own in DTYPES


def written(path, dtypes):
    save_file(
        {str(dtype): torch.arange(1, 7).reshape(2, 3).to(dtype) for dtype in dtypes}
        | {"alpha": torch.tensor(2.0)},
        path,
    )
    return path


@pytest.fixture
def file(tmp_path):
    return written(tmp_path / "lora.safetensors", PLAIN)


@pytest.fixture
def stream(file):
    return TensorStream(file, read_header(file))


@pytest.mark.parametrize("dtypes", [PLAIN, PLAIN + OTHER])
def test_reads_by_name_and_keeps_the_dtype(tmp_path, dtypes):
    path = written(tmp_path / "lora.safetensors", dtypes)
    header = read_header(path)
    with TensorStream(path, header) as stream:
        assert {stream.dtype(str(dtype)) for dtype in dtypes} == set(dtypes)
        one_by_one = dict(stream)
    for tensors in (one_by_one, map_tensors(path, header)):
        assert tensors.keys() == {*map(str, dtypes), "alpha"} and tensors["alpha"] == 2
        for dtype in dtypes:
            tensor = tensors[str(dtype)]
            assert tensor.dtype == dtype and torch.equal(
                tensor.float(), torch.arange(1, 7).reshape(2, 3).to(dtype).float()
            )


def test_can_be_opened_again(stream):
    for _ in range(2):
        with stream:
            assert stream["alpha"] == 2


def test_reading_outside_of_the_block(stream):
    with stream:
        pass
    with pytest.raises(LoraFileError, match=r"not open.*with block"):
        stream["alpha"]


def test_unknown_name(file, stream):
    with stream, pytest.raises(KeyError, match="beta"):
        stream["beta"]
    with pytest.raises(LoraFileError, match=r"lora\.safetensors: the tensor 'beta' cannot be read"):
        read_with_safetensors(file, ["beta"])


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 4, b"<html>not a LoRA</html>" * 20, b"\x10\x00\x00\x00\x00\x00\x00\x00{}"],
)
def test_broken_files(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoraFileError, match=r"broken\.safetensors: .*again"):
        open_with_safetensors(path)


def test_cut_short(file, stream):
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(LoraFileError, match="not a whole safetensors file"):
        open_with_safetensors(file)
    with pytest.raises(LoraFileError, match="another file"), stream:
        pass


def test_missing_file_and_folder(tmp_path, file, stream):
    file.unlink()
    with pytest.raises(LoraFileError, match="cannot be opened"), stream:
        pass
    for path in (file, tmp_path):
        with pytest.raises(LoraFileError, match=r"cannot be opened|not a whole"):
            open_with_safetensors(path)
