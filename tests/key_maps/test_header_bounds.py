"""Where the header reader draws its lines: the last thing that is read, and the
first that is not.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import struct
import warnings
from pathlib import Path

import pytest
import torch
from lora_locksmith.files.atomic import OLD_ENDING
from lora_locksmith.files.header import (
    LoraFileError,
    TensorInfo,
    Unreadable,
    adapter_config_beside,
    not_opened,
    parse_header,
    read_header,
    read_numbers,
)
from lora_locksmith.files.numbers import number_of
from lora_locksmith.messages import catalog, message, translate
from safetensors.torch import save_file


def fault_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(LoraFileError) as raised:
        read_header(path)
    return raised.value.fault


def parsed(content: dict, data_bytes: int) -> dict[str, TensorInfo]:
    return dict(parse_header("x.safetensors", json.dumps(content).encode(), data_bytes).tensors)


def entry(dtype, shape, start, end, **more) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}


def test_the_least_file(tmp_path):
    """Eight bytes that say 2, and an object without anything in it."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    header = read_header(path)
    assert (dict(header.tensors), dict(header.metadata), header.data_start) == ({}, {}, 10)


def test_lengths_that_no_header_has(tmp_path):
    path = tmp_path / "x.safetensors"
    assert "only 7 bytes long" in fault_of(path, b"\1" * 7)
    assert "not a safetensors file" in fault_of(path, struct.pack("<Q", 0))
    assert "not a safetensors file" in fault_of(path, struct.pack("<Q", 1) + b"{}")
    assert "the header alone needs 10 bytes, the file has 9" in fault_of(
        path, struct.pack("<Q", 2) + b"{"
    )
    assert "the header alone needs 100,000,008 bytes, the file has 10" in fault_of(
        path, struct.pack("<Q", 100_000_000) + b"{}"
    )
    assert "not a safetensors file" in fault_of(path, struct.pack("<Q", 100_000_001) + b"{}")


def test_a_header_that_is_too_long_is_not_read_where_the_file_has_so_many_bytes(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)
    with pytest.raises(LoraFileError, match="not a safetensors file"):
        read_header(path)
    with open(path, "r+b") as file:  # the longest that is read, though these zeros are no JSON
        file.write(struct.pack("<Q", 100_000_000))
    with pytest.raises(LoraFileError, match="not valid JSON"):
        read_header(path)


@pytest.mark.parametrize(
    ("first", "fault"),
    [
        (b"\x80\x05" + b"\xff" * 8, "pickle"),
        (b"\x80\x06" + b"\xff" * 8, "not a safetensors file"),
        (b"\x81\x05" + b"\xff" * 8, "not a safetensors file"),
        (b"PK\x03\x04" + b"\xff" * 8, "pickle"),
        (b"PK\x05\x06" + b"\xff" * 8, "not a safetensors file"),
        (b"GGUF" + b"\xff" * 8, "it is a GGUF file"),
        (b"GGU" + b"\xff" * 8, "not a safetensors file"),
        (b"version https", "Git LFS"),
        (b"{\0\0\0\0\0\0\0", "the header alone needs 131 bytes"),
        (b"my <html>", "not a safetensors file"),
    ],
)
def test_what_a_file_is_that_begins_so(tmp_path, first, fault):
    assert fault in fault_of(tmp_path / "x.safetensors", first)


@pytest.mark.parametrize("ending", [".pt", ".CKPT", ".bin"])
def test_a_pickle_that_is_called_one_is_told_what_loads_it(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"\x80\x02" + b"\xff" * 8)
    with pytest.raises(LoraFileError) as raised:
        read_header(path)
    assert (
        raised.value.fault == "it is a PyTorch pickle file" and "Save LoRA" in raised.value.remedy
    )
    path.rename(tmp_path / "pt.safetensors")
    with pytest.raises(LoraFileError) as raised:
        read_header(tmp_path / "pt.safetensors")
    assert "not safetensors" in raised.value.fault and "rename it to .pt" in raised.value.remedy


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
def test_a_pipe_is_no_file_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always", ResourceWarning)
        with pytest.raises(LoraFileError) as raised:
            read_header(tmp_path / "x.safetensors")
        fault = raised.value.fault
        del raised  # its traceback would keep what was opened
        gc.collect()
    assert not left_open
    assert fault == "it cannot be opened (it is not a regular file)"


