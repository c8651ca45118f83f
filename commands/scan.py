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

from ..identify.trainer import UNTOLD
from ..messages import Speaker, joined, message
from ..report.library import LibraryRow, scan
from .arguments import add_path
from .language import add_language
from .output import FINE, PROBLEMS, progress, say, show_json, show_table

HEADS = (
    "library.head_file",
    "library.head_made_for",
    "library.head_trainer",
    "commands.head_kind_rank",
    "commands.head_verdict",
    "commands.head_gains",
)
WORTHS = (
    "commands.files_unreadable",
    "commands.files_not_known",
    "commands.files_in_part",
    "commands.files_better",
    "commands.files_as_stock",
)
INDEX = "scan-{}.json"


def add(commands: Any, speak: Speaker) -> None:
    """Add this command to the command line, with its help in a language."""
    command = commands.add_parser(
        "scan", help=speak("commands.scan_help"), description=speak("commands.scan_description")
    )
    add_path(command, speak, "folder", metavar="FOLDER", help="commands.scan_folder_help")
    command.add_argument(
        "--problems",
        action="store_true",
        help=speak("commands.problems_help"),
    )
    command.add_argument(
        "--json-lines",
        action="store_true",
        help=speak("commands.json_lines_help"),
    )
    command.add_argument("--no-index", action="store_true", help=speak("commands.no_index_help"))
    add_language(command, speak)
    command.set_defaults(run=run, speak=speak)


def run(options: argparse.Namespace) -> int:
    """Scan the folder and show its files."""
    speak = options.speak
    index = None if options.no_index else index_path(options.folder, speak)
    problems, rows, seen = 0, [], Counter[int]()
    for row in _with_progress(options.folder, index, speak):
        problems += row.has_problem
        seen[_worth(row)] += 1
        if options.problems and not row.has_problem:
            continue
        if options.json_lines:
            show_json(row.as_dict())
        else:
            rows.append(row)
    if not options.json_lines:
        # By name; of problems the worst first, which else are lost among the many that are only
        # better than with stock.
        rows = sorted(rows, key=_worth) if options.problems else rows
        show_table([speak(head) for head in HEADS], [_cells(row, speak) for row in rows], speak)
        say(_summary(options.folder, seen, speak))
    return PROBLEMS if problems else FINE


def _worth(row: LibraryRow) -> int:
    """The row's place in WORTHS."""
    findings = row.findings
    if findings.error:
        return 0
    if not findings.placed:
        return 1
    return 2 if findings.placed < findings.total else 3 if findings.gains else 4


def _summary(folder: str, seen: Counter[int], speak: Speaker) -> str:
    if not seen:
        return speak("commands.no_lora_below", folder=folder)
    parts = [message(id, count=seen[worth]) for worth, id in enumerate(WORTHS) if seen[worth]]
    return speak("commands.files_summary", count=seen.total(), parts=joined(reversed(parts)))


def _cells(row: LibraryRow, speak: Speaker) -> tuple[str, ...]:
    findings = row.findings
    verdict = [row.verdict, *findings.losses, *([findings.error] if findings.error else [])]
    unknown = message("commands.cannot_tell")
    made_for = "" if findings.error else findings.made_for or unknown
    trainer = unknown if findings.trainer == UNTOLD else findings.trainer
    if findings.trainer_guessed:
        trainer = message("report.looks_like", trainer=trainer)
    return (
        row.file,
        speak.text(made_for),
        speak.text(trainer),
        f"{speak.text(findings.kinds)} {findings.rank}".strip(),
        speak.joined(verdict, "semicolon"),
        speak.joined(findings.gains, "semicolon"),
    )


def _with_progress(folder: str, index: Path | None, speak: Speaker) -> Iterator[LibraryRow]:
    """The scan's rows, with a progress bar on a terminal."""
    with progress("commands.inspecting", speak) as report_progress:
        yield from scan(folder, index, progress=report_progress)


def index_path(folder: str | os.PathLike[str], speak: Speaker) -> Path | None:
    """Where the index of a folder is kept: in the user's cache, one file for each folder; None
    without platformdirs.
    """
    try:
        from platformdirs import user_cache_path
    except ImportError:
        print(speak("commands.no_index_kept"), file=sys.stderr)
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    return user_cache_path("lora-locksmith", False) / INDEX.format(name)
