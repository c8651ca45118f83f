"""LyCORIS (IA)^3: W * (1 + strength * w), w per output, or per input with on_input (LyCORIS
modules/ia3.py).
"""

from __future__ import annotations

from ...messages import message
from ..kind import DERIVED, InStock, Kind, Measured, Said, Shape, Tensors, roles
from ..lazy import helpers, torch
from ..spec import AdapterError, AdapterSpec


class IA3(Kind):
    """ia3_weight (also called weight) [n], or [1, n, 1, ...] of a convolution.

    on_input is an option of the spec or the file's own 0-d tensor; it is needed only when the layer
    is square.
    """

    name, title = "ia3", "(IA)3"
    needs = (roles("weight on_input"),)
    switches: tuple[str, ...] = ("on_input",)
    precedence = 19
    stock = InStock("(IA)3")
    bypass = DERIVED
    scaling = "ia3_weight"
    note = Said("adapters.ia3_measured")
    side = "on_input"  # the option that says which side is scaled

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        vector = helpers.take(tensors, "ia3_weight", "weight")
        fits_inputs, fits_outputs = self._sides(spec, vector, weight)
        # The shape decides; what the file says of itself is needed for square layers only.
        on_input = spec.option("on_input") if fits_inputs and fits_outputs else fits_inputs
        if on_input is not None:
            return weight * (1 + strength * self._spread(spec, vector, weight, bool(on_input)))
        if "on_input" not in tensors:
            raise AdapterError(
                message(
                    "adapters.ia3_needs_side",
                    weight=list(weight.shape),
                    tensors=helpers.describe(tensors),
                )
            )
        inputs, outputs = (
            self._spread(spec, vector, weight, side).expand(weight.shape) for side in (True, False)
        )
        return weight * (
            1
            + strength * torch.where(helpers.take_scalar(tensors, "on_input") != 0, inputs, outputs)
        )

    def _sides(
        self, spec: AdapterSpec, vector: torch.Tensor, weight: torch.Tensor
    ) -> tuple[bool, bool]:
        """Whether the vector fits the inputs and the outputs; of a row slice the trained module's
        height is not known.
        """
        fits_inputs = weight.dim() > 1 and vector.numel() == weight.shape[1]
        if spec.rows is None:
            return fits_inputs, vector.numel() == weight.shape[0]
        return fits_inputs, vector.numel() >= sum(spec.rows)

    def _spread(
        self, spec: AdapterSpec, vector: torch.Tensor, weight: torch.Tensor, on_input: bool
    ) -> torch.Tensor:
        if on_input:
            return helpers.input_vector(vector, self.scaling, weight)
        return helpers.output_vector(vector, self.scaling, weight, spec.rows)

    def measured(self, spec: AdapterSpec, tensors: Tensors, out: int, columns: int) -> Measured:
        vector = helpers.take(tensors, "ia3_weight", "weight")
        return Measured(self.note, torch.linalg.vector_norm(vector, dtype=torch.float64).item())

    def on_outputs(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> AdapterSpec | None:
        """Made to say so of itself, as outputs alone would not show it."""
        if len(shape) < 2:
            return None
        on_input = spec.option(self.side)
        if on_input is None:
            on_input = next(iter(tensors.values())).numel() == shape[1]
        return None if on_input else spec._replace(options=(*spec.options, (self.side, False)))


KINDS = (IA3(),)
