"""Several plain pairs patched onto one weight as one patch: one product for all of them, in place
of a whole delta for each.

Where weights are offloaded the host computes its patches anew in each forward, and each reads and
writes the weight several times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import comfy.utils
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

from ..adapters.kind import ADDED
from ..adapters.registry import named
from ..lora.math.apply import is_linear
from .beside import LayerPart, in_dtype, joined, kind_of_host, on_device, pair_of, spec_of
from .watched import Watched, blame

# What the host may be told to send a change through; it stands here in the pair's own rows.
FUNCTIONS = (None, comfy.utils.swap_scale_shift)


class Member(NamedTuple):
    """One of the pairs. function: what the host would send its change through, or None."""

    strength: float
    adapter: WeightAdapterBase
    function: Any


class Fused(WeightAdapterBase):
    """Pairs that are added as one. weights: members as plain tuples, because the host copies an
    adapter so.
    """

    name = "locksmith"

    def __init__(
        self, loaded_keys: set[str], weights: Sequence[tuple[float, WeightAdapterBase, Any]]
    ):
        self.loaded_keys, self.weights = loaded_keys, tuple(weights)

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
        """The patched weight, in place, because the host hands in a slice and keeps the whole.
        Raises LoraFileError as they do alone.

        Strengths are multiplied in in fp32, and the product is computed in `intermediate_dtype`, as
        the host computes each.
        """
        shape, device = tuple(weight.shape), weight.device
        pieces = [
            pair_of(
                LayerPart(on_device(adapter, device), ADDED, None, shape, through, strength * own)
            )
            for own, adapter, through in self.weights
        ]
        _add(weight, *joined(pieces), intermediate_dtype)
        for _, adapter, _ in self.weights:
            blame(adapter, weight)
        return weight


def _add(weight: Tensor, up: Tensor | None, down: Tensor, dtype: torch.dtype) -> None:
    """Add up @ down, or down alone, to the weight in place."""
    if up is None:
        weight += down.reshape(weight.shape).to(weight.dtype)
        return
    up, down = in_dtype(up, down, dtype)
    if weight.dtype == dtype and weight.dim() > 1 and weight.is_contiguous():
        # Product and sum round once, and no delta is made.
        weight.view(weight.shape[0], -1).addmm_(up, down)
    else:
        weight += (up @ down).reshape(weight.shape).to(weight.dtype)


def is_pair(patch: Any, function: Any) -> bool:
    """Whether a patch is a plain pair of this pack's (or several of them fused), which may be added
    together with others.
    """
    if function not in FUNCTIONS:
        return False
    if isinstance(patch, Fused):
        return True
    if not isinstance(patch, Watched) or patch.calculate_shape("") is not None:
        return False
    spec = spec_of(patch)
    if spec is None:
        kind = kind_of_host(patch)
        return kind is not None and kind.is_pair and kind.host_pair(patch.weights) is not None
    roles, kind = patch.weights[1], named(spec.kind)
    shapes = {
        role: tuple(tensor.shape) for role, tensor in zip(roles, patch.weights[2], strict=True)
    }
    return (
        kind.is_pair
        and is_linear(spec, roles)
        and not spec.option("columns")
        and kind.product_rank(shapes, (1, 1)) is not None
    )


def fused(members: Sequence[Member]) -> Fused:
    """One patch for all of them, of strength 1. Those that are fused already come apart first."""
    flat: list[tuple[float, WeightAdapterBase, Any]] = []
    for strength, adapter, function in members:
        inner = adapter.weights if isinstance(adapter, Fused) else ((1.0, adapter, function),)
        flat += [(strength * own, one, through) for own, one, through in inner]
    return Fused({key for _, one, _ in flat for key in one.loaded_keys}, flat)
