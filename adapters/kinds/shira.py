"""SHiRA (PEFT shira/layer.py, arXiv:2406.13175): changes of single entries of a weight."""

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


class SHiRA(Kind):
    """shira_weight [n] at shira_indices [2, n]."""

    name, title = "shira", "SHiRA"
    needs = (roles("shira_weight shira_indices"),)
    silent = roles("shira_indices")
    additive = needs_shape = True
    stock = InStock("SHiRA")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        values, places = shapes["shira_weight"], shapes["shira_indices"]
        if places != (2, *values):
            raise Misfit(
                message(
                    "adapters.do_not_belong_together",
                    tensors=shaped(shira_weight=values, shira_indices=places),
                )
            )
        return super().shape(shapes)

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        values, places = helpers.take(tensors, "shira_weight"), tensors["shira_indices"]
        if values.dim() != 1 or tuple(places.shape) != (2, *values.shape) or len(shape) < 2:
            raise helpers.not_valid_for(self.title, shape, tensors)
        delta = values.new_zeros(tuple(shape)).flatten(1)
        helpers.check_indices(places, delta.shape, "shira_indices")
        return delta.index_put(tuple(places.long().unbind(0)), values, accumulate=True).reshape(
            tuple(shape)
        )

    def count_rows(self, tensors: Tensors) -> int:
        raise AdapterError(message("adapters.split_rows", kind=self.title))

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return products.whole(self.delta(spec, tensors, helpers.module_shape(spec)))


KINDS = (SHiRA(),)
