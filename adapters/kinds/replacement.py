"""Values in place of the model's own: W + strength * (set_weight - W).

Besides ComfyUI's set_weight these are what PEFT saves whole (0.21.2): the biases that it trains
with bias = "all" or "lora_only" (tuners_utils.py _get_learnable_bias_state_dict) and the layers in
modules_to_save (utils/other.py ModulesToSaveWrapper).
"""

from __future__ import annotations

from ..kind import Kind, Measured, first_dimension, roles
from ..lazy import helpers

STOCK_BIAS = (
    "Trained biases, saved whole: they take the place of the model's own. Stock ignores them"
)
ROLES = ("set_weight", "set_bias", "weight", "bias")
SHAPED = roles(
    "set_weight set_bias"
)  # ComfyUI's own, which may have another shape than what they take the place of
NOTE = "it replaces the model's own values: the change needs the model's weight"


class Replacement(Kind):
    """A whole weight or bias."""

    replaces = True

    def __init__(
        self, name: str, title: str, role: str, precedence: int, parameter: str = "weight"
    ):
        self.name, self.title, self.precedence, self.parameter = name, title, precedence, parameter
        self.needs = (frozenset({role}),)
        self.called = {"weight": "set_weight", "bias": "set_weight", "set_bias": "set_weight"}
        self.grows_by = self.needs[0] & SHAPED
        self.vector = role if parameter == "bias" else ""
        self.stock = STOCK_BIAS if parameter == "bias" else ""

    def shape(self, shapes):
        return first_dimension(next(role for role in ROLES if role in shapes))(shapes)

    def patched(self, spec, tensors, weight, strength):
        value = helpers.take(
            helpers.narrow_roles(tensors, *spec.rows, set_weight=0) if spec.rows else tensors,
            "set_weight",
        )
        return helpers.toward(weight, helpers.fit(value, weight.shape, tensors), strength).clone()

    def host(self, tensors, alpha, rows, adapter):
        # The shape changes only where the host changes it: its model has to know what a larger
        # weight means.
        value = next(tensors[role] for role in ROLES if role in tensors)
        return ("set", (value,)) if adapter.padded_shape and rows is None else None

    def measured(self, spec, tensors, out, columns):
        return Measured(NOTE)


KINDS = (
    Replacement("set", "replaced weight", "set_weight", 23),
    Replacement("set", "replaced weight", "weight", 24),
    Replacement("bias_set", "replaced bias", "bias", 28, "bias"),
    Replacement("bias_set", "replaced bias", "set_bias", 29, "bias"),
)
