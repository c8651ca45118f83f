"""Names for files in reports: as short as tells them apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath


def told_apart(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """A name for each file: its own, with as many of its folders in front (parted by /) as tell it
    from the others.

    A path that is given several times gets the same name each time; `numbered` tells those apart as
    well.
    """
    parts = [PurePath(os.path.abspath(path)).parts for path in paths]
    others = Counter(ending for whole in set(parts) for ending in _endings(whole))
    return [
        _joined(next((ending for ending in _endings(whole) if others[ending] == 1), whole))
        for whole in parts
    ]


def _endings(parts: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [parts[-count:] for count in range(1, len(parts) + 1)]


def _joined(parts: tuple[str, ...]) -> str:
    first, *rest = parts
    return "/".join([first.rstrip("/\\"), *rest])


def numbered(names: Sequence[str]) -> list[str]:
    """The names, those that stand there several times with (1), (2) ... behind them."""
    counts, seen = Counter(names), Counter[str]()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return distinct
