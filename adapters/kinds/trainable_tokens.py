"""PEFT's trainable tokens (trainable_tokens/layer.py get_merged_weights): rows of an embedding that
take the place of the model's own.

It saves them alone, or beside a LoRA with trainable_token_indices (utils/other.py
TrainableTokensWrapper).
"""

from __future__ import annotations

from ..kind import DERIVED, Kind, Measured, ModuleShape, roles
from ..lazy import helpers, torch
from ..setting import TOKENS, Setting
from ..spec import AdapterError

NAMES = ("token_indices", "trainable_token_indices")
NOTE = "it replaces rows of the model's own embedding: the change needs the model's weight"


class TrainableTokens(Kind):
    """token_rows [n, width], the rows of the n tokens that the settings list; W [words, width]
    keeps all others.
    """

    name, title = "trainable_tokens", "trainable tokens"
    needs = (roles("token_rows"),)
    settings = tuple(Setting(name, TOKENS, None) for name in NAMES)
    stock = (
        "trainable tokens: rows of an embedding, of the tokens in PEFT's settings. Stock would"
        " ignore them"
    )
    bypass = DERIVED

    def lacks(self, options, shapes):
        rows, told = shapes["token_rows"], _listed(options)
        if told is None:
            return self.needs_settings(" or ".join(NAMES))
        if rows is not None and rows[:1] != (len(told),):
            return (
                f"{self.title}: the settings list {len(told)} tokens, and the file holds"
                f" {list(rows)}: which row is whose is not known"
            )
        return (
            f"{self.title}: the settings list a token twice, and which row holds is not known"
            if len(set(told)) < len(told)
            else ""
        )

    def shape(self, shapes):
        return ModuleShape(None, shapes["token_rows"][1:])

    def patched(self, spec, tensors, weight, strength):
        rows, told = helpers.take_matrix(tensors, "token_rows"), _listed(dict(spec.options)) or ()
        if (
            weight.dim() != 2
            or rows.shape != (len(told), weight.shape[1])
            or len(set(told)) < len(told)
        ):
            raise AdapterError(
                f"{len(told)} tokens and token_rows {list(rows.shape)} do not fit an embedding"
                f" {list(weight.shape)}"
            )
        start, length = spec.rows or (0, weight.shape[0])
        beyond = [token for token in told if token >= start + length]
        if beyond and spec.rows is None:
            raise AdapterError(
                f"{self.title}: the model has no row for the token {beyond[0]}, only {length}; it"
                " was added for training"
            )
        mine = [place for place, token in enumerate(told) if start <= token < start + length]
        places = torch.tensor(
            [told[place] - start for place in mine], dtype=torch.long, device=weight.device
        )
        return weight.index_copy(0, places, helpers.toward(weight[places], rows[mine], strength))

    def measured(self, spec, tensors, out, columns):
        return Measured(NOTE)


def _listed(options):
    """The tokens whose rows these are; None where no setting says it."""
    return next((options[name] for name in NAMES if options.get(name) is not None), None)


KINDS = (TrainableTokens(),)
