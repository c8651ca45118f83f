"""PVeRA (PEFT pvera/layer.py, arXiv:2512.07703): VeRA whose inner vector is drawn at random in
training, and is its mean after it.
"""

from __future__ import annotations

from ..kind import ADDED, InStock, Kind, ModuleShape, Product, Said, Shape, Shapes, Tensors, roles
from ..lazy import helpers, torch
from ..spec import AdapterSpec


class PVeRA(Kind):
    """pvera_d [2r], pvera_b [out]; for the whole file pvera_A [2r, most inputs] and pvera_B [most
    outputs, r], of which it uses the first.

    The change is diag(b) B diag(d) A of the first halves of d and A: the mean. The second halves
    are what training drew with.
    """

    name, title = "pvera", "PVeRA"
    needs = (roles("pvera_d pvera_b pvera_A pvera_B"),)
    shared = roles("pvera_A pvera_B")
    zeroed_by = needs[0]
    precedence = 29
    additive = needs_shape = True
    stock = InStock("PVeRA")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        return ModuleShape(shapes["pvera_b"][0], None)

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        up, down = self._product(tensors, shape)
        return helpers.fit(up @ down, shape, tensors, flattened=True)

    def _product(self, tensors: Tensors, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        inner = torch.Size(shape[1:]).numel()
        left, right = (helpers.take(tensors, role).flatten() for role in ("pvera_b", "pvera_d"))
        outer, down = (helpers.take_matrix(tensors, role) for role in ("pvera_B", "pvera_A"))
        out, rank = left.numel(), outer.shape[1]
        if (
            right.numel() != 2 * rank
            or down.shape[0] != 2 * rank
            or outer.shape[0] < out
            or down.shape[1] < inner
        ):
            raise helpers.not_valid_for(self.title, shape, tensors)
        return left[:, None] * outer[:out], right[:rank, None] * down[:rank, :inner]

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 0, "pvera_b")

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        return helpers.narrow_roles(tensors, start, length, pvera_b=0, pvera_B=0)

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        up, down = self._product(tensors, helpers.module_shape(spec))
        return Product(up.to(dtype), down.to(dtype))

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return shapes["pvera_d"][0] // 2


class PVeRAAlone(Kind):
    """The vectors without their matrices."""

    name, title = "pvera_alone", "PVeRA"
    needs = (roles("pvera_d"), roles("pvera_b"), roles("pvera_d pvera_b"))
    takes = roles("pvera_A pvera_B")
    precedence = 30
    refusal = Said("adapters.bases_missing_save_projection", kind="PVeRA")


KINDS = (PVeRA(), PVeRAAlone())
