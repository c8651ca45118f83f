"""The node Inspect LoRA Keys: tells what is in a file, what will load, and what
was never trained.
"""

from __future__ import annotations

import json
from functools import partial

from comfy_api.latest import io

from ..files.hashes import Hashes
from ..report.inspection import Inspection
from ..report.markdown import DETAILS, SUMMARY, markdown
from . import host
from .faults import in_plain_words
from .files import listed_name, lora_names, lora_path, own_maps
from .inputs import RESENT, OfListedFile, json_output
from .languages import shown

OFF, ON = "off", "on"


class InspectLoRAKeys(OfListedFile, io.ComfyNode):
    """An output node: it can be run alone, and shows its report in place."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it."""
        return io.Schema(
            node_id="LocksmithInspectLoRAKeys",
            display_name="Inspect LoRA Keys",
            category="model/loaders",
            description=(
                "Tells what is in a LoRA file: model, trainer, ranks, what was trained, what was"
                " missed, and what will load."
            ),
            search_aliases=[
                "lora",
                "inspect lora",
                "lora info",
                "lora keys",
                "lora metadata",
                "lora trigger words",
                "lora not working",
                "analyze lora",
            ],
            inputs=[
                io.Combo.Input("lora_name", options=lora_names(), tooltip="The LoRA file."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Makes the answer exact: what will load into this very model.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="The same for the text encoder."),
                io.Combo.Input(
                    "detail",
                    options=list(DETAILS),
                    default=SUMMARY,
                    optional=True,
                    tooltip="How much is told: every module, or every key.",
                ),
                io.Combo.Input(
                    "weights",
                    options=[OFF, ON],
                    default=OFF,
                    optional=True,
                    tooltip=(
                        "Measure the weights too: norms, dead layers, NaN, hashes. Reads the whole"
                        " file."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "report", display_name="report", tooltip="The report as Markdown."
                ),
                json_output(),
            ],
            is_output_node=True,
            **RESENT,
        )

    @classmethod
    def execute(
        cls, lora_name, model=None, clip=None, detail=SUMMARY, weights=OFF
    ) -> io.NodeOutput:
        """Inspect the file; raises for an unreadable one."""
        lora_name = listed_name(lora_name)
        with in_plain_words(lora_name):
            inspection = host.inspect(model, clip, lora_path(lora_name), own_maps())
            measured, hashes = host.measure(inspection) if weights == ON else (None, None)
            render = partial(_markdown, inspection, detail, hashes, measured)
            fate = {
                "file": lora_name,
                "mismatch": inspection.report.mismatch,
                "patterns": inspection.report.all_patterns(),
            }
            document = (
                inspection.as_dict()
                | fate
                | (
                    {"weights": measured} | hashes.as_dict(inspection.header.metadata)
                    if measured and hashes
                    else {}
                )
            )
            ui = shown(render, document, json.dumps(document, ensure_ascii=False))
        return io.NodeOutput(ui["text"][0], ui["report_json"][0], ui=ui)


def _markdown(
    inspection: Inspection, detail: str, hashes: Hashes | None, measured, language: str
) -> str:
    return markdown(inspection, detail, hashes, measured, language=language)
