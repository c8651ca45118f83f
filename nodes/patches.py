"""A plan as the host's patches: its own adapters where it is proven to compute what the trainer does, ours everywhere else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import comfy.lora
import comfy.utils
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from comfy.weight_adapter.loha import LoHaAdapter
from comfy.weight_adapter.lokr import LoKrAdapter
from comfy.weight_adapter.lora import LoRAAdapter

from ..key_maps.plan import Adapter, Plan
from ..key_maps.site import Component, Site
from ..lora.adapters import AdapterSpec, patched_weight
from ..lora.additive import check_residual
from ..lora.planned import adapter_of
from ..lora.spec import FAULTS, first_line

Tensors = Mapping[str, torch.Tensor]
Reached = tuple[tuple[str, tuple[int, ...]], ...]  # the weights an adapter changes, and their shapes
MOST_PROOFS = 4096  # kinds with the shapes of their tensors and of the weight; a file has few of them


class LocksmithAdapter(WeightAdapterBase):
    """Any adapter the host computes otherwise than its trainer; the mathematics is lora/'s, in fp32.

    weights: (spec, role names, tensors), as the host copies an adapter by `type(self)(loaded_keys, weights)`.
    """

    name = "locksmith"

    def __init__(self, loaded_keys: set[str], weights: tuple[AdapterSpec, tuple[str, ...], tuple[torch.Tensor, ...]]):
        spec, roles, tensors = weights
        # The host's copy is made of plain tuples.
        self.loaded_keys, self.weights = loaded_keys, (AdapterSpec(*spec), tuple(roles), tuple(tensors))

    def calculate_shape(self, key: str) -> tuple[int, ...] | None:
        """The shape the weight grows to, if it does."""
        return self.weights[0].option("pad_to")

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function, intermediate_dtype=torch.float32, original_weight=None
    ):
        """The patched weight; in place where the shape stays, because the host hands in a slice and keeps the whole."""
        spec, roles, tensors = self.weights
        on_device = {role: tensor.to(weight.device) for role, tensor in zip(roles, tensors, strict=True)}
        patched = patched_weight(spec, on_device, weight, strength)
        return weight.copy_(patched) if patched.shape == weight.shape else patched.to(weight.dtype)


class Patches(NamedTuple):
    """What goes to the host's add_patches: layers of {target: patch}; a target stands once in a layer."""

    layers: tuple[dict[Any, Any], ...]
    failures: Mapping[int, str]


def build_patches(plan: Plan, tensors: Tensors) -> Patches:
    """Turn a plan into the host's patches; an adapter that cannot be built is named in `failures` by its index."""
    layers: list[dict[Any, Any]] = []
    counts: dict[Any, int] = {}
    failures: dict[int, str] = {}
    for index, adapter in enumerate(plan.adapters):
        try:
            patches = list(_patches_of(adapter, plan.site, {role: tensors[key] for role, key in adapter.roles.items()}))
        except FAULTS as error:
            failures[index] = first_line(error)
            continue
        for target, patch in patches:
            weight = target if isinstance(target, str) else target[:2]
            depth = counts[weight] = counts.get(weight, -1) + 1
            if depth == len(layers):
                layers.append({})
            layers[depth][target] = patch
    return Patches(tuple(layers), failures)


def _patches_of(adapter: Adapter, site: Site, tensors: dict[str, torch.Tensor]) -> Iterable[tuple[Any, Any]]:
    component, swap = site.components[adapter.target.component], adapter.target.swap
    for weight, rows, source in adapter.target.pieces:
        whole = component.weights[weight] or (1,)
        shape = (rows[1], *whole[1:]) if rows else whole
        reached = ((weight, shape),) if adapter.reaches == "weight" else _with_bias(adapter, component, weight, shape)
        patch = _hosts_patch(adapter, tensors, source)
        if patch is None or not _host_computes(patch, reached, swap):
            patch = _ours(adapter, tensors, source, reached)
        for name, _ in reached:
            yield _target(name, rows, swap and not isinstance(patch, LocksmithAdapter)), patch


def _with_bias(adapter: Adapter, component: Component, weight: str, shape: tuple[int, ...]) -> Reached:
    bias = component.bias_of(weight)
    named = ((weight, shape),) if adapter.reaches == "both" else ()
    return named if bias is None else (*named, (bias, shape[:1]))


def _target(name: str, rows: tuple[int, int] | None, swap: bool) -> Any:
    """The host's way to name a weight, a slice of its rows, and a function on the change."""
    if rows is None and not swap:
        return name
    offset = (0, *rows) if rows else None
    return (name, offset, comfy.utils.swap_scale_shift) if swap else (name, offset)


def _hosts_patch(adapter: Adapter, tensors: dict[str, torch.Tensor], source: tuple[int, int] | None) -> Any:
    """The host's own adapter where it computes what the trainer does, else None."""
    build = HOST_ADAPTERS.get(adapter.kind)
    if build is None or not OURS_ALONE.isdisjoint(tensors):
        return None
    return build(set(adapter.roles.values()), tensors, _alpha(adapter, tensors), source, adapter)


def _alpha(adapter: Adapter, tensors: dict[str, torch.Tensor]) -> float | None:
    """The alpha that makes the host's adapters as strong as the plan says."""
    if "alpha" in tensors:
        # 0 is "not set" to sd-scripts (networks/lora.py LoRAModule), which reads it as alpha = rank.
        return tensors["alpha"].item() * adapter.strength.factor or None
    if adapter.strength.scale is not None and adapter.rank:
        return adapter.strength.scale * adapter.rank
    return None


