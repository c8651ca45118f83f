"""DEFT, and PaRa (PEFT deft/layer.py): a projection of the weight is taken off it, and a matrix put
there.
"""

from __future__ import annotations

from ...messages import message
from ..kind import (
    DERIVED,
    InStock,
    Kind,
    ModuleShape,
    Settings,
    Shapes,
    Tensors,
    ToldShapes,
    check_ranks,
    roles,
    shaped,
)
from ..lazy import helpers, torch
from ..setting import BOOLEAN, MAX_ALPHA, NUMBER, WORD, Setting
from ..spec import AdapterError, AdapterSpec

RELU, QR = "relu", "qr"


class DEFT(Kind):
    """deft_P [out, r], deft_R [r, in]: W + Q (s R - S^T W), s = alpha / r or 1.

    Q = P and S = max(P, 0) with decomposition_method = relu; Q = S, the orthogonal factor of P,
    with qr. PaRa (para) has no R.
    """

    name, title = "deft", "DEFT"
    needs = (roles("deft_P deft_R"), roles("deft_P"))
    settings = (
        Setting("decomposition_method", WORD, None, words=(RELU, QR), needed=True),
        Setting("alpha", NUMBER, None, -MAX_ALPHA, MAX_ALPHA),
        Setting("para", BOOLEAN, False),
    )
    linear = False
    stock = InStock("DEFT")
    bypass = DERIVED

    def lacks(self, options: Settings, shapes: ToldShapes) -> str:
        if "deft_R" in shapes or options.get("para"):
            return super().lacks(options, shapes)
        return message("adapters.deft_r_missing", kind=self.title)

    def shape(self, shapes: Shapes) -> ModuleShape:
        outputs, inputs = shapes["deft_P"], shapes.get("deft_R")
        if inputs is not None:
            check_ranks(outputs[1], inputs[0], deft_P=outputs, deft_R=inputs)
        return ModuleShape(outputs[0], None if inputs is None else inputs[1:])

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        first, matrix = helpers.take_matrix(tensors, "deft_P"), weight.flatten(1)
        helpers.check_all_rows(spec, first.shape[0], self.title, weight)
        if first.shape[0] != matrix.shape[0]:
            raise AdapterError(
                message(
                    "adapters.does_not_fit_outputs",
                    tensor=shaped(deft_P=first.shape),
                    weight=list(weight.shape),
                )
            )
        left, right = self._projector(spec, first)
        change = -(right.T @ matrix)
        if not spec.option("para"):
            change = change + self._put(spec, tensors, change)
        return weight + strength * (left @ change).reshape(weight.shape)

    def _projector(
        self, spec: AdapterSpec, first: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if helpers.needed_setting(self, spec, "decomposition_method") == RELU:
            return first, first.clamp(min=0)
        orthogonal = torch.linalg.qr(first).Q
        return orthogonal, orthogonal

    def _put(self, spec: AdapterSpec, tensors: Tensors, taken: torch.Tensor) -> torch.Tensor:
        """s R, of the shape of what was taken, [r, in]."""
        inputs, alpha = helpers.take_matrix(tensors, "deft_R"), spec.option("alpha")
        if inputs.shape != taken.shape:
            raise AdapterError(
                message(
                    "adapters.wrong_shape",
                    tensor=shaped(deft_R=inputs.shape),
                    shape=list(taken.shape),
                    tensors=helpers.describe(tensors),
                )
            )
        return inputs * (alpha / inputs.shape[0] if alpha else 1.0)


KINDS = (DEFT(),)
