"""What the kinds that turn outputs or inputs of a weight have in common; their mathematics is in
`rotations`.
"""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING

from ..messages import message
from .kind import DERIVED, TURNED, Kind, Measured, Misfit, ModuleShape, Shapes, shaped
from .lazy import rotations
from .spec import AdapterSpec

if TYPE_CHECKING:
    from .tensors import Tensors


class Rotation(Kind):
    """A kind whose effect is an orthogonal matrix on the outputs, or on the inputs, of the whole
    module.
    """

    linear = False
    on_inputs = False
    butterfly = False  # its stages reach across blocks
    title = "OFT"

    @property
    def bypass(self) -> str:
        """On the outputs it needs no weight."""
        return DERIVED if self.on_inputs else TURNED

    def block_roles(self, tensors: Tensors) -> list[str]:
        """The roles that make the rotation, without a rescale."""
        return [role for role in tensors if any(role in need for need in self.needs)]

    def block_sizes(self, blocks: Tensors, side: int) -> list[tuple[int, int]]:
        """(size, number) of the blocks, part by part; each part of a fused module has its own."""
        return [
            (blocks[role].shape[-1], blocks[role].shape[0])
            for role in sorted(blocks, key=number_of)
        ]

    def row_grain(self, tensors: Tensors) -> int | None:
        if self.on_inputs or self.butterfly:
            return 1 if self.on_inputs and not self.butterfly else None
        blocks = {role: tensors[role] for role in self.block_roles(tensors)}
        return lcm(*(size for size, _ in self.block_sizes(blocks, 0)))

    def measured(self, spec: AdapterSpec, tensors: Tensors, out: int, columns: int) -> Measured:
        return Measured(
            message("adapters.rotation_measured"),
            rotations.departure(self, spec, tensors, columns if self.on_inputs else out),
        )


def number_of(role: str) -> int:
    """The number at a role's end."""
    number = role.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def square_blocks(shapes: Shapes, role: str) -> ModuleShape:
    """The module that square blocks on its outputs were made for."""
    blocks = shapes[role]
    if len(blocks) not in (3, 4) or blocks[-1] != blocks[-2]:
        raise Misfit(message("adapters.needs_square_blocks", tensor=shaped(**{role: blocks})))
    return ModuleShape(blocks[-3] * blocks[-1], None)
