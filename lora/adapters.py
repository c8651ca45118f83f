"""The entry to the mathematics of adapters: what a weight becomes under one adapter at one strength."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

# Importing these registers the kinds they define.
from . import additive, rotations, scaling  # noqa: F401
from .spec import ADDITIVE, MAGNITUDES, PATCHES, AdapterError, AdapterSpec
from .tensors import Tensors, check_not_empty, describe, input_vector, output_vector, take, toward

__all__ = ["AdapterError", "AdapterSpec", "is_linear", "kinds", "patched_weight"]

# LyCORIS and OneTrainer add fp32's epsilon to the norm of a dora_scale, PEFT and AI-Toolkit add nothing to that of a magnitude.
DORA_EPSILON = {"dora_scale": torch.finfo(torch.float32).eps, "magnitude": 0.0}


def kinds() -> tuple[str, ...]:
    """All kinds of adapters, sorted."""
    return tuple(sorted({*ADDITIVE, *PATCHES}))


def is_linear(spec: AdapterSpec, roles: Collection[str]) -> bool:
    """True when the effect is strength times a delta that does not depend on the weight: additive kinds without DoRA.

    roles: the names of the adapter's tensors. Only such adapters have `factors`, and may be added up or merged.
    """
    return spec.kind in ADDITIVE and not any(role in roles for role in MAGNITUDES)


def patched_weight(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """`weight` under the adapter, as a new fp32 tensor of its shape on its device (of the shape `pad_to`, with that option).

    tensors: role -> tensor on the weight's device, any floating dtype; math is fp32. weight: the model's, unpatched, any
    floating dtype; with spec.rows it is that slice of the trained module. strength: any number; 0 gives the weight back.
    Runs on meta tensors. Raises AdapterError, whose text names roles and shapes.
    """
    check_not_empty(tensors)
    base = _padded(weight.to(torch.float32), spec.option("pad_to"))
    if not spec.swap:
        return _patched(spec, tensors, base, strength)
    if base.shape[0] % 2:
        raise AdapterError(f"the halves of a weight {list(base.shape)} cannot be exchanged: it has an odd number of rows")
    half = base.shape[0] // 2
    return _patched(spec, tensors, base.roll(half, 0), strength).roll(half, 0)


def _patched(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    if spec.kind in PATCHES:
        return PATCHES[spec.kind](spec, tensors, weight, strength)
    if spec.kind not in ADDITIVE:
        raise AdapterError(f"there is no adapter of the kind {spec.kind!r}; the kinds are {', '.join(kinds())}")
    change = _rows_of_delta(spec, tensors, weight)
    for role, epsilon in DORA_EPSILON.items():
        if role in tensors:
            scale = _magnitude(spec, tensors, role, weight)
            return toward(weight, _with_magnitude(weight + change, scale, epsilon), strength)
    return torch.add(weight, change, alpha=strength)


def _rows_of_delta(spec: AdapterSpec, tensors: Tensors, weight: Tensor) -> Tensor:
    kind = ADDITIVE[spec.kind]
    if spec.rows is None:
        return kind.delta(spec, tensors, tuple(weight.shape))
    start, length = spec.rows
    total = kind.count_rows(tensors)
    if length != weight.shape[0] or start < 0 or start + length > total:
        raise AdapterError(
            f"rows {start} to {start + length} of {total} were asked for, the weight is {list(weight.shape)} ({describe(tensors)})"
        )
    cut = kind.narrow(tensors, start, length)
    if cut is not None:
        return kind.delta(spec, cut, tuple(weight.shape))
    return kind.delta(spec, tensors, (total, *weight.shape[1:])).narrow(0, start, length)


def _magnitude(spec: AdapterSpec, tensors: Tensors, role: str, weight: Tensor) -> Tensor:
    """The DoRA magnitude, broadcastable against the weight: [out, 1, ...] or [1, in, 1, ...].

    A dora_scale says by its shape which it is (LyCORIS wd_on_out, OneTrainer's output axis); a magnitude is always per output
    ([out], or PEFT's [1, out, 1, 1]).
    """
    tensor = take(tensors, role)
    per_output = role == "magnitude" or tensor.dim() < 2 or tensor.shape[0] == tensor.numel()
    if per_output:
        return output_vector(tensor, role, weight, spec.rows)
    if spec.rows is not None and spec.rows != (0, ADDITIVE[spec.kind].count_rows(tensors)):
        raise AdapterError(
            f"{role} {list(tensor.shape)} holds a magnitude per input of a module with more rows than the weight"
            f" {list(weight.shape)}: its norm needs all of them, which a row slice does not have"
        )
    return input_vector(tensor, role, weight)


def _with_magnitude(direction: Tensor, magnitude: Tensor, epsilon: float) -> Tensor:
    """DoRA (arXiv:2402.09353): m * V / |V|, the norm taken over all the dimensions along which the magnitude is one number."""
    along = [dimension for dimension in range(direction.dim()) if magnitude.shape[dimension] == 1]
    norm = torch.linalg.vector_norm(direction, dim=along, keepdim=True)
    # A row of zeros has no direction; without the guard it would be 0 / 0.
    norm = norm + epsilon if epsilon else norm.clamp(min=torch.finfo(torch.float32).tiny)
    return direction * (magnitude / norm)


def _padded(weight: Tensor, shape: Sequence[int] | None) -> Tensor:
    if shape is None or tuple(shape) == tuple(weight.shape):
        return weight
    if len(shape) != weight.dim() or any(new < old for new, old in zip(shape, weight.shape, strict=True)):
        raise AdapterError(f"a weight {list(weight.shape)} cannot grow to {list(shape)}")
    result = weight.new_zeros(tuple(shape))
    result[tuple(slice(0, size) for size in weight.shape)] = weight
    return result
