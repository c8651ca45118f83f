"""Layer weights while loading: what the strength of each layer's adapters is multiplied with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..lora.merge.block_weights import read_block_weights
from ..messages import Message, message
from ..planning.plan import Plan
from ..planning.target_model import Network
from .patches import weight_of

Layers = Sequence[dict[Any, Any]]
Module = tuple[str, str]  # network, native name without the network's prefix


class LayerWeights(NamedTuple):
    """factors: full name of a weight or bias -> what its strength is multiplied with, where that is
    not 1. notes: what a report tells. by_layer: network -> layer -> the same, as layer weights name
    them.
    """

    factors: Mapping[str, float] = {}
    notes: tuple[str, ...] = ()
    by_layer: Mapping[str, Mapping[str, float]] = {}

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
    of_module: dict[Module, float] = {}
    for network, weight, module in trained_layers(plan):
        factor = of_module[module] = weights.factor(*module)
        if factor != 1:
            factors[weight] = factor
            bias = network.bias_of(weight)
            if bias is not None:
                factors[bias] = factor
    weights.check(of_module)
    by_layer: dict[str, dict[str, float]] = {}
    for (name, layer), factor in of_module.items():
        if factor != 1:
            by_layer.setdefault(name, {})[layer] = factor
    return LayerWeights(factors, (_note(text.strip(), of_module.values()),), by_layer)


def trained_layers(plan: Plan) -> Iterator[tuple[Network, str, Module]]:
    """(network, full name of its weight, what layer weights call it) of every layer that a plan's
    adapters change; one that several change comes as often.
    """
    for adapter in plan.adapters:
        network = plan.target_model.networks[adapter.target.network]
        for weight, _, _ in adapter.target.slices:
            name = weight.removeprefix(network.prefix).removesuffix(".weight")
            yield network, weight, (network.name, name)


def _note(text: str, factors: Collection[float]) -> Message:
    """What a report tells; first of all that they hit nothing, or leave nothing."""
    changed = Counter(factor for factor in factors if factor != 1)
    numbers = {"changed": changed.total(), "count": len(factors), "off": changed[0.0]}
    if not changed:
        return message("nodes.layer_weights_hit_nothing", text=text, count=len(factors))
    if changed[0.0] == len(factors):
        return message("nodes.layer_weights_leave_nothing", text=text, count=len(factors))
    return message("nodes.layer_weights", text=text, **numbers)
