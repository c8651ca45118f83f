"""OneTrainer OFT on the inputs (modules/module/LoRAModule.py OFTModule, oft_utils.py): always five
Cayley-Neumann terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from ..kind import InStock, Settings, Tensors, ToldShapes
from ..lazy import helpers, rotations, torch
from ..spec import AdapterSpec
from .oft_peft import PeftOFT


class OneTrainerOFT(PeftOFT):
    """As PEFT's, but a convolution is turned with R and not with its transpose.

    With `scaled_oft` among the tensors the packed values are divided by 2 * sqrt(b - 1) first.
    """

    name = "oft_onetrainer"
    needs = ()
    variant_of = "oft_peft"
    metadata = ("ot_branch", "ot_revision")
    settings = ()
    stock = InStock("OFT (OneTrainer)")

    def claims(self, shapes: ToldShapes, metadata: Mapping[str, str], settings: Settings) -> bool:
        return bool(metadata.keys() & set(self.metadata)) or "scaled_oft" in shapes

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        skew = rotations.unpack_skew(helpers.take(tensors, "oft_R"))
        if "scaled_oft" in tensors:
            skew = skew / (2 * sqrt(skew.shape[-1] - 1))
        turning = rotations.cayley_neumann(skew, 5)
        return helpers.toward(
            weight, rotations.rotate_inputs(weight, turning, transpose=weight.dim() == 2), strength
        )


KINDS = (OneTrainerOFT(),)
