"""PEFT (IA)^3: W * (1 + strength * (l - 1)), l per output, or per input of a feed-forward layer
(peft 0.21.2 tuners/ia3/layer.py).
"""

from __future__ import annotations

from math import prod

from ...messages import message
from ..kind import InStock, Measured, Shape, Tensors, ToldShapes, roles, shaped
from ..lazy import helpers, torch
from ..setting import MODULES, Setting
from ..spec import AdapterError, AdapterSpec
from .ia3 import IA3


class PeftIA3(IA3):
    """ia3_l is [out, 1] or [1, in] of a linear layer, [1, out, 1, ...] or [1, in, 1, ...] of a
    convolution.

    The shape tells the side; where it fits both, as of square convolutions, the setting
    feedforward_modules does. Per output it scales the bias too (weight [out]); per input it leaves
    the bias alone.
    """

    name = "ia3_peft"
    needs = (roles("ia3_l"),)
    switches = ()
    precedence = 20
    parameter = "both"
    needs_shape = True
    settings = (Setting("feedforward_modules", MODULES, None),)
    stock = InStock("(IA)3 (PEFT)")
    scaling = "ia3_l"
    side = "feedforward_modules"

    def asks(self, setting: str, shapes: ToldShapes, module: Shape) -> bool:
        vector = shapes["ia3_l"]
        return vector is None or self._side(vector, module) is None

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        vector = helpers.take(tensors, "ia3_l")
        on_input = self._on_input(spec, vector, weight.shape)
        if on_input is None:
            shape = list(spec.option("shape") or weight.shape)
            raise AdapterError(
                message("adapters.ia3_either_side", tensor=shaped(ia3_l=vector.shape), weight=shape)
            )
        if weight.dim() == 1 and on_input:
            return weight.clone()
        return weight * (1 + strength * (self._spread(spec, vector, weight, on_input) - 1))

    def _on_input(self, spec: AdapterSpec, vector: torch.Tensor, shape: Shape) -> bool | None:
        """Whether the vector scales inputs; None where it may be either side's. shape: of the
        module, or of what is at hand of it.
        """
        side = self._side(vector.shape, spec.option("shape") or shape)
        return spec.option(self.side) if side is None else side

    def _side(self, vector: Shape, module: Shape) -> bool | None:
        """What the shapes say of it."""
        count = prod(vector)
        if len(vector) == 2 and count > 1:
            return vector[0] == 1
        fits = [count == size for size in module[:2]]
        return fits[1] if len(fits) == 2 and fits[0] != fits[1] else None

    def on_outputs(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> AdapterSpec | None:
        if len(shape) < 2 or self._on_input(spec, next(iter(tensors.values())), shape) is not False:
            return None
        return spec._replace(options=(*spec.options, (self.side, False)))

    def measured(self, spec: AdapterSpec, tensors: Tensors, out: int, columns: int) -> Measured:
        vector = helpers.take(tensors, "ia3_l") - 1
        return Measured(self.note, torch.linalg.vector_norm(vector, dtype=torch.float64).item())


KINDS = (PeftIA3(),)
