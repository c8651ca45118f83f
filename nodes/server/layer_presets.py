"""Which presets of layer weights there are for a LoRA file, and what each of them leaves of it."""

from __future__ import annotations

from typing import Any

from ...key_maps.weight_presets import TYPED, WeightPreset, weight_presets
from ...lora.merge.block_weights import is_vector, read_block_weights
from ...messages import message
from ..layer_weights import Module, trained_layers
from .about_file import inspection_of


def layer_presets(name: str) -> dict[str, Any]:
    """What the route `layer_presets` tells of a listed file: `presets` for its model, each with
    what is to be written (`text`) and, where it is no use for this file, why (`fault`). Raises
    Unknown.
    """
    name, inspection = inspection_of(name)
    layers = tuple(dict.fromkeys(layer for _, _, layer in trained_layers(inspection.plan)))
    families = (inspection.guess.name, *inspection.guess.could_be)
    presets = [
        _offered(preset, layers)
        for preset in weight_presets().values()
        if preset.kind != TYPED and any(map(preset.is_for, families))
    ]
    return {"file": name, "family": inspection.guess.title, "presets": presets}


def _offered(preset: WeightPreset, layers: tuple[Module, ...]) -> dict[str, Any]:
    weights = read_block_weights(preset.weights)
    # A layer that this file lacks must not be a fault of weights that were chosen.
    text = preset.name if is_vector(preset.weights) else weights.found_in(layers)
    factors = [weights.factor(*layer) for layer in layers]
    kept = sum(factor != 0 for factor in factors)
    changed = sum(factor not in (0, 1) for factor in factors)
    numbers = {"kept": kept, "changed": changed, "count": len(layers)}
    return {
        "name": preset.name,
        "title": preset.title,
        "kind": preset.kind,
        "text": text,
        "about": message("weight_presets.hits", **numbers),
        "fault": _fault(factors),
    } | numbers


def _fault(factors: list[float]) -> str:
    """Why they are no use; "" where they are."""
    if not factors:
        return message("weight_presets.no_layers")
    if not any(factors):
        return message("weight_presets.leaves_nothing", count=len(factors))
    if all(factor == 1 for factor in factors):
        return message("weight_presets.hits_nothing", count=len(factors))
    return ""
