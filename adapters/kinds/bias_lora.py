"""PEFT's lora_B.bias [out] on the layer's bias: scale * up_bias, the scale being the LoRA's (PEFT
lora/layer.py, merge).
"""

from __future__ import annotations

from ...messages import message
from ..kind import (
    SCALE,
    HostWeights,
    Kind,
    ModuleShape,
    Planned,
    Product,
    Said,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    first_dimension,
    roles,
)
from ..lazy import helpers, products, torch
from ..rows import Rows
from ..spec import AdapterError, AdapterSpec


class LoRABias(Kind):
    """The rank is that of `down`, which has to be among the tensors when the alpha and not the
    scale is known.
    """

    name, title = "bias_lora", Said("adapters.bias")
    needs = (roles("up_bias"),)
    takes = roles("down_bias")
    borrows = ("alpha", "down")  # PEFT scales the bias as it scales the factors
    precedence = 27
    parameter = "bias"
    scaled = additive = True
    alpha_is = SCALE
    vector = "up_bias"
    zeroed_by = needs[0]

    def shape(self, shapes: Shapes) -> ModuleShape:
        return first_dimension(shapes, "up_bias")

    def rank(self, shapes: ToldShapes) -> int | None:
        down = shapes.get("down")
        return down[0] if down else None

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        rank = helpers.size(tensors, 0, "down") if "down" in tensors else None
        if rank is None and spec.scale is None and spec.alpha:
            raise AdapterError(
                message("adapters.bias_needs_rank", tensors=helpers.describe(tensors))
            )
        return helpers.fit(
            helpers.take(tensors, "up_bias") * spec.scale_for(rank or 1), shape, tensors
        )

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 0, "up_bias")

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        return helpers.narrow_roles(tensors, start, length, up_bias=0)

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return products.whole(self.delta(spec, tensors, helpers.take(tensors, "up_bias").shape))

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        change, rank = (
            tensors["up_bias"],
            self.rank({role: tensor.shape for role, tensor in tensors.items()}),
        )
        if alpha is not None and rank:
            change = change.float() * (alpha / rank)
        return "diff", (change.narrow(0, *rows) if rows else change,)


KINDS = (LoRABias(),)
