"""AdaLoRA (PEFT tuners/adalora/layer.py get_delta_weight, arXiv:2303.10512): scale * lora_B @ diag(lora_E) @ lora_A."""

from __future__ import annotations

from ..kind import Misfit, ModuleShape, Product, roles
from ..lazy import helpers, products
from ..spec import AdapterError
from .lora import LoRA


class AdaLoRA(LoRA):
    """down [r, in * kernel], up [out, r], lora_E [r, 1] of singular values; what it is scaled by is a convention.

    Ranks that training gave up are left out of the file, so that r differs from module to module.
    """

    name, title = "adalora", "AdaLoRA"
    needs = (roles("up down lora_E"),)
    takes = frozenset()
    silent = frozenset()
    precedence = 8
    is_pair = False
    zeroed_by = roles("up down lora_E")
    stores = None
    consumed = roles("up down lora_E")
    stock = "AdaLoRA. Stock would ignore the singular values and the settings, or place nothing"
    host_class = ""
    host_drops = frozenset()

    def shape(self, shapes):
        up, down, values = shapes["up"], shapes["down"], shapes["lora_E"]
        if len(up) != 2 or len(down) != 2 or up[1] != down[0] or values[0] != down[0]:
            raise Misfit(f"up {list(up)}, lora_E {list(values)} and down {list(down)} have different ranks")
        return ModuleShape(up[0], down[1:], flat=True)

    def titled(self, kernel):
        return self.title

    def kernel(self, shapes):
        return None

    def delta(self, spec, tensors, shape):
        product = self.product(spec, tensors, helpers.take(tensors, "up").dtype)
        return helpers.fit(helpers.multiply(*product, ("up", "down")), shape, tensors, flattened=True)

    def narrow(self, tensors, start, length):
        return helpers.narrow_roles(tensors, start, length, up=0)

    def product(self, spec, tensors, dtype):
        up, down, values = (products.matrix(tensors, role, dtype) for role in ("up", "down", "lora_E"))
        if values.shape != (down.shape[0], 1):
            raise AdapterError(f"lora_E {list(values.shape)} does not go with down {list(down.shape)}")
        return Product(up * helpers.factor_of(self, spec, tensors), down * values)

    def product_rank(self, shapes, sides):
        return shapes["up"][1]

    def host(self, tensors, alpha, rows, adapter):
        return None

    def host_pair(self, weights):
        return None


KINDS = (AdaLoRA(),)
