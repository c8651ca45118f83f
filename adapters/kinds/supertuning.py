"""SuperTuning (PEFT supertuning/layer.py, arXiv:2607.09287): changes of chosen single numbers, and
beside them a LoRA (Supra).
"""

from __future__ import annotations

from ...messages import message
from ..kind import (
    ADDED,
    InStock,
    Kind,
    Misfit,
    ModuleShape,
    Product,
    Said,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    roles,
    shaped,
)
from ..lazy import helpers, products, torch
from ..setting import MAX_ALPHA, NUMBER, Setting
from ..spec import AdapterError, AdapterSpec

PAIR = roles("supertuning_A supertuning_B")


class SuperTuning(Kind):
    """supertuning_values [n] at supertuning_indices [n], places in the weight as one row.

    With supertuning_A [r, in] and supertuning_B [out, r] also lora_alpha / r * B @ A.
    """

    name, title = "supertuning", "SuperTuning"
    needs = (
        roles("supertuning_values supertuning_indices"),
        roles("supertuning_values supertuning_indices") | PAIR,
    )
    silent = roles("supertuning_indices")
    precedence = 29
    settings = (Setting("lora_alpha", NUMBER, None, -MAX_ALPHA, MAX_ALPHA, needed=True),)
    additive = needs_shape = True
    stock = InStock("SuperTuning")
    bypass = ADDED

    def asks(self, setting: str, shapes: ToldShapes, module: Shape) -> bool:
        return "supertuning_A" in shapes

    def shape(self, shapes: Shapes) -> ModuleShape:
        values, places = shapes["supertuning_values"], shapes["supertuning_indices"]
        if len(values) != 1 or values != places:
            raise Misfit(
                message(
                    "adapters.do_not_belong_together",
                    tensors=shaped(supertuning_values=values, supertuning_indices=places),
                )
            )
        if "supertuning_A" not in shapes:
            return super().shape(shapes)
        down, up = shapes["supertuning_A"], shapes["supertuning_B"]
        if down[0] != up[1]:
            raise Misfit(
                message(
                    "adapters.different_ranks",
                    tensors=shaped(supertuning_lora_B=up, supertuning_lora_A=down),
                )
            )
        return ModuleShape(up[0], down[1:])

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        values, places = helpers.take(tensors, "supertuning_values"), tensors["supertuning_indices"]
        total = torch.Size(shape).numel()
        if values.dim() != 1 or places.shape != values.shape or len(shape) < 2:
            raise helpers.not_valid_for(self.title, shape, tensors)
        places = places.long()
        helpers.check_indices(
            torch.stack((torch.zeros_like(places), places)), (1, total), "supertuning_indices"
        )
        delta = values.new_zeros(total).scatter_add(0, places, values).reshape(tuple(shape))
        if "supertuning_A" not in tensors:
            return delta
        up, down = (
            helpers.take_matrix(tensors, role) for role in ("supertuning_B", "supertuning_A")
        )
        pair = helpers.multiply(up, down, ("supertuning_B", "supertuning_A"))
        return delta + helpers.fit(
            pair * (helpers.needed_setting(self, spec, "lora_alpha") / down.shape[0]),
            shape,
            tensors,
        )

    def count_rows(self, tensors: Tensors) -> int:
        raise AdapterError(message("adapters.split_rows", kind=self.title))

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return products.whole(self.delta(spec, tensors, helpers.module_shape(spec)))


class SuperTuningAlone(Kind):
    """Values without their places, which follow from the weight that training began with, and from
    no other.
    """

    name, title = "supertuning_alone", "SuperTuning"
    needs = (roles("supertuning_values"), roles("supertuning_values") | PAIR)
    precedence = 30
    refusal = Said("adapters.supertuning_places")


KINDS = (SuperTuning(), SuperTuningAlone())
