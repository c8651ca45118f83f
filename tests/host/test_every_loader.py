"""Fix LoRAs in every loader, in the real ComfyUI: what stock places rightly stays to the bit, the
rest is what Load and Fix LoRA gives; off, nothing of the host is touched.
"""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from test_as_stock import comfyui, kohya, native_lora, nothing_knows
from wrong_in_stock import (
    FINAL,
    QKV,
    WRONG,
    adapter,
    alpha_in_the_header,
    dora_of_peft,
    same,
    unknown_names,
    write,
)


@pytest.mark.parametrize("with_metadata", [True, False])
@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_what_stock_gets_wrong_is_as_load_and_fix_loads_it(
    every, host, by_stock_nodes, patched, tiny_flux, tmp_path, kind, with_metadata, strength, caplog
):
    path = write(tmp_path, WRONG[kind]())
    fixed = patched(host.load_and_fix(tiny_flux(), None, path, strength)[0])
    stock = patched(by_stock_nodes(tiny_flux(), path, strength, with_metadata))
    assert stock.keys() != fixed.keys() or any(
        not torch.allclose(stock[name], weight, atol=1e-3) for name, weight in fixed.items()
    ), "stock is right here, and the test can say nothing"
    caplog.clear()
    every.turn(True)
    with caplog.at_level(logging.INFO):
        same(patched(by_stock_nodes(tiny_flux(), path, strength, with_metadata)), fixed, 1e-5)
    lines = [record.getMessage() for record in caplog.records if "Locksmith" in record.getMessage()]
    assert len(lines) == 1 and path.name in lines[0], lines
    assert "lora key not loaded" not in caplog.text


def test_off_the_hosts_functions_are_its_own_and_on_they_are_not(every, functions):
    originals = functions()
    every.turn(False)
    assert all(one is two for one, two in zip(functions(), originals, strict=True))
    every.turn(True)
    ours = functions()
    assert not any(one is two for one, two in zip(ours, originals, strict=True))
    every.turn(True)
    assert all(one is two for one, two in zip(functions(), ours, strict=True))
    every.turn(False)
    assert all(one is two for one, two in zip(functions(), originals, strict=True))


@pytest.mark.parametrize("spell", [kohya, comfyui])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stock_reads_is_stocks_to_the_bit_and_nothing_is_said(
    every, by_stock_nodes, patched, tiny_flux, tmp_path, spell, dtype, caplog
):
    path = tmp_path / "plain.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in native_lora(spell).items()}, path)
    off = by_stock_nodes(tiny_flux(), path, 0.7)
    every.turn(True)
    with caplog.at_level(logging.INFO):
        on = by_stock_nodes(tiny_flux(), path, 0.7)
    assert len(off.patches) == 7
    same(patched(on), patched(off))
    assert [type(entry[1]) for entries in on.patches.values() for entry in entries] == [
        type(entry[1]) for entries in off.patches.values() for entry in entries
    ]
    assert "Locksmith" not in caplog.text


def test_of_a_file_that_stock_reads_in_part_only_the_rest_is_ours(
    every, host, by_stock_nodes, patched, tiny_flux, tmp_path, caplog
):
    """The names of some modules are the host's, those of the others nobody's."""
    path = tmp_path / "mixed.safetensors"
    theirs = native_lora(kohya)
    others = {
        key: tensor for key, tensor in native_lora(nothing_knows, seed=8).items() if "final" in key
    }
    theirs = {key: tensor for key, tensor in theirs.items() if "final" not in key}
    save_file(theirs | others | {"diffusion_model.nowhere.lora_A.weight": torch.ones(4, 8)}, path)
    off = by_stock_nodes(tiny_flux(), path)
    fixed = patched(host.load_and_fix(tiny_flux(), None, path)[0])
    caplog.clear()
    every.turn(True)
    with caplog.at_level(logging.INFO):
        on = by_stock_nodes(tiny_flux(), path)
    same(patched(on), fixed, 1e-5)
    same({name: patched(on)[name] for name in off.patches}, patched(off))
    assert set(on.patches) - set(off.patches) == {f"{FINAL}.weight"}
    assert "1 adapter is placed that the stock loader leaves out" in caplog.text
    lost = [text for text in caplog.messages if "lora key not loaded" in text]
    assert lost == ["lora key not loaded: diffusion_model.nowhere.lora_A.weight"]


