"""Reads the command line, runs the command, and turns what goes wrong into one clear line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..key_maps.header import LoraFileError
from . import compare, inspect, scan
from .output import FAILED, INTERRUPTED, show_any_text

COMMANDS = (inspect, scan, compare)


def parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    top = argparse.ArgumentParser(prog="lora-locksmith", description="What is in a LoRA file, and what will load, whoever trained it.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    show_any_text()
    options = parser().parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except LoraFileError as error:
        print(f"{error}.", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
