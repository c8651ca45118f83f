"""SuperTuning (PEFT supertuning/layer.py, arXiv:2607.09287): changes of chosen single numbers, and
beside them a LoRA (Supra).
"""

from __future__ import annotations

from ..kind import ADDED, Kind, Misfit, ModuleShape, roles
from ..lazy import helpers, products, torch
from ..setting import MAX_ALPHA, NUMBER, Setting
from ..spec import AdapterError

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
    stock = "SuperTuning. Stock would ignore them"
    bypass = ADDED

    def asks(self, setting, shapes, module):
        return "supertuning_A" in shapes

    def shape(self, shapes):
        values, places = shapes["supertuning_values"], shapes["supertuning_indices"]
        if len(values) != 1 or values != places:
            raise Misfit(
                f"supertuning_values {list(values)} and supertuning_indices {list(places)} do not"
                " belong together"
            )
        if "supertuning_A" not in shapes:
            return super().shape(shapes)
        down, up = shapes["supertuning_A"], shapes["supertuning_B"]
        if down[0] != up[1]:
            raise Misfit(
                f"supertuning_lora_B {list(up)} and supertuning_lora_A {list(down)} have different"
                " ranks"
            )
        return ModuleShape(up[0], down[1:])

    def delta(self, spec, tensors, shape):
        values, places = helpers.take(tensors, "supertuning_values"), tensors["supertuning_indices"]
        total = torch.Size(shape).numel()
        if values.dim() != 1 or places.shape != values.shape or len(shape) < 2:
            raise AdapterError(
                f"these do not change a weight {list(shape)}: {helpers.describe(tensors)}"
            )
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
            pair * (helpers.setting_told(self, spec, "lora_alpha") / down.shape[0]), shape, tensors
        )

    def count_rows(self, tensors):
        raise AdapterError(
            "the rows of a fused module, which this model has split, cannot be cut out of a"
            " SuperTuning"
        )

    def product(self, spec, tensors, dtype):
        return products.whole(self.delta(spec, tensors, helpers.shape_told(spec)))


class SuperTuningAlone(Kind):
    """Values without their places, which follow from the weight that training began with, and from
    no other.
    """

    name, title = "supertuning_alone", "SuperTuning"
    needs = (roles("supertuning_values"), roles("supertuning_values") | PAIR)
    precedence = 30
    refusal = (
        "SuperTuning: which numbers it changes is not in the file, so the change cannot be rebuilt;"
        " in PEFT, save it with save_precomputed_indices"
    )


KINDS = (SuperTuning(), SuperTuningAlone())
