"""AI-Toolkit's network type fullrank: a whole difference under the name of a LoRA's down factor;
the up is an identity, not saved.
"""

from __future__ import annotations

from ..kind import HostWeights, Planned, Shape, Tensors, roles
from ..lazy import torch
from ..rows import Rows
from ..spec import AdapterSpec
from .difference import Difference


class FullRank(Difference):
    """A lone down [out, in, *kernel] of the weight's own shape, in a file in which no adapter has
    an up.
    """

    scaled = True
    called = {"down": "diff"}
    takes = roles("alpha")  # what it means is a convention
    never_beside = roles("up")

    def __init__(self, name: str, title_id: str, role: str, precedence: int):
        super().__init__(name, title_id, role, precedence)
        self.scale_into = ("diff",)  # as it is called where it is written

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        return super().delta(spec, tensors, shape) * spec.scale_for(1)

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        return (
            super().host(tensors, alpha, rows, adapter) if adapter.strength.scale is None else None
        )


KINDS = (FullRank("fullrank", "adapters.full_rank_difference", "down", 90),)
