"""sd-scripts OFT on the outputs (networks/oft.py, oft_flux.py): oft_blocks, or oft_blocks.0 ... one
[n, b, b] per fused part.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from ...messages import message
from ..kind import (
    LIMIT,
    InStock,
    Misfit,
    ModuleShape,
    Settings,
    Shapes,
    Tensors,
    ToldShapes,
    roles,
    shaped,
)
from ..lazy import helpers, rotations, torch
from ..rotation import Rotation, number_of, square_blocks
from ..spec import AdapterSpec


class KohyaOFT(Rotation):
    """alpha times the rows of the part limits the norm of its Q."""

    name = "oft_kohya"
    needs = (roles("oft_blocks.0"),)
    takes = roles("oft_blocks.1 oft_blocks.2 oft_blocks.3 alpha")
    alpha_is = LIMIT
    precedence = 16
    variant_of = "oft"
    metadata = ("ss_network_module",)
    stock = InStock("OFT (sd-scripts)")

    def claims(self, shapes: ToldShapes, metadata: Mapping[str, str], settings: Settings) -> bool:
        return "networks.oft" in metadata.get("ss_network_module", "")

    def shape(self, shapes: Shapes) -> ModuleShape:
        if "oft_blocks" in shapes:
            return square_blocks(shapes, "oft_blocks")
        parts = {role: shape for role, shape in shapes.items() if role.startswith("oft_blocks.")}
        if any(len(shape) != 3 or shape[-1] != shape[-2] for shape in parts.values()):
            raise Misfit(message("adapters.needs_square_blocks", tensor=shaped(**parts)))
        return ModuleShape(sum(shape[0] * shape[-1] for shape in parts.values()), None)

    def block_roles(self, tensors: Tensors) -> list[str]:
        return [role for role in tensors if role.startswith("oft_blocks")]

    def compared_strength(self, spec: AdapterSpec, rank: int | None, shapes: Shapes) -> float:
        return inf if spec.alpha is None else spec.alpha

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        numbered = sorted(
            (role for role in tensors if role.startswith("oft_blocks.")), key=number_of
        )
        groups = [
            rotations.always_limited_rotations(
                rotations.square_blocks(tensors, role, 3), spec.alpha
            )
            for role in numbered or ("oft_blocks",)
        ]
        return helpers.toward(
            weight,
            rotations.rotate_outputs(weight, rotations.cut_blocks(groups, spec.rows, weight)),
            strength,
        )


KINDS = (KohyaOFT(),)
