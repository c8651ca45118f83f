"""Which adapters of a file the stock loader places as the plan does, and which it leaves out or
computes otherwise.

What it does rightly stays its own, to the bit. Where several adapters act on one weight, all are
the one or the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isclose
from typing import Any, NamedTuple

import torch
from comfy.weight_adapter.base import WeightAdapterBase

from ..adapters.spec import AdapterError
from ..messages import message
from ..planning.plan import (
    DUPLICATE_TARGET,
    INCOMPLETE,
    SHAPE_CONFLICT,
    UNSUPPORTED,
    Plan,
)
from .beside import kind_of_host
from .patches import LocksmithAdapter, Tensors, build_patches, patches_by_adapter, weight_of
from .together import as_one
from .watched import watched

# What becomes of keys that the plan does not apply although their module is in the model.
REFUSED = frozenset({SHAPE_CONFLICT, DUPLICATE_TARGET, INCOMPLETE, UNSUPPORTED})
Keeps = Callable[[Any, Any], bool]  # (target, patch of stock's) -> whether stock acts on it rightly


class Division(NamedTuple):
    """What of a plan is ours to place.

    plan: ours alone. weights: those that ours act on. keys: those of the file that stock is not to
    see; none where it does all rightly. left_out, computed: how many of the adapters stock would
    not place, and how many it would compute otherwise. refused: how many keys nobody applies.
    """

    plan: Plan
    weights: frozenset[str]
    keys: frozenset[str]
    left_out: int
    computed: int
    refused: int


def divide(plan: Plan, tensors: Tensors, stock: Mapping[Any, Any] | None, keeps: Keeps) -> Division:
    """Compare what the plan makes of a file with the patches that stock makes of it; `stock` None:
    it raises.
    """
    built, failures = patches_by_adapter(plan, tensors)
    theirs = _by_weight((stock or {}).items())
    planned = _by_weight(patch for patches in built.values() for patch in patches)
    reached = {index: {weight_of(target) for target, _ in built[index]} for index in built}
    ranks = {weight: plan.adapters[index].rank for index in built for weight in reached[index]}
    wrong = {
        weight
        for weight, patches in planned.items()
        if not _same_patches(theirs.get(weight, ()), patches, ranks[weight], keeps)
    }
    ours = sorted(index for index in built if not reached[index].isdisjoint(wrong))
    kept = {key for index in built.keys() - ours for key in plan.adapters[index].roles.values()}
    own = {key for index in ours for key in plan.adapters[index].roles.values()}
    refused = {key for key, outcome in plan.outcomes.items() if outcome.category in REFUSED}
    refused |= {key for index in failures for key in plan.adapters[index].roles.values()}
    refused -= own | kept
    spoils = any(_holds(patches, tensors, refused) for patches in theirs.values())
    if not ours and (stock is None or not spoils):
        return Division(plan._replace(adapters=()), frozenset(), frozenset(), 0, 0, 0)
    left_out = sum(1 for index in ours if reached[index].isdisjoint(theirs))
    return Division(
        plan._replace(adapters=tuple(plan.adapters[index] for index in ours)),
        frozenset().union(*(reached[index] for index in ours)),
        frozenset(own - kept | refused),
        left_out,
        len(ours) - left_out,
        len(refused),
    )


def _by_weight(patches: Iterable[tuple[Any, Any]]) -> dict[str, list[tuple[Any, Any]]]:
    found: dict[str, list[tuple[Any, Any]]] = {}
    for target, patch in patches:
        found.setdefault(weight_of(target), []).append((target, patch))
    return found


def _same_patches(
    theirs: Iterable[tuple[Any, Any]],
    ours: Iterable[tuple[Any, Any]],
    rank: int | None,
    keeps: Keeps,
) -> bool:
    """Whether stock makes these very patches of a weight."""
    stock, planned = dict(theirs), list(ours)
    return len(stock) == len(planned) and all(
        target in stock and keeps(target, stock[target]) and _same(stock[target], patch, rank)
        for target, patch in planned
    )


def _same(theirs: Any, ours: Any, rank: int | None) -> bool:
    if type(theirs) is not type(ours):
        return False
    if isinstance(ours, tuple):
        return theirs[0] == ours[0] and _same_parts(theirs[1], ours[1], None)
    return _same_parts(theirs.weights, ours.weights, rank)


def _same_parts(theirs: Any, ours: Any, rank: int | None) -> bool:
    return len(theirs) == len(ours) and all(
        _same_part(one, other, rank) for one, other in zip(theirs, ours, strict=True)
    )


def _same_part(theirs: Any, ours: Any, rank: int | None) -> bool:
    """Whether two parts of a patch are the same: a tensor, a number (None is as strong as the
    rank), a shape.
    """
    if isinstance(theirs, torch.Tensor) and isinstance(ours, torch.Tensor):
        return theirs is ours
    if isinstance(theirs, float | int) or isinstance(ours, float | int):
        one, other = (rank if number is None else number for number in (theirs, ours))
        return one is not None and other is not None and isclose(one, other, rel_tol=1e-6)
    return bool(theirs == ours)


def _holds(patches: Iterable[tuple[Any, Any]], tensors: Tensors, keys: set[str]) -> bool:
    """Whether any of these patches is made of the tensors under these keys."""
    refused = {id(tensors[key]) for key in keys}
    return any(
        id(part) in refused
        for _, patch in patches
        for part in (patch[1] if isinstance(patch, tuple) else patch.weights)
    )


def anything(target: Any, patch: Any) -> bool:
    """`Keeps` where the host patches weights."""
    return True


def plain_pairs(target: Any, patch: Any) -> bool:
    """`Keeps` where the host acts beside a layer: its pairs on whole weights; what else it has
    there drops magnitudes and rows.
    """
    if not isinstance(patch, WeightAdapterBase):
        return True
    kind = kind_of_host(patch)
    return (
        isinstance(target, str) and kind is not None and kind.host_pair(patch.weights) is not None
    )


def layers_of(division: Division, tensors: Tensors) -> list[dict[Any, Any]]:
    """Patches for acting beside layers, as the node's way `bypass` makes them."""
    return list(watched(build_patches(division.plan, tensors, ours=True).layers, None))


def patches_of(division: Division, tensors: Tensors) -> dict[Any, Any]:
    """{target: patch} for all that is ours; several on one target are one patch. Raises
    AdapterError where they cannot be.
    """
    layers = build_patches(division.plan, tensors).layers
    if len(layers) > 1:
        several = {weight_of(target) for layer in layers[1:] for target in layer}
        layers = build_patches(division.plan, tensors, ours=several).layers
    found: dict[Any, list[Any]] = {}
    for layer in layers:
        for target, patch in layer.items():
            found.setdefault(target, []).append(patch)
    joined = {target: _joined(target, patches) for target, patches in found.items()}
    return dict(watched([joined], None)[0])


def _joined(target: Any, patches: list[Any]) -> Any:
    if len(patches) == 1:
        return patches[0]
    if not all(isinstance(patch, LocksmithAdapter) for patch in patches):
        raise AdapterError(message("nodes.every_not_joined", name=weight_of(target)))
    return as_one(patches)
