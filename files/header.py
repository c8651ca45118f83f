"""Reads the header of a safetensors file: names, shapes, dtypes and metadata, without touching a
tensor.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import LocksmithError, about_file, system_reason
from ..messages import ENGLISH, Message, catalog, message, text_of
from .atomic import OLD_ENDING
from .json_text import read_json
from .numbers import number_of

# The format's own limit (safetensors' Rust reader, MAX_HEADER_SIZE).
MAX_HEADER_BYTES = 100_000_000
MAX_CONFIG_BYTES = 10_000_000  # of an adapter_config.json; real ones have some thousands

# Bits per element: safetensors' Dtype list; sub-byte types are packed.
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F4": 4,
}
NOT_IN_TORCH = ("F6_E2M3", "F6_E3M2")  # in safetensors' list, but nothing loads a file with them
MAX_SIZE = 2**63  # of a dimension: torch counts in 64 bits with a sign


class LoraFileError(LocksmithError):
    """A file that cannot be read as a LoRA: the text names the file, the fault and the remedy."""

    def __init__(self, path: str | os.PathLike[str], fault: str, remedy: str):
        super().__init__(about_file(path, fault, remedy))
        self.path, self.fault, self.remedy = os.fspath(path), fault, remedy


class NotReached(LoraFileError):
    """A file that could not be opened or fetched this time, which says nothing of what is in it."""


class TensorInfo(NamedTuple):
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0


Span = tuple[int, int]  # the first byte, and the one behind the last


class Header(NamedTuple):
    """A safetensors header: tensor name -> TensorInfo, the file's own metadata (str -> str), and
    where the data begins.

    stamp: tells the very file it was read from, see `check_unchanged`; () for one that was not read
    from a file.
    refusal: why safetensors, and with it the stock loader, does not read what is read here; ""
    where it does.
    fetch: of a file on another machine, reads these spans of it; nothing where they lie so far
    apart that it would take too much. None: the file is on this one.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int = 0
    stamp: tuple[int, ...] = ()
    refusal: str = ""
    fetch: Callable[[Sequence[Span]], Sequence[bytes]] | None = None


PEFT_CONFIG = "adapter_config.json"  # PEFT's settings, beside the file
PICKLE_PROTOCOL = 5  # the newest one
ENDINGS = (".safetensors", ".sft")
PICKLED = (".pt", ".pt2", ".pth", ".ckpt", ".bin", ".pkl")
# Texts saved under a LoRA's name by mistake: how they begin, what they are, what to do.
MISTAKEN = (
    (b"<", "files.web_page", "files.web_page_remedy"),
    (b"{", "files.json_answer", "files.json_answer_remedy"),
    (b"version", "files.lfs_pointer", "files.lfs_pointer_remedy"),
)


def open_file(path: str | os.PathLike[str], buffering: int = -1) -> BinaryIO:
    """Open a regular file to be read. Raises OSError for anything else: a pipe would be waited for,
    a device has no end.
    """
    catalog(ENGLISH)  # once no more files can be opened, it could not be read to say so
    file = open(path, "rb", buffering, opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, message("files.not_regular"), os.fspath(path))
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _identity(file: BinaryIO) -> tuple[int, ...]:
    """What tells that an open file is the same and was not written to."""
    return identity_of(os.fstat(file.fileno()))


def identity_of(about: os.stat_result) -> tuple[int, int, int, int]:
    """(device, number, size, time of change in ns): the stamp of a header."""
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def check_unchanged(path: str | os.PathLike[str], file: BinaryIO, header: Header) -> None:
    """Raises LoraFileError where the open file is not the one the header was read from, whose
    offsets would be wrong for it.
    """
    if header.stamp and _identity(file) != header.stamp:
        raise LoraFileError(path, message("files.replaced"), message("files.changed_remedy"))


