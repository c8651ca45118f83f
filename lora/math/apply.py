"""The entry to the mathematics of adapters: what a weight becomes under one adapter at one
strength.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ...adapters.kind import Kind
from ...adapters.registry import decomposition_of, named
from ...adapters.registry import kinds as all_kinds
from ...adapters.rows import Rows
from ...adapters.spec import AdapterError, AdapterSpec
from ...adapters.tensors import Tensors, check_not_empty, describe, toward
from ...messages import message

__all__ = ["AdapterError", "AdapterSpec", "is_linear", "kinds", "patched_weight"]


def kinds() -> tuple[str, ...]:
    """All kinds of adapters that are computed, sorted."""
    return tuple(sorted({kind.name for kind in all_kinds() if not kind.refusal}))


def is_linear(spec: AdapterSpec, roles: Collection[str]) -> bool:
    """True when the effect is strength times a delta that does not depend on the weight: additive
    kinds without DoRA.

    roles: the names of the adapter's tensors. Only such adapters have `factors`, and may be added
    up or merged.
    """
    return named(spec.kind).additive and decomposition_of(roles) is None


def patched_weight(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """`weight` under the adapter, as a new fp32 tensor of its shape on its device (of the shape
    `pad_to`, with that option).

    tensors: role -> tensor on the weight's device, any floating dtype; math is fp32. weight: the
    model's, unpatched, any floating dtype; with spec.rows it is that slice of the trained module.
    strength: any number; 0 gives the weight back. Runs on meta tensors. Raises AdapterError, whose
    text names roles and shapes.
    """
    check_not_empty(tensors)
    base = _padded(weight.to(torch.float32), spec.option("pad_to"))
    columns = spec.option("columns")
    if columns is None:
        return _patched_halves(spec, tensors, base, strength)
    if base.dim() < 2 or columns > base.shape[1]:
        raise AdapterError(message("lora.no_such_inputs", shape=list(base.shape), count=columns))
    return torch.cat(
        (_patched_halves(spec, tensors, base[:, :columns], strength), base[:, columns:]), 1
    )


def _patched_halves(spec: AdapterSpec, tensors: Tensors, base: Tensor, strength: float) -> Tensor:
    if not spec.swap:
        return _patched(spec, tensors, base, strength)
    if base.shape[0] % 2:
        raise AdapterError(message("lora.weight_has_odd_rows", shape=list(base.shape)))
    half = base.shape[0] // 2
    return _patched(spec, tensors, base.roll(half, 0), strength).roll(half, 0)


def _patched(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    kind = _computable(spec.kind)
    if not kind.additive:
        return kind.patched(spec, tensors, weight, strength)
    change = _rows_of_delta(kind, spec, tensors, weight)
    decomposition = decomposition_of(tensors)
    if decomposition is None:
        return torch.add(weight, change, alpha=strength)
    cut = spec.rows is not None and spec.rows.unless_all(kind.count_rows(tensors)) is not None
    return toward(weight, decomposition.decomposed(spec, tensors, weight, change, cut), strength)


def _computable(name: str) -> Kind:
    kind = named(name)
    if kind.refusal:
        raise AdapterError(kind.refusal)
    return kind


def _rows_of_delta(kind: Kind, spec: AdapterSpec, tensors: Tensors, weight: Tensor) -> Tensor:
    if spec.rows is None:
        return kind.delta(spec, tensors, tuple(weight.shape))
    rows, total = spec.rows, kind.count_rows(tensors)
    if rows.length != weight.shape[0] or not Rows(0, total).covers(rows):
        raise AdapterError(
            message(
                "lora.rows_do_not_fit",
                first=rows.start,
                last=rows.end,
                total=total,
                shape=list(weight.shape),
                tensors=describe(tensors),
            )
        )
    cut = kind.narrow(tensors, *rows)
    if cut is not None:
        return kind.delta(spec, cut, tuple(weight.shape))
    return kind.delta(spec, tensors, (total, *weight.shape[1:])).narrow(0, *rows)


def _padded(weight: Tensor, shape: Sequence[int] | None) -> Tensor:
    if shape is None or tuple(shape) == tuple(weight.shape):
        return weight
    if len(shape) != weight.dim() or any(
        new < old for new, old in zip(shape, weight.shape, strict=True)
    ):
        raise AdapterError(message("lora.cannot_grow", shape=list(weight.shape), size=list(shape)))
    result = weight.new_zeros(tuple(shape))
    result[tuple(slice(0, size) for size in weight.shape)] = weight
    return result
