"""Reads the command line, runs the command, and turns what goes wrong into one clear line and an
exit code.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import LocksmithError, exhausted
from ..report.library import ENDINGS
from . import compare, extract, fix, inspect, merge, resize, scan
from .output import FAILED, INTERRUPTED, complain, one_line, show_any_text, told_fault

NAME = "lora-locksmith"
EXIT_CODES = (
    "Exit codes: 0 all well, 1 something has no effect, 2 wrong use or a file that cannot be read"
    " or written, 130 Ctrl-C."
)
COMMANDS = (inspect, scan, compare, fix, merge, resize, extract)

# What the commands that read weights import; `inspect`, `scan` and `compare` do without.
FROM_COMFYUI = ("torch", "safetensors", "numpy")
REMEDY = (
    "Run `cli.py` with the Python that runs ComfyUI, or install it: pip install"
    f" {' '.join(FROM_COMFYUI)}"
)


class Parser(argparse.ArgumentParser):
    """Tells what is wrong with a value in one line; how a command is used only where that is what
    was wrong.
    """

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        if not message.startswith("argument "):
            self.print_usage(sys.stderr)
        self.exit(FAILED, one_line(f"{self.prog}: {message}. See {self.prog} --help") + "\n")


class ShowVersion(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print it, and exit."""
        print(f"{parser.prog} {version()}")
        parser.exit()


def version() -> str:
    """The version that pyproject.toml states; of an installed package, that it
    was installed with.
    """
    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        return re.search(r'^version = "(.+)"', project.read_text("utf-8"), re.MULTILINE)[1]
    from importlib.metadata import version as installed

    return installed(NAME)


def parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    description = (
        "LoRA files, whoever trained them: what is in them, what will load; mended, merged,"
        " resized."
    )
    top = Parser(prog=NAME, description=description, epilog=EXIT_CODES)
    top.add_argument("--version", action=ShowVersion, nargs=0, help="tell the version and exit")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    show_any_text()
    options = parser().parse_args(with_dashes(sys.argv[1:] if arguments is None else arguments))
    as_json = getattr(options, "json", False)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except LocksmithError as error:
        return complain(str(error), as_json)
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        done = " ".join(map(str, sys.argv[1:] if arguments is None else arguments))
        return complain(
            f"{done}: {exhausted(error)}. Nothing was written of what was not finished", as_json
        )
    except ModuleNotFoundError as error:
        if error.name not in FROM_COMFYUI:
            raise
        return complain(f"This needs {error.name}, which is not installed here. {REMEDY}", as_json)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        _forget_output()
        return FAILED
    except OSError as error:
        complain(told_fault(error))
        if error.filename is None:
            _forget_output()
        return FAILED


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """The arguments; a file whose name begins with a dash is named so that it is not taken for an
    option.
    """
    told = []
    for argument in arguments:
        name = argument if argument.lower().endswith(ENDINGS) else argument.partition("=")[0]
        is_file = (
            argument.startswith("-") and name.lower().endswith(ENDINGS) and os.path.lexists(name)
        )
        told.append(os.path.join(os.curdir, argument) if is_file else argument)
    return told


def _forget_output() -> None:
    """What was not written yet is not tried again at exit, where Python would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
