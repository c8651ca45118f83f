"""The node Load and Fix LoRA (stack): any number of LoRAs in one node, told in one report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..messages import ENGLISH, Speaker, as_sentence, joined, message, text_of
from ..planning.plan import NO_FAULT
from ..report.judgement import judged
from ..report.load_report import SCHEMA, Report
from . import host
from .faults import NodeError, in_plain_words, noted
from .files import lora_path
from .inputs import (
    AUTO,
    REPORT,
    RESENT,
    json_output,
    loaded_outputs,
    mode_input,
    on_unmatched_input,
    words_output,
)
from .languages import shown
from .load_and_fix import apply_listed, as_text
from .lora_model import is_taken, lora_model_output, of_rows
from .rows import StackRow, read_rows, rows_are_right, rows_changed, rows_input
from .tags import as_stack, read_stack, read_tags, rows_of, unused_of

MODEL, LORA_MODEL = 0, 7  # outputs


class LoadAndFixStack(io.ComfyNode):
    """Does what as many Load and Fix LoRA nodes in a row would do."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it; `loras` is plain JSON text, which web/stack/ shows as
        rows.
        """
        return io.Schema(
            node_id="LocksmithLoRAStack",
            display_name="Load and Fix LoRA (stack)",
            category="model/loaders",
            description=(
                "Loads any number of LoRAs from any trainers, one after another, and reports in one"
                " place what each of them does."
            ),
            search_aliases=[
                "lora stack",
                "lora stacker",
                "power lora loader",
                "multiple loras",
                "several loras",
                "multi lora",
                "lora block weight",
                "lora trigger words",
            ],
            inputs=_inputs(),
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            outputs=_outputs(),
            **RESENT,
        )

    @classmethod
    def validate_inputs(cls, loras=None, text=None) -> bool | str:
        """Refuse, before anything runs, rows that cannot be read and names that are not in the
        loras folders.
        """
        right = rows_are_right(loras, blocks=True, wired=())
        if right is not True or text is None:
            return right
        try:
            read_tags(text)
        except ValueError as fault:
            return noted(text_of(fault))
        return True

    @classmethod
    def fingerprint_inputs(cls, loras=None, **_) -> tuple | float:
        """Makes the node run again when a file that is on changes on disk."""
        return rows_changed(loras, blocks=True, wired=())

    @classmethod
    def execute(
        cls,
        loras,
        *,
        model=None,
        clip=None,
        on_unmatched=REPORT,
        mode=AUTO,
        lora_stack=None,
        text=None,
    ) -> io.NodeOutput:
        """Patch clones of model and clip row by row; an error names the row. One of the two is
        enough, but without a model no node may take the output MODEL.
        """
        if model is None and clip is None:
            raise NodeError(message("nodes.stack_not_connected"))
        if model is None and is_taken(cls.hidden, MODEL):
            raise NodeError(message("nodes.stack_gives_no_model"))
        try:
            rows = read_rows(loras, blocks=True)
            tags, bare = read_tags(text or "")
            rows += rows_of((*read_stack(lora_stack), *tags), len(rows) + 1)
        except ValueError as fault:
            raise NodeError(as_sentence(text_of(fault))) from None
        lora, lost = of_rows(rows, model, clip)
        results, progress = [], host.progress_bar()
        for done, row in enumerate(rows):
            progress(done, len(rows))
            model, clip, result = _apply(row, model, clip, on_unmatched, mode=mode)
            results.append(result)
        if rows:
            progress(len(rows), len(rows))
        if is_taken(cls.hidden, LORA_MODEL):
            lora.make()
        told = [message("nodes.of_lora_model", text=text) for text in lost]
        stack = StackReport(results, [*unused_of(tags), *told])
        document = stack.as_dict()
        ui = shown(stack.text, document, as_text(document))
        words = ", ".join(stack.trigger_words)
        texts = (ui["text"][0], ui["report_json"][0], words, bare)
        if model is None:  # for a node that takes it later, when this one is not run again
            model = ExecutionBlocker(message("nodes.stack_gives_no_model"))
        return io.NodeOutput(model, clip, *texts, as_stack(rows), lora, ui=ui)


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            optional=True,
            tooltip=(
                "The diffusion model the LoRAs are applied to. Without it they are applied"
                " to the text encoder alone."
            ),
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip=("The text encoder the LoRAs are applied to, if they have any part in it."),
        ),
        rows_input(
            "The LoRAs, applied from top to bottom. Rows that are off are not read. A row"
            " may have weights for its layers: double_blocks.0-5=0.5, *.img_mlp=0, te=0",
            blocks="asked",
        ),
        on_unmatched_input(),
        mode_input(),
        io.Custom("LORA_STACK").Input(
            "lora_stack",
            optional=True,
            tooltip="LoRAs of other packs' stackers, applied behind the rows.",
        ),
        io.String.Input(
            "text",
            optional=True,
            force_input=True,
            tooltip=(
                "A prompt that names LoRAs, <lora:name:0.8> or <lora:name:0.8:0.6>; they"
                " are applied last."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        *loaded_outputs("A line for each LoRA, then what has no effect and why."),
        json_output(),
        words_output(),
        io.String.Output(
            "text", display_name="text", tooltip="The text without the LoRAs it names."
        ),
        io.Custom("LORA_STACK").Output(
            "lora_stack",
            display_name="lora_stack",
            tooltip=(
                "All LoRAs that are on, for other packs' nodes. They are applied here already."
            ),
        ),
        lora_model_output(
            "All LoRAs that are on as one, merged at their strengths in ComfyUI's names:"
            " for Load LoRA Model, Merge LoRAs and Save LoRA. Made only where it is"
            " connected."
        ),
    ]


class RowResult(NamedTuple):
    """What became of one row: in one sentence, and its report where its file was read."""

    row: StackRow
    verdict: str
    report: Report | None = None
    words: Sequence[str] = ()

    @property
    def modules(self) -> tuple[int, int]:
        """Modules (placed, in the file)."""
        modules = self.report.modules if self.report else {"placed": 0, "total": 0}
        return modules["placed"], modules["total"]

    @property
    def acts(self) -> str:
        """Where its adapters act, and why, where *mode* left that open."""
        return self.report.acts if self.report else ""

    @property
    def has_more(self) -> bool:
        """Whether there is more to say than that all of it loads."""
        if self.report is None:
            return False
        return bool(self.report.categories.keys() - NO_FAULT or self.report.notes())

    def details(self, language: str) -> str:
        """Its report without the verdict."""
        return self.report.details(language).strip() if self.report else ""

    def as_dict(self) -> dict[str, Any]:
        """The row and its report in one."""
        about = (
            self.report.as_dict()
            if self.report
            else {"verdict": self.verdict, "file": self.row.name}
        )
        return self.row.as_dict() | about


class StackReport:
    """What became of all rows."""

    def __init__(self, results: Sequence[RowResult], remarks: Sequence[str] = ()):
        self.results, self.remarks = results, remarks

    @property
    def trigger_words(self) -> list[str]:
        """Of all rows that are on, each once."""
        words = (word for result in self.results for word in result.words)
        return list({word.casefold(): word for word in words}.values())

    @property
    def modules(self) -> dict[str, int]:
        """Modules of all files: {placed, total}."""
        placed, total = (sum(result.modules[index] for result in self.results) for index in (0, 1))
        return {"placed": placed, "total": total}

    @property
    def verdict(self) -> str:
        """One line: how many LoRAs are on, what of them loads, and which do not load whole."""
        count = sum(result.report is not None for result in self.results)
        if not count:
            return message("nodes.no_lora_is_on" if self.results else "nodes.stack_is_empty")
        line = message("nodes.stack_loads", count=count, **self.modules)
        torn = [
            str(result.row.number)
            for result in self.results
            if result.modules[0] < result.modules[1]
        ]
        if not torn:
            return as_sentence(line)
        return message("nodes.stack_not_whole", line=line, count=len(torn), rows=joined(torn))

    @property
    def notes(self) -> list[str]:
        """What a user may not see in the rows: a file that is on more than once."""
        places: dict[str, list[StackRow]] = defaultdict(list)
        for result in self.results:
            if result.row.on:
                places[result.row.name].append(result.row)
        twice = [
            message(
                "nodes.same_file_twice",
                name=name,
                count=len(rows),
                rows=joined([str(row.number) for row in rows]),
                strength=f"{sum(row.strength for row in rows):g}",
            )
            for name, rows in places.items()
            if len(rows) > 1
        ]
        return [*twice, *self.remarks]

    @property
    def cautions(self) -> list[str]:
        """What makes it doubtful that a file comes out as trained, with its row."""
        return [
            message("joints.about", subject=result.row.title, text=caution)
            for result in self.results
            if result.report
            for caution in result.report.cautions
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything a program needs; plain JSON types."""
        modules = self.modules
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "state": judged(modules["placed"], modules["total"], cautions=self.cautions),
            **modules,
            "modules": modules,
            "notes": self.notes,
            "cautions": self.cautions,
            "trigger_words": self.trigger_words,
            "rows": [result.as_dict() for result in self.results],
        }

    def text(self, language: str = ENGLISH) -> str:
        """The report for people."""
        speak = Speaker(language)
        lines = [speak(self.verdict), ""]
        lines += [
            speak("joints.about", subject=result.row.title, text=result.verdict)
            for result in self.results
        ]
        lines += [
            speak("nodes.row_acts", title=result.row.title, acts=result.acts)
            for result in self.results
            if result.acts
        ]
        notes = [speak("nodes.note", note=note) for note in self.notes]
        lines += ["", *notes] if notes else []
        seen = set()
        for result in self.results:
            if result.has_more and result.row.name not in seen:  # each file once
                seen.add(result.row.name)
                lines += ["", f"--- {speak(result.row.title)}", result.details(language)]
        return "\n".join(lines).rstrip()


def _apply(row: StackRow, model, clip, on_unmatched: str, *, mode: str):
    """(model, clip, what became of the row)."""
    if not row.on:
        return model, clip, RowResult(row, message("nodes.row_off"))
    if (row.strength == 0 or model is None) and (row.strength_clip == 0 or clip is None):
        return model, clip, RowResult(row, message("nodes.row_strength_zero"))
    strengths = (row.strength, row.strength_clip)
    try:
        with in_plain_words(row.name):
            model, clip, report = apply_listed(
                model, clip, row.name, strengths, on_unmatched, mode=mode, blocks=row.blocks
            )
            words = host.words_of(lora_path(row.name))
    except NodeError as error:
        raise NodeError(message("nodes.row_error", number=row.number, error=error)) from None
    return model, clip, RowResult(row, report.verdict, report, words)
