"""KaSA (PEFT tuners/lora/variants.py KasaLinearVariant, arXiv:2412.06071): the base without its smallest singular parts, and a LoRA."""

from __future__ import annotations

from ..kind import Misfit, Product, roles
from ..lazy import helpers
from ..spec import AdapterError
from .changed_base import ChangedBase, singular_parts


class KaSA(ChangedBase):
    """down [r, in], up [out, r], lora_diag [r]: W - the `r` smallest singular parts of W + scale * up @ diag(lora_diag) @ down."""

    name, title = "kasa", "KaSA"
    needs = (roles("up down lora_diag"),)
    takes = frozenset({"alpha"})
    silent = frozenset()
    by_names = True
    precedence = 8
    stock = "KaSA. Stock would leave the smallest singular parts in, and the singular values of the pair out"

    def shape(self, shapes):
        values, rank = shapes["lora_diag"], shapes["down"][0]
        if values[0] != rank:
            raise Misfit(f"lora_diag {list(values)} does not go with down {list(shapes['down'])}")
        return super().shape({role: shapes[role] for role in ("up", "down")})

    def titled(self, kernel):
        return self.title

    def taken(self, spec, weight, tensors):
        return singular_parts(weight, helpers.size(tensors, 0, "down"), largest=False)

    def added(self, tensors):
        pair, values = super().added(tensors), helpers.take(tensors, "lora_diag").flatten()
        if values.shape[0] != pair.up.shape[1]:
            raise AdapterError(f"lora_diag [{len(values)}] does not go with up {list(pair.up.shape)}")
        return Product(pair.up * values, pair.down)


KINDS = (KaSA(),)
