"""PEFT OFT before 0.16, with whole blocks: on the outputs up to 0.13.2, on the inputs and with a
scale in 0.14 and 0.15.

Source: peft 0.11.1, 0.13.2, 0.14.0, 0.15.2 tuners/oft/layer.py get_delta_weight, _cayley_batch,
_block_diagonal, merge.
"""

from __future__ import annotations

from ...messages import message
from ..kind import InStock, Tensors, roles
from ..lazy import helpers, rotations, torch
from ..rotation import Rotation
from ..setting import BOOLEAN, NUMBER, Setting
from ..spec import AdapterError, AdapterSpec


class OldPeftOFT(Rotation):
    """oft_r [blocks, b, b], or [1, b, b] shared by all: R = (I - Q)(I + Q)^-1 with Q = (oft_r -
    oft_r^T) / 2, W' = R^T W.

    The blocks may cover more rows than there are: of the last only the part on the module's rows
    counts, as PEFT cuts R itself.
    """

    name = "oft_peft_outputs"
    needs = (roles("oft_r"),)
    precedence = 21
    settings = (Setting("coft", BOOLEAN, False), Setting("eps", NUMBER, 6e-5, 0, 1e6))
    stock = InStock("OFT (PEFT < 0.14)")

    def block_sizes(self, blocks: Tensors, side: int) -> list[tuple[int, int]]:
        size = blocks["oft_r"].shape[-1]
        return [(size, max(side // size, 1))]

    def turning(self, spec: AdapterSpec, tensors: Tensors, size: int, edge: int) -> torch.Tensor:
        """R [n, b, b] for this many rows or columns; with coft the norm of a block is limited to
        eps * edge ** 2 / sqrt(blocks).
        """
        blocks = rotations.square_blocks(tensors, "oft_r", 3)
        count, side = blocks.shape[:2]
        if count > 1 and count * side < size:
            raise AdapterError(
                message(
                    "adapters.too_few_blocks", role="oft_r", blocks=count, size=side, total=size
                )
            )
        if spec.option("coft", False):
            blocks = rotations.project(blocks, spec.option("eps", 6e-5) * edge**2)
        rotation = rotations.cayley(-0.5 * rotations.skewed(blocks))
        return (
            rotation.expand(-(-size // side), side, side)
            if count == 1
            else rotation[: -(-size // side)]
        )

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        size = helpers.size(tensors, 1, "oft_r")
        rotation = self.turning(
            spec, tensors, spec.rows.end if spec.rows else weight.shape[0], size
        )
        if spec.rows:
            turned = rotations.rotate_outputs(
                weight, rotations.cut_blocks([rotation], spec.rows, weight)
            )
            return helpers.toward(weight, turned, strength)
        rows = weight.flatten(1)
        more = rotation.shape[0] * rotation.shape[1] - rows.shape[0]
        padded = torch.cat((rows, rows.new_zeros(more, rows.shape[1]))) if more else rows
        turned = rotations.rotate_outputs(padded, [rotation])[: rows.shape[0]]
        return helpers.toward(weight, turned.reshape(weight.shape), strength)


class OldPeftInputOFT(OldPeftOFT):
    """OFT on the inputs, kernel included: W' = oft_s * (W R^T), oft_s [out, 1]."""

    name = "oft_peft_inputs"
    needs = (roles("oft_r oft_s"),)
    precedence = 20
    on_inputs = needs_shape = True
    stock = InStock("OFT (PEFT 0.14, 0.15)")

    def block_roles(self, tensors: Tensors) -> list[str]:
        return ["oft_r"]

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        columns = weight[0].numel()
        count = max(columns // helpers.size(tensors, 1, "oft_r"), 1)
        out = (spec.option("shape") or weight.shape)[0]
        rotation = self.turning(spec, tensors, columns, -(-out // count))
        if columns % rotation.shape[-1]:
            raise AdapterError(
                message(
                    "adapters.blocks_do_not_divide_inputs",
                    role="oft_r",
                    size=rotation.shape[-1],
                    weight=list(weight.shape),
                    inputs=columns,
                )
            )
        turned = rotations.rotate_inputs(weight, rotation, transpose=True)
        if "oft_s" in tensors:
            turned = turned * helpers.output_vector(
                helpers.take(tensors, "oft_s"), "oft_s", weight, spec.rows
            )
        return helpers.toward(weight, turned, strength)


KINDS = (OldPeftInputOFT(), OldPeftOFT())