def not_opened(path: str | os.PathLike[str], error: OSError) -> NotReached:
    """What to tell of a file that the system would not open."""
    if isinstance(error, FileNotFoundError):
        return NotReached(path, message("files.gone"), message("files.gone_remedy"))
    if isinstance(error, IsADirectoryError):
        return NotReached(path, message("files.folder"), message("files.folder_remedy"))
    many = error.errno in (errno.EMFILE, errno.ENFILE)
    remedy = message("files.too_many_open" if many else "files.check_access")
    return NotReached(path, message("files.not_opened", reason=system_reason(error)), remedy)


def _broken(path: str | os.PathLike[str], fault: Message) -> LoraFileError:
    """The error for a file that was not written or copied whole."""
    return LoraFileError(path, fault, message("files.export_again"))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of the safetensors file at `path`.

    Checked, as the safetensors specification demands: the length, JSON that says one thing of each
    tensor, known dtypes, whole shapes, offsets that agree with shape and dtype and cover the data
    exactly.
    Raises LoraFileError, never anything else.
    """
    return read_text(path).parsed()


class HeaderText(NamedTuple):
    """The JSON text of a file's header as it was read; data_bytes: how many follow it; stamp: as a
    header has it.
    """

    path: str | os.PathLike[str]
    raw: bytes
    data_bytes: int
    stamp: tuple[int, ...]

    def parsed(self) -> Header:
        """The header. Raises LoraFileError."""
        return parse_header(self.path, self.raw, self.data_bytes)._replace(stamp=self.stamp)

    def split(self) -> tuple[Mapping[str, str], bytes] | None:
        """(the metadata, all else) of a text that begins with sound metadata or has none; None for
        any other text.

        A text with the same rest and as many bytes behind it that was parsed without a fault or a
        refusal, and has the metadata that it was split into, tells that this one is as sound, and
        describes the same tensors.
        """
        raw = self.raw.rstrip(b" ")  # writers fill it up
        begin = METADATA_FIRST.match(raw)
        if begin is None:
            return None if b"__metadata__" in raw else ({}, raw)
        end = _end_of_texts(raw, begin.end())
        try:
            alone = parse_header(self.path, raw[:end] + b"}", 0)
        except LoraFileError:  # also where the end is another one
            return None
        return None if alone.refusal or alone.tensors else (alone.metadata, raw[end:])


METADATA_FIRST = re.compile(rb'\{\s*"__metadata__"\s*:\s*(?=\{)')


def _end_of_texts(raw: bytes, start: int) -> int:
    """Where an object of nothing but texts most likely ends that begins at `start`: in a text the
    sign that ends it stands behind a backslash. Parsing all of it only to find out would take as
    long again.
    """
    if raw.startswith(b"{}", start):
        return start + 2
    end = raw.find(b'"}', start)
    while end > 0 and raw[end - 1 : end] == b"\\":
        end = raw.find(b'"}', end + 1)
    return end + 2 if end > 0 else len(raw)


def read_text(path: str | os.PathLike[str]) -> HeaderText:
    """Read the text of a header. Raises LoraFileError."""
    try:
        with open_file(path) as file:
            stamp = _identity(file)
            size = stamp[2]
            length = header_length(path, file.read(8), size)
            raw = file.read(length)
    except OSError as error:
        raise not_opened(path, error) from None
    if len(raw) < length:
        raise _broken(path, message("files.ends_in_header"))
    return HeaderText(path, raw, size - 8 - length, stamp)


def header_length(path: str | os.PathLike[str], first: bytes, size: int) -> int:
    """How long the JSON text is behind the first eight bytes of a file of `size` bytes. Raises
    LoraFileError for what is no safetensors file.
    """
    if size == 0:
        raise _broken(path, message("files.empty"))
    if len(first) < 8:
        raise _broken(path, message("files.too_short", count=size))
    length: int = struct.unpack("<Q", first)[0]
    if not 2 <= length <= MAX_HEADER_BYTES or length > size - 8:
        raise _no_header(path, first, length, size)
    return length


def _no_header(path: str | os.PathLike[str], first: bytes, length: int, size: int) -> LoraFileError:
    """What a file is whose first eight bytes cannot be the length of a header."""
    if first[:4] == b"PK\x03\x04" or (first[:1] == b"\x80" and first[1] <= PICKLE_PROTOCOL):
        named_so = os.fspath(path).lower().endswith(PICKLED)
        fault = message("files.pickle" if named_so else "files.pickle_or_zip")
        remedy = message("files.pickle_remedy" if named_so else "files.pickle_or_zip_remedy")
        return LoraFileError(path, fault, remedy)
    if first[:4] == b"GGUF":
        return LoraFileError(path, message("files.gguf"), message("files.gguf_remedy"))
    for start, mistaken, advice in MISTAKEN:
        if first.lstrip().startswith(start) and b"\0" not in first:  # a length has zeros
            return LoraFileError(path, message(mistaken), message(advice))
    if 2 <= length <= MAX_HEADER_BYTES:
        return _broken(
            path, message("files.cut_in_header", needed=f"{length + 8:,}", size=f"{size:,}")
        )
    return LoraFileError(
        path,
        message("files.not_safetensors", start=repr(first).removeprefix("b")),
        message("files.download_again"),
    )


def parse_header(path: str | os.PathLike[str], raw: bytes, data_bytes: int) -> Header:
    """Parse the JSON text `raw` of a header; `data_bytes` is the size of what follows it in the
    file.
    """
    odd = _is_odd(raw)
    content = _content(path, raw, odd)
    metadata = content.pop("__metadata__", None)
    if metadata is not None and not isinstance(metadata, dict):
        raise _broken(path, message("files.metadata_no_object"))
    if metadata and any(type(value) is not str and _is_deep(value) for value in metadata.values()):
        raise _nested(path)
    tensors = None if odd else _in_order(content, data_bytes)
    refusal = _refusal(raw, content, metadata or {})
    if tensors is None:
        if _is_deep(content, MAX_DEPTH + 2):
            raise _nested(path)
        tensors = {name: _tensor_info(path, name, entry) for name, entry in content.items()}
        _check_layout(path, tensors, data_bytes)
        refusal = refusal or _more_than_known(content)
    # Metadata are text; what a damaged file has there instead is shown as it stands.
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in (metadata or {}).items()
    }
    return Header(tensors, texts, 8 + len(raw), (), refusal)


def _content(path: str | os.PathLike[str], raw: bytes, odd: bool) -> dict[str, Any]:
    """The object that the JSON text is; odd: it has to be read as closely as safetensors does.
    Raises LoraFileError.
    """
    try:
        text = raw.decode("utf-8")
        content = json.loads(text, parse_constant=_no_number, parse_float=_Fraction)
        if isinstance(content, dict) and (odd or _may_repeat(raw, content)):
            content = json.loads(
                text,
                parse_constant=_no_number,
                parse_float=_Fraction,
                parse_int=_whole_number,
                object_pairs_hook=_object,
            )
            _check_repeats(content)
    except UnicodeDecodeError:
        raise _broken(path, message("files.header_not_utf8")) from None
    except ValueError as error:
        raise _broken(path, message("files.header_no_json", reason=_in_short(error))) from None
    except RecursionError:
        raise _nested(path) from None
    if not isinstance(content, dict):
        raise _broken(path, message("files.header_no_object"))
    return content


def _is_odd(raw: bytes) -> bool:
    return bool(ODD_LETTER.search(raw)) or any(
        _is_in_list(raw, found.start()) for odd in ODD_NUMBERS for found in odd.finditer(raw)
    )


def _is_in_list(raw: bytes, place: int) -> bool:
    """Whether what stands there is behind a bracket or a comma."""
    while place and raw[place - 1 : place].isspace():
        place -= 1
    return raw[place - 1 : place] in (b"[", b",")


def _in_short(error: ValueError) -> str:
    """What an error says, where it is not a message of the pack's: as much as fits a line."""
    text = text_of(error)
    return text if isinstance(text, Message) else text[:120]


