"""Layer weights while loading: what the strength of each layer's adapters is multiplied with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..lora.merge.block_weights import read_block_weights
from ..messages import message
from ..planning.plan import Plan
from .patches import weight_of

Layers = Sequence[dict[Any, Any]]


class LayerWeights(NamedTuple):
    """factors: full name of a weight or bias -> what its strength is multiplied with, where that is
    not 1. notes: what a report tells.
    """

    factors: Mapping[str, float] = {}
    notes: tuple[str, ...] = ()

    def shares(self, layers: Layers) -> Sequence[tuple[float, Layers]]:
        """The patches by their factor; those of factor 0 are left out."""
        if not self.factors:
            return ((1.0, layers),)
        shares: dict[float, list[dict[Any, Any]]] = {}
        for layer in layers:
            parts: dict[float, dict[Any, Any]] = {}
            for target, patch in layer.items():
                parts.setdefault(self.factors.get(weight_of(target), 1.0), {})[target] = patch
            for factor, part in parts.items():
                shares.setdefault(factor, []).append(part)
        return tuple((factor, parts) for factor, parts in shares.items() if factor)


def layer_weights(plan: Plan, text: str) -> LayerWeights:
    """Read layer weights for the adapters of a plan. Raises AdapterError for a text that is none,
    and for a pattern that is no trained layer's.
    """
    if not text.strip():
        return LayerWeights()
    weights = read_block_weights(text)
    factors: dict[str, float] = {}
    of_module: dict[tuple[str, str], float] = {}
    for adapter in plan.adapters:
        network = plan.target_model.networks[adapter.target.network]
        for weight, _, _ in adapter.target.slices:
            module = weight.removeprefix(network.prefix).removesuffix(".weight")
            factor = of_module[network.name, module] = weights.factor(network.name, module)
            if factor != 1:
                factors[weight] = factor
                bias = network.bias_of(weight)
                if bias is not None:
                    factors[bias] = factor
    weights.check(of_module)
    changed = Counter(factor for factor in of_module.values() if factor != 1)
    note = message(
        "nodes.layer_weights",
        text=text.strip(),
        changed=changed.total(),
        count=len(of_module),
        off=changed[0.0],
    )
    return LayerWeights(factors, (note,))
