"""PEFT (IA)^3: W * (1 + strength * (l - 1)), l per output, or per input of a feed-forward layer (PEFT ia3/layer.py)."""

from __future__ import annotations

from ..kind import Measured, roles
from ..lazy import helpers, torch
from ..spec import AdapterError
from .ia3 import IA3, NOTE


class PeftIA3(IA3):
    """ia3_l is [out, 1] or [1, in] of a linear layer, [1, n, 1, 1] of a convolution (square ones need the option feedforward).

    Per output it scales the bias too (weight [out]); per input it leaves the bias alone.
    """

    name = "ia3_peft"
    needs = (roles("ia3_l"),)
    switches = ()
    precedence = 20
    reaches = "both"
    stock = "(IA)3 by PEFT. Stock would ignore them"
    scaling = "ia3_l"
    side = "feedforward"

    def patched(self, spec, tensors, weight, strength):
        vector = helpers.take(tensors, "ia3_l")
        feedforward = spec.option("feedforward", _is_feedforward(vector, weight))
        if feedforward is None:
            raise AdapterError(
                f"ia3_l {list(vector.shape)} fits both sides of {list(weight.shape)}: feedforward_modules of adapter_config.json must tell"
            )
        if weight.dim() == 1 and feedforward:
            return weight.clone()
        return weight * (1 + strength * (self._spread(spec, vector, weight, bool(feedforward)) - 1))

    def measured(self, spec, tensors, out, columns):
        vector = helpers.take(tensors, "ia3_l") - 1
        return Measured(NOTE, torch.linalg.vector_norm(vector, dtype=torch.float64).item())


def _is_feedforward(vector, weight):
    if vector.dim() == 2:
        return vector.shape[0] == 1 and vector.shape[1] != 1
    if weight.dim() < 2:
        return False
    fits = {weight.shape[1]: True, weight.shape[0]: False}
    return fits.get(vector.numel(), False) if len(fits) == 2 else None


KINDS = (PeftIA3(),)
