"""PEFT OFT on the inputs (oft/layer.py, merge): W' = W R^T block by block, a convolution as [out,
in * kernel].
"""

from __future__ import annotations

from math import isqrt

from ..kind import InStock, Tensors, roles
from ..lazy import helpers, rotations, torch
from ..rotation import Rotation
from ..setting import BOOLEAN, INTEGER, NUMBER, Setting
from ..spec import AdapterSpec

MAX_TERMS = 64  # of a series whose terms get smaller by orders of magnitude; PEFT's default is 5


class PeftOFT(Rotation):
    """oft_R [blocks, b(b-1)/2], or [1, ...] shared by all blocks.

    Settings as in OFTConfig: use_cayley_neumann (default True, the config's own),
    num_cayley_neumann_terms (5), coft (False), eps (6e-5). The exact form is (I - Q)(I + Q)^-1, the
    inverse of what the series approximates: PEFT's own definition.
    """

    name = "oft_peft"
    needs: tuple[frozenset[str], ...] = (roles("oft_R"),)
    takes = roles("scaled_oft alpha")
    silent = roles("scaled_oft")
    precedence = 17
    on_inputs = True
    # PEFT: tuners/oft/config.py
    settings: tuple[Setting, ...] = (
        Setting("use_cayley_neumann", BOOLEAN, True),
        Setting("num_cayley_neumann_terms", INTEGER, 5, 1, MAX_TERMS),
        Setting("coft", BOOLEAN, False),
        Setting("eps", NUMBER, 6e-5, 0, 1e6),
    )
    stock = InStock("OFT (PEFT)")

    def block_roles(self, tensors: Tensors) -> list[str]:
        return [role for role in tensors if role in ("oft_R", "scaled_oft")]

    def block_sizes(self, blocks: Tensors, side: int) -> list[tuple[int, int]]:
        size = (1 + isqrt(1 + 8 * blocks["oft_R"].shape[-1])) // 2
        return [(size, side // size)]

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        skew = rotations.unpack_skew(helpers.take(tensors, "oft_R"))
        if spec.option("coft", False):
            skew = rotations.project(skew, spec.option("eps", 6e-5))
        if spec.option("use_cayley_neumann", True):
            turning = rotations.cayley_neumann(skew, spec.option("num_cayley_neumann_terms", 5))
        else:
            turning = rotations.cayley(-skew)
        return helpers.toward(
            weight, rotations.rotate_inputs(weight, turning, transpose=True), strength
        )


KINDS = (PeftOFT(),)
