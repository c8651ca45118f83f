"""BEFT (PEFT beft/layer.py): a change of the bias alone."""

from __future__ import annotations

from ..kind import (
    HostWeights,
    InStock,
    Kind,
    ModuleShape,
    Planned,
    Product,
    Said,
    Shape,
    Shapes,
    Tensors,
    roles,
)
from ..lazy import helpers, products, torch
from ..rows import Rows
from ..spec import AdapterSpec


class BEFT(Kind):
    """beft_bias [1, out]."""

    name, title = "beft", Said("adapters.bias_difference")
    needs = (roles("beft_bias"),)
    parameter = "bias"
    additive = whole = True
    vector = "beft_bias"
    stock = InStock("BEFT")

    def shape(self, shapes: Shapes) -> ModuleShape:
        return ModuleShape(shapes["beft_bias"][-1], ())

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        return helpers.fit(helpers.take(tensors, "beft_bias").flatten(), shape, tensors)

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.take(tensors, "beft_bias").numel()

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        return {**tensors, "beft_bias": tensors["beft_bias"].flatten().narrow(0, start, length)}

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return products.whole(helpers.take(tensors, "beft_bias").flatten())

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        change = tensors["beft_bias"].flatten()
        return "diff", (change.narrow(0, *rows) if rows else change,)


KINDS = (BEFT(),)
