"""The nodes Merge LoRAs and Apply LoRA: several LoRAs become one, and one that is no file is
applied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..adapters.spec import AdapterError
from ..lora.io.dtypes import DTYPES
from ..lora.merge.collect import Source
from ..lora.merge.dry_run import forecast
from ..lora.merge.merge import MergeConfig
from ..lora.merge.methods import Option, methods
from ..lora.merge.report import MergeReport
from ..messages import message
from . import host
from .faults import NodeError, in_plain_words
from .files import own_maps, wired_lora
from .inputs import (
    AUTO,
    RESENT,
    energy_input,
    json_output,
    loaded_outputs,
    mode_input,
    model_inputs,
    strength_inputs,
)
from .languages import shown
from .load_and_fix import as_text
from .merging import Entry, merged, sources_of
from .rows import read_rows, rows_are_right, rows_changed, rows_input

MAX_CONNECTED = 50
KEEP = "as in the files"
WHOLE_NUMBERS = ("steps",)  # options that are whole numbers


class MergeLoRAs(io.ComfyNode):
    """Any number of LoRAs, files and connected LORA_MODELs, by a method of `lora.methods`, as a
    LORA_MODEL.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it."""
        return io.Schema(
            node_id="LocksmithMergeLoRAs",
            display_name="Merge LoRAs",
            category="model/loaders",
            description=(
                "Merges LoRAs from any trainers into one: exactly by default, or by a published"
                " method, at the rank you ask for."
            ),
            search_aliases=[
                "merge lora",
                "combine lora",
                "lora merge",
                "ties",
                "dare",
                "lora svd",
                "subtract lora",
                "lora block weight",
            ],
            inputs=[*_merged_inputs(), *_result_inputs(), *_connected_inputs()],
            outputs=[
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="For Apply LoRA, Save LoRA and the host's Load LoRA Model.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Where the LoRAs agree or fight, and what was cut.",
                ),
                json_output(),
            ],
            **RESENT,
        )

    @classmethod
    def validate_inputs(cls, loras=None, method=None, connected=None) -> bool | str:
        """Refuse, before anything runs, rows that cannot be read and names that are not in the
        loras folders.
        """
        return rows_are_right(loras, blocks=True)

    @classmethod
    def fingerprint_inputs(cls, loras=None, **_) -> tuple | float:
        """Makes the node run again when a file changes on disk."""
        return rows_changed(loras, blocks=True)

    @classmethod
    def execute(
        cls,
        loras,
        method,
        *,
        rank=0,
        energy=1.0,
        dtype=KEEP,
        seed=0,
        dry_run=False,
        exact=False,
        model=None,
        clip=None,
        connected=None,
    ) -> io.NodeOutput:
        """Merge; raises where a file cannot be read, for files of different models, and for
        adapters that need the model.
        """
        options = {name: value for name, value in method.items() if name != "method"}
        recipe = MergeConfig(
            method["method"],
            options,
            rank or None,
            energy if energy < 1 else None,
            None,
            dtype if dtype in DTYPES else "",
            seed,
            exact=exact,
        )
        try:
            with in_plain_words("Merge LoRAs"):
                sources = sources_of(_entries(loras, connected or {}), model, clip)
                report = MergeReport(sources, recipe)
                tensors = (
                    _forecast(sources, recipe, report)
                    if dry_run
                    else merged(
                        sources,
                        recipe,
                        report,
                        host.weights_of(model, clip),
                        overlaps=len(sources) > 1,
                    )
                )
        except (AdapterError, ValueError) as error:
            raise NodeError(message("nodes.merge_error", error=error)) from None
        document = report.as_dict()
        ui = shown(
            lambda language: report.markdown(language=language),
            document,
            json.dumps(document, ensure_ascii=False),
        )
        return io.NodeOutput(tensors, ui["text"][0], ui["report_json"][0], ui=ui)


def _merged_inputs() -> list[io.Input]:
    """What is merged, and how."""
    return [
        rows_input(
            "The LoRAs and their strengths, as on a loader; a negative one takes away what"
            " a LoRA has learned. A row may also name a connected one (lora_0 ...). Weights"
            " for parts of a LoRA: double_blocks.0-5=0.5, *.img_mlp=0, te=0",
            blocks=True,
        ),
        io.DynamicCombo.Input(
            "method",
            options=_method_options(),
            tooltip="How the LoRAs' changes become one.",
        ),
    ]


def _result_inputs() -> list[io.Input]:
    """How large, of which type and how exact the result is."""
    return [
        io.Int.Input(
            "rank",
            default=0,
            min=0,
            max=4096,
            tooltip="The largest rank; 0: as large as an exact result needs.",
        ),
        energy_input(),
        io.Combo.Input("dtype", options=[KEEP, *DTYPES], default=KEEP, tooltip="Of the result."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**32 - 1,
            control_after_generate=False,
            tooltip="Random seed (DARE, DELLA).",
        ),
        io.Boolean.Input(
            "dry_run",
            default=False,
            optional=True,
            advanced=True,
            tooltip=("Dry run: report ranks, sizes, truncation and conflicts; merge nothing."),
        ),
        io.Boolean.Input(
            "exact",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "Where no factors are exact (two LoKr of whole factors, DoRA, OFT): full"
                " differences, as large as the weights. Off: these are cut to rank 128, and"
                " the report says what that loses."
            ),
        ),
    ]


def _connected_inputs() -> list[io.Input]:
    """What other nodes give."""
    return [
        io.Model.Input(
            "model",
            optional=True,
            tooltip=("Needed for DoRA and OFT, which are folded, and for models no table knows."),
        ),
        io.Clip.Input("clip", optional=True, tooltip="The same for the text encoder."),
        io.Autogrow.Input(
            "connected",
            optional=True,
            tooltip=("LoRAs made in this workflow. One that no row names is merged at strength 1."),
            template=io.Autogrow.TemplatePrefix(
                io.LoraModel.Input("lora", optional=True),
                "lora_",
                min=0,
                max=MAX_CONNECTED,
            ),
        ),
    ]


def _method_options() -> list[io.DynamicCombo.Option]:
    return [
        io.DynamicCombo.Option(name, [_option(option) for option in method.options])
        for name, method in methods().items()
    ]


def _option(option: Option):
    if option.name in WHOLE_NUMBERS:
        return io.Int.Input(
            option.name,
            default=int(option.default),
            min=int(option.low),
            max=int(option.high),
            tooltip=option.text,
        )
    step = 0.01 if option.high - option.low >= 0.1 and option.default >= 0.01 else 1e-6
    return io.Float.Input(
        option.name,
        default=option.default,
        min=option.low,
        max=option.high,
        step=step,
        tooltip=option.text,
    )


def _entries(loras: Any, connected: Mapping[str, Any]) -> list[Entry]:
    """The rows that are on, then what is connected and named by no row. Raises ValueError for rows
    that cannot be read.
    """
    wired = {name: lora for name, lora in connected.items() if lora is not None}
    rows = read_rows(loras, True, wired)
    named = {row.name for row in rows}
    entries = [
        Entry(row.name, wired.get(row.name), row.strength, row.strength_clip, row.blocks)
        for row in rows
        if row.on
    ]
    entries += [
        Entry(name, lora, 1.0, 1.0, "") for name, lora in wired.items() if name not in named
    ]
    if not entries:
        raise AdapterError(message("nodes.nothing_to_merge"))
    return entries


def _forecast(sources: list[Source], recipe: MergeConfig, report: MergeReport) -> ExecutionBlocker:
    """Tells the report; nothing goes on from there."""
    report.expect(forecast(sources, recipe, True, host.progress_bar()))
    return ExecutionBlocker(None)


class ApplyLoRA(io.ComfyNode):
    """Applies a LORA_MODEL as Load and Fix LoRA applies a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it."""
        return io.Schema(
            node_id="LocksmithApplyLoRA",
            display_name="Apply LoRA",
            category="model/loaders",
            description=(
                "Applies a merged or trained LoRA to model and text encoder, and reports which keys"
                " have no effect and why."
            ),
            search_aliases=["apply lora", "load lora model", "merged lora"],
            inputs=[
                *model_inputs(),
                io.LoraModel.Input("lora", tooltip="The LoRA."),
                *strength_inputs(),
                mode_input(),
            ],
            outputs=loaded_outputs(),
            **RESENT,
        )

    @classmethod
    def execute(
        cls, model, lora, strength_model, strength_clip, *, clip=None, mode=AUTO
    ) -> io.NodeOutput:
        """Patch clones of model and clip."""
        with in_plain_words("Apply LoRA"):
            file, own = wired_lora(lora), own_maps()
            new_model, new_clip, report = host.apply_file(
                model,
                clip,
                file,
                "LoRA",
                strength_model=strength_model,
                strength_clip=strength_clip,
                own=own,
                bypass=False,
                mode=mode,
            )
            document = report.as_dict()
            ui = shown(report.text, document, as_text(document))
        return io.NodeOutput(new_model, new_clip, ui["text"][0], ui=ui)
