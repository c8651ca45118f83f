"""Layers whose weights a model reads itself are found in its source, and what would hang beside
them is patched and told.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file


def read_by_helper(x, linear):
    return torch.nn.functional.linear(x, linear.weight)


def read_under_another_name(x, pair):
    first = pair.one
    return x @ first.weight.T @ pair.two.weight.T


def fused_or_none(x, pair):
    """As ComfyUI's Z-Image from 0.38 on: a kernel of several layers, where it can."""
    if x.shape[-1] != 8:
        return None
    two = pair.two
    return x @ pair.one.weight.T @ two.weight.T


def fused_by_most(x, linear):
    if x.shape[-1] != 8:
        return None
    return x @ linear.weight.T


class Pair(torch.nn.Module):
    """Two layers, one after the other."""

    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return self.two(self.one(x))


class Fusing(torch.nn.Module):
    """Hands its layers to functions that read their weights; one may decline, and is asked."""

    def __init__(self):
        super().__init__()
        self.read, self.fused, self.unasked = Pair(), Pair(), Pair()

    def forward(self, x, fuse=True):
        x = read_under_another_name(x, self.read)
        out = fused_or_none(x, self.fused) if fuse else None
        fused = out is not None
        if not fused:
            out = self.fused(x)
        one = fused_by_most(out, self.unasked.one)
        if one is None:
            one = self.unasked.one(out)
        return fused_by_most(one, self.unasked.two)


def only_asks(linear):
    return linear.weight.dtype


class Net(torch.nn.Module):
    """Calls some of its layers, and reads the weights of the others."""

    def __init__(self):
        super().__init__()
        self.called, self.read, self.passed, self.cast, self.asked = (
            torch.nn.Linear(8, 8) for _ in range(5)
        )
        self.listed = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)])
        self.any = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)])
        torch.nn.init.zeros_(self.called.weight)

    def forward(self, x, number=0):
        import comfy.ops

        x = self.called(x) @ self.read.weight.T
        x = read_by_helper(x, self.passed)
        weight, bias, _ = comfy.ops.cast_bias_weight(self.cast, x, offloadable=True)
        x = torch.nn.functional.linear(x, weight, bias)
        x = self.asked(x.to(self.asked.weight.dtype)) if self.asked.weight is not None else x
        x = x.to(only_asks(self.asked)) @ self.listed[1].weight
        return self.listed[0](x) @ self.any[number].weight


@pytest.fixture
def net(comfy):
    import comfy.ops

    made = Net()
    made.cast = comfy.ops.manual_cast.Linear(8, 8)
    for parameter in made.parameters():
        parameter.requires_grad_(False).copy_(
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        )
    return made


def test_they_are_found_in_the_source(net):
    from lora_locksmith.nodes.readers import layers_read

    inside = {"read", "passed", "cast", "listed.1", "any.0", "any.1"}
    assert layers_read(net) == inside
    outer = torch.nn.Module()
    outer.net = torch.nn.ModuleList([net])
    assert layers_read(outer) == {f"net.0.{name}" for name in inside}


def test_a_helper_may_name_its_arguments_anew_and_decline(comfy):
    from lora_locksmith.nodes.readers import helpers_of, layers_read

    made = Fusing()
    assert layers_read(made) == {"read.one", "read.two", "unasked.one", "unasked.two"}
    assert helpers_of(made) == {(__name__, "fused_or_none")}


@pytest.mark.parametrize(
    "name",
    [
        "flux1_dev",
        "wan21_t2v_1_3b",
        "qwen_image",
        "z_image",
        "hunyuan_video",
        "ltxv_2b",
        "sd15",
        "sdxl",
    ],
)
def test_the_hosts_own_models_call_all_their_layers(comfy, name):
    """But for the norms, beside which nothing hangs."""
    import comfy_models
    from lora_locksmith.nodes.bypass import is_layer
    from lora_locksmith.nodes.readers import layers_read

    network = comfy_models.network(name)
    assert {
        found for found in layers_read(network) if is_layer(network.get_submodule(found))
    } == set()


@pytest.mark.parametrize("mode", ["bypass"])
def test_what_would_hang_there_is_patched_and_told(host, net, tmp_path, mode):
    import comfy.model_patcher

    generator, tensors, cpu = torch.Generator().manual_seed(0), {}, torch.device("cpu")
    for name in ("called", "read", "passed", "cast", "listed.1", "any.0"):
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(2, 8, generator=generator)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(8, 2, generator=generator)
    save_file(tensors, tmp_path / "x.safetensors")
    model = torch.nn.Module()
    model.device, model.diffusion_model = cpu, net
    model.model_config = type("Config", (), {"unet_config": {}})
    base = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
    x, outputs = torch.randn(3, 8, generator=generator), {}
    for way in ("patch", mode):
        loaded, _, report = host.load_and_fix(base, None, tmp_path / "x.safetensors", 0.5, mode=way)
        loaded.patch_model(cpu)
        outputs[way] = net(x)
        loaded.unpatch_model(cpu)
    assert set(loaded.patches) == {
        f"diffusion_model.{name}.weight" for name in ("read", "passed", "cast", "listed.1", "any.0")
    }
    assert torch.allclose(
        outputs[mode], outputs["patch"], rtol=1e-4, atol=1e-4 * outputs["patch"].abs().max()
    )
    assert any(
        "5 lora on a layer whose weight the model reads without calling it" in note
        for note in report.notes()
    )


def test_a_kernel_that_may_decline_does_so_while_something_hangs(host, comfy, tmp_path):
    """The layers it would have read are called, and keep their weights."""
    import comfy.model_patcher

    generator, cpu = torch.Generator().manual_seed(5), torch.device("cpu")
    tensors = {}
    for name in ("one", "two"):
        tensors[f"diffusion_model.fused.{name}.lora_A.weight"] = torch.randn(
            2, 8, generator=generator
        )
        tensors[f"diffusion_model.fused.{name}.lora_B.weight"] = torch.randn(
            8, 2, generator=generator
        )
    save_file(tensors, tmp_path / "fused.safetensors")
    model = torch.nn.Module()
    model.device, model.diffusion_model = cpu, Fusing().requires_grad_(False)
    model.model_config = type("Config", (), {"unet_config": {}})
    base = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
    net, x, called = model.diffusion_model, torch.randn(3, 8, generator=generator), []
    net.fused.one.register_forward_hook(lambda *_: called.append(1))
    plain, outputs = net(x), {}
    for mode in ("patch", "bypass"):
        loaded = host.load_and_fix(base, None, tmp_path / "fused.safetensors", mode=mode)[0]
        assert bool(loaded.patches) == (mode == "patch")
        loaded.patch_model(cpu)
        outputs[mode] = net(x)
        loaded.unpatch_model(cpu)
        assert bool(called) == (mode == "bypass")
    assert torch.allclose(outputs["bypass"], outputs["patch"], rtol=1e-4, atol=1e-4)
    assert torch.equal(net(x), plain) and not torch.allclose(plain, outputs["patch"])
    assert len(called) == 1, "with nothing beside the layers the kernel has its turn"
