"""What a node or a route says where it cannot go on: in plain words, as an error of the pack's own,
whatever went wrong below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LocksmithError, exhausted, fault_and_remedy
from ..files.header import LoraFileError
from ..messages import Message, as_sentence, message

MOST = 64  # faults that can be said in other languages
_noted: dict[str, Message] = {}  # English text -> the message it was, the newest last


def noted(text: str) -> str:
    """The same text, which the host will show in English; `as_noted` gives the message back for a
    while.
    """
    if isinstance(text, Message):
        key = str(text).strip()
        _noted.pop(key, None)
        _noted[key] = text
        for old in list(_noted)[:-MOST]:
            _noted.pop(old, None)
    return text


def as_noted(text: str) -> str:
    """The message that a text was which the host shows; the text itself where none is noted."""
    return _noted.get(text.strip(), text)


class NodeError(LocksmithError, RuntimeError):
    """What a node stops with: what is wrong, and what to do."""

    def __init__(self, text: str):
        super().__init__(noted(text))


@contextmanager
def in_plain_words(subject: str) -> Iterator[None]:
    """Say of what is read and computed here, about `subject`, what went wrong as a NodeError;
    errors of the host stay its own.
    """
    try:
        yield
    except LoraFileError as error:
        text = message("joints.sentence", text=fault_and_remedy(error.fault, error.remedy))
        raise NodeError(message("joints.about", subject=subject, text=text)) from None
    except OSError as error:
        raise NodeError(
            message("nodes.file_not_accessible", subject=subject, fault=error.strerror or error)
        ) from None
    except (MemoryError, RuntimeError) as error:
        lacking = exhausted(error)
        if not lacking:
            raise
        text = as_sentence(lacking)
        raise NodeError(message("joints.about", subject=subject, text=text)) from None
