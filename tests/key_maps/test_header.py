"""The header reader: right for what safetensors writes, and a clear error for everything else."""

import json
import struct

import pytest
import torch
from lora_locksmith.files.header import LoraFileError, parse_header, read_header
from lora_locksmith.messages import Message, text_of, translate
from lora_locksmith.report.findings import findings_of
from lora_locksmith.report.inspection import inspect_file
from reports.small_files import flux_lora, write_file
from safetensors import SafetensorError, safe_open
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
    assert {name: info.shape for name, info in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
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
    "a list of words": (packed(b"[true, -0]"), "not a JSON object"),
    "metadata is a list": (packed(b'{"__metadata__": [1]}'), "metadata"),
    "unknown dtype": (packed(json.dumps({"a": entry("F99")}).encode(), b"\0" * 4), "wrongly"),
    "no shape": (
        packed(json.dumps({"a": {"dtype": "F32", "data_offsets": [0, 4]}}).encode(), b"\0" * 4),
        "wrongly",
    ),
    "shape is text": (packed(json.dumps({"a": entry(shape="1")}).encode(), b"\0" * 4), "wrongly"),
    "fractions": (
        packed(json.dumps({"a": entry(shape=(1.0,))}).encode(), b"\0" * 4),
        "impossible numbers",
    ),
    "negative": (
        packed(json.dumps({"a": entry(shape=(-1,), offsets=(4, 0))}).encode(), b"\0" * 4),
        "impossible numbers",
    ),
    "true as a number": (
        packed(json.dumps({"a": entry(shape=(True,))}).encode(), b"\0" * 4),
        "impossible numbers",
    ),
    "too few bytes": (packed(json.dumps({"a": entry(shape=(2,))}).encode(), b"\0" * 4), "need 8"),
    "overlap": (packed(json.dumps({"a": entry(), "b": entry()}).encode(), b"\0" * 4), "overlaps"),
    "hole": (packed(json.dumps({"a": entry(offsets=(4, 8))}).encode(), b"\0" * 8), "hole"),
    "cut data": (packed(json.dumps({"a": entry()}).encode(), b"\0" * 2), "cut short"),
    "data behind": (packed(json.dumps({"a": entry()}).encode(), b"\0" * 9), "follow"),
    "name twice": (
        packed(
            b'{"a": %s, "a": %s}'
            % (json.dumps(entry("I32")).encode(), json.dumps(entry()).encode()),
            b"\0" * 4,
        ),
        "twice",
    ),
    "a type torch lacks": (
        packed(json.dumps({"a": entry("F6_E2M3", (8,), (0, 6))}).encode(), b"\0" * 6),
        "torch does not have",
    ),
    "a size torch cannot count": (
        packed(json.dumps({"a": entry(shape=(2**63, 0), offsets=(0, 0))}).encode()),
        "torch can count",
    ),
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
    with pytest.raises(LoraFileError, match="Load it with a node"):
        read_header(tmp_path / "old.pt")


def test_a_header_whose_length_begins_like_a_pickle(tmp_path):
    """0x80 0x02 begins a pickle, and also a header of 640 bytes."""
    text = json.dumps({"a": entry()}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(text.ljust(0x0280), b"\0" * 4))
    assert list(read_header(path).tensors) == ["a"]


ONE = json.dumps(entry()).encode()


def with_metadata(text: bytes) -> bytes:
    return b'{"__metadata__":%s,"a":%s}' % (text, ONE)


def described(text: bytes) -> bytes:
    return b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]%s}}' % text


