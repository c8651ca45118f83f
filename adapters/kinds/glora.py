"""GLoRA: W + strength * alpha / rank * (W a1 a2 + b1 b2) (LyCORIS modules/glora.py,
arXiv:2306.07967).
"""

from __future__ import annotations

from math import nan

from ...messages import message
from ..kind import DERIVED, SCALE, Kind, Measured, Product, Shapes, Tensors, roles
from ..lazy import helpers, products, torch
from ..spec import AdapterError, AdapterSpec
from .dora import DECOMPOSED


class GLoRA(Kind):
    """a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in, *kernel], bm a Tucker core.

    Old files have the factors the other way round (a1 [r, in], a2 [in, r], b1 [r, in], b2 [out,
    r]); the shapes tell.
    """

    name, title = "glora", "GLoRA"
    needs = (roles("a1 a2 b1 b2"),)
    takes = DECOMPOSED
    alpha_is = SCALE
    precedence = 13
    scaled = True
    bypass = DERIVED

    def factor(self, spec: AdapterSpec, rank: int | None) -> float:
        """Its rank is told by its shapes beside the weight's only, so that no number but one can be
        told.
        """
        return 1.0 if spec.alpha is None and spec.scale is None else nan

    def alpha_saying(
        self, spec: AdapterSpec, rank: int | None, shapes: Shapes
    ) -> tuple[float | None, float]:
        return self.compared_strength(spec, rank, shapes) * min(shapes["a1"]), 1.0

    def compared_strength(self, spec: AdapterSpec, rank: int | None, shapes: Shapes) -> float:
        # a1 is [in, rank], or [rank, in] in old files.
        return spec.scale_for(min(shapes["a1"]))

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        outer, inner = _order(tensors, weight)
        a_left, a_right = (
            helpers.take_matrix(tensors, outer[0]),
            helpers.take_matrix(tensors, inner[0]),
        )
        b_tensors = (
            helpers.narrow_roles(tensors, *spec.rows, **{outer[1]: 0}) if spec.rows else tensors
        )
        added = helpers.fit(
            products.low_rank(b_tensors, outer[1], inner[1], "bm"), weight.shape, b_tensors
        )
        mixed = torch.einsum("oi...,ir->or...", weight, a_left)
        added = added + torch.einsum("or...,ri->oi...", mixed, a_right)
        return weight + (strength * spec.scale_for(a_right.shape[0])) * added

    def measured(self, spec: AdapterSpec, tensors: Tensors, out: int, columns: int) -> Measured:
        """The b part as a delta; which factor stands left, the shapes tell, as old files have them
        the other way round.
        """
        for one, two in ("12", "21"):
            up, down, left, right = (
                helpers.take_matrix(tensors, role)
                for role in (f"b{one}", f"b{two}", f"a{one}", f"a{two}")
            )
            if (
                up.shape[0] == out
                and up.shape[1] == down.shape[0]
                and left.shape[1] == right.shape[0]
            ):
                break
        else:
            return super().measured(spec, tensors, out, columns)
        if "bm" in tensors:
            delta = Product(None, products.low_rank(tensors, f"b{one}", f"b{two}", "bm").flatten(1))
        else:
            delta = Product(up.to(torch.float64), down.to(torch.float64))
        return Measured(
            message("adapters.glora_measured"),
            Product(left, right),
            delta,
            right.shape[0],
            spec.scale_for(right.shape[0]),
        )


def _order(tensors: Tensors, weight: torch.Tensor) -> tuple[tuple[str, str], tuple[str, str]]:
    inputs = weight.shape[1] if weight.dim() > 1 else -1
    size = helpers.size
    for outer, inner in ((("a1", "b1"), ("a2", "b2")), (("a2", "b2"), ("a1", "b1"))):
        sizes = size(tensors, 0, outer[0]), size(tensors, 1, inner[0]), size(tensors, 1, inner[1])
        ranks = size(tensors, 1, outer[0]) == size(tensors, 0, inner[0]) and size(
            tensors, 1, outer[1]
        ) == size(tensors, 0, inner[1])
        if ranks and sizes == (inputs,) * 3:
            return outer, inner
    raise AdapterError(
        message(
            "adapters.not_valid_for",
            kind="GLoRA",
            weight=list(weight.shape),
            tensors=helpers.describe(tensors),
        )
    )


KINDS = (GLoRA(),)
