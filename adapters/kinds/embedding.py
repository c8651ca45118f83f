"""PEFT's LoRA of an embedding (lora/layer.py Embedding): the factors lie the other way round, and a
DoRA is per dimension.
"""

from __future__ import annotations

from ...messages import message
from ..kind import (
    DERIVED,
    HostWeights,
    InStock,
    ModuleShape,
    Planned,
    Product,
    Said,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    check_ranks,
    roles,
)
from ..lazy import helpers, products, torch
from ..rows import Rows
from ..spec import AdapterError, AdapterSpec
from .lora import LoRA


class EmbeddingLoRA(LoRA):
    """embedding_A [r, words], embedding_B [width, r]: W [words, width] + scale * (B @ A)^T."""

    name, title = "lora_embedding", Said("adapters.embedding_lora")
    needs = (roles("embedding_A embedding_B"),)
    # [r, rows of the weight] and [columns of the weight, r]: their roles, and as a file calls them
    factors, spelled = ("embedding_A", "embedding_B"), ("lora_embedding_A", "lora_embedding_B")
    takes = silent = frozenset()
    settings = ()
    is_pair = low_rank = False
    scale_into = ()
    stores = None
    host_class = ""
    zeroed_by = needs[0]
    stock = InStock("adapters.embedding_lora")

    def shape(self, shapes: Shapes) -> ModuleShape:
        first, second = (shapes[role] for role in self.factors)
        check_ranks(first[0], second[1], **dict(zip(self.spelled, (first, second), strict=True)))
        return ModuleShape(first[1], second[:1])

    def rank(self, shapes: ToldShapes) -> int | None:
        first = shapes.get(self.factors[0])
        return first[0] if first else None

    def kernel(self, shapes: Shapes) -> Shape | None:
        return ()

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        product = self.product(spec, tensors, torch.float32)
        return helpers.fit(product.matrix(), shape, tensors)

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 1, self.factors[0])

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        return helpers.narrow_roles(tensors, start, length, **{self.factors[0]: 1})

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        first, second = (products.matrix(tensors, role, dtype) for role in self.factors)
        helpers.multiply(second[:1], first[:, :1], self.factors[::-1])
        return Product(first.T * helpers.factor_of(self, spec, tensors), second.T)

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return shapes[self.factors[0]][0]

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        return None


class EmbeddingDoRA(EmbeddingLoRA):
    """A LoRA of an embedding with magnitudes [width], one for each column of the changed weight
    (PEFT lora/dora.py DoraEmbeddingLayer).
    """

    name, title = "dora_embedding", Said("adapters.embedding_lora")
    needs = (roles("embedding_A embedding_B magnitude"),)
    called = {"magnitude": "embedding_magnitude"}
    precedence = 9
    additive = linear = False
    zeroed_by = frozenset()
    bypass = DERIVED

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
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
