"""What LyCORIS' own network makes of a model is what the host's model becomes from the file that network saves."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from truth import Both, check, with_the_same_weights

FLUX_PRESET = {
    "target_module": ["FluxTransformerBlock", "FluxSingleTransformerBlock"],
    "target_name": ["x_embedder", "context_embedder", "norm_out.linear", "proj_out"],
}
UNET_PRESET = {
    "target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
    "target_name": ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"],
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
    "boft": {"algo": "boft", "linear_dim": 8},
    "boft, rescaled": {"algo": "boft", "linear_dim": 8, "rescaled": True},
}


def train(module, preset: Mapping[str, Any], folder, settings: Mapping[str, Any]):
    """LyCORIS' network around `module`, everything it trains moved at random, as after a training."""
    from lycoris import create_lycoris

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    preset_file = folder / "preset.toml"
    preset_file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in preset.items()), encoding="utf-8")
    network = create_lycoris(module, 1.0, **{"linear_dim": 4, "linear_alpha": 2, "preset": str(preset_file), **settings})
    network.apply_to()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            move(name.rpartition(".")[2], parameter, torch.randn(parameter.shape, generator=generator))
    return network.eval()


def move(role: str, parameter: torch.Tensor, noise: torch.Tensor) -> None:
    if role in ("dora_scale", "rescale"):
        parameter.mul_(1 + 0.2 * noise)
    elif role == "scalar":
        parameter.fill_(0.5)
    else:
        parameter.add_(noise, alpha=0.05)


def true_weights(network, module: torch.nn.Module, before: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of `module` with what the network's layers compute in place of what they started from."""
    names = {id(layer): name for name, layer in module.named_modules()}
    weights = dict(before)
    for adapter in network.loras:
        if adapter.not_supported:
            continue
        layer = adapter.org_module[0]
        weight, bias = computed_by(layer) if isinstance(layer, torch.nn.Linear) else merged_by(adapter)
        name = names[id(layer)]
        weights[f"{name}.weight"] = weight.detach()
        if bias is not None:
            weights[f"{name}.bias"] = bias.detach()
    return weights


def computed_by(layer: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of a linear layer, read off its outputs: the adapter has taken the place of its forward."""
    with torch.no_grad():
        bias = layer(torch.zeros(1, layer.in_features))
        weight = (layer(torch.eye(layer.in_features)) - bias).T
    return weight.contiguous(), bias[0] if bias.any() else None


def merged_by(adapter) -> tuple[torch.Tensor, torch.Tensor | None]:
    """LyCORIS' own merge of a convolution or a norm.

    Its get_merged_weight of LoHa and LoKr multiplies with alpha / rank twice, which its forward does not: there the truth is
    the base plus what the forward adds.
    """
    if adapter.name not in ("loha", "lokr"):
        return adapter.get_merged_weight(1.0)
    merged = adapter.org_weight.detach() + adapter.get_weight(adapter.shape) * adapter.scalar
    return (adapter.apply_weight_decompose(merged) if adapter.wd else merged), None


def check_network(host, patched, both: Both, folder, preset, settings, tolerance: float):
    """Train, save, load with this pack, compare all weights; gives the report as a dictionary."""
    module = copy.deepcopy(both.twin)
    network = train(module, preset, folder, settings)
    network.save_weights(folder / "lycoris.safetensors", torch.float32, {})
    truth = true_weights(network, module, both.twin.state_dict())
    report = check(host, patched, both, folder / "lycoris.safetensors", truth, tolerance).as_dict()
    assert report["keys"]["placed"] == report["keys"]["total"] > 0
    return report


@pytest.mark.parametrize("settings", LINEAR.values(), ids=LINEAR)
def test_flux_as_lycoris_trains_it(host, patched, both, tmp_path, settings):
    plain = settings == {"algo": "lora"}
    check_network(host, patched, both, tmp_path, FLUX_PRESET, settings, 1e-5 if plain else 1e-4)
