"""A LoRA file for the tiny FLUX that holds an adapter of every sort, and base models of every kind
to load it on.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

HIDDEN = 128
WHOLE = (".lora_A.weight", ".lora_B.weight")


def factors(generator, module, outputs, inputs, rank=4, endings=WHOLE, spread=0.2):
    """The two factors of a plain LoRA on `module`."""
    down, up = (
        torch.randn(rank, inputs, generator=generator) * spread,
        torch.randn(outputs, rank, generator=generator) * spread,
    )
    return {module + endings[0]: down, module + endings[1]: up}


def plain_kinds(seed=1) -> dict[str, torch.Tensor]:
    """Adapters that add a delta: split targets with ranks of their own, halves to be swapped, LoHa,
    LoKr of both sorts.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for rank, name in ((2, "to_q"), (4, "to_k"), (3, "to_v"), (5, "to_out.0"), (4, "add_q_proj")):
        tensors |= factors(
            generator, f"transformer.transformer_blocks.0.attn.{name}", HIDDEN, HIDDEN, rank
        )
    single = "transformer.single_transformer_blocks.0"
    tensors |= factors(generator, f"{single}.attn.to_v", HIDDEN, HIDDEN) | factors(
        generator, f"{single}.proj_mlp", 4 * HIDDEN, HIDDEN
    )
    tensors |= factors(generator, "transformer.norm_out.linear", 2 * HIDDEN, HIDDEN)
    tensors["transformer.transformer_blocks.0.attn.to_k.alpha"] = torch.tensor(6.0)
    module = "lora_unet_double_blocks_0_txt_mlp_0"
    tensors |= {
        f"{module}.lokr_w1": torch.randn(8, 4, generator=generator) * 0.3,
        f"{module}.alpha": torch.tensor(1.0),
    }
    tensors |= factors(generator, module, 64, 32, 4, (".lokr_w2_b", ".lokr_w2_a"), 0.3)
    module = "lora_unet_double_blocks_0_txt_mlp_2"
    for half in "12":
        tensors |= factors(
            generator, module, HIDDEN, 4 * HIDDEN, 3, (f".hada_w{half}_b", f".hada_w{half}_a"), 0.3
        )
    return tensors


def turning_kinds(seed=2) -> dict[str, torch.Tensor]:
    """Adapters that depend on the weight but act on the outputs alone: DoRA (whole and on slices),
    OFT, BOFT, (IA)3.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name in ("to_q", "to_k"):
        module = f"transformer.single_transformer_blocks.0.attn.{name}"
        tensors |= factors(generator, module, HIDDEN, HIDDEN)
        tensors[f"{module}.lora_magnitude_vector.weight"] = (
            torch.rand(HIDDEN, generator=generator) + 0.5
        )
    module = "diffusion_model.double_blocks.0.txt_attn.proj"
    tensors |= factors(generator, module, HIDDEN, HIDDEN)
    tensors[f"{module}.dora_scale"] = torch.rand(HIDDEN, 1, generator=generator) + 0.5
    tensors["lora_unet_double_blocks_0_img_mlp_0.oft_blocks"] = (
        torch.randn(16, 32, 32, generator=generator) * 0.1
    )
    tensors["lora_unet_double_blocks_0_img_mlp_2.oft_blocks"] = (
        torch.randn(3, 8, 16, 16, generator=generator) * 0.1
    )
    tensors["lora_unet_double_blocks_0_img_attn_proj.weight"] = (
        torch.randn(HIDDEN, generator=generator) * 0.3
    )
    tensors["lora_unet_double_blocks_0_img_attn_proj.on_input"] = torch.tensor(False)
    return tensors


def deriving_kinds(seed=4) -> dict[str, torch.Tensor]:
    """Adapters that need the whole weight: OFT and (IA)3 of the inputs, GLoRA, DoRA per input."""
    generator = torch.Generator().manual_seed(seed)
    make = lambda spread, *shape: torch.randn(*shape, generator=generator) * spread  # noqa: E731
    tensors = {
        "transformer.single_transformer_blocks.0.proj_out.oft_R.weight": make(
            0.05, 20, 32 * 31 // 2
        )
    }
    module = "lora_unet_double_blocks_0_txt_mlp_0"
    tensors |= {f"{module}.weight": make(0.3, HIDDEN), f"{module}.on_input": torch.tensor(True)}
    module = "lora_unet_double_blocks_0_txt_mlp_2"
    tensors |= {
        f"{module}.a1.weight": make(0.1, 4 * HIDDEN, 4),
        f"{module}.a2.weight": make(0.1, 4, 4 * HIDDEN),
    }
    tensors |= {
        f"{module}.b1.weight": make(0.2, HIDDEN, 4),
        f"{module}.b2.weight": make(0.2, 4, 4 * HIDDEN),
    }
    module = "diffusion_model.double_blocks.0.txt_attn.qkv"
    tensors |= factors(generator, module, 3 * HIDDEN, HIDDEN)
    return tensors | {f"{module}.dora_scale": torch.rand(1, HIDDEN, generator=generator) + 0.5}


def other_kinds(seed=3) -> dict[str, torch.Tensor]:
    """Full differences and biases: these change the weights whatever the mode."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "diffusion_model.double_blocks.0.img_attn.qkv.diff_b": (
            torch.randn(3 * HIDDEN, generator=generator) * 0.2
        ),
        "diffusion_model.img_in.diff": torch.randn(HIDDEN, 64, generator=generator) * 0.1,
        "diffusion_model.final_layer.linear.diff_b": torch.randn(64, generator=generator) * 0.1,
    }


