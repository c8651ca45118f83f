"""LyCORIS BOFT on the outputs (functional/boft.py): oft_blocks [m, n, b, b], rescale, alpha =
constraint.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...messages import joined, message
from ..kind import InStock, Settings, Tensors, ToldShapes, shaped
from ..lazy import helpers, rotations, torch
from ..spec import AdapterError, AdapterSpec
from .oft import LimitedRotation


class BOFT(LimitedRotation):
    """Stage i turns pairs of rows that lie 2^i * b / 2 apart.

    The strength moves every stage's rotation towards the identity, as LyCORIS does, and `rescale`
    towards one.
    """

    name, title = "boft", "BOFT"
    variant_of = "oft"
    butterfly = True
    stock = InStock("BOFT", "adapters.stock_squares")

    def claims(self, shapes: ToldShapes, metadata: Mapping[str, str], settings: Settings) -> bool:
        return len(shapes["oft_blocks"] or ()) == 4

    def block_roles(self, tensors: Tensors) -> list[str]:
        return ["oft_blocks"]

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        blocks = rotations.square_blocks(tensors, "oft_blocks", 4)
        stages, count, size, _ = blocks.shape
        if count * size != weight.shape[0] or size % 2:
            fault = message(
                "adapters.cannot_turn",
                tensor=shaped(oft_blocks=blocks.shape),
                weight=list(weight.shape),
            )
            if spec.rows:
                cut = message("adapters.rows_cannot_be_cut", kind=self.title, rows=list(spec.rows))
                fault = joined((fault, cut), "semicolon")
            raise AdapterError(fault)
        turning = rotations.limited_rotations(blocks, spec)
        identity = torch.eye(size, device=turning.device)
        turned = weight.flatten(1)
        for stage in range(stages):
            rotation = helpers.toward(identity, turning[stage], strength)
            turned = rotations.butterfly(turned, rotation, 2**stage * (size // 2))
        turned = turned.reshape(weight.shape)
        if "rescale" in tensors:
            rescale = helpers.output_vector(
                helpers.take(tensors, "rescale"), "rescale", weight, spec.rows
            )
            turned = turned * (1 + strength * (rescale - 1))
        return turned


KINDS = (BOFT(),)
