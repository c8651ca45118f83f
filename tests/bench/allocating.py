"""Memory that is freed stays with the process, as a GPU's allocator keeps it.

A tensor of a 3,072-wide weight in fp32 is larger than what glibc keeps for the next one, unless its
heap happens to have room: in some runs of a process each came anew from the system, with a page
fault for every 4 KB, which took four times as long as the arithmetic; in others none did. So the
heap is given room, and keeps it.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h
TRIM_THRESHOLD, MAPPINGS = -1, -4
ROOM = 2**29  # bytes: a dozen such tensors, so that small ones between them take no place away
KEPT = {TRIM_THRESHOLD: 2**31 - 1, MAPPINGS: 0}
USUAL = {TRIM_THRESHOLD: 64 * 2**20, MAPPINGS: 65536}  # of a process that has freed much


def has_glibc() -> bool:
    """Whether `memory_kept` can do anything; elsewhere it does nothing."""
    return platform.libc_ver()[0] == "glibc"


@contextmanager
def memory_kept() -> Iterator[None]:
    """A block, or a function it decorates, in which freed memory is not given back."""
    if not has_glibc():
        yield
        return
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    for option, value in KEPT.items():
        library.mallopt(option, value)
    room = library.malloc(ctypes.c_size_t(ROOM))
    ctypes.memset(room, 1, ROOM)
    library.free(room)
    try:
        yield
    finally:
        for option, value in USUAL.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
