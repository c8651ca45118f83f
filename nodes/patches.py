"""A plan as the host's patches: its own adapters where it computes what the trainer does, ours everywhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import comfy.utils
import torch
from comfy import weight_adapter
from comfy.weight_adapter.base import WeightAdapterBase

from ..adapters.registry import decomposition_of, named
from ..key_maps.plan import Adapter, Plan
from ..key_maps.site import Site
from ..lora.adapters import AdapterError, AdapterSpec, patched_weight
from ..lora.planned import adapter_of
from ..lora.spec import first_line

Tensors = Mapping[str, torch.Tensor]


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
        except (AdapterError, RuntimeError, ValueError, IndexError) as error:
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
    for weight, rows, source in adapter.target.pieces:
        bias = site.components[adapter.target.component].bias_of(weight) if adapter.reaches != "weight" else None
        patch = _hosts_patch(adapter, tensors, source)
        if patch is None:
            patch = _ours(adapter, tensors, source, _shape_of_target(adapter, site, weight, rows))
        swap = adapter.target.swap and not isinstance(patch, LocksmithAdapter)
        if adapter.reaches != "bias":
            yield _target(weight, rows, swap), patch
        if bias is not None:
            yield _target(bias, rows, swap), patch


def _shape_of_target(adapter: Adapter, site: Site, weight: str, rows: tuple[int, int] | None) -> tuple[int, ...]:
    out, *inner = site.components[adapter.target.component].weights[weight] or (1,)
    return (rows[1] if rows else out, *(() if adapter.reaches == "bias" else inner))


def _target(name: str, rows: tuple[int, int] | None, swap: bool) -> Any:
    """The host's way to name a weight, a slice of its rows, and a function on the change."""
    if rows is None and not swap:
        return name
    offset = (0, *rows) if rows else None
    return (name, offset, comfy.utils.swap_scale_shift) if swap else (name, offset)


def _hosts_patch(adapter: Adapter, tensors: dict[str, torch.Tensor], source: tuple[int, int] | None) -> Any:
    """The host's own adapter where it computes what the trainer does, else None."""
    kind = named(adapter.kind)
    if decomposition_of(tensors) or not kind.host_drops.isdisjoint(tensors):
        return None
    weights = kind.host(tensors, _alpha(adapter, tensors), source, adapter)
    if weights is None or not kind.host_class:
        return weights
    return getattr(weight_adapter, kind.host_class)(set(adapter.roles.values()), weights)


def _alpha(adapter: Adapter, tensors: dict[str, torch.Tensor]) -> float | None:
    """The alpha that makes the host's adapters as strong as the plan says."""
    if "alpha" in tensors:
        # 0 is "not set" to sd-scripts (networks/lora.py LoRAModule), which reads it as alpha = rank.
        return tensors["alpha"].item() * adapter.strength.factor or None
    if adapter.strength.scale is not None and adapter.rank:
        return adapter.strength.scale * adapter.rank
    return None


def _ours(adapter: Adapter, tensors: dict[str, torch.Tensor], source, shape: tuple[int, ...]) -> LocksmithAdapter:
    """Our adapter, tried on the meta device; raises AdapterError for tensors that are none."""
    spec, roles = adapter_of(adapter, tensors, source)
    _try_on_meta(spec, tuple((role, tuple(tensor.shape)) for role, tensor in roles.items()), shape)
    return LocksmithAdapter(set(adapter.roles.values()), (spec, tuple(roles), tuple(roles.values())))


@lru_cache(maxsize=512)
def _try_on_meta(spec: AdapterSpec, shapes: tuple[tuple[str, tuple[int, ...]], ...], weight_shape: tuple[int, ...]) -> None:
    """Raise AdapterError now, while loading, for what would otherwise fail while sampling."""
    tensors = {role: torch.empty(shape, device="meta") for role, shape in shapes}
    patched_weight(spec, tensors, torch.empty(weight_shape, device="meta"), 1.0)
