"""Arguments that several commands have."""

from __future__ import annotations

import argparse
import glob
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files.header import ENDINGS
from ..lora.rewrite.rename import NATIVE, writable
from ..messages import Speaker, message
from .addresses import TIMEOUT, is_address, shown_address
from .language import reading

# Named here, as asking lora/ for them would import torch for every command.
DTYPES = ("fp32", "fp16", "bf16")
MAX_TIMEOUT = 86400.0  # seconds
MAX_RANK = 2**31 - 1  # larger ones mean the same, and torch does not take them


def a_path(text: str) -> str:
    """A path as it was typed, with the home folder for a ~ that the shell has left."""
    if not text:
        raise argparse.ArgumentTypeError(message("commands.name_is_empty"))
    if is_address(text):
        shown = shown_address(text)
        raise argparse.ArgumentTypeError(message("commands.no_address", address=shown))
    return text if os.path.lexists(text) else os.path.expanduser(text)


def a_place(text: str) -> str:
    """A path, or an address as it was typed."""
    return text if is_address(text) else a_path(text)


def every_path(names: Sequence[str]) -> list[str]:
    """The paths, and for a pattern that the shell has left, as Windows' does, all
    that it matches.
    """
    paths: list[str] = []
    for name in names:
        is_pattern = glob.has_magic(name) and not os.path.lexists(name) and not is_address(name)
        paths += (sorted(glob.glob(name)) if is_pattern else []) or [name]
    return paths


def number(
    rule: str,
    kind: type = float,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> Callable[[str], Any]:
    """A reader of numbers from `least` to `most`; above, below: without these two themselves. rule:
    the id of the sentence that says which numbers are right.
    """

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or (above and value == least) or (below and value == most):
            raise argparse.ArgumentTypeError(
                message("commands.value_not", rule=message(rule), value=text)
            )
        return value

    return read


def check_output(path: str, overwrite: bool, folder: bool = False) -> None:
    """Say before anything is read why a new file cannot be put at `path`. folder: it becomes a
    folder. Raises ValueError or OSError.
    """
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise ValueError(message("commands.no_parent_folder", path=path, folder=parent))
    if not os.access(parent, os.W_OK):
        raise ValueError(message("commands.folder_not_writable", path=path, folder=parent))
    if folder:
        return
    if os.path.isdir(path) or path.endswith(tuple(filter(None, (os.sep, os.altsep)))):
        raise ValueError(message("commands.output_is_a_folder", path=path))
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    if not overwrite:
        raise ValueError(message("commands.output_exists", path=path))


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


def add_path(command: argparse._ActionsContainer, speak: Speaker, *names: str, **more: Any) -> None:
    """A path; `help` is the id of what it is, and the rest is argparse's."""
    help = speak(more.pop("help"))
    command.add_argument(*names, type=reading(a_path, speak), help=help, **more)


def add_place(
    command: argparse._ActionsContainer, speak: Speaker, *names: str, **more: Any
) -> None:
    """A path or an address; see `add_path`."""
    help = speak(more.pop("help"))
    command.add_argument(*names, type=reading(a_place, speak), help=help, **more)


def add_timeout(command: argparse.ArgumentParser, speak: Speaker) -> None:
    """How long a server may take."""
    seconds = number("commands.timeout_is", float, 0, MAX_TIMEOUT, above=True)
    command.add_argument(
        "--timeout",
        type=reading(seconds, speak),
        metavar="SECONDS",
        default=TIMEOUT,
        help=speak("commands.timeout_help", seconds=f"{TIMEOUT:g}"),
    )


def add_cuts(command: argparse.ArgumentParser, speak: Speaker) -> None:
    """How far to cut."""
    rank = number("commands.rank_is", int, 1)
    energy = number("commands.energy_is", float, 0, 1, above=True)
    error = number("commands.error_is", float, 0, 1, below=True)
    command.add_argument(
        "--rank", type=reading(rank, speak), metavar="N", help=speak("commands.rank_help")
    )
    command.add_argument(
        "--energy",
        type=reading(energy, speak),
        metavar="SHARE",
        help=speak("commands.energy_help"),
    )
    command.add_argument(
        "--error",
        type=reading(error, speak),
        metavar="SHARE",
        help=speak("commands.error_help"),
    )


def add_output(command: argparse.ArgumentParser, speak: Speaker) -> None:
    """The new file."""
    add_path(
        command, speak, "-o", "--output", required=True, metavar="OUT", help="commands.output_help"
    )


def add_json_each(command: argparse.ArgumentParser, speak: Speaker) -> None:
    """How commands report that take several files."""
    command.add_argument("--json", action="store_true", help=speak("commands.json_each_help"))


def add_written(command: argparse.ArgumentParser, speak: Speaker, dtype: str) -> None:
    """What is written, and how it is reported. dtype: what the default is."""
    command.add_argument(
        "--dtype", choices=DTYPES, help=speak("commands.dtype_help", default=dtype)
    )
    command.add_argument("--overwrite", action="store_true", help=speak("commands.overwrite_help"))
    command.add_argument("--json", action="store_true", help=speak("commands.json_help"))


def add_dialect(command: argparse.ArgumentParser, speak: Speaker) -> None:
    """Whose names are written."""
    known = ", ".join(writable())
    command.add_argument(
        "--to",
        choices=writable(),
        default=NATIVE,
        metavar="DIALECT",
        help=speak("commands.to_help", names=known),
    )


def dtype_of(options: argparse.Namespace) -> Any:
    """The torch dtype that was asked for, None where none was."""
    from ..lora.io.dtypes import DTYPES as KNOWN

    return KNOWN[options.dtype] if options.dtype else None


def rank_target_of(options: argparse.Namespace) -> Any:
    """What every module is cut to, by the arguments of `add_cuts`."""
    from ..lora.rewrite.resize import RankTarget

    return RankTarget(options.rank and min(options.rank, MAX_RANK), options.energy, options.error)
