"""VeRA (PEFT vera/layer.py, arXiv:2310.11454): random matrices shared by all layers, and two
trained vectors for each.
"""

from __future__ import annotations

from ...messages import message
from ..kind import (
    ADDED,
    InStock,
    Kind,
    ModuleShape,
    Product,
    Said,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    roles,
)
from ..lazy import helpers, torch
from ..spec import AdapterError, AdapterSpec


class VeRA(Kind):
    """vera_d [r], vera_b [out]; for the whole file vera_A [r, most inputs] and vera_B [most
    outputs, r], of which it uses the first.

    The change is diag(b) B diag(d) A; writers like sd-scripts multiply it by alpha / r.
    """

    name, title = "vera", "VeRA"
    needs = (roles("vera_d vera_b vera_A vera_B"),)
    takes = roles("alpha")
    shared = roles("vera_A vera_B")
    precedence = 29
    additive = needs_shape = True
    stock = InStock("VeRA")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        return ModuleShape(shapes["vera_b"][0], None)

    def factor(self, spec: AdapterSpec, rank: int | None) -> float:
        return spec.scale_for(rank) if rank else 1.0

    def rank(self, shapes: ToldShapes) -> int | None:
        vector = shapes.get("vera_d")
        return vector[0] if vector else None

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        up, down = self._product(spec, tensors, shape)
        return helpers.fit(up @ down, shape, tensors, flattened=True)

    def _product(
        self, spec: AdapterSpec, tensors: Tensors, shape: Shape
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inner = 1
        for size in shape[1:]:
            inner *= size
        left, right = (helpers.take(tensors, role).flatten() for role in ("vera_b", "vera_d"))
        outer, down = (helpers.take_matrix(tensors, role) for role in ("vera_B", "vera_A"))
        out, rank = left.numel(), right.numel()
        if (
            outer.shape[0] < out
            or outer.shape[1] < rank
            or down.shape[0] < rank
            or down.shape[1] < inner
        ):
            raise AdapterError(
                message(
                    "adapters.shared_too_small",
                    weight=list(shape),
                    tensors=helpers.describe(tensors),
                )
            )
        factor = self.factor(spec, rank)
        return (
            factor * left[:, None] * outer[:out, :rank],
            right[:, None] * down[:rank, :inner],
        )

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 0, "vera_b")

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        return helpers.narrow_roles(tensors, start, length, vera_b=0, vera_B=0)

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        up, down = self._product(spec, tensors, helpers.module_shape(spec))
        return Product(up.to(dtype), down.to(dtype))

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return shapes["vera_d"][0]


class VeRAAlone(Kind):
    """The vectors without their matrices."""

    name, title = "vera_alone", "VeRA"
    needs = (roles("vera_d"), roles("vera_b"), roles("vera_d vera_b"))
    takes = roles("vera_A vera_B alpha")
    precedence = 30
    refusal = Said("adapters.bases_missing", kind="VeRA")


KINDS = (VeRA(), VeRAAlone())
