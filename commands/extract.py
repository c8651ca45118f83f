"""extract BASE TUNED -o OUT: what a tuned model changed, as a LoRA."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from ..errors import LocksmithError
from ..report.load_report import plural
from .arguments import (
    a_path,
    add_cuts,
    add_dialect,
    add_written,
    check_output,
    dtype_of,
    number,
    rank_target_of,
    with_ending,
)
from .output import FINE, PROBLEMS, failed, progress, show_json, shown, spread

DESCRIPTION = """\
Writes the difference of two models (safetensors: diffusion models or whole checkpoints, by
ComfyUI's or diffusers' names, also one of each) as a LoRA, every weight at its best rank. Needs
torch. Exit code 0: all that changed is in it; 1: something changed that is not; 2: nothing was
written."""


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = commands.add_parser(
        "extract", help="a LoRA from a base and a tuned model", description=DESCRIPTION
    )
    command.add_argument(
        "base",
        metavar="BASE",
        type=a_path,
        help="the model that was tuned: a file, an index of shards, or a folder",
    )
    command.add_argument("tuned", metavar="TUNED", type=a_path, help="what became of it")
    command.add_argument(
        "-o", "--output", required=True, metavar="OUT", type=a_path, help="the new file"
    )
    add_cuts(command)
    add_written(command, "as in the tuned model, bf16 for fp8")
    add_dialect(command)
    command.add_argument(
        "--extras",
        action="store_true",
        help="also norms, biases and lone parameters, as whole differences",
    )
    quantile = number("a quantile is above 0, at most 1", float, 0, 1, above=True)
    command.add_argument(
        "--clamp",
        type=quantile,
        metavar="QUANTILE",
        help="clamp the factors as sd-scripts does (0.99 there)",
    )
    command.add_argument(
        "--device", default="cpu", help="where the decompositions run (default: cpu)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Extract the LoRA."""
    from ..lora.rewrite.extract import ExtractOptions, extract_file, not_asked
    from ..lora.rewrite.rename import is_folder

    how = ExtractOptions(rank_target_of(options), options.extras, options.clamp, options.device)
    try:
        if (options.rank, options.energy, options.error) == (None, None, None):
            raise ValueError("say with --rank, --energy or --error how large it may be")
        _check_device(options.device)
        options.output = with_ending(options.output, folder=is_folder(options.to))
        check_output(options.output, options.overwrite, folder=is_folder(options.to))
        with progress("Extracting") as told:
            found = extract_file(
                options.base,
                options.tuned,
                options.output,
                how,
                options.to,
                dtype_of(options),
                options.overwrite,
                told,
            )
    except (OSError, ValueError, RuntimeError, LocksmithError) as error:
        return failed(error, options.json)
    if options.json:
        rows = [row._asdict() for row in found.rows]
        show_json(
            {
                "file": options.output,
                "kept_energy": found.kept_energy,
                "weights": rows,
                "left_out": found.left_out,
            }
        )
    else:
        print(shown(_told(found, options.output)))
    return PROBLEMS if any(reason != not_asked() for reason in found.left_out.values()) else FINE


def _check_device(name: str) -> None:
    """Raises ValueError for what torch does not know, or cannot use here."""
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {name}: torch cannot use it here ({str(error).splitlines()[0][:160]})"
        ) from None


def _told(found: Any, path: str) -> str:
    from ..lora.rewrite.extract import not_asked

    ranks = [row.rank for row in found.rows if row.rank]
    lost = sum(reason != not_asked() for reason in found.left_out.values())
    first = f"Not whole: {plural(lost, 'change')} left out. " if lost else ""
    whole = f"{len(found.rows) - len(ranks)} differences, {found.unchanged} unchanged"
    told = [f"{first}{path}: {len(ranks)} weights of rank {spread(ranks)}, {whole}"]
    told.append(f"Kept energy: {found.kept_energy:.4%}.")
    told += [
        f"{count} left out, such as {_first(found, reason)}: {reason}"
        for reason, count in Counter(found.left_out.values()).most_common()
    ]
    return "\n".join(told)


def _first(found: Any, reason: str) -> str:
    return next(name for name, other in found.left_out.items() if other == reason)
