"""HiRA (PEFT hira/layer.py): W * (1 + B A), entry by entry; no alpha."""

from __future__ import annotations

from ...messages import message
from ..kind import DERIVED, InStock, Kind, Misfit, ModuleShape, Shapes, Tensors, roles, shaped
from ..lazy import helpers, products, torch
from ..spec import AdapterSpec


class HiRA(Kind):
    """hira_A [r, in, *kernel], hira_B [out, r, 1, ...]."""

    name, title = "hira", "HiRA"
    needs = (roles("hira_A hira_B"),)
    stock = InStock("HiRA")
    bypass = DERIVED

    def shape(self, shapes: Shapes) -> ModuleShape:
        up, down = shapes["hira_B"], shapes["hira_A"]
        if up[1] != down[0]:
            raise Misfit(
                message("adapters.different_ranks", tensors=shaped(hira_B=up, hira_A=down))
            )
        return ModuleShape(up[0], down[1:])

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        cut = helpers.narrow_roles(tensors, *spec.rows, hira_B=0) if spec.rows else tensors
        factor = helpers.fit(products.low_rank(cut, "hira_B", "hira_A"), weight.shape, tensors)
        return weight * (1 + strength * factor)


KINDS = (HiRA(),)
