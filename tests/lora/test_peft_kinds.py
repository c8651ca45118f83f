"""Adapter kinds that PEFT makes and saves, from the file to the weights, against PEFT's own forward."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.key_maps.header import adapter_config_beside, read_header
from lora_locksmith.key_maps.plan import PLACED, make_plan
from lora_locksmith.key_maps.site import Component, Site
from lora_locksmith.lora.adapters import AdapterError, patched_weight
from lora_locksmith.lora.collect import rank_of
from lora_locksmith.lora.factors import factors
from lora_locksmith.lora.planned import adapter_of, has_delta, spec_of
from lora_locksmith.lora.resize import Ask, resize_file
from peft.tuners.lora.config import KasaConfig
from safetensors.torch import load_file, save_file
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PREFIX = "diffusion_model."
ERROR = 2e-4  # of the change


class Net(nn.Module):
    """Linear layers, wide, square and narrow."""

    def __init__(self, bias: bool):
        super().__init__()
        self.wide, self.square, self.narrow = nn.Linear(24, 36, bias=bias), nn.Linear(36, 36, bias=bias), nn.Linear(36, 12, bias=bias)

    def forward(self, x):
        return self.narrow(torch.tanh(self.square(torch.tanh(self.wide(x)))))


CASES = {
    "hra": (peft.HRAConfig, {"r": 4}),
    "hra, orthogonal": (peft.HRAConfig, {"r": 4, "apply_GS": True}),
    "miss": (peft.MissConfig, {"r": 4}),
    "miss, blocks that do not divide the inputs": (peft.MissConfig, {"r": 5}),
    "miss, mini": (peft.MissConfig, {"r": 4, "mini_r": 2, "init_weights": "mini"}),
    "miss, bat": (peft.MissConfig, {"r": 4, "init_weights": "bat"}),
    "c3a": (peft.C3AConfig, {"block_size": 6}),
    "shira": (peft.ShiraConfig, {"r": 2}),
    "hira": (peft.HiraConfig, {"r": 4}),
    "delora": (peft.DeloraConfig, {"r": 4, "delora_lambda": 3}),
    "road 1": (peft.RoadConfig, {"group_size": 4}),
    "road 2": (peft.RoadConfig, {"group_size": 6, "variant": "road_2"}),
    "road 4": (peft.RoadConfig, {"group_size": 4, "variant": "road_4"}),
    "glora": (peft.GloraConfig, {"r": 4}),
    "glora, vectors": (peft.GloraConfig, {"r": 4, "config_A_B": "vector"}),
    "glora, numbers": (peft.GloraConfig, {"r": 4, "config_A_B": "constant"}),
    "gralora": (peft.GraloraConfig, {"r": 4, "alpha": 6, "gralora_k": 2}),
    "gralora, hybrid": (peft.GraloraConfig, {"r": 4, "alpha": 6, "gralora_k": 2, "hybrid_r": 2}),
    "vera": (peft.VeraConfig, {"r": 4}),
    "adalora": (peft.AdaLoraConfig, {"init_r": 4, "target_r": 2, "lora_alpha": 7, "total_step": 100}),
    "kasa": (peft.LoraConfig, {"r": 4, "lora_alpha": 6, "kasa_config": KasaConfig()}),
    "beft": (peft.BeftConfig, {}),
    "ln_tuning": (peft.LNTuningConfig, {}),
}
WITHOUT_BIAS = {"glora", "glora, vectors", "glora, numbers"}


def trained(net, configuration, settings):
    model = peft.get_peft_model(copy.deepcopy(net), configuration(target_modules=["wide", "square", "narrow"], **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def loaded(net, folder, strength=1.0):
    """The net under the saved file, as the pack computes it, and the plan."""
    path = folder / "adapter_model.safetensors"
    weights = {f"{PREFIX}{name}": tensor.detach() for name, tensor in net.named_parameters()}
    site = Site([Component(DENOISER, PREFIX, {name: tuple(tensor.shape) for name, tensor in weights.items()}, None)])
    header, tensors = read_header(path), load_file(path)
    plan = make_plan(header.tensors, header.metadata, site, adapter_config_beside(path))
    for adapter in plan.adapters:
        mine = {role: tensors[key] for role, key in adapter.roles.items()}
        for weight, rows, source in adapter.target.pieces:
            assert rows is None
            bias = site.components[DENOISER].bias_of(weight)
            reached = {"weight": [weight], "bias": [bias], "both": [weight, bias]}[adapter.reaches]
            for name in filter(None, reached):
                weights[name] = patched_weight(*adapter_of(adapter, mine, source), weights[name], strength)
    result = copy.deepcopy(net)
    result.load_state_dict({name[len(PREFIX) :]: tensor for name, tensor in weights.items()})
    return result, plan


@pytest.mark.parametrize("name", CASES)
def test_as_peft_computes_it(tmp_path, name):
    net = Net(bias=name not in WITHOUT_BIAS).eval()
    model = trained(net, *CASES[name])
    model.save_pretrained(tmp_path)
    ours, plan = loaded(net, tmp_path)
    assert {outcome.category for outcome in plan.outcomes.values()} == {PLACED}
    x = torch.randn(7, 24)
    with torch.no_grad():
        truth, base = model(x), net(x)
        error = (ours(x) - truth).norm() / (truth - base).norm()
    assert (truth - base).norm() > 1e-2 * base.norm()
    assert error < ERROR, f"{error:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_the_delta_as_factors_is_the_same(tmp_path, assert_close, name):
    """What is measured, merged and written is what is loaded."""
    net = Net(bias=name not in WITHOUT_BIAS).eval()
    trained(net, *CASES[name]).save_pretrained(tmp_path)
    _, plan = loaded(net, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for adapter in plan.adapters:
        mine = {role: tensors[key] for role, key in adapter.roles.items()}
        if not has_delta(adapter):
            with pytest.raises(AdapterError):
                factors(spec_of(adapter, mine), mine)
            continue
        delta = factors(spec_of(adapter, mine), mine)
        shape = (adapter.target.out, *adapter.target.inner)[: 1 if adapter.reaches == "bias" else None]
        change = patched_weight(*adapter_of(adapter, mine, None), torch.zeros(shape), 1.0)
        assert_close(delta.dense().float(), change.reshape(delta.shape))
        assert rank_of(adapter, plan.shapes) == (None if delta.up is None else delta.down.shape[0])


def delora(folder):
    """A net, and the file of its DeLoRA."""
    net = Net(bias=True).eval()
    trained(net, *CASES["delora"]).save_pretrained(folder)
    return net, folder / "adapter_model.safetensors"


def test_a_delora_under_the_names_of_a_lora_is_none(tmp_path, assert_close):
    """Trainers after sd-scripts call its factors lora_down and lora_up, and write an alpha that says nothing."""
    net, path = delora(tmp_path)
    truth, _ = loaded(net, tmp_path)
    names = {"delora_A": "lora_down.weight", "delora_B": "lora_up.weight"}
    renamed = {}
    for key, tensor in load_file(path).items():
        module, _, role = key.rpartition(".")
        renamed[f"{module}.{names.get(role, role)}"] = tensor
        renamed[f"{module}.alpha"] = torch.tensor(1.0)
    save_file(renamed, path)
    ours, plan = loaded(net, tmp_path)
    assert {adapter.kind for adapter in plan.adapters} == {"delora"} and len(plan.adapters) == 3
    for name, weight in truth.state_dict().items():
        assert_close(ours.state_dict()[name], weight, 1e-6)


def test_a_delora_is_resized_to_a_lora(tmp_path, assert_close):
    net, path = delora(tmp_path)
    truth, plan = loaded(net, tmp_path)
    resize_file(path, tmp_path / "new.safetensors", Ask(rank=4), site=plan.site)
    (tmp_path / "new.safetensors").replace(path)
    (tmp_path / "adapter_config.json").unlink()
    ours, plan = loaded(net, tmp_path)
    assert {adapter.kind for adapter in plan.adapters} == {"lora"} and {outcome.category for outcome in plan.outcomes.values()} == {PLACED}
    for name, weight in truth.state_dict().items():
        assert_close(ours.state_dict()[name], weight, 1e-5)


@pytest.mark.parametrize("settings", [{"save_projection": False}])
def test_vera_without_its_matrices_is_refused(tmp_path, settings):
    net = Net(bias=True)
    trained(net, peft.VeraConfig, {"r": 4, **settings}).save_pretrained(tmp_path)
    _, plan = loaded(net, tmp_path)
    assert not plan.adapters
    assert {outcome.reason for outcome in plan.outcomes.values()} == {
        "VeRA: its base matrices are not in the file, so the change it makes cannot be rebuilt"
    }


def test_glora_of_a_layer_with_a_bias_is_refused(tmp_path):
    net = Net(bias=True)
    trained(net, peft.GloraConfig, {"r": 4}).save_pretrained(tmp_path)
    _, plan = loaded(net, tmp_path)
    assert not plan.adapters
    assert all("a product with the weight" in outcome.reason for outcome in plan.outcomes.values())