# Headers of one F32 number, as writers, editors and scripts may leave them behind.
SPELLED = {
    "plain": b'{"a":%s}' % ONE,
    "space in front": b' {"a":%s}' % ONE,
    "space behind": b'{"a":%s}  ' % ONE,
    "line feed behind": b'{"a":%s}\n' % ONE,
    "zeros behind": b'{"a":%s}\0\0' % ONE,
    "byte order mark": b'\xef\xbb\xbf{"a":%s}' % ONE,
    "two objects": b'{"a":%s}{}' % ONE,
    "comma at the end": b'{"a":%s,}' % ONE,
    "metadata null": with_metadata(b"null"),
    "metadata empty": with_metadata(b"{}"),
    "metadata text": with_metadata(b'"x"'),
    "metadata list": with_metadata(b"[]"),
    "metadata a number": with_metadata(b'{"k":1}'),
    "metadata a fraction": with_metadata(b'{"k":1.5}'),
    "metadata true": with_metadata(b'{"k":true}'),
    "metadata null inside": with_metadata(b'{"k":null}'),
    "metadata a list inside": with_metadata(b'{"k":["x"]}'),
    "metadata an object": with_metadata(b'{"k":{"x":"y"}}'),
    "metadata too large a number": with_metadata(b'{"k":1e999}'),
    "metadata NaN": with_metadata(b'{"k":NaN}'),
    "metadata speaks of lists": with_metadata(json.dumps({"k": "[true, -0, false]"}).encode()),
    "metadata twice": b'{"__metadata__":{"k":"1"},"__metadata__":{"k":"2"},"a":%s}' % ONE,
    "metadata twice, once escaped": (
        b'{"__metadata__":{"k":"1"},"\\u005f_metadata__":{"k":"2"},"a":%s}' % ONE
    ),
    "key of metadata twice": with_metadata(b'{"k":"1","k":"2"}'),
    "a whole character in two halves": with_metadata(b'{"k":"\\ud83d\\ude00"}'),
    "half a character": with_metadata(b'{"k":"\\ud83d"}'),
    "the other half": with_metadata(b'{"\\uDE00":"x"}'),
    "halves the wrong way round": with_metadata(b'{"k":"\\ude00\\ud83d"}'),
    "half a character in a name": b'{"\\ud83d":%s}' % ONE,
    "a control character": b'{"a\x01":%s}' % ONE,
    "empty name": b'{"":%s}' % ONE,
    "escaped name": b'{"\\u0061":%s}' % ONE,
    "key of metadata twice beside an odd number": (
        b'{"__metadata__":{"k":"1","k":"[-0]"},"a":%s}' % ONE
    ),
    "a field more, twice": described(b',"x":1,"x":2'),
    "a field more with a name twice": described(b',"x":{"y":1,"y":2}'),
    "a tensor twice, the same": b'{"a":%s,"a":%s}' % (ONE, ONE),
    "a tensor twice, the same in another order": (
        b'{"a":%s,"a":{"shape":[1],"data_offsets":[0,4],"dtype":"F32"}}' % ONE
    ),
    "a tensor twice, each with a field twice": (
        b'{"a":%s,"a":%s}' % ((ONE.replace(b"{", b'{"dtype":"F32",'),) * 2)
    ),
    "a tensor twice, once with true for 1": (
        b'{"a":%s,"a":%s}' % (ONE.replace(b"[1]", b"[true]"), ONE)
    ),
    "a tensor twice, once empty": b'{"a":{},"a":%s}' % ONE,
    "a tensor twice, once a number": b'{"a":1,"a":%s}' % ONE,
    "a tensor twice, once without a shape": (
        b'{"a":{"dtype":"F32","data_offsets":[0,4]},"a":%s}' % ONE
    ),
    "a tensor twice beside backslashes": (
        b'{"__metadata__":{"k":"\\\\","l":"\\\\"},"a":1,"a":%s}' % ONE
    ),
    "a tensor twice, once a number, beside a number": (
        b'{"__metadata__":{"k":1},"a":1,"a":%s}' % ONE
    ),
    "the empty name twice, once a number": b'{"":1,"":%s}' % ONE,
    "the empty name twice, once with other fields": b'{"":{"x":1,"y":2,"z":3},"":%s}' % ONE,
    "all odd words, and minus zero as an offset": (
        b'{"__metadata__":{"k":"true false \\u00e9"},"a":%s}' % ONE.replace(b"[0, 4]", b"[-0, 4]")
    ),
    "metadata that say a field's name twice": with_metadata(b'{"shape":"[-0]","shape":"2"}'),
    "metadata a number, and a field more": (
        b'{"__metadata__":{"k":1},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}'
    ),
    "metadata with escaped quotes": with_metadata(b'{"k":"\\"a\\": \\\\\\"b\\\\\\""}'),
    "key of metadata twice, of a number": with_metadata(b'{"k":1,"k":2}'),
    "metadata twice, once null": b'{"__metadata__":null,"__metadata__":{},"a":%s}' % ONE,
    "more fields": described(b',"x":[1,{"y":2}]'),
    "a field twice": described(b',"dtype":"F32"'),
    "a field twice, once escaped": described(b',"dtyp\\u0065":"F32"'),
    "a field more, too large a number": described(b',"x":1e999'),
    "a field more, too long a number": described(b',"x":' + b"9" * 400),
    "a field more, half a character": described(b',"x":"\\ud83d"'),
    "minus zero as an offset": ONE.join((b'{"a":', b"}")).replace(b"[0, 4]", b"[-0, 4]"),
    "false as an offset": ONE.join((b'{"a":', b"}")).replace(b"[0, 4]", b"[false, 4]"),
    "a fraction as an offset": ONE.join((b'{"a":', b"}")).replace(b"[0, 4]", b"[0, 4e0]"),
    "a hole": b'{"a":%s}' % ONE.replace(b"[0, 4]", b"[4, 8]"),
    "an empty tensor among others": (
        b'{"a":%s,"z":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}' % ONE
    ),
    "an empty tensor beyond the end": (
        b'{"a":%s,"z":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}}' % ONE
    ),
    "true where others have one": (
        b'{"z":%s,"a":%s}'
        % (
            ONE.replace(b"[1]", b"[1,0]").replace(b"[0, 4]", b"[0,0]"),
            ONE.replace(b"[1]", b"[true]"),
        )
    ),
    "a scalar": b'{"a":%s}' % ONE.replace(b"[1]", b"[]"),
}