# What equals a whole number for Python (-0, true), and letters written as escapes, which hide that
# a name stands twice.
# Each begins with its letters: a search for those takes a tenth of one for a class of them.
ODD_NUMBERS = tuple(re.compile(word + rb"\s*[,\]]") for word in (b"-0", b"true", b"false"))
ODD_LETTER = re.compile(rb"\\u00[5-7]")
HALVES = (b"\\ud", b"\\uD")  # how the halves of a character beyond 16 bits begin


LONG_NUMBER = re.compile(r"\d{309}")  # larger than any of 64 bits with a point


class _Fraction(float):
    """A number with a point or an exponent: equal to no whole number, so that it is never taken for
    a size.
    """

    __slots__ = ()
    __eq__, __hash__ = object.__eq__, object.__hash__


def _whole_number(text: str) -> int | _Fraction:
    return _Fraction(text) if text == "-0" else int(text)


def _refusal(raw: bytes, names: Iterable[str], metadata: Mapping[str, Any]) -> str:
    """What safetensors' reader does not take, though it is read here."""
    for key, value in metadata.items():
        if type(value) is not str:
            return message("files.metadata_no_text", name=_quoted(key))
    if any(half in raw for half in HALVES):
        for name in (*names, *metadata, *metadata.values()):
            if not _is_whole_text(name):
                return message("files.half_character", name=_quoted(name))
    return ""


