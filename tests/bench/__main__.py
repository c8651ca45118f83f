"""Takes the measurements and writes one table of them: python dev.py bench [--short] [--only NAME]
[--json FILE] [--markdown FILE].
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .measuring import Measurement, Result, measurements
from .tables import as_dict, machine, markdown, put_into_documents

ROOT = Path(__file__).resolve().parents[2]


def say(text: str = "") -> None:
    print(text, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py bench",
        description="How fast the pack is, as ratios to other ways of doing the same.",
    )
    parser.add_argument(
        "--short", action="store_true", help="few rounds on smaller files: the form the tests take"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help=f"one of: {', '.join(measurements())}; * stands for anything",
    )
    parser.add_argument("--json", type=Path, default=ROOT / ".dev" / "bench.json", metavar="FILE")
    parser.add_argument("--markdown", type=Path, default=ROOT / ".dev" / "bench.md", metavar="FILE")
    parser.add_argument(
        "--readme",
        action="store_true",
        help="also put the table into README.md and docs/benchmarks.md",
    )
    options = parser.parse_args(arguments)
    options.chosen = chosen(options.only)
    if not options.chosen:
        parser.error(f"there is no measurement {' or '.join(options.only)}")
    if options.readme and (options.only or options.short):
        parser.error("--readme wants all measurements, whole")
    return options


def chosen(patterns: Sequence[str] | None) -> list[Measurement]:
    return [
        one
        for name, one in measurements().items()
        if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    import conftest  # noqa: F401 - the pack under its name
    import torch
    from devtools import comfyui
    from tiny_models import import_comfy

    import_comfy(comfyui.comfyui_at_hand())
    torch.set_num_threads(1)
    about, results = machine(), []
    for number, one in enumerate(options.chosen, 1):
        say(f"{number}/{len(options.chosen)} {one.name}")
        with tempfile.TemporaryDirectory(prefix="locksmith-bench-") as folder:
            results += one.results(Path(folder), options.short)
        for result in results[-len(one.rows) :]:
            say(f"    {result.row.name}: {result.ratio:.3g}")
    write(options, about, results)
    return 0


def write(options: argparse.Namespace, about: dict[str, str], results: Sequence[Result]) -> None:
    table = markdown(about, results)
    say(f"\n{table}")
    for file, text in (
        (options.json, json.dumps(as_dict(about, results), indent=1) + "\n"),
        (options.markdown, table),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    if options.readme:
        put_into_documents(ROOT, about, results)
    say(f"Written to {options.markdown} and {options.json}.")


if __name__ == "__main__":
    sys.exit(main())
