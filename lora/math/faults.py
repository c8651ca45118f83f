"""What computing with an adapter may raise, and what is told of it."""

from __future__ import annotations

from ...errors import exhausted
from ...messages import Message, text_of

# What torch and our own checks raise for tensors that are not what was promised; AdapterError and
# Refused are among them.
FAULTS = (
    ValueError,
    RuntimeError,
    IndexError,
    TypeError,
    KeyError,
    OverflowError,
    ZeroDivisionError,
)


def first_line(error: Exception) -> str:
    """What an error says, without the rest of a long story; its kind where it says nothing."""
    text = exhausted(error) or text_of(error) or type(error).__name__
    return text if isinstance(text, Message) else text.splitlines()[0]
