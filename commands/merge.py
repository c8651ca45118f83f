"""merge A=0.8 B=0.5 ... -o OUT: several LoRAs in one file, whoever trained them."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from ..errors import LocksmithError
from .arguments import (
    a_path,
    add_cuts,
    add_dialect,
    add_written,
    check_output,
    rank_target_of,
    with_ending,
)
from .output import FINE, PROBLEMS, failed, say, show_json, show_markdown

DESCRIPTION = """\
Merges LoRAs of any dialects and kinds into one file, layer by layer of the model. A=0.8 is A at
strength 0.8, as on a loader; A=0.8:0.3 has a strength of its own for the text encoder. Without
--rank, --energy and --error the sum is exact where it has exact factors; what has none (two
LoKr of whole factors, DoRA, OFT) is cut to rank 128, or kept whole with --exact. In other names
than ComfyUI's own (--to) a layer that ComfyUI fuses, such as q, k and v, is split again where
the files have it split, which makes the file smaller. Needs torch. Exit code 0: written, and
nothing was lost; 1: something was, as the first line tells; 2: nothing was written."""
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


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = commands.add_parser(
        "merge", help="several LoRAs in one file", description=DESCRIPTION
    )
    command.add_argument(
        "loras",
        nargs="+",
        metavar="FILE[=STRENGTH[:STRENGTH]]",
        type=wanted,
        help="a LoRA and its strengths",
    )
    command.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=a_path,
        help="the new file, .safetensors; not needed with --dry-run",
    )
    told = f"merge method (default: %(default)s): {', '.join(METHODS)}"
    command.add_argument("--method", default="sum", type=a_method, metavar="METHOD", help=told)
    command.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="OPTION=NUMBER",
        type=setting,
        help="an option of the method",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="random seed for DARE and DELLA (default: %(default)s)"
    )
    command.add_argument(
        "--blocks",
        nargs=2,
        action="append",
        default=[],
        metavar=("N", "WEIGHTS"),
        help=(
            "weights for parts of the N-th LoRA, such as 'double_blocks.0-5=0.5, *.img_mlp=0, te=0'"
        ),
    )
    add_cuts(command)
    command.add_argument(
        "--exact",
        action="store_true",
        help="full differences, as large as the weights, where no factors are exact",
    )
    add_written(command, "as in the sources")
    add_dialect(command)
    command.add_argument(
        "--against",
        metavar="MODEL",
        type=a_path,
        help=(
            "the model they are for: needed for DoRA and OFT, which are folded, and where no file"
            " tells it"
        ),
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="tell what would come, and how the LoRAs agree; write nothing",
    )
    command.set_defaults(run=run)


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
        raise argparse.ArgumentTypeError(
            f"{text!r}: a strength is a number, or two parted by a colon, such as 0.8 or 0.8:0.3"
        )
    return Wanted(a_path(path), strengths[0], strengths[-1])


def a_method(text: str) -> str:
    """The name of a method."""
    if text not in METHODS:
        raise argparse.ArgumentTypeError(
            f"there is no method {text!r}; the methods are {', '.join(METHODS)}"
        )
    return text


def setting(text: str) -> tuple[str, float]:
    """OPTION=NUMBER."""
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form OPTION=NUMBER, such as density=0.5"
        ) from None


def run(options: argparse.Namespace) -> int:
    """Merge the files."""
    from ..lora.merge.merge import MergeConfig
    from ..lora.rewrite.rename import is_folder

    try:
        if not options.output and not options.dry_run:
            raise ValueError("say with -o where the merge goes")
        recipe = MergeConfig(
            options.method,
            dict(options.settings),
            *rank_target_of(options),
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
            told = _merge(options, recipe, *_sources(options, blocks, files))
    except (OSError, ValueError, LocksmithError) as error:
        return failed(error, options.json)
    show_json(told.as_dict()) if options.json else show_markdown(told.markdown())
    return FINE if told.is_whole else PROBLEMS


def _sources(
    options: argparse.Namespace, blocks: Mapping[int, Any], files: ExitStack
) -> tuple[list[Any], dict[str, str]]:
    """The sources, and what tells for which model they are."""
    from ..lora.merge.block_weights import NO_BLOCKS
    from ..lora.merge.files import Entry, open_sources

    entries = [
        Entry(entry.path, entry.model, entry.text_encoder, blocks.get(place, NO_BLOCKS))
        for place, entry in enumerate(options.loras)
    ]
    return open_sources(entries, options.against, files)


def _blocks(given: Sequence[Sequence[str]], count: int) -> dict[int, Any]:
    from ..lora.merge.block_weights import read_block_weights

    blocks = {}
    for number, text in given:
        if not number.isdecimal() or not 1 <= int(number) <= count:
            raise ValueError(
                f"--blocks {number}: the first is the number of a LoRA, from 1 to {count}"
            )
        blocks[int(number) - 1] = read_block_weights(text)
    return blocks


def _merge(
    options: argparse.Namespace, recipe: Any, sources: Sequence[Any], family: Mapping[str, str]
) -> Any:
    from ..lora.merge.dry_run import forecast
    from ..lora.merge.files import base_weights
    from ..lora.merge.report import MergeReport
    from ..lora.merge.write import merge_metadata, write_merged

    report = MergeReport(sources, recipe)
    if options.dry_run:
        report.expect(forecast(sources, recipe, measure=True))
        return report
    if options.exact:
        say(f"The new file will take up to {forecast(sources, recipe).bytes / 1e6:,.1f} MB.")
    metadata = {
        **merge_metadata(sources, recipe, [entry.path for entry in options.loras]),
        **family,
    }
    base = base_weights(options.against, sources)
    made = write_merged(
        options.output,
        sources,
        recipe,
        metadata,
        base,
        options.overwrite,
        report.add,
        overlaps=True,
        dialect=options.to,
    )
    report.written = str(made)
    return report
