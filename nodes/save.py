"""The node Save LoRA: writes a LoRA in any dialect into the loras folder, verified."""

from __future__ import annotations

import json
from functools import partial

from comfy_api.latest import io

from ..lora.io.dtypes import DTYPES
from ..lora.rewrite.rename import writable
from ..messages import message, translate
from ..report.inspection import inspect_header
from . import host
from .faults import NodeError, in_plain_words
from .files import listed_name, lora_changed, lora_is_listed, lora_names, own_maps, wired_lora
from .inputs import RESENT
from .languages import shown
from .server.saving import Opened, read_listed, report_on, save_lora, written_files

CONNECTED = "the connected lora"
KEEP = "as it is"


class SaveLoRA(io.ComfyNode):
    """An output node: a connected LORA_MODEL or a file of the loras folder, in another tool's
    names.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it."""
        return io.Schema(
            node_id="LocksmithSaveLoRA",
            display_name="Save LoRA",
            category="model/loaders",
            description=(
                "Writes a LoRA in the names of another tool into the loras folder: fused, split and"
                " verified exactly."
            ),
            search_aliases=[
                "save lora",
                "convert lora",
                "export lora",
                "lora to kohya",
                "lora to diffusers",
                "lora to peft",
            ],
            inputs=_inputs(),
            outputs=_outputs(),
            is_output_node=True,
            **RESENT,
        )

    @classmethod
    def validate_inputs(cls, lora_name=None) -> bool | str:
        """Refuse a name that is not in the loras folders before anything runs."""
        return True if lora_name == CONNECTED else lora_is_listed(lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name=None, filename=None, **_) -> tuple:
        """Makes the node run again when the file changes on disk, and when what
        it wrote is gone.
        """
        lost = written_files.times_lost(filename or "")
        return (CONNECTED, lost) if lora_name == CONNECTED else (*lora_changed(lora_name), lost)

    @classmethod
    def execute(
        cls,
        lora_name,
        filename,
        dialect="comfyui",
        *,
        dtype=KEEP,
        overwrite=False,
        lora=None,
        model=None,
        clip=None,
    ) -> io.NodeOutput:
        """Write the file; raises for what the dialect cannot say, for a file that is there already,
        and where nothing is connected.
        """
        with in_plain_words(lora_name):
            opened = (
                _connected(lora, model, clip)
                if lora_name == CONNECTED
                else read_listed(lora_name, model, clip)
            )
            written = save_lora(opened, filename, dialect=dialect, dtype=dtype, overwrite=overwrite)
        report = report_on(written)
        document = {
            "file": listed_name(lora_name),
            "path": str(written.path),
            "difference": written.difference,
            "left_out": dict(written.left_out),
        }
        ui = shown(partial(translate, report), document, json.dumps(document))
        return io.NodeOutput(str(written.path), ui["text"][0], ui=ui)


def _inputs() -> list[io.Input]:
    return [
        io.LoraModel.Input(
            "lora",
            optional=True,
            tooltip="A LoRA made in this workflow, merged or trained.",
        ),
        io.Combo.Input(
            "lora_name",
            options=[CONNECTED, *lora_names()],
            tooltip="Or a LoRA file to convert.",
        ),
        io.String.Input(
            "filename",
            default="locksmith/lora",
            tooltip="Name in the loras folder; / makes folders.",
        ),
        io.Combo.Input(
            "dialect",
            options=list(writable()),
            default="comfyui",
            tooltip="Whose names the file gets.",
        ),
        io.Combo.Input(
            "dtype", options=[KEEP, *DTYPES], default=KEEP, tooltip="Of the file's tensors."
        ),
        io.Boolean.Input(
            "overwrite",
            default=False,
            tooltip="Replace a file of this name. Off: that is an error.",
        ),
        io.Model.Input(
            "model",
            optional=True,
            tooltip="Makes names and sizes exact, and is needed for models no table knows.",
        ),
        io.Clip.Input("clip", optional=True, tooltip="The same for the text encoder."),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.String.Output("path", display_name="path", tooltip="The file that was written."),
        io.String.Output(
            "report",
            display_name="report",
            tooltip="What was renamed, fused or split, and left out.",
        ),
    ]


def _connected(lora, model, clip) -> Opened:
    if not lora:
        raise NodeError(message("nodes.nothing_to_save"))
    own, file = own_maps(), wired_lora(lora)
    wired = host.wired_model(model, clip, own)
    inspection = inspect_header(CONNECTED, file.header, None, wired, own=own, whole=True)
    return Opened(inspection, lora, {})
