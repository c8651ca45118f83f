"""Sampling with an adapter gives the latent of the weights into which the trainer's own library
merged it, up to fp32's noise.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from trainers import (
    EVERYTHING,
    FLUX_PRESET,
    trained_by_lycoris,
    trained_by_peft,
    weights_by_lycoris,
    weights_by_peft,
)
from truth import as_native

BASE = "as_trained_base.safetensors"
MERGED = "as_trained_{}.safetensors"
PREFIX = "diffusion_model."

PEFT = {
    "dora": ("LoraConfig", {"r": 4, "lora_alpha": 10, "use_dora": True}),
    "oft": ("OFTConfig", {"oft_block_size": 32}),
    "oft_exact": ("OFTConfig", {"oft_block_size": 32, "use_cayley_neumann": False}),
}
LYCORIS = {
    "lokr": {"algo": "lokr", "factor": 8},
    "diag_oft": {"algo": "diag-oft", "linear_dim": 8},
}


@pytest.fixture(scope="module")
def models(bench) -> Path:
    return bench.server.base / "models" / "diffusion_models"


@pytest.fixture(scope="module")
def base_latent(bench, both, models) -> torch.Tensor:
    write_model(models / BASE, both, both.twin.state_dict())
    return bench.on_model(BASE).bare()


def write_model(path: Path, both, weights) -> None:
    """Write the host's weights, with these for the diffusers names, as a FLUX file in fp32."""
    native = {
        name: weight for name, weight in as_native(both, weights).items() if name.startswith(PREFIX)
    }
    save_file(
        {name.removeprefix(PREFIX): weight.contiguous() for name, weight in native.items()}, path
    )


def train_with_peft(both, folder: Path, name: str) -> dict[str, torch.Tensor]:
    """PEFT's folder of the adapter in `folder`; gives the weights PEFT merges."""
    import peft

    config, settings = PEFT[name]
    model = trained_by_peft(both.twin, getattr(peft, config)(target_modules=EVERYTHING, **settings))
    model.save_pretrained(folder)
    return weights_by_peft(model)


def train_with_lycoris(both, folder: Path, name: str) -> dict[str, torch.Tensor]:
    """LyCORIS' file of the adapter in `folder`; gives the weights its layers compute."""
    module = copy.deepcopy(both.twin)
    network = trained_by_lycoris(module, FLUX_PRESET, folder, LYCORIS[name])
    network.save_weights(folder / "adapter_model.safetensors", torch.float32, {})
    return weights_by_lycoris(network, module, both.twin.state_dict())


def relative(latent: torch.Tensor, other: torch.Tensor) -> float:
    return float((latent - other).norm() / other.norm())


def test_server_computes_in_fp32(bench, base_latent):
    """The comparison below is worth something only if the server does not round the weights."""
    assert re.search(
        r"model weight dtype torch\.float32, manual cast: None", bench.server.log_text()
    )


@pytest.mark.parametrize("name", [*PEFT, *LYCORIS])
def test_latent_is_that_of_the_weights_the_library_merged(bench, both, models, base_latent, name):
    folder = bench.loras / name
    folder.mkdir()
    truth = (train_with_peft if name in PEFT else train_with_lycoris)(both, folder, name)
    write_model(models / MERGED.format(name), both, truth)
    merged = bench.on_model(MERGED.format(name)).bare()
    result = bench.on_model(BASE).ours(f"{name}/adapter_model.safetensors")
    assert result.report["unplaced"] == []
    assert relative(base_latent, merged) > 1e-2
    assert relative(result.latent, merged) < 1e-4
