"""Lazy reading: dtypes survive, tensors outlive the file, and every fault names the file and the remedy."""

import pytest
import torch
from lora_locksmith.lora.reader import LoraFileError, LoraReader
from safetensors.torch import save_file

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int16, torch.bool]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES} | {"alpha": torch.tensor(2.0)}, path)
    return path


def test_reads_by_name_and_keeps_the_dtype(file):
    with LoraReader(file) as reader:
        assert set(reader.names()) == {*map(str, DTYPES), "alpha"}
        tensors = reader.tensors({dtype: str(dtype) for dtype in DTYPES})
        assert reader.tensor("alpha") == 2
    for dtype, tensor in tensors.items():
        assert tensor.dtype == dtype and torch.equal(tensor.float(), torch.arange(6).reshape(2, 3).to(dtype).float())


def test_can_be_opened_again(file):
    reader = LoraReader(str(file))
    for _ in range(2):
        with reader:
            assert reader.tensor("alpha") == 2


def test_reading_outside_of_the_block(file):
    reader = LoraReader(file)
    with reader:
        pass
    with pytest.raises(LoraFileError, match=r"not open.*with block"):
        reader.tensor("alpha")


def test_unknown_name(file):
    with LoraReader(file) as reader, pytest.raises(LoraFileError, match=r"lora\.safetensors: the tensor 'beta' cannot be read"):
        reader.tensor("beta")


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, b"<html>not a LoRA</html>" * 20, b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_broken_files(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoraFileError, match=r"broken\.safetensors: .*again"), LoraReader(path):
        pass


def test_cut_short(file):
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(LoraFileError, match="not a whole safetensors file"), LoraReader(file):
        pass


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(LoraFileError, match="no such file"), LoraReader(tmp_path / "none.safetensors"):
        pass
    with pytest.raises(LoraFileError, match=r"cannot be opened|not a whole"), LoraReader(tmp_path):
        pass
