"""What a node or a route says where it cannot go on: in plain words, as an error of the pack's own,
whatever went wrong below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LocksmithError, exhausted
from ..files.header import LoraFileError
from ..messages import as_sentence, message


class NodeError(LocksmithError, RuntimeError):
    """What a node stops with: what is wrong, and what to do."""


def short_of(error: BaseException) -> str:
    """What the machine has too little of, and the remedy, without a full stop; "" for an error that
    means something else.
    """
    return exhausted(error)


def fault_and_remedy(fault: str, remedy: str) -> str:
    """What is wrong and what to do, as one text."""
    return message("nodes.fault_and_remedy", fault=fault, remedy=remedy)


@contextmanager
def in_plain_words(subject: str) -> Iterator[None]:
    """Say of what is read and computed here, about `subject`, what went wrong as a NodeError;
    errors of the host stay its own.
    """
    try:
        yield
    except LoraFileError as error:
        raise NodeError(
            message(
                "nodes.about", subject=subject, text=fault_and_remedy(error.fault, error.remedy)
            )
        ) from None
    except OSError as error:
        raise NodeError(
            message("nodes.file_not_accessible", subject=subject, fault=error.strerror or error)
        ) from None
    except (MemoryError, RuntimeError) as error:
        short = short_of(error)
        if not short:
            raise
        raise NodeError(message("nodes.about", subject=subject, text=as_sentence(short))) from None
