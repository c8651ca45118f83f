"""Tells whether a file holds one change twice, fused and split: by the numbers,
not by the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..planning.copies import fused_twins
from ..planning.plan import DUPLICATE_TARGET, Plan, make_plan
from ..report.inspection import numbers_in
from .from_plan import adapter_of
from .math.low_rank import factors
from .math.spec import FAULTS

if TYPE_CHECKING:
    from ..planning.plan import Adapter
    from ..report.inspection import Inspection

PROBES = 8  # random inputs on which two changes are compared
LEAST_TOLERANCE = 1e-5  # rounding of an alpha, and of sums in another order
ROUNDINGS = 4  # of the dtype's steps, that factors rounded apart may differ by


def same_change(tensors: Mapping[str, Tensor], fused: Adapter, split: Sequence[Adapter]) -> bool:
    """Whether `split` together change the weight of `fused` as it does, up to the rounding of the
    coarsest dtype among them.

    tensors: the file's, by key. False where that cannot be computed.
    """
    try:
        weight, rows = fused.target.pieces[0][0], fused.target.out
        whole = _changed(fused, tensors)
        parts = torch.full_like(whole, torch.nan)
        for adapter in split:
            made = _changed(adapter, tensors)
            for name, place, source in adapter.target.pieces:
                if name == weight:
                    parts.narrow(0, *(place or (0, rows))).copy_(
                        made.narrow(0, *source) if source else made
                    )
    except (*FAULTS, RuntimeError):
        return False
    return bool((whole - parts).norm() <= _tolerance(tensors, (fused, *split)) * whole.norm())


def _changed(adapter: Adapter, tensors: Mapping[str, Tensor]) -> Tensor:
    """[out, PROBES]: the adapter's delta times the same random inputs for all of one width."""
    spec, roles = adapter_of(
        adapter, {role: tensors[key] for role, key in adapter.roles.items()}, None
    )
    delta = factors(spec, roles)
    inputs = torch.randn(
        delta.shape[1], PROBES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    return delta.times(inputs)


def _tolerance(tensors: Mapping[str, Tensor], adapters: Sequence[Adapter]) -> float:
    dtypes = {tensors[adapter.roles[role]].dtype for adapter in adapters for role in ("up", "down")}
    return max(LEAST_TOLERANCE, *(ROUNDINGS * torch.finfo(dtype).eps for dtype in dtypes))


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
        plan.site,
        inspection.config_beside,
        inspection.groups,
        numbers_in(inspection.path, header, inspection.groups),
        partial(same_change, tensors),
    )
