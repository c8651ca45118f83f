"""Small networks, adapters that PEFT makes of them, and what the pack makes of the files that PEFT
saves.
"""

from __future__ import annotations

import copy

import peft
import torch
from lora_locksmith.files.header import adapter_config_beside, read_header
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.lora.from_plan import adapter_of
from lora_locksmith.lora.math.apply import patched_weight
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import Network, TargetModel
from safetensors.torch import load_file
from torch import nn

PREFIX = "diffusion_model."


class Net(nn.Module):
    """Linear layers, wide, square and narrow."""

    def __init__(self, bias: bool):
        super().__init__()
        self.wide, self.square, self.narrow = (
            nn.Linear(24, 36, bias=bias),
            nn.Linear(36, 36, bias=bias),
            nn.Linear(36, 12, bias=bias),
        )

    def forward(self, x):
        return self.narrow(torch.tanh(self.square(torch.tanh(self.wide(x)))))


def trained(net, configuration, settings, targets=("wide", "square", "narrow")):
    model = peft.get_peft_model(
        copy.deepcopy(net), configuration(target_modules=list(targets), **settings)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def loaded(net, folder, strength=1.0):
    """The net under the saved file, as the pack computes it, and the plan."""
    path = folder / "adapter_model.safetensors"
    weights = {f"{PREFIX}{name}": tensor.detach() for name, tensor in net.named_parameters()}
    target_model = TargetModel(
        [
            Network(
                DENOISER,
                PREFIX,
                {name: tuple(tensor.shape) for name, tensor in weights.items()},
                None,
            )
        ]
    )
    header, tensors = read_header(path), load_file(path)
    plan = make_plan(
        header.tensors, header.metadata, target_model, config_beside=adapter_config_beside(path)
    )
    for adapter in plan.adapters:
        mine = {role: tensors[key] for role, key in adapter.roles.items()}
        for weight, rows, source in adapter.target.slices:
            assert rows is None
            bias = target_model.networks[DENOISER].bias_of(weight)
            reached = {"weight": [weight], "bias": [bias], "both": [weight, bias]}[
                adapter.parameter
            ]
            for name in filter(None, reached):
                weights[name] = patched_weight(
                    *adapter_of(adapter, mine, source), weights[name], strength
                )
    result = copy.deepcopy(net)
    result.load_state_dict({name[len(PREFIX) :]: tensor for name, tensor in weights.items()})
    return result, plan
