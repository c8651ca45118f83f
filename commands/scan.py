"""scan FOLDER: a table of all LoRA files in a folder, what is in them and what loading them with
this pack changes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..report.library import LibraryRow, scan
from ..report.load_report import plural
from .arguments import a_path
from .output import FINE, PROBLEMS, progress, say, show_json, show_table

DESCRIPTION = """\
Inspects every LoRA file in a folder and all below it. What was found is kept in an index, so
that the next scan reads only the files that changed. Exit code 0: all is well; 1: there are
problems (see --problems); 2: the folder cannot be listed."""
HEADS = ("file", "made for", "written by", "kind, rank", "verdict", "better than stock")
WORTHS = (
    "cannot be read",
    "with nothing in them that is known to load",
    "load in part",
    "better than with stock",
    "load as with stock",
)
INDEX = "scan-{}.json"
NO_CACHE = (
    "Nothing is kept for the next scan: that needs the library platformdirs (pip install"
    " platformdirs)."
)


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = commands.add_parser(
        "scan", help="a table of all LoRA files in a folder", description=DESCRIPTION
    )
    command.add_argument(
        "folder",
        metavar="FOLDER",
        type=a_path,
        help="a folder of LoRAs; all below it is looked through, too",
    )
    command.add_argument(
        "--problems",
        action="store_true",
        help="only files: unreadable, doubtful, not wholly loaded, or wrong with stock",
    )
    command.add_argument(
        "--json-lines",
        action="store_true",
        help="for programs: one JSON object to a line, each as soon as it is known",
    )
    command.add_argument(
        "--no-index", action="store_true", help="read every file, and keep nothing"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Scan the folder and show its files."""
    index = None if options.no_index else index_path(options.folder)
    problems, shown, seen = 0, [], Counter()
    for row in _with_progress(options.folder, index):
        problems += row.has_problem
        seen[_worth(row)] += 1
        if options.problems and not row.has_problem:
            continue
        if options.json_lines:
            show_json(row.as_dict())
        else:
            shown.append(row)
    if not options.json_lines:
        # By name; of problems the worst first, which else are lost among the many that are only
        # better than with stock.
        show_table(HEADS, map(_cells, sorted(shown, key=_worth) if options.problems else shown))
        say(_summary(options.folder, seen))
    return PROBLEMS if problems else FINE


def _worth(row: LibraryRow) -> int:
    """The row's place in WORTHS."""
    found = row.findings
    if found.error:
        return 0
    if not found.placed:
        return 1
    return 2 if found.placed < found.total else 3 if found.gains else 4


def _summary(folder: str, seen: Counter[int]) -> str:
    if not seen:
        return f"{folder}: there is no LoRA file in it or below it."
    told = [f"{seen[worth]:,} {words}" for worth, words in enumerate(WORTHS) if seen[worth]]
    return f"{plural(seen.total(), 'file')}: {', '.join(reversed(told))}."


def _cells(row: LibraryRow) -> tuple[str, ...]:
    found = row.findings
    verdict = "; ".join([row.verdict, *found.losses, *([found.error] if found.error else [])])
    made_for = "" if found.error else found.made_for or "cannot tell"
    return (
        row.file,
        made_for,
        found.trainer,
        f"{found.kinds} {found.rank}".strip(),
        verdict,
        "; ".join(found.gains),
    )


def _with_progress(folder: str, index: Path | None) -> Iterator[LibraryRow]:
    """The scan's rows, with a progress bar on a terminal."""
    with progress("Inspecting") as told:
        yield from scan(folder, index, told=told)


def index_path(folder: str | os.PathLike[str]) -> Path | None:
    """Where the index of a folder is kept: in the user's cache, one file for each folder; None
    without platformdirs.
    """
    try:
        from platformdirs import user_cache_path
    except ImportError:
        print(NO_CACHE, file=sys.stderr)
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    return user_cache_path("lora-locksmith", False) / INDEX.format(name)
