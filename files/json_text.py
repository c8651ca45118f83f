"""JSON as strangers write it: numbers of any length, and no depth that stops the reader."""

from __future__ import annotations

import json
import math
from typing import Any

from ..messages import message

MAX_DIGITS = 400  # of a whole number; longer ones are as good as infinite


def read_json(text: str) -> Any:
    """JSON as trainers write it, NaN and numbers of any length included. Raises ValueError for what
    is none.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(message("files.nested_too_deep")) from None


def _whole(text: str) -> int | float:
    return (
        int(text)
        if len(text) <= MAX_DIGITS
        else math.copysign(math.inf, -1 if text.startswith("-") else 1)
    )
