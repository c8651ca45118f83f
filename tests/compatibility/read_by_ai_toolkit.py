"""Reads what `fix --to ai_toolkit` writes with AI-Toolkit's own `load_weights`; run by hand.

Usage: python read_by_ai_toolkit.py CLONE [REVISION [FAMILY ...]]; CLONE is a git directory of it.

Its functions are taken from their source as they stand (27a03a91: toolkit/network_mixins.py
load_weights, the models' convert_lora_weights_before_load); the models are diffusers' own classes
without weights. Prints for each family: keys, missing, unexpected, largest difference of up @ down.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import diffusers
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

PACK = Path(__file__).parents[2]
RANK = 4
WAN = "toolkit/models/wan21/wan_lora_convert.py"
EXTENSIONS = "extensions_built_in/diffusion_models"
# family -> (diffusers' class, its sizes, where the conversion before loading stands)
FAMILIES = {
    "FLUX.1": (
        "FluxTransformer2DModel",
        {"guidance_embeds": True},
        ("toolkit/stable_diffusion_model.py", "convert_lora_weights_before_load"),
    ),
    "Wan": ("WanTransformer3DModel", {"num_layers": 2}, (WAN, "convert_to_diffusers")),
    "Z-Image": (
        "ZImageTransformer2DModel",
        {"n_layers": 2},
        (f"{EXTENSIONS}/z_image/z_image.py", "convert_lora_weights_before_load"),
    ),
    "Qwen-Image": (
        "QwenImageTransformer2DModel",
        {"num_layers": 2},
        (f"{EXTENSIONS}/qwen_image/qwen_image.py", "convert_lora_weights_before_load"),
    ),
}


def function_of(clone: str, revision: str, path: str, name: str):
    """The function of that name in the clone's file, without what the file imports besides."""
    command = ["git", "--git-dir", clone, "show", f"{revision}:{path}"]
    source = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    node = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    future = "from __future__ import annotations\n"
    room = {"torch": torch, "os": os, "OrderedDict": OrderedDict, "print_once": print}
    code = ast.parse(future + ast.unparse(node))
    exec(compile(code, path, "exec"), room)
    return room[name]


def trained(class_name: str, sizes: dict) -> dict[str, torch.Tensor]:
    """A LoRA of all linear layers in blocks by diffusers' names, at random, its alpha the rank."""
    with torch.device("meta"):
        model = getattr(diffusers, class_name)(**sizes)
        targets = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
            and any(part.isdigit() for part in name.split("."))
        ]
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
        shapes = get_peft_model_state_dict(get_peft_model(model, config))
    prefix = "base_model.model."
    return {
        "transformer." + key.removeprefix(prefix): torch.randn(value.shape)
        for key, value in shapes.items()
    }


class Network(torch.nn.Module):
    """Parameters by the names that AI-Toolkit's network gives them (lora_special.py, peft_format:
    transformer$$... with $$ for dots), all NaN.
    """

    peft_format, network_type, is_pixart, did_change_weights = True, "lora", False, False
    base_model_ref = None

    def __init__(self, file: dict[str, torch.Tensor], convert):
        super().__init__()
        self.convert = convert
        for key, value in file.items():
            module, role = key.rsplit(".", 2)[0], key.rsplit(".", 2)[1]
            name = module.replace(".", "$$")
            if name not in self._modules:
                self.add_module(name, torch.nn.Module())
            linear = torch.nn.Linear(value.shape[1], value.shape[0], bias=False)
            torch.nn.init.constant_(linear.weight, float("nan"))
            down_or_up = {"lora_A": "lora_down", "lora_B": "lora_up"}[role]
            self._modules[name].add_module(down_or_up, linear)

    def get_keymap(self, force_weight_mapping=False):
        """None for all but the UNets: the file stable_diffusion_locon_sd1.json is not in it."""

    def product(self, module: str) -> torch.Tensor:
        found = self._modules[module.replace(".", "$$")]
        return found.lora_up.weight @ found.lora_down.weight


def read(clone: str, revision: str, family: str) -> str:
    """One line of figures for a family."""
    class_name, sizes, (path, name) = FAMILIES[family]
    load = function_of(clone, revision, "toolkit/network_mixins.py", "load_weights")
    convert = function_of(clone, revision, path, name)
    file = trained(class_name, sizes)
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/lora.safetensors", f"{folder}/fixed.safetensors"
        save_file(file, source)
        command = [sys.executable, str(PACK / "cli.py"), "fix", source, "-o", target]
        subprocess.run([*command, "--to", "ai_toolkit"], check=True, stdout=sys.stderr)
        # A file that has AI-Toolkit's names already is left as it is.
        written = load_file(target if os.path.exists(target) else source)
    network = Network(file, convert)
    state = convert(written) if name == "convert_to_diffusers" else convert(None, written)
    with torch.no_grad():
        extra = load(network, state) or {}
        modules = {key.rsplit(".", 2)[0] for key in file}
        missing = sum(bool(value.isnan().any()) for value in network.state_dict().values())
        differences = [
            (network.product(one) - file[f"{one}.lora_B.weight"] @ file[f"{one}.lora_A.weight"])
            .abs()
            .max()
            .item()
            for one in modules
        ]
    return (
        f"{family}: {len(written)} keys, {missing} missing, {len(extra)} unexpected,"
        f" largest difference {max(differences):.1e}"
    )


if __name__ == "__main__":
    torch.manual_seed(1)
    for family in sys.argv[3:] or FAMILIES:
        print(read(sys.argv[1], (*sys.argv[2:], "HEAD")[0], family), flush=True)
