"""The command line: `lora-locksmith`, or `python cli.py` from a clone."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 all well, 1 something has no effect, 2 wrong use or
    unreadable file, 130 Ctrl-C.
    """
    from .commands.parser import run

    return run(arguments)


def as_package() -> None:
    """Import the folder this file is in as the package it is, whatever its name: a clone need not
    be installed.
    """
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    folder = Path(__file__).resolve().parent
    spec = spec_from_file_location(
        "lora_locksmith", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader, "a file has a loader"
    sys.modules["lora_locksmith"] = package = module_from_spec(spec)
    spec.loader.exec_module(package)


if __name__ == "__main__":
    as_package()
    from lora_locksmith.cli import main

    sys.exit(main())
