"""resize FILE -o OUT: a LoRA at a smaller rank, each module at its best."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import LocksmithError
from .arguments import (
    a_path,
    add_cuts,
    add_written,
    check_output,
    dtype_of,
    rank_target_of,
    with_ending,
)
from .output import FINE, failed, show_json, shown, spread

DESCRIPTION = """\
Writes a LoRA at a smaller rank: every LoRA, LoCon, LoHa and LoKr becomes the best LoRA of the
asked rank, or of the rank that keeps the asked energy (the share of its squared norm). Names,
the ratio of alpha to rank and all other tensors stay. Needs torch. Exit code 0: written; 2:
not."""


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = commands.add_parser(
        "resize", help="a LoRA at a smaller rank", description=DESCRIPTION
    )
    command.add_argument("file", metavar="FILE", type=a_path, help="a LoRA, as .safetensors")
    command.add_argument(
        "-o", "--output", required=True, metavar="OUT", type=a_path, help="the new file"
    )
    add_cuts(command)
    add_written(command)
    command.add_argument(
        "--against",
        metavar="MODEL",
        type=a_path,
        help="the model it was made for, where the file does not tell",
    )
    command.add_argument(
        "--dora",
        action="store_true",
        help="also cut DoRA, whose magnitudes then no longer fit as they were trained to",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Resize the file."""
    from ..identify.checkpoint import target_model_of_checkpoint
    from ..lora.rewrite.resize import resize_file

    try:
        if (options.rank, options.energy, options.error) == (None, None, None):
            raise ValueError("say with --rank, --energy or --error how far it is to be cut")
        options.output = with_ending(options.output)
        check_output(options.output, options.overwrite)
        target_model = (
            target_model_of_checkpoint(options.against).target_model if options.against else None
        )
        made = resize_file(
            options.file,
            options.output,
            rank_target_of(options),
            dtype_of(options),
            options.dora,
            options.overwrite,
            target_model,
        )
    except (OSError, ValueError, LocksmithError) as error:
        return failed(error, options.json)
    if options.json:
        show_json(
            {
                "file": options.output,
                "kept_energy": made.kept_energy,
                "modules": [row._asdict() for row in made.rows],
            }
        )
    else:
        print(shown(_told(made, options.output)))
    return FINE


def _told(made: Any, path: str) -> str:
    rows = [row for row in made.rows if not row.note]
    worst = max(rows, key=lambda row: row.error, default=None)
    told = [
        f"{path}: {len(rows)} modules, rank {spread([row.before for row in rows])} ->"
        f" {spread([row.rank for row in rows])}"
    ]
    told += (
        [
            f"Kept energy: {made.kept_energy:.4%}. Largest relative error: {worst.error:.2e} in"
            f" {worst.module}."
        ]
        if worst
        else []
    )
    told += [f"{row.module}: {row.note}" for row in made.rows if row.note]
    return "\n".join(told)
