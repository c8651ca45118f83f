"""Small helpers on an adapter's tensors: fetch by role in fp32, check shapes, cut rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..messages import joined, message
from .kind import Kind, shaped
from .rows import Rows
from .spec import AdapterError, AdapterSpec

Tensors = Mapping[str, Tensor]
MAY_BE_EMPTY = ("bias_", "vblora_weights_")  # how the roles begin


def describe(tensors: Tensors) -> str:
    """The roles with their shapes, for an error's text."""
    return shaped(**{role: tensor.shape for role, tensor in sorted(tensors.items())})


def check_not_empty(tensors: Tensors) -> None:
    """AdapterError when a tensor has no elements; only a sparse residual and the weights of one
    vector (VB-LoRA) may be without any.
    """
    empty = [
        role
        for role, tensor in tensors.items()
        if not tensor.numel() and not role.startswith(MAY_BE_EMPTY)
    ]
    if empty:
        raise AdapterError(
            message("adapters.empty_tensors", roles=", ".join(empty), tensors=describe(tensors))
        )


def take(tensors: Tensors, *roles: str) -> Tensor:
    """The fp32 tensor of the first of `roles` that is there; AdapterError when none is."""
    for role in roles:
        if role in tensors:
            return tensors[role].to(torch.float32)
    raise _missing(tensors, roles)


def size(tensors: Tensors, dimension: int, *roles: str) -> int:
    """The size of the first of `roles` that is there along `dimension`, without a cast;
    AdapterError when none is.
    """
    for role in roles:
        if role in tensors:
            if tensors[role].dim() <= dimension:
                raise AdapterError(
                    message(
                        "adapters.too_few_dimensions",
                        tensor=shaped(**{role: tensors[role].shape}),
                        tensors=describe(tensors),
                    )
                )
            return tensors[role].shape[dimension]
    raise _missing(tensors, roles)


def _missing(tensors: Tensors, roles: Sequence[str]) -> AdapterError:
    return AdapterError(
        message("adapters.tensor_missing", roles=joined(roles, "or"), tensors=describe(tensors))
        if tensors
        else message("adapters.only_tensor_missing", roles=joined(roles, "or"))
    )


def take_scalar(tensors: Tensors, role: str) -> Tensor:
    """The single number of `role` as a 0-d fp32 tensor; its value stays on its device."""
    tensor = take(tensors, role)
    if tensor.numel() != 1:
        raise AdapterError(
            message("adapters.not_one_number", tensor=shaped(**{role: tensor.shape}))
        )
    return tensor.reshape(())


def take_matrix(tensors: Tensors, role: str) -> Tensor:
    """The tensor of `role` with everything behind its first dimension flattened."""
    tensor = take(tensors, role)
    if tensor.dim() < 2:
        raise AdapterError(message("adapters.needs_matrix", tensor=shaped(**{role: tensor.shape})))
    return tensor.flatten(1)


def multiply(left: Tensor, right: Tensor, roles: tuple[str, str]) -> Tensor:
    """left @ right, with an AdapterError that names the roles when the inner dimensions differ."""
    if left.shape[-1] != right.shape[-2]:
        raise AdapterError(
            message(
                "adapters.different_ranks",
                tensors=shaped(**{roles[0]: left.shape, roles[1]: right.shape}),
            )
        )
    return left @ right


def fit(delta: Tensor, shape: Sequence[int], tensors: Tensors, flattened: bool = False) -> Tensor:
    """`delta` in the weight's shape.

    Only trailing ones may differ (a linear layer and a 1x1 convolution); with `flattened` the
    adapter's own layout is [out, in * kernel], so that a matrix stands for any kernel.
    """
    shape = tuple(shape)
    same = _without_trailing_ones(delta.shape) == _without_trailing_ones(shape)
    if flattened and delta.dim() == 2:
        same = len(shape) >= 2 and tuple(delta.shape) == (shape[0], math.prod(shape[1:]))
    if not same:
        raise AdapterError(
            message(
                "adapters.shapes_differ",
                delta=list(delta.shape),
                weight=list(shape),
                tensors=describe(tensors),
            )
        )
    return delta.reshape(shape)


