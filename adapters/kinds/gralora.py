"""GraLoRA (PEFT gralora/layer.py, arXiv:2505.20355): a weight in N x N blocks, each with a LoRA of
rank r / N.
"""

from __future__ import annotations

from ...messages import message, text_of
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
    ToldShapes,
    roles,
    shaped,
)
from ..lazy import helpers, products, torch
from ..spec import AdapterError, AdapterSpec


class GraLoRA(Kind):
    """gralora_A [N, in / N, r], gralora_B [N, r, out / N]; a hybrid has a plain pair of rank h
    beside: all times alpha / (r + h).
    """

    name, title = "gralora", "GraLoRA"
    needs = (roles("gralora_A gralora_B"),)
    takes = roles("gralora_A_general gralora_B_general")
    scaled = additive = True
    stock = InStock("GraLoRA")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        inner, outer = shapes["gralora_A"], shapes["gralora_B"]
        if (
            len(inner) != 3
            or len(outer) != 3
            or (inner[0], inner[2]) != outer[:2]
            or inner[2] % inner[0]
        ):
            raise Misfit(
                message(
                    "adapters.do_not_belong_together",
                    tensors=shaped(gralora_A=inner, gralora_B=outer),
                )
            )
        return ModuleShape(outer[0] * outer[2], (inner[0] * inner[1],))

    def rank(self, shapes: ToldShapes) -> int | None:
        inner, general = shapes.get("gralora_A"), shapes.get("gralora_A_general")
        return inner[2] + (general[0] if general else 0) if inner and len(inner) == 3 else None

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        return helpers.fit(self._dense(spec, tensors), shape, tensors)

    def _dense(self, spec: AdapterSpec, tensors: Tensors) -> torch.Tensor:
        inner, outer = helpers.take(tensors, "gralora_A"), helpers.take(tensors, "gralora_B")
        try:
            self.shape({role: tensor.shape for role, tensor in tensors.items()})
        except Misfit as misfit:
            raise AdapterError(text_of(misfit)) from None
        blocks, columns, _ = inner.shape
        inner = inner.reshape(blocks, columns, blocks, -1)
        outer = outer.reshape(blocks, blocks, -1, outer.shape[2])
        delta = torch.einsum("najs,jnso->jona", inner, outer).reshape(
            blocks * outer.shape[3], blocks * columns
        )
        if "gralora_A_general" in tensors:
            delta = delta + helpers.fit(
                products.low_rank(tensors, "gralora_B_general", "gralora_A_general"),
                delta.shape,
                tensors,
            )
        return delta * helpers.factor_of(self, spec, tensors)

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 0, "gralora_B") * helpers.size(tensors, 2, "gralora_B")

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return products.whole(self._dense(spec, tensors))


KINDS = (GraLoRA(),)
