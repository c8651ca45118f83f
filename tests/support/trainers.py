"""Adapters that PEFT and LyCORIS themselves make, move at random and save, and the weights these
libraries make of them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Layers of a FLUX by diffusers' names, for PEFT's target_modules.
ATTENTION = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
]
EVERYTHING = [
    *ATTENTION,
    "proj_mlp",
    "proj_out",
    "norm_out.linear",
    "net.0.proj",
    "net.2",
    "norm.linear",
    "norm1.linear",
    "x_embedder",
]

# The same for LyCORIS; its second blocks stay untouched.
FLUX_PRESET = {
    "target_module": ["FluxTransformerBlock", "FluxSingleTransformerBlock"],
    "target_name": ["x_embedder", "context_embedder", "norm_out.linear", "proj_out"],
    "exclude_name": ["transformer_blocks.1", "single_transformer_blocks.1"],
}


def trained_by_peft(twin: torch.nn.Module, config):
    """A PEFT model around a copy of `twin`, everything it trains moved at random, as after a
    training.
    """
    from peft import get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(copy.deepcopy(twin), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + torch.randn_like(parameter) * 0.05
    return model


def weights_by_peft(model) -> dict[str, torch.Tensor]:
    """What PEFT merges the model to, as a state dict."""
    return dict(model.merge_and_unload().state_dict().items())


@contextmanager
def lycoris_as_before() -> Iterator[None]:
    """LyCORIS keeps a preset in its class, for all networks to come; this puts
    back what was there.
    """
    from lycoris import LycorisNetwork

    before = {
        name: copy.copy(value) for name, value in vars(LycorisNetwork).items() if name.isupper()
    }
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(LycorisNetwork, name, value)


def trained_by_lycoris(
    module, preset: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]
):
    """LyCORIS' network around `module`, everything it trains moved at random, as
    after a training.
    """
    import toml
    from lycoris import create_lycoris

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    preset_file = folder / "preset.toml"
    preset_file.write_text(toml.dumps(preset), encoding="utf-8")
    with lycoris_as_before():
        network = create_lycoris(
            module,
            1.0,
            **{"linear_dim": 4, "linear_alpha": 2, "preset": str(preset_file), **settings},
        )
        network.apply_to()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            move(
                name.rpartition(".")[2],
                parameter,
                torch.randn(parameter.shape, generator=generator),
            )
    return network.eval()


def move(role: str, parameter: torch.Tensor, noise: torch.Tensor) -> None:
    if role in ("dora_scale", "rescale"):
        parameter.mul_(1 + 0.2 * noise)
    elif role == "scalar":
        parameter.fill_(0.5)
    else:
        parameter.add_(noise, alpha=0.05)


def weights_by_lycoris(
    network, module: torch.nn.Module, before: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state dict of `module` with what the network's layers compute in place of what they
    started from.
    """
    names = {id(layer): name for name, layer in module.named_modules()}
    weights = dict(before)
    for adapter in network.loras:
        if adapter.not_supported:
            continue
        layer = adapter.org_module[0]
        weight, bias = (
            computed_by(layer) if isinstance(layer, torch.nn.Linear) else merged_by(adapter)
        )
        name = names[id(layer)]
        weights[f"{name}.weight"] = weight.detach()
        if bias is not None:
            weights[f"{name}.bias"] = bias.detach()
    return weights


def computed_by(layer: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of a linear layer, read off its outputs: the adapter has taken the place of
    its forward.
    """
    with torch.no_grad():
        *columns, bias = layer(
            torch.cat((torch.eye(layer.in_features), torch.zeros(1, layer.in_features)))
        )
    return torch.stack(columns, 1) - bias[:, None], bias if bias.any() else None


def merged_by(adapter) -> tuple[torch.Tensor, torch.Tensor | None]:
    """LyCORIS' own merge of a convolution or a norm.

    Its get_merged_weight of LoHa and LoKr multiplies with alpha / rank twice, which its forward
    does not: there the truth is the base plus what the forward adds.
    """
    if adapter.name not in ("loha", "kron"):
        return adapter.get_merged_weight(1.0, adapter.org_weight.shape)
    merged = adapter.org_weight.detach() + adapter.get_weight(adapter.shape) * adapter.scalar
    return (adapter.apply_weight_decompose(merged) if adapter.wd else merged), None