def _without_trailing_ones(shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def not_valid_for(title: str, shape: Sequence[int], tensors: Tensors) -> AdapterError:
    """Says that a kind's tensors are none for a weight of this shape."""
    about = {"kind": title, "weight": list(shape), "tensors": describe(tensors)}
    return AdapterError(message("adapters.not_valid_for", **about))


def narrow_roles(tensors: Tensors, start: int, length: int, **dimensions: int) -> Tensors:
    """`tensors` with the roles named in `dimensions` cut to the output rows, which lie along the
    given dimension.
    """
    cut = {}
    for role, dimension in dimensions.items():
        if role in tensors:
            if not 0 <= start <= start + length <= size(tensors, dimension, role):
                raise AdapterError(
                    message(
                        "adapters.rows_outside",
                        start=start,
                        end=start + length,
                        tensor=shaped(**{role: tensors[role].shape}),
                    )
                )
            cut[role] = tensors[role].narrow(dimension, start, length)
    return {**tensors, **cut}


def output_vector(tensor: Tensor, role: str, weight: Tensor, rows: Rows | None) -> Tensor:
    """One number per output row as [out, 1, ...], cut to `rows` of the trained module when these
    are given.
    """
    vector = tensor.flatten()
    cut = rows or Rows(0, vector.shape[0])
    if cut.end > vector.shape[0] or cut.length != weight.shape[0]:
        described, needs = shaped(**{role: tensor.shape}), list(weight.shape)
        raise AdapterError(
            message(
                "adapters.does_not_fit_rows",
                tensor=described,
                start=cut.start,
                end=cut.end,
                weight=needs,
            )
            if rows
            else message("adapters.does_not_fit_outputs", tensor=described, weight=needs)
        )
    return vector.narrow(0, *cut).reshape(-1, *[1] * (weight.dim() - 1))


def input_vector(tensor: Tensor, role: str, weight: Tensor) -> Tensor:
    """One number per input column as [1, in, 1, ...]."""
    if weight.dim() < 2 or tensor.numel() != weight.shape[1]:
        raise AdapterError(
            message(
                "adapters.does_not_fit_inputs_of",
                tensor=shaped(**{role: tensor.shape}),
                weight=list(weight.shape),
            )
        )
    return tensor.reshape(1, -1, *[1] * (weight.dim() - 2))


def toward(weight: Tensor, target: Tensor, strength: float) -> Tensor:
    """weight + strength * (target - weight); exactly `target` at strength 1."""
    return target if strength == 1 else torch.lerp(weight, target, strength)


def check_indices(indices: Tensor, shape: Sequence[int], role: str) -> None:
    """AdapterError for indices [2, n] that point outside of a weight of this shape as a matrix;
    meta tensors do not tell.
    """
    # A stray index would kill a whole CUDA context, so these rare kinds are worth the look at their
    # values.
    if indices.is_meta or not indices.numel():
        return
    if (
        indices.min() < 0
        or indices[0].max() >= shape[0]
        or indices[1].max() >= math.prod(shape[1:])
    ):
        raise AdapterError(message("adapters.indices_outside", role=role, weight=list(shape)))


def check_all_rows(spec: AdapterSpec, rows: int, title: str, weight: Tensor) -> None:
    """AdapterError where the weight is some of the `rows` output rows of a module of which the
    adapter needs all.
    """
    if spec.rows is not None and spec.rows != (0, rows):
        raise AdapterError(
            message("adapters.needs_all_rows", kind=title, weight=list(weight.shape))
        )


def factor_of(kind: Kind, spec: AdapterSpec, tensors: Tensors) -> float:
    """What the product of the file's own factors is multiplied with at strength 1 (alpha / rank or
    its like, use_scalar).
    """
    scalar = take_scalar(tensors, "scalar").item() if "scalar" in tensors else 1.0
    return scalar * kind.factor(
        spec, kind.rank({role: tensor.shape for role, tensor in tensors.items()})
    )


def needed_setting(kind: Kind, spec: AdapterSpec, name: str) -> Any:
    """The value of a setting without which the adapter means nothing; AdapterError where the spec
    has none.
    """
    value = spec.option(name)
    if value is None:
        raise AdapterError(kind.needs_settings(name))
    return value


def module_shape(spec: AdapterSpec) -> tuple[int, ...]:
    """The shape of the module, for kinds that need it."""
    shape: tuple[int, ...] | None = spec.option("shape")
    if not shape or 0 in shape:
        raise AdapterError(message("adapters.size_not_in_file", kind=spec.kind))
    return shape
