"""The base class of this pack's errors, the sentences they are made of, and what a machine has
run out of.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from .messages import Message, message, text_of


class LocksmithError(Exception):
    """What this pack raises: the text says what is wrong, with the file, key or line it is about,
    and what to do.

    Subclasses may also be a ValueError or another of Python's, where callers expect one.
    """


def about_file(path: str | os.PathLike[str], fault: str, remedy: str) -> Message:
    """What is wrong with a file, and what to do; fault and remedy without full stops."""
    return message("errors.about_file", path=os.fspath(path), fault=fault, remedy=remedy)


def at_line(path: str | os.PathLike[str], line: int, fault: str, remedy: str) -> Message:
    """What is wrong with a line of a text, and what to do."""
    return message("errors.at_line", path=os.fspath(path), line=line, fault=fault, remedy=remedy)


def fault_and_remedy(fault: str, remedy: str) -> Message:
    """What is wrong, and what to do, where the file is named already."""
    return message("errors.fault_and_remedy", fault=fault, remedy=remedy)


# What Python, numpy and torch say of it, in lower case.
OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "unable to allocate",
)
OF_THREADS = ("can't start new thread", "resource temporarily unavailable")


class Shortage(NamedTuple):
    """What the machine has run out of, and the remedy, without full stops."""

    fault: Message
    remedy: Message


def shortage(error: BaseException) -> Shortage | None:
    """What an error says that the machine has run out of; None where it says something else."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError)) and any(words in text for words in OF_MEMORY)
    ):
        return Shortage(message("errors.no_memory"), message("errors.no_memory_remedy"))
    if isinstance(error, RuntimeError) and any(words in text for words in OF_THREADS):
        return Shortage(message("errors.no_threads"), message("errors.no_threads_remedy"))
    return None


def exhausted(error: BaseException) -> str:
    """What the machine has run out of and the remedy, as one text; "" where an error says
    something else.
    """
    lacking = shortage(error)
    return fault_and_remedy(*lacking) if lacking else ""


def system_reason(error: Exception) -> str:
    """What the system says of a file that it does not read, without the file's name."""
    return getattr(error, "strerror", None) or text_of(error)
