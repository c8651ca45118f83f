"""The adapters that add a delta: LoRA, LoHa, LoKr, differences and biases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .spec import AdapterError, AdapterSpec, additive
from .tensors import Tensors, describe, fit, multiply, narrow_roles, size, take, take_matrix, take_scalar


def tucker(core: Tensor, output: Tensor, inputs: Tensor, roles: tuple[str, str, str]) -> Tensor:
    """core [ro, ri, *kernel], output [ro, out], inputs [ri, in] -> [out, in, *kernel]."""
    if core.dim() < 3 or output.dim() != 2 or inputs.dim() != 2 or core.shape[:2] != (output.shape[0], inputs.shape[0]):
        shapes = ", ".join(f"{role} {list(tensor.shape)}" for role, tensor in zip(roles, (core, output, inputs), strict=True))
        raise AdapterError(f"these do not make a Tucker product: {shapes}")
    return torch.einsum("pq...,po,qi->oi...", core, output, inputs)


def low_rank(tensors: Tensors, up_role: str = "up", down_role: str = "down", mid_role: str = "mid") -> Tensor:
    """up [out, r, ...] times down [r, in, *kernel], through the Tucker core mid [r, r, *kernel] where there is one."""
    up, down = take_matrix(tensors, up_role), take(tensors, down_role)
    if mid_role in tensors:
        return tucker(take(tensors, mid_role), up.T, take_matrix(tensors, down_role), (mid_role, up_role, down_role))
    return multiply(up, take_matrix(tensors, down_role), (up_role, down_role)).reshape(up.shape[0], *down.shape[1:])


@additive(
    "lora",
    count_rows=lambda tensors: size(tensors, 0, "up"),
    # The sparse residual has rows of its own; it is rare enough for the dense way.
    narrow=lambda tensors, start, length: None if "bias_values" in tensors else narrow_roles(tensors, start, length, up=0),
)
def lora(spec: AdapterSpec, tensors: Tensors, shape: Sequence[int]) -> Tensor:
    """LoRA and LoCon: alpha / rank * up @ down (arXiv:2106.09685; LyCORIS functional/locon.py for the Tucker core).

    down [r, in, *kernel], up [out, r, 1, ...], mid [r, r, *kernel] with down [r, in, 1, ...]. `scalar` is LyCORIS'
    use_scalar of files that do not have it folded into up. bias_* is the sparse residual of a LyCORIS extraction, which
    its readers scale along with the product.
    """
    rank = size(tensors, 0, "down")
    scaled = {**tensors, "up": take(tensors, "up") * spec.scale_for(rank)}
    delta = fit(low_rank(scaled), shape, tensors)
    if "scalar" in tensors:
        delta = delta * take_scalar(tensors, "scalar")
    if "bias_values" in tensors:
        delta = delta + spec.scale_for(rank) * sparse_residual(tensors, shape)
    return delta


def sparse_residual(tensors: Tensors, shape: Sequence[int]) -> Tensor:
    """bias_indices [2, n] into the weight as [out, in * kernel], bias_values [n] (LyCORIS utils, extract with use_bias)."""
    values, indices = take(tensors, "bias_values"), tensors.get("bias_indices")
    if indices is None or tuple(indices.shape) != (2, *values.shape):
        raise AdapterError(f"bias_indices and bias_values do not belong together ({describe(tensors)})")
    residual = values.new_zeros(tuple(shape)).flatten(1)
    row, column = indices.long().unbind(0)
    check_residual(indices, shape)
    return residual.index_put((row, column), values, accumulate=True).reshape(tuple(shape))


def check_residual(indices: Tensor, shape: Sequence[int]) -> None:
    """AdapterError where a sparse residual points outside of a module's weight of this shape; meta tensors do not tell."""
    # A stray index would kill a whole CUDA context, so this rare kind is worth the look at its values.
    if indices.is_meta or not indices.numel():
        return
    if indices.min() < 0 or indices[0].max() >= shape[0] or indices[1].max() >= math.prod(shape[1:]):
        raise AdapterError(f"bias_indices point outside of a weight {list(shape)}")


def hadamard_half(tensors: Tensors, half: int) -> Tensor:
    """One factor of a LoHa: a @ b, or through the core t."""
    a, b, core = (f"hada_w{half}_a", f"hada_w{half}_b", f"hada_t{half}")
    if core in tensors:
        return tucker(take(tensors, core), take(tensors, a), take(tensors, b), (core, a, b))
    return multiply(take_matrix(tensors, a), take_matrix(tensors, b), (a, b))


def _loha_output_dimension(tensors: Tensors) -> int:
    return 1 if "hada_t1" in tensors else 0


def _narrow_loha(tensors: Tensors, start: int, length: int) -> Tensors:
    dimensions = {f"hada_w{half}_a": int(f"hada_t{half}" in tensors) for half in (1, 2)}
    return narrow_roles(tensors, start, length, **dimensions)


