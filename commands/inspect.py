"""inspect FILE...: what is in a LoRA file, what will load, what was never trained."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

from ..files.hashes import file_hashes
from ..files.header import LoraFileError
from ..identify.checkpoint import target_model_of_checkpoint
from ..key_maps.dialect import DENOISER
from ..planning.plan import NO_FAULT, NOT_WIRED
from ..report.file_names import told_apart
from ..report.inspection import Inspection, inspect_file
from ..report.markdown import DETAILS, SUMMARY, markdown
from .arguments import a_path, every_path
from .output import FAILED, FINE, PROBLEMS, complain, show_json, show_markdown

DESCRIPTION = """\
Tells what is in LoRA files from their headers: which model, which trainer, what was trained,
what will load.
Exit code 0: all of it loads; 1: something has no effect; 2: a file cannot be read."""


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = commands.add_parser("inspect", help="what is in a LoRA file", description=DESCRIPTION)
    command.add_argument(
        "files", nargs="+", metavar="FILE", type=a_path, help="a LoRA, as .safetensors"
    )
    command.add_argument(
        "--against",
        metavar="MODEL",
        type=a_path,
        help="a checkpoint or diffusion model: the exact answer, from its header",
    )
    command.add_argument(
        "--detail",
        type=lambda text: text.replace("-", " "),
        choices=DETAILS,
        default=SUMMARY,
        help="how much is told (default: %(default)s)",
    )
    command.add_argument(
        "--weights",
        action="store_true",
        help="also measure the weights; reads the whole file and needs torch",
    )
    command.add_argument(
        "--hashes", action="store_true", help="also compute the file's hashes; reads the whole file"
    )
    command.add_argument(
        "--json",
        action="store_true",
        help="for programs: one JSON object for each file, one to a line",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Inspect every file; a file that cannot be read does not keep the others
    from being inspected.
    """
    target_model = (
        target_model_of_checkpoint(options.against).target_model if options.against else None
    )
    files = every_path(options.files)
    worst = FINE
    for place, (path, name) in enumerate(zip(files, told_apart(files), strict=True)):
        try:
            found = inspect_file(path, target_model)
            _show(found, options, name, place)
            worst = max(worst, FINE if loads_whole(found) else PROBLEMS)
        except LoraFileError as error:
            worst = FAILED
            fault = (
                f"{path}: it is a folder. Name a file in it, or scan the folder"
                if os.path.isdir(path)
                else str(error)
            )
            if options.json:
                show_json({"file": path, "error": fault})
            else:
                complain(fault)
    return worst


def loads_whole(found: Inspection) -> bool:
    """Whether every key of the file that means something has its effect; text encoders aside that
    the given model lacks.
    """
    categories = found.report.categories.keys()
    if NOT_WIRED in categories and DENOISER not in found.plan.target_model.networks:
        return False
    return bool(found.report.modules["placed"]) and not (categories - NO_FAULT)


def _show(found: Inspection, options: argparse.Namespace, name: str, place: int) -> None:
    hashes = file_hashes(found.path) if options.hashes else None
    weights = weigh_file(found) if options.weights else None
    if options.json:
        told = (
            found.as_dict()
            | (hashes.as_dict(found.header.metadata) if hashes else {})
            | ({"weights": weights} if weights else {})
        )
        return show_json(told)
    if place:
        print()
    show_markdown(markdown(found, options.detail, hashes, weights, name))


def weigh_file(found: Inspection) -> Mapping[str, Any]:
    """The weights of an inspected file, measured; this is the only thing here that needs torch."""
    from ..lora.io.stream import TensorStream
    from ..lora.statistics import measure_modules

    with TensorStream(found.path, found.header) as tensors:
        return measure_modules(found.plan, tensors, found.config_beside).as_dict()
