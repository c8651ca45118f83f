"""LoRA and LoCon: alpha / rank * up @ down (arXiv:2106.09685; LyCORIS functional/locon.py for the
Tucker core).
"""

from __future__ import annotations

from collections.abc import Iterator

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
    check_ranks,
    roles,
    shaped,
)
from ..lazy import helpers, products, torch
from ..rows import Rows
from ..setting import BOOLEAN, Setting
from ..spec import AdapterError, AdapterSpec
from .dora import DECOMPOSED


class LoRA(Kind):
    """down [r, in, *kernel], or flat [r, in * kernel], up [out, r, 1, ...], mid [r, r, *kernel]
    with down [r, in, 1, ...].

    `scalar` is LyCORIS' use_scalar of files that do not have it folded into up. bias_* is the
    sparse residual of a LyCORIS extraction, which its readers scale along with the product.
    """

    name, title = "lora", "LoRA"
    needs: tuple[frozenset[str], ...] = (roles("down up"),)
    takes = DECOMPOSED | roles("mid reshape initial_norm bias_indices bias_values bias_size")
    silent = roles("bias_indices bias_size initial_norm reshape")
    precedence = 10
    settings: tuple[Setting, ...] = (Setting("fan_in_fan_out", BOOLEAN, False),)
    grows_by = roles("reshape")
    flattens = True
    scaled = additive = is_pair = low_rank = True
    alpha_is = SCALE
    scale_into: tuple[str, ...] = ("up",)
    zeroed_by = roles("up down mid")
    stores: type | None = Product
    consumed = roles("up down mid scalar bias_indices bias_values bias_size")
    host_class = "LoRAAdapter"
    host_drops = roles("scalar bias_values")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        up, down, mid = shapes["up"], shapes["down"], shapes.get("mid")
        if len(up) < 2 or len(down) < 2:
            raise Misfit(message("adapters.needs_two_dimensions", tensors=shaped(up=up, down=down)))
        rank_up, rank_down = up[1], down[0]
        if mid is not None:
            if len(mid) < 3 or mid[0] != rank_up or mid[1] != rank_down:
                raise Misfit(
                    message("adapters.different_ranks", tensors=shaped(up=up, mid=mid, down=down))
                )
            return ModuleShape(up[0], (down[1], *mid[2:]))
        check_ranks(rank_up, rank_down, up=up, down=down)
        return ModuleShape(up[0], down[1:])

    def rank(self, shapes: ToldShapes) -> int | None:
        down = shapes.get("down")
        return down[0] if down else None

    def titled(self, kernel: Shape) -> str:
        return "LoCon" if any(size > 1 for size in kernel) else self.title

    def kernel(self, shapes: Shapes) -> Shape | None:
        return tuple(shapes["mid" if "mid" in shapes else "down"][2:])

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        rank = helpers.size(tensors, 0, "down")
        scaled = {**tensors, "up": helpers.take(tensors, "up") * spec.scale_for(rank)}
        delta = helpers.fit(products.low_rank(scaled), shape, tensors, flattened=True)
        if "scalar" in tensors:
            delta = delta * helpers.take_scalar(tensors, "scalar")
        if "bias_values" in tensors:
            delta = delta + spec.scale_for(rank) * sparse_residual(tensors, shape)
        return delta

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 0, "up")

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        # The sparse residual has rows of its own; it is rare enough for the dense way.
        return (
            None if "bias_values" in tensors else helpers.narrow_roles(tensors, start, length, up=0)
        )

    def row_grain(self, tensors: Tensors) -> int | None:
        return None if "bias_values" in tensors else 1

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        if "bias_values" in tensors:
            # The sparse residual is rare enough for the dense way.
            kernel = tensors["mid" if "mid" in tensors else "down"].shape[2:]
            shape = (helpers.size(tensors, 0, "up"), helpers.size(tensors, 1, "down"), *kernel)
            return Product(None, self.delta(spec, tensors, shape).flatten(1))
        up = products.matrix(tensors, "up", dtype)
        down = products.through_core(tensors, "mid", products.matrix(tensors, "down", dtype))
        if up.shape[1] != down.shape[0]:
            helpers.multiply(up, down, ("up", "down"))
        factor = helpers.factor_of(self, spec, tensors)
        return Product(up if factor == 1 else up * factor, down)

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return None if "bias_values" in shapes else shapes["up"][1]

    def stored(self, delta: Product, shape: Shape) -> Iterator[tuple[str, torch.Tensor]]:
        assert delta.up is not None, "a matrix is no pair"
        yield "lora_up.weight", delta.up.reshape(*delta.up.shape, *(1 for _ in shape[2:]))
        yield (
            "lora_down.weight",
            (delta.down.reshape(delta.down.shape[0], *shape[1:]) if shape else delta.down),
        )

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        up, down, core = tensors["up"], tensors["down"], tensors.get("mid")
        if core is not None and core.dim() != 4:
            return None
        if rows is not None:
            up = up.narrow(0, *rows)
        grown = list(adapter.padded_shape) if adapter.padded_shape else None
        return up, down, alpha, core, None, grown

    def host_pair(self, weights: HostWeights) -> tuple[torch.Tensor, torch.Tensor, float] | None:
        up, down, alpha, core, magnitudes, *_ = weights
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        return None if core is not None or magnitudes is not None else (up, down, scale)


def sparse_residual(tensors: Tensors, shape: Shape) -> torch.Tensor:
    """bias_indices [2, n] into the weight as [out, in * kernel], bias_values [n] (LyCORIS utils,
    extract with use_bias).
    """
    values, indices = helpers.take(tensors, "bias_values"), tensors.get("bias_indices")
    if indices is None or tuple(indices.shape) != (2, *values.shape):
        raise AdapterError(
            message("adapters.do_not_belong_together", tensors=helpers.describe(tensors))
        )
    residual = values.new_zeros(tuple(shape)).flatten(1)
    row, column = indices.long().unbind(0)
    helpers.check_indices(indices, residual.shape, "bias_indices")
    return residual.index_put((row, column), values, accumulate=True).reshape(tuple(shape))


KINDS = (LoRA(),)
