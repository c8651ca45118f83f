"""What two files train, laid over each other: one matrix of blocks and kinds of layers for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .coverage import NONE, LayerKind, TrainedBlocks, TrainedLayers

Pair = tuple[Any, Any]  # of A and of B; None where that one trains nothing of it


def both_trained(
    first: Sequence[TrainedLayers], second: Sequence[TrainedLayers]
) -> list[dict[str, Any]]:
    """Plain JSON types: networks, their blocks, and the kinds of layers that A or B trains, each
    with what is true of A and of B.
    """
    found = []
    for pair in _paired(first, second, lambda trained: trained.network):
        blocks = [
            _blocks(groups) for groups in _paired(*_of_each(pair, "blocks"), lambda one: one.name)
        ]
        one = pair[0] or pair[1]
        told = [group for group in blocks if group["kinds"]]
        found.append({"component": one.network, "title": one.title, "blocks": told})
    return found


def _blocks(pair: Pair) -> dict[str, Any]:
    count = max(group.count for group in pair if group)
    length = max(count, 1)
    kinds = [
        _kind(pair, kinds, length)
        for kinds in _paired(*_of_each(pair, "kinds"), lambda kind: kind.name)
        if any(kind and kind.is_trained for kind in kinds)
    ]
    return {"name": (pair[0] or pair[1]).name, "count": count, "kinds": kinds}


def _kind(groups: Pair, kinds: Pair, length: int) -> dict[str, Any]:
    group: TrainedBlocks = groups[0] if kinds[0] else groups[1]
    kind: LayerKind = kinds[0] or kinds[1]
    words = group.words(kind)
    return {
        "name": kind.name,
        "words": words.text if words else "",
        "trained": [(one.trained if one else "").ljust(length, NONE) for one in kinds],
        "ranks": [list(one.ranks) if one else [] for one in kinds],
        "block_ranks": [[list(ranks) for ranks in one.block_ranks] if one else [] for one in kinds],
    }


def _of_each(pair: Pair, field: str) -> Pair:
    first, second = (getattr(one, field) if one else () for one in pair)
    return first, second


def _paired(first: Sequence[Any], second: Sequence[Any], name: Any) -> list[Pair]:
    """Those of one name together, in the order of A, then of B."""
    ones, others = ({name(one): one for one in side} for side in (first, second))
    return [(ones.get(key), others.get(key)) for key in dict.fromkeys([*ones, *others])]
