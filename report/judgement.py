"""How well a file loads, judged once for reports, rows and the colours of badges."""

from __future__ import annotations

from collections.abc import Collection

GOOD, PART, BAD = "good", "part", "bad"


def judged(placed: int, total: int, mismatch: str = "", cautions: Collection[str] = ()) -> str:
    """GOOD: all modules load, and nothing is doubtful; BAD: none does, or the file is for another
    model; PART: all else.
    """
    if mismatch or not placed:
        return BAD
    return PART if placed < total or cautions else GOOD
