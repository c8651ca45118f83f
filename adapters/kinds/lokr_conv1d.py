"""LoKr of a Conv1d as PEFT trains it: kron of a matrix and a 3-d factor, which torch pads in front,
read as the weight.

Source: peft 0.21.2 tuners/lokr/layer.py make_kron (w1 gets the kernel's dimensions for Conv2d only)
and get_delta_weight (reshape).
"""

from __future__ import annotations

from ...messages import message
from ..kind import HostWeights, Planned, Product, Shape, Shapes, Tensors
from ..lazy import helpers, torch
from ..rows import Rows
from ..spec import AdapterError, AdapterSpec
from .lokr import LoKr, halves


class FrontLoKr(LoKr):
    """w1 [a, b], w2 [c, d, kernel]: kron is [c, a * d, b * kernel] and read as [a * c, b * d,
    kernel]. A convention names the kind.
    """

    name = "lokr_conv1d"
    needs = ()
    by_names = low_rank = False
    scale_into = ()
    stores = None
    host_class = mark = ""

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        return helpers.fit(self._made(spec, tensors), shape, tensors)

    def _made(self, spec: AdapterSpec, tensors: Tensors) -> torch.Tensor:
        """The delta [out, in, kernel] as its factors make it."""
        first, second = halves(tensors)
        if first.dim() != 2 or second.dim() != 3:
            raise AdapterError(
                message(
                    "adapters.not_valid", kind="LoKr (Conv1d)", tensors=helpers.describe(tensors)
                )
            )
        scale = self.factor(
            spec, self.rank({role: tensor.shape for role, tensor in tensors.items()})
        )
        made = (first.shape[0] * second.shape[0], first.shape[1] * second.shape[1], second.shape[2])
        return torch.kron(first * scale, second.contiguous()).reshape(made)

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        return None

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return Product(None, self._made(spec, tensors).flatten(1))

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return None

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        return None


KINDS = (FrontLoKr(),)
