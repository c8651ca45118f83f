"""Fix LoRAs in every loader, in the real ComfyUI: what stock places rightly stays to the bit, the
rest is what Load and Fix LoRA gives; off, nothing of the host is touched.
"""

from __future__ import annotations

import json
import logging
import threading

import pytest
import torch
from safetensors.torch import save_file
from test_as_stock import comfyui, kohya, native_lora, nothing_knows

QKV = "diffusion_model.double_blocks.0.img_attn.qkv"
FINAL = "diffusion_model.final_layer.linear"
FUNCTIONS = {
    "lora": ("load_lora", "model_lora_keys_unet", "model_lora_keys_clip"),
    "sd": ("load_lora_for_models", "load_bypass_lora_for_models"),
    "utils": ("load_torch_file",),
}


@pytest.fixture
def every(host):
    """nodes/every_loader.py, off before and after the test."""
    from lora_locksmith.nodes import every_loader

    assert not every_loader.is_on()
    yield every_loader
    every_loader.turn(False)


@pytest.fixture
def functions(comfy):
    """functions() -> the host's functions as they stand in its modules now."""
    import comfy.lora
    import comfy.sd
    import comfy.utils

    return lambda: [
        getattr(getattr(comfy, module), name) for module, names in FUNCTIONS.items() for name in names
    ]


@pytest.fixture
def by_stock_nodes(comfy):
    """by_stock_nodes(patcher, path, strength) -> a patcher, by what stock's LoraLoader does."""
    import comfy.sd
    import comfy.utils

    def load(patcher, path, strength=1.0, with_metadata=True):
        lora, metadata = comfy.utils.load_torch_file(
            str(path), safe_load=True, return_metadata=True
        )
        told = {"lora_metadata": metadata} if with_metadata else {}
        return comfy.sd.load_lora_for_models(patcher, None, lora, strength, 0, **told)[0]

    return load


def adapter(rows, columns, rank=4, seed=3):
    torch.manual_seed(seed)
    return torch.randn(rank, columns), torch.randn(rows, rank)


def dora_of_peft():
    """A DoRA in PEFT's names and settings, on a module of the model's own."""
    down, up = adapter(64, 128)
    name = "base_model.model.final_layer.linear"
    tensors = {
        f"{name}.lora_A.weight": down,
        f"{name}.lora_B.weight": up,
        f"{name}.lora_magnitude_vector.weight": torch.rand(64) + 0.5,
    }
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": True}
    return tensors, {}, settings


def lokr_of_lycoris():
    """A LoKr with whole factors by LyCORIS with rs_lora, which scales it by the square root of the
    rank; stock does not scale it.
    """
    torch.manual_seed(5)
    tensors = {
        f"{FINAL}.lokr_w1": torch.randn(8, 8) * 0.2,
        f"{FINAL}.lokr_w2": torch.randn(8, 16) * 0.2,
        f"{FINAL}.alpha": torch.tensor(4.0),
    }
    return tensors, {"ss_network_dim": "4", "ss_network_args": json.dumps({"rs_lora": True})}, None


def alpha_in_the_header():
    """A plain LoRA that stock reads at full strength; its header says a quarter of it."""
    down, up = adapter(384, 128)
    tensors = {f"{QKV}.lora_A.weight": down, f"{QKV}.lora_B.weight": up}
    settings = {"r": 4, "lora_alpha": 1}
    return tensors, {"lora_adapter_metadata": json.dumps(settings)}, None


def unknown_names():
    return native_lora(nothing_knows), {}, None


WRONG = {
    "unknown names": unknown_names,
    "PEFT's DoRA": dora_of_peft,
    "LoKr": lokr_of_lycoris,
    "alpha in the header": alpha_in_the_header,
}


def write(folder, made):
    tensors, metadata, settings = made
    path = folder / "adapter_model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    if settings:
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    return path


def same(first, second, most=0.0):
    assert first.keys() == second.keys()
    for name, weight in first.items():
        difference = float((weight - second[name]).abs().max())
        assert difference <= most, (name, difference)


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
