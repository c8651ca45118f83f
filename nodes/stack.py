"""The node Load and Fix LoRA (stack): any number of LoRAs in one node, told in one report."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from comfy_api.latest import io

from ..planning.plan import NO_FAULT
from ..report.load_report import plural
from . import host
from .faults import NodeError
from .inputs import AUTO, REPORT, RESENT, mode_input, on_unmatched_input
from .load_and_fix import LoadAndFixLoRA
from .rows import StackRow, read_rows, rows_are_right, rows_changed, rows_input


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
            ],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model the LoRAs are applied to."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "The text encoder the LoRAs are applied to, if they have any part in it."
                    ),
                ),
                rows_input(
                    "The LoRAs, applied from top to bottom. Rows that are off are not read."
                ),
                on_unmatched_input(),
                mode_input(),
            ],
            outputs=[
                io.Model.Output("MODEL"),
                io.Clip.Output("CLIP"),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="A line for each LoRA, then what has no effect and why.",
                ),
                io.String.Output(
                    "report_json", display_name="report_json", tooltip="The same for programs."
                ),
            ],
            **RESENT,
        )

    @classmethod
    def validate_inputs(cls, loras=None) -> bool | str:
        """Refuse, before anything runs, rows that cannot be read and names that are not in the
        loras folders.
        """
        return rows_are_right(loras)

    @classmethod
    def fingerprint_inputs(cls, loras=None, **_) -> tuple | float:
        """Makes the node run again when a file that is on changes on disk."""
        return rows_changed(loras)

    @classmethod
    def execute(cls, model, loras, clip=None, on_unmatched=REPORT, mode=AUTO) -> io.NodeOutput:
        """Patch clones of model and clip row by row; an error names the row."""
        try:
            rows = read_rows(loras)
        except ValueError as fault:
            raise NodeError(f"{fault}.") from None
        told, progress = [], host.progress_bar()
        for done, row in enumerate(rows):
            progress(done, len(rows))
            model, clip, report = _apply(row, model, clip, on_unmatched, mode)
            told.append(report)
        if rows:
            progress(len(rows), len(rows))
        return _output(model, clip, rows, told)


class Told(NamedTuple):
    """What became of one row: the text for people, and the dictionary of its report."""

    row: StackRow
    text: str
    report: dict[str, Any]

    @property
    def read(self) -> bool:
        """Whether the file was read: its row is on, and has any strength."""
        return "modules" in self.report

    @property
    def modules(self) -> tuple[int, int]:
        """Modules (placed, in the file)."""
        modules = self.report.get("modules", {})
        return modules.get("placed", 0), modules.get("total", 0)

    @property
    def acts(self) -> str:
        """Where its adapters act, and why, where *mode* left that open."""
        return self.report.get("acts", "")

    @property
    def details(self) -> str:
        """Its report without the verdict; "" where there is no more to say than that all of it
        loads.
        """
        lost = self.report.get("categories", {}).keys() - NO_FAULT
        return self.text.partition("\n")[2].strip() if lost or self.report.get("notes") else ""

    def as_dict(self) -> dict[str, Any]:
        """The row and its report in one."""
        return self.row.as_dict() | self.report


def _apply(row: StackRow, model, clip, on_unmatched: str, mode: str):
    """(model, clip, what became of the row)."""
    if not row.on:
        verdict = "off, not read."
        return model, clip, Told(row, verdict, {"verdict": verdict, "file": row.name})
    try:
        done = LoadAndFixLoRA.execute(
            model, row.name, row.strength, row.strength_clip, clip, on_unmatched, mode
        )
    except NodeError as error:
        raise NodeError(f"Row {row.number}: {error}") from None
    model, clip, text, as_json = done.args
    report = json.loads(as_json)
    if "modules" not in report:
        report["verdict"] = text = "strength 0, not loaded."
    return model, clip, Told(row, text, report)


def _output(model, clip, rows: list[StackRow], told: list[Told]) -> io.NodeOutput:
    placed, total = (sum(report.modules[index] for report in told) for index in (0, 1))
    verdict, notes = _verdict(told, placed, total), list(_interactions(rows))
    lines = [verdict, "", *(f"{report.row.title}: {report.report['verdict']}" for report in told)]
    lines += [f"{report.row.title} acts {report.acts}" for report in told if report.acts]
    lines += [""] * bool(notes) + [f"Note      {note}" for note in notes]
    lines += [
        line
        for report in _worth_telling(told)
        for line in ("", f"--- {report.row.title}", report.details)
    ]
    text = "\n".join(lines).rstrip()
    cautions = [
        f"{report.row.title}: {caution}"
        for report in told
        for caution in report.report.get("cautions", ())
    ]
    counts = {"placed": placed, "total": total, "modules": {"placed": placed, "total": total}}
    summary = {"verdict": verdict, **counts, "notes": notes, "cautions": cautions}
    as_json = json.dumps(
        summary | {"rows": [report.as_dict() for report in told]}, ensure_ascii=False, indent=1
    )
    return io.NodeOutput(model, clip, text, as_json, ui={"text": [text], "report_json": [as_json]})


def _worth_telling(told: list[Told]) -> Iterator[Told]:
    """The rows there is more to say of, each file once."""
    seen = set()
    for report in told:
        if report.details and report.row.name not in seen:
            seen.add(report.row.name)
            yield report


def _verdict(told: list[Told], placed: int, total: int) -> str:
    """One line: how many LoRAs are on, what of them loads, and which do not load whole."""
    read = [report for report in told if report.read]
    if not read:
        return "No LoRA is on." if told else "The stack is empty."
    line = f"{plural(len(read), 'LoRA')}: {placed} of {total} modules load"
    torn = [str(report.row.number) for report in read if report.modules[0] < report.modules[1]]
    rows = "row" if len(torn) == 1 else "rows"
    return f"{line}; not all of {rows} {', '.join(torn)}." if torn else f"{line}."


def _interactions(rows: list[StackRow]) -> Iterator[str]:
    """What a user may not see in the rows: a file that is on more than once."""
    places: dict[str, list[StackRow]] = defaultdict(list)
    for row in rows:
        if row.on:
            places[row.name].append(row)
    for name, twice in places.items():
        if len(twice) > 1:
            numbers = ", ".join(str(row.number) for row in twice)
            yield (
                f"{name} is on {len(twice)} times (rows {numbers}): the strengths add up to"
                f" {sum(row.strength for row in twice):g}."
            )
