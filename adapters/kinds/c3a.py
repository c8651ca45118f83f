"""C3A (PEFT c3a/layer.py, arXiv:2407.19342): a weight of circulant blocks."""

from __future__ import annotations

from ...messages import message
from ..kind import (
    ADDED,
    InStock,
    Kind,
    Misfit,
    ModuleShape,
    Product,
    Shape,
    Shapes,
    Tensors,
    roles,
    shaped,
)
from ..lazy import helpers, products, torch
from ..spec import AdapterError, AdapterSpec


class C3A(Kind):
    """c3a_kernel [out / b, in / b, b]: entry (p, q) of a block is kernel[(q - p) mod b] / in."""

    name, title = "c3a", "C3A"
    needs = (roles("c3a_kernel"),)
    additive = True
    stock = InStock("C3A")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        kernel = shapes["c3a_kernel"]
        if len(kernel) != 3:
            raise Misfit(
                message("adapters.needs_dimensions", tensor=shaped(c3a_kernel=kernel), count=3)
            )
        return ModuleShape(kernel[0] * kernel[2], (kernel[1] * kernel[2],))

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        return helpers.fit(_dense(tensors), shape, tensors)

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 0, "c3a_kernel") * helpers.size(tensors, 2, "c3a_kernel")

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        size = helpers.size(tensors, 2, "c3a_kernel")
        return (
            None
            if start % size or length % size
            else helpers.narrow_roles(tensors, start // size, length // size, c3a_kernel=0)
        )

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return products.whole(_dense(tensors))


def _dense(tensors: Tensors) -> torch.Tensor:
    kernel = helpers.take(tensors, "c3a_kernel")
    if kernel.dim() != 3:
        raise AdapterError(
            message("adapters.needs_dimensions", tensor=shaped(c3a_kernel=kernel.shape), count=3)
        )
    rows, columns, size = kernel.shape
    step = torch.arange(size, device=kernel.device)
    blocks = kernel[:, :, (step[None] - step[:, None]) % size]
    return blocks.transpose(1, 2).reshape(rows * size, columns * size) / (columns * size)


KINDS = (C3A(),)
