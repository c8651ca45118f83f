"""LoRAs with something between their factors: AdaLoRA's diagonal (arXiv:2303.10512) and MoSLoRA's
mixer (arXiv:2406.11909).
"""

from __future__ import annotations

from ...messages import message
from ..kind import (
    HostWeights,
    InStock,
    Misfit,
    ModuleShape,
    Planned,
    Product,
    Shape,
    Shapes,
    Tensors,
    roles,
    shaped,
)
from ..lazy import helpers, products, torch
from ..rows import Rows
from ..spec import AdapterError, AdapterSpec
from .dora import DECOMPOSED
from .lora import LoRA


class Between(LoRA):
    """scale * up @ M @ down, which is a LoRA with the down M @ down."""

    takes = silent = frozenset()
    is_pair = False
    scale_into = ()
    stores = None
    host_class = ""
    mark = "lora_"

    def inner(self, tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """M @ down as [r, in * kernel]."""
        raise NotImplementedError

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        product = self.product(spec, tensors, torch.float32)
        return helpers.fit(product.matrix(), shape, tensors, flattened=True)

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        up, down = products.matrix(tensors, "up", dtype), self.inner(tensors, dtype)
        if up.shape[1] != down.shape[0]:
            helpers.multiply(up, down, ("up", "down"))
        return Product(up * helpers.factor_of(self, spec, tensors), down)

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        return None


class AdaLoRA(Between):
    """up [out, r], lora_E [r, 1], down [r, in * kernel]: scale * up @ diag(E) @ down (PEFT
    tuners/adalora/layer.py).

    The scale is alpha / init_r of PEFT's settings, also where training left fewer ranks: a
    convention says it.
    """

    name, title = "adalora", "AdaLoRA"
    needs = (roles("down up lora_E"),)
    precedence = 8
    own_scale = True
    alpha_is = ""
    zeroed_by = consumed = needs[0]
    stock = InStock("AdaLoRA", "adapters.stock_drops_lora_e")

    def shape(self, shapes: Shapes) -> ModuleShape:
        up, down, middle = shapes["up"], shapes["down"], shapes["lora_E"]
        if not up[1] == down[0] == middle[0]:
            raise Misfit(
                message("adapters.different_ranks", tensors=shaped(up=up, lora_E=middle, down=down))
            )
        return ModuleShape(up[0], down[1:], flat=True)

    def kernel(self, shapes: Shapes) -> Shape | None:
        return None

    def factor(self, spec: AdapterSpec, rank: int | None) -> float:
        if spec.scale is None:
            raise AdapterError(message("adapters.adalora_strength", kind=self.title))
        return spec.scale

    def inner(self, tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
        middle, down = (
            helpers.take(tensors, "lora_E").to(dtype),
            products.matrix(tensors, "down", dtype),
        )
        if middle.numel() != down.shape[0]:
            raise AdapterError(
                message("adapters.not_valid", kind=self.title, tensors=helpers.describe(tensors))
            )
        return middle.reshape(-1, 1) * down


class MoSLoRA(Between):
    """up [out, r], lora_mixer [r, r], down [r, in, *kernel]: alpha / r * up @ mixer @ down (as the
    paper and sd-scripts' forks have it).
    """

    name, title = "moslora", "MoSLoRA"
    needs = (roles("down up lora_mixer"),)
    takes = DECOMPOSED
    precedence = 8
    zeroed_by = needs[0]
    consumed = needs[0] | {"scalar"}
    stock = InStock("MoSLoRA", "adapters.stock_drops_mixer")

    def shape(self, shapes: Shapes) -> ModuleShape:
        up, down, mixer = shapes["up"], shapes["down"], shapes["lora_mixer"]
        if mixer[:2] != (up[1], down[0]):
            raise Misfit(
                message(
                    "adapters.different_ranks", tensors=shaped(up=up, lora_mixer=mixer, down=down)
                )
            )
        return ModuleShape(up[0], down[1:])

    def inner(self, tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
        mixer, down = (products.matrix(tensors, role, dtype) for role in ("lora_mixer", "down"))
        return helpers.multiply(mixer, down, ("lora_mixer", "down"))


KINDS = (AdaLoRA(), MoSLoRA())
