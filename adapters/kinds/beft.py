"""BEFT (PEFT beft/layer.py): a change of the bias alone."""

from __future__ import annotations

from ..kind import InStock, Kind, ModuleShape, Said, roles
from ..lazy import helpers, products


class BEFT(Kind):
    """beft_bias [1, out]."""

    name, title = "beft", Said("adapters.bias_difference")
    needs = (roles("beft_bias"),)
    parameter = "bias"
    additive = whole = True
    vector = "beft_bias"
    stock = InStock("BEFT")

    def shape(self, shapes):
        return ModuleShape(shapes["beft_bias"][-1], ())

    def delta(self, spec, tensors, shape):
        return helpers.fit(helpers.take(tensors, "beft_bias").flatten(), shape, tensors)

    def count_rows(self, tensors):
        return helpers.take(tensors, "beft_bias").numel()

    def narrow(self, tensors, start, length):
        return {**tensors, "beft_bias": tensors["beft_bias"].flatten().narrow(0, start, length)}

    def product(self, spec, tensors, dtype):
        return products.whole(helpers.take(tensors, "beft_bias").flatten())

    def host(self, tensors, alpha, rows, adapter):
        change = tensors["beft_bias"].flatten()
        return "diff", (change.narrow(0, *rows) if rows else change,)


KINDS = (BEFT(),)