def test_one_line_for_a_file_however_often_it_is_loaded(every, tiny_flux, tmp_path, caplog):
    """As a node that keeps the tensors while its strength changes."""
    import comfy.sd
    import comfy.utils

    every.turn(True)
    path = write(tmp_path, unknown_names())
    with caplog.at_level(logging.INFO):
        lora = comfy.utils.load_torch_file(str(path), safe_load=True)
        for strength in (1.0, 0.5, 0.2):
            comfy.sd.load_lora_for_models(tiny_flux(), None, lora, strength, 0)
        assert caplog.text.count(path.name) == 1
        every.turn(False)
        every.turn(True)
        comfy.sd.load_lora_for_models(tiny_flux(), None, lora, 1.0, 0)
    assert caplog.text.count(path.name) == 2


def test_a_file_that_makes_stock_raise_loads(every, by_stock_nodes, tiny_flux, tmp_path, host):
    path = tmp_path / "half.safetensors"
    tensors = native_lora(kohya)
    del tensors["lora_unet_final_layer_linear.lora_down.weight"]
    tensors["lora_unet_img_in.alpha"] = torch.ones(2)
    save_file(tensors, path)
    with pytest.raises((KeyError, RuntimeError)):
        by_stock_nodes(tiny_flux(), path)
    every.turn(True)
    loaded = by_stock_nodes(tiny_flux(), path)
    assert loaded.patches.keys() == host.load_and_fix(tiny_flux(), None, path)[0].patches.keys()
    assert len(loaded.patches) == 6


def test_what_nobody_can_apply_is_kept_from_stock_and_counted(
    every, by_stock_nodes, tiny_flux, tmp_path, caplog
):
    """A LoRA for a wider layer: stock takes it, and fails in each sampling."""
    path = tmp_path / "wide.safetensors"
    wrong, right = adapter(64, 256), adapter(384, 128)
    save_file(
        {
            f"{FINAL}.lora_A.weight": wrong[0],
            f"{FINAL}.lora_B.weight": wrong[1],
            f"{QKV}.lora_A.weight": right[0],
            f"{QKV}.lora_B.weight": right[1],
        },
        path,
    )
    assert f"{FINAL}.weight" in by_stock_nodes(tiny_flux(), path).patches
    every.turn(True)
    with caplog.at_level(logging.INFO):
        assert list(by_stock_nodes(tiny_flux(), path).patches) == [f"{QKV}.weight"]
    assert "2 keys have no effect" in caplog.text


def test_an_error_of_ours_leaves_stocks_result_and_one_line(every, tiny_flux, caplog):
    """What another node makes may be a dict of a kind of its own: stock asks keys alone of it."""
    import comfy.lora

    class KeysAlone(dict):
        def items(self):
            raise NotImplementedError("these are many")

    lora, model = KeysAlone(native_lora(kohya)), tiny_flux()
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    expected = comfy.lora.load_lora(lora, names)
    every.turn(True)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    caplog.clear()
    loaded = comfy.lora.load_lora(lora, names)
    assert loaded.keys() == expected.keys()
    assert [type(patch) for patch in loaded.values()] == [
        type(patch) for patch in expected.values()
    ]
    (line,) = [text for text in caplog.messages if "Locksmith" in text]
    assert "these are many" in line and "stock loader's result" in line


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_dora_behind_a_lora_changes_the_models_own_weight(
    every, host, by_stock_nodes, patched, tiny_flux, tmp_path, order
):
    """As with Load and Fix LoRA, in whatever order they are loaded."""
    for folder in ("dora", "lora"):
        (tmp_path / folder).mkdir()
    down, up = adapter(64, 128, seed=9)
    plain = {f"{FINAL}.lora_A.weight": down, f"{FINAL}.lora_B.weight": up}
    files = [write(tmp_path / "dora", dora_of_peft()), write(tmp_path / "lora", (plain, {}, None))]
    expected = tiny_flux()
    for path in files:
        expected = host.load_and_fix(expected, None, path)[0]
    every.turn(True)
    loaded = tiny_flux()
    for index in order:
        loaded = by_stock_nodes(loaded, files[index])
    same(patched(loaded), patched(expected), 1e-5)


