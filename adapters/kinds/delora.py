"""DeLoRA (PEFT delora/layer.py, arXiv:2503.18225): a LoRA whose every rank has a
bounded strength.
"""

from __future__ import annotations

from collections.abc import Container

from ...messages import message
from ..kind import (
    ADDED,
    DERIVED,
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
from ..lazy import helpers, torch
from ..spec import AdapterError, AdapterSpec

MIN_NORM = 1e-4


class DeLoRA(Kind):
    """delora_A [r, in], delora_B [out, r], delora_lambda [1], delora_w_norm [in], the norms of the
    weight's columns.

    The change is B diag(lambda / (r |A_j| |B_j|)) A diag(w_norm). Writers like sd-scripts call A
    and B lora_down and lora_up; their alpha says nothing.
    """

    name, title = "delora", "DeLoRA"
    needs: tuple[frozenset[str], ...] = (
        roles("delora_A delora_B delora_lambda delora_w_norm"),
        roles("down up delora_lambda delora_w_norm"),
    )
    takes = roles("alpha")
    precedence = 9  # its lora_down and lora_up are no LoRA
    additive = low_rank = True
    consumed = needs[0] | needs[1]
    mark = "delora_"
    stock = InStock("DeLoRA", "adapters.stock_ignores_or_takes_for_lora")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        up, down = (shapes[role] for role in _names(shapes))
        if up[1] != down[0]:
            raise Misfit(message("adapters.different_ranks", tensors=shaped(B=up, A=down)))
        return ModuleShape(up[0], down[1:])

    def kernel(self, shapes: Shapes) -> Shape | None:
        return tuple(shapes[_names(shapes)[1]][2:])

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        up, down = _factors(tensors, helpers.take(tensors, "delora_w_norm"))
        return helpers.fit(up @ down, shape, tensors, flattened=True)

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 0, _names(tensors)[0])

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        up, down = _factors(tensors, helpers.take(tensors, "delora_w_norm"))
        return Product(up.to(dtype), down.to(dtype))

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return shapes[_names(shapes)[0]][1]


class DeLoRAOfWeight(DeLoRA):
    """As older versions save it: the norms are those of the model's own weight."""

    name = "delora_old"
    needs = (roles("delora_A delora_B delora_lambda"),)
    precedence = 100
    linear = additive = low_rank = False
    bypass = DERIVED

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        if spec.rows:
            raise AdapterError(
                message(
                    "adapters.norms_of_all_rows",
                    kind="DeLoRA",
                    role="delora_w_norm",
                    rows=list(spec.rows),
                )
            )
        matrix = weight.flatten(1)
        up, down = _factors(tensors, torch.linalg.vector_norm(matrix, dim=0))
        return weight + strength * helpers.fit(up @ down, weight.shape, tensors, flattened=True)


def _names(tensors: Container[str]) -> tuple[str, str]:
    """The roles of B and A."""
    return ("delora_B", "delora_A") if "delora_B" in tensors else ("up", "down")


def _factors(tensors: Tensors, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    up, down = (helpers.take_matrix(tensors, role) for role in _names(tensors))
    if up.shape[1] != down.shape[0] or norms.numel() != down.shape[1]:
        raise AdapterError(
            message("adapters.not_valid", kind="DeLoRA", tensors=helpers.describe(tensors))
        )
    lengths = torch.linalg.vector_norm(down, dim=1).clamp(min=MIN_NORM) * torch.linalg.vector_norm(
        up, dim=0
    ).clamp(min=MIN_NORM)
    return (
        up * (helpers.take_scalar(tensors, "delora_lambda") / (up.shape[1] * lengths)),
        down * norms.flatten(),
    )


KINDS = (DeLoRA(), DeLoRAOfWeight())
