"""Reads the command line, runs the command, and turns what goes wrong into one clear line and an
exit code.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from ..errors import LocksmithError, exhausted
from ..files.header import ENDINGS
from ..messages import ENGLISH, Speaker, message, text_of
from . import compare, extract, fix, inspect, merge, resize, scan
from .language import WideFormatter, add_language, chosen_language, words_of_argparse
from .output import FAILED, INTERRUPTED, complain, fault_of, one_line, show_any_text

NAME = "lora-locksmith"
COMMANDS = (inspect, scan, compare, fix, merge, resize, extract)

# What the commands that read weights import; `inspect`, `scan` and `compare` do without.
FROM_COMFYUI = ("torch", "safetensors", "numpy")


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a value in one line; how a command is used only where that is what
    was wrong.
    """

    speak = Speaker()

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        of_a_value, _, _ = self.speak("commands.argparse_argument").partition("%")
        if not message.startswith(of_a_value):
            self.print_usage(sys.stderr)
        fault = self.speak("commands.wrong_use", program=self.prog, fault=message)
        self.exit(FAILED, one_line(fault) + "\n")


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
        version = re.search(r'^version = "(.+)"', project.read_text("utf-8"), re.MULTILINE)
        assert version, "pyproject.toml states a version"
        return version[1]
    from importlib.metadata import version as installed

    return installed(NAME)


def parser(speak: Speaker) -> argparse.ArgumentParser:
    """The parser with all commands, which speaks a language."""
    of_language = type(
        "Parser",
        (Parser,),
        {"speak": speak},
    )
    more = {} if speak.language == ENGLISH else {"formatter_class": WideFormatter}
    top = of_language(
        prog=NAME,
        description=speak("commands.description"),
        epilog=speak("commands.exit_codes"),
        **more,
    )
    top.add_argument("--version", action=ShowVersion, nargs=0, help=speak("commands.version_help"))
    add_language(top, speak)
    commands = top.add_subparsers(
        title=speak("commands.commands"),
        metavar="COMMAND",
        required=True,
        parser_class=partial(of_language, **more),
    )
    for command in COMMANDS:
        command.add(commands, speak)
    made: argparse.ArgumentParser = top
    return made


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    show_any_text()
    words = sys.argv[1:] if arguments is None else list(arguments)
    speak = Speaker(chosen_language(words, os.environ))
    with words_of_argparse(speak):
        options = parser(speak).parse_args(with_dashes(words))
    as_json = getattr(options, "json", False)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except LocksmithError as error:
        return complain(text_of(error), speak, as_json)
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        fault = message(
            "commands.stopped_short",
            command=" ".join(map(str, words)),
            fault=exhausted(error),
        )
        return complain(fault, speak, as_json)
    except ModuleNotFoundError as error:
        if error.name not in FROM_COMFYUI:
            raise
        fault = message("commands.needs_library", name=error.name, libraries=" ".join(FROM_COMFYUI))
        return complain(fault, speak, as_json)
    except KeyboardInterrupt:
        print(speak("commands.stopped"), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        _forget_output()
        return FAILED
    except OSError as error:
        complain(fault_of(error), speak)
        if error.filename is None:
            _forget_output()
        return FAILED


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """The arguments; a file whose name begins with a dash is named so that it is not taken for an
    option.
    """
    named = []
    for argument in arguments:
        name = argument if argument.lower().endswith(ENDINGS) else argument.partition("=")[0]
        is_file = (
            argument.startswith("-") and name.lower().endswith(ENDINGS) and os.path.lexists(name)
        )
        named.append(os.path.join(os.curdir, argument) if is_file else argument)
    return named


def _forget_output() -> None:
    """What was not written yet is not tried again at exit, where Python would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
