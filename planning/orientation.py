"""Tells which way round factors lie whose names do not, by their shapes: orientation.table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..key_maps import KEY_MAPS
from ..key_maps.lines import lines_of, read_text

ORIENTATION_TABLE = KEY_MAPS / "orientation.table"
Sizes = tuple[int, ...]
Way = tuple[str, str]  # the roles of the first and of the second factor


class Ways(NamedTuple):
    """The lines of the table, and what of a header or settings tells which of them holds."""

    rank_first: Way
    rank_last: Way
    untold: Way
    by_stock: Way  # endings of keys
    told: Mapping[str, Way]


@lru_cache(maxsize=1)
def ways(path: Path = ORIENTATION_TABLE) -> Ways:
    """Read orientation.table."""
    named: dict[str, Way] = {}
    told: dict[str, Way] = {}
    for _, line in lines_of(read_text(path)):
        name, roles, words = (field.strip() for field in line.split("|"))
        first, second = roles.split()
        named[name] = (first, second)
        told |= dict.fromkeys(words.split(), named[name])
    return Ways(**named, told=told)


def orient(
    groups: Iterable[dict[str, str]], shapes: Mapping[str, Any], told: Iterable[str] = ()
) -> None:
    """Give bare factors the roles that their shapes say; groups: role -> key, changed in place.

    A pair that fits itself one way only is that. One of a square layer fits both, and its rank is
    below the layer's width. Where that is equal too, it is as the other pairs of the file are, or
    as what is told: keys of its metadata and settings.
    """
    pairs = [
        (group, way, _sizes(group, way, shapes)) for group in groups if (way := _way_now(group))
    ]
    sure = _most(_by_fit(*sizes) for _, _, sizes in pairs if sizes)
    likely = _most(_by_rank(*sizes) for _, _, sizes in pairs if sizes)
    known = sure or likely or _told(told)
    for group, way, sizes in pairs:
        if sizes:
            new = _by_fit(*sizes) or sure or _by_rank(*sizes) or known
            _rename(group, way, new or (ways().untold if way == ways().rank_last else way))


def is_told_by_shapes(group: Mapping[str, str]) -> bool:
    """Whether the shapes of a group's factors say which way round they lie; group: role -> key."""
    return _way_now(group) is not None


def _way_now(group: Mapping[str, str]) -> Way | None:
    """How a group's bare factors are read by their names; None where it has none."""
    known = ways()
    if group.keys() >= set(known.rank_last):
        return known.rank_last
    ends = zip(known.rank_first, known.by_stock, strict=True)
    bare = all(group.get(role, "").endswith(ending) for role, ending in ends)
    return known.rank_first if bare else None


def _sizes(group: Mapping[str, str], way: Way, shapes: Mapping[str, Any]) -> tuple[Sizes, ...]:
    """The shapes of a pair; () where they tell nothing: it stays as it is read."""
    first, second = (getattr(told := shapes[group[role]], "shape", told) for role in way)
    told = first and second and len(first) > 1 and len(second) > 1
    return (first, second) if told else ()


def _by_fit(first: Sizes, second: Sizes) -> Way | None:
    before = first[0] == second[1]
    behind = len(first) == len(second) == 2 and first[1] == second[0]
    if before == behind:
        return None
    return ways().rank_first if before else ways().rank_last


def _by_rank(first: Sizes, second: Sizes) -> Way | None:
    """Of a square layer: the smaller side is the rank."""
    if first[0] == first[1] or _by_fit(first, second):
        return None
    return ways().rank_first if first[0] < first[1] else ways().rank_last


def _told(names: Iterable[str]) -> Way | None:
    """What the keys of a file's metadata and settings tell."""
    told = ways().told
    return next((told[name] for name in names if name in told), None)


def _most(votes: Iterable[Way | None]) -> Way | None:
    """What most of the votes are for; None where there are none, or as many for either."""
    counted = Counter(vote for vote in votes if vote).most_common()
    tied = len(counted) > 1 and counted[0][1] == counted[1][1]
    return counted[0][0] if counted and not tied else None


def _rename(group: dict[str, str], old: Way, new: Way) -> None:
    """Other roles for a pair, in its place; not where the group has these besides."""
    if old == new or not group.keys().isdisjoint(new):
        return
    names = dict(zip(old, new, strict=True))
    renamed = {names.get(role, role): key for role, key in group.items()}
    group.clear()
    group.update(renamed)
