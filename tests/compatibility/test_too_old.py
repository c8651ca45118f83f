"""A ComfyUI or a Python too old for the pack is told so in one line that names the remedy."""

from __future__ import annotations

import ast
import subprocess
import sys

import lora_locksmith
import pytest
from comfy_server import PATIENCE
from devtools import comfyui, steps

ASK_AS_A_HOST_DOES = """
import asyncio, importlib.util, logging, sys
logging.basicConfig(format="%(message)s")
sys.path.insert(0, sys.argv[2])
spec = importlib.util.spec_from_file_location("pack", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]])
sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("V1" if hasattr(module, "NODE_CLASS_MAPPINGS") else "V3")
try:
    asyncio.run(module.comfy_entrypoint())
except RuntimeError as fault:
    print(fault)
except ModuleNotFoundError as fault:
    print("goes on to", fault.name)
"""


def ask(tmp_path, version: str) -> subprocess.CompletedProcess:
    """A process that asks the pack as the host does, beside a file with this version, or none."""
    if version:
        (tmp_path / "comfyui_version.py").write_text(
            f'__version__ = "{version}"\n', encoding="utf-8"
        )
    command = [sys.executable, "-I", "-c", ASK_AS_A_HOST_DOES, str(steps.ROOT), str(tmp_path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize("version", ["0.3.40", "0.3.64", "0.16.2", "0.9", ""])
def test_an_old_comfyui_is_told_what_is_needed(tmp_path, version):
    told = ask(tmp_path, version)
    assert told.returncode == 0 and told.stdout.splitlines()[0] == "V3"
    (line,) = told.stderr.splitlines()
    assert line.startswith(
        "LoRA Locksmith needs ComfyUI 0.16.3 or newer, and this is ComfyUI "
        + (version or "0.0 (2024 or before)")
    )
    assert "Update ComfyUI" in line and "too old" in told.stdout.splitlines()[1]


@pytest.mark.parametrize("version", ["0.16.3", "0.30.0", "1.0", "of my own"])
def test_others_are_not(tmp_path, version):
    told = ask(tmp_path, version)
    assert told.stdout.splitlines() == ["V3", "goes on to comfy_api"]
    assert "too old" not in told.stderr and "needs ComfyUI" not in told.stderr


def test_an_old_python_can_read_what_tells_it_so():
    for name in ("__init__.py", "dev.py"):
        ast.parse((steps.ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_what_is_needed_is_the_same_everywhere():
    oldest = ".".join(map(str, lora_locksmith.OLDEST_COMFYUI))
    python = ".".join(map(str, lora_locksmith.OLDEST_PYTHON))
    pyproject, readme = (
        (steps.ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "README.md")
    )
    assert (
        f'requires-comfyui = ">={oldest}"' in pyproject
        and f'requires-python = ">={python}"' in pyproject
    )
    assert f"ComfyUI {oldest} or newer, Python {python} or newer" in readme
    assert next(iter(comfyui.COMFYUI_SOURCES)) == oldest == comfyui.USUAL_HOSTS[0]
