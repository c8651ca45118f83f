"""LyCORIS diag-OFT on the outputs (modules/diag_oft.py): oft_blocks [n, b, b], rescale [out, 1,
...], alpha = constraint.
"""

from __future__ import annotations

from ..kind import LIMIT, InStock, ModuleShape, Shapes, Tensors, roles
from ..lazy import rotations, torch
from ..rotation import Rotation, square_blocks
from ..spec import AdapterSpec


class LimitedRotation(Rotation):
    """A rotation by oft_blocks whose size alpha limits."""

    alpha_is = LIMIT
    precedence = 14

    def shape(self, shapes: Shapes) -> ModuleShape:
        return square_blocks(shapes, "oft_blocks")

    def alpha_saying(
        self, spec: AdapterSpec, rank: int | None, shapes: Shapes
    ) -> tuple[float | None, float]:
        # 0 limits nothing (LyCORIS: `if self.constraint > 0`).
        return 0.0, self.factor(spec, rank)


class OFT(LimitedRotation):
    """One rotation for each block of output rows."""

    name = "oft"
    needs = (roles("oft_blocks"),)
    takes = roles("alpha rescale")
    stock = InStock("OFT", "adapters.stock_squares")

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        turning = rotations.limited_rotations(
            rotations.square_blocks(tensors, "oft_blocks", 3), spec
        )
        return rotations.turn_outputs(spec, tensors, weight, turning, strength)


KINDS = (OFT(),)
