"""Consecutive rows of a weight or an adapter, and what is computed with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple


class Rows(NamedTuple):
    """The first row and how many there are, as torch's narrow takes them."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """Behind the last row."""
        return self.start + self.length

    def intersect(self, other: Rows) -> Rows | None:
        """The rows that both have; None where there are none."""
        start = max(self.start, other.start)
        length = min(self.end, other.end) - start
        return Rows(start, length) if length > 0 else None

    def covers(self, other: Rows) -> bool:
        """Whether all rows of `other` are among these."""
        return self.start <= other.start and other.end <= self.end

    def shift(self, by: int) -> Rows:
        """As many rows, which begin so much later."""
        return Rows(self.start + by, self.length)

    def unless_all(self, total: int) -> Rows | None:
        """These rows; None, which stands for all, where they are all of so many."""
        return None if self == (0, total) else self


def laid(sizes: Iterable[int]) -> Iterator[Rows]:
    """Rows of these sizes, one after another."""
    sizes = tuple(sizes)
    return map(Rows, accumulate(sizes, initial=0), sizes)


def stretches(ranges: Iterable[Rows]) -> Iterator[Rows]:
    """All ranges laid over each other: the rows between every border and the next."""
    borders = {border for rows in ranges for border in (rows.start, rows.end)}
    return (Rows(first, last - first) for first, last in pairwise(sorted(borders)))
