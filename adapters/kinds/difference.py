"""Full differences of a weight, a norm or a bias: no alpha, no rank."""

from __future__ import annotations

from ...messages import message
from ..kind import (
    HostWeights,
    Kind,
    ModuleShape,
    Planned,
    Product,
    Shape,
    Shapes,
    Tensors,
    first_dimension,
)
from ..lazy import helpers, products, torch
from ..rows import Rows
from ..spec import AdapterError, AdapterSpec

ROLES = ("diff", "diff_b", "w_norm", "b_norm")


class Difference(Kind):
    """Exactly one of diff, diff_b, w_norm, b_norm."""

    additive = whole = True

    def __init__(
        self, name: str, title_id: str, role: str, precedence: int, parameter: str = "weight"
    ):
        self.name, self.title_id, self.role, self.precedence, self.parameter = (
            name,
            title_id,
            role,
            precedence,
            parameter,
        )
        self.needs = (frozenset({role}),)
        self.zeroed_by = self.needs[0]
        self.scale_into = (role,) if parameter == "weight" else ()
        self.vector = role if parameter == "bias" else ""

    @property
    def title(self) -> str:
        """As people call it."""
        return message(self.title_id)

    def shape(self, shapes: Shapes) -> ModuleShape:
        return first_dimension(shapes, self.role)

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        if sum(role in tensors for role in ROLES) > 1:
            raise AdapterError(
                message("adapters.several_differences", tensors=helpers.describe(tensors))
            )
        return helpers.fit(helpers.take(tensors, *ROLES), shape, tensors).clone()

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 0, *ROLES)

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        return helpers.narrow_roles(tensors, start, length, **dict.fromkeys(ROLES, 0))

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return products.whole(self.delta(spec, tensors, helpers.take(tensors, *ROLES).shape))

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        change = tensors[self.role]
        return "diff", (change.narrow(0, *rows) if rows else change,)


KINDS = (
    Difference("diff", "adapters.full_difference", "diff", 21),
    Difference("norm", "adapters.norm_difference", "w_norm", 22),
    Difference("bias_diff", "adapters.bias_difference", "diff_b", 25, "bias"),
    Difference("bias_norm", "adapters.bias_difference", "b_norm", 26, "bias"),
)
