"""Kinds that need the base's own singular vectors, and LoRAs with something between their factors, against their trainers' own forward."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.key_maps.header import adapter_config_beside, read_header
from lora_locksmith.key_maps.plan import PLACED, make_plan
from lora_locksmith.key_maps.site import Component, Site
from lora_locksmith.lora.adapters import AdapterError, AdapterSpec, patched_weight
from lora_locksmith.lora.planned import adapter_of
from safetensors.torch import load_file

STRENGTHS = (1.0, 0.5, -0.7, 2.0)


def error(ours, truth, base):
    return (ours - truth).norm() / (truth - base).norm()


def tlora(layer, drift):
    """LyCORIS' module on a layer, its tensors a little trained; (its tensors by role, its output for an input)."""
    from lycoris.modules.tlora import TLoraModule

    module = TLoraModule("lora", layer, multiplier=1.0, lora_dim=4, alpha=2)
    with torch.no_grad():
        for parameter in (module.q_layer.weight, module.p_layer.weight, module.lambda_layer):
            parameter.add_(torch.randn_like(parameter) * drift)
    tensors = {"tlora_q": module.q_layer.weight, "tlora_p": module.p_layer.weight, "tlora_lambda": module.lambda_layer}
    return {role: tensor.detach() for role, tensor in tensors.items()}, module


@pytest.mark.parametrize("sides", [(24, 36), (36, 24)])
def test_tlora_is_as_lycoris_computes_it(sides):
    torch.manual_seed(1)
    layer, x = torch.nn.Linear(*sides, bias=False), torch.randn(7, sides[0])
    weight = layer.weight.detach().clone()
    base = x @ weight.T
    tensors, module = tlora(layer, 0.02)
    for strength in STRENGTHS:
        module.multiplier = strength
        truth = module(x).detach()
        ours = x @ patched_weight(AdapterSpec("tlora", 2.0), tensors, weight, strength).T
        assert (truth - base).norm() > 1e-3 and error(ours, truth, base) < 2e-4, strength


def test_tlora_on_another_base_is_refused():
    torch.manual_seed(1)
    tensors, _ = tlora(torch.nn.Linear(96, 80, bias=False), 0.02)
    with pytest.raises(AdapterError, match="trained on another base"):
        patched_weight(AdapterSpec("tlora", 2.0), tensors, torch.randn(80, 96), 1.0)


def test_a_mixer_stands_between_the_factors():
    torch.manual_seed(1)
    up, mixer, down, weight = torch.randn(12, 3), torch.randn(3, 3), torch.randn(3, 8), torch.randn(12, 8)
    for strength in STRENGTHS:
        ours = patched_weight(AdapterSpec("moslora", 6.0), {"up": up, "mixer": mixer, "down": down}, weight, strength)
        assert torch.allclose(ours, weight + strength * 2 * up @ mixer @ down, atol=1e-5)


def test_a_lora_of_an_embedding_is_as_peft_computes_it(tmp_path):
    torch.manual_seed(1)
    net = torch.nn.ModuleDict({"table": torch.nn.Embedding(40, 24)})
    net.forward = lambda tokens: net["table"](tokens)
    configuration = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["table"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(net), configuration).eval()
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    path = tmp_path / "adapter_model.safetensors"
    name = "diffusion_model.table.weight"
    site = Site([Component(DENOISER, "diffusion_model.", {name: (40, 24)}, None)])
    header, tensors = read_header(path), load_file(path)
    plan = make_plan(header.tensors, header.metadata, site, adapter_config_beside(path))
    assert {outcome.category for outcome in plan.outcomes.values()} == {PLACED}
    (adapter,) = plan.adapters
    mine = {role: tensors[key] for role, key in adapter.roles.items()}
    weight, tokens = net["table"].weight.detach(), torch.arange(40)
    truth = model.base_model.model["table"](tokens).detach()
    ours = patched_weight(*adapter_of(adapter, mine, None), weight, 1.0)[tokens]
    assert error(ours, truth, weight[tokens]) < 2e-4
