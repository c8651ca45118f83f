"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from typing import Any

from ..key_maps.respell import NATIVE, writable

# Named here, as asking lora/ for them would import torch for every command.
DTYPES = ("fp32", "fp16", "bf16")


def add_cuts(command: argparse.ArgumentParser) -> None:
    """How far to cut."""
    command.add_argument("--rank", type=int, help="the largest rank")
    command.add_argument(
        "--energy", type=float, metavar="SHARE", help="the smallest rank that keeps this share of the energy, such as 0.95"
    )
    command.add_argument("--error", type=float, metavar="SHARE", help="the smallest rank within this relative error, such as 0.1")


def add_written(command: argparse.ArgumentParser, dtype: str = "as in the source") -> None:
    """What is written, and what is told of it. dtype: what the default is."""
    command.add_argument("--dtype", choices=DTYPES, help=f"of the new file's tensors (default: {dtype})")
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there already")
    command.add_argument("--json", action="store_true", help="for programs: one JSON object")


def add_dialect(command: argparse.ArgumentParser) -> None:
    """Whose names are written."""
    known = ", ".join(writable())
    command.add_argument("--to", choices=writable(), default=NATIVE, metavar="DIALECT", help=f"whose names it gets: {known}")


def dtype_of(options: argparse.Namespace) -> Any:
    """The torch dtype that was asked for, None where none was."""
    from ..lora.tensors import DTYPES as KNOWN

    return KNOWN[options.dtype] if options.dtype else None


def ask_of(options: argparse.Namespace) -> Any:
    """What every module is cut to, by the arguments of `add_cuts`."""
    from ..lora.resize import Ask

    return Ask(options.rank, options.energy, options.error)
