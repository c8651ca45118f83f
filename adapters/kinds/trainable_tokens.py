"""PEFT's trainable tokens (trainable_tokens/layer.py get_merged_weights): rows of an embedding that
take the place of the model's own.

It saves them alone, or beside a LoRA with trainable_token_indices (utils/other.py
TrainableTokensWrapper).
"""

from __future__ import annotations

from ...messages import joined, message
from ..kind import (
    DERIVED,
    InStock,
    Kind,
    Measured,
    ModuleShape,
    Said,
    Settings,
    Shapes,
    Tensors,
    ToldShapes,
    roles,
    shaped,
)
from ..lazy import helpers, torch
from ..rows import Rows
from ..setting import TOKENS, Setting
from ..spec import AdapterError, AdapterSpec

NAMES = ("token_indices", "trainable_token_indices")


class TrainableTokens(Kind):
    """token_rows [n, width], the rows of the n tokens that the settings list; W [words, width]
    keeps all others.
    """

    name, title = "trainable_tokens", Said("adapters.trainable_tokens")
    needs = (roles("token_rows"),)
    settings = tuple(Setting(name, TOKENS, None) for name in NAMES)
    stock = InStock("adapters.trainable_tokens", "adapters.stock_ignores_token_rows")
    bypass = DERIVED

    def lacks(self, options: Settings, shapes: ToldShapes) -> str:
        rows, tokens = shapes["token_rows"], _listed(options)
        if tokens is None:
            return self.needs_settings(joined(NAMES, "or"))
        if rows is not None and rows[:1] != (len(tokens),):
            return message(
                "adapters.tokens_and_rows", kind=self.title, tokens=len(tokens), rows=list(rows)
            )
        return (
            message("adapters.token_twice", kind=self.title)
            if len(set(tokens)) < len(tokens)
            else ""
        )

    def shape(self, shapes: Shapes) -> ModuleShape:
        return ModuleShape(None, shapes["token_rows"][1:])

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        rows, tokens = helpers.take_matrix(tensors, "token_rows"), _listed(dict(spec.options)) or ()
        if (
            weight.dim() != 2
            or rows.shape != (len(tokens), weight.shape[1])
            or len(set(tokens)) < len(tokens)
        ):
            raise AdapterError(
                message(
                    "adapters.tokens_do_not_fit",
                    tokens=len(tokens),
                    rows=shaped(token_rows=rows.shape),
                    weight=list(weight.shape),
                )
            )
        mine = spec.rows or Rows(0, weight.shape[0])
        beyond = [token for token in tokens if token >= mine.end]
        if beyond and spec.rows is None:
            raise AdapterError(
                message("adapters.token_beyond", kind=self.title, token=beyond[0], rows=mine.length)
            )
        reached = [place for place, token in enumerate(tokens) if mine.start <= token < mine.end]
        places = torch.tensor(
            [tokens[place] - mine.start for place in reached],
            dtype=torch.long,
            device=weight.device,
        )
        return weight.index_copy(0, places, helpers.toward(weight[places], rows[reached], strength))

    def measured(self, spec: AdapterSpec, tensors: Tensors, out: int, columns: int) -> Measured:
        return Measured(message("adapters.replaces_rows"))


def _listed(options: Settings) -> tuple[int, ...] | None:
    """The tokens whose rows these are; None where no setting says it."""
    return next((options[name] for name in NAMES if options.get(name) is not None), None)


KINDS = (TrainableTokens(),)