@pytest.mark.parametrize(
    ("error", "fault", "remedy"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file"),
            "there is no such file",
            "Check the name and the folder",
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), "it is a folder", "Name a file in it"),
        (
            PermissionError(errno.EACCES, "Denied"),
            "it cannot be opened (Denied)",
            "Check that it is a file and that you can read it",
        ),
        (
            OSError(errno.EMFILE, "Too many"),
            "it cannot be opened (Too many)",
            message("files.too_many_open"),
        ),
        (
            OSError(errno.ENFILE, "Too many"),
            "it cannot be opened (Too many)",
            message("files.too_many_open"),
        ),
        (
            OSError("odd"),
            "it cannot be opened (odd)",
            "Check that it is a file and that you can read it",
        ),
    ],
)
def test_why_a_file_cannot_be_opened(error, fault, remedy):
    told = not_opened("a/x.safetensors", error)
    assert (told.path, told.fault, told.remedy) == ("a/x.safetensors", fault, remedy)


def test_a_folder_and_a_name_behind_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"{}")
    for path, fault in (
        (tmp_path / "x" / "y.safetensors", "cannot be opened"),
        (tmp_path / "none" / "y.safetensors", "no such file"),
    ):
        with pytest.raises(LoraFileError, match=fault):
            read_header(path)


def test_where_tensors_lie_whatever_their_order_in_the_header():
    a, b, c = entry("F32", [2], 0, 8), entry("U8", [3, 1], 8, 11), entry("F16", [0, 7], 11, 11)
    sound = {"a": ("F32", (2,), 0, 8), "b": ("U8", (3, 1), 8, 11), "c": ("F16", (0, 7), 11, 11)}
    assert parsed({"a": a, "b": b, "c": c}, 11) == sound
    assert parsed({"b": b, "c": c, "a": a}, 11) == sound
    assert parsed({"a": {**a, "note": 1}, "b": b, "c": c}, 11) == sound
    for tensors in ({"a": a, "b": b, "c": c}, {"b": b, "c": c, "a": a}):
        for data_bytes, fault in (
            (10, "cut short: the tensors need 11 bytes, 10 are there"),
            (12, "1 bytes follow the last tensor"),
        ):
            with pytest.raises(LoraFileError, match=fault):
                parsed(tensors, data_bytes)


def test_an_empty_tensor_may_be_named_before_the_one_it_lies_behind():
    empty, full = entry("F32", [0], 4, 4), entry("F32", [1], 0, 4)
    assert parsed({"empty": empty, "full": full}, 4) == {
        "empty": ("F32", (0,), 4, 4),
        "full": ("F32", (1,), 0, 4),
    }


def test_a_size_of_less_than_nothing_is_not_made_up_for_by_the_next():
    with pytest.raises(LoraFileError, match="impossible numbers"):
        parsed({"a": entry("F32", [-1], 0, -4), "b": entry("F32", [2], -4, 4)}, 4)


def test_no_size_is_beyond_64_bits_though_there_is_nothing_of_it():
    with pytest.raises(LoraFileError, match="impossible numbers"):
        parsed({"a": entry("F32", [0, 2**64], 0, 0)}, 0)


BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "C64": 8,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}


@pytest.mark.parametrize("dtype", BYTES)
def test_the_size_of_every_dtype(dtype):
    end = 24 * BYTES[dtype]
    assert parsed({"a": entry(dtype, [4, 6], 0, end)}, end) == {"a": (dtype, (4, 6), 0, end)}


def test_dtypes_of_less_than_a_byte():
    assert parsed({"a": entry("F4", [2], 0, 1)}, 1) == {"a": ("F4", (2,), 0, 1)}
    assert parsed({"a": entry("F4", [3, 2], 0, 3)}, 3) == {"a": ("F4", (3, 2), 0, 3)}
    with pytest.raises(LoraFileError, match="wrongly"):
        parsed({"a": entry("F4", [1], 0, 1)}, 1)


@pytest.mark.parametrize(
    ("shape", "fault"),
    [
        ([2**59 - 1], "has 4 bytes, its shape and dtype need 2305843009213693948"),
        ([2**59], "impossible numbers"),  # its bits do not fit into 64
        ([2**30, 2**30], "impossible numbers"),
        ([2**62, 2**62, 0], "impossible numbers"),  # counted up from the left, as safetensors does
        ([2**64], "impossible numbers"),
        ([0, 2**64], "impossible numbers"),
        ([-1], "impossible numbers"),
        ([-1, -1], "impossible numbers"),
        ([0], "has 4 bytes, its shape and dtype need 0"),
        ([1, "1"], "wrongly"),
        ([None], "wrongly"),
        ({"1": 1}, "wrongly"),
        ({}, "wrongly"),
        ("", "wrongly"),
        ("1", "wrongly"),
        (1, "wrongly"),
    ],
)
def test_sizes_that_cannot_be(shape, fault):
    with pytest.raises(LoraFileError, match=fault):
        parsed({"a": entry("F32", shape, 0, 4)}, 4)


