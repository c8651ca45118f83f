"""Several adapters on one weight: each changes the model's own weight, and the changes add up,
whatever order they were loaded in.

The host hands each patch the weight as the patches before it left it, so that a DoRA behind a LoRA
takes that for a part of the base it was trained on. Merging sums the changes of the same base, and
in the bypass way adapters do not see each other; so it is here. Adapters that need the weight go
before those that add, and several that need it share one patch. So do several plain pairs, for
speed; a pair that is alone stays the patch it is, unless the host patches that weight anew in each
step.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import torch
from comfy.weight_adapter.base import WeightAdapterBase

from ..lora.math.apply import is_linear
from ..lora.math.by_rows import Change, add_changes
from .beside import kind_of_host
from .fused import Fused, Member, fused, is_pair
from .patches import LocksmithAdapter
from .watched import Watched, blame, check

# The host's patch: (strength, patch, strength of the model, offset, function).
Entry = tuple[float, Any, float, Any, Any]


class Together(WeightAdapterBase):
    """Adapters that need the weight, each given the weight as it was before all of them. weights:
    ((strength, adapter), ...).
    """

    name = "locksmith"

    def __init__(self, loaded_keys: set[str], weights: tuple[tuple[float, LocksmithAdapter], ...]):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        """The patched weight, in place, because the host hands in a slice and keeps the whole."""
        for _, adapter in self.weights:
            check(adapter)
        changes = [
            Change(own, adapter.weights[0], adapter.on(weight.device))
            for own, adapter in self.weights
        ]
        add_changes(changes, weight, strength=strength)
        for _, adapter in self.weights:
            if isinstance(adapter, Watched):
                blame(adapter, weight)
        return weight


def settle(patches: dict[str, list[Entry]], keys: Iterable[str], fast: Container[str] = ()) -> int:
    """Put the patches of these weights, at the end of each weight's list, into the order described
    above.

    fast: the weights that are patched anew in each step, where a pair that is alone is added as
    several are, in a third of the time and rounded once less than the host does.
    A list is made anew, because clones of a model share it. Returns the number of weights on which
    an adapter that needs the weight meets another.
    """
    met = 0
    for key in keys:
        entries = patches[key]
        least = 1 if key in fast else 2
        start = len(entries)
        while start and (_needs(entries[start - 1]) or _adds(entries[start - 1])):
            start -= 1
        run = entries[start:]
        if len(run) < least:
            continue
        if len(run) > 1 and any(_needs(entry) for entry in run):
            met += 1
            run = [
                *_joined(entry for entry in run if _needs(entry)),
                *(entry for entry in run if _adds(entry)),
            ]
        patches[key] = [*entries[:start], *_pairs_as_one(run, least)]
    return met


def _pairs_as_one(run: list[Entry], least: int) -> list[Entry]:
    """The patches, with all plain pairs of the same rows, where there are at least so many, as one
    where the first stands.
    """
    groups: dict[Any, list[Entry]] = {}
    for place, entry in enumerate(run):
        groups.setdefault((entry[3],) if is_pair(entry[1], entry[4]) else place, []).append(entry)
    return [
        _one_pair(same) if type(rows) is tuple and len(same) >= least else same[0]
        for rows, same in groups.items()
    ]


def _one_pair(entries: list[Entry]) -> Entry:
    return (
        1.0,
        fused([Member(strength, patch, function) for strength, patch, _, _, function in entries]),
        1.0,
        entries[0][3],
        None,
    )


def _joined(entries: Iterable[Entry]) -> list[Entry]:
    """One patch for all of the same rows."""
    by_rows: dict[Any, list[Entry]] = {}
    for entry in entries:
        by_rows.setdefault(entry[3], []).append(entry)
    return [_one(same) for same in by_rows.values()]


def _one(entries: list[Entry]) -> Entry:
    if len(entries) == 1:
        return entries[0]
    members: list[tuple[float, LocksmithAdapter]] = []
    for strength, patch, *_ in entries:
        inner = patch.weights if isinstance(patch, Together) else ((1.0, patch),)
        members += [(strength * own, adapter) for own, adapter in inner]
    keys = {key for _, adapter in members for key in adapter.loaded_keys}
    return 1.0, Together(keys, tuple(members)), 1.0, entries[0][3], None


def as_one(adapters: Iterable[LocksmithAdapter]) -> Together:
    """One patch for adapters of the same rows of a weight, as strong as they are."""
    entries: list[Entry] = [(1.0, adapter, 1.0, None, None) for adapter in adapters]
    return _one(entries)[1]


def _needs(entry: Entry) -> bool:
    """Whether it is one of this pack's that computes with the weight it is given, and keeps its
    shape.
    """
    patch = entry[1]
    if entry[2] != 1.0:
        return False
    return isinstance(patch, Together) or (
        isinstance(patch, LocksmithAdapter) and not _resizes(patch) and not _is_linear(patch)
    )


def _adds(entry: Entry) -> bool:
    """Whether it adds something that does not depend on the weight, which may as well be added
    later.
    """
    patch = entry[1]
    if entry[2] != 1.0 or isinstance(patch, list):
        return False
    if isinstance(patch, tuple):
        return patch[0] == "diff" and not any(one.get("pad_weight") for one in patch[1][1:])
    if isinstance(patch, Fused):
        return True
    if isinstance(patch, LocksmithAdapter):
        return not _resizes(patch) and _is_linear(patch)
    if not isinstance(patch, WeightAdapterBase) or patch.calculate_shape("") is not None:
        return False
    kind = kind_of_host(patch)
    # Of other loaders' only plain pairs are known to have no magnitude beside them.
    return (
        kind is not None
        and kind.additive
        and (isinstance(patch, Watched) or kind.host_pair(patch.weights) is not None)
    )


def _resizes(patch: LocksmithAdapter) -> bool:
    return patch.calculate_shape("") is not None


def _is_linear(patch: LocksmithAdapter) -> bool:
    spec, roles, _ = patch.weights
    return is_linear(spec, roles)
