"""Runs mypy over the pack, as pyproject.toml tells it to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .steps import ROOT, WORK

TYPES = WORK / "types"  # the pack under its name, and what mypy remembers
MYPY = (
    *("-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")),
    *("--cache-dir", str(TYPES / "cache")),
)


def check_types(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The outcome of mypy over the pack, or the files given."""
    TYPES.mkdir(parents=True, exist_ok=True)
    link = TYPES / "lora_locksmith"
    if not link.is_symlink() or link.resolve() != ROOT.resolve():
        link.unlink(missing_ok=True)
        _point(link)
    return subprocess.run(
        [python, *MYPY, *arguments],
        cwd=TYPES,
        env={**os.environ, "MYPYPATH": str(TYPES)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def _point(link: Path) -> None:
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError:  # Windows lets not everyone make links, but junctions
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(ROOT)], check=True)