def _more_than_known(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """What safetensors refuses in what entries say besides the three fields they need."""
    for name, entry in entries.items():
        if len(entry) != len(FIELDS) and not _can_be_skipped(entry):
            return message("files.odd_field", name=_quoted(name))
    return ""


def _quoted(name: str) -> str:
    """A name of a file for a sentence: in quotes, with escapes for what cannot be shown."""
    return repr(name[:80])


def _can_be_skipped(entry: Mapping[str, Any]) -> bool:
    """Whether safetensors passes over the fields of an entry that it does not know: it reads their
    numbers and texts all the same.
    """
    try:
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return False
    return _is_whole_text(text) and not LONG_NUMBER.search(text)


def _is_whole_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _may_repeat(raw: bytes, content: Mapping[str, Any]) -> bool:
    """Whether a name may stand twice: then the text holds more strings than what was read of it.

    A sound entry has five (its name, three fields and the dtype) and none has fewer.
    """
    metadata = content.get("__metadata__", ())
    strings = STRINGS_OF_ENTRY * (len(content) - ("__metadata__" in content))
    strings += "__metadata__" in content
    if isinstance(metadata, dict):
        strings += len(metadata) + sum(type(value) is str for value in metadata.values())
    plain = raw.replace(rb"\\", b"") if rb"\\" in raw else raw
    return plain.count(b'"') - plain.count(rb"\"") != 2 * strings


STRINGS_OF_ENTRY = 5
FIELDS = ("dtype", "shape", "data_offsets")


def _no_number(name: str) -> Any:
    raise ValueError(message("files.no_json_number", text=name))


class _Repeating(dict[str, Any]):
    """An object of JSON in which names stand twice: `repeated`, in the order of the text."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    counts = Counter(name for name, _ in pairs)
    values: dict[str, list[Any]] = {name: [] for name, count in counts.items() if count > 1}
    for name, value in pairs:
        if name in values:
            values[name].append(value)
    differing = tuple(name for name, entries in values.items() if not _is_one_entry(name, entries))
    if differing:
        content = _Repeating(content)
        content.repeated = differing
    return content


def _is_one_entry(name: str, entries: Sequence[Any]) -> bool:
    """Whether what stands under a name is the same entry of a tensor each time: then it matters
    not which one safetensors takes.
    """
    return (
        name != "__metadata__"
        and all(type(entry) is dict for entry in entries)
        and len({json.dumps(entry, sort_keys=True) for entry in entries}) == 1
    )


def _check_repeats(content: Mapping[str, Any]) -> None:
    """Raises ValueError where a tensor, the metadata or a field of a tensor stands twice.

    Of names within the metadata, and of fields that it does not know, safetensors takes the last,
    as Python does.
    """
    repeated = list(getattr(content, "repeated", ()))
    for name, entry in content.items():
        if name != "__metadata__" and isinstance(entry, _Repeating):
            repeated += (field for field in entry.repeated if field in FIELDS)
    if repeated:
        raise ValueError(message("files.name_twice", name=_quoted(repeated[0])))


def stock_fault(header: Header) -> str:
    """Why the stock loader fails on a file with this header, as far as the header tells; "" where
    it does not.
    """
    return message("files.safetensors_refuses", reason=header.refusal) if header.refusal else ""


MAX_DEPTH = 125  # below a tensor or the metadata: safetensors' JSON reader stops at 128 in all


def _is_deep(value: Any, most: int = MAX_DEPTH) -> bool:
    """Whether lists and objects are nested deeper than safetensors reads; Python's own limit would
    depend on who calls.
    """
    if not isinstance(value, (dict, list)):
        return False
    return not most or any(
        _is_deep(inner, most - 1)
        for inner in (value.values() if isinstance(value, dict) else value)
    )


def _nested(path: str | os.PathLike[str]) -> LoraFileError:
    return _broken(path, message("files.header_no_json", reason=message("files.nested_too_deep")))


def _data_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Raises KeyError for an unknown dtype, OverflowError for a size beyond 64 bits, ValueError for
    one that ends within a byte.

    As safetensors does, in the order of the dimensions: a product of millions of numbers would take
    hours.
    """
    count = 1
    for size in shape:
        count *= size
        if count >= LIMIT:
            break
    bits = count * DTYPE_BITS[dtype]
    if bits >= LIMIT:
        raise OverflowError(dtype)
    if bits % 8:
        raise ValueError(dtype)
    return bits // 8


LIMIT = 2**64


def _in_order(content: Mapping[str, Any], data_bytes: int) -> dict[str, TensorInfo] | None:
    """All tensors in one pass, if they are sound and stand in the order of their data, as nearly
    every file has them; else None.
    """
    tensors: dict[str, TensorInfo] = {}
    known: dict[tuple[str, tuple[int, ...]], tuple[tuple[int, ...], int]] = {}
    position, make = 0, tuple.__new__
    try:
        for name, entry in content.items():
            dtype, sizes = entry["dtype"], entry["shape"]
            if type(sizes) is not list or len(entry) != 3:
                return None
            shape = tuple(sizes)
            sized = known.get((dtype, shape))
            if sized is None:
                if any(type(size) is not int or not 0 <= size < MAX_SIZE for size in shape):
                    return None
                sized = known[dtype, shape] = shape, _data_bytes(dtype, shape)
            end = position + sized[1]
            if entry["data_offsets"] != [position, end]:
                return None
            # A quarter of the time of TensorInfo(...), and a file has thousands.
            tensors[name] = make(TensorInfo, (dtype, sized[0], position, end))
            position = end
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return tensors if position == data_bytes else None


def _tensor_info(path: str | os.PathLike[str], name: str, entry: Any) -> TensorInfo:
    """One tensor on its own, to tell what is wrong with it."""
    quoted = _quoted(name)
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, *offsets]
        if (
            not type(shape) is type(offsets) is list
            or len(offsets) != 2
            or not all(isinstance(number, (int, float)) for number in numbers)
        ):
            raise TypeError(name)
        if any(type(number) is not int or not 0 <= number < LIMIT for number in numbers):
            raise OverflowError(name)
        if dtype in NOT_IN_TORCH:
            raise LoraFileError(
                path,
                message("files.type_not_in_torch", name=quoted, type=dtype),
                message("files.type_not_in_torch_remedy"),
            )
        needed = _data_bytes(dtype, shape)
    except OverflowError:
        raise _broken(path, message("files.impossible_numbers", name=quoted)) from None
    except (TypeError, KeyError, ValueError):
        raise _broken(path, message("files.tensor_described_wrongly", name=quoted)) from None
    if any(size >= MAX_SIZE for size in shape):
        raise _broken(path, message("files.tensor_too_large", name=quoted))
    start, end = offsets
    if needed != end - start:
        raise _broken(
            path, message("files.tensor_size", name=quoted, size=end - start, needed=needed)
        )
    return TensorInfo(dtype, tuple(shape), start, end)


