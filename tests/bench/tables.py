"""What was measured, as Markdown and for programs, with the machine it was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measuring import BYTES, SECONDS, Cell, Result

COMMAND = "python dev.py bench"
BEGIN, END = "<!-- python dev.py bench --readme writes this -->", "<!-- end -->"
INTRODUCTION = (
    "Every figure is what ours takes in multiples of what the other takes: the median over"
    " interleaved rounds, each in one thread of one process (memory: processes of their own)."
)
STEPS = (
    "In percent of the layer alone, 3,072 wide, LoRAs of rank 16; their arithmetic is 1 % for each"
    " in the layer's own precision. Patched in each step is what the host does to a weight that is"
    " not all on the device, or that is quantized. Stock's second bypass takes the place of its"
    " first, so there is one. The weight's patches are added as it is unpacked, which the host does"
    " in another way than for the bare layer: below zero, that way is the faster one."
)


def machine() -> dict[str, str]:
    """What the figures were measured on, in words."""
    import comfyui_version
    import psutil
    import torch

    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": importlib.metadata.version("safetensors"),
        "ComfyUI": comfyui_version.__version__,
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def amount(value: float, unit: str) -> str:
    """A figure for people: three digits in the unit that fits."""
    if unit == BYTES:
        return f"{value / 1e6:.3g} MB" if value < 1e9 else f"{value / 1e9:.3g} GB"
    if unit == SECONDS:
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.5g}"


def number(ratio: float) -> str:
    """Two digits; whole numbers from ten on; fractions of one where there are many zeros."""
    if 0 < ratio < 0.001:
        return f"1 / {float(f'{1 / ratio:.2g}'):,.0f}"
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"


def on_machine(about: dict[str, str]) -> str:
    hardware = f"{about['processor']}, {about['cores']} cores, {about['memory']}, {about['system']}"
    versions = ", ".join(
        f"{name} {about[name]}" for name in ("Python", "torch", "safetensors", "ComfyUI")
    )
    return f"Measured {about['date']} with `{COMMAND}` on {hardware}; {versions}."


def markdown(about: dict[str, str], results: Sequence[Result]) -> str:
    """The whole table."""
    lines = [
        INTRODUCTION,
        on_machine(about),
        "",
        "| What | Against | Ratio | Middle half | Ours | Theirs | Rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if result.row.cell:
            continue
        low, high = result.spread
        spread = f"{number(low)} to {number(high)}" if result.rounds > 1 else ""
        sides = amount(result.ours, result.unit), amount(result.other, result.unit)
        cells = (
            result.row.what,
            result.row.against,
            number(result.ratio),
            spread,
            *sides,
            str(result.rounds),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *steps(results)]) + "\n"


def steps(results: Sequence[Result]) -> list[str]:
    """The table of steps: a line for each base, number of tokens and number of LoRAs."""
    found = {one.row.cell: one for one in results if one.row.cell}
    if not found:
        return []
    ways = list(dict.fromkeys(cell.way for cell in found))
    lines = [
        "",
        "## What LoRAs add to a step",
        "",
        STEPS,
        "",
        f"| Weight | Tokens | LoRAs | {' | '.join(ways)} |",
        "|---|---|---|" + "---|" * len(ways),
    ]
    for place in dict.fromkeys(cell[:3] for cell in found):
        base, tokens, count = place
        added = [
            f"{(found[cell].ratio - 1) * 100:.1f} %" if (cell := Cell(*place, way)) in found else ""
            for way in ways
        ]
        lines.append(f"| {base} | {tokens:,} | {count} | {' | '.join(added)} |")
    return lines


def short_table(about: dict[str, str], results: Sequence[Result]) -> str:
    """The most telling rows, as the README has them."""
    lines = [
        f"{INTRODUCTION} {on_machine(about)} [All of them](docs/benchmarks.md).",
        "",
        "| | Ratio | to |",
        "|---|---|---|",
    ]
    lines += [
        f"| {one.row.what} | {number(one.ratio)} | {one.row.against} |"
        for one in results
        if one.row.told_in_readme
    ]
    return "\n".join(lines)


def as_dict(about: dict[str, str], results: Sequence[Result]) -> dict[str, Any]:
    rows = [
        {
            **one.row._asdict(),
            "ratio": one.ratio,
            "spread": one.spread,
            "ours_took": one.ours,
            "other_took": one.other,
            "unit": one.unit,
            "rounds": one.rounds,
        }
        for one in results
    ]
    return {"machine": about, "rows": rows}


def put_into_documents(root: Path, about: dict[str, str], results: Sequence[Result]) -> None:
    """Write the tables into the marked part of README.md and into docs/benchmarks.md."""
    readme = root / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END, 1)[1]
    readme.write_text(
        f"{before}{BEGIN}\n{short_table(about, results)}\n{END}{after}", encoding="utf-8"
    )
    (root / "docs" / "benchmarks.md").write_text(
        f"# Benchmarks\n\n{markdown(about, results)}", encoding="utf-8"
    )
