"""Reads what `fix --to simpletuner` writes as SimpleTuner's --init_lora does; run by hand.

Usage: python read_by_simpletuner.py CLONE [REVISION [FAMILY ...]]; CLONE is a git directory of it.

Its modules simpletuner/helpers/training/lora_format.py and adapter.py (bc8e6ab7) are imported as
they stand, and called in the order of models/common.py add_lora_adapter: the LoraConfig comes from
the file's ranks, the adapter is added, the weights are read. The models are diffusers' classes
without weights, from which its own are taken. Each family is read as a plain LoRA, one of several
ranks and a DoRA. Prints for each: keys, additional, missing, largest relative difference.
Those of several ranks differ: it reads them too strongly (key_maps/written.table), and `fix` says so.
"""

from __future__ import annotations

import sys

import diffusers
import torch
import trainers
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from read_by_ai_toolkit import FAMILIES
from trainers import RANK

TRAINING = "simpletuner/helpers/training"


def empty_adapter(model, targets: list[str], **settings) -> None:
    """Adds an adapter; its own tensors are real and NaN, the model's stay on the meta device."""
    model.add_adapter(LoraConfig(target_modules=targets, init_lora_weights=True, **settings))
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        for part in (module.lora_A, module.lora_B, module.lora_magnitude_vector):
            part.to_empty(device="cpu")
            for tensor in part.parameters():
                torch.nn.init.constant_(tensor, float("nan"))


def read(clone: str, revision: str, family: str, variant: str) -> str:
    """One line of figures for a family."""
    class_name, sizes, _ = FAMILIES[family]
    formats = trainers.module_of(clone, revision, f"{TRAINING}/lora_format.py")
    adapter = trainers.module_of(clone, revision, f"{TRAINING}/adapter.py")
    with torch.device("meta"):
        model = getattr(diffusers, class_name)(**sizes)
    component = "unet" if class_name.startswith("UNet") else "transformer"
    layers = trainers.linear_layers(model)
    several = variant == "several ranks"
    factors = trainers.pairs(
        layers, lambda name: RANK * 2 if several and name.endswith((".to_q", ".to_k")) else RANK
    )
    tensors, metadata = trainers.by_peft(factors, component)
    magnitudes = {}
    if variant == "DoRA":
        magnitudes = {name: torch.rand(layer.out_features) + 1 for name, layer in layers.items()}
        for name, magnitude in magnitudes.items():
            tensors[f"{component}.{name}.lora_magnitude_vector"] = magnitude
        metadata = None
    written = trainers.fixed(tensors, metadata, "simpletuner")
    settings = formats.peft_lora_config_kwargs_from_state_dict(
        written, prefix_to_strip=f"{component}."
    )
    empty_adapter(model, list(layers), use_dora=bool(magnitudes), **settings)
    additional, missing = adapter.load_lora_weights(
        {component: model}, None, use_dora=bool(magnitudes), state_dict=written
    )
    found = dict(model.named_modules())
    with torch.no_grad():
        worst = trainers.difference(
            {
                name: (
                    found[name].lora_A["default"].weight,
                    found[name].lora_B["default"].weight,
                    found[name].scaling["default"],
                )
                for name in layers
            },
            factors,
            1.0 if magnitudes else None,
        )
        for name, magnitude in magnitudes.items():
            held = found[name].lora_magnitude_vector["default"].weight
            worst = max(worst, (held - magnitude).abs().max().item())
    return (
        f"{family}, {variant}: {len(written)} keys, {len(additional)} additional,"
        f" {len(missing)} missing, largest difference {worst:.1e}"
    )


if __name__ == "__main__":
    torch.manual_seed(1)
    for family in sys.argv[3:] or FAMILIES:
        for variant in ("plain", "several ranks", "DoRA"):
            print(read(sys.argv[1], (*sys.argv[2:], "HEAD")[0], family, variant), flush=True)
