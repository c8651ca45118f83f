"""The adapters whose effect is a function of the weight, apart from the rotations: GLoRA, both (IA)^3, absolute values."""

from __future__ import annotations

import torch
from torch import Tensor

from .additive import low_rank
from .spec import AdapterError, AdapterSpec, patches
from .tensors import Tensors, describe, fit, input_vector, narrow_roles, output_vector, size, take, take_matrix, take_scalar, toward


@patches("glora")
def glora(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """GLoRA: W + strength * alpha / rank * (W a1 a2 + b1 b2) (LyCORIS modules/glora.py, arXiv:2306.07967).

    a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in, *kernel], bm a Tucker core. Old files have the factors the other way
    round (a1 [r, in], a2 [in, r], b1 [r, in], b2 [out, r]); the shapes tell.
    """
    outer, inner = _glora_order(tensors, weight)
    a_left, a_right = take_matrix(tensors, outer[0]), take_matrix(tensors, inner[0])
    b_tensors = narrow_roles(tensors, *spec.rows, **{outer[1]: 0}) if spec.rows else tensors
    added = fit(low_rank(b_tensors, outer[1], inner[1], "bm"), weight.shape, b_tensors)
    mixed = torch.einsum("oi...,ir->or...", weight, a_left)
    added = added + torch.einsum("or...,ri->oi...", mixed, a_right)
    return weight + (strength * spec.scale_for(a_right.shape[0])) * added


def _glora_order(tensors: Tensors, weight: Tensor) -> tuple[tuple[str, str], tuple[str, str]]:
    inputs = weight.shape[1] if weight.dim() > 1 else -1
    for outer, inner in ((("a1", "b1"), ("a2", "b2")), (("a2", "b2"), ("a1", "b1"))):
        sizes = size(tensors, 0, outer[0]), size(tensors, 1, inner[0]), size(tensors, 1, inner[1])
        ranks = size(tensors, 1, outer[0]) == size(tensors, 0, inner[0]) and size(tensors, 1, outer[1]) == size(tensors, 0, inner[1])
        if ranks and sizes == (inputs,) * 3:
            return outer, inner
    raise AdapterError(f"these tensors do not make a GLoRA of a weight {list(weight.shape)}: {describe(tensors)}")


@patches("ia3")
def ia3(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """LyCORIS (IA)^3: W * (1 + strength * w), w per output, or per input with on_input (LyCORIS modules/ia3.py).

    ia3_weight (also called weight) [n], or [1, n, 1, ...] of a convolution. on_input is an option of the spec or the
    file's own 0-d tensor; it is needed only when the layer is square.
    """
    vector = take(tensors, "ia3_weight", "weight")
    fits_inputs, fits_outputs = _sides(spec, vector, weight)
    # The shape decides; what the file says of itself is needed for square layers only.
    on_input = spec.option("on_input") if fits_inputs and fits_outputs else fits_inputs
    if on_input is not None:
        return weight * (1 + strength * _spread(spec, vector, weight, bool(on_input)))
    if "on_input" not in tensors:
        raise AdapterError(f"on_input is needed to know which side of {list(weight.shape)} is scaled ({describe(tensors)})")
    inputs, outputs = (_spread(spec, vector, weight, side).expand(weight.shape) for side in (True, False))
    return weight * (1 + strength * torch.where(take_scalar(tensors, "on_input") != 0, inputs, outputs))


def _sides(spec: AdapterSpec, vector: Tensor, weight: Tensor) -> tuple[bool, bool]:
    """Whether the vector fits the inputs and the outputs; of a row slice the trained module's height is not known."""
    fits_inputs = weight.dim() > 1 and vector.numel() == weight.shape[1]
    if spec.rows is None:
        return fits_inputs, vector.numel() == weight.shape[0]
    return fits_inputs, vector.numel() >= sum(spec.rows)


def _spread(spec: AdapterSpec, vector: Tensor, weight: Tensor, on_input: bool, role: str = "ia3_weight") -> Tensor:
    return input_vector(vector, role, weight) if on_input else output_vector(vector, role, weight, spec.rows)


@patches("ia3_peft")
def ia3_peft(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """PEFT (IA)^3: W * (1 + strength * (l - 1)), l per output, or per input of a feed-forward layer (PEFT ia3/layer.py).

    ia3_l is [out, 1] or [1, in] of a linear layer, [1, n, 1, 1] of a convolution (square ones need the option feedforward).
    Per output it scales the bias too (weight [out]); per input it leaves the bias alone.
    """
    vector = take(tensors, "ia3_l")
    feedforward = spec.option("feedforward", _is_feedforward(vector, weight))
    if feedforward is None:
        raise AdapterError(
            f"ia3_l {list(vector.shape)} fits both sides of {list(weight.shape)}: feedforward_modules of adapter_config.json must tell"
        )
    if weight.dim() == 1 and feedforward:
        return weight.clone()
    return weight * (1 + strength * (_spread(spec, vector, weight, bool(feedforward), "ia3_l") - 1))


def _is_feedforward(vector: Tensor, weight: Tensor) -> bool | None:
    if vector.dim() == 2:
        return vector.shape[0] == 1 and vector.shape[1] != 1
    if weight.dim() < 2:
        return False
    fits = {weight.shape[1]: True, weight.shape[0]: False}
    return fits.get(vector.numel(), False) if len(fits) == 2 else None


@patches("set")
def set_weight(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """The file's own value in place of the model's: W + strength * (set_weight - W)."""
    value = take(narrow_roles(tensors, *spec.rows, set_weight=0) if spec.rows else tensors, "set_weight")
    return toward(weight, fit(value, weight.shape, tensors), strength).clone()
