"""merge A=0.8 B=0.5 ... -o OUT: several LoRAs in one file, whoever trained them."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import LocksmithError
from ..messages import Speaker, message
from .arguments import (
    a_path,
    add_cuts,
    add_dialect,
    add_path,
    add_written,
    check_output,
    rank_target_of,
    with_ending,
)
from .language import add_language, reading
from .output import FINE, PROBLEMS, failed, say, show_json, show_markdown

if TYPE_CHECKING:
    from ..lora.merge.files import Entry
    from ..lora.merge.merge import MergeConfig
    from ..lora.merge.report import MergeReport

# Named here, as asking lora/ for them would import torch for every command.
METHODS = (
    "sum",
    "average",
    "task_arithmetic",
    "slerp",
    "karcher",
    "orthogonal",
    "breadcrumbs",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "magnitude_prune",
    "sce",
    "ties",
)


class Wanted(NamedTuple):
    """A file of the merge and its strengths."""

    path: str
    model: float
    text_encoder: float


def add(commands: Any, speak: Speaker) -> None:
    """Add this command to the command line, with its help in a language."""
    command = commands.add_parser(
        "merge", help=speak("commands.merge_help"), description=speak("commands.merge_description")
    )
    command.add_argument(
        "loras",
        nargs="+",
        metavar="FILE[=STRENGTH[:STRENGTH]]",
        type=reading(wanted, speak),
        help=speak("commands.wanted_help"),
    )
    add_path(command, speak, "-o", "--output", metavar="OUT", help="commands.merge_output_help")
    command.add_argument(
        "--method",
        default="sum",
        type=reading(a_method, speak),
        metavar="METHOD",
        help=speak("commands.method_help", names=", ".join(METHODS)),
    )
    command.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="OPTION=NUMBER",
        type=reading(setting, speak),
        help=speak("commands.set_help"),
    )
    command.add_argument("--seed", type=int, default=0, help=speak("commands.seed_help"))
    command.add_argument(
        "--blocks",
        nargs=2,
        action="append",
        default=[],
        metavar=("N", "WEIGHTS"),
        help=(speak("commands.blocks_help")),
    )
    add_cuts(command, speak)
    command.add_argument(
        "--exact",
        action="store_true",
        help=speak("commands.exact_help"),
    )
    add_written(command, speak, speak("commands.dtype_as_in_sources"))
    add_dialect(command, speak)
    add_path(command, speak, "--against", metavar="MODEL", help="commands.merge_against_help")
    command.add_argument(
        "--dry-run",
        action="store_true",
        help=speak("commands.merge_dry_run_help"),
    )
    add_language(command, speak)
    command.set_defaults(run=run, speak=speak)


def wanted(text: str) -> Wanted:
    """FILE, FILE=0.8 or FILE=0.8:0.3; an = that no number follows belongs to the name."""
    path, sign, numbers = text.rpartition("=")
    if not sign or not path or os.path.lexists(text):
        return Wanted(a_path(text), 1.0, 1.0)
    try:
        strengths = [float(number) for number in numbers.split(":")]
    except ValueError:
        if not os.path.isfile(path):
            return Wanted(a_path(text), 1.0, 1.0)
        strengths = []
    if not 1 <= len(strengths) <= 2 or not all(map(math.isfinite, strengths)):
        raise argparse.ArgumentTypeError(message("commands.strength_is", value=text))
    return Wanted(a_path(path), strengths[0], strengths[-1])


def a_method(text: str) -> str:
    """The name of a method."""
    if text not in METHODS:
        raise argparse.ArgumentTypeError(
            message("merge.no_such_method", method=text, choices=", ".join(METHODS))
        )
    return text


def setting(text: str) -> tuple[str, float]:
    """OPTION=NUMBER."""
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(message("commands.setting_is", value=text)) from None


def run(options: argparse.Namespace) -> int:
    """Merge the files."""
    from ..lora.merge.merge import MergeConfig
    from ..lora.rewrite.rename import is_folder

    try:
        if not options.output and not options.dry_run:
            raise ValueError(message("commands.merge_needs_output"))
        rank, energy, error = rank_target_of(options)
        recipe = MergeConfig(
            options.method,
            dict(options.settings),
            rank,
            energy,
            error,
            options.dtype or "",
            options.seed,
            exact=options.exact,
        )
        # All that can be wrong without the files, before any of them is read.
        recipe.check(len(options.loras))
        blocks = _blocks(options.blocks, len(options.loras))
        if not options.dry_run:
            options.output = with_ending(options.output, folder=is_folder(options.to))
            check_output(options.output, options.overwrite, folder=is_folder(options.to))
        with ExitStack() as files:
            report = _merge(options, recipe, _entries(options, blocks), files)
    except (OSError, ValueError, LocksmithError) as error:
        return failed(error, options)
    if options.json:
        show_json(report.as_dict())
    else:
        show_markdown(report.markdown(language=options.speak.language), options.speak)
    return FINE if report.is_whole else PROBLEMS


def _entries(options: argparse.Namespace, blocks: Mapping[int, Any]) -> list[Entry]:
    from ..lora.merge.block_weights import NO_BLOCKS
    from ..lora.merge.files import Entry

    return [
        Entry(entry.path, entry.model, entry.text_encoder, blocks.get(place, NO_BLOCKS))
        for place, entry in enumerate(options.loras)
    ]


def _blocks(given: Sequence[Sequence[str]], count: int) -> dict[int, Any]:
    from ..lora.merge.block_weights import read_block_weights

    blocks = {}
    for number, text in given:
        if not number.isdecimal() or not 1 <= int(number) <= count:
            raise ValueError(message("commands.blocks_number", number=number, count=count))
        blocks[int(number) - 1] = read_block_weights(text)
    return blocks


def _merge(
    options: argparse.Namespace, recipe: MergeConfig, entries: Sequence[Entry], files: ExitStack
) -> MergeReport:
    from ..lora.merge.dry_run import forecast
    from ..lora.merge.files import merge_files, open_sources
    from ..lora.merge.report import MergeReport

    sources, family = open_sources(entries, options.against, files)
    if options.dry_run:
        report = MergeReport(sources, recipe)
        report.expect(forecast(sources, recipe, measure=True))
        return report
    if options.exact:
        size = forecast(sources, recipe).bytes
        say(options.speak("commands.merge_size", size=f"{size / 1e6:,.1f}"))
    return merge_files(
        options.output,
        entries,
        (sources, family),
        recipe,
        model=options.against,
        dialect=options.to,
        overwrite=options.overwrite,
    )
