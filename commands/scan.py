"""scan FOLDER: a table of all LoRA files in a folder, what is in them and what loading them with
this pack changes. FOLDER may be an address.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..identify.trainer import UNTOLD
from ..messages import Speaker, joined, message
from ..report.index import NAME, Index
from ..report.library import Engine, LibraryRow, scan_files
from ..report.listing import Listed, key_root, list_files
from .addresses import WEB, is_address, protocol_of, shown_address
from .arguments import add_place, add_timeout, number
from .language import add_language, reading
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
OF_COMFYUI = Path("user", "lora-locksmith")  # where a ComfyUI has its library's index
LOCAL, DASK = "local", "dask"  # engines
REQUESTS = 8  # files on another machine that are read at a time
MAX_WORKERS = 1000
Files = Mapping[str, Listed]


def add(commands: Any, speak: Speaker) -> None:
    """Add this command to the command line, with its help in a language."""
    command = commands.add_parser(
        "scan", help=speak("commands.scan_help"), description=speak("commands.scan_description")
    )
    add_place(command, speak, "folder", metavar="FOLDER", help="commands.scan_folder_help")
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
    which = command.add_mutually_exclusive_group()
    which.add_argument("--no-index", action="store_true", help=speak("commands.no_index_help"))
    which.add_argument("--index", metavar="FILE", help=speak("commands.index_help"))
    command.add_argument(
        "--engine", choices=(LOCAL, DASK), default=LOCAL, help=speak("commands.engine_help")
    )
    command.add_argument("--scheduler", metavar="ADDRESS", help=speak("commands.scheduler_help"))
    workers = number("commands.workers_are", int, 1, MAX_WORKERS)
    command.add_argument(
        "--workers",
        type=reading(workers, speak),
        metavar="N",
        help=speak("commands.workers_help", count=REQUESTS),
    )
    add_timeout(command, speak)
    add_language(command, speak)
    command.set_defaults(run=run, speak=speak)


def run(options: argparse.Namespace) -> int:
    """Scan the folder and show its files."""
    speak = options.speak
    files, left_out = _listed(options)
    problems, rows, seen = len(left_out), [], Counter[int]()
    for row in _with_progress(options, files):
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
    for folder, fault in left_out.items():
        say(speak("commands.folder_left_out", folder=folder, fault=fault))
    return PROBLEMS if problems else FINE


def _listed(options: argparse.Namespace) -> tuple[Files, Mapping[str, str]]:
    """The files of the folder, and the folders below it that could not be listed, with why. Raises
    LoraFileError.
    """
    if is_address(options.folder):
        from .remote_folder import list_remote

        return list_remote(options.folder, options.timeout)
    # Other processes have other current folders.
    folder = os.path.join(os.getcwd(), options.folder) if _is_dask(options) else options.folder
    left_out: dict[str, str] = {}
    return list_files(folder, left_out), left_out


def _engine(options: argparse.Namespace) -> Engine | None:
    """Who looks into the files; None: this thread, one after another."""
    if not _is_dask(options) and not is_address(options.folder):
        return None
    from . import engines
    from .parser import version

    if not _is_dask(options):
        return engines.in_threads(options.workers or REQUESTS, options.timeout)
    return engines.on_dask(
        options.scheduler,
        options.workers,
        options.timeout,
        version=version(),
        tell=partial(_tell, options.speak),
    )


def _is_dask(options: argparse.Namespace) -> bool:
    return options.engine == DASK or bool(options.scheduler)


def _tell(speak: Speaker, count: int) -> None:
    say(speak("commands.read_here", count=count))


def _worth(row: LibraryRow) -> int:
    """The row's place in WORTHS."""
    findings = row.findings
    if findings.error:
        return 0
    if not findings.placed:
        return 1
    return 2 if findings.placed < findings.total else 3 if findings.gains else 4


def _summary(folder: str, seen: Counter[int], speak: Speaker) -> str:
    if not seen and is_address(folder) and protocol_of(folder) in WEB:
        return speak("commands.no_lora_linked", folder=shown_address(folder))
    if not seen:
        return speak("commands.no_lora_below", folder=shown_address(folder))
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


def _with_progress(options: argparse.Namespace, files: Files) -> Iterator[LibraryRow]:
    """The scan's rows, with a progress bar on a terminal."""
    speak, roots = options.speak, [_root(options.folder)]
    index = None if options.no_index else _index(options)
    with progress("commands.inspecting", speak) as told:
        engine = _engine(options)
        yield from scan_files(files, index, roots=roots, progress=told, engine=engine)


def _root(folder: str) -> str:
    if is_address(folder):
        from .remote_folder import remote_root

        return remote_root(folder)
    return key_root(folder)


def _index(options: argparse.Namespace) -> Index | None:
    speak = options.speak
    path = Path(options.index) if options.index else index_path(options.folder, speak)
    return Index(path, lambda text: say(speak.text(text))) if path else None


def index_path(folder: str, speak: Speaker) -> Path | None:
    """Where what is found in a folder is kept: in the index of the ComfyUI that the folder is in,
    else in one in the user's cache; None without platformdirs.
    """
    above = [] if is_address(folder) else [Path(folder).resolve(), *Path(folder).resolve().parents]
    own = next((path for place in above if (path := place / OF_COMFYUI / NAME).is_file()), None)
    if own:
        return own
    try:
        from platformdirs import user_cache_path
    except ImportError:
        print(speak("commands.no_index_kept"), file=sys.stderr)
        return None
    return user_cache_path("lora-locksmith", False) / NAME
