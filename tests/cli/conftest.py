"""The command line in processes of its own, and LoRA files for it to read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from comfy_server import PATIENCE
from reports.small_files import CLI, flux_lora, write_file


@pytest.fixture
def file(tmp_path) -> Callable[..., Path]:
    """file(name, start=...) -> a LoRA for FLUX.1 in the test's folder."""
    return lambda name="good.safetensors", **how: write_file(tmp_path / name, flux_lora(**how))


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """A process's environment with a cache folder of its own and without the tests' path."""
    cache = tmp_path / "cache"
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "PYTHONUNBUFFERED", "COLUMNS")
    }
    return {
        **kept,
        "XDG_CACHE_HOME": str(cache),
        "LOCALAPPDATA": str(cache),
        "HOME": str(tmp_path),
        "PYTHONIOENCODING": "utf-8",
    }


@pytest.fixture
def locksmith(environment, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """locksmith("inspect", path, ...) -> the finished process, with its output as text."""

    def run(
        *arguments: object, options: tuple[str, ...] = (), **changes: str
    ) -> subprocess.CompletedProcess:
        command = [sys.executable, *options, str(CLI), *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=tmp_path,
            env={**environment, **changes},
            timeout=PATIENCE,
        )

    return run