@pytest.mark.parametrize(
    ("offsets", "fault"),
    [
        ([0], "wrongly"),
        ([0, 4, 4], "wrongly"),
        ({"0": 4}, "wrongly"),
        (["0", "4"], "wrongly"),
        ([0.5, 4], "impossible"),
        ([True, 5], "impossible"),
        ([-4, 0], "impossible"),
        ([2**64, 2**64 + 4], "impossible"),
        ([4, 0], "has -4 bytes"),
        ([1, 5], "leaves a hole"),
    ],
)
def test_offsets_that_cannot_be(offsets, fault):
    with pytest.raises(LoraFileError, match=fault):
        parsed({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}, 4)


@pytest.mark.parametrize(
    "described", [7, [], "text", {}, {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}]
)
def test_a_tensor_that_is_described_by_something_else(described):
    with pytest.raises(LoraFileError, match="describes the tensor 'a' wrongly"):
        parsed({"a": described}, 4)


def nested(depth: int):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_how_deep_a_header_may_be_nested():
    """128 in all, as safetensors' reader has it: a tensor's entry and the metadata stand in the
    header, a value of theirs one deeper.
    """
    assert parse_header(
        "x", json.dumps({"__metadata__": {"a": nested(125)}}).encode(), 0
    ).metadata == {"a": "[" * 125 + "]" * 125}
    with pytest.raises(LoraFileError, match="nested too deep"):
        parse_header("x", json.dumps({"__metadata__": {"a": nested(126)}}).encode(), 0)
    with pytest.raises(LoraFileError, match="nested too deep"):
        parse_header(
            "x", json.dumps({"__metadata__": {"b": "text", "a": {"c": nested(125)}}}).encode(), 0
        )
    assert parsed({"a": entry("F32", [1], 0, 4, note=nested(125))}, 4) == {"a": ("F32", (1,), 0, 4)}
    with pytest.raises(LoraFileError, match="nested too deep"):
        parsed({"a": entry("F32", [1], 0, 4, note=nested(126))}, 4)


ONE, EMPTY = (json.dumps(entry("F32", *rest)) for rest in (([1], 0, 4), ([0], 4, 4)))


@pytest.mark.parametrize(
    "text",
    [
        '{"__metadata__": {}, "__metadata__": {"a": "b"}}',
        '{"__metadata__": {"a": "1", "a": "2"}, "__metadata__": {}}',
        '{"a": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [2], "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8], "data_offsets": [0, 4]}}',
        f'{{"a": {ONE}, "a": {EMPTY}, "b": {EMPTY}}}',
        f'{{"__metadata__": {{}}, "a": {ONE}, "a": {ONE}, "a": {EMPTY}}}',
    ],
)
def test_a_name_that_stands_twice(text):
    with pytest.raises(LoraFileError, match="twice"):
        parse_header("x", text.encode(), 4)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_words_that_are_no_numbers_of_json(word):
    with pytest.raises(LoraFileError, match=f"{word} is not a JSON number"):
        parse_header("x", f'{{"__metadata__": {{"a": {word}}}}}'.encode(), 0)


def test_metadata_that_are_not_there_and_those_that_are_no_text():
    assert parse_header("x", b'{"__metadata__": null}', 0).metadata == {}
    assert parse_header(
        "x", b'{"__metadata__": {"a": 1, "b": [true], "c": "text"}}', 0
    ).metadata == {"a": "1", "b": "[true]", "c": "text"}
    with pytest.raises(LoraFileError, match="metadata is not a JSON object"):
        parse_header("x", b'{"__metadata__": []}', 0)


NUMBERS = {
    torch.float16: -1.5,
    torch.bfloat16: -1.5,
    torch.float32: 0.1,
    torch.float64: 0.1,
    torch.int8: -3,
    torch.int16: -300,
    torch.int32: -70_000,
    torch.int64: -(2**40),
    torch.uint8: 200,
    torch.uint16: 60_000,
    torch.uint32: 2**31 + 1,
    torch.uint64: 2**50,
    torch.float8_e4m3fn: 8.0,
    torch.float8_e5m2: 12.0,
}


def test_numbers_of_every_dtype_are_read_as_torch_has_them(tmp_path):
    tensors = {
        str(dtype): torch.tensor(value).to(dtype).reshape(1, 1) for dtype, value in NUMBERS.items()
    }
    others = {
        "two": torch.ones(2),
        "none": torch.ones(0),
        "yes": torch.tensor(True),
        "scalar": torch.tensor(4.0),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors | others, path)
    found = read_numbers(path, read_header(path), [*tensors, *others])
    assert found == {name: float(tensor) for name, tensor in tensors.items()} | {"scalar": 4.0}
    assert read_numbers(path, read_header(path), ["scalar"]) == {"scalar": 4.0}


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.float8_e4m3fnuz, "F8_E4M3FNUZ"),
        (torch.float8_e5m2fnuz, "F8_E5M2FNUZ"),
        (torch.float8_e8m0fnu, "F8_E8M0"),
    ],
)
def test_every_float_of_one_byte_is_what_torch_says(dtype, name):
    right = torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float64)
    read = torch.tensor([number_of(name, bytes([byte])) for byte in range(256)], dtype=right.dtype)
    assert torch.equal(right.nan_to_num(7e77), read.nan_to_num(7e77))
    assert torch.equal(right.isnan(), read.isnan())