def write_all_kinds(path):
    """A file with all of them; `path` back."""
    deriving = {key: tensor for key, tensor in deriving_kinds().items() if "txt_mlp" not in key}
    save_file({**plain_kinds(), **turning_kinds(), **deriving, **other_kinds()}, path)
    return path


PLAIN_BASES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
SCALED_FP8 = "fp8_scaled"
QUANTISED_BASES = ("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise")
BASES = (*PLAIN_BASES, SCALED_FP8, *QUANTISED_BASES)


def write_base(path, base: str):
    """A checkpoint of a FLUX with one block of each sort, stored as `base` says."""
    from tiny_models import flux_state_dict

    weights = flux_state_dict(double_blocks=1, single_blocks=1)
    if base == SCALED_FP8:
        weights = _scaled(weights)
    elif base in QUANTISED_BASES:
        weights = _quantised(weights, base)
    save_file(weights, path)
    return path


def load_base(path, base: str):
    """The checkpoint, loaded as ComfyUI's own UNETLoader does it."""
    import comfy.sd

    options = {"dtype": PLAIN_BASES[base]} if base in PLAIN_BASES else {}
    return comfy.sd.load_diffusion_model(str(path), model_options=options)


def _in_blocks(name, weight) -> bool:
    return weight.ndim == 2 and "_blocks." in name


def _scaled(weights):
    """The older way: fp8 weights with `scale_weight`, and a key that says so for the whole file."""
    result = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, weight in weights.items():
        result[name] = weight
        if _in_blocks(name, weight):
            scale = weight.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
            result |= {
                name: (weight.float() / scale).to(torch.float8_e4m3fn),
                name.replace(".weight", ".scale_weight"): scale,
            }
    return result


def _quantised(weights, form: str):
    """ComfyUI's own way: what its quantised tensors say of themselves, and `comfy_quant` beside
    each.
    """
    import comfy.quant_ops as quant_ops

    layout = quant_ops.QUANT_ALGOS[form]["comfy_tensor_layout"]
    scale = {} if form in ("mxfp8", "int8_tensorwise") else {"scale": "recalculate"}
    result = {}
    for name, weight in weights.items():
        if not _in_blocks(name, weight):
            result[name] = weight
            continue
        result |= quant_ops.QuantizedTensor.from_float(weight.float(), layout, **scale).state_dict(
            name
        )
        note = json.dumps({"format": form}).encode()
        result[name.replace(".weight", ".comfy_quant")] = torch.tensor(
            list(note), dtype=torch.uint8
        )
    return result


def dense(weight: torch.Tensor) -> torch.Tensor:
    """The fp32 weight that a weight of any storage stands for, as a copy."""
    weight = weight.detach()
    return (weight.dequantize() if hasattr(weight, "_qdata") else weight).float().clone()


def storage(weight: torch.Tensor) -> list[torch.Tensor]:
    """Every bit a weight consists of."""
    parts = [weight]
    if hasattr(weight, "_qdata"):
        parts = [
            weight._qdata,
            *(part for part in vars(weight._params).values() if isinstance(part, torch.Tensor)),
        ]
    return [part.detach().clone().reshape(-1).view(torch.uint8) for part in parts]
