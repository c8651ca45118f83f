"""The node Load and Fix LoRA: takes the stock loader's place, and says what became of every key."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from comfy_api.latest import io

from ..adapters.spec import AdapterError
from ..messages import joined, message, translate
from ..planning.plan import NO_FAULT
from ..report.load_report import Report
from . import host
from .faults import NodeError, in_plain_words
from .files import listed_name, lora_names, lora_path, own_maps
from .inputs import (
    AUTO,
    ERROR,
    REPORT,
    RESENT,
    OfListedFile,
    json_output,
    layer_weights_input,
    loaded_outputs,
    mode_input,
    model_inputs,
    on_unmatched_input,
    strength_inputs,
    words_output,
)
from .languages import shown
from .lora_model import lora_model_output, of_file


class LoadAndFixLoRA(OfListedFile, io.ComfyNode):
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
                "lora block weight",
                "lora trigger words",
            ],
            inputs=[
                *model_inputs(),
                io.Combo.Input("lora_name", options=lora_names(), tooltip="The LoRA file."),
                *strength_inputs(),
                on_unmatched_input(),
                mode_input(),
                layer_weights_input(),
            ],
            outputs=[
                *loaded_outputs(),
                json_output(),
                words_output(),
                lora_model_output(
                    "The LoRA in ComfyUI's names at strength 1, text encoders too, layer weights"
                    " folded in: for Load LoRA Model, Merge LoRAs and Save LoRA. Made only where it"
                    " is connected."
                ),
            ],
            **RESENT,
        )

    @classmethod
    def execute(
        cls,
        model,
        lora_name,
        strength_model,
        strength_clip,
        *,
        clip=None,
        on_unmatched=REPORT,
        mode=AUTO,
        layer_weights="",
    ) -> io.NodeOutput:
        """Patch clones of model and clip; raises for an unreadable file, and for unmatched keys if
        asked to.
        """
        lora_name = listed_name(lora_name)
        lora = of_file(lora_name, model, clip, layer_weights)
        if strength_model == 0 and (strength_clip == 0 or clip is None):
            verdict = message("nodes.strength_zero", file=lora_name)
            document = {"verdict": verdict, "file": lora_name}
            ui = shown(partial(translate, verdict), document, json.dumps(document))
            return io.NodeOutput(model, clip, *_texts(ui), "", lora, ui=ui)
        with in_plain_words(lora_name):
            new_model, new_clip, report = apply_listed(
                model,
                clip,
                lora_name,
                (strength_model, strength_clip),
                on_unmatched,
                mode=mode,
                blocks=layer_weights,
            )
            document = report.as_dict()
            ui = shown(report.text, document, as_text(document))
            words = ", ".join(host.words_of(lora_path(lora_name)))
            return io.NodeOutput(new_model, new_clip, *_texts(ui), words, lora, ui=ui)


def apply_listed(
    model,
    clip,
    lora_name: str,
    strengths: tuple[float, float],
    on_unmatched: str,
    *,
    mode: str,
    blocks: str = "",
) -> tuple[Any, Any, Report]:
    """Load a listed file, at strengths for model and CLIP; NodeError for unmatched keys if that is
    asked for, and for layer weights that are none.
    """
    try:
        new_model, new_clip, report = host.load_and_fix(
            model,
            clip,
            lora_path(lora_name),
            *strengths,
            own=own_maps(),
            name=lora_name,
            mode=mode,
            blocks=blocks,
        )
    except AdapterError as error:
        subject = joined([lora_name, message("nodes.of_layer_weights")], "space")
        raise NodeError(message("joints.about", subject=subject, text=error)) from None
    if on_unmatched == ERROR:
        _demand_all(lora_name, report)
    return new_model, new_clip, report


def as_text(document: Any) -> str:
    """A report as the JSON text that a node gives."""
    return json.dumps(document, ensure_ascii=False, indent=1)


def _texts(ui: dict[str, list[str]]) -> tuple[str, str]:
    return ui["text"][0], ui["report_json"][0]


def _demand_all(lora_name: str, report: Report) -> None:
    lost = [entry for entry in report.unplaced() if entry["category"] not in NO_FAULT]
    if lost:
        first = lost[0]
        raise NodeError(
            message(
                "nodes.keys_without_effect",
                file=lora_name,
                lost=len(lost),
                total=len(report.outcomes),
                verdict=report.verdict,
                key=first["key"],
                reason=first["reason"],
            )
        )