def test_numbers_of_a_file_that_is_another_by_now(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.tensor(1.0)}, path)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(LoraFileError, match="another file than a moment ago"):
        read_numbers(path, header, ["a"])
    with pytest.raises(LoraFileError, match="cannot be read"):
        read_numbers(path, header._replace(stamp=()), ["a"])
    path.unlink()
    with pytest.raises(LoraFileError, match="cannot be read"):
        read_numbers(path, header, ["a"])


def test_the_largest_settings_that_are_read(tmp_path):
    config, file = tmp_path / "adapter_config.json", tmp_path / "x.safetensors"
    assert adapter_config_beside(file) is None
    text = b'{"r": 4}'
    config.write_bytes(text.ljust(10_000_000))
    assert adapter_config_beside(file) == {"r": 4}
    config.write_bytes(text.ljust(10_000_001))
    unread(file, "it is too large for settings")
    contents = {b"[4]": "it is not a JSON object"} | dict.fromkeys(
        (b"\xff", b"{", b"[" * 100_000), "it is not JSON"
    )
    for content, fault in contents.items():
        config.write_bytes(content)
        unread(file, fault)


def unread(file: Path, fault: str) -> None:
    """Settings that are there and cannot be read are none, and say why."""
    found = adapter_config_beside(file)
    assert (
        isinstance(found, Unreadable)
        and found == {}
        and found.fault == fault
        and fault in repr(found)
    )


def test_settings_that_were_set_aside_count_until_the_new_ones_are_there(tmp_path):
    config, file = tmp_path / "adapter_config.json", tmp_path / "x.safetensors"
    aside = tmp_path / f"adapter_config.json{OLD_ENDING}"
    aside.write_bytes(b'{"r": 4}')
    assert adapter_config_beside(file) == {"r": 4}
    config.write_bytes(b'{"r": 8}')
    assert adapter_config_beside(file) == {"r": 8}
    config.write_bytes(b"{")
    unread(file, "it is not JSON")
    config.unlink()
    config.mkdir()
    with pytest.raises(OSError) as raised:
        config.read_bytes()
    unread(file, raised.value.strerror)


def test_halves_of_characters_are_told_however_they_are_written():
    for text in ("\\ud800", "\\uD800", "\\ud800x\\uD800"):
        header = parse_header("x", b'{"__metadata__": {"a": "' + text.encode() + b'"}}', 0)
        assert header.refusal.endswith("in its header holds half a character")
    assert parse_header("x", b'{"__metadata__": {"a": "\\ud83d\\uDE00"}}', 0).refusal == ""


def test_a_long_name_is_cut_in_a_sentence_that_is_kept_whole(tmp_path):
    entry = b'{"dtype":"F32","shape":[],"data_offsets":[0,4]}'
    other = entry.replace(b"F32", b"I32")
    name = b'"' + 100 * b"n" + b'":'
    twice = b"{" + name + entry + b"," + name + other + b"}"
    fault = fault_of(tmp_path / "x.safetensors", struct.pack("<Q", len(twice)) + twice)
    assert f"'{80 * 'n'}'" in fault and len(fault) > 120
    again = message("files.name_twice", name=f"'{80 * 'n'}'")
    whole = message("files.header_no_json", reason=again)
    assert fault == whole and translate(fault, "zh") == translate(whole, "zh")


def test_what_python_says_of_a_header_is_cut_to_a_line(tmp_path):
    number = 5000 * b"1"
    with pytest.raises(ValueError) as raised:
        json.loads(number)
    reason = str(raised.value)
    assert len(reason) > 120
    header = b'{"a":' + number + b"}"
    fault = fault_of(tmp_path / "x.safetensors", struct.pack("<Q", len(header)) + header)
    assert fault == message("files.header_no_json", reason=reason[:120])


@pytest.mark.skipif(os.name != "posix", reason="no such limit")
def test_that_no_more_files_can_be_opened_is_said_in_words_though_none_can_be_opened(tmp_path):
    import resource

    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    catalog.cache_clear()
    read_header(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(LoraFileError) as raised:
            read_header(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit -n" in str(raised.value)
