"""A plan as the host's patches: its own adapters where it is proven to compute what the trainer
does, ours everywhere else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import comfy.lora
import comfy.utils
import torch
from comfy import weight_adapter
from comfy.weight_adapter.base import WeightAdapterBase

from ..adapters.registry import decomposition_of, named
from ..adapters.rows import Rows
from ..adapters.spec import AdapterError, AdapterSpec
from ..adapters.tensors import check_indices
from ..lora.from_plan import adapter_of, alpha_of
from ..lora.math.apply import is_linear, patched_weight
from ..lora.math.by_rows import Change, add_changes, patch_in_place
from ..lora.math.faults import FAULTS, first_line
from ..messages import message
from ..planning.apart import apart
from ..planning.plan import Adapter, Plan
from ..planning.target_model import Network, TargetModel
from .unpatched import own_rows

Tensors = Mapping[str, torch.Tensor]
# The weights an adapter changes, and their shapes.
Reached = tuple[tuple[str, tuple[int, ...]], ...]
MAX_PROOFS = (
    4096  # kinds with the shapes of their tensors and of the weight; a file has few of them
)


class LocksmithAdapter(WeightAdapterBase):
    """Any adapter the host computes otherwise than its trainer; the mathematics is lora/'s, in
    fp32.

    weights: (spec, role names, tensors), as the host copies an adapter by `type(self)(loaded_keys,
    weights)`.
    """

    name = "locksmith"

    def __init__(
        self,
        loaded_keys: set[str],
        weights: tuple[AdapterSpec, tuple[str, ...], tuple[torch.Tensor, ...]],
    ):
        spec, roles, tensors = weights
        # The host's copy is made of plain tuples.
        self.loaded_keys, self.weights = (
            loaded_keys,
            (
                AdapterSpec.restored(spec),
                tuple(roles),
                tuple(tensors),
            ),
        )

    def calculate_shape(self, key: str) -> tuple[int, ...] | None:
        """The shape the weight grows to, if it does."""
        return self.weights[0].option("pad_to")

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
        """The patched weight; in place where the shape stays, because the host hands in a slice and
        keeps the whole.

        original_weight: of a hook, the host's {key: [(the model's own weight, ...), ...]}, whatever
        it is called: the change is of that weight then, and adds to what else was done to this one.
        """
        spec, tensors = self.weights[0], self.on(weight.device)
        if spec.option("pad_to") is None:
            needs = not is_linear(spec, tensors)
            own = own_rows(original_weight, key, offset, weight) if needs else None
            if own is None:
                patch_in_place(spec, tensors, weight, strength)
            else:
                add_changes([Change(strength, spec, tensors)], weight, own)
            return weight
        patched = patched_weight(spec, tensors, weight, strength)
        return weight.copy_(patched) if patched.shape == weight.shape else patched.to(weight.dtype)

    def on(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Role -> tensor on a device."""
        _, roles, tensors = self.weights
        return {role: tensor.to(device) for role, tensor in zip(roles, tensors, strict=True)}


def weight_of(target: Any) -> str:
    """The name of the weight that a patch is for."""
    return target if isinstance(target, str) else target[0]


class Patches(NamedTuple):
    """What goes to the host's add_patches: layers of {target: patch}; a target stands once in a
    layer.
    """

    layers: tuple[dict[Any, Any], ...]
    failures: Mapping[int, str]


def build_patches(plan: Plan, tensors: Tensors, ours: bool | Container[str] = False) -> Patches:
    """Turn a plan into the host's patches; an adapter that cannot be built is named in `failures`
    by its index.

    ours: all adapters, or those of the weights of these names, are the pack's own, also where the
    host would compute the same, as what acts beside a layer is made of these.
    """
    layers: list[dict[Any, Any]] = []
    counts: dict[Any, int] = {}
    built, failures = patches_by_adapter(plan, tensors, ours)
    for patches in built.values():
        for target, patch in patches:
            weight = target if isinstance(target, str) else target[:2]
            depth = counts[weight] = counts.get(weight, -1) + 1
            if depth == len(layers):
                layers.append({})
            layers[depth][target] = patch
    return Patches(tuple(layers), failures)