@additive(
    "loha",
    count_rows=lambda tensors: size(tensors, _loha_output_dimension(tensors), "hada_w1_a"),
    narrow=_narrow_loha,
)
def loha(spec: AdapterSpec, tensors: Tensors, shape: Sequence[int]) -> Tensor:
    """LoHa: alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b), elementwise in the middle (arXiv:2108.06098; LyCORIS loha.py).

    a [out, r], b [r, in * kernel]; with Tucker cores t [r, r, *kernel]: a [r, out], b [r, in]. Rank = rows of w1_b.
    """
    first, second = hadamard_half(tensors, 1), hadamard_half(tensors, 2)
    if first.shape != second.shape:
        raise AdapterError(f"the two halves of the LoHa differ: {list(first.shape)} and {list(second.shape)} ({describe(tensors)})")
    product = first.mul_(second).mul_(spec.scale_for(size(tensors, 0, "hada_w1_b")))
    if "scalar" in tensors:
        product = product * take_scalar(tensors, "scalar")
    return fit(product, shape, tensors, flattened=True)


def kronecker_half(tensors: Tensors, half: int) -> Tensor:
    """One factor of a LoKr: full, a @ b, or (only the second) through the core t2."""
    full, a, b = (f"lokr_w{half}", f"lokr_w{half}_a", f"lokr_w{half}_b")
    if full in tensors:
        return take(tensors, full)
    if half == 2 and "lokr_t2" in tensors:
        return tucker(take(tensors, "lokr_t2"), take(tensors, a), take(tensors, b), ("lokr_t2", a, b))
    return multiply(take_matrix(tensors, a), take_matrix(tensors, b), (a, b))


def lokr_rank(tensors: Tensors) -> int | None:
    """The inner dimension of the factor that is decomposed; None when both are full, and alpha means nothing."""
    for role in ("lokr_w2_b", "lokr_w1_b"):
        if role in tensors:
            return size(tensors, 0, role)
    return None


def _kronecker_rows(tensors: Tensors, half: int) -> int:
    full = f"lokr_w{half}"
    transposed = full not in tensors and half == 2 and "lokr_t2" in tensors
    return size(tensors, 1 if transposed else 0, full, f"{full}_a")


def _narrow_lokr(tensors: Tensors, start: int, length: int) -> Tensors | None:
    block = _kronecker_rows(tensors, 2)
    if start % block or length % block:
        return None
    return narrow_roles(tensors, start // block, length // block, lokr_w1=0, lokr_w1_a=0)


@additive(
    "lokr",
    count_rows=lambda tensors: _kronecker_rows(tensors, 1) * _kronecker_rows(tensors, 2),
    narrow=_narrow_lokr,
)
def lokr(spec: AdapterSpec, tensors: Tensors, shape: Sequence[int]) -> Tensor:
    """LoKr: scale * kron(w1, w2) (LyCORIS lokr.py, arXiv:2309.14859).

    w1 [a, c], w2 [b, d, *kernel]; each may be w_a [rows, r] @ w_b [r, columns * kernel]; the core lokr_t2 [r, r, *kernel]
    goes with w2_a [r, b], w2_b [r, d]. The scale is alpha / rank only when a factor is decomposed, else 1 (LyCORIS sets
    alpha = dim then, AI-Toolkit a huge number); PEFT scales always, which is `spec.scale`.
    """
    rank = lokr_rank(tensors)
    scale = spec.scale_for(rank) if rank else (1.0 if spec.scale is None else spec.scale)
    first, second = kronecker_half(tensors, 1), kronecker_half(tensors, 2)
    if first.dim() != 2 or second.dim() < 2:
        raise AdapterError(f"these do not make a Kronecker product: {describe(tensors)}")
    if "scalar" in tensors:
        first = first * take_scalar(tensors, "scalar")
    first = (first * scale).reshape(*first.shape, *[1] * (second.dim() - 2))
    return fit(torch.kron(first, second.contiguous()), shape, tensors, flattened=True)


DIFFERENCES = ("diff", "diff_b", "w_norm", "b_norm")


def _narrow_first_dimension(tensors: Tensors, start: int, length: int) -> Tensors:
    return narrow_roles(tensors, start, length, **dict.fromkeys((*DIFFERENCES, "up_bias"), 0))


@additive("diff", "norm", count_rows=lambda tensors: size(tensors, 0, *DIFFERENCES), narrow=_narrow_first_dimension)
def difference(spec: AdapterSpec, tensors: Tensors, shape: Sequence[int]) -> Tensor:
    """A full difference of a weight, norm or bias: exactly one of diff, diff_b, w_norm, b_norm. No alpha."""
    if sum(role in tensors for role in DIFFERENCES) > 1:
        raise AdapterError(f"one difference is needed for one weight, there are several: {describe(tensors)}")
    return fit(take(tensors, *DIFFERENCES), shape, tensors).clone()


@additive("bias", count_rows=lambda tensors: size(tensors, 0, "up_bias"), narrow=_narrow_first_dimension)
def up_bias(spec: AdapterSpec, tensors: Tensors, shape: Sequence[int]) -> Tensor:
    """PEFT's lora_B.bias [out] on the layer's bias: scale * up_bias, the scale being the LoRA's (PEFT lora/layer.py, merge).

    The rank is that of `down`, which has to be among the tensors when the alpha and not the scale is known.
    """
    rank = size(tensors, 0, "down") if "down" in tensors else None
    if rank is None and spec.scale is None and spec.alpha:
        raise AdapterError(f"up_bias needs the scale, or the tensor down for its rank ({describe(tensors)})")
    return fit(take(tensors, "up_bias") * spec.scale_for(rank or 1), shape, tensors)
