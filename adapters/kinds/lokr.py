"""LoKr: scale * kron(w1, w2) (LyCORIS lokr.py, arXiv:2309.14859)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

from ...messages import message
from ..kind import (
    ADDED,
    SCALE,
    HostWeights,
    Kind,
    KroneckerProduct,
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

WHOLE = roles("lokr_w1 lokr_w2")


class LoKr(Kind):
    """w1 [a, c], w2 [b, d, *kernel]; each may be w_a [rows, r] @ w_b [r, columns * kernel].

    The core lokr_t2 [r, r, *kernel] goes with w2_a [r, b], w2_b [r, d]. The scale is alpha / rank
    only when a factor is decomposed, else 1 (LyCORIS sets alpha = dim then, AI-Toolkit a huge
    number); PEFT scales always, which is `spec.scale`.
    """

    name, title = "lokr", "LoKr"
    needs: tuple[frozenset[str], ...] = (
        WHOLE,
        roles("lokr_w1_a lokr_w1_b lokr_w2"),
        roles("lokr_w1 lokr_w2_a lokr_w2_b"),
        roles("lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b"),
    )
    takes = DECOMPOSED | {"lokr_t2"}
    precedence = 12
    scaled = rank_in_settings = additive = low_rank = True
    alpha_is = SCALE
    zeroed_by = WHOLE | needs[3]
    scale_into: tuple[str, ...] = ("lokr_w1", "lokr_w1_a")
    stores: type | None = KroneckerProduct
    consumed = needs[0] | needs[3] | roles("lokr_t2 scalar")
    mark = "lokr_w"
    host_class = "LoKrAdapter"
    host_drops = roles("scalar")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        first, second = _factor_shape(shapes, "lokr_w1"), _factor_shape(shapes, "lokr_w2")
        if len(first) < 2 or len(second) < 2:
            raise Misfit(
                message("adapters.must_be_matrices", tensors=shaped(lokr_w1=first, lokr_w2=second))
            )
        return ModuleShape(
            first[0] * second[0],
            (first[1] * second[1], *second[2:]),
            flat="lokr_w2" not in shapes and "lokr_t2" not in shapes,
        )

    def rank(self, shapes: ToldShapes) -> int | None:
        """The inner dimension of the factor that is decomposed; None when both are full, and alpha
        means nothing.
        """
        inner = shapes.get("lokr_w2_b") or shapes.get("lokr_w1_b")
        return inner[0] if inner else None

    def alpha_counts(self, present: Iterable[str]) -> bool:
        """Where both factors are whole, there is no rank to divide by: LyCORIS writes alpha = rank,
        AI-Toolkit a huge or infinite one.
        """
        return not WHOLE.issubset(present)

    def alpha_saying(
        self, spec: AdapterSpec, rank: int | None, shapes: Shapes
    ) -> tuple[float | None, float]:
        # Where both factors are whole its readers want one and make nothing of it.
        return super().alpha_saying(spec, rank, shapes) if rank else (1.0, self.factor(spec, rank))

    def kernel(self, shapes: Shapes) -> Shape | None:
        return next(
            (tuple(shapes[role][2:]) for role in ("lokr_t2", "lokr_w2") if role in shapes), None
        )

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        scale = self.factor(
            spec, self.rank({role: tensor.shape for role, tensor in tensors.items()})
        )
        first, second = halves(tensors)
        if first.dim() != 2 or second.dim() < 2:
            raise AdapterError(
                message("adapters.not_a_kronecker_product", tensors=helpers.describe(tensors))
            )
        if "scalar" in tensors:
            first = first * helpers.take_scalar(tensors, "scalar")
        first = (first * scale).reshape(*first.shape, *[1] * (second.dim() - 2))
        return helpers.fit(torch.kron(first, second.contiguous()), shape, tensors, flattened=True)

    def count_rows(self, tensors: Tensors) -> int:
        return _rows(tensors, 1) * _rows(tensors, 2)

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        block = _rows(tensors, 2)
        if start % block or length % block:
            return None
        return helpers.narrow_roles(
            tensors, start // block, length // block, lokr_w1=0, lokr_w1_a=0
        )

    def row_grain(self, tensors: Tensors) -> int | None:
        return _rows(tensors, 2)

    def product(
        self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype
    ) -> Product | KroneckerProduct:
        first, second = (_product(tensors, half, dtype) for half in (1, 2))
        factor = helpers.factor_of(self, spec, tensors)
        scaled = (
            Product(None, first.down * factor)
            if first.up is None
            else Product(first.up * factor, first.down)
        )
        return KroneckerProduct(scaled, second)

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        rank = prod(_half_rank(shapes, half) for half in ("lokr_w1", "lokr_w2"))
        return rank if 2 * rank <= min(sides) else None

    def stored(self, delta: KroneckerProduct, shape: Shape) -> Iterator[tuple[str, torch.Tensor]]:
        first, second, kernel = delta.first, delta.second, shape[2:]
        yield "lokr_w1", first.matrix()
        if second.up is not None and not kernel:
            yield "lokr_w2_a", second.up
            yield "lokr_w2_b", second.down
            return
        whole = second.matrix()
        yield (
            "lokr_w2",
            (
                whole.reshape(whole.shape[0], whole.shape[1] // prod(kernel), *kernel)
                if kernel
                else whole
            ),
        )

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        if (
            rows is not None
            or "lokr_t2" in tensors
            or (adapter.strength.scale is not None and not adapter.rank)
        ):
            return None
        names = ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")
        if (
            "lokr_w1_b" in tensors
            and "lokr_w2_b" in tensors
            and tensors["lokr_w1_b"].shape[0] != tensors["lokr_w2_b"].shape[0]
        ):
            return None
        w1_a, w1_b, w2_a, w2_b = (tensors.get(name) for name in names)
        first, second = tensors.get("lokr_w1", w1_a), tensors.get("lokr_w2", w2_a)
        if first is None or first.dim() != 2 or second is None or second.dim() not in (2, 4):
            return None  # the host lays a kernel beside the first factor for Conv2d only
        return (
            tensors.get("lokr_w1"),
            tensors.get("lokr_w2"),
            alpha,
            w1_a,
            w1_b,
            w2_a,
            w2_b,
            None,
            None,
        )


def _factor_shape(shapes: Shapes, name: str) -> Shape:
    full, left, right = (shapes.get(name + end) for end in ("", "_a", "_b"))
    if full is not None:
        return full
    core = shapes.get("lokr_t2") if name == "lokr_w2" else None
    if left is None or right is None:
        raise Misfit(message("adapters.factor_incomplete", factor=name))
    if core is not None:
        return (left[-1], right[-1], *core[2:])
    if len(left) < 2 or len(right) < 2 or left[1] != right[0]:
        raise Misfit(
            message(
                "adapters.different_ranks",
                tensors=shaped(**{f"{name}_a": left, f"{name}_b": right}),
            )
        )
    return (left[0], *right[1:])


def halves(tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Both factors, multiplied out."""
    return _half(tensors, 1), _half(tensors, 2)


