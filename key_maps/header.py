"""Reads the header of a safetensors file: names, shapes, dtypes and metadata, without touching a tensor."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Iterable, Mapping
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

# The format's own limit (safetensors' Rust reader, MAX_HEADER_SIZE).
MAX_HEADER_BYTES = 100_000_000

# Bits per element: safetensors' Dtype list; sub-byte types are packed.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class LoraFileError(Exception):
    """A file that cannot be read as a LoRA: the text names the file, the fault and the remedy."""

    def __init__(self, path: str | os.PathLike[str], fault: str, remedy: str):
        super().__init__(f"{path}: {fault}. {remedy}")
        self.path, self.fault, self.remedy = os.fspath(path), fault, remedy


class TensorInfo(NamedTuple):
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0


class Header(NamedTuple):
    """A safetensors header: tensor name -> TensorInfo, the file's own metadata (str -> str), and where the data begins."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int = 0


REMEDY = "Download or export the file again"


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of the safetensors file at `path`.

    Checked, as the safetensors specification demands: the length, JSON without repeated names, known dtypes, whole shapes,
    offsets that agree with shape and dtype and cover the data exactly. Raises LoraFileError, never anything else.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = _header_length(path, file.read(8), size)
            raw = file.read(length)
    except FileNotFoundError:
        raise LoraFileError(path, "there is no such file", "Check the name, or refresh the file list") from None
    except OSError as error:
        raise LoraFileError(path, f"it cannot be opened ({error.strerror or error})", "Check that it is a file and may be read") from None
    if len(raw) < length:
        raise LoraFileError(path, "it ends inside its own header", REMEDY)
    return parse_header(path, raw, size - 8 - length)


def _header_length(path: str | os.PathLike[str], first: bytes, size: int) -> int:
    if size == 0:
        raise LoraFileError(path, "it is empty", REMEDY)
    if len(first) < 8:
        raise LoraFileError(path, f"it is only {size} bytes long, too short for a safetensors file", REMEDY)
    (length,) = struct.unpack("<Q", first)
    if not 2 <= length <= MAX_HEADER_BYTES or length > size - 8:
        raise _no_header(path, first, length, size)
    return length


def _no_header(path: str | os.PathLike[str], first: bytes, length: int, size: int) -> LoraFileError:
    """What a file is whose first eight bytes cannot be the length of a header."""
    if first[:4] == b"PK\x03\x04" or (first[:1] == b"\x80" and first[1] <= pickle.HIGHEST_PROTOCOL):
        return LoraFileError(
            path, "it is a PyTorch pickle file, not safetensors", "Convert it to safetensors, or rename it to .pt or .ckpt"
        )
    if first[:4] == b"GGUF":
        return LoraFileError(path, "it is a GGUF file, not safetensors", "Use the safetensors version of this LoRA")
    if 2 <= length <= MAX_HEADER_BYTES:
        return LoraFileError(path, f"it is cut short: the header alone needs {length + 8:,} bytes, the file has {size:,}", REMEDY)
    fault = f"it is not a safetensors file (its first bytes, {first!r}, give an impossible header length)"
    return LoraFileError(path, fault, "Web pages and Git LFS pointers saved under this name are usual causes; download the file itself")


def parse_header(path: str | os.PathLike[str], raw: bytes, data_bytes: int) -> Header:
    """Parse the JSON text `raw` of a header; `data_bytes` is the size of what follows it in the file."""
    try:
        content = json.loads(raw.decode("utf-8"))
        if raw.count(b'"dtype"') != len(content) - ("__metadata__" in content):
            # A name that stands twice leaves fewer entries than descriptions (or metadata quotes a header): look closely.
            content = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError:
        raise LoraFileError(path, "its header is not UTF-8 text", REMEDY) from None
    except (ValueError, RecursionError) as error:
        raise LoraFileError(path, f"its header is not valid JSON ({str(error)[:120]})", REMEDY) from None
    if not isinstance(content, dict):
        raise LoraFileError(path, "its header is not a JSON object", REMEDY)
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise LoraFileError(path, "its metadata is not a JSON object", REMEDY)
    tensors = _in_order(content, data_bytes)
    if tensors is None:
        tensors = {name: _tensor_info(path, name, entry) for name, entry in content.items()}
        _check_numbers(path, tensors)
        _check_layout(path, tensors, data_bytes)
    return Header(tensors, {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}, 8 + len(raw))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated[:80]!r} stands in it twice")
    return content


