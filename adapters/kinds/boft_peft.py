"""PEFT BOFT on the inputs (boft/layer.py, get_delta_weight and merge): W' = boft_s * W M^T, M the
product of the stages.
"""

from __future__ import annotations

from ...messages import message
from ..kind import InStock, Tensors, roles, shaped
from ..lazy import helpers, rotations, torch
from ..rotation import Rotation
from ..spec import AdapterError, AdapterSpec


class PeftBOFT(Rotation):
    """boft_R [stages, n, b, b] with Q = (boft_R - boft_R^T) / 2 and R = (I - Q)(I + Q)^-1; boft_s
    per output, [out, 1] or [1, out].

    With the option view = inputs the numbers of a convolution's weight are read as [in * kernel,
    out], as they lie in memory: up to
    0.13.2 PEFT trained that, in place of a transpose. Its boft_s [1, out] tells a convolution from
    a linear layer.
    """

    name, title = "boft_peft", "BOFT"
    needs = (roles("boft_R"),)
    takes = roles("boft_s")
    precedence = 18
    on_inputs = butterfly = True
    stock = InStock("BOFT (PEFT)")

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        blocks = rotations.square_blocks(tensors, "boft_R", 4)
        stages, count, size, _ = blocks.shape
        if count * size != weight[0].numel() or (stages > 1 and size % 2):
            described = helpers.describe(tensors)
            raise AdapterError(
                message(
                    "adapters.cannot_turn_inputs",
                    tensor=shaped(boft_R=blocks.shape),
                    weight=list(weight.shape),
                    tensors=described,
                )
            )
        scale = helpers.take(tensors, "boft_s") if "boft_s" in tensors else None
        raw = spec.option("view") == "inputs" and scale is not None and scale.shape[0] == 1
        turned = weight.reshape(-1, weight.shape[0]) if raw else weight.flatten(1).T
        turned = _turned(turned, rotations.cayley(-0.5 * rotations.skewed(blocks)))
        turned = turned if raw else turned.T
        if scale is not None:
            row = helpers.output_vector(scale, "boft_s", weight, spec.rows).flatten()
            turned = turned * (row if raw else row[:, None])
        return helpers.toward(weight, turned.reshape(weight.shape), strength)


def _turned(columns: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """[in, out] through all stages of a rotation [stages, n, b, b]."""
    size = rotation.shape[-1]
    for stage in range(rotation.shape[0]):
        columns = rotations.even_odd(columns, rotation[stage], 2**stage * size, size // 2)
    return columns


KINDS = (PeftBOFT(),)
