"""The pack's executor in a process with the real ComfyUI, and ways to see what it
did to a model.
"""

from __future__ import annotations

import inspect
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


FUNCTIONS = {
    "lora": ("load_lora", "model_lora_keys_unet", "model_lora_keys_clip"),
    "sd": ("load_lora_for_models", "load_bypass_lora_for_models"),
    "utils": ("load_torch_file",),
}


@pytest.fixture
def every(host):
    """nodes/every_loader.py, off before and after the test."""
    from lora_locksmith.nodes import every_loader

    assert not every_loader.is_on()
    yield every_loader
    every_loader.turn(False)


@pytest.fixture
def functions(comfy):
    """functions() -> the host's functions as they stand in its modules now."""
    import comfy.lora
    import comfy.sd
    import comfy.utils

    return lambda: [
        getattr(getattr(comfy, module), name)
        for module, names in FUNCTIONS.items()
        for name in names
    ]


@pytest.fixture
def by_stock_nodes(comfy):
    """by_stock_nodes(patcher, path, strength) -> a patcher, by what stock's LoraLoader does."""
    import comfy.sd
    import comfy.utils

    def load(patcher, path, strength=1.0, with_metadata=True):
        lora, metadata = comfy.utils.load_torch_file(
            str(path), safe_load=True, return_metadata=True
        )
        takes = "lora_metadata" in inspect.signature(comfy.sd.load_lora_for_models).parameters
        told = {"lora_metadata": metadata} if with_metadata and takes else {}
        return comfy.sd.load_lora_for_models(patcher, None, lora, strength, 0, **told)[0]

    return load


@pytest.fixture
def loras(comfy, tmp_path):
    """A loras folder that is the only one ComfyUI knows."""
    import folder_paths

    before = folder_paths.folder_names_and_paths["loras"]
    folder_paths.folder_names_and_paths["loras"] = ([str(tmp_path)], before[1])
    folder_paths.filename_list_cache.pop("loras", None)
    yield tmp_path
    folder_paths.folder_names_and_paths["loras"] = before
    folder_paths.filename_list_cache.pop("loras", None)
