"""A plan's adapter as this package knows it: its spec, and its tensors by the roles the mathematics calls them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..key_maps.adapters import KINDS
from ..key_maps.settings import alpha_fault
from ..key_maps.strength import LIMITED, alpha_counts
from .adapters import is_linear
from .spec import AdapterError, AdapterSpec
from .tensors import Tensors, take_scalar

if TYPE_CHECKING:
    from ..key_maps.plan import Adapter

__all__ = ["PLAN_KINDS", "adapter_of", "alpha_of", "alpha_value", "has_delta", "kind_of", "shape_made", "spec_of"]

# What the plan calls the kinds that lora/ knows as one, and roles that lora/ calls otherwise, by kind.
PLAN_KINDS = {"bias_diff": "diff", "bias_norm": "norm", "bias_lora": "bias", "bias_set": "set"}
ROLES = {"ia3": {"weight": "ia3_weight"}, "set": {"weight": "set_weight", "bias": "set_weight"}}


def kind_of(kind: str) -> str:
    """The kind of an AdapterSpec for a kind of the plan."""
    return PLAN_KINDS.get(kind, kind)


def has_delta(adapter: Adapter) -> bool:
    """Whether what the adapter adds does not depend on the model's weight: see `is_linear`."""
    return is_linear(AdapterSpec(kind_of(adapter.kind)), adapter.roles)


def alpha_of(adapter: Adapter, tensors: Tensors) -> float | None:
    """The alpha that the file's tensor gives a plan's adapter; None where there is none, or it does not count.

    tensors: role -> tensor. Raises AdapterError for one of which no strength can be made (NaN, infinite, several numbers, complex): the
    adapter is refused, because any strength would be a guess, and a wrong one spoils the picture in silence.
    """
    if "alpha" not in tensors or not alpha_counts(adapter.kind, adapter.roles):
        return None
    try:
        return alpha_value(tensors["alpha"], adapter.kind) * adapter.strength.factor
    except AdapterError as error:
        raise AdapterError(f"{adapter.roles.get('alpha', 'alpha')}: {error}") from None


def alpha_value(tensor: Tensor, kind: str) -> float:
    """The number in an alpha tensor. Raises AdapterError for one of which no strength can be made."""
    if tensor.numel() != 1 or tensor.is_complex() or tensor.dtype == torch.bool:
        told = f"the shape {list(tensor.shape)} and the type {str(tensor.dtype).removeprefix('torch.')}"
        raise AdapterError(f"its alpha has {told}, but it should be one number")
    value = float(tensor.item())
    fault = alpha_fault(value, counts=not (kind in LIMITED and value == math.inf))
    if fault:
        raise AdapterError(fault)
    return value


def shape_made(adapter: Adapter, shapes: Mapping[str, tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The shape of the module an adapter was trained on, from its tensors' (by key); None where a flattened kernel hides it."""
    known = next((item for item in KINDS if item.name == adapter.kind and item.reaches == "weight"), None)
    made = known.shape({role: shapes.get(key) or () for role, key in adapter.roles.items()}) if known else None
    hidden = made is None or not made.out or not made.inner or (made.flat and "lokr_t2" not in adapter.roles)
    return None if hidden else (made.out, *made.inner)


def spec_of(adapter: Adapter, tensors: Tensors) -> AdapterSpec:
    """The spec of a plan's adapter for the whole module it was trained on: without rows, with the target's swap.

    tensors: role -> tensor, as the plan's roles name them, alpha included. Raises AdapterError as `alpha_of` does.
    """
    alpha = alpha_of(adapter, tensors)
    scale = adapter.strength.scale if alpha is None else None
    options = adapter.options + ((("pad_to", adapter.grown_to),) if adapter.grown_to else ())
    return AdapterSpec(kind_of(adapter.kind), alpha, scale, None, adapter.target.swap, options)


def adapter_of(adapter: Adapter, tensors: Tensors, rows: tuple[int, int] | None) -> tuple[AdapterSpec, dict[str, Tensor]]:
    """(spec, tensors) as `patched_weight` takes them; rows: the weight is only these output rows of the module, None: all of it.

    tensors as for `spec_of`.
    """
    spec = spec_of(adapter, tensors)
    names = ROLES.get(spec.kind, {})
    roles = {names.get(role, role): tensor for role, tensor in tensors.items() if role != "alpha"}
    on_input = roles.pop("on_input", None)
    options = spec.options
    if on_input is not None:
        options += (("on_input", bool(take_scalar({"on_input": on_input}, "on_input").item())),)
    return spec._replace(rows=rows, options=options), roles
