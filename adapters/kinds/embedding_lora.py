"""PEFT's LoRA on an embedding (tuners/lora/layer.py Embedding.get_delta_weight): scale * (lora_embedding_B @ lora_embedding_A)^T."""

from __future__ import annotations

from ..kind import SCALE, Kind, Misfit, ModuleShape, Product, roles
from ..lazy import helpers, products


class EmbeddingLoRA(Kind):
    """embedding_A [r, rows], embedding_B [width, r], for a table [rows, width]."""

    name, title = "embedding_lora", "LoRA of an embedding"
    needs = (roles("embedding_A embedding_B"),)
    takes = frozenset({"alpha"})
    precedence = 9
    scaled = additive = low_rank = True
    alpha_is = SCALE
    zeroed_by = roles("embedding_A embedding_B")
    scale_into = ("embedding_A",)
    consumed = roles("embedding_A embedding_B")
    stock = "LoRA of an embedding. Stock would ignore it"

    def shape(self, shapes):
        first, second = shapes["embedding_A"], shapes["embedding_B"]
        if len(first) != 2 or len(second) != 2 or first[0] != second[1]:
            raise Misfit(f"embedding_A {list(first)} and embedding_B {list(second)} have different ranks")
        return ModuleShape(first[1], second[:1])

    def rank(self, shapes):
        first = shapes.get("embedding_A")
        return first[0] if first else None

    def kernel(self, shapes):
        return ()

    def delta(self, spec, tensors, shape):
        product = self.product(spec, tensors, helpers.take(tensors, "embedding_A").dtype)
        return helpers.fit(helpers.multiply(*product, ("embedding_A", "embedding_B")), shape, tensors)

    def count_rows(self, tensors):
        return helpers.size(tensors, 1, "embedding_A")

    def narrow(self, tensors, start, length):
        return helpers.narrow_roles(tensors, start, length, embedding_A=1)

    def product(self, spec, tensors, dtype):
        first, second = (products.matrix(tensors, role, dtype) for role in ("embedding_A", "embedding_B"))
        return Product(first.T * helpers.factor_of(self, spec, tensors), second.T)

    def product_rank(self, shapes, sides):
        return shapes["embedding_A"][0]


KINDS = (EmbeddingLoRA(),)