def test_several_adapters_on_one_weight_in_one_file(
    every, host, by_stock_nodes, patched, tiny_flux, tmp_path
):
    """A full difference beside a LoRA: stock takes the difference alone."""
    down, up = adapter(64, 128)
    tensors = {
        f"{FINAL}.lora_A.weight": down,
        f"{FINAL}.lora_B.weight": up,
        f"{FINAL}.diff": torch.randn(64, 128),
    }
    path = write(tmp_path, (tensors, {}, None))
    fixed = patched(host.load_and_fix(tiny_flux(), None, path)[0])
    stock = patched(by_stock_nodes(tiny_flux(), path))
    assert not torch.allclose(stock[f"{FINAL}.weight"], fixed[f"{FINAL}.weight"], atol=1e-2)
    every.turn(True)
    same(patched(by_stock_nodes(tiny_flux(), path)), fixed, 2e-5)


@pytest.mark.parametrize("kind", ["plain", "turning", "deriving", "other"])
def test_every_sort_of_adapter_is_as_load_and_fix_patches_it(
    every, host, by_stock_nodes, patched, base, tmp_path, kind
):
    import many_kinds

    path = write(tmp_path, (getattr(many_kinds, f"{kind}_kinds")(), {}, None))
    fixed = patched(host.load_and_fix(base(), None, path, 0.6)[0])
    every.turn(True)
    same(patched(by_stock_nodes(base(), path, 0.6)), fixed, 1e-5)


@pytest.mark.parametrize("kind", ["plain", "turning", "deriving", "other"])
def test_stocks_bypass_does_what_ours_does(every, host, base, tmp_path, kind):
    import comfy.model_management
    import comfy.sd
    import comfy.utils
    import many_kinds
    from test_bases import sampled
    from test_bypass import close

    def run(patcher):
        comfy.model_management.load_models_gpu([patcher])
        step = sampled(patcher)
        comfy.model_management.unload_all_models()
        return step

    path = write(tmp_path, (getattr(many_kinds, f"{kind}_kinds")(), {}, None))
    expected = run(host.load_and_fix(base(), None, path, 0.6, mode="bypass")[0])
    every.turn(True)
    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    loaded = run(comfy.sd.load_bypass_lora_for_models(base(), None, lora, 0.6, 0)[0])
    assert not close(expected, run(base()), 1e-3)
    assert close(loaded, expected)


def hooked(model, lora):
    """The patches that a hook of the host's puts on a model, as its nodes for hooks do."""
    import comfy.hooks

    group = comfy.hooks.create_hook_lora(lora, 0.8, 0.0)
    assert len(group.hooks) == 1
    clone = model.clone()
    clone.register_all_hook_patches(
        group, {"target": comfy.hooks.EnumWeightTarget.Model}, model_options={}
    )
    return clone.get_combined_hook_patches(group)


