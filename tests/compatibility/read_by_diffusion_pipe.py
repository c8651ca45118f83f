"""Reads what `fix --to diffusion_pipe` writes as diffusion-pipe's init_from_existing does; run by
hand.

Usage: python read_by_diffusion_pipe.py CLONE COMFYUI [REVISION [FAMILY ...]]; CLONE is a git
directory of it, COMFYUI a folder.

Its load_adapter_weights are taken from their source as they stand (8f83dbf2: models/base.py), the
adapter is PEFT's as models/base.py configure_adapter adds it. The models are
those it trains: diffusers' own, ComfyUI's for what inherits from ComfyPipeline, and ComfyUI's for
Wan, Chroma and Lumina 2, too, whose own classes lie in submodules or need a GPU; all without
weights. Not here: FLUX.1 and SDXL, which its flux.py and sdxl.py hand to diffusers' loader. Prints
for each family: keys, missing, largest relative difference.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import diffusers
import peft
import safetensors.torch
import torch
import trainers
from peft.tuners.lora import LoraLayer
from read_by_ai_toolkit import FAMILIES as DIFFUSERS
from safetensors.torch import save_file
from trainers import ALPHA, RANK

BASE = ("models/base.py", "BasePipeline", "transformer")
COMFY = ("models/base.py", "ComfyPipeline", "diffusion_model")
# family -> (the model of tests/support/comfy_models.py, or diffusers' class and sizes; whose
# load_adapter_weights reads it, and where that finds the model)
FAMILIES = {
    "Qwen-Image": (DIFFUSERS["Qwen-Image"][:2], BASE),
    "Wan": ("wan21_t2v_1_3b", BASE),
    "Chroma": ("chroma", BASE),
    "Lumina 2": ("lumina2", BASE),
    "Z-Image": ("z_image", COMFY),
    "FLUX.2": ("flux2_klein_4b", COMFY),
    "Krea 2": ("krea2", COMFY),
    "Ernie": ("ernie", COMFY),
    "HunyuanVideo 1.5": ("hunyuan_video_15", COMFY),
    "LTX-2": ("ltx2", COMFY),
    "Ideogram 4": ("ideogram4", COMFY),
    "MiniMax-H3": ("minimax_h3", COMFY),
}


def network(name: str | tuple) -> torch.nn.Module:
    if isinstance(name, tuple):
        class_name, sizes = name
        with torch.device("meta"):
            return getattr(diffusers, class_name)(**sizes)
    import comfy_models

    return comfy_models.network(name).diffusion_model


def source(factors: dict[str, tuple], by_diffusers: bool) -> tuple[dict, dict | None]:
    """(tensors, metadata) of a file by another trainer: diffusers', or kohya's names with alphas."""
    if by_diffusers:
        return trainers.by_peft(factors, "transformer")
    tensors = {}
    for name, (down, up) in factors.items():
        flat = f"lora_unet_{name}".replace(".", "_")
        tensors[f"{flat}.lora_down.weight"] = down
        tensors[f"{flat}.lora_up.weight"] = up
        tensors[f"{flat}.alpha"] = torch.tensor(float(ALPHA))
    return tensors, None


def read(clone: str, revision: str, family: str) -> str:
    """One line of figures for a family."""
    name, (path, owner, place) = FAMILIES[family]
    load = trainers.function_of(
        clone,
        revision,
        path,
        "load_adapter_weights",
        {
            "re": re,
            "Path": Path,
            "safetensors": safetensors,
            "print": lambda *texts: None,
            "is_main_process": lambda: False,  # it would print
        },
        owner,
    )
    model = network(name)
    layers = {
        one: layer
        for one, layer in trainers.linear_layers(model).items()
        if "embed" not in one and "adaLN" not in one
    }
    factors = trainers.pairs(layers)
    written = trainers.fixed(*source(factors, isinstance(name, tuple)), "diffusion_pipe")
    # lora_alpha is the rank: train.py forces it.
    peft.get_peft_model(
        model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(layers))
    )
    found = {one: part for one, part in model.named_modules() if isinstance(part, LoraLayer)}
    for part in found.values():
        for side in (part.lora_A, part.lora_B):
            side.to_empty(device="cpu")
            for tensor in side.parameters():
                torch.nn.init.constant_(tensor, float("nan"))
    with tempfile.TemporaryDirectory() as folder:
        save_file(written, Path(folder, "adapter_model.safetensors"))
        load(SimpleNamespace(**{place: model}), folder)
    with torch.no_grad():
        held = {
            one: (
                found[one].lora_A["default"].weight,
                found[one].lora_B["default"].weight,
                found[one].scaling["default"],
            )
            for one in layers
        }
        missing = sum(bool(up.isnan().any() or down.isnan().any()) for down, up, _ in held.values())
        worst = trainers.difference(held, factors)
    return f"{family}: {len(written)} keys, {missing} missing, largest difference {worst:.1e}"


if __name__ == "__main__":
    sys.path.insert(0, str(trainers.PACK / "tests" / "support"))
    from tiny_models import import_comfy

    import_comfy(Path(sys.argv[2]))
    torch.manual_seed(1)
    for family in sys.argv[4:] or FAMILIES:
        print(read(sys.argv[1], (*sys.argv[3:], "HEAD")[0], family), flush=True)
