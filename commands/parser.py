"""Reads the command line, runs the command, and turns what goes wrong into one clear line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..key_maps.errors import LocksmithError, exhausted
from . import compare, extract, fix, inspect, merge, resize, scan
from .output import FAILED, INTERRUPTED, show_any_text, shown

COMMANDS = (inspect, scan, compare, fix, merge, resize, extract)

# What the commands that read weights import; `inspect`, `scan` and `compare` do without.
FROM_COMFYUI = ("torch", "safetensors", "numpy")
REMEDY = f"Run `cli.py` with the Python that runs ComfyUI, or install it: pip install {' '.join(FROM_COMFYUI)}"


def parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    description = "LoRA files, whoever trained them: what is in them, what will load; mended, merged, resized."
    top = argparse.ArgumentParser(prog="lora-locksmith", description=description)
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
    except LocksmithError as error:
        print(shown(f"{error}."), file=sys.stderr)
        return FAILED
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        done = " ".join(map(str, sys.argv[1:] if arguments is None else arguments))
        print(shown(f"{done}: {exhausted(error)}. Nothing was written of what was not finished."), file=sys.stderr)
        return FAILED
    except ModuleNotFoundError as error:
        if error.name not in FROM_COMFYUI:
            raise
        print(f"This needs {error.name}, which is not installed here. {REMEDY}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        _forget_output()
        return FAILED
    except OSError as error:
        print(shown(f"{error.filename or 'The output'}: {error.strerror or error}."), file=sys.stderr)
        if error.filename is None:
            _forget_output()
        return FAILED


def _forget_output() -> None:
    """What was not written yet is not tried again at exit, where Python would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
