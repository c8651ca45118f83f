"""LoRA files for the tiny FLUX that the stock loader leaves out, or computes otherwise than they were
trained.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

QKV = "diffusion_model.double_blocks.0.img_attn.qkv"
FINAL = "diffusion_model.final_layer.linear"


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
    """LoRAs in the model's own names, under a prefix that stock does not know."""
    tensors = {}
    for name, shape in (
        ("double_blocks.0.img_attn.qkv", (384, 128)),
        ("final_layer.linear", (64, 128)),
    ):
        (
            tensors[f"base_model.model.{name}.lora_A.weight"],
            tensors[f"base_model.model.{name}.lora_B.weight"],
        ) = adapter(*shape)
    return tensors, {}, None


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
