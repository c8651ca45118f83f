"""RandLoRA (PEFT randlora/layer.py get_scaled_bases, arXiv:2502.00987): a sum of fixed random
products, weighted by trained vectors.
"""

from __future__ import annotations

from math import ceil

from ...messages import message
from ..kind import (
    ADDED,
    InStock,
    Kind,
    Misfit,
    ModuleShape,
    Product,
    Said,
    Shape,
    Shapes,
    Tensors,
    roles,
    shaped,
)
from ..lazy import helpers, products, torch
from ..setting import MAX_ALPHA, NUMBER, Setting
from ..spec import AdapterError, AdapterSpec


class RandLoRA(Kind):
    """randlora_lambda [r, n] and randlora_gamma [n, least], least and most being the sizes of the
    weight, n = least / r, rounded up.

    For the whole file randlora_A [r, 1, least of all] and randlora_B [most of all, n of all, r], of
    which it uses the first. The change is alpha / r times B as [most, n * r] @ (lambda A gamma) as
    [r * n, least]; its other way round where the inputs are more.
    """

    name, title = "randlora", "RandLoRA"
    needs = (roles("randlora_lambda randlora_gamma randlora_A randlora_B"),)
    shared = roles("randlora_A randlora_B")
    zeroed_by = needs[0]
    precedence = 29
    settings = (Setting("randlora_alpha", NUMBER, None, -MAX_ALPHA, MAX_ALPHA, needed=True),)
    additive = needs_shape = True
    stock = InStock("RandLoRA")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        each, gamma = shapes["randlora_lambda"], shapes["randlora_gamma"]
        if len(each) != 2 or len(gamma) != 2 or each[1] != gamma[0]:
            raise Misfit(
                message(
                    "adapters.do_not_belong_together",
                    tensors=shaped(randlora_lambda=each, randlora_gamma=gamma),
                )
            )
        return super().shape(shapes)

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        each, gamma = (
            helpers.take_matrix(tensors, role) for role in ("randlora_lambda", "randlora_gamma")
        )
        inner, outer = (helpers.take(tensors, role) for role in ("randlora_A", "randlora_B"))
        (rank, count), columns = each.shape, torch.Size(shape[1:]).numel()
        least, most = sorted((shape[0], columns))
        fits = gamma.shape == (count, least) and count == ceil(least / rank)
        if (
            not fits
            or inner.dim() != 3
            or outer.dim() != 3
            or inner.shape[:2] != (rank, 1)
            or inner.shape[2] < least
        ):
            raise self._misfit(tensors, shape)
        if outer.shape[0] < most or outer.shape[1] < count or outer.shape[2] != rank:
            raise self._misfit(tensors, shape)
        scaled = each[:, :, None] * inner[:, :, :least] * gamma
        # The bases of B lie by n, then r, and those of A by r, then n: so PEFT multiplies them.
        product = outer[:most, :count].flatten(1) @ scaled.flatten(0, 1)
        product = product if least == columns else product.T
        alpha: float = helpers.needed_setting(self, spec, "randlora_alpha")
        return (product * (alpha / rank)).reshape(tuple(shape))

    def _misfit(self, tensors: Tensors, shape: Shape) -> AdapterError:
        return AdapterError(
            message(
                "adapters.not_valid_for",
                kind=self.title,
                weight=list(shape),
                tensors=helpers.describe(tensors),
            )
        )

    def count_rows(self, tensors: Tensors) -> int:
        raise AdapterError(message("adapters.split_rows", kind=self.title))

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return products.whole(self.delta(spec, tensors, helpers.module_shape(spec)))


class RandLoRAAlone(Kind):
    """The vectors without their matrices."""

    name, title = "randlora_alone", "RandLoRA"
    needs = (
        roles("randlora_lambda"),
        roles("randlora_gamma"),
        roles("randlora_lambda randlora_gamma"),
    )
    takes = roles("randlora_A randlora_B")
    precedence = 30
    refusal = Said("adapters.bases_missing_save_projection", kind="RandLoRA")


KINDS = (RandLoRA(), RandLoRAAlone())