def _host_lora(keys, tensors, alpha, source, adapter: Adapter):
    up, down, core = tensors["up"], tensors["down"], tensors.get("mid")
    if core is not None and core.dim() != 4:
        return None
    if source is not None:
        up = up.narrow(0, *source)
    grown = list(adapter.grown_to) if adapter.grown_to else None
    return LoRAAdapter(keys, (up, down, alpha, core, None, grown))


def _host_loha(keys, tensors, alpha, source, adapter: Adapter):
    if source is not None:
        return None
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    w1_a, w1_b, w2_a, w2_b, t1, t2 = (tensors.get(name) for name in names)
    if (t1 is None) != (t2 is None):
        return None  # the host looks at the first only
    return LoHaAdapter(keys, (w1_a, w1_b, alpha, w2_a, w2_b, t1, t2, None))


def _host_lokr(keys, tensors, alpha, source, adapter: Adapter):
    if source is not None or "lokr_t2" in tensors or (adapter.strength.scale is not None and not adapter.rank):
        return None
    names = ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")
    if "lokr_w1_b" in tensors and "lokr_w2_b" in tensors and tensors["lokr_w1_b"].shape[0] != tensors["lokr_w2_b"].shape[0]:
        return None
    w1_a, w1_b, w2_a, w2_b = (tensors.get(name) for name in names)
    first, second = tensors.get("lokr_w1", w1_a), tensors.get("lokr_w2", w2_a)
    if first.dim() != 2 or second.dim() not in (2, 4):
        return None  # the host lays a kernel beside the first factor for Conv2d only
    return LoKrAdapter(keys, (tensors.get("lokr_w1"), tensors.get("lokr_w2"), alpha, w1_a, w1_b, w2_a, w2_b, None, None))


def _difference(role: str):
    def build(keys, tensors, alpha, source, adapter: Adapter):
        change = tensors[role]
        return ("diff", (change.narrow(0, *source) if source else change,))

    return build


def _bias_of_lora(keys, tensors, alpha, source, adapter: Adapter):
    change = tensors["up_bias"]
    if adapter.strength.scale is not None:
        change = change.float() * adapter.strength.scale
    return ("diff", (change.narrow(0, *source) if source else change,))


HOST_ADAPTERS: dict[str, Callable[..., Any]] = {
    "lora": _host_lora, "loha": _host_loha, "lokr": _host_lokr, "diff": _difference("diff"), "norm": _difference("w_norm"),
    "bias_diff": _difference("diff_b"), "bias_norm": _difference("b_norm"), "bias_lora": _bias_of_lora,
}  # fmt: skip

# Roles the host's adapters drop or compute wrongly.
OURS_ALONE = frozenset({"dora_scale", "magnitude", "scalar", "bias_values"})


def _host_computes(patch: Any, reached: Reached, swap: bool) -> bool:
    """Whether the host's own code has been seen to compute this patch for weights of these shapes."""
    kind, weights = patch if type(patch) is tuple else (type(patch), patch.weights)
    # What of a tensor, a number or a shape the host's code may stumble over. Each module pays for this, so it is one expression.
    outlines = tuple([
        None if value is None else 1.0 if type(value) is float else tuple(value) if type(value) is list else (value.shape, value.dtype)
        for value in weights
    ])  # fmt: skip
    for _, shape in reached:
        if not _proven(kind, outlines, shape, swap):
            return False
    return bool(reached)


def _hollow(outline: Any) -> Any:
    """The same without values, from its outline."""
    if not isinstance(outline, tuple):
        return outline
    hollow = len(outline) == 2 and isinstance(outline[1], torch.dtype)
    return torch.empty(outline[0], dtype=outline[1], device="meta") if hollow else list(outline)


@lru_cache(maxsize=MOST_PROOFS)
def _proven(kind: Any, outlines: tuple, shape: tuple[int, ...], swap: bool) -> bool:
    """Run the host's own code on tensors without values.

    What it cannot compute it raises on in the sampler, or logs as an error while the weight stays as it was: whether the
    change got as far as the weight, the function that the host sends it through sees.
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
            after = comfy.lora.calculate_weight([(0.5, patch, 1.0, None, seen)], torch.empty(shape, device="meta"), "")
        except Exception:
            return False
    whole = tuple(grown or shape)
    return changes == [whole] and tuple(after.shape) == whole and not complaints


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the host logs as a warning or an error in this thread, kept out of the log: during a proof it is no fault."""
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


def _ours(adapter: Adapter, tensors: dict[str, torch.Tensor], source, reached: Reached) -> LocksmithAdapter:
    """Our adapter, tried on the meta device for each weight it reaches; raises AdapterError for tensors that are none."""
    spec, roles = adapter_of(adapter, tensors, source)
    outlines = tuple([(role, tuple(tensor.shape)) for role, tensor in roles.items()])
    for _, shape in reached:
        _try_on_meta(_without_numbers(spec), outlines, shape)
        if "bias_indices" in roles:
            check_residual(roles["bias_indices"], (roles["up"].shape[0], *shape[1:]))
    return LocksmithAdapter(set(adapter.roles.values()), (spec, tuple(roles), tuple(roles.values())))


def _without_numbers(spec: AdapterSpec) -> AdapterSpec:
    """The same for all alphas, of which a file may have one for each module; whether there is one may count."""
    return spec._replace(alpha=1.0 if spec.alpha else spec.alpha, scale=None if spec.scale is None else 1.0)


@lru_cache(maxsize=MOST_PROOFS)
def _try_on_meta(spec: AdapterSpec, shapes: tuple[tuple[str, tuple[int, ...]], ...], weight_shape: tuple[int, ...]) -> None:
    """Raise AdapterError now, while loading, for what would otherwise fail while sampling."""
    tensors = {role: torch.empty(shape, device="meta") for role, shape in shapes}
    patched_weight(spec, tensors, torch.empty(weight_shape, device="meta"), 0.5)
