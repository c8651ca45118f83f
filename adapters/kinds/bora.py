"""BoRA and the adapters of a small core, as Stable Audio's trainer has them.

Source: Stability-AI/stable-audio-3 stable_audio_3/models/lora/model.py bora_forward,
lora_xs_forward.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...messages import message
from ..kind import (
    DERIVED,
    SCALE,
    HostWeights,
    InStock,
    Kind,
    Measured,
    ModuleShape,
    Planned,
    Said,
    Settings,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    roles,
)
from ..lazy import helpers, products, torch
from ..rows import Rows
from ..spec import AdapterError, AdapterSpec
from .lora import LoRA

TINY = 1e-12


class FlatLoRA(LoRA):
    """A LoRA of the weight as a matrix: down is [r, in * kernel] on a convolution too."""

    name = "lora_flat"
    needs: tuple[frozenset[str], ...] = ()
    variant_of = "lora"
    metadata = ("lora_config",)
    stores = None

    def claims(self, shapes: ToldShapes, metadata: Mapping[str, str], settings: Settings) -> bool:
        return (
            '"adapter_type"' in metadata.get("lora_config", "")
            and len(shapes["down"] or ()) == 2
            and "mid" not in shapes
        )

    def shape(self, shapes: Shapes) -> ModuleShape:
        return super().shape(shapes)._replace(flat=True)

    def kernel(self, shapes: Shapes) -> Shape | None:
        return None

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        delta = products.low_rank(tensors) * spec.scale_for(helpers.size(tensors, 0, "down"))
        return helpers.fit(delta, shape, tensors, flattened=True)


class BoRA(FlatLoRA):
    """A LoRA whose rows are given the lengths magnitude_r [out], then the columns of that
    magnitude_c [in * kernel].
    """

    name, title = "bora", "BoRA"
    needs = (roles("down up magnitude_r magnitude_c"),)
    variant_of = ""
    takes = roles("alpha")
    silent = frozenset()
    settings = ()
    precedence = 9
    additive = is_pair = low_rank = linear = False
    alpha_is = SCALE
    zeroed_by = frozenset()
    scale_into = ()
    stores = None
    stock = InStock("BoRA (Stable Audio)", "adapters.stock_drops_magnitudes")
    host_class = ""
    bypass = DERIVED

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        helpers.check_all_rows(spec, self.count_rows(tensors), self.title, weight)
        rows, columns = (
            helpers.take(tensors, role).flatten() for role in ("magnitude_r", "magnitude_c")
        )
        matrix = weight.flatten(1)
        if rows.shape[0] != matrix.shape[0] or columns.shape[0] != matrix.shape[1]:
            raise AdapterError(
                message(
                    "adapters.magnitudes_do_not_fit",
                    rows=len(rows),
                    columns=len(columns),
                    weight=list(weight.shape),
                )
            )
        pair = {role: tensors[role] for role in ("up", "down")}
        delta = helpers.fit(products.low_rank(pair).flatten(1), matrix.shape, tensors)
        turned = matrix + delta * spec.scale_for(helpers.size(tensors, 0, "down"))
        turned = turned * (
            rows[:, None] / (torch.linalg.vector_norm(turned, dim=1, keepdim=True) + TINY)
        )
        turned = turned * (columns / (torch.linalg.vector_norm(turned, dim=0) + TINY))
        return helpers.toward(weight, turned.reshape(weight.shape), strength)

    def measured(self, spec: AdapterSpec, tensors: Tensors, out: int, columns: int) -> Measured:
        return Kind.measured(self, spec, tensors, out, columns)

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        return None


class Core(Kind):
    """M_xs [r, r] between singular vectors of the weight that training began with."""

    name, title = "lora_xs", "LoRA-XS"
    needs = (roles("M_xs"),)
    takes = roles("alpha magnitude magnitude_r magnitude_c")
    precedence = 8
    refusal = Said("adapters.lora_xs_bases")


KINDS = (FlatLoRA(), BoRA(), Core())
