"""The node Repaired LoRA Path: a LoRA file repaired for another pack's loader, by path and name."""

from __future__ import annotations

import json
import os
from functools import partial

from comfy_api.latest import io

from ..errors import fault_and_remedy
from ..key_maps.reader import Reader, readers
from ..messages import message, translate
from .faults import NodeError
from .files import MadeFiles, listed_name, lora_changed, lora_names
from .inputs import ERROR, REPORT, RESENT, OfListedFile
from .languages import shown
from .repaired import repaired

WAN_LORAS = io.Custom("WANVIDLORA")
WAN_BLOCKS = io.Custom("SELECTEDBLOCKS")

_given = MadeFiles()  # by file, reader and on_unmatched


class RepairedLoRAPath(OfListedFile, io.ComfyNode):
    """A file that the reader's own code reads rightly: the file itself, or one made of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it."""
        return io.Schema(
            node_id="LocksmithRepairedLoRAPath",
            display_name="Repaired LoRA Path",
            category="model/loaders",
            description=(
                "Gives the path of a LoRA file repaired for another pack's loader, such as"
                " Nunchaku's or WanVideoWrapper's: written once, verified, reused."
            ),
            search_aliases=[
                "lora path",
                "nunchaku lora",
                "wanvideo lora",
                "convert lora",
                "fix lora",
            ],
            inputs=_inputs(),
            outputs=_outputs(),
            **RESENT,
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name=None, reader=None, on_unmatched=ERROR, **_) -> tuple:
        """Makes the node run again when the file changes on disk, and when what it gave is gone."""
        wish = (lora_name, reader, on_unmatched)
        return (*lora_changed(lora_name), _given.times_lost(wish))

    @classmethod
    def execute(
        cls,
        lora_name,
        reader,
        strength=1.0,
        *,
        on_unmatched=ERROR,
        prev_lora=None,
        blocks=None,
        merge_loras=True,
        low_mem_load=False,
    ) -> io.NodeOutput:
        """Find or make the file; raises NodeError for what the reader cannot be given."""
        file = repaired(lora_name, _known(reader), drop=on_unmatched == REPORT)
        path = os.fspath(file.path)
        _given.note((lora_name, reader, on_unmatched), file.path)
        selected = {
            "path": path,
            # Its float lists are strengths for each step.
            "strength": strength if isinstance(strength, list) else round(strength, 4),
            "name": os.path.splitext(file.name)[0],
            "blocks": (blocks or {}).get("selected_blocks", {}),
            "layer_filter": (blocks or {}).get("layer_filter", ""),
            "low_mem_load": low_mem_load and merge_loras,
            "merge_loras": merge_loras,
        }
        loras = [*(prev_lora or ()), *([selected] if selected["strength"] else ())]
        document = {
            "file": listed_name(lora_name),
            "reader": reader,
            "path": path,
            "report": file.report,
        }
        ui = shown(partial(translate, file.report), document, json.dumps(document))
        return io.NodeOutput(path, file.name, loras, ui["text"][0], ui=ui)


def _known(title: str) -> Reader:
    found = readers().get(title)
    if found is None:
        fault = message("nodes.not_known", name=title)
        remedy = message("nodes.choose_one_of", options=", ".join(readers()))
        raise NodeError(message("joints.sentence", text=fault_and_remedy(fault, remedy)))
    return found


def _inputs() -> list[io.Input]:
    titles = list(readers())
    return [
        io.Combo.Input("lora_name", options=lora_names(), tooltip="The LoRA file."),
        io.Combo.Input(
            "reader", options=titles, default=titles[0], tooltip="Whose loader the file is for."
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=-1000.0,
            max=1000.0,
            step=0.0001,
            tooltip="In the output lora only: a path has no strength.",
        ),
        io.Combo.Input(
            "on_unmatched",
            options=[ERROR, REPORT],
            default=ERROR,
            optional=True,
            tooltip=(
                "What to do about keys that fit nowhere: stop with an error, or leave them out and"
                " tell them in the report."
            ),
        ),
        *_wan_inputs(),
    ]


def _wan_inputs() -> list[io.Input]:
    """What WanVideo Lora Select asks for besides."""
    return [
        WAN_LORAS.Input("prev_lora", optional=True, tooltip="Chosen before; this one comes after."),
        WAN_BLOCKS.Input(
            "blocks",
            optional=True,
            tooltip="From WanVideo Lora Block Edit: its blocks.",
        ),
        io.Boolean.Input(
            "merge_loras",
            default=True,
            optional=True,
            advanced=True,
            tooltip="WanVideoWrapper merges all LoRAs into the model; off: in each step.",
        ),
        io.Boolean.Input(
            "low_mem_load",
            default=False,
            optional=True,
            advanced=True,
            tooltip="WanVideoWrapper merges with less memory, slower.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.String.Output("path", display_name="path", tooltip="The file's whole path."),
        # A list of files as an input of the first API's nodes takes no other type.
        io.AnyType.Output(
            "name",
            display_name="name",
            tooltip="For inputs lora_name of other loaders: this ComfyUI finds the file by it.",
        ),
        WAN_LORAS.Output(
            "lora", display_name="lora", tooltip="For WanVideoWrapper's model loader and Set LoRAs."
        ),
        io.String.Output(
            "report",
            display_name="report",
            tooltip="Whether it is the file itself, or what was renamed, fused, split, filled.",
        ),
    ]