def test_hooks_of_the_host(every, host, tiny_flux, tmp_path):
    """These come to load_lora with a key map alone, and say of no model."""
    import comfy.lora
    import comfy.utils

    path = write(tmp_path, dora_of_peft())
    model = tiny_flux()
    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    assert not hooked(model, lora)
    every.turn(True)
    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    patches = hooked(model, lora)
    name = f"{FINAL}.weight"
    weight = model.model.state_dict()[name]
    fixed = host.load_and_fix(model, None, path, 0.8)[0]
    expected = comfy.lora.calculate_weight(fixed.patches[name], weight.clone(), name)
    changed = comfy.lora.calculate_weight(patches[name], weight.clone(), name)
    assert not torch.allclose(expected, weight, atol=1e-2)
    assert float((changed - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize("with_model", [True, False])
def test_model_and_text_encoder_of_one_file_each_at_its_strength(
    every, host, tiny_flux, patched, tmp_path, with_model
):
    """Two DoRAs in PEFT's names; without a model, the keys that are for one are left to stock."""
    import comfy.sd
    import comfy.utils
    from test_bypass import tiny_clip

    name = "text_model.encoder.layers.1.self_attn.q_proj"
    down, up = adapter(64, 64, seed=6)
    tensors, metadata, settings = dora_of_peft()
    tensors |= {
        f"text_encoder.{name}.lora_A.weight": down,
        f"text_encoder.{name}.lora_B.weight": up,
        f"text_encoder.{name}.lora_magnitude_vector.weight": torch.rand(64) + 0.5,
    }
    path = write(tmp_path, (tensors, metadata, settings))
    model, clip = tiny_flux() if with_model else None, tiny_clip()
    fixed = host.load_and_fix(model, clip, path, 0.9, 0.4)
    every.turn(True)
    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    loaded = comfy.sd.load_lora_for_models(model, clip, lora, 0.9, 0.4)
    assert list(fixed[1].patcher.patches) == [f"clip_l.transformer.{name}.weight"]
    same(patched(loaded[1].patcher), patched(fixed[1].patcher), 1e-5)
    if with_model:
        assert list(fixed[0].patches) == [f"{FINAL}.weight"]
        same(patched(loaded[0]), patched(fixed[0]), 1e-5)
    else:
        assert loaded[0] is None


def kinds_that_stock_reads():
    """Adapters of all sorts that the host computes as their trainers do, in names it knows."""
    make = torch.Generator().manual_seed(12)
    random = lambda *shape: torch.randn(*shape, generator=make) * 0.2  # noqa: E731
    block = "diffusion_model.double_blocks.0"
    return {
        f"{FINAL}.hada_w1_a": random(64, 4),
        f"{FINAL}.hada_w1_b": random(4, 128),
        f"{FINAL}.hada_w2_a": random(64, 4),
        f"{FINAL}.hada_w2_b": random(4, 128),
        f"{FINAL}.alpha": torch.tensor(2.0),
        f"{block}.img_attn.proj.lokr_w1": random(8, 8),
        f"{block}.img_attn.proj.lokr_w2_a": random(16, 4),
        f"{block}.img_attn.proj.lokr_w2_b": random(4, 16),
        f"{block}.img_attn.proj.alpha": torch.tensor(2.0),
        f"{block}.txt_attn.proj.diff": random(128, 128),
        f"{block}.txt_attn.proj.diff_b": random(128),
        "transformer.transformer_blocks.1.attn.to_k.lora_A.weight": random(4, 128),
        "transformer.transformer_blocks.1.attn.to_k.lora_B.weight": random(128, 4),
        "transformer.norm_out.linear.lora_A.weight": random(4, 128),
        "transformer.norm_out.linear.lora_B.weight": random(256, 4),
    }


def test_other_kinds_that_stock_reads_are_its_own_too(
    every, by_stock_nodes, patched, tiny_flux, tmp_path, caplog
):
    path = write(tmp_path, (kinds_that_stock_reads(), {}, None))
    off = by_stock_nodes(tiny_flux(), path)
    caplog.clear()
    every.turn(True)
    with caplog.at_level(logging.INFO):
        on = by_stock_nodes(tiny_flux(), path)
    assert len(off.patches) == 6
    same(patched(on), patched(off))
    assert "Locksmith" not in caplog.text


def test_settings_that_say_what_stock_assumes_change_nothing(
    every, by_stock_nodes, patched, tiny_flux, tmp_path, caplog
):
    """An alpha in the header that is as large as the rank."""
    tensors = alpha_in_the_header()[0]
    told = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 4})}
    path = write(tmp_path, (tensors, told, None))
    off = by_stock_nodes(tiny_flux(), path)
    caplog.clear()
    every.turn(True)
    with caplog.at_level(logging.INFO):
        same(patched(by_stock_nodes(tiny_flux(), path)), patched(off))
    assert "Locksmith" not in caplog.text