def patches_by_adapter(
    plan: Plan, tensors: Tensors, ours: bool | Container[str] = False
) -> tuple[dict[int, list[tuple[Any, Any]]], dict[int, str]]:
    """(place of an adapter in the plan -> its (target, patch), why others cannot be built); `ours`
    as in `build_patches`.
    """
    built: dict[int, list[tuple[Any, Any]]] = {}
    failures: dict[int, str] = {}
    for index, adapter in enumerate(plan.adapters):
        try:
            built[index] = [
                patch
                for piece in apart(adapter, plan.shapes)
                for patch in _patches_of(
                    piece,
                    plan.target_model,
                    {role: tensors[key] for role, key in piece.roles.items()},
                    ours,
                )
            ]
        except FAULTS as error:
            failures[index] = first_line(error)
    return built, failures


def _patches_of(
    adapter: Adapter,
    target_model: TargetModel,
    tensors: dict[str, torch.Tensor],
    ours: bool | Container[str],
) -> Iterable[tuple[Any, Any]]:
    network, swap = target_model.networks[adapter.target.network], adapter.target.swap
    for weight, rows, source in adapter.target.slices:
        whole = network.weights[weight] or (1,)
        shape = (rows.length, *whole[1:]) if rows else whole
        reached = (
            ((weight, shape),)
            if adapter.parameter == "weight"
            else _with_bias(adapter, network, weight, shape)
        )
        reshapes = bool(adapter.padded_shape) and named(adapter.kind).replaces
        own = ours if isinstance(ours, bool) else weight in ours
        patch = None if own and not reshapes else _hosts_patch(adapter, tensors, source)
        if reshapes:
            if patch is None or not _host_reshapes(patch, reached):
                raise AdapterError(
                    message(
                        "nodes.cannot_reshape",
                        shape=list(adapter.padded_shape or ()),
                        size=list(reached[0][1]),
                    )
                )
        elif patch is None or not _host_computes(patch, reached, swap):
            patch = _ours(adapter, tensors, source, reached)
        for name, _ in reached:
            yield _target(name, rows, swap and not isinstance(patch, LocksmithAdapter)), patch


def _with_bias(adapter: Adapter, network: Network, weight: str, shape: tuple[int, ...]) -> Reached:
    bias = network.bias_of(weight)
    named = ((weight, shape),) if adapter.parameter == "both" else ()
    return named if bias is None else (*named, (bias, shape[:1]))


def _target(name: str, rows: Rows | None, swap: bool) -> Any:
    """The host's way to name a weight, a slice of its rows, and a function on the change."""
    if rows is None and not swap:
        return name
    offset = (0, *rows) if rows else None
    return (name, offset, comfy.utils.swap_scale_shift) if swap else (name, offset)


def _hosts_patch(adapter: Adapter, tensors: dict[str, torch.Tensor], source: Rows | None) -> Any:
    """The host's own adapter where it computes what the trainer does, else None."""
    kind = named(adapter.kind)
    if adapter.columns or decomposition_of(tensors) or not kind.host_drops.isdisjoint(tensors):
        return None
    weights = kind.host(tensors, _alpha(adapter, tensors), source, adapter)
    if weights is None or not kind.host_class:
        return weights
    return getattr(weight_adapter, kind.host_class)(set(adapter.roles.values()), weights)


def _alpha(adapter: Adapter, tensors: dict[str, torch.Tensor]) -> float | None:
    """The alpha that makes the host's adapters as strong as the plan says."""
    if adapter.strength.scale is not None:
        return adapter.strength.scale * adapter.rank if adapter.rank else None
    if "alpha" in tensors:
        # 0 is "not set" to sd-scripts (networks/lora.py LoRAModule), which reads it as alpha =
        # rank.
        return alpha_of(adapter, tensors) or None
    return None


def _host_computes(patch: Any, reached: Reached, swap: bool) -> bool:
    """Whether the host's own code has been seen to compute this patch for weights
    of these shapes.
    """
    kind, weights = patch if type(patch) is tuple else (type(patch), patch.weights)
    # What of a tensor, a number or a shape the host's code may stumble over. Each module pays for
    # this, so it is one expression.
    outlines = tuple(
        [
            (
                None
                if value is None
                else (
                    1.0
                    if type(value) is float
                    else tuple(value)
                    if type(value) is list
                    else (value.shape, value.dtype)
                )
            )
            for value in weights
        ]
    )
    for _, shape in reached:
        if not _proven(kind, outlines, shape, swap):
            return False
    return bool(reached)


