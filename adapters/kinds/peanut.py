"""PEANuT (PEFT peanut/layer.py _compute_delta_weight, arXiv:2410.01870): a small network makes the
change out of the weight itself.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import TypeAlias

from ...messages import message
from ..kind import (
    DERIVED,
    InStock,
    Kind,
    Misfit,
    ModuleShape,
    Settings,
    Shapes,
    Tensors,
    ToldShapes,
    roles,
    shaped,
)
from ..lazy import helpers, torch
from ..setting import INTEGER, SCALING, WORD, Setting
from ..spec import AdapterError, AdapterSpec

MAX_DEPTH = 16
ENCODERS, DECODERS = (
    tuple(f"peanut_{side}_{index}" for index in range(MAX_DEPTH)) for side in ("encoder", "decoder")
)


Activation: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))


# As transformers' activations.py (ACT2CLS) calls and defines them; those with weights of their own,
# and rare ones, are left out.
ACTIVATIONS: dict[str, Activation] = {
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "relu6": lambda x: x.clamp(0, 6),
    "leaky_relu": lambda x: torch.where(x < 0, 0.01 * x, x),
    "gelu": lambda x: torch.nn.functional.gelu(x),
    "gelu_python": lambda x: torch.nn.functional.gelu(x),
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": lambda x: x * torch.sigmoid(x),
    "swish": lambda x: x * torch.sigmoid(x),
    "mish": lambda x: x * torch.tanh(torch.nn.functional.softplus(x)),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "sigmoid": lambda x: torch.sigmoid(x),
    "tanh": lambda x: torch.tanh(x),
    "linear": lambda x: x,
}


class PEANuT(Kind):
    """peanut_A [r, out], peanut_B [out, r], and as many encoders and decoders [r, r] as the setting
    depth says.

    Each input's column of the weight goes through A, the encoders and the decoders, the activation
    behind each; behind each decoder what went into its encoder is added. B makes a column of the
    change of it.
    """

    name, title = "peanut", "PEANuT"
    needs = (roles("peanut_A peanut_B"),)
    takes = frozenset(ENCODERS + DECODERS)
    zeroed_by = roles("peanut_B")
    settings = (
        SCALING,
        Setting("depth", INTEGER, None, 0, MAX_DEPTH, needed=True),
        Setting("act_fn", WORD, None, words=tuple(ACTIVATIONS), needed=True),
    )
    linear = False
    stock = InStock("PEANuT")
    bypass = DERIVED

    def shape(self, shapes: Shapes) -> ModuleShape:
        first, last = shapes["peanut_A"], shapes["peanut_B"]
        if first != last[::-1] or len(first) != 2:
            raise Misfit(
                message(
                    "adapters.do_not_belong_together", tensors=shaped(peanut_A=first, peanut_B=last)
                )
            )
        return ModuleShape(first[1], None)

    def lacks(self, options: Settings, shapes: ToldShapes) -> str:
        lacking, depth = super().lacks(options, shapes), options.get("depth")
        if lacking:
            return lacking
        wanted = {*ENCODERS[:depth], *DECODERS[:depth]}
        return (
            ""
            if shapes.keys() & self.takes == wanted
            else message("adapters.peanut_depth", kind=self.title, depth=depth)
        )

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        first, last = (helpers.take_matrix(tensors, role) for role in ("peanut_A", "peanut_B"))
        helpers.check_all_rows(spec, first.shape[1], self.title, weight)
        scaling, depth, name = self._told(spec)
        activation, matrix = ACTIVATIONS[name], weight.flatten(1)
        if first.shape[1] != matrix.shape[0] or last.shape != (matrix.shape[0], first.shape[0]):
            raise AdapterError(
                message(
                    "adapters.not_valid_for",
                    kind=self.title,
                    weight=list(weight.shape),
                    tensors=helpers.describe(tensors),
                )
            )
        hidden = _through(tensors, activation(first @ matrix), activation, depth)
        return weight + strength * scaling * (last @ hidden).reshape(weight.shape)

    def _told(self, spec: AdapterSpec) -> tuple[float, int, str]:
        """The values of its settings."""
        scaling, depth, name = (
            helpers.needed_setting(self, spec, setting.name) for setting in self.settings
        )
        return scaling, depth, name


def _through(
    tensors: Tensors, hidden: torch.Tensor, activation: Activation, depth: int
) -> torch.Tensor:
    """[r, in] through encoders and decoders."""
    went_in = []
    for role in ENCODERS[:depth]:
        went_in.append(hidden)
        hidden = activation(_square(tensors, role, hidden) @ hidden)
    for role in DECODERS[:depth]:
        hidden = activation(_square(tensors, role, hidden) @ hidden) + went_in.pop()
    return hidden


def _square(tensors: Tensors, role: str, hidden: torch.Tensor) -> torch.Tensor:
    """An encoder or decoder [r, r]."""
    matrix = helpers.take_matrix(tensors, role)
    if matrix.shape != (hidden.shape[0], hidden.shape[0]):
        raise AdapterError(
            message(
                "adapters.wrong_for_ranks",
                tensor=shaped(**{role: matrix.shape}),
                rank=hidden.shape[0],
            )
        )
    return matrix


KINDS = (PEANuT(),)
