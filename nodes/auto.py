"""mode = auto: which weights' adapters act beside the layer, and why.

A quantised weight that is patched is rounded anew, and the rounding is as large as the change:
beside the layer it is exact. GGUF's is unpacked and patched in each forward. A dense weight is
patched once where all of the model stays on the device, and that costs nothing in a step. Where it
does not, the host patches anew in each forward, and a few ranks beside the layer are cheaper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import inf, prod
from typing import Any

import comfy.model_management as management
from torch import Tensor

from ..adapters.kind import ADDED
from ..adapters.registry import decomposition_of, named
from ..messages import joined, message
from ..planning.plan import Adapter, Plan
from .beside import LayerPart, pair_of_host, spec_of
from .bypass import Hung, is_layer, owner_of

# Ids of the reasons.
QUANTIZED = "nodes.beside_quantized"
PACKED = "nodes.beside_packed"
STREAMED = "nodes.beside_streamed"
ONCE = "nodes.patched_once"
COSTLY = "nodes.patched_each_step"
MAX_COST_BESIDE = 0.05  # of a layer's own arithmetic: what may be done beside a dense one
# The states of the host in which weights never leave the device.
KEEP_ALL_STATES = (
    management.VRAMState.DISABLED,
    management.VRAMState.HIGH_VRAM,
    management.VRAMState.SHARED,
)

Sizes = tuple[int, ...]


def choose(
    plan: Plan,
    patchers: Iterable[Any],
    shape_of: Callable[[Tensor], Sizes],
    is_quantised: Callable[[Tensor], bool],
) -> tuple[dict[str, str], dict[str, str]]:
    """(name of a weight of these ModelPatchers' models -> why its adapters are to act beside the
    layer, the same of those that are patched); the reasons are ids of sentences.

    What stands in neither is no layer: a norm, a bias.
    """
    by_weight: dict[str, list[Adapter]] = {}
    for adapter in plan.adapters:
        for weight, _, _ in adapter.target.slices:
            by_weight.setdefault(weight, []).append(adapter)
    beside: dict[str, str] = {}
    patched: dict[str, str] = {}
    for patcher in patchers:
        streams, hung = streamed(patcher), Hung.on(patcher).parts
        for weight, adapters in by_weight.items():
            layer = owner_of(patcher.model, weight)
            if not is_layer(layer):
                continue
            ranks = [
                *map(_rank, adapters),
                *map(rank_of, hung.get(weight.removesuffix(".weight"), ())),
            ]
            if is_quantised(layer.weight):
                beside[weight] = PACKED if is_packed(layer.weight) else QUANTIZED
            elif not streams:
                patched[weight] = ONCE
            elif share(shape_of(layer.weight), ranks) <= MAX_COST_BESIDE:
                beside[weight] = STREAMED
            else:
                patched[weight] = COSTLY
    return beside, patched


def patched_each_step(patched: Mapping[str, str]) -> frozenset[str]:
    """Of what `choose` has patched: the weights that the host patches anew in each forward."""
    return frozenset(weight for weight, why in patched.items() if why == COSTLY)


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is unpacked in each forward and patched there, in its computing dtype, so
    that nothing is rounded anew: ComfyUI-GGUF's ops.py, GGMLLayer.get_weight.
    """
    return getattr(weight, "tensor_shape", None) is not None


def streamed(patcher: Any) -> bool:
    """Whether the host will keep some of the model's weights off the device it computes on, and so
    patch them anew in each forward.

    ComfyUI's comfy/model_management.py, load_models_gpu: no device but a GPU has such weights, and
    what does not fit beside the memory a step needs at least stays away.
    """
    device, state = patcher.load_device, management.vram_state
    if (
        management.is_device_cpu(device)
        or management.is_device_mps(device)
        or state in KEEP_ALL_STATES
    ):
        return False
    if state == management.VRAMState.NO_VRAM:
        return True
    return (
        patcher.model_size()
        > management.get_total_memory(device) - management.minimum_inference_memory()
    )


def share(shape: Sizes, ranks: Iterable[float]) -> float:
    """What pairs of these ranks beside a layer with a weight [outputs, inputs, ...] cost, as a
    share of the layer's arithmetic.
    """
    return sum(ranks) * (1 / shape[0] + 1 / prod(shape[1:]))


def _rank(adapter: Adapter) -> float:
    """Of a plain pair; infinite for all others, of which a patch is known to be right and nothing
    says what they cost.
    """
    plain = (
        named(adapter.kind).is_pair
        and decomposition_of(adapter.roles) is None
        and not adapter.columns
        and not adapter.padded_shape
    )
    return adapter.rank or inf if plain else inf


def rank_of(part: LayerPart) -> float:
    """Of what hangs beside a layer already; 0 for what is no pair."""
    if part.way != ADDED:
        return 0
    spec = spec_of(part.adapter)
    if spec is None:
        pair = pair_of_host(part.adapter)
        return pair[1].shape[0] if pair else 0
    shapes = {
        role: tuple(tensor.shape) for role, tensor in zip(*part.adapter.weights[1:], strict=True)
    }
    return named(spec.kind).product_rank(shapes, (part.shape[0], prod(part.shape[1:]))) or 0


def where_they_act(
    beside: Mapping[str, str], patched: Mapping[str, str], left: Counter[str]
) -> str:
    """One line for the report: where a file's adapters act, and why.

    beside, patched: from `choose`. left: what could not act beside a layer that was chosen, by what
    it is.
    """
    parts = [
        message(why, count=number)
        for reasons in (beside, patched)
        for why, number in Counter(reasons.values()).most_common()
    ]
    if left:
        parts.append(
            message("nodes.beside_not_possible", count=sum(left.values()), kinds=counted(left))
        )
    return joined(parts, "semicolon")


def counted(kinds: Counter[str]) -> str:
    """What could not act beside a layer, with counts, the most common first."""
    return joined(
        [
            message("nodes.count_of_kind", count=number, kind=kind)
            for kind, number in kinds.most_common()
        ]
    )
