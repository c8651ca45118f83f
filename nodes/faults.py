"""What a node or a route says where it cannot go on: in plain words, as an error of the pack's own,
whatever went wrong below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LocksmithError, exhausted
from ..files.header import LoraFileError


class NodeError(LocksmithError, RuntimeError):
    """What a node stops with: what is wrong, and what to do."""


def short_of(error: BaseException) -> tuple[str, str] | None:
    """(what the machine has too little of, the remedy), where that is what an error means."""
    fault, _, remedy = exhausted(error).partition(". ")
    return (fault[0].upper() + fault[1:], remedy) if fault else None


@contextmanager
def in_plain_words(subject: str) -> Iterator[None]:
    """Say of what is read and computed here, about `subject`, what went wrong as a NodeError;
    errors of the host stay its own.
    """
    try:
        yield
    except LoraFileError as error:
        raise NodeError(f"{subject}: {error.fault}. {error.remedy}.") from None
    except OSError as error:
        raise NodeError(
            f"{subject}: a file cannot be read or written ({error.strerror or error}). Look at the"
            " disk."
        ) from None
    except (MemoryError, RuntimeError) as error:
        short = short_of(error)
        if short is None:
            raise
        raise NodeError(f"{subject}: {short[0]}. {short[1]}.") from None
