"""Values in place of the model's own: W + strength * (set_weight - W).

Besides ComfyUI's set_weight these are what PEFT saves whole (0.21.2): the biases that it trains
with bias = "all" or "lora_only" (tuners_utils.py _get_learnable_bias_state_dict) and the layers in
modules_to_save (utils/other.py ModulesToSaveWrapper).
"""

from __future__ import annotations

from ...messages import message
from ..kind import (
    HostWeights,
    InStock,
    Kind,
    Measured,
    ModuleShape,
    Planned,
    Shapes,
    Tensors,
    first_dimension,
    roles,
)
from ..lazy import helpers, torch
from ..rows import Rows
from ..spec import AdapterSpec

STOCK_BIAS = InStock("adapters.trained_biases", "adapters.stock_ignores_biases")
ROLES = ("set_weight", "set_bias", "weight", "bias")
# ComfyUI's own, which may have another shape than what they take the place of.
SHAPED = roles("set_weight set_bias")


class Replacement(Kind):
    """A whole weight or bias."""

    replaces = True

    def __init__(
        self, name: str, title_id: str, role: str, precedence: int, parameter: str = "weight"
    ):
        self.name, self.title_id, self.precedence = name, title_id, precedence
        self.parameter = parameter
        self.needs = (frozenset({role}),)
        self.called = {"weight": "set_weight", "bias": "set_weight", "set_bias": "set_weight"}
        self.grows_by = self.needs[0] & SHAPED
        self.vector = role if parameter == "bias" else ""
        self.stock = STOCK_BIAS if parameter == "bias" else None

    @property
    def title(self) -> str:
        """As people call it."""
        return message(self.title_id)

    def shape(self, shapes: Shapes) -> ModuleShape:
        return first_dimension(shapes, next(role for role in ROLES if role in shapes))

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        value = helpers.take(
            helpers.narrow_roles(tensors, *spec.rows, set_weight=0) if spec.rows else tensors,
            "set_weight",
        )
        return helpers.toward(weight, helpers.fit(value, weight.shape, tensors), strength).clone()

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        # The shape changes only where the host changes it: its model has to know what a larger
        # weight means.
        value = next(tensors[role] for role in ROLES if role in tensors)
        return ("set", (value,)) if adapter.padded_shape and rows is None else None

    def measured(self, spec: AdapterSpec, tensors: Tensors, out: int, columns: int) -> Measured:
        return Measured(message("adapters.replaces_values"))


KINDS = (
    Replacement("set", "adapters.replaced_weight", "set_weight", 23),
    Replacement("set", "adapters.replaced_weight", "weight", 24),
    Replacement("bias_set", "adapters.replaced_bias", "bias", 28, "bias"),
    Replacement("bias_set", "adapters.replaced_bias", "set_bias", 29, "bias"),
)
