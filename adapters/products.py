"""Products of an adapter's factors: up and down, a Tucker core between them; as one matrix, or as
the factors themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..messages import message
from .kind import Product, shaped
from .spec import AdapterError
from .tensors import Tensors, describe, multiply, take, take_matrix


def tucker(core: Tensor, output: Tensor, inputs: Tensor, roles: tuple[str, str, str]) -> Tensor:
    """core [ro, ri, *kernel], output [ro, out], inputs [ri, in] -> [out, in, *kernel]."""
    if (
        core.dim() < 3
        or output.dim() != 2
        or inputs.dim() != 2
        or core.shape[:2] != (output.shape[0], inputs.shape[0])
    ):
        shapes = (core.shape, output.shape, inputs.shape)
        raise AdapterError(
            message(
                "adapters.not_a_tucker_product",
                tensors=shaped(**dict(zip(roles, shapes, strict=True))),
            )
        )
    return torch.einsum("pq...,po,qi->oi...", core, output, inputs)


def low_rank(
    tensors: Tensors, up_role: str = "up", down_role: str = "down", mid_role: str = "mid"
) -> Tensor:
    """up [out, r, ...] times down [r, in, *kernel], through the Tucker core mid [r, r, *kernel]
    where there is one.
    """
    up, down = take_matrix(tensors, up_role), take(tensors, down_role)
    if mid_role in tensors:
        return tucker(
            take(tensors, mid_role),
            up.T,
            take_matrix(tensors, down_role),
            (mid_role, up_role, down_role),
        )
    return multiply(up, take_matrix(tensors, down_role), (up_role, down_role)).reshape(
        up.shape[0], *down.shape[1:]
    )


def matrix(tensors: Tensors, role: str, dtype: torch.dtype) -> Tensor:
    """take_matrix in another dtype, in one step: the copies are most of the time
    of a large factor.
    """
    if role not in tensors or tensors[role].dim() < 2:
        return take_matrix(tensors, role)
    return tensors[role].flatten(1).to(dtype)


def through_core(tensors: Tensors, role: str, inputs: Tensor) -> Tensor:
    """inputs [r, in] through a Tucker core [p, r, *kernel], where there is one:
    [p, in * kernel].
    """
    if role not in tensors:
        return inputs
    core = take(tensors, role).to(inputs.dtype)
    if core.dim() < 3 or core.shape[1] != inputs.shape[0]:
        raise AdapterError(
            message(
                "adapters.core_does_not_fit",
                core=shaped(**{role: core.shape}),
                inputs=list(inputs.shape),
                tensors=describe(tensors),
            )
        )
    return torch.einsum("pq...,qi->pi...", core, inputs).flatten(1)


def pair(
    tensors: Tensors, outer: str, inner: str, core: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """outer [rows, r] @ inner [r, columns], or with a Tucker core outer [r, rows] and inner [r,
    inputs].
    """
    up, down = matrix(tensors, outer, dtype), matrix(tensors, inner, dtype)
    if core in tensors:
        up, down = up.T, through_core(tensors, core, down)
    if up.shape[1] != down.shape[0]:
        multiply(up, down, (outer, inner))
    return up, down


def whole(delta: Tensor) -> Product:
    """A delta of any shape as a matrix; a vector is one column."""
    return Product(None, delta.reshape(delta.shape[0] if delta.dim() else 1, -1))
