"""Knows the keys that have no effect by themselves: the trainer's notes, and leftovers of a
quantised base model.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from pathlib import Path

from ..key_maps import KEY_MAPS
from ..key_maps.lines import lines_of, read_text

BOOKKEEPING_TABLE = KEY_MAPS / "bookkeeping.table"


@lru_cache(maxsize=1)
def _bookkeeping_rules(
    path: Path = BOOKKEEPING_TABLE,
) -> tuple[dict[str, str], tuple[tuple[re.Pattern[str], str], ...]]:
    """(last word -> meaning for patterns of the form *.word, all others compiled)."""
    endings, others = {}, []
    for _, line in lines_of(read_text(path)):
        pattern, _, meaning = line.strip().partition(" ")
        if pattern.startswith("*.") and "*" not in pattern[2:] and "." not in pattern[2:]:
            endings[pattern[2:]] = meaning.strip()
        else:
            others.append((re.compile(fnmatch.translate(pattern)), meaning.strip()))
    return endings, tuple(others)


# The endings of nearly every key in nearly every file; none is bookkeeping, whatever stands before
# it.
ORDINARY = frozenset({"alpha"})


def bookkeeping(key: str) -> str:
    """What a key is that has no effect by itself; empty for all others."""
    endings, others = _bookkeeping_rules()
    last = key.rpartition(".")[2]
    if last in ORDINARY:
        return ""
    if last in endings:
        return endings[last]
    if last == "weight" and ".lora" in key and "base_layer" not in key:
        return ""
    return next((meaning for pattern, meaning in others if pattern.match(key)), "")