def _check_layout(
    path: str | os.PathLike[str], tensors: Mapping[str, TensorInfo], data_bytes: int
) -> None:
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if info.start != position:
            raise _broken(path, message("files.overlap_or_hole", name=_quoted(name)))
        position = info.end
    if position > data_bytes:
        raise _broken(
            path,
            message("files.cut_in_tensors", needed=f"{position:,}", size=f"{data_bytes:,}"),
        )
    if position < data_bytes:
        raise _broken(path, message("files.after_tensors", size=f"{data_bytes - position:,}"))


def read_numbers(
    path: str | os.PathLike[str], header: Header, names: Iterable[str]
) -> dict[str, float]:
    """The values of tensors of one element, such as alphas, by name; tensors of other sizes and
    of what is no number are left out.

    Reads a few bytes for each, and no other data. Raises LoraFileError when the file cannot be read
    any more.
    """
    wanted = sorted(
        (name for name in names if prod(header.tensors[name].shape) == 1),
        key=lambda name: header.tensors[name].start,
    )
    infos = [header.tensors[name] for name in wanted]
    spans = [(header.data_start + info.start, header.data_start + info.end) for info in infos]
    try:
        read = header.fetch(spans) if header.fetch else _read_spans(path, header, spans)
        values = [number_of(info.dtype, raw) for info, raw in zip(infos, read, strict=False)]
    except (OSError, struct.error) as error:
        raise LoraFileError(
            path,
            message("files.not_readable", reason=system_reason(error)),
            message("files.changed_remedy"),
        ) from None
    return {name: value for name, value in zip(wanted, values, strict=False) if value is not None}


