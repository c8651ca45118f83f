"""Full differences of a weight, a norm or a bias: no alpha, no rank."""

from __future__ import annotations

from ..kind import Kind, first_dimension
from ..lazy import helpers, products
from ..spec import AdapterError

ROLES = ("diff", "diff_b", "w_norm", "b_norm")


class Difference(Kind):
    """Exactly one of diff, diff_b, w_norm, b_norm."""

    additive = whole = True

    def __init__(
        self, name: str, title: str, role: str, precedence: int, parameter: str = "weight"
    ):
        self.name, self.title, self.role, self.precedence, self.parameter = (
            name,
            title,
            role,
            precedence,
            parameter,
        )
        self.needs = (frozenset({role}),)
        self.zeroed_by = self.needs[0]
        self.shape = first_dimension(role)
        self.scale_into = (role,) if parameter == "weight" else ()
        self.vector = role if parameter == "bias" else ""

    def delta(self, spec, tensors, shape):
        if sum(role in tensors for role in ROLES) > 1:
            raise AdapterError(
                "one difference is needed for one weight, there are several:"
                f" {helpers.describe(tensors)}"
            )
        return helpers.fit(helpers.take(tensors, *ROLES), shape, tensors).clone()

    def count_rows(self, tensors):
        return helpers.size(tensors, 0, *ROLES)

    def narrow(self, tensors, start, length):
        return helpers.narrow_roles(tensors, start, length, **dict.fromkeys(ROLES, 0))

    def product(self, spec, tensors, dtype):
        return products.whole(self.delta(spec, tensors, helpers.take(tensors, *ROLES).shape))

    def host(self, tensors, alpha, rows, adapter):
        change = tensors[self.role]
        return "diff", (change.narrow(0, *rows) if rows else change,)


KINDS = (
    Difference("diff", "full difference", "diff", 21),
    Difference("norm", "norm difference", "w_norm", 22),
    Difference("bias_diff", "bias difference", "diff_b", 25, "bias"),
    Difference("bias_norm", "bias difference", "b_norm", 26, "bias"),
)
