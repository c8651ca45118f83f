"""The pack's executor in a process with the real ComfyUI, and ways to see what it
did to a model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def host(comfy):
    """nodes/host.py, imported beside the real ComfyUI."""
    from lora_locksmith.nodes import host

    return host


@pytest.fixture(scope="session")
def patched(comfy):
    """patched(patcher) -> {weight name: value under its patches, computed by the host}, for all
    weights that have patches.
    """
    import comfy.lora
    import comfy.utils

    def compute(patcher, key):
        weight = comfy.utils.get_attr(patcher.model, key).detach().clone().float()
        return comfy.lora.calculate_weight(patcher.patches[key], weight, key)

    return lambda patcher: {key: compute(patcher, key) for key in patcher.patches}


@pytest.fixture(scope="module")
def base(comfy, tmp_path_factory):
    """base(kind) -> a ModelPatcher over the tiny FLUX stored that way; one for a file's tests."""
    from many_kinds import load_base, write_base

    folder, made = tmp_path_factory.mktemp("bases"), {}

    def make(kind="fp32"):
        if kind not in made:
            made[kind] = load_base(write_base(folder / f"{kind}.safetensors", kind), kind)
        return made[kind]

    return make
