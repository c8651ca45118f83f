"""What PEFT's own merge makes of an adapter is what the host's model becomes, however the file spells it."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
EVERYTHING = [*ATTENTION, "proj_mlp", "proj_out", "norm_out.linear", "net.0.proj", "net.2", "norm.linear", "norm1.linear", "x_embedder"]


@pytest.fixture(scope="module")
def both(tiny_flux):
    """(host model, diffusers model with the same weights, ComfyUI's own map between their names)."""
    import comfy.utils
    from diffusers import FluxTransformer2DModel

    native = tiny_flux()
    names = comfy.utils.flux_to_diffusers(native.model.model_config.unet_config, output_prefix="diffusion_model.")
    twin = FluxTransformer2DModel(
        num_attention_heads=1, attention_head_dim=128, num_layers=2, num_single_layers=2, in_channels=64, joint_attention_dim=768,
        pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=(16, 56, 56),
    )  # fmt: skip
    weights = dict(native.model.state_dict())
    twin.load_state_dict({name: part_of(weights, names[name]).clone() for name in twin.state_dict()})
    return native, twin, names


def part_of(weights, target):
    """The part of the host's weights that ComfyUI's map says a diffusers weight is."""
    if isinstance(target, str):
        return weights[target]
    weight = weights[target[0]]
    if target[1] is not None:
        weight = weight.narrow(*target[1])
    return target[2](weight) if len(target) > 2 else weight


def trained(twin, config):
    """A PEFT model around a copy of `twin`, every factor random, as after a training."""
    from peft import get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(copy.deepcopy(twin), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data + torch.randn_like(parameter) * 0.05
    return model


def merged(model) -> dict[str, torch.Tensor]:
    return dict(model.merge_and_unload().state_dict().items())


def check(host, patched, both, path, truth, tolerance=1e-5):
    native, twin, names = both
    fixed, _, report = host.load_and_fix(native, None, path)
    assert report.as_dict()["unplaced"] == []
    after, before = patched(fixed), dict(native.model.state_dict())
    for name, weight in twin.state_dict().items():
        target = names[name] if isinstance(names[name], str) else names[name][0]
        change = weight.new_zeros(()) if target not in after else part_of(after, names[name]) - part_of(before, names[name])
        expected = truth[name] - weight
        if expected.norm() == 0:
            assert change.norm() == 0, name
        else:
            assert (change - expected).norm() < tolerance * (expected.norm() + 1e-2 * weight.norm()), name
    return report


def simpletuner_broken(state_dict):
    """SimpleTuner 529895d to 166684b: PEFT's wrapper left in place, the factors named lora.down and lora.up."""
    renamed = {}
    for key, value in state_dict.items():
        key = key.replace(".lora_A.weight", ".lora.down.weight").replace(".lora_B.weight", ".lora.up.weight")
        renamed["transformer." + key] = value.contiguous()
    return renamed


SPELLINGS = {
    "SimpleTuner's broken keys": simpletuner_broken,
    "raw PEFT": lambda state_dict: state_dict,
    "X-LoRA's doubled wrapper": lambda state_dict: {
        "model.model." + key.removeprefix("base_model.model."): v for key, v in state_dict.items()
    },
    "a named adapter": lambda state_dict: {
        key.replace(".lora_A.", ".lora_A.my_style.").replace(".lora_B.", ".lora_B.my_style."): v for key, v in state_dict.items()
    },
    "kohya's form on diffusers' names": lambda state_dict: {
        "lora_transformer_" + key.removeprefix("base_model.model.").rsplit(".", 2)[0].replace(".", "_") + tail(key): v
        for key, v in state_dict.items()
    },
}


def tail(key: str) -> str:
    return ".lora_down.weight" if "lora_A" in key else ".lora_up.weight"


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("targets", [ATTENTION, EVERYTHING], ids=["attention", "everything"])
def test_spellings_of_one_adapter(host, patched, both, tmp_path, spell, targets):
    from peft import LoraConfig, get_peft_model_state_dict

    model = trained(both[1], LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    path = tmp_path / "adapter.safetensors"
    save_file({key: value.contiguous() for key, value in spell(get_peft_model_state_dict(model)).items()}, path)
    report = check(host, patched, both, path, merged(model))
    assert report.as_dict()["keys"]["placed"] == report.as_dict()["keys"]["total"]


def test_stock_places_nothing_of_the_broken_file_and_the_report_says_so(host, both, tmp_path):
    from peft import LoraConfig, get_peft_model_state_dict

    state_dict = simpletuner_broken(get_peft_model_state_dict(trained(both[1], LoraConfig(r=4, lora_alpha=4, target_modules=ATTENTION))))
    save_file(state_dict, tmp_path / "broken.safetensors")
    report = host.load_and_fix(both[0], None, tmp_path / "broken.safetensors")[2].as_dict()
    assert report["stock"] == {"placed": 0}
    assert report["keys"]["placed"] == len(state_dict)
    assert report["family"] == "flux1"
    assert "SimpleTuner" in report["trainer"]


STRENGTHS = {
    "alpha": {"r": 4, "lora_alpha": 10},
    "rslora": {"r": 4, "lora_alpha": 10, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 10, "rank_pattern": {"attn.to_q": 2}, "alpha_pattern": {"attn.to_k": 3, "proj_out": 7}},
    "dora": {"r": 4, "lora_alpha": 10, "use_dora": True},
    "bias": {"r": 4, "lora_alpha": 10, "lora_bias": True},
}


@pytest.mark.parametrize("settings", STRENGTHS.values(), ids=STRENGTHS.keys())
def test_strength_that_stands_only_in_the_settings(host, patched, both, tmp_path, settings):
    from peft import LoraConfig

    model = trained(both[1], LoraConfig(target_modules=EVERYTHING, **settings))
    model.save_pretrained(tmp_path)
    report = check(host, patched, both, tmp_path / "adapter_model.safetensors", merged(model))
    assert "adapter_config.json" in report.strength_source


def test_settings_in_the_header_that_diffusers_writes(host, patched, both, tmp_path):
    from diffusers import FluxPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    twin = copy.deepcopy(both[1])
    twin.add_adapter(LoraConfig(r=4, lora_alpha=10, target_modules=ATTENTION, init_lora_weights=False))
    FluxPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=get_peft_model_state_dict(twin), **_collate_lora_metadata({"transformer": twin})
    )
    twin.fuse_lora()
    twin.unload_lora()
    report = check(host, patched, both, tmp_path / "pytorch_lora_weights.safetensors", twin.state_dict())
    assert "header" in report.strength_source
