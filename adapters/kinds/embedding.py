"""PEFT's LoRA of an embedding (lora/layer.py Embedding): the factors lie the other way round, and a
DoRA is per dimension.
"""

from __future__ import annotations

from ...messages import message
from ..kind import DERIVED, InStock, ModuleShape, Product, Said, check_ranks, roles
from ..lazy import helpers, products, torch
from ..spec import AdapterError
from .lora import LoRA


class EmbeddingLoRA(LoRA):
    """embedding_A [r, words], embedding_B [width, r]: W [words, width] + scale * (B @ A)^T."""

    name, title = "lora_embedding", Said("adapters.embedding_lora")
    needs = (roles("embedding_A embedding_B"),)
    takes = silent = frozenset()
    settings = ()
    is_pair = low_rank = False
    scale_into = ()
    stores = None
    host_class = ""
    zeroed_by = needs[0]
    stock = InStock("adapters.embedding_lora")

    def shape(self, shapes):
        first, second = shapes["embedding_A"], shapes["embedding_B"]
        check_ranks(first[0], second[1], lora_embedding_A=first, lora_embedding_B=second)
        return ModuleShape(first[1], second[:1])

    def rank(self, shapes):
        first = shapes.get("embedding_A")
        return first[0] if first else None

    def kernel(self, shapes):
        return ()

    def delta(self, spec, tensors, shape):
        product = self.product(spec, tensors, torch.float32)
        return helpers.fit(
            helpers.multiply(product.up, product.down, ("embedding_A", "embedding_B")),
            shape,
            tensors,
        )

    def count_rows(self, tensors):
        return helpers.size(tensors, 1, "embedding_A")

    def narrow(self, tensors, start, length):
        return helpers.narrow_roles(tensors, start, length, embedding_A=1)

    def product(self, spec, tensors, dtype):
        first, second = (
            products.matrix(tensors, role, dtype) for role in ("embedding_A", "embedding_B")
        )
        helpers.multiply(second[:1], first[:, :1], ("embedding_B", "embedding_A"))
        return Product(first.T * helpers.factor_of(self, spec, tensors), second.T)

    def product_rank(self, shapes, sides):
        return shapes["embedding_A"][0]

    def host(self, tensors, alpha, rows, adapter):
        return None


class EmbeddingDoRA(EmbeddingLoRA):
    """The same with magnitudes [width], one for each column of the changed weight (PEFT
    lora/dora.py DoraEmbeddingLayer).
    """

    name, title = "dora_embedding", Said("adapters.embedding_lora")
    needs = (roles("embedding_A embedding_B magnitude"),)
    called = {"magnitude": "embedding_magnitude"}
    precedence = 9
    additive = linear = False
    zeroed_by = frozenset()
    bypass = DERIVED

    def patched(self, spec, tensors, weight, strength):
        if spec.rows is not None and spec.rows != (0, self.count_rows(tensors)):
            raise AdapterError(
                message("adapters.embedding_norms_of_all_rows", rows=list(spec.rows))
            )
        changed = weight + self.delta(spec, tensors, weight.shape)
        length = torch.linalg.vector_norm(changed, dim=0, keepdim=True).clamp(
            min=torch.finfo(torch.float32).tiny
        )
        magnitude = helpers.input_vector(
            helpers.take(tensors, "embedding_magnitude"), "magnitude", weight
        )
        return helpers.toward(weight, changed * (magnitude / length), strength)


KINDS = (EmbeddingLoRA(), EmbeddingDoRA())
