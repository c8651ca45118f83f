"""LoHa: alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b), elementwise in the middle (arXiv:2108.06098;
LyCORIS loha.py).
"""

from __future__ import annotations

from ...messages import message
from ..kind import (
    ADDED,
    SCALE,
    HostWeights,
    Kind,
    Misfit,
    ModuleShape,
    Planned,
    Product,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    roles,
    shaped,
)
from ..lazy import helpers, products, torch
from ..rows import Rows
from ..spec import AdapterError, AdapterSpec
from .dora import DECOMPOSED

# Ranks r1 and r2 make a product of rank r1 * r2; beyond this its matrix itself is the smaller
# thing.
LARGEST_PRODUCT_RANK = 512


class LoHa(Kind):
    """a [out, r], b [r, in * kernel]; with Tucker cores t [r, r, *kernel]: a [r, out], b [r, in].
    Rank = rows of w1_b.
    """

    name, title = "loha", "LoHa"
    needs = (roles("hada_w1_a hada_w1_b hada_w2_a hada_w2_b"),)
    takes = DECOMPOSED | roles("hada_t1 hada_t2")
    precedence = 11
    scaled = additive = low_rank = True
    alpha_is = SCALE
    zeroed_by = needs[0]
    scale_into = ("hada_w1_a",)
    consumed = needs[0] | roles("hada_t1 hada_t2 scalar")
    mark = "hada_w"
    host_class = "LoHaAdapter"
    host_drops = roles("scalar")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        w1_a, w1_b = shapes["hada_w1_a"], shapes["hada_w1_b"]
        core = shapes.get("hada_t1")
        if core is not None:
            return ModuleShape(w1_a[-1], (w1_b[-1], *core[2:]))
        if len(w1_a) < 2 or len(w1_b) < 2 or w1_a[1] != w1_b[0]:
            raise Misfit(
                message("adapters.different_ranks", tensors=shaped(hada_w1_a=w1_a, hada_w1_b=w1_b))
            )
        # OneTrainer keeps the kernel of a convolution, LyCORIS flattens it.
        return ModuleShape(w1_a[0], w1_b[1:], flat=len(w1_b) == 2)

    def rank(self, shapes: ToldShapes) -> int | None:
        inner = shapes.get("hada_w1_b")
        return inner[0] if inner else None

    def kernel(self, shapes: Shapes) -> Shape | None:
        return tuple(shapes["hada_t1"][2:]) if "hada_t1" in shapes else None

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        first, second = _half(tensors, 1), _half(tensors, 2)
        _check_halves(first.shape, second.shape, tensors)
        product = first.mul_(second).mul_(spec.scale_for(helpers.size(tensors, 0, "hada_w1_b")))
        if "scalar" in tensors:
            product = product * helpers.take_scalar(tensors, "scalar")
        return helpers.fit(product, shape, tensors, flattened=True)

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, _output_dimension(tensors), "hada_w1_a")

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        dimensions = {f"hada_w{half}_a": int(f"hada_t{half}" in tensors) for half in (1, 2)}
        return helpers.narrow_roles(tensors, start, length, **dimensions)

    def row_grain(self, tensors: Tensors) -> int | None:
        return 1

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        """(A1 B1) * (A2 B2) elementwise is one product: all pairs of columns times all pairs of
        rows (Khatri-Rao).
        """
        (up1, down1), (up2, down2) = (
            products.pair(tensors, f"hada_w{half}_a", f"hada_w{half}_b", f"hada_t{half}", dtype)
            for half in (1, 2)
        )
        shape = (up1.shape[0], down1.shape[1])
        _check_halves(shape, (up2.shape[0], down2.shape[1]), tensors)
        factor = helpers.factor_of(self, spec, tensors)
        if down1.shape[0] * down2.shape[0] > min(LARGEST_PRODUCT_RANK, min(shape) // 2):
            first, second = (
                up.to(torch.float32) @ down.to(torch.float32)
                for up, down in ((up1, down1), (up2, down2))
            )
            return Product(None, first.mul_(second).mul_(factor))
        up = torch.einsum("op,oq->opq", up1 * factor, up2).flatten(1)
        return Product(up, torch.einsum("pi,qi->pqi", down1, down2).flatten(0, 1))

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        rank = _inner_rank(shapes, 1) * _inner_rank(shapes, 2)
        return rank if rank <= min(LARGEST_PRODUCT_RANK, min(sides) // 2) else None

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        if rows is not None:
            return None
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
        w1_a, w1_b, w2_a, w2_b, t1, t2 = (tensors.get(name) for name in names)
        if (t1 is None) != (t2 is None):
            return None  # the host looks at the first only
        return w1_a, w1_b, alpha, w2_a, w2_b, t1, t2, None


def _half(tensors: Tensors, half: int) -> torch.Tensor:
    """One factor: a @ b, or through the core t."""
    a, b, core = (f"hada_w{half}_a", f"hada_w{half}_b", f"hada_t{half}")
    if core in tensors:
        middle, outer, inner = (helpers.take(tensors, role) for role in (core, a, b))
        return products.tucker(middle, outer, inner, (core, a, b))
    return helpers.multiply(
        helpers.take_matrix(tensors, a), helpers.take_matrix(tensors, b), (a, b)
    )


def _check_halves(first: Shape, second: Shape, tensors: Tensors) -> None:
    if tuple(first) != tuple(second):
        raise AdapterError(
            message(
                "adapters.loha_halves_differ",
                first=list(first),
                second=list(second),
                tensors=helpers.describe(tensors),
            )
        )


def _output_dimension(tensors: Tensors) -> int:
    return 1 if "hada_t1" in tensors else 0


def _inner_rank(shapes: Shapes, half: int) -> int:
    core = shapes.get(f"hada_t{half}")
    return core[0] if core else shapes[f"hada_w{half}_b"][0]


KINDS = (LoHa(),)
