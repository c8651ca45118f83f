"""Where the stock loader is right, ours gives the same weights to the bit; where weights stack,
they add up.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

MODULES = {"attn.to_q": 0, "attn.to_k": 1, "attn.to_v": 2}


def native_lora(spell, seed=5, rank=4, alpha=2.0, hidden=128):
    """A LoRA on native modules of the tiny FLUX; spell(module name) -> (down key, up key, alpha key
    or None).
    """
    torch.manual_seed(seed)
    shapes = {
        f"double_blocks.{i}.{side}_attn.qkv": (3 * hidden, hidden)
        for i in range(2)
        for side in ("img", "txt")
    }
    shapes |= {f"single_blocks.{i}.linear1": (7 * hidden, hidden) for i in range(2)} | {
        "final_layer.linear": (64, hidden)
    }
    tensors = {}
    for module, (out, inner) in shapes.items():
        down, up, scale = spell(module)
        tensors[down], tensors[up] = torch.randn(rank, inner), torch.randn(out, rank)
        if scale:
            tensors[scale] = torch.tensor(alpha)
    return tensors


def kohya(module):
    name = "lora_unet_" + module.replace(".", "_")
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


def comfyui(module):
    return (
        f"diffusion_model.{module}.lora_A.weight",
        f"diffusion_model.{module}.lora_B.weight",
        None,
    )


def nothing_knows(module):
    return (
        f"base_model.model.{module}.lora_A.weight",
        f"base_model.model.{module}.lora_B.weight",
        None,
    )


@pytest.fixture
def stock(comfy):
    """stock(patcher, path, strength) -> patcher, by the stock loader's own functions."""
    import comfy.sd
    import comfy.utils

    return lambda patcher, path, strength=1.0: comfy.sd.load_lora_for_models(
        patcher, None, comfy.utils.load_torch_file(str(path), safe_load=True), strength, 0
    )[0]


@pytest.mark.parametrize("spell", [kohya, comfyui])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7, 1.9])
def test_the_same_bits(host, stock, patched, tiny_flux, tmp_path, spell, dtype, strength):
    path = tmp_path / "plain.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in native_lora(spell).items()}, path)
    ours, theirs = (
        host.load_and_fix(tiny_flux(), None, path, strength)[0],
        stock(tiny_flux(), path, strength),
    )
    expected = patched(theirs)
    assert expected.keys() == ours.patches.keys()
    for name, weight in patched(ours).items():
        assert torch.equal(weight, expected[name]), name


def test_a_stack_of_ours_and_stock_adds_up(host, stock, patched, tiny_flux, tmp_path):
    save_file(native_lora(kohya, seed=1), tmp_path / "one.safetensors")
    save_file(native_lora(nothing_knows, seed=2), tmp_path / "two.safetensors")
    base = tiny_flux()
    before = base.model.state_dict()
    one, two = (
        host.load_and_fix(tiny_flux(), None, tmp_path / f"{name}.safetensors", 0.5)[0]
        for name in ("one", "two")
    )
    stacked = host.load_and_fix(
        stock(base, tmp_path / "one.safetensors", 0.5), None, tmp_path / "two.safetensors", 0.5
    )[0]
    again = host.load_and_fix(stacked, None, tmp_path / "two.safetensors", 0.5)[0]
    ones, twos, sums, more = (patched(patcher) for patcher in (one, two, stacked, again))
    for name, weight in sums.items():
        expected = ones[name] + twos[name] - before[name]
        assert torch.allclose(weight, expected, atol=1e-5)
        assert torch.allclose(more[name], expected + twos[name] - before[name], atol=1e-5)


def test_two_adapters_on_one_weight_add_up(host, patched, tiny_flux, tmp_path):
    weight = "diffusion_model.final_layer.linear"
    torch.manual_seed(1)
    down, up, diff = torch.randn(4, 128), torch.randn(64, 4), torch.randn(64, 128)
    keys = {f"{weight}.lora_A.weight": down, f"{weight}.lora_B.weight": up, f"{weight}.diff": diff}
    keys |= {
        "transformer.proj_out.lora_A.weight": down.clone(),
        "transformer.proj_out.lora_B.weight": up.clone(),
    }
    save_file(keys, tmp_path / "two.safetensors")
    base = tiny_flux()
    patcher, _, report = host.load_and_fix(base, None, tmp_path / "two.safetensors")
    assert report.unplaced() == []
    change = patched(patcher)[f"{weight}.weight"] - base.model.state_dict()[f"{weight}.weight"]
    assert torch.allclose(change, 2 * (up @ down) + diff, atol=1e-4)


def test_strength_zero_changes_nothing(host, tiny_flux, tmp_path):
    save_file(native_lora(kohya), tmp_path / "x.safetensors")
    assert not host.load_and_fix(tiny_flux(), None, tmp_path / "x.safetensors", 0.0)[0].patches


def test_the_model_that_came_in_stays_as_it_was(host, tiny_flux, tmp_path):
    save_file(native_lora(kohya), tmp_path / "x.safetensors")
    patcher = tiny_flux()
    fixed = host.load_and_fix(patcher, None, tmp_path / "x.safetensors")[0]
    assert fixed is not patcher and fixed.patches and not patcher.patches


def test_weights_on_the_meta_device(host, tiny_flux, tmp_path):
    save_file(native_lora(nothing_knows), tmp_path / "x.safetensors")
    patcher = tiny_flux()
    patcher.model.to("meta")
    fixed, _, report = host.load_and_fix(patcher, None, tmp_path / "x.safetensors")
    assert len(fixed.patches) == 7
    assert report.unplaced() == []


def test_neither_model_nor_clip(host, tmp_path):
    save_file(native_lora(kohya), tmp_path / "x.safetensors")
    model, clip, report = host.load_and_fix(None, None, tmp_path / "x.safetensors")
    assert (model, clip) == (None, None)
    assert set(report.categories) == {"not wired"}


def test_a_file_is_read_again_only_when_it_changed(host, tiny_flux, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(native_lora(kohya), path)
    first = host._files.read(path)
    assert host._files.read(path) is first
    save_file(native_lora(kohya, rank=8), path)
    assert host._files.read(path) is not first


def test_maps_of_the_user_are_used_and_read_again_when_they_change(host, tiny_flux, tmp_path):
    keys = {
        "acme::final_layer.linear.lora_A.weight": torch.ones(2, 128),
        "acme::final_layer.linear.lora_B.weight": torch.ones(64, 2),
    }
    save_file(keys, tmp_path / "x.safetensors")
    patcher, folder = tiny_flux(), tmp_path / "maps"
    assert not host.load_and_fix(
        patcher, None, tmp_path / "x.safetensors", own=host.own_maps(folder)
    )[0].patches
    (folder / "dialects").mkdir(parents=True)
    (folder / "dialects" / "acme.record").write_text(
        "title Acme\nwrites acme::\nnames native\nform dotted\n", "utf-8"
    )
    assert host.load_and_fix(patcher, None, tmp_path / "x.safetensors", own=host.own_maps(folder))[
        0
    ].patches
