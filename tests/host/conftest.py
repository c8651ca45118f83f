"""The pack's executor in a process with the real ComfyUI, and ways to see what it did to a model."""

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
def tiny_flux(comfy):
    """make() -> a ModelPatcher over a tiny fp32 FLUX with seeded weights, the same every time."""
    import torch

    def make(dtype=torch.float32):
        import comfy.model_detection
        import comfy.model_patcher
        from tiny_models import flux_state_dict

        weights = {name: weight.float() for name, weight in flux_state_dict().items()}
        config = comfy.model_detection.model_config_from_unet(weights, "")
        config.set_inference_dtype(dtype, None)
        model = config.get_model(weights, "")
        model.load_model_weights(dict(weights), "")
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model.to(dtype), load_device=cpu, offload_device=cpu)

    return make


@pytest.fixture(scope="session")
def patched(comfy):
    """patched(patcher) -> {weight name: value under its patches, computed by the host}, for all weights that have patches."""
    import comfy.lora
    import comfy.utils

    def compute(patcher, key):
        weight = comfy.utils.get_attr(patcher.model, key).detach().clone().float()
        return comfy.lora.calculate_weight(patcher.patches[key], weight, key)

    return lambda patcher: {key: compute(patcher, key) for key in patcher.patches}


@pytest.fixture(scope="session")
def both(tiny_flux):
    """The tiny FLUX as the host has it and as diffusers does, with the same weights."""
    from truth import flux_twin

    return flux_twin(tiny_flux())