def host_applies(patch: Any, shape: tuple[int, ...], rows: Any = None) -> bool:
    """Whether the host's own code computes one of its patches for a weight of this shape.

    rows: (dimension, start, length) where the patch is for a part of it.
    """
    if rows is not None:
        dimension, _, length = rows
        shape = (*shape[:dimension], length, *shape[dimension + 1 :])
    reached = (("", shape),)
    if isinstance(patch, tuple) and patch[0] == "set":
        return _host_reshapes(patch, reached)
    return _host_computes(patch, reached, False)


def _host_reshapes(patch: tuple[str, tuple[torch.Tensor]], reached: Reached) -> bool:
    """Whether the host puts values of another shape in a weight's place."""
    value = patch[1][0]
    entry = (1.0, (patch[0], (torch.empty_like(value, device="meta"),)), 1.0, None, None)
    try:
        after = [
            comfy.lora.calculate_weight([entry], torch.empty(shape, device="meta"), "")
            for _, shape in reached
        ]
    except Exception:
        return False
    return bool(after) and all(one.shape == value.shape for one in after)


def _hollow(outline: Any) -> Any:
    """The adapter without values, from its outline."""
    if not isinstance(outline, tuple):
        return outline
    hollow = len(outline) == 2 and isinstance(outline[1], torch.dtype)
    return torch.empty(outline[0], dtype=outline[1], device="meta") if hollow else list(outline)


@lru_cache(maxsize=MAX_PROOFS)
def _proven(kind: Any, outlines: tuple, shape: tuple[int, ...], swap: bool) -> bool:
    """Run the host's own code on tensors without values.

    What it cannot compute it raises on in the sampler, or logs as an error while the weight stays
    as it was: whether the change got as far as the weight, the function that the host sends it
    through sees.
    """
    if swap and shape[0] % 2:
        return False
    weights = tuple([_hollow(outline) for outline in outlines])
    patch = (kind, weights) if isinstance(kind, str) else kind(set(), weights)
    grown = None if isinstance(patch, tuple) else patch.calculate_shape("")
    changes: list[tuple[int, ...]] = []

    def seen(change: torch.Tensor) -> torch.Tensor:
        change = comfy.utils.swap_scale_shift(change) if swap else change
        changes.append(tuple(change.shape))
        return change

    with _complaints() as complaints:
        try:
            after = comfy.lora.calculate_weight(
                [(0.5, patch, 1.0, None, seen)], torch.empty(shape, device="meta"), ""
            )
        except Exception:
            return False
    whole = tuple(grown or shape)
    return changes == [whole] and tuple(after.shape) == whole and not complaints


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the host logs as a warning or an error in this thread, kept out of the log: during a
    proof it is no fault.
    """
    told: list[str] = []
    here = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != here:
            return True
        if record.levelno >= logging.WARNING:
            told.append(record.getMessage())
        return False

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield told
    finally:
        root.removeFilter(keep)


def _ours(
    adapter: Adapter, tensors: dict[str, torch.Tensor], source, reached: Reached
) -> LocksmithAdapter:
    """Our adapter, tried on the meta device for each weight it reaches; raises AdapterError for
    tensors that are none.
    """
    spec, roles = adapter_of(adapter, tensors, source)
    outlines = tuple([(role, tuple(tensor.shape)) for role, tensor in roles.items()])
    for _, shape in reached:
        _try_on_meta(_without_numbers(spec), outlines, shape)
        if "bias_indices" in roles:
            check_indices(roles["bias_indices"], (roles["up"].shape[0], *shape[1:]), "bias_indices")
    return LocksmithAdapter(
        set(adapter.roles.values()), (spec, tuple(roles), tuple(roles.values()))
    )


def _without_numbers(spec: AdapterSpec) -> AdapterSpec:
    """A spec that is equal for all alphas, of which a file may have one for each module; whether
    there is one may count.
    """
    return spec._replace(
        alpha=1.0 if spec.alpha else spec.alpha, scale=None if spec.scale is None else 1.0
    )


@lru_cache(maxsize=MAX_PROOFS)
def _try_on_meta(
    spec: AdapterSpec,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    weight_shape: tuple[int, ...],
) -> None:
    """Raise AdapterError now, while loading, for what would otherwise fail while sampling."""
    tensors = {role: torch.empty(shape, device="meta") for role, shape in shapes}
    patched_weight(spec, tensors, torch.empty(weight_shape, device="meta"), 0.5)
