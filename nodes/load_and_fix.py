"""The node Load and Fix LoRA: takes the stock loader's place, and says what became of every key."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..planning.plan import NO_FAULT
from . import host
from .faults import NodeError, in_plain_words
from .files import listed_name, lora_changed, lora_is_listed, lora_names, lora_path, own_maps
from .inputs import AUTO, ERROR, REPORT, RESENT, mode_input, on_unmatched_input, strength_inputs


class LoadAndFixLoRA(io.ComfyNode):
    """Same inputs as the stock LoraLoader in the same order; what is added stands behind them and
    is optional.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it."""
        return io.Schema(
            node_id="LocksmithLoadAndFixLoRA",
            display_name="Load and Fix LoRA",
            category="model/loaders",
            description=(
                "Loads a LoRA from any trainer, with the right weights, and reports which keys have"
                " no effect and why."
            ),
            search_aliases=[
                "lora",
                "load lora",
                "lora loader",
                "lora key not loaded",
                "fix lora",
                "convert lora",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model the LoRA is applied to."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "The text encoder the LoRA is applied to, if it has any part in the LoRA."
                    ),
                ),
                io.Combo.Input("lora_name", options=lora_names(), tooltip="The LoRA file."),
                *strength_inputs(),
                on_unmatched_input(),
                mode_input(),
            ],
            outputs=[
                io.Model.Output("MODEL"),
                io.Clip.Output("CLIP"),
                io.String.Output(
                    "report", display_name="report", tooltip="What loaded, what did not, and why."
                ),
                io.String.Output(
                    "report_json", display_name="report_json", tooltip="The same for programs."
                ),
            ],
            **RESENT,
        )

    @classmethod
    def validate_inputs(cls, lora_name=None) -> bool | str:
        """Refuse a name that is not in the loras folders before anything runs."""
        return lora_is_listed(lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name=None, **_) -> tuple:
        """Makes the node run again when the file changes on disk."""
        return lora_changed(lora_name)

    @classmethod
    def execute(
        cls,
        model,
        lora_name,
        strength_model,
        strength_clip,
        clip=None,
        on_unmatched=REPORT,
        mode=AUTO,
    ) -> io.NodeOutput:
        """Patch clones of model and clip; raises for an unreadable file, and for unmatched keys if
        asked to.
        """
        lora_name = listed_name(lora_name)
        if strength_model == 0 and (strength_clip == 0 or clip is None):
            verdict = f"The strength is 0: {lora_name} was not loaded."
            return _output(
                model, clip, verdict, json.dumps({"verdict": verdict, "file": lora_name})
            )
        with in_plain_words(lora_name):
            path, own = lora_path(lora_name), own_maps()
            new_model, new_clip, report = host.load_and_fix(
                model, clip, path, strength_model, strength_clip, own, name=lora_name, mode=mode
            )  # fmt: skip
            if on_unmatched == ERROR:
                _demand_all(lora_name, report)
            return _output(new_model, new_clip, str(report), report.as_json())


def _output(model, clip, text: str, as_json: str) -> io.NodeOutput:
    return io.NodeOutput(model, clip, text, as_json, ui={"text": [text], "report_json": [as_json]})


def _demand_all(lora_name: str, report: host.Report) -> None:
    lost = [entry for entry in report.unplaced() if entry["category"] not in NO_FAULT]
    if lost:
        first = lost[0]
        raise NodeError(
            f"{lora_name}: {len(lost)} of {len(report.outcomes)} keys have no effect."
            f" {report.verdict} The first: {first['key']}: {first['reason']}. Set on_unmatched to"
            " 'report' to load the rest."
        )
