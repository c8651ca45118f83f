"""Whether a file's numbers are numbers: NaN, infinity and all zeros, found at load at little cost;
large tensors by a sample.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..adapters.registry import named
from ..adapters.tensors import Tensors
from ..files.header import Header, TensorInfo, check_unchanged, open_file
from ..messages import message
from ..planning.plan import Plan
from .io.mapped import DTYPES
from .math.low_rank import MAGNITUDES
from .not_finite import PACKED

__all__ = ["SAMPLED", "WHOLE", "Look", "cautions", "look_at_file", "look_at_tensors"]

WHOLE, SAMPLED = "all", "a sample"
WHOLE_BYTES = 1 << 23  # a file of no more is looked at wholly
SMALL = 512  # bytes of a tensor that is looked at wholly
PIECE = 64  # bytes of a larger one that are read at a place
READS = 128  # of a file that is sampled, about: each is a call into the system
MAX_NAMED = 3
FLOATS = frozenset({"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"})
ADDED = frozenset({*MAGNITUDES, "bias_values"})  # what acts besides them


class Look(NamedTuple):
    """What was looked at (WHOLE or SAMPLED, "" nothing), and whether all of it is finite."""

    at: str
    finite: bool


def look_at_file(path: str | os.PathLike[str], header: Header) -> Look:
    """Look at a file's numbers without mapping it: a page fault costs more than reading the few
    bytes of a sample.

    Raises OSError, and LoraFileError for a file that is another one than the header was read from.
    """
    infos = list(header.tensors.values())
    whole = header.stamp[2] - header.data_start <= WHOLE_BYTES
    runs = (
        _strided(infos, 0)
        if whole
        else _strided(infos, READS // len(infos))
        if 2 * len(infos) <= READS
        else _in_pairs(infos)
    )
    with open_file(path, 0) as file:
        check_unchanged(path, file, header)
        read, base = _reader(file), header.data_start
        finite = all(
            _finite(
                _as(
                    dtype,
                    b"".join(
                        [
                            read(end - start, base + start)
                            for start, end in zip(starts, ends, strict=True)
                        ]
                    ),
                )
            )
            for dtype, (starts, ends) in runs.items()
            if dtype in FLOATS and ends[-1] > starts[0]
        )
    return Look(WHOLE if whole else SAMPLED, finite)


# dtype -> where what is to be read starts and where it ends: plain numbers, as a thousand pairs
# would set the garbage collector off.
Runs = dict[str, tuple[list[int], list[int]]]


def _reader(file: BinaryIO) -> Callable[[int, int], bytes]:
    """(length, place) -> bytes; one call into the system for each where it can."""
    if hasattr(os, "pread"):
        return partial(os.pread, file.fileno())

    def read(length: int, place: int) -> bytes:
        file.seek(place)
        return file.read(length)

    return read


def _strided(infos: Iterable[TensorInfo], count: int) -> Runs:
    """What is to be read of few tensors: `count` pieces of each, from its beginning to its end; 0:
    all of it.
    """
    runs: Runs = {}
    for dtype, _, start, end in infos:
        starts, ends = runs.setdefault(dtype, ([], []))
        if not count or end - start <= max(SMALL, count * PIECE):
            starts.append(start)
            ends.append(end)
            continue
        step = (end - PIECE - start) // (count - 1) // PIECE * PIECE
        places = (*range(start, end - PIECE, step)[: count - 1], end - PIECE)
        starts += places
        ends += [place + PIECE for place in places]
    return runs


def _in_pairs(infos: Sequence[TensorInfo]) -> Runs:
    """What is read of many tensors: the end of one and the beginning of the next, which lie side
    by side and are one read; small ones wholly.

    Of more pairs than READS, every second, third ...
    """
    runs: Runs = {}
    starts: list[int] = []
    ends: list[int] = []
    last_dtype, behind = "", -1
    step, count = -(-len(infos) // (2 * READS)), 0
    for dtype, _, start, end in infos:
        if dtype != last_dtype:
            (starts, ends), last_dtype, behind = runs.setdefault(dtype, ([], [])), dtype, -1
        small = end - start <= SMALL
        if not small:
            count += 1
            if ((count - 1) >> 1) % step:
                continue
        if start == behind:
            ends[-1] = end if small else start + PIECE
            behind = end if small else -1
        else:
            starts.append(start if small else end - PIECE)
            ends.append(end)
            behind = end
    return runs


def _as(dtype: str, content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(
        getattr(torch, DTYPES[dtype])
    )


def look_at_tensors(tensors: Mapping[str, Tensor]) -> Look:
    """Look at tensors in memory, as `look_at_file` does at a file."""
    floats = [tensor for tensor in tensors.values() if _has_numbers(tensor)]
    if sum(tensor.nbytes for tensor in floats) <= WHOLE_BYTES:
        return Look(WHOLE, all(map(_finite, floats)))
    return Look(SAMPLED, all(_finite(end) for tensor in floats for end in _ends(tensor)))


def _ends(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.nbytes <= SMALL:
        return (tensor,)
    flat, count = tensor.reshape(-1), PIECE // tensor.dtype.itemsize
    return flat[:count], flat[-count:]


def _has_numbers(tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and tensor.numel() > 0
        and not tensor.is_meta
        and tensor.dtype not in PACKED
    )


def _finite(tensor: Tensor) -> bool:
    """Whether all of it is. One pass, unlike `isfinite`: NaN goes through to the ends; fp8 has no
    arithmetic of its own.
    """
    low, high = (tensor.to(torch.float32) if tensor.dtype.itemsize == 1 else tensor).aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def cautions(plan: Plan, tensors: Tensors, look: Look) -> tuple[str, ...]:
    """Sentences about numbers that are none, and about a file that changes nothing, for what was
    looked at.
    """
    return (*(_not_finite(plan, tensors) if not look.finite else ()), *_nothing(plan, tensors))


def _not_finite(plan: Plan, tensors: Tensors) -> Iterator[str]:
    """Here every tensor is looked at wholly, to name those at fault."""
    unused = {
        adapter.roles["alpha"]
        for adapter in plan.adapters
        if "alpha" in adapter.roles and not named(adapter.kind).alpha_counts(adapter.roles)
    }
    nans: list[str] = []
    infinite: list[str] = []
    for key, tensor in tensors.items():
        if _has_numbers(tensor) and not _finite(tensor):
            nan = bool(tensor.to(torch.float32).isnan().any())
            if nan or key not in unused:
                (nans if nan else infinite).append(key)
    if nans:
        yield message("lora.tensors_hold_nan", count=len(nans), keys=_some(nans))
    if infinite:
        yield message("lora.tensors_hold_infinite", count=len(infinite), keys=_some(infinite))


def _some(keys: Sequence[str]) -> str:
    """The first of these keys."""
    return ", ".join(keys[:MAX_NAMED]) + (" ..." if len(keys) > MAX_NAMED else "")


def _nothing(plan: Plan, tensors: Tensors) -> Iterator[str]:
    """Stops at the first adapter that does anything: of a sound file a few numbers are read."""
    zero = ""
    for adapter in plan.adapters:
        roles = [role for role in adapter.roles if role in named(adapter.kind).zeroed_by]
        key = next(
            (adapter.roles[role] for role in roles if _is_zero(tensors[adapter.roles[role]])), None
        )
        if key is None or not ADDED.isdisjoint(adapter.roles):
            return
        zero = zero or key
    if zero:
        yield message("lora.changes_nothing", count=len(plan.adapters), key=zero)


def _is_zero(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.numel() or tensor.dtype in PACKED:
        return False
    # fp8 cannot be compared.
    return not any(
        bool((part.to(torch.float32) if part.dtype.itemsize == 1 else part).any())
        for part in (*_ends(tensor), tensor)
    )
