"""A plan's adapter as this package knows it: its spec, and its tensors by the roles the mathematics
calls them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..adapters.kind import LIMIT, Misfit
from ..adapters.registry import named
from ..adapters.rows import Rows
from ..adapters.spec import NUMBERS, AdapterError, AdapterSpec
from ..adapters.tensors import Tensors, take_scalar
from ..messages import message, text_of
from ..planning.settings import alpha_fault
from .math.apply import is_linear

if TYPE_CHECKING:
    from ..planning.plan import Adapter

__all__ = ["adapter_of", "alpha_of", "alpha_value", "has_delta", "shape_made", "spec_of"]


def has_delta(adapter: Adapter) -> bool:
    """Whether what the adapter adds does not depend on the model's weight: see `is_linear`."""
    return is_linear(AdapterSpec(adapter.kind), adapter.roles)


def alpha_of(adapter: Adapter, tensors: Tensors) -> float | None:
    """The alpha that the file's tensor gives a plan's adapter; None where there is none, or it does
    not count.

    tensors: role -> tensor. Raises AdapterError for one of which no strength can be made (NaN,
    infinite, several numbers, complex): the adapter is refused, because any strength would be a
    guess, and a wrong one spoils the picture in silence.
    """
    if "alpha" not in tensors or not named(adapter.kind).alpha_counts(adapter.roles):
        return None
    try:
        return alpha_value(tensors["alpha"], adapter.kind) * adapter.strength.factor
    except AdapterError as error:
        key = adapter.roles.get("alpha", "alpha")
        raise AdapterError(message("joints.about", subject=key, text=text_of(error))) from None


def alpha_value(tensor: Tensor, kind: str) -> float:
    """The number in an alpha tensor. Raises AdapterError for one of which no
    strength can be made.
    """
    if tensor.numel() != 1 or tensor.is_complex() or tensor.dtype == torch.bool:
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise AdapterError(
            message("lora.alpha_not_a_number", shape=list(tensor.shape), dtype=dtype)
        )
    value = float(tensor.item())
    fault = alpha_fault(value, counts=not (named(kind).alpha_is == LIMIT and value == math.inf))
    if fault:
        raise AdapterError(fault)
    return value


def shape_made(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...] | None]
) -> tuple[int, ...] | None:
    """The shape of the parameter an adapter was trained on, from its tensors' (by key); None where
    a flattened kernel hides it.
    """
    own: dict[str, tuple[int, ...]] = {}
    for role, key in adapter.roles.items():
        if role in NUMBERS:
            continue
        shape = shapes.get(key)
        if shape is None:
            return None
        own[role] = shape
    try:
        module = named(adapter.kind).shape(own)
    except (Misfit, IndexError, TypeError):
        return None
    return (
        None
        if module.out is None or module.inner is None or module.flat
        else (module.out, *module.inner)
    )


def spec_of(adapter: Adapter, tensors: Tensors) -> AdapterSpec:
    """The spec of a plan's adapter for the whole module it was trained on: without rows, with the
    target's swap.

    tensors: role -> tensor, as the plan's roles name them, alpha included. Raises AdapterError as
    `alpha_of` does.
    """
    scale = adapter.strength.scale
    alpha = alpha_of(adapter, tensors) if scale is None else None
    options = adapter.options + (
        (("pad_to", adapter.padded_shape),) if adapter.padded_shape else ()
    )
    options += (("columns", adapter.columns),) if adapter.columns else ()
    if named(adapter.kind).needs_shape:
        options += (("shape", _module_shape(adapter)),)
    return AdapterSpec(adapter.kind, alpha, scale, None, adapter.target.swap, options)


def _module_shape(adapter: Adapter) -> tuple[int, ...]:
    inner = (
        (adapter.columns, *adapter.target.inner[1:]) if adapter.columns else adapter.target.inner
    )
    return adapter.target.out, *inner


def adapter_of(
    adapter: Adapter, tensors: Tensors, rows: Rows | None
) -> tuple[AdapterSpec, dict[str, Tensor]]:
    """(spec, tensors) as `patched_weight` takes them; rows: the weight is only these output rows of
    the module, None: all of it.

    tensors as for `spec_of`.
    """
    spec = spec_of(adapter, tensors)
    kind = named(spec.kind)
    roles = {
        kind.called.get(role, role): tensor for role, tensor in tensors.items() if role != "alpha"
    }
    switches = tuple(
        (role, bool(take_scalar({role: roles.pop(role)}, role).item()))
        for role in kind.switches
        if role in roles
    )
    return spec._replace(rows=rows, options=(*spec.options, *switches)), roles
