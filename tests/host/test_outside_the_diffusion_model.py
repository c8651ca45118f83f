"""Modules that ComfyUI keeps in its model beside the diffusion model: Stable Audio's lengths."""

from __future__ import annotations

import json

import comfy_models
import pytest
import torch
from safetensors.torch import save_file

TRAINED = "conditioner.conditioners.{}.embedder.embedding.1"
OWN = "{}_embedder.embedder.embedding.1.weight"
CASES = [
    ("stable_audio", "seconds_start"),
    ("stable_audio", "seconds_total"),
    ("stable_audio_3", "seconds_total"),
]


@pytest.fixture
def loaded(comfy, host, tmp_path):
    """loaded(model, names of the factors) -> (patcher with the LoRA, its change, report)."""
    from comfy.model_patcher import ModelPatcher

    def load(model, names):
        network = comfy_models.network(model)
        patcher = ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))
        width = network.state_dict()[OWN.format("seconds_total")].shape[1]
        generator = torch.Generator().manual_seed(1)
        down = torch.randn(4, width, generator=generator)
        up = torch.randn(768, 4, generator=generator)
        tensors = dict(zip(names, (down, up), strict=True))
        metadata = {"lora_config": json.dumps({"rank": 4, "alpha": 8, "adapter_type": "lora"})}
        save_file(tensors, tmp_path / "x.safetensors", metadata)
        new, _, report = host.load_and_fix(patcher, None, tmp_path / "x.safetensors", 0.5)
        return new, 0.5 * 2 * up @ down, report

    return load


@pytest.mark.parametrize(("model", "length"), CASES)
def test_what_its_trainer_writes_reaches_it(loaded, patched, model, length):
    start = TRAINED.format(length) + ".parametrizations.weight.0"
    new, change, report = loaded(model, (f"{start}.lora_A", f"{start}.lora_B"))
    assert not report.unplaced()
    name = OWN.format(length)
    stored = new.model.state_dict()[name]
    torch.testing.assert_close(patched(new)[name] - stored, change, rtol=1e-5, atol=1e-6)


def test_comfyuis_own_name_reaches_it(loaded):
    start = OWN.format("seconds_total").removesuffix(".weight")
    new, _, report = loaded("stable_audio_3", (f"{start}.lora_A.weight", f"{start}.lora_B.weight"))
    assert not report.unplaced() and list(new.patches) == [f"{start}.weight"]


def test_what_lies_beside_other_models_is_no_place(comfy, host):
    """A buffer of the sampler is no weight of the network."""
    network = comfy_models.network("stable_audio_3")
    assert any(name.startswith("model_sampling.") for name in network.state_dict())
    weights = host.denoiser_network(comfy_models.all_shapes("stable_audio_3"))
    assert {name.partition(".")[0] for name in weights.weights} == {
        "diffusion_model",
        "seconds_total_embedder",
    }
