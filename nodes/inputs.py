"""The inputs that several nodes have, and what they may be set to."""

from __future__ import annotations

import dataclasses

from comfy_api.latest import io

from .modes import AUTO, BYPASS, PATCH

__all__ = [
    "AUTO",
    "BYPASS",
    "ERROR",
    "PATCH",
    "REPORT",
    "RESENT",
    "mode_input",
    "on_unmatched_input",
    "strength_inputs",
]

REPORT, ERROR = "report", "error"
# For schemas of nodes that report: a host that knows the word sends their reports again when it
# answers a run from its cache.
RESENT = (
    {"has_intermediate_output": True}
    if "has_intermediate_output" in {known.name for known in dataclasses.fields(io.Schema)}
    else {}
)


def strength_inputs() -> list[io.Input]:
    """The inputs `strength_model` and `strength_clip` of every node that applies one LoRA, in the
    stock loader's ranges.
    """
    changed = {"strength_model": "diffusion model", "strength_clip": "text encoder"}
    return [
        io.Float.Input(
            name,
            default=1.0,
            min=-100.0,
            max=100.0,
            step=0.01,
            tooltip=f"How strongly the {what} is changed. May be negative.",
        )
        for name, what in changed.items()
    ]


def on_unmatched_input() -> io.Input:
    """The input `on_unmatched` of every node that loads files."""
    return io.Combo.Input(
        "on_unmatched",
        options=[REPORT, ERROR],
        default=REPORT,
        optional=True,
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
