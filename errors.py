"""The one class that every error of this pack has."""

from __future__ import annotations


class LocksmithError(Exception):
    """What this pack raises: the text says what is wrong, with the file, key or line it is about,
    and what to do.

    Subclasses may also be a ValueError or another of Python's, where callers expect one.
    """


NO_MEMORY = (
    "there is not enough memory for it. Close other programs, or give fewer or smaller files at a"
    " time"
)
NO_THREADS = (
    "the system lets no more threads start. Close other programs, or raise the limit on processes"
    " (ulimit -u)"
)
# What Python, numpy and torch say of it, in lower case.
OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "unable to allocate",
)
OF_THREADS = ("can't start new thread", "resource temporarily unavailable")


def exhausted(error: BaseException) -> str:
    """What the machine has run out of, and the remedy; "" for an error that says something else."""
    told = str(error).lower()
    if isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError)) and any(words in told for words in OF_MEMORY)
    ):
        return NO_MEMORY
    return (
        NO_THREADS
        if isinstance(error, RuntimeError) and any(words in told for words in OF_THREADS)
        else ""
    )
