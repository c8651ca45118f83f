"""BD-LoRA (PEFT lora/variants.py BdLoraLinearVariant, BlockDiagonalLinear): a LoRA of which one
factor is block diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...messages import message
from ..kind import (
    HostWeights,
    InStock,
    Misfit,
    ModuleShape,
    Planned,
    Product,
    Settings,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    shaped,
)
from ..lazy import helpers, products, torch
from ..rows import Rows
from ..spec import AdapterError, AdapterSpec
from .lora import LoRA


class BDLoRA(LoRA):
    """down [r, in / n] and up [out, r], or down [r, in] and up [out, r / n]: the short one holds n
    blocks of its rows.

    Only the settings tell it: a short down fits a smaller model too, and is QA-LoRA's as well.
    """

    name, title = "bdlora", "BD-LoRA"
    needs = ()
    takes = silent = frozenset()
    variant_of = "lora"
    needs_shape = True
    by_names = False
    is_pair = low_rank = False
    scale_into = ()
    stores = None
    host_class = ""
    stock = InStock("BD-LoRA", "adapters.stock_ignores_or_fails")

    def claims(self, shapes: ToldShapes, metadata: Mapping[str, str], settings: Settings) -> bool:
        return isinstance(settings.get("use_bdlora"), Mapping) and shapes.keys() <= {"up", "down"}

    def shape(self, shapes: Shapes) -> ModuleShape:
        up, down = shapes["up"], shapes["down"]
        if len(up) != 2 or len(down) != 2 or not up[1] or down[0] % up[1]:
            raise Misfit(
                message("adapters.not_valid", kind=self.title, tensors=shaped(up=up, down=down))
            )
        return ModuleShape(up[0], None if up[1] == down[0] else down[1:])

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        product = self._product(spec, tensors, shape, torch.float32)
        return helpers.fit(product.matrix(), shape, tensors)

    def _product(
        self, spec: AdapterSpec, tensors: Tensors, shape: Shape, dtype: torch.dtype
    ) -> Product:
        up, down = (products.matrix(tensors, role, dtype) for role in ("up", "down"))
        columns = torch.Size(shape[1:]).numel()
        wide, tall = block_diagonal(down, columns), block_diagonal(up, down.shape[0])
        if wide is None or tall is None:
            raise AdapterError(
                message(
                    "adapters.not_valid_of_inputs",
                    kind=self.title,
                    inputs=columns,
                    tensors=helpers.describe(tensors),
                )
            )
        return Product(tall * helpers.factor_of(self, spec, tensors), wide)

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        return None

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return self._product(spec, tensors, helpers.module_shape(spec), dtype)

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return shapes["down"][0]

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        return None


def block_diagonal(matrix: torch.Tensor, columns: int) -> torch.Tensor | None:
    """The rows of `matrix` [rows, columns / n] in n blocks on the diagonal of [rows, columns]; None
    where there is no such n.
    """
    rows, width = matrix.shape
    blocks = columns // width if width else 0
    if not blocks or blocks * width != columns or rows % blocks:
        return None
    return torch.block_diag(*matrix.chunk(blocks)) if blocks > 1 else matrix


KINDS = (BDLoRA(),)
