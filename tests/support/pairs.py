"""Two LoRAs of one model that have something in common: some layers that both train, alike in some
blocks and against each other in others, some that only one trains, and ranks that differ.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

H = 3072
BOTH = {"img_attn_qkv": (3 * H, H), "img_attn_proj": (H, H), "txt_attn_qkv": (3 * H, H)}
ONLY_A = {"img_mlp_0": (4 * H, H), "img_mlp_2": (H, 4 * H)}
ONLY_B = {"img_mod_lin": (6 * H, H)}
SINGLE = {"linear1": (7 * H, H), "linear2": (H, 5 * H)}
ENCODER = "lora_te1_text_model_encoder_layers_{}_self_attn_q_proj"


def write_pair(first: Path, second: Path, double: int = 19, single: int = 38) -> None:
    """A and B for FLUX.1, of as many blocks; the later half of them has half the rank in A."""
    random = torch.Generator().manual_seed(7)
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for name, blocks, kinds in (("double", double, BOTH), ("single", single, SINGLE)):
        for block in range(blocks):
            for kind, shape in kinds.items():
                module = f"lora_unet_{name}_blocks_{block}_{kind}"
                rank = 4 if block < blocks / 2 else 2
                ours = _pair(shape, rank, random)
                alike = math.cos(math.pi * block / blocks)
                a |= _named(module, ours, 1 + 2 * block / blocks)
                b |= _named(module, _near(ours, alike, random), 1.0)
    for block in range(double):
        for kind, shape in ONLY_A.items():
            a |= _named(f"lora_unet_double_blocks_{block}_{kind}", _pair(shape, 1, random), 1.0)
        for kind, shape in ONLY_B.items() if block % 3 else ():
            b |= _named(f"lora_unet_double_blocks_{block}_{kind}", _pair(shape, 1, random), 1.0)
    for block in range(4):
        a |= _named(ENCODER.format(block), _pair((768, 768), 2, random), 1.0)
    save_file(a, first, {"ss_network_module": "networks.lora_flux"})
    save_file(b, second, {"ss_network_module": "networks.lora_flux"})


def _pair(shape: tuple[int, int], rank: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    outputs, inputs = shape
    return (
        torch.randn(outputs, rank, generator=random) / math.sqrt(outputs),
        torch.randn(rank, inputs, generator=random) / math.sqrt(inputs),
    )


def _near(
    pair: tuple[Tensor, Tensor], alike: float, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A change whose cosine with that of `pair` is about `alike`."""
    up, down = pair
    other = torch.randn(up.shape, generator=random) / math.sqrt(up.shape[0])
    return alike * up + math.sqrt(1 - alike * alike) * other, down


def _named(module: str, pair: tuple[Tensor, Tensor], strength: float) -> dict[str, Tensor]:
    up, down = pair
    alpha = torch.tensor(float(down.shape[0]))
    return {
        f"{module}.lora_up.weight": (up * strength).bfloat16(),
        f"{module}.lora_down.weight": down.bfloat16(),
        f"{module}.alpha": alpha,
    }
