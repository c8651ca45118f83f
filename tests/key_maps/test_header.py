"""The header reader: right for what safetensors writes, and a clear error for everything else."""

import json
import struct

import pytest
import torch
from lora_locksmith.key_maps.header import LoraFileError, parse_header, read_header
from safetensors.torch import save_file


def packed(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_safetensors_writes(tmp_path):
    tensors = {
        "a.weight": torch.zeros(2, 3),
        "b": torch.zeros((), dtype=torch.bfloat16),
        "c": torch.zeros(0, 4),
        "d": torch.zeros(5, dtype=torch.int8),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"note": "hello"})
    header = read_header(tmp_path / "x.safetensors")
    assert {name: info.shape for name, info in header.tensors.items()} == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert header.metadata == {"note": "hello"}
    assert header.tensors["b"].dtype == "BF16"


BAD = {
    "empty": (b"", "empty"),
    "short": (b"\x01\x02", "too short"),
    "web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "web page after a line": (b"\n\n<html></html>", "web page"),
    "a site's answer": (b'{"error":"Unauthorized"}', "site's answer"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "text": (b"no LoRA at all", "not a safetensors file"),
    "pickle": (b"PK\x03\x04" + b"\0" * 20, "pickle file or a zip"),
    "header of as many bytes as a letter": (b"<" + b"\0" * 7 + b"{", "cut short"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 20, "GGUF"),
    "header longer than the file": (struct.pack("<Q", 5000) + b"{}", "cut short"),
    "no JSON": (packed(b"{nonsense}"), "not valid JSON"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "UTF-8"),
    "a list": (packed(b"[]"), "not a JSON object"),
    "metadata is a list": (packed(b'{"__metadata__": [1]}'), "metadata"),
    "unknown dtype": (packed(json.dumps({"a": entry("F99")}).encode(), b"\0" * 4), "wrongly"),
    "no shape": (packed(json.dumps({"a": {"dtype": "F32", "data_offsets": [0, 4]}}).encode(), b"\0" * 4), "wrongly"),
    "shape is text": (packed(json.dumps({"a": entry(shape="1")}).encode(), b"\0" * 4), "wrongly"),
    "fractions": (packed(json.dumps({"a": entry(shape=(1.0,))}).encode(), b"\0" * 4), "impossible numbers"),
    "negative": (packed(json.dumps({"a": entry(shape=(-1,), offsets=(4, 0))}).encode(), b"\0" * 4), "impossible numbers"),
    "true as a number": (packed(json.dumps({"a": entry(shape=(True,))}).encode(), b"\0" * 4), "impossible numbers"),
    "too few bytes": (packed(json.dumps({"a": entry(shape=(2,))}).encode(), b"\0" * 4), "need 8"),
    "overlap": (packed(json.dumps({"a": entry(), "b": entry()}).encode(), b"\0" * 4), "overlaps"),
    "hole": (packed(json.dumps({"a": entry(offsets=(4, 8))}).encode(), b"\0" * 8), "hole"),
    "cut data": (packed(json.dumps({"a": entry()}).encode(), b"\0" * 2), "cut short"),
    "data behind": (packed(json.dumps({"a": entry()}).encode(), b"\0" * 9), "follow"),
    "name twice": (packed(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), b"\0" * 4), "twice"),
    "deep nesting": (packed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "JSON"),
}


@pytest.mark.parametrize("content, fault", BAD.values(), ids=BAD.keys())
def test_every_bad_file_is_named_with_its_fault_and_a_remedy(tmp_path, content, fault):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoraFileError) as raised:
        read_header(path)
    assert "bad.safetensors" in str(raised.value)
    assert fault in raised.value.fault
    assert raised.value.remedy


def test_a_file_cut_anywhere_is_refused(tmp_path):
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(LoraFileError):
            read_header(tmp_path / "cut.safetensors")


def test_no_such_file_and_a_folder(tmp_path):
    with pytest.raises(LoraFileError, match="no such file"):
        read_header(tmp_path / "nothing.safetensors")
    with pytest.raises(LoraFileError, match="it is a folder"):
        read_header(tmp_path)


def test_metadata_may_quote_a_header():
    text = json.dumps({"__metadata__": {"note": '"dtype" "dtype"'}, "a": entry()}).encode()
    assert list(parse_header("x", text, 4).tensors) == ["a"]


def test_a_pickle_is_not_told_to_take_the_name_it_has(tmp_path):
    (tmp_path / "old.pt").write_bytes(b"PK\x03\x04" + b"\0" * 20)
    with pytest.raises(LoraFileError, match="when a node loads it"):
        read_header(tmp_path / "old.pt")


def test_a_header_whose_length_begins_like_a_pickle(tmp_path):
    """0x80 0x02 begins a pickle, and also a header of 640 bytes."""
    text = json.dumps({"a": entry()}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(text.ljust(0x0280), b"\0" * 4))
    assert list(read_header(path).tensors) == ["a"]
