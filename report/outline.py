"""What a file's header says but for the ranks of its pairs of factors, which few of a library's
files share with many others.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from operator import itemgetter
from typing import NamedTuple

from ..adapters.registry import magnitudes
from ..files.header import Header
from ..planning.groups import group_keys
from ..planning.orientation import is_told_by_shapes
from ..planning.plan import Adapter
from ..planning.scale import NUMBERLESS

Shape = tuple[int, ...]
Pick = Callable[[Sequence[Shape]], tuple[Shape, ...]]
MAX_NAMES = 256  # sets of names whose pairs are remembered; of a large file a hundred kilobytes


class Outline(NamedTuple):
    """digest: equal for headers of the same names and shapes, whatever the ranks of their pairs.
    ranks: of the pairs, 0 where a pair is none by its shapes, which are in the digest then.
    """

    digest: bytes
    ranks: tuple[int, ...]


class _Layout(NamedTuple):
    """Where pairs of factors stand among the tensors of some names, and all other tensors."""

    digest: bytes
    downs: Pick
    ups: Pick
    others: Pick
    places: Mapping[str, int]  # key of a down -> its pair


def outline_of(header: Header) -> Outline | None:
    """The outline of a header; None for names that cannot be told apart in short."""
    layout = _layout_of(tuple(header.tensors))
    if layout is None:
        return None
    infos = header.tensors.values()
    shapes = [info.shape for info in infos]
    ranks, kinds = [], []
    known: dict[tuple[Shape, Shape], tuple[int, object]] = {}
    for pair in zip(layout.downs(shapes), layout.ups(shapes), strict=True):
        read = known.get(pair)
        if read is None:
            read = known[pair] = _read(*pair)
        ranks.append(read[0])
        kinds.append(read[1])
    digest = blake2b(layout.digest, digest_size=16)
    _add(digest.update, kinds)
    _add(digest.update, layout.others(shapes))
    if not NUMBERLESS.isdisjoint([info.dtype for info in infos]):
        _add(digest.update, [info.dtype for info in infos])
    return Outline(digest.digest(), tuple(ranks))


def ranks_of(header: Header, adapters: Iterable[Adapter]) -> array[int] | None:
    """For each of some adapters of a file, which of its outline's ranks it has; None where one has
    its rank from elsewhere.
    """
    layout = _layout_of(tuple(header.tensors))
    if layout is None:
        return None
    places = [layout.places.get(adapter.roles.get("down", "")) for adapter in adapters]
    known = [place for place in places if place is not None]
    return array("I", known) if len(known) == len(places) else None


def _read(down: Shape, up: Shape) -> tuple[int, object]:
    """(the rank of a pair, all else that its shapes say): 0 where they do not agree on one."""
    if len(down) > 1 and len(up) > 1 and down[0] == up[1] and down[0]:
        return down[0], (down[1:], up[0], up[2:])
    return 0, (down, up)


def _add(update: Callable[[bytes], None], values: Sequence[object]) -> None:
    """Add values to a digest: each different one, and where they stand."""
    numbers: dict[object, int] = {}
    order = [numbers.setdefault(value, len(numbers)) for value in values]
    update(repr((len(order), list(numbers))).encode() + array("I", order).tobytes())


_layouts: OrderedDict[bytes, _Layout] = OrderedDict()


def _layout_of(names: tuple[str, ...]) -> _Layout | None:
    text = "\0".join(names)
    if not names or text.count("\0") != len(names) - 1:
        return None
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    # Taken out and put back in single steps, because several threads ask.
    layout = _layouts.pop(digest, None) or _laid_out(digest, names)
    _layouts[digest] = layout
    while len(_layouts) > MAX_NAMES:
        _layouts.popitem(last=False)
    return layout


def _laid_out(digest: bytes, names: tuple[str, ...]) -> _Layout:
    plain = frozenset({"down", "up", "alpha", *magnitudes()})
    pairs = [
        (group.keys["down"], group.keys["up"])
        for group in group_keys(dict.fromkeys(names)).groups
        if {"down", "up"} <= group.keys.keys() <= plain and not is_told_by_shapes(group.keys)
    ]
    place = {name: number for number, name in enumerate(names)}
    downs, ups = ([place[pair[side]] for pair in pairs] for side in (0, 1))
    others = sorted({*range(len(names))}.difference(downs, ups))
    places = {down: number for number, (down, _) in enumerate(pairs)}
    return _Layout(digest, _pick(downs), _pick(ups), _pick(others), places)


def _pick(places: Sequence[int]) -> Pick:
    if len(places) < 2:  # of one place itemgetter gives no tuple
        return lambda shapes: tuple([shapes[place] for place in places])
    return itemgetter(*places)
