"""All tensors of a safetensors file at once, as views of its mapping, and what the safetensors
library is needed for.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...files.header import Header, LoraFileError, TensorInfo, check_unchanged, open_file
from ...messages import message, text_of

__all__ = [
    "CODES",
    "DTYPES",
    "LoraFileError",
    "header_of",
    "map_tensors",
    "open_with_safetensors",
    "read_with_safetensors",
]

# The names safetensors gives torch's dtypes; types torch has no dtype for are left to safetensors
# itself.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
CODES = {getattr(torch, name): code for code, name in DTYPES.items()}

MAX_RESIDENT = 1 << 25  # bytes of a file in passing
CAN_REPLACE_MAPPED = os.name != "nt"  # Windows neither replaces nor removes a file that is mapped.


def header_of(tensors: Mapping[str, Tensor]) -> Header:
    """The header of tensors in memory, such as a LORA_MODEL; the dtype of one that safetensors
    lacks is "".
    """
    return Header(
        {
            name: TensorInfo(CODES.get(tensor.dtype, ""), tuple(tensor.shape))
            for name, tensor in tensors.items()
        },
        {},
    )


class _Passing(dict[str, Tensor]):
    """Mapped tensors, of which no more than a part stays in memory: pages read before are given
    back, and read again if need be.
    """

    def __init__(self, mapping: mmap.mmap, tensors: Mapping[str, Tensor]):
        super().__init__(tensors)
        self._mapping, self._given = mapping, 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = super().__getitem__(name)
        self._given += tensor.nbytes
        if self._given > MAX_RESIDENT:
            self._given = 0
            self._mapping.madvise(mmap.MADV_DONTNEED)
        return tensor


def map_tensors(
    path: str | os.PathLike[str], header: Header, passing: bool = False, replaced: bool = False
) -> dict[str, Tensor]:
    """All tensors of the file at once, as views of one private mapping: nothing is read before it
    is used.

    Several times faster than one call into safetensors per tensor, which is most of a loader's
    time. Falls back to safetensors for dtypes that torch lacks and for data that is not aligned.
    passing: for going over a whole file, of which then little is in memory at a time where the
    system can let go of it; the tensors must not be written to. replaced: the file will be replaced
    while the tensors live; where a mapped file cannot be, it is read instead. Raises OSError or
    LoraFileError.
    """
    size = max((info.end for info in header.tensors.values()), default=0)
    plain = size and all(info.dtype in DTYPES for info in header.tensors.values())
    read = replaced and not CAN_REPLACE_MAPPED
    if not plain:
        tensors = read_with_safetensors(path, header.tensors)
        return {name: tensor.clone() for name, tensor in tensors.items()} if read else tensors
    passing = passing and not read and hasattr(mmap, "MADV_DONTNEED")
    mapping = _mapped(path, header) if passing else None
    content = _content(path, header) if read else mapping
    whole = (
        _mapped_without_descriptor(path, header)
        if content is None
        else torch.frombuffer(content, dtype=torch.uint8)
    )
    views = {
        name: _whole_as(whole, name) for name in {info.dtype for info in header.tensors.values()}
    }
    tensors = {
        name: _view(whole, header.data_start, info, *views[info.dtype])
        for name, info in header.tensors.items()
    }
    return tensors if mapping is None else _Passing(mapping, tensors)


def _mapped_without_descriptor(path: str | os.PathLike[str], header: Header) -> Tensor:
    """The file's bytes, mapped. Python's mmap keeps a descriptor for each file, of which macOS
    allows a process 256 in all.

    torch opens the file by its name, so that what it opened is compared again.
    """
    with open_file(path) as file:
        check_unchanged(path, file, header)
        try:
            storage = torch.UntypedStorage.from_file(
                os.fspath(path), False, os.fstat(file.fileno()).st_size
            )
        except (RuntimeError, UnicodeError):  # a name that is no UTF-8
            return torch.frombuffer(_mapped(path, header), dtype=torch.uint8)
    with open_file(path) as file:
        check_unchanged(path, file, header)
    # torch's types call the same class by two names.
    return torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]


def _mapped(path: str | os.PathLike[str], header: Header) -> mmap.mmap:
    with open_file(path) as file:
        check_unchanged(path, file, header)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _content(path: str | os.PathLike[str], header: Header) -> bytearray:
    with open_file(path) as file:
        check_unchanged(path, file, header)
        content = bytearray(os.fstat(file.fileno()).st_size)
        file.readinto(content)  # type: ignore[attr-defined]  # BinaryIO leaves it out; files have it
        return content


def _whole_as(whole: Tensor, dtype_name: str) -> tuple[Tensor, int]:
    """The mapped bytes reinterpreted as a dtype, and the bytes of one element."""
    dtype = getattr(torch, DTYPES[dtype_name])
    return whole[: whole.numel() // dtype.itemsize * dtype.itemsize].view(dtype), dtype.itemsize


def _view(whole: Tensor, data_start: int, info: TensorInfo, elements: Tensor, width: int) -> Tensor:
    start = data_start + info.start
    if start % width:
        return whole[start : data_start + info.end].clone().view(elements.dtype).view(info.shape)
    return elements.as_strided(info.shape, _strides(info.shape), start // width)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 2:
        return shape[1], 1
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def open_with_safetensors(path: str | os.PathLike[str]) -> Any:
    """The file as the safetensors library opens it, for a with block. Raises LoraFileError where it
    does not.
    """
    try:
        return safe_open(os.fspath(path), framework="pt", device="cpu")
    except OSError as error:
        many = error.errno in (errno.EMFILE, errno.ENFILE)
        remedy = message("files.too_many_open" if many else "files.check_access")
        raise LoraFileError(
            path, message("files.not_opened", reason=text_of(error)), remedy
        ) from None
    except SafetensorError as error:
        raise LoraFileError(
            path,
            message("lora.not_safetensors", reason=text_of(error)),
            message("files.export_again"),
        ) from None


def read_with_safetensors(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors by name as the safetensors library reads them: it has the dtypes that are not in
    DTYPES. Raises LoraFileError.
    """
    tensors = {}
    with open_with_safetensors(path) as file:
        for name in names:
            try:
                tensors[name] = file.get_tensor(name)
            except (
                SafetensorError,
                OSError,
                RuntimeError,
                AttributeError,
            ) as error:  # the last: a dtype that an older torch lacks
                remedy = message("lora.changed_while_open")
                raise LoraFileError(
                    path,
                    message("lora.tensor_unreadable", tensor=name[:80], reason=text_of(error)),
                    remedy,
                ) from None
    return tensors