def _in_order(content: Mapping[str, Any], data_bytes: int) -> dict[str, TensorInfo] | None:
    """All tensors in one pass, if they are sound and stand in the order of their data, as nearly every file has them; else None."""
    tensors: dict[str, TensorInfo] = {}
    known: dict[tuple[str, tuple], tuple[tuple[int, ...], int]] = {}
    position, make = 0, tuple.__new__
    try:
        for name, entry in content.items():
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            sized = known.get((dtype, shape))
            if sized is None:
                if any(type(size) is not int or size < 0 for size in shape):
                    return None
                sized = known[dtype, shape] = shape, (DTYPE_BITS[dtype] * prod(shape) + 7) // 8
            end = position + sized[1]
            if entry["data_offsets"] != [position, end]:
                return None
            # A quarter of the time of TensorInfo(...), and a file has thousands.
            tensors[name] = make(TensorInfo, (dtype, sized[0], position, end))
            position = end
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return tensors if position == data_bytes and position < 2**63 else None


def _tensor_info(path: str | os.PathLike[str], name: str, entry: Any) -> TensorInfo:
    try:
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
        needed = (DTYPE_BITS[entry["dtype"]] * prod(shape) + 7) // 8
    except (TypeError, KeyError, ValueError, OverflowError):
        raise LoraFileError(path, f"its header describes the tensor {name[:80]!r} wrongly", REMEDY) from None
    if needed != end - start:
        raise LoraFileError(path, f"the tensor {name[:80]!r} has {end - start} bytes, its shape and dtype need {needed}", REMEDY)
    return TensorInfo(entry["dtype"], shape, start, end)


def _check_numbers(path: str | os.PathLike[str], tensors: Mapping[str, TensorInfo]) -> None:
    """All sizes and offsets are whole and in range; checked in one go, because a file has thousands."""
    numbers = [number for info in tensors.values() for number in (*info.shape, info.start, info.end)]
    if not numbers or (set(map(type, numbers)) == {int} and min(numbers) >= 0 and max(numbers) < 2**63):
        return
    for name, info in tensors.items():
        if any(type(number) is not int or not 0 <= number < 2**63 for number in (*info.shape, info.start, info.end)):
            raise LoraFileError(path, f"the tensor {name[:80]!r} has impossible numbers in its shape or offsets", REMEDY)


def _check_layout(path: str | os.PathLike[str], tensors: Mapping[str, TensorInfo], data_bytes: int) -> None:
    position = 0
    for info in sorted(tensors.values(), key=itemgetter(2, 3)):
        if info.start != position:
            name = next(name for name, other in tensors.items() if other is info)
            raise LoraFileError(path, f"the data of {name[:80]!r} overlaps another tensor or leaves a hole", REMEDY)
        position = info.end
    if position > data_bytes:
        raise LoraFileError(path, f"it is cut short: the tensors need {position:,} bytes, {data_bytes:,} are there", REMEDY)
    if position < data_bytes:
        raise LoraFileError(path, f"{data_bytes - position:,} bytes follow the last tensor", REMEDY)


NUMBERS = {"F16": "<e", "F32": "<f", "F64": "<d", "I8": "<b", "I16": "<h", "I32": "<i", "I64": "<q", "U8": "<B", "U16": "<H", "U32": "<I"}


def read_numbers(path: str | os.PathLike[str], header: Header, names: Iterable[str]) -> dict[str, float]:
    """The values of tensors of one element, such as alphas, by name; tensors of other sizes and dtypes are left out.

    Reads a few bytes for each, and no other data. Raises LoraFileError when the file cannot be read any more.
    """
    found = {}
    wanted = sorted((name for name in names if prod(header.tensors[name].shape) == 1), key=lambda name: header.tensors[name].start)
    try:
        with open(path, "rb", buffering=65536) as file:
            for name in wanted:
                info = header.tensors[name]
                file.seek(header.data_start + info.start)
                raw = file.read(info.end - info.start)
                if info.dtype == "BF16":
                    found[name] = struct.unpack("<f", b"\0\0" + raw)[0]
                elif info.dtype in NUMBERS:
                    found[name] = float(struct.unpack(NUMBERS[info.dtype], raw)[0])
    except (OSError, struct.error) as error:
        raise LoraFileError(path, f"it cannot be read ({error})", "The file changed while it was read: try again") from None
    return found


def adapter_config_beside(path: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """The content of PEFT's `adapter_config.json` beside `path`, or None where there is none that can be read."""
    try:
        content = json.loads((Path(path).parent / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