def _read_spans(
    path: str | os.PathLike[str], header: Header, spans: Iterable[Span]
) -> Sequence[bytes]:
    """Raises OSError, and LoraFileError where the file is another one by now."""
    read = []
    with open_file(path, 65536) as file:
        check_unchanged(path, file, header)
        for start, end in spans:
            file.seek(start)
            read.append(file.read(end - start))
    return read


class Unreadable(dict[str, Any]):
    """Settings that are there and cannot be read: empty, and why."""

    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault

    def __repr__(self) -> str:
        return f"Unreadable({self.fault!r})"


def adapter_config_beside(path: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """The content of PEFT's `adapter_config.json` beside `path`, None where there is none,
    Unreadable where it cannot be read.

    Where a process was killed while it replaced both, the old one is still there under the name it
    was set aside with.
    """
    config = Path(path).parent / PEFT_CONFIG
    for place in (config, config.with_name(PEFT_CONFIG + OLD_ENDING)):
        try:
            with open_file(place) as file:
                raw = file.read(MAX_CONFIG_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            return Unreadable(system_reason(error))
        return parse_adapter_config(raw)
    return None


def parse_adapter_config(raw: bytes) -> Mapping[str, Any]:
    """The content of an `adapter_config.json`, of which at most one byte more was read than it may
    have; Unreadable where it cannot be read.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        return Unreadable(message("files.too_large_for_settings"))
    try:
        content = read_json(raw.decode("utf-8"))
    except ValueError:
        return Unreadable(message("files.not_json"))
    if isinstance(content, dict):
        return content
    return Unreadable(message("files.not_json_object"))
