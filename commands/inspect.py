"""inspect FILE...: what is in a LoRA file, what will load, what was never trained. A FILE may be an
address, of which only the header is read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..files.hashes import file_hashes
from ..files.header import LoraFileError
from ..identify.checkpoint import target_model_of_checkpoint
from ..messages import Speaker, joined, message, text_of
from ..planning.target_model import TargetModel
from ..report.file_names import told_apart
from ..report.inspection import Inspection, inspect_file
from ..report.markdown import DETAILS, SUMMARY, markdown
from .addresses import is_address, shown_address
from .arguments import add_json_each, add_path, add_place, add_timeout, every_path
from .language import add_language
from .output import FAILED, FINE, PROBLEMS, complain, say, show_json, show_markdown

if TYPE_CHECKING:
    from .remote import Remote


def add(commands: Any, speak: Speaker) -> None:
    """Add this command to the command line, with its help in a language."""
    command = commands.add_parser(
        "inspect",
        help=speak("commands.inspect_help"),
        description=speak("commands.inspect_description"),
    )
    add_place(
        command, speak, "files", nargs="+", metavar="FILE", help="commands.lora_or_address_help"
    )
    add_path(command, speak, "--against", metavar="MODEL", help="commands.inspect_against_help")
    command.add_argument(
        "--detail",
        type=lambda text: text.replace("-", " "),
        choices=DETAILS,
        default=SUMMARY,
        help=speak("commands.detail_help"),
    )
    command.add_argument(
        "--weights",
        action="store_true",
        help=speak("commands.weights_help"),
    )
    command.add_argument("--hashes", action="store_true", help=speak("commands.hashes_help"))
    add_timeout(command, speak)
    add_json_each(command, speak)
    add_language(command, speak)
    command.set_defaults(run=run, speak=speak)


def run(options: argparse.Namespace) -> int:
    """Inspect every file; a file that cannot be read does not keep the others
    from being inspected.
    """
    target_model = (
        target_model_of_checkpoint(options.against).target_model if options.against else None
    )
    files = every_path(options.files)
    shown = [shown_address(file) if is_address(file) else file for file in files]
    worst = FINE
    for place, (path, name) in enumerate(zip(files, told_apart(shown), strict=True)):
        try:
            inspection, remote = _inspected(path, target_model, options)
            _show(inspection, options, name, place, remote)
            worst = max(worst, FINE if inspection.loads_whole else PROBLEMS)
        except LoraFileError as error:
            worst = FAILED
            fault = (
                message("commands.inspect_folder", path=path)
                if os.path.isdir(path)
                else text_of(error)
            )
            if options.json:
                show_json({"file": shown[place], "error": fault})
            else:
                complain(fault, options.speak)
    return worst


def _inspected(
    path: str, target_model: TargetModel | None, options: argparse.Namespace
) -> tuple[Inspection, Remote | None]:
    """Raises LoraFileError."""
    if not is_address(path):
        return inspect_file(path, target_model), None
    for option in ("weights", "hashes"):
        if getattr(options, option):
            fault = message("commands.needs_whole_file", option=f"--{option}")
            raise LoraFileError(shown_address(path), fault, message("commands.download_first"))
    from .remote import inspect_remote

    return inspect_remote(path, target_model, options.timeout)


def _show(
    inspection: Inspection,
    options: argparse.Namespace,
    name: str,
    place: int,
    remote: Remote | None,
) -> None:
    hashes = file_hashes(inspection.path) if options.hashes else None
    weights = weigh_file(inspection) if options.weights else None
    if options.json:
        document = (
            inspection.as_dict()
            | (hashes.as_dict(inspection.header.metadata) if hashes else {})
            | ({"weights": weights} if weights else {})
        )
        if remote:
            document |= {"fetched": remote.fetched, "alphas_left": remote.left}
        return show_json(document)
    if place:
        print()
    speak = options.speak
    text = markdown(inspection, options.detail, hashes, weights, name, language=speak.language)
    show_markdown(text, speak)
    if remote:
        say(speak(_fetched(remote, name, inspection.size)))


def _fetched(remote: Remote, name: str, size: int) -> str:
    """How much of a file on another machine was read, and what was not."""
    read = message("commands.fetched", name=name, bytes=f"{remote.fetched:,}", size=f"{size:,}")
    left = [message("commands.alphas_left", count=remote.left)] if remote.left else []
    return joined([read, *left], "space")


def weigh_file(inspection: Inspection) -> Mapping[str, Any]:
    """The weights of an inspected file, measured; this is the only thing here that needs torch."""
    from ..lora.io.stream import TensorStream
    from ..lora.statistics import measure_modules

    with TensorStream(inspection.path, inspection.header) as tensors:
        return measure_modules(inspection.plan, tensors, inspection.config_beside).as_dict()
