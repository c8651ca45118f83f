"""A plan's adapter as this package knows it: its spec, and its tensors by the roles the mathematics calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .adapters import is_linear
from .spec import AdapterSpec
from .tensors import Tensors, take_scalar

if TYPE_CHECKING:
    from ..key_maps.plan import Adapter

__all__ = ["PLAN_KINDS", "adapter_of", "has_delta", "kind_of", "spec_of"]

# What the plan calls the kinds that lora/ knows as one, and roles that lora/ calls otherwise, by kind.
PLAN_KINDS = {"bias_diff": "diff", "bias_norm": "norm", "bias_lora": "bias", "bias_set": "set"}
ROLES = {"ia3": {"weight": "ia3_weight"}, "set": {"weight": "set_weight", "bias": "set_weight"}}


def kind_of(kind: str) -> str:
    """The kind of an AdapterSpec for a kind of the plan."""
    return PLAN_KINDS.get(kind, kind)


def has_delta(adapter: Adapter) -> bool:
    """Whether what the adapter adds does not depend on the model's weight: see `is_linear`."""
    return is_linear(AdapterSpec(kind_of(adapter.kind)), adapter.roles)


def spec_of(adapter: Adapter, tensors: Tensors) -> AdapterSpec:
    """The spec of a plan's adapter for the whole module it was trained on: without rows, with the target's swap.

    tensors: role -> tensor, as the plan's roles name them, alpha included. Raises AdapterError for an alpha that is no number.
    """
    scale = adapter.strength.scale
    alpha = take_scalar(tensors, "alpha").item() * adapter.strength.factor if "alpha" in tensors and scale is None else None
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
    options = spec.options if on_input is None else (*spec.options, ("on_input", bool(on_input.item())))
    return spec._replace(rows=rows, options=options), roles
