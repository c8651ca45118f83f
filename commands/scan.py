"""scan FOLDER: a table of all LoRA files in a folder, what is in them and what loading them with this pack changes."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..key_maps.library import Row, scan
from .output import FINE, PROBLEMS, console, show_table

DESCRIPTION = """Inspects every LoRA file in a folder and all below it. What was found is kept in an index, so that the next scan reads
only the files that changed. Exit code 0: all is well; 1: there are problems (see --problems); 2: the folder cannot be listed."""
HEADS = ("file", "made for", "written by", "kind, rank", "verdict", "better than stock")
INDEX = "scan-{}.json"
NO_CACHE = "Nothing is kept for the next scan: that needs the library platformdirs (pip install platformdirs)."


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = commands.add_parser("scan", help="a table of all LoRA files in a folder", description=DESCRIPTION)
    command.add_argument("folder", metavar="FOLDER")
    command.add_argument("--problems", action="store_true", help="only files that are unreadable, not wholly loaded, or wrong with stock")
    command.add_argument("--json-lines", action="store_true", help="for programs: one JSON object to a line, each as soon as it is known")
    command.add_argument("--no-index", action="store_true", help="read every file, and keep nothing")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Scan the folder and show its files."""
    index = None if options.no_index else index_path(options.folder)
    problems, shown = 0, []
    for row in _with_progress(options.folder, index):
        problems += row.has_problem
        if options.problems and not row.has_problem:
            continue
        if options.json_lines:
            print(json.dumps(row.as_dict()), flush=True)
        else:
            shown.append(row)
    if not options.json_lines:
        show_table(HEADS, map(_cells, shown))
    return PROBLEMS if problems else FINE


def _cells(row: Row) -> tuple[str, ...]:
    found = row.findings
    verdict = "; ".join([row.verdict, *found.losses, *([found.error] if found.error else [])])
    made_for = "" if found.error else found.made_for or "cannot tell"
    return row.file, made_for, found.trainer, f"{found.kinds} {found.rank}".strip(), verdict, "; ".join(found.gains)


def _with_progress(folder: str, index: Path | None) -> Iterator[Row]:
    """The scan's rows, with a progress bar on a terminal."""
    target = console(error=True)
    with ExitStack() as stack:
        told = None
        if target is not None:
            from rich.progress import Progress

            bar = stack.enter_context(Progress(console=target, transient=True))
            task = bar.add_task("Inspecting", total=None)
            told = lambda done, total: bar.update(task, completed=done, total=total)  # noqa: E731
        yield from scan(folder, index, told=told)


def index_path(folder: str | os.PathLike[str]) -> Path | None:
    """Where the index of a folder is kept: in the user's cache, one file for each folder; None without platformdirs."""
    try:
        from platformdirs import user_cache_path
    except ImportError:
        print(NO_CACHE, file=sys.stderr)
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    return user_cache_path("lora-locksmith", False) / INDEX.format(name)
