"""PEFT BOFT on the inputs (boft/layer.py, get_delta_weight and merge): W' = boft_s * W M^T, M the product of the stages."""

from __future__ import annotations

from ..kind import roles
from ..lazy import helpers, rotations
from ..rotation import Rotation
from ..spec import AdapterError


class PeftBOFT(Rotation):
    """boft_R [stages, n, b, b] with Q = (boft_R - boft_R^T) / 2 and R = (I - Q)(I + Q)^-1; boft_s per output, [out, 1] or [1, out]."""

    name, title = "boft_peft", "BOFT"
    needs = (roles("boft_R"),)
    takes = roles("boft_s")
    precedence = 18
    on_inputs = butterfly = True
    stock = "BOFT by PEFT. Stock would ignore them"

    def patched(self, spec, tensors, weight, strength):
        blocks = rotations.square_blocks(tensors, "boft_R", 4)
        stages, count, size, _ = blocks.shape
        if count * size != weight[0].numel() or (stages > 1 and size % 2):
            described = helpers.describe(tensors)
            raise AdapterError(f"boft_R {list(blocks.shape)} cannot turn the inputs of a weight {list(weight.shape)} ({described})")
        turning = rotations.cayley(-0.5 * rotations.skewed(blocks))
        turned = weight.flatten(1).T
        for stage in range(stages):
            turned = rotations.even_odd(turned, turning[stage], 2**stage * size, size // 2)
        turned = turned.T.reshape(weight.shape)
        if "boft_s" in tensors:
            turned = turned * helpers.output_vector(helpers.take(tensors, "boft_s"), "boft_s", weight, spec.rows)
        return helpers.toward(weight, turned, strength)


KINDS = (PeftBOFT(),)