def test_a_bias_that_stock_leaves_out_does_not_take_its_factors_from_stock(
    every, host, by_stock_nodes, patched, tiny_flux, tmp_path
):
    """PEFT's bias of a LoRA is as strong as its factors' alpha and rank say, which are stock's."""
    down, up = adapter(64, 128)
    tensors = {
        f"{FINAL}.lora_A.weight": down,
        f"{FINAL}.lora_B.weight": up,
        f"{FINAL}.lora_B.bias": torch.randn(64),
        f"{FINAL}.alpha": torch.tensor(2.0),
    }
    path = write(tmp_path, (tensors, {}, None))
    off = patched(by_stock_nodes(tiny_flux(), path))
    fixed = patched(host.load_and_fix(tiny_flux(), None, path)[0])
    every.turn(True)
    on = patched(by_stock_nodes(tiny_flux(), path))
    assert off.keys() == {f"{FINAL}.weight"} and on.keys() == {f"{FINAL}.weight", f"{FINAL}.bias"}
    assert torch.equal(on[f"{FINAL}.weight"], off[f"{FINAL}.weight"])
    same(on, fixed, 1e-5)


def test_an_alpha_that_is_no_number_spoils_nothing(
    every, host, by_stock_nodes, tiny_flux, tmp_path, caplog
):
    tensors = native_lora(kohya)
    tensors["lora_unet_final_layer_linear.alpha"] = torch.tensor(float("nan"))
    path = write(tmp_path, (tensors, {}, None))
    assert f"{FINAL}.weight" in by_stock_nodes(tiny_flux(), path).patches
    fixed = host.load_and_fix(tiny_flux(), None, path)[0].patches
    caplog.clear()
    every.turn(True)
    with caplog.at_level(logging.INFO):
        assert by_stock_nodes(tiny_flux(), path).patches.keys() == fixed.keys()
    assert "3 keys have no effect" in caplog.text and f"{FINAL}.weight" not in fixed


def test_a_header_is_not_asked_where_the_file_is_another_by_now(
    every, by_stock_nodes, patched, tiny_flux, tmp_path
):
    """What was read before it was replaced is as strong as stock makes it."""
    import comfy.sd
    import comfy.utils

    tensors, metadata, _ = alpha_in_the_header()
    path = write(tmp_path, (tensors, {}, None))
    off = patched(by_stock_nodes(tiny_flux(), path))
    every.turn(True)
    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    save_file(tensors | {"more": torch.ones(9)}, tmp_path / "new.safetensors", metadata)
    (tmp_path / "new.safetensors").replace(path)
    same(patched(comfy.sd.load_lora_for_models(tiny_flux(), None, lora, 1.0, 0)[0]), off)


def test_a_file_in_names_that_the_host_converts(
    every, host, by_stock_nodes, patched, tiny_flux, tmp_path
):
    """FLUX control LoRAs of its makers, here with an alpha in the header."""
    norm = "single_blocks.0.norm.key_norm.scale"
    tensors = {norm: torch.rand(128), "img_in.lora_B.bias": torch.randn(128)}
    for name, shape in (("img_in", (128, 64)), ("final_layer.linear", (64, 128))):
        down, up = adapter(*shape)
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    told = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 1})}
    path = write(tmp_path, (tensors, told, None))
    stock = patched(by_stock_nodes(tiny_flux(), path))
    fixed = patched(host.load_and_fix(tiny_flux(), None, path)[0])
    assert not torch.allclose(fixed[f"{FINAL}.weight"], stock[f"{FINAL}.weight"], atol=1e-2)
    every.turn(True)
    same(patched(by_stock_nodes(tiny_flux(), path)), fixed, 1e-5)


def test_the_report_still_says_what_stock_would_do(every, host, tiny_flux, tmp_path):
    path = write(tmp_path, unknown_names())
    every.turn(True)
    report = host.load_and_fix(tiny_flux(), None, path)[2].as_dict()
    assert report["keys"]["placed"] == 4 and report["stock"]["placed"] == 0
