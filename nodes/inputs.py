"""The inputs that several nodes have, and what they may be set to."""

from __future__ import annotations

import dataclasses

from comfy_api.latest import io

from .files import lora_changed, lora_is_listed
from .modes import AUTO, BYPASS, PATCH

__all__ = [
    "AUTO",
    "BYPASS",
    "ERROR",
    "PATCH",
    "REPORT",
    "RESENT",
    "OfListedFile",
    "energy_input",
    "json_output",
    "layer_weights_input",
    "loaded_outputs",
    "mode_input",
    "model_inputs",
    "on_unmatched_input",
    "strength_inputs",
    "words_output",
]

REPORT, ERROR = "report", "error"
# For schemas of nodes that report: a host that knows the word sends their reports again when it
# answers a run from its cache.
RESENT = (
    {"has_intermediate_output": True}
    if "has_intermediate_output" in {known.name for known in dataclasses.fields(io.Schema)}
    else {}
)


class OfListedFile:
    """What nodes share whose input `lora_name` is a file of the loras folders."""

    @classmethod
    def validate_inputs(cls, lora_name=None) -> bool | str:
        """Refuse a name that is not in the loras folders before anything runs."""
        return lora_is_listed(lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name=None, **_) -> tuple:
        """Makes the node run again when the file changes on disk."""
        return lora_changed(lora_name)


def model_inputs() -> list[io.Input]:
    """The inputs `model` and `clip` of every node that applies one LoRA."""
    clip = "The text encoder the LoRA is applied to, if it has any part in the LoRA."
    return [
        io.Model.Input("model", tooltip="The diffusion model the LoRA is applied to."),
        io.Clip.Input("clip", optional=True, tooltip=clip),
    ]


def loaded_outputs(report: str = "What loaded, what did not, and why.") -> list[io.Output]:
    """The outputs of every node that applies LoRAs; report: what its report says."""
    return [
        io.Model.Output("MODEL"),
        io.Clip.Output("CLIP"),
        io.String.Output("report", display_name="report", tooltip=report),
    ]


def json_output() -> io.Output:
    """The output `report_json`."""
    return io.String.Output(
        "report_json", display_name="report_json", tooltip="The same for programs."
    )


def layer_weights_input() -> io.Input:
    """The input `layer_weights` of the loader."""
    return io.String.Input(
        "layer_weights",
        default="",
        optional=True,
        advanced=True,
        tooltip=(
            "What the strength of parts is multiplied with: double_blocks.0-5=0.5, *.img_mlp=0,"
            " te=0; or a block weight vector of 12, 17, 20, 26 or 61 numbers. Empty: all of it."
        ),
    )


def words_output() -> io.Output:
    """The output `trigger_words`."""
    return io.String.Output(
        "trigger_words",
        display_name="trigger_words",
        tooltip="What the LoRAs need in a prompt, from their metadata and from files beside them.",
    )


def strength_inputs(most: float = 100.0) -> list[io.Input]:
    """The inputs `strength_model` and `strength_clip` of every node that applies one LoRA.

    most: as far as they go up and down; that of the stock loader, where no other node of stock's is
    stood in for.
    """
    changed = {"strength_model": "diffusion model", "strength_clip": "text encoder"}
    return [
        io.Float.Input(
            name,
            default=1.0,
            min=-most,
            max=most,
            step=0.01,
            tooltip=f"How strongly the {what} is changed. May be negative.",
        )
        for name, what in changed.items()
    ]


def energy_input() -> io.Input:
    """The input `energy` of every node that cuts to a rank."""
    return io.Float.Input(
        "energy",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.001,
        tooltip="Each layer gets the smallest rank that keeps this share of it; 1: all.",
    )


def on_unmatched_input() -> io.Input:
    """The input `on_unmatched` of every node that loads files."""
    return io.Combo.Input(
        "on_unmatched",
        options=[REPORT, ERROR],
        default=REPORT,
        optional=True,
        advanced=True,
        tooltip=(
            "What to do about keys that fit nowhere: tell them in the report, or stop with an"
            " error."
        ),
    )


def mode_input() -> io.Input:
    """The input `mode` of every node that applies LoRAs."""
    return io.Combo.Input(
        "mode",
        options=[AUTO, PATCH, BYPASS],
        default=AUTO,
        optional=True,
        advanced=True,
        tooltip=(
            "patch changes the weights. bypass computes beside each layer: a quantised model loses"
            " nothing, a step takes a few % more. auto: beside where weights are quantised, or"
            " patched anew in each step; the report says where and why."
        ),
    )
