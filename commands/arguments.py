"""Arguments that several commands have."""

from __future__ import annotations

import argparse
import glob
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..lora.rewrite.rename import NATIVE, writable
from ..report.library import ENDINGS

# Named here, as asking lora/ for them would import torch for every command.
DTYPES = ("fp32", "fp16", "bf16")
MAX_RANK = 2**31 - 1  # larger ones mean the same, and torch does not take them


def a_path(text: str) -> str:
    """A path as it was typed, with the home folder for a ~ that the shell has left."""
    if not text:
        raise argparse.ArgumentTypeError("specify a file or folder; the name is empty")
    return text if os.path.lexists(text) else os.path.expanduser(text)


def every_path(names: Sequence[str]) -> list[str]:
    """The paths, and for a pattern that the shell has left, as Windows' does, all
    that it matches.
    """
    found: list[str] = []
    for name in names:
        matches = (
            sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.lexists(name) else []
        )
        found += matches or [name]
    return found


def number(
    of: str,
    kind: type = float,
    least: float = -math.inf,
    most: float = math.inf,
    above: bool = False,
    below: bool = False,
) -> Callable:
    """A reader of numbers from `least` to `most`; above, below: without these two themselves. of:
    what is told of one that is none.
    """

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or (above and value == least) or (below and value == most):
            raise argparse.ArgumentTypeError(f"{of}, not {text!r}")
        return value

    return read


def check_output(path: str, overwrite: bool, folder: bool = False) -> None:
    """Tell before anything is read why a new file cannot be put at `path`. folder: it becomes a
    folder. Raises ValueError or OSError.
    """
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise ValueError(f"{path}: there is no folder {parent}. Make it first, or choose another")
    if not os.access(parent, os.W_OK):
        raise ValueError(
            f"{path}: the folder {parent} may not be written to. Choose another, or change its"
            " permissions"
        )
    if folder:
        return
    if os.path.isdir(path) or path.endswith(tuple(filter(None, (os.sep, os.altsep)))):
        raise ValueError(f"{path}: it is a folder. Name the new file in it")
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    if not overwrite:
        raise ValueError(
            f"{path}: there is a file already. Choose another name; --overwrite replaces it"
        )


def with_ending(path: str, folder: bool = False) -> str:
    """The name of a new file with an ending by which ComfyUI lists it. folder: it becomes a folder,
    which has none.
    """
    if (
        folder
        or os.path.isdir(path)
        or not os.path.basename(path)
        or Path(path).suffix.lower() in ENDINGS
    ):
        return path
    return f"{path}{ENDINGS[0]}"


def is_named_as_file(path: str) -> bool:
    """Whether it names a LoRA file and not a folder."""
    return (
        Path(path).suffix.lower() in ENDINGS
        and not os.path.isdir(path)
        and os.path.basename(path) != ""
    )


def add_cuts(command: argparse.ArgumentParser) -> None:
    """How far to cut."""
    rank = number("a rank is a whole number from 1 on", int, 1)
    energy = number("an energy is a share above 0, at most 1", float, 0, 1, above=True)
    error = number("an error is a share from 0, below 1", float, 0, 1, below=True)
    command.add_argument("--rank", type=rank, metavar="N", help="the largest rank")
    command.add_argument(
        "--energy",
        type=energy,
        metavar="SHARE",
        help="the smallest rank that keeps this share of the energy, such as 0.95",
    )
    command.add_argument(
        "--error",
        type=error,
        metavar="SHARE",
        help="the smallest rank within this relative error, such as 0.1",
    )


def add_written(command: argparse.ArgumentParser, dtype: str = "as in the source") -> None:
    """What is written, and what is told of it. dtype: what the default is."""
    command.add_argument(
        "--dtype", choices=DTYPES, help=f"of the new file's tensors (default: {dtype})"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace a file that is there already"
    )
    command.add_argument("--json", action="store_true", help="for programs: one JSON object")


def add_dialect(command: argparse.ArgumentParser) -> None:
    """Whose names are written."""
    known = ", ".join(writable())
    command.add_argument(
        "--to",
        choices=writable(),
        default=NATIVE,
        metavar="DIALECT",
        help=f"whose names it gets: {known}",
    )


def dtype_of(options: argparse.Namespace) -> Any:
    """The torch dtype that was asked for, None where none was."""
    from ..lora.io.dtypes import DTYPES as KNOWN

    return KNOWN[options.dtype] if options.dtype else None


def rank_target_of(options: argparse.Namespace) -> Any:
    """What every module is cut to, by the arguments of `add_cuts`."""
    from ..lora.rewrite.resize import RankTarget

    return RankTarget(options.rank and min(options.rank, MAX_RANK), options.energy, options.error)