@pytest.mark.parametrize("header", SPELLED.values(), ids=SPELLED.keys())
def test_what_safetensors_does_not_read_is_refused_or_said(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(header, b"\0" * 4))
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
    except SafetensorError:
        names = None
    try:
        read = read_header(path)
    except LoraFileError:
        assert names is None, "safetensors reads it"
    else:
        assert bool(read.refusal) == (names is None), read.refusal
        assert names is None or names == read.tensors.keys()


def test_a_size_that_equals_another_for_python_alone_is_no_size():
    shapes = [[1], [1.0], [True]]
    for other in shapes[1:]:
        text = json.dumps({"a": entry(), "b": entry(shape=other, offsets=(4, 8))}).encode()
        with pytest.raises(LoraFileError, match="impossible numbers"):
            parse_header("x", text, 8)


def test_the_stock_loader_is_not_said_to_load_what_safetensors_refuses(tmp_path):
    """Both files are alike for the plan, and only one is for the stock loader."""
    sound = write_file(tmp_path / "sound.safetensors", flux_lora(), {"steps": "8"})
    numbers = write_file(tmp_path / "numbers.safetensors", flux_lora(), {"steps": 8})
    with pytest.raises(SafetensorError), safe_open(numbers, "pt"):
        pass
    for path, fails in ((sound, False), (numbers, True), (sound, False)):
        found = inspect_file(path)
        assert ("the stock loader fails on this file" in found.verdict) == fails
        assert found.report.modules["placed"] == 57 and found.report.stock_modules == (
            0 if fails else 57
        )
        assert ("the stock loader fails on this file: safetensors" in str(found.report)) == fails
        assert ("'steps' in its metadata is not text" in found.report.stock_fails) == fails
        assert bool(findings_of(path).gains) == fails == bool(found.gains)


def test_a_fault_and_its_remedy_are_messages_up_to_where_they_are_shown(tmp_path):
    """Of what this reads, and of what the system or Python's JSON reader says."""
    twice = b'{"a": 1, "a": 1}'
    contents = {
        "empty": b"",
        "page": b"<!doctype html>",
        "pickle.pt": b"\x80\x02}q\x00.",
        "deep": struct.pack("<Q", 500) + b"[" * 500,
        "twice": struct.pack("<Q", len(twice)) + twice,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "gone"):
        with pytest.raises(LoraFileError) as raised:
            read_header(tmp_path / name)
        for text in (raised.value.fault, raised.value.remedy, text_of(raised.value)):
            assert isinstance(text, Message) and translate(text, "zh") != text
        chinese = translate(text_of(raised.value), "zh")
        assert translate(raised.value.fault, "zh") in chinese and raised.value.fault not in chinese
