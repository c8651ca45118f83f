"""MiSS (PEFT miss/layer.py, arXiv:2409.15371): one block, added to the weight again and again along
its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...messages import message
from ..kind import (
    ADDED,
    DERIVED,
    InStock,
    Kind,
    Product,
    Settings,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    roles,
    shaped,
)
from ..lazy import helpers, torch
from ..rows import Rows
from ..spec import AdapterError, AdapterSpec


class MiSS(Kind):
    """miss_block [r, out]: W[:, j] + block[j mod r]; of "mini" [r, m], which is repeated to all
    outputs.
    """

    name, title = "miss", "MiSS"
    needs = (roles("miss_block"),)
    additive = needs_shape = True
    stock = InStock("MiSS")
    bypass = ADDED

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        up, places = self._factors(tensors, shape)
        return up[:, places].reshape(tuple(shape))

    def _factors(self, tensors: Tensors, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """[out, r], and which of its columns stands at each input."""
        block = helpers.take_matrix(tensors, "miss_block")
        if shape[0] % block.shape[1]:
            raise AdapterError(
                message(
                    "adapters.does_not_fit_outputs",
                    tensor=shaped(miss_block=block.shape),
                    weight=list(shape),
                )
            )
        places = torch.arange(torch.Size(shape[1:]).numel(), device=block.device) % block.shape[0]
        return block.T.repeat(shape[0] // block.shape[1], 1), places

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 1, "miss_block")

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        return helpers.narrow_roles(tensors, start, length, miss_block=1)

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        up, places = self._factors(tensors, helpers.module_shape(spec))
        return Product(up.to(dtype), torch.eye(up.shape[1], dtype=dtype)[:, places])

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return shapes["miss_block"][0]


class MiSSBat(Kind):
    """miss_block [out / r, r, r]: each tile X [r, r] of the weight becomes X + X B + B, B the block
    of its rows.
    """

    name, title = "miss_bat", "MiSS"
    variant_of = "miss"
    stock = MiSS.stock
    bypass = DERIVED

    def claims(self, shapes: ToldShapes, metadata: Mapping[str, str], settings: Settings) -> bool:
        return len(shapes["miss_block"] or ()) == 3

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        blocks = helpers.take(tensors, "miss_block")
        size = blocks.shape[-1] if blocks.dim() == 3 and blocks.shape[1] == blocks.shape[2] else 0
        if not size or weight.dim() < 2:
            raise AdapterError(
                message(
                    "adapters.does_not_fit_weight",
                    tensor=shaped(miss_block=blocks.shape),
                    weight=list(weight.shape),
                )
            )
        matrix, total = weight.flatten(1), blocks.shape[0] * size
        rows = spec.rows or Rows(0, total)
        if (
            rows.end > total
            or rows.length != matrix.shape[0]
            or any(number % size for number in (*rows, matrix.shape[1]))
        ):
            raise AdapterError(
                message(
                    "adapters.does_not_fit_rows",
                    tensor=shaped(miss_block=blocks.shape),
                    start=rows.start,
                    end=rows.end,
                    weight=list(weight.shape),
                )
            )
        blocks = blocks.narrow(0, rows.start // size, rows.length // size)
        tiles = matrix.reshape(-1, size, matrix.shape[1] // size, size).transpose(1, 2)
        change = tiles @ blocks[:, None] + blocks[:, None]
        return weight + strength * change.transpose(1, 2).reshape(weight.shape)


KINDS = (MiSS(), MiSSBat())
