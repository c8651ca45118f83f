"""Tells whether a file holds one change twice, fused and split: by the numbers,
not by the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..adapters.registry import decomposition_of
from ..adapters.rows import Rows
from ..adapters.spec import AdapterError
from ..messages import message
from ..planning.copies import fused_twins
from ..planning.plan import DUPLICATE_TARGET, Plan, make_plan
from ..report.inspection import numbers_in
from .from_plan import adapter_of
from .math.faults import FAULTS
from .math.low_rank import MAGNITUDES, factors, low_rank_part

if TYPE_CHECKING:
    from ..planning.plan import Adapter
    from ..report.inspection import Inspection

PROBES = 8  # random inputs on which two changes are compared
MIN_TOLERANCE = 1e-5  # rounding of an alpha, and of sums in another order
ROUNDINGS = 4  # of the dtype's steps, that factors rounded apart may differ by


def same_change(tensors: Mapping[str, Tensor], fused: Adapter, split: Sequence[Adapter]) -> bool:
    """Whether `split` together change the weight of `fused` as it does, up to the rounding of the
    coarsest dtype among them.

    tensors: the file's, by key. False where that cannot be computed. Of DoRAs, whose change needs
    the weight, the deltas and the magnitudes are compared, each by itself: with both the same they
    change any weight alike, if the magnitudes are per output.
    """
    tolerance = _tolerance(tensors, (fused, *split))
    try:
        if len({_norms(adapter) for adapter in (fused, *split)}) > 1:
            return False
        looks = (_changed, _magnitudes) if decomposition_of(fused.roles) else (_changed,)
        return all(_alike(fused, split, partial(look, tensors), tolerance) for look in looks)
    except FAULTS:
        return False


def _norms(adapter: Adapter) -> tuple[bool, object]:
    """Whether it is a DoRA, and what is told of its norms."""
    return decomposition_of(adapter.roles) is not None, dict(adapter.options).get("dora_norm")


def _alike(
    fused: Adapter, split: Sequence[Adapter], look: Callable[[Adapter], Tensor], tolerance: float
) -> bool:
    """Whether what `look` gives for each output of the fused adapter is what it gives for those of
    the split ones, put together.
    """
    weight, rows = fused.target.slices[0][0], fused.target.out
    whole = look(fused)
    parts = torch.full_like(whole, torch.nan)
    for adapter in split:
        made = look(adapter)
        for name, place, source in adapter.target.slices:
            if name == weight:
                parts.narrow(0, *(place or Rows(0, rows))).copy_(
                    made.narrow(0, *source) if source else made
                )
    return bool((whole - parts).norm() <= tolerance * whole.norm())


def _changed(tensors: Mapping[str, Tensor], adapter: Adapter) -> Tensor:
    """[out, PROBES]: the adapter's delta, before magnitudes, times the same random inputs for all
    of one width.
    """
    spec, roles = adapter_of(
        adapter, {role: tensors[key] for role, key in adapter.roles.items()}, None
    )
    delta = factors(spec, low_rank_part(roles))
    inputs = torch.randn(
        delta.shape[1], PROBES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    return delta.times(inputs)


def _magnitudes(tensors: Mapping[str, Tensor], adapter: Adapter) -> Tensor:
    """[out] fp64; AdapterError where they are not one for each output."""
    decomposition = (
        None if "dora_axis" in dict(adapter.options) else decomposition_of(adapter.roles)
    )
    for role in decomposition.roles if decomposition else ():
        if decomposition and role in adapter.roles:
            tensor = tensors[adapter.roles[role]]
            vector = (
                decomposition.vector(role, tensor, adapter.target.out)
                if decomposition.per_output(role, tensor.shape)
                else None
            )
            if vector is not None:
                return vector.double()
    raise AdapterError(message("lora.magnitudes_not_per_output"))


def _tolerance(tensors: Mapping[str, Tensor], adapters: Sequence[Adapter]) -> float:
    dtypes = {
        tensors[adapter.roles[role]].dtype
        for adapter in adapters
        for role in ("up", "down", *MAGNITUDES)
        if role in adapter.roles
    }
    return max(MIN_TOLERANCE, *(ROUNDINGS * torch.finfo(dtype).eps for dtype in dtypes))


def compared(inspection: Inspection, tensors: Mapping[str, Tensor]) -> Plan:
    """The inspection's plan, in which adapters that stand fused and again split are compared by
    their numbers; a header alone can only compare their names.

    tensors: the file's, by key; they are read where there are such adapters only.
    """
    plan, header = inspection.plan, inspection.header
    doubled = any(one.category == DUPLICATE_TARGET for one in plan.outcomes.values())
    if not doubled and not fused_twins(plan.adapters, by_header=False):
        return plan
    return make_plan(
        header.tensors,
        header.metadata,
        plan.target_model,
        config_beside=inspection.config_beside,
        groups=inspection.groups,
        number=numbers_in(inspection.path, header, inspection.groups),
        same=partial(same_change, tensors),
    )
