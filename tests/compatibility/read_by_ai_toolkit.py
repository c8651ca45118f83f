"""Reads what `fix --to ai_toolkit` writes with AI-Toolkit's own `load_weights`; run by hand.

Usage: python read_by_ai_toolkit.py CLONE [REVISION [FAMILY ...]]; CLONE is a git directory of it.

Its functions are taken from their source as they stand (27a03a91: toolkit/network_mixins.py
load_weights, the models' convert_lora_weights_before_load); the models are diffusers' own classes
without weights. Prints for each family: keys, missing, unexpected, largest relative difference.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict

import diffusers
import torch
import trainers
from trainers import ALPHA, RANK

WAN = "toolkit/models/wan21/wan_lora_convert.py"
EXTENSIONS = "extensions_built_in/diffusion_models"
USUAL = ("toolkit/stable_diffusion_model.py", "convert_lora_weights_before_load")
SDXL = {
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
}
# family -> (diffusers' class, its sizes, where the conversion before loading stands)
FAMILIES = {
    "FLUX.1": (
        "FluxTransformer2DModel",
        {"guidance_embeds": True},
        USUAL,
    ),
    "SDXL": ("UNet2DConditionModel", SDXL, USUAL),
    "Wan": ("WanTransformer3DModel", {"num_layers": 2}, (WAN, "convert_to_diffusers")),
    "Z-Image": (
        "ZImageTransformer2DModel",
        {"n_layers": 2},
        (f"{EXTENSIONS}/z_image/z_image.py", USUAL[1]),
    ),
    "Qwen-Image": (
        "QwenImageTransformer2DModel",
        {"num_layers": 2},
        (f"{EXTENSIONS}/qwen_image/qwen_image.py", USUAL[1]),
    ),
}


class Network(torch.nn.Module):
    """Parameters by the names that AI-Toolkit's network gives them (lora_special.py), all NaN: with
    peft_format transformer$$... with $$ for dots, and for UNets lora_unet_... with _ and alpha.
    """

    network_type, is_pixart, did_change_weights, is_v1 = "lora", False, False, False
    base_model_ref = None

    def __init__(self, factors: dict[str, tuple], unet: bool):
        super().__init__()
        self.peft_format = not unet
        for name, (down, up) in factors.items():
            module = torch.nn.Module()
            module.lora_down = torch.nn.Linear(*reversed(down.shape), bias=False)
            module.lora_up = torch.nn.Linear(*reversed(up.shape), bias=False)
            for linear in (module.lora_down, module.lora_up):
                torch.nn.init.constant_(linear.weight, float("nan"))
            if unet:
                module.register_buffer("alpha", torch.tensor(float("nan")))
            self.add_module(self.spelled(name), module)

    def spelled(self, name: str) -> str:
        if self.peft_format:
            return f"transformer.{name}".replace(".", "$$")
        return f"lora_unet_{name}".replace(".", "_")

    def get_keymap(self, force_weight_mapping=False):
        """None: for UNets, too, as the files stable_diffusion_locon_*.json are not in it."""

    def read(self, name: str) -> tuple:
        """(down, up, scale): the scale is linear_alpha / linear, for UNets as in the file; with
        peft_format linear_alpha is the rank.
        """
        module = self._modules[self.spelled(name)]
        scale = 1 if self.peft_format else module.alpha.item() / RANK
        return module.lora_down.weight, module.lora_up.weight, scale


def read(clone: str, revision: str, family: str) -> str:
    """One line of figures for a family."""
    class_name, sizes, (path, name) = FAMILIES[family]
    room = {"torch": torch, "os": os, "OrderedDict": OrderedDict, "print_once": print}
    load = trainers.function_of(
        clone, revision, "toolkit/network_mixins.py", "load_weights", dict(room)
    )
    convert = trainers.function_of(clone, revision, path, name, dict(room))
    with torch.device("meta"):
        model = getattr(diffusers, class_name)(**sizes)
    unet = class_name.startswith("UNet")
    factors = trainers.pairs(trainers.linear_layers(model))
    written = trainers.fixed(
        *trainers.by_peft(factors, "unet" if unet else "transformer"), "ai_toolkit"
    )
    network = Network(factors, unet)
    # The pipelines of UNets hand the weights through as they are.
    state = convert(written) if name == "convert_to_diffusers" else convert(None, written)
    with torch.no_grad():
        extra = load(network, state) or {}
        missing = sum(bool(value.isnan().any()) for value in network.state_dict().values())
        worst = trainers.difference({one: network.read(one) for one in factors}, factors)
    return (
        f"{family}: {len(written)} keys, {missing} missing, {len(extra)} unexpected,"
        f" largest difference {worst:.1e}"
    )


if __name__ == "__main__":
    assert ALPHA != RANK
    torch.manual_seed(1)
    for family in sys.argv[3:] or FAMILIES:
        print(read(sys.argv[1], (*sys.argv[2:], "HEAD")[0], family), flush=True)
