"""The node Extract LoRA: what a tuned model changed, as a LORA_MODEL."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from comfy_api.latest import io

from ..adapters.spec import AdapterError
from ..lora.io.dtypes import DTYPES
from ..lora.rewrite.extract import Extraction, ExtractOptions, extract_tensors, not_asked
from ..lora.rewrite.resize import RankTarget
from ..messages import Message, joined, message, translate
from . import host
from .connected_model import ConnectedModel
from .faults import NodeError, in_plain_words
from .inputs import RESENT, energy_input, json_output
from .languages import shown
from .load_and_fix import as_text

KEEP = "as the tuned model"
HOSTS, CPU = "as ComfyUI computes", "cpu"
NUMBERS = 8  # of fp32 for each of a weight: the weight, the base, the change, its decomposition
MAX_LISTED = 12
ROUNDING = 1e-4  # of a change: no loss worth a line


class ExtractLoRA(io.ComfyNode):
    """What `lora-locksmith extract` does, for models that are loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it."""
        return io.Schema(
            node_id="LocksmithExtractLoRA",
            display_name="Extract LoRA",
            category="model/loaders",
            description=(
                "Takes a LoRA out of two models: what the tuned one changed against its base, every"
                " weight at its best rank. Patches of the models count."
            ),
            search_aliases=[
                "extract lora",
                "lora from model",
                "lora from checkpoint",
                "model difference",
                "model subtract",
                "lora svd",
            ],
            inputs=[*_model_inputs(), *_size_inputs(), *_more_inputs()],
            outputs=[
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="For Apply LoRA, Save LoRA, Merge LoRAs and stock's Load LoRA Model.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How many weights changed, what is kept, and what is left out.",
                ),
                json_output(),
            ],
            **RESENT,
        )

    @classmethod
    def execute(
        cls,
        model,
        base,
        rank=32,
        energy=1.0,
        error=0.0,
        *,
        dtype=KEEP,
        extras=False,
        clamp=1.0,
        device=HOSTS,
        clip=None,
        base_clip=None,
    ) -> io.NodeOutput:
        """Extract; raises for models of different kinds, for NaN, for models that do not differ,
        and where nothing says how large it may be.
        """
        target = RankTarget(rank or None, energy if energy < 1 else None, error or None)
        _check(target, clip, base_clip)
        extraction = Extraction()
        try:
            with in_plain_words("Extract LoRA"):
                first = ConnectedModel(message("lora.base"), base, base_clip)
                second = ConnectedModel(message("lora.tuned_model"), model, clip)
                place = "cpu" if device == CPU else _hosts_device(second)
                tensors = extract_tensors(
                    first,
                    second,
                    ExtractOptions(target, extras, clamp if clamp < 1 else None, place),
                    dtype=DTYPES.get(dtype),
                    extraction=extraction,
                    progress=host.progress_bar(),
                )
        except (AdapterError, ValueError) as fault:
            raise NodeError(message("nodes.extract_error", error=fault)) from None
        if not tensors:
            reasons = [message("nodes.nothing_to_extract"), *_reasons(extraction)]
            raise NodeError(joined(reasons, "line"))
        cautions = _cautions((model, clip), (base, base_clip))
        lines = [_verdict(extraction), *cautions, *_reasons(extraction), *_worst(extraction)]
        document, text = _document(extraction, lines[0], cautions), joined(lines, "line")
        ui = shown(partial(translate, text), document, as_text(document))
        return io.NodeOutput(tensors, ui["text"][0], ui["report_json"][0], ui=ui)


def _model_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The tuned model. LoRAs that are patched onto it count."),
        io.Model.Input("base", tooltip="The model it was made from, of the same kind."),
    ]


def _size_inputs() -> list[io.Input]:
    """How large the LoRA may be."""
    return [
        io.Int.Input("rank", default=32, min=0, max=4096, tooltip="The largest rank; 0: any."),
        energy_input(),
        io.Float.Input(
            "error",
            default=0.0,
            min=0.0,
            max=0.99,
            step=0.001,
            tooltip="Each layer gets the smallest rank with this relative error; 0: not asked.",
        ),
    ]


def _more_inputs() -> list[io.Input]:
    """What is taken besides, and how."""
    return [
        io.Combo.Input("dtype", options=[KEEP, *DTYPES], default=KEEP, tooltip="Of the LoRA."),
        io.Boolean.Input(
            "extras",
            default=False,
            tooltip="Also norms, biases and lone parameters, as whole differences.",
        ),
        io.Float.Input(
            "clamp",
            default=1.0,
            min=0.5,
            max=1.0,
            step=0.001,
            optional=True,
            advanced=True,
            tooltip="Clamp the factors at this quantile, as sd-scripts does (0.99 there); 1: not.",
        ),
        io.Combo.Input(
            "device",
            options=[HOSTS, CPU],
            default=HOSTS,
            optional=True,
            advanced=True,
            tooltip="Where the decompositions run.",
        ),
        io.Clip.Input("clip", optional=True, tooltip="The tuned text encoder, if it was tuned."),
        io.Clip.Input("base_clip", optional=True, tooltip="The text encoder of the base."),
    ]


def _check(target: RankTarget, clip: Any, base_clip: Any) -> None:
    """Raises NodeError for what cannot be asked."""
    if target == RankTarget():
        raise NodeError(message("nodes.extract_needs_size"))
    if (clip is None) != (base_clip is None):
        raise NodeError(message("nodes.extract_needs_both_clips"))


def _hosts_device(tuned: ConnectedModel) -> str:
    return str(host.computing_device(4 * NUMBERS * tuned.largest))


def _cautions(*models: tuple[Any, Any]) -> list[Message]:
    """What of the models is not in their weights."""
    names = {name for pair in models for name in host.beside_layers(*pair)}
    return [message("nodes.not_in_weights", names=joined(sorted(names)))] if names else []


def _verdict(extraction: Extraction) -> Message:
    """One line: what is in the LoRA, and whether anything is lost."""
    ranks = sorted({row.rank for row in extraction.rows if row.rank})
    lost = sum(reason != not_asked() for reason in extraction.left_out.values())
    first = message(
        "nodes.extracted",
        count=sum(bool(row.rank) for row in extraction.rows),
        ranks=" - ".join(map(str, dict.fromkeys((*ranks[:1], *ranks[-1:])))) or "0",
        differences=sum(not row.rank for row in extraction.rows),
        unchanged=extraction.unchanged,
        energy=f"{extraction.kept_energy:.4%}",
    )
    if not lost:
        return first
    return joined([message("nodes.extracted_not_whole", count=lost), first], "space")


def _reasons(extraction: Extraction) -> list[Message]:
    """A line for each reason why something is left out."""
    lines = []
    for reason, count in Counter(extraction.left_out.values()).most_common():
        name = next(key for key, other in extraction.left_out.items() if other == reason)
        lines.append(message("nodes.extract_left_out", count=count, name=name, reason=reason))
    return lines


def _worst(extraction: Extraction) -> list[Message]:
    """The weights of which most is lost."""
    rows = sorted(
        (row for row in extraction.rows if row.error > ROUNDING), key=lambda row: -row.error
    )
    return [
        message(
            "nodes.extract_row", weight=row.weight, rank=row.rank or 0, error=f"{row.error:.4f}"
        )
        for row in rows[:MAX_LISTED]
    ]


def _document(extraction: Extraction, verdict: Message, cautions: list[Message]) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "cautions": cautions,
        "kept_energy": extraction.kept_energy,
        "unchanged": extraction.unchanged,
        "weights": [row._asdict() for row in extraction.rows],
        "left_out": extraction.left_out,
    }
