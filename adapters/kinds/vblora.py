"""VB-LoRA (PEFT vblora/layer.py and model.py, arXiv:2405.15179): a LoRA whose factors are put
together from vectors of one bank.

Every part of a factor, as long as a vector, is a mean of k vectors of the bank, weighted by the
softmax of their k largest logits.
"""

from __future__ import annotations

from functools import reduce
from operator import add

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
    ToldShapes,
    roles,
    shaped,
)
from ..lazy import helpers, torch
from ..setting import INTEGER, MAX_RANK, Setting
from ..spec import AdapterError, AdapterSpec


class VBLoRA(Kind):
    """vblora_A [r, in / b, n], vblora_B [out / b, r, n], logits over the n vectors of vblora_bank
    [n, b], which the whole file shares.
    """

    name, title = "vblora", "VB-LoRA"
    needs = (roles("vblora_A vblora_B vblora_bank"),)
    shared = zeroed_by = roles("vblora_bank")
    settings: tuple[Setting, ...] = (Setting("topk", INTEGER, None, 1, MAX_RANK, needed=True),)
    precedence = 29
    additive = True
    stock = InStock("VB-LoRA")
    bypass = ADDED
    first, second = "vblora_A", "vblora_B"

    def shape(self, shapes: Shapes) -> ModuleShape:
        first, second, bank = (shapes[role] for role in (self.first, self.second, "vblora_bank"))
        if len(first) != 3 or len(second) != 3 or len(bank) != 2 or first[0] != second[1]:
            raise Misfit(
                message(
                    "adapters.not_valid",
                    kind=self.title,
                    tensors=shaped(**{self.first: first, self.second: second, "vblora_bank": bank}),
                )
            )
        return ModuleShape(second[0] * bank[1], (first[1] * bank[1],))

    def rank(self, shapes: ToldShapes) -> int | None:
        first = shapes.get(self.first)
        return first[0] if first else None

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        product = self.product(spec, tensors, torch.float32)
        return helpers.fit(product.matrix(), shape, tensors)

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 0, self.second) * helpers.size(tensors, 1, "vblora_bank")

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        size = helpers.size(tensors, 1, "vblora_bank")
        if start % size or length % size:
            return None
        return helpers.narrow_roles(
            tensors, start // size, length // size, **dict.fromkeys(self._of_outputs(), 0)
        )

    def _of_outputs(self) -> tuple[str, ...]:
        return (self.second,)

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        bank = helpers.take_matrix(tensors, "vblora_bank")
        down, up = (self._means(spec, tensors, role, bank) for role in (self.first, self.second))
        if down.shape[0] != up.shape[1]:
            raise AdapterError(
                message("adapters.not_valid", kind=self.title, tensors=helpers.describe(tensors))
            )
        return Product(up.transpose(1, 2).flatten(0, 1).to(dtype), down.flatten(1).to(dtype))

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return self.rank(shapes)

    def _means(
        self, spec: AdapterSpec, tensors: Tensors, role: str, bank: torch.Tensor
    ) -> torch.Tensor:
        """The vectors that stand at each place of a factor: [a, b, size]."""
        logits, count = helpers.take(tensors, role), helpers.needed_setting(self, spec, "topk")
        if (
            logits.dim() != 3
            or logits.shape[-1] != bank.shape[0]
            or not 1 <= count <= bank.shape[0]
        ):
            raise AdapterError(
                message(
                    "adapters.vblora_topk",
                    tensor=shaped(**{role: logits.shape}),
                    topk=count,
                    bank=list(bank.shape),
                )
            )
        values, places = logits.topk(count, dim=-1)
        return _weighted(values.softmax(-1), places, bank)


class VBLoRAOfLargest(VBLoRA):
    """As save_only_topk_weights saves it: vblora_indices_* [a, b, k] into the bank,
    vblora_weights_* [a, b, k - 1].

    The last weight is what the others leave of 1.
    """

    name = "vblora_topk"
    needs = (
        roles("vblora_indices_A vblora_weights_A vblora_indices_B vblora_weights_B vblora_bank"),
    )
    silent = roles("vblora_indices_A vblora_indices_B")
    settings = ()
    first, second = "vblora_indices_A", "vblora_indices_B"

    def _of_outputs(self) -> tuple[str, ...]:
        return "vblora_indices_B", "vblora_weights_B"

    def _means(
        self, spec: AdapterSpec, tensors: Tensors, role: str, bank: torch.Tensor
    ) -> torch.Tensor:
        weights, places = helpers.take(tensors, role.replace("indices", "weights")), tensors[role]
        if places.dim() != 3 or weights.shape != (*places.shape[:2], places.shape[2] - 1):
            raise AdapterError(
                message("adapters.not_valid", kind=self.title, tensors=helpers.describe(tensors))
            )
        helpers.check_indices(
            torch.stack((places.long().flatten(), torch.zeros_like(places.flatten()).long())),
            bank.shape,
            role,
        )
        rest = 1 - weights.sum(-1, keepdim=True)
        return _weighted(torch.cat((weights, rest), -1), places.long(), bank)


class VBLoRAAlone(Kind):
    """Logits without their bank."""

    name, title = "vblora_alone", "VB-LoRA"
    needs = tuple(kind.needs[0] - kind.shared for kind in (VBLoRA, VBLoRAOfLargest))
    precedence = 30
    refusal = Said("adapters.bank_missing")


def _weighted(weights: torch.Tensor, places: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """The means of k vectors: weights and places [a, b, k], bank [n, size] -> [a, b, size], one k
    at a time.
    """
    parts = (
        weights[..., place, None] * bank[places[..., place]] for place in range(weights.shape[-1])
    )
    return reduce(add, parts)


KINDS = (VBLoRA(), VBLoRAOfLargest(), VBLoRAAlone())
