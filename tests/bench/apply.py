"""Times applying patches to the attention of a FLUX.1 block of real widths against the stock loader's, interleaved in one run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from interleaved import ratios_to_stock
from load import RANK, flux_modules

ROUNDS = 9
ATTENTION = tuple(f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))


def write_attention_lora(path: Path, dora: bool = False) -> int:
    """A LoRA of the four modules diffusers has in a block's image attention, with PEFT's magnitudes a DoRA; gives their count."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    tensors = {}
    modules = {name: shape for name, shape in flux_modules().items() if name in ATTENTION}
    for module, (out, inner) in modules.items():
        tensors[f"transformer.{module}.lora_A.weight"] = torch.randn(RANK, inner, generator=generator) * 0.02
        tensors[f"transformer.{module}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.02
        if dora:
            tensors[f"transformer.{module}.lora_magnitude_vector"] = torch.rand(out, generator=generator) + 0.5
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, path)
    return len(modules)


def block_patcher():
    """A ModelPatcher over a FLUX.1 of the published widths with one double block, bf16, random weights in its image attention."""
    import comfy.model_patcher
    import comfy.supported_models
    import comfy_models

    config = comfy.supported_models.Flux(comfy_models.FLUX | {"depth": 1, "depth_single_blocks": 0})
    config.set_inference_dtype(torch.bfloat16, None)
    cpu = torch.device("cpu")
    model = config.get_model({}, device=cpu)
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.diffusion_model.state_dict().items():
        if ".img_attn." in name:
            weight.normal_(std=0.02, generator=generator)
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def patched_by_stock(patcher, path: Path):
    import comfy.sd
    import comfy.utils

    return comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(str(path), safe_load=True), 1.0, 1.0)[0]


def apply(patched) -> dict[str, torch.Tensor]:
    """Every patched weight as the host puts it onto the device: in fp32, then rounded to the model's dtype."""
    return {key: patched.patch_weight_to_device(key, torch.device("cpu"), return_weight=True) for key in patched.patches}


def measure(host, folder: Path, rounds: int = ROUNDS) -> dict[str, object]:
    """Medians of interleaved runs as ratios to stock's, with the spread (the middle half of the rounds)."""
    modules = write_attention_lora(folder / "plain.safetensors")
    write_attention_lora(folder / "dora.safetensors", dora=True)
    patcher = block_patcher()
    timed = {
        "stock": patched_by_stock(patcher, folder / "plain.safetensors"),
        "ours": host.load_and_fix(patcher, None, folder / "plain.safetensors")[0],
        "ours, DoRA": host.load_and_fix(patcher, None, folder / "dora.safetensors")[0],
    }
    assert all(sum(map(len, patched.patches.values())) == modules for patched in timed.values())
    stock, ours = apply(timed["stock"]), apply(timed["ours"])
    assert all(torch.equal(stock[key], ours[key]) for key in stock)
    runs = {name: partial(apply, patched) for name, patched in timed.items()}
    return {"modules": modules, **ratios_to_stock(runs, rounds)}
