"""Patching a weight in its own memory, a piece of its rows after another.

Under a DoRA or a rotation a whole weight takes four times its fp32 size while it is computed, and
the host reserves less than that. Most adapters change a row without asking for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import lcm
from typing import NamedTuple

import torch
from torch import Tensor

from ...adapters.registry import decomposition_of, named
from ...adapters.rows import Rows, laid
from ...adapters.spec import AdapterSpec
from ...adapters.tensors import Tensors
from .apply import patched_weight

PIECE = 2**20  # numbers of a weight that are patched at once, where its rows allow it


def patch_in_place(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> None:
    """Make of `weight` what `patched_weight` gives; it keeps its dtype.

    Args:
        weight: [rows, ...], of a shape that the adapter does not change.

    Raises:
        AdapterError: as `patched_weight`.
    """
    for rows in pieces_of([(spec, tensors)], weight):
        part = weight.narrow(0, *rows) if rows else weight
        part.copy_(patched_weight(of_rows(spec, weight, rows), tensors, part, strength))


class Change(NamedTuple):
    """One of the adapters whose changes of the model's own weight add up; tensors: by role, on the
    weight's device.
    """

    strength: float
    spec: AdapterSpec
    tensors: Tensors


def add_changes(
    changes: Sequence[Change],
    weight: Tensor,
    own: Callable[[Rows | None], Tensor] | None = None,
    strength: float = 1.0,
) -> None:
    """Add to `weight`, in its memory, what each of these adapters alone does to the model's own.

    Args:
        weight: [rows, ...], of a shape that no adapter changes; it keeps its dtype.
        own: rows (None: all) -> those of the model's own weight, an fp32 tensor of the caller's
            on the weight's device; None where `weight` holds just that.
        strength: what all changes are multiplied with besides.

    Raises:
        AdapterError: as `patched_weight`.
    """
    for rows in pieces_of([(change.spec, change.tensors) for change in changes], weight):
        part = weight.narrow(0, *rows) if rows else weight
        base = own(rows) if own else part.to(torch.float32, copy=True)
        total = torch.zeros_like(base)
        for change in changes:
            spec = of_rows(change.spec, weight, rows)
            total += patched_weight(spec, change.tensors, base, change.strength) - base
        if own:
            part += total.mul_(strength).to(part.dtype)
        else:
            part.copy_(base.add_(total, alpha=strength))


def pieces_of(
    adapters: Sequence[tuple[AdapterSpec, Tensors]], weight: Tensor
) -> Sequence[Rows | None]:
    """The rows of a weight [rows, ...] that these adapters can be computed for one after another;
    None alone where one of them needs all rows at once.
    """
    grains = [_grain(spec, tensors) for spec, tensors in adapters]
    total = weight.shape[0] if weight.dim() else 0
    if None in grains or not weight.numel():
        return (None,)
    grain = lcm(*(one for one in grains if one))
    length = max(PIECE * total // weight.numel() // grain, 1) * grain
    halves = any(spec.swap for spec, _ in adapters)
    start = [spec.rows.start if spec.rows else 0 for spec, _ in adapters]
    bounds = (total // 2, total - total // 2) if halves else (total,)
    if length >= bounds[0] or any(one % grain for one in start):
        return (None,)
    if halves and (total % 2 or bounds[0] % grain):
        return (None,)
    return tuple(
        Rows(at, min(length, part.end - at))
        for part in laid(bounds)
        for at in range(part.start, part.end, length)
    )


def of_rows(spec: AdapterSpec, weight: Tensor, rows: Rows | None) -> AdapterSpec:
    """The adapter for these rows of the weight, which `pieces_of` gave; None: as it is."""
    if rows is None:
        return spec
    start, half = spec.rows.start if spec.rows else 0, weight.shape[0] // 2
    other = (half if rows.start < half else -half) if spec.swap else 0
    return spec._replace(rows=rows.shift(start + other), swap=False)


def _grain(spec: AdapterSpec, tensors: Tensors) -> int | None:
    """As Kind.row_grain, of an adapter with its magnitudes."""
    decomposition = decomposition_of(tensors)
    if decomposition is not None and not decomposition.goes_by_rows(spec, tensors):
        return None
    return named(spec.kind).row_grain(tensors)
