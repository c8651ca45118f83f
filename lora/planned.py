"""A plan's adapter as this package knows it: its spec, and its tensors by the roles the mathematics calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..adapters.registry import named
from ..adapters.tensors import Tensors, take_scalar
from .adapters import is_linear
from .spec import AdapterSpec

if TYPE_CHECKING:
    from ..key_maps.plan import Adapter

__all__ = ["adapter_of", "has_delta", "spec_of"]


def has_delta(adapter: Adapter) -> bool:
    """Whether what the adapter adds does not depend on the model's weight: see `is_linear`."""
    return is_linear(AdapterSpec(adapter.kind), adapter.roles)


def spec_of(adapter: Adapter, tensors: Tensors) -> AdapterSpec:
    """The spec of a plan's adapter for the whole module it was trained on: without rows, with the target's swap.

    tensors: role -> tensor, as the plan's roles name them, alpha included. Raises AdapterError for an alpha that is no number.
    """
    alpha = take_scalar(tensors, "alpha").item() * adapter.strength.factor if "alpha" in tensors else None
    scale = adapter.strength.scale if alpha is None else None
    options = adapter.options + ((("pad_to", adapter.grown_to),) if adapter.grown_to else ())
    if named(adapter.kind).needs_shape:
        options += (("shape", (adapter.target.out, *adapter.target.inner)),)
    return AdapterSpec(adapter.kind, alpha, scale, None, adapter.target.swap, options)


def adapter_of(adapter: Adapter, tensors: Tensors, rows: tuple[int, int] | None) -> tuple[AdapterSpec, dict[str, Tensor]]:
    """(spec, tensors) as `patched_weight` takes them; rows: the weight is only these output rows of the module, None: all of it.

    tensors as for `spec_of`.
    """
    spec = spec_of(adapter, tensors)
    kind = named(spec.kind)
    roles = {kind.called.get(role, role): tensor for role, tensor in tensors.items() if role != "alpha"}
    switches = tuple((role, bool(roles.pop(role).item())) for role in kind.switches if role in roles)
    return spec._replace(rows=rows, options=(*spec.options, *switches)), roles