def _half(tensors: Tensors, half: int) -> torch.Tensor:
    """One factor: full, a @ b, or (only the second) through the core t2."""
    full, a, b = (f"lokr_w{half}", f"lokr_w{half}_a", f"lokr_w{half}_b")
    if full in tensors:
        return helpers.take(tensors, full)
    if half == 2 and "lokr_t2" in tensors:
        return products.tucker(
            helpers.take(tensors, "lokr_t2"),
            helpers.take(tensors, a),
            helpers.take(tensors, b),
            ("lokr_t2", a, b),
        )
    return helpers.multiply(
        helpers.take_matrix(tensors, a), helpers.take_matrix(tensors, b), (a, b)
    )


def _product(tensors: Tensors, half: int, dtype: torch.dtype) -> Product:
    full = f"lokr_w{half}"
    if full in tensors:
        return Product(None, products.matrix(tensors, full, dtype))
    core = "lokr_t2" if half == 2 else ""
    return Product(*products.pair(tensors, f"{full}_a", f"{full}_b", core, dtype))


def _rows(tensors: Tensors, half: int) -> int:
    full = f"lokr_w{half}"
    transposed = full not in tensors and half == 2 and "lokr_t2" in tensors
    return helpers.size(tensors, 1 if transposed else 0, full, f"{full}_a")


def _half_rank(shapes: Shapes, half: str) -> int:
    if half in shapes:
        return min(shapes[half][0], prod(shapes[half][1:]))
    core = shapes.get("lokr_t2") if half == "lokr_w2" else None
    rows = shapes[f"{half}_a"][-1] if core else shapes[f"{half}_a"][0]
    columns = shapes[f"{half}_b"][1] * (prod(core[2:]) if core else 1)
    return min(core[0] if core else shapes[f"{half}_b"][0], rows, columns)


KINDS = (LoKr(),)
