"""LyCORIS diag-OFT before oft_blocks: oft_diag [n, b, b] are the rotations themselves, alpha says
nothing.

Source: A1111's reader of both (extensions-builtin/Lora/network_oft.py, is_R); the library no longer
writes it.
"""

from __future__ import annotations

from ..kind import InStock, ModuleShape, Shapes, Tensors, roles
from ..lazy import rotations, torch
from ..rotation import Rotation, square_blocks
from ..spec import AdapterSpec


class OldOFT(Rotation):
    """One rotation for each block of output rows, as it is."""

    name = "oft_diag"
    needs = (roles("oft_diag"),)
    takes = roles("alpha rescale")
    precedence = 15
    stock = InStock("OFT (LyCORIS, oft_diag)")

    def shape(self, shapes: Shapes) -> ModuleShape:
        return square_blocks(shapes, "oft_diag")

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        return rotations.turn_outputs(
            spec, tensors, weight, rotations.square_blocks(tensors, "oft_diag", 3), strength
        )


KINDS = (OldOFT(),)
