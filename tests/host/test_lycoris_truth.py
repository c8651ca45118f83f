"""What LyCORIS' own network makes of a model is what the host's model becomes from the file that
network saves.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from trainers import FLUX_PRESET, trained_by_lycoris, weights_by_lycoris
from truth import Both, check, unet_twin

UNET_PRESET = {
    "target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
    "target_name": ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"],
    # What is left has one of each: resnets with and without a shortcut, attention, both resamplers.
    "exclude_name": [
        "down_blocks.[0-1]",
        "down_blocks.2.(resnets.1|attentions)",
        "up_blocks.[0-3].(resnets|attentions)",
        "up_blocks.[1-3]",
    ],
}

LINEAR: dict[str, dict[str, Any]] = {
    "lora": {"algo": "lora"},
    "lora, use_scalar": {"algo": "lora", "use_scalar": True},
    "lora, dora on outputs": {"algo": "lora", "dora_wd": True, "wd_on_output": True},
    "lora, dora on inputs": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
    "loha": {"algo": "loha"},
    "loha, use_scalar": {"algo": "loha", "use_scalar": True},
    "loha, dora on outputs": {"algo": "loha", "dora_wd": True, "wd_on_output": True},
    "loha, dora on inputs": {"algo": "loha", "dora_wd": True, "wd_on_output": False},
    "lokr": {"algo": "lokr", "factor": 8},
    "lokr, both decomposed": {"algo": "lokr", "linear_dim": 2, "factor": 8, "decompose_both": True},
    "lokr, full factors": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "lokr, largest rank": {"algo": "lokr", "linear_dim": 10000, "factor": 16},
    "lokr, unbalanced": {"algo": "lokr", "factor": 4, "unbalanced_factorization": True},
    "lokr, no factor": {"algo": "lokr"},
    "lokr, use_scalar": {"algo": "lokr", "factor": 8, "use_scalar": True},
    "lokr, dora on outputs": {"algo": "lokr", "factor": 8, "dora_wd": True, "wd_on_output": True},
    "lokr, dora on inputs": {"algo": "lokr", "factor": 8, "dora_wd": True, "wd_on_output": False},
    "full": {"algo": "full"},
    "ia3": {"algo": "ia3"},
    "glora": {"algo": "glora"},
    "diag-oft": {"algo": "diag-oft", "linear_dim": 8},
    "diag-oft, constraint": {"algo": "diag-oft", "linear_dim": 8, "constraint": 1e-3},
    "diag-oft, rescaled": {"algo": "diag-oft", "linear_dim": 8, "rescaled": True},
    "tlora": {"algo": "tlora"},
    "boft": {"algo": "boft", "linear_dim": 8},
    "boft, rescaled": {"algo": "boft", "linear_dim": 8, "rescaled": True},
}


def check_network(host, patched, both: Both, folder, preset, settings, tolerance: float):
    """Train, save, load with this pack, compare all weights; gives the report as a dictionary."""
    module = copy.deepcopy(both.twin)
    network = trained_by_lycoris(module, preset, folder, settings)
    network.save_weights(folder / "lycoris.safetensors", torch.float32, {})
    truth = weights_by_lycoris(network, module, both.twin.state_dict())
    report = check(host, patched, both, folder / "lycoris.safetensors", truth, tolerance).as_dict()
    assert report["keys"]["placed"] == report["keys"]["total"] > 0
    return report


@pytest.fixture(scope="module")
def both_unets(comfy):
    return unet_twin()


@pytest.mark.parametrize("settings", LINEAR.values(), ids=LINEAR)
def test_flux_as_lycoris_trains_it(host, patched, both, tmp_path, settings):
    plain = settings == {"algo": "lora"}
    check_network(host, patched, both, tmp_path, FLUX_PRESET, settings, 1e-5 if plain else 1e-4)


def test_flux_with_an_algorithm_of_its_own_for_some_names(host, patched, both, tmp_path):
    """One file that holds five kinds, among them (IA)3 on the inputs, and a rank of its own."""
    algorithms = {
        "context_embedder": {"algo": "full"},
        "norm_out.linear": {"algo": "lokr", "factor": 4},
        "proj_out": {"algo": "ia3", "train_on_input": True},
        "x_embedder": {"algo": "lora", "dim": 7, "alpha": 3},
    }
    preset = FLUX_PRESET | {"name_algo_map": algorithms}
    check_network(host, patched, both, tmp_path, preset, {"algo": "loha"}, 1e-4)


UNET: dict[str, dict[str, Any]] = {
    "locon": {"algo": "locon", "conv_dim": 2, "conv_alpha": 1},
    "locon, tucker": {"algo": "locon", "use_tucker": True},
    "locon, norms": {"algo": "locon", "train_norm": True},
    "locon, dora on outputs": {"algo": "locon", "dora_wd": True, "wd_on_output": True},
    "locon, dora on inputs": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "loha, tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr, tucker": {"algo": "lokr", "factor": 4, "use_tucker": True},
    "full, norms": {"algo": "full", "train_norm": True},
    "glora": {"algo": "glora"},
    "ia3": {"algo": "ia3"},
    "diag-oft": {"algo": "diag-oft", "linear_dim": 8},
    "boft": {"algo": "boft", "linear_dim": 8},
}


@pytest.mark.parametrize("settings", UNET.values(), ids=UNET)
def test_unet_as_lycoris_trains_it(host, patched, both_unets, tmp_path, settings):
    check_network(host, patched, both_unets, tmp_path, UNET_PRESET, settings, 1e-4)
