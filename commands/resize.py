"""resize FILE -o OUT: a LoRA at a smaller rank, each module at its best."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .output import FAILED, FINE

DESCRIPTION = """Writes a LoRA at a smaller rank: every LoRA, LoCon, LoHa and LoKr becomes the best LoRA of the asked rank, or of
the rank that keeps the asked energy (the share of its squared norm). Names, the ratio of alpha to rank and all other tensors stay.
Needs torch. Exit code 0: written; 2: not."""
DTYPES = ("fp32", "fp16", "bf16")


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = commands.add_parser("resize", help="a LoRA at a smaller rank", description=DESCRIPTION)
    command.add_argument("file", metavar="FILE", help="a LoRA, as .safetensors")
    command.add_argument("-o", "--output", required=True, metavar="OUT", help="the new file")
    add_asked(command)
    command.add_argument("--against", metavar="MODEL", help="the model it was made for, where the file does not tell")
    command.add_argument("--dora", action="store_true", help="also cut DoRA, whose magnitudes then no longer fit as they were trained to")
    command.set_defaults(run=run)


def add_cuts(command: argparse.ArgumentParser) -> None:
    """How far to cut: the arguments of all commands that do."""
    command.add_argument("--rank", type=int, help="the largest rank")
    command.add_argument(
        "--energy", type=float, metavar="SHARE", help="the smallest rank that keeps this share of the energy, such as 0.95"
    )
    command.add_argument("--error", type=float, metavar="SHARE", help="the smallest rank within this relative error, such as 0.1")


def add_asked(command: argparse.ArgumentParser) -> None:
    """The arguments that resize and extract share."""
    add_cuts(command)
    command.add_argument("--dtype", choices=DTYPES, help="of the new file (default: the source's)")
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there already")
    command.add_argument("--json", action="store_true", help="for programs: one JSON object")


def asked(options: argparse.Namespace) -> tuple[Any, Any]:
    """(what every module is cut to, the dtype) of the arguments of `add_asked`."""
    import torch

    from ..lora.resize import Ask

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, None: None}
    return Ask(options.rank, options.energy, options.error), dtypes[options.dtype]


def run(options: argparse.Namespace) -> int:
    """Resize the file."""
    from ..key_maps.checkpoint import site_of_checkpoint
    from ..key_maps.header import LoraFileError
    from ..lora.resize import resize_file

    ask, dtype = asked(options)
    try:
        site = site_of_checkpoint(options.against).site if options.against else None
        made = resize_file(options.file, options.output, ask, dtype, options.dora, options.overwrite, site)
    except (OSError, ValueError, LoraFileError) as error:
        return failed(options, error)
    if options.json:
        print(json.dumps({"file": options.output, "kept_energy": made.kept_energy, "modules": [row._asdict() for row in made.rows]}))
    else:
        print(_told(made, options.output))
    return FINE


def failed(options: argparse.Namespace, error: Exception) -> int:
    """Tell why nothing was written."""
    fault = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    if options.json:
        print(json.dumps({"error": fault}))
    else:
        print(f"{fault}. Nothing was written.", file=sys.stderr)
    return FAILED


def spread(numbers: list[int]) -> str:
    """The smallest and the largest."""
    return "none" if not numbers else f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _told(made: Any, path: str) -> str:
    rows = [row for row in made.rows if not row.note]
    worst = max(rows, key=lambda row: row.error, default=None)
    told = [f"{path}: {len(rows)} modules, rank {spread([row.before for row in rows])} -> {spread([row.rank for row in rows])}"]
    told += [f"Kept energy: {made.kept_energy:.4%}. Largest relative error: {worst.error:.2e} in {worst.module}."] if worst else []
    told += [f"{row.module}: {row.note}" for row in made.rows if row.note]
    return "\n".join(told)
