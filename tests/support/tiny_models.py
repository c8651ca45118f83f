"""Tiny random models and LoRA files that the real ComfyUI loads on a CPU; run as a program it
writes the demo's set.

Names and shapes come from ComfyUI's own module classes, the numbers from a seeded generator: the
same files every time.
Usage: python tiny_models.py COMFYUI_FOLDER MODELS_FOLDER
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from hollow_files import write_hollow

HIDDEN = 128
DOUBLE_BLOCKS = 2
SINGLE_BLOCKS = 2
TEXT_WIDTH = 768  # CLIP-L's, so that one text encoder serves every tiny model

FLUX = "tiny_flux.safetensors"
CLIP_L = "tiny_clip_l.safetensors"
BROKEN_LORA = "simpletuner_broken_keys.safetensors"
DIFFUSERS_LORA = "diffusers_plain.safetensors"
KOHYA_LORA = "kohya_plain.safetensors"

DOUBLE_ATTENTION = tuple(
    f"attn.{name}"
    for name in (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    )
)
SINGLE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")


def import_comfy(comfyui: Path):
    """Import ComfyUI's `comfy` for use without a server, on the CPU whatever
    torch build there is.
    """
    folder = str(comfyui)
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(
        0, folder
    )  # first, because this pack has folders (nodes) named like ComfyUI's modules
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.sd

    return comfy


def meta_state_dict(build) -> dict:
    """The state dict of `build()` on the meta device: names and shapes, no memory."""
    import torch

    with torch.device("meta"):
        return build().state_dict()


def random_state_dict(shapes: dict, seed: int, dtype=None) -> dict:
    """Seeded values for a state dict's shapes: gains 1, biases 0, weights normal with a spread that
    keeps activations near 1.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, like in shapes.items():
        if like.ndim <= 1:
            gain = name.endswith(("weight", "scale"))
            value = torch.ones(like.shape) if gain else torch.zeros(like.shape)
        else:
            value = torch.randn(like.shape, generator=generator) / math.sqrt(
                math.prod(like.shape[1:])
            )
        values[name] = value.to(dtype or torch.float16)
    return values


def flux_state_dict(
    double_blocks: int = DOUBLE_BLOCKS,
    single_blocks: int = SINGLE_BLOCKS,
    hidden: int = HIDDEN,
    guidance: bool = True,
    seed: int = 1,
) -> dict:
    """A FLUX.1 transformer as Black Forest Labs' files spell it; guidance=False
    makes it a schnell.
    """
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    shapes = meta_state_dict(
        lambda: Flux(
            image_model="flux",
            in_channels=16,
            out_channels=16,
            patch_size=2,
            vec_in_dim=TEXT_WIDTH,
            context_in_dim=TEXT_WIDTH,
            hidden_size=hidden,
            mlp_ratio=4.0,
            num_heads=hidden // 128,
            depth=double_blocks,
            depth_single_blocks=single_blocks,
            axes_dim=[16, 56, 56],
            theta=10000,
            qkv_bias=True,
            guidance_embed=guidance,
            txt_ids_dims=[],
            operations=comfy.ops.disable_weight_init,
        )
    )
    return {_released_name(name): value for name, value in random_state_dict(shapes, seed).items()}


def _released_name(name: str) -> str:
    # ComfyUI 0.30 renames the q/k norms while loading; the released files spell them '.scale'.
    return name[: -len(".weight")] + ".scale" if name.endswith("_norm.weight") else name


def taef1_state_dicts() -> dict[str, dict]:
    """FLUX's tiny autoencoder as the two files ComfyUI's VAE named 'taef1' consists of."""
    from comfy.taesd.taesd import Decoder, Encoder

    encoder, decoder = meta_state_dict(lambda: Encoder(16)), meta_state_dict(lambda: Decoder(16))
    return {
        "taef1_encoder.safetensors": random_state_dict(encoder, seed=9),
        "taef1_decoder.safetensors": soft_decoder_state_dict(decoder, seed=10),
    }


def soft_decoder_state_dict(shapes: dict, seed: int) -> dict:
    """A decoder that blurs while it mixes channels: its pictures are soft blobs of colour, in which
    a person sees a change at once.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    blur = torch.tensor([1.0, 2.0, 1.0])
    blur = blur[:, None] * blur / 16
    values = {}
    for name, like in shapes.items():
        if like.ndim == 1:
            values[name] = torch.zeros(like.shape)
            continue
        mix = torch.randn(like.shape[:2], generator=generator)
        mix = (mix - mix.mean(1, keepdim=True)) * math.sqrt(2 / like.shape[1])
        values[name] = mix[:, :, None, None] * (blur if like.shape[-1] == 3 else 1)
    *_, last_weight, last_bias = values
    values[last_weight] = values[last_weight] * 0.15
    values[last_bias] = values[last_bias] + 0.5  # mid-grey on average
    return {name: value.half() for name, value in values.items()}


def write_clip_l(path: Path, comfyui: Path, seed: int = 12) -> None:
    """A full-size CLIP-L that costs almost no disk: an fp8 file with a hole where the weights would
    be zeros.

    Only the gains (1.0) and the embeddings are written, so different words still give different
    conditionings.
    """
    import comfy.ops
    import torch
    from comfy.clip_model import CLIPTextModel

    config = json.loads((comfyui / "comfy" / "sd1_clip_config.json").read_text(encoding="utf-8"))
    shapes = meta_state_dict(
        lambda: CLIPTextModel(config, torch.float32, "meta", comfy.ops.disable_weight_init)
    )
    shapes = {name: like for name, like in shapes.items() if "position_ids" not in name}
    generator = torch.Generator().manual_seed(seed)
    filled = {}
    for name, like in shapes.items():
        if like.ndim == 1 and name.endswith("weight"):
            filled[name] = torch.ones(like.shape)
        elif "embedding" in name:
            filled[name] = torch.randn(like.shape, generator=generator) * 0.5
    values = {
        name: value.to(torch.float8_e4m3fn).view(torch.uint8).numpy().tobytes()
        for name, value in filled.items()
    }
    write_hollow(
        path, {name: tuple(like.shape) for name, like in shapes.items()}, None, "F8_E4M3", values
    )


def attention_modules(
    double_blocks: int = DOUBLE_BLOCKS, single_blocks: int = SINGLE_BLOCKS
) -> list[str]:
    """Every attention module of a FLUX transformer, by diffusers' names."""
    double = [
        f"transformer_blocks.{block}.{module}"
        for block in range(double_blocks)
        for module in DOUBLE_ATTENTION
    ]
    single = [
        f"single_transformer_blocks.{block}.{module}"
        for block in range(single_blocks)
        for module in SINGLE_ATTENTION
    ]
    return double + single


def lora_state_dict(
    modules: dict,
    down: str,
    up: str,
    alpha: str = "",
    rank: int = 4,
    spread: float = 0.3,
    seed: int = 11,
) -> dict:
    """A plain LoRA. `modules` maps a full module name to its (outputs, inputs); the endings are the
    roles' spellings.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (outputs, inputs) in modules.items():
        tensors[module + down] = torch.randn(rank, inputs, generator=generator) * spread
        tensors[module + up] = torch.randn(outputs, rank, generator=generator) * spread
        if alpha:
            tensors[module + alpha] = torch.tensor(float(rank))
    return tensors


def simpletuner_broken_lora(**options) -> dict:
    """The keys SimpleTuner wrote for FLUX for a while: a PEFT prefix inside diffusers' prefix, and
    old role names.
    """
    modules = {
        f"transformer.base_model.model.{name}": (HIDDEN, HIDDEN) for name in attention_modules()
    }
    return lora_state_dict(modules, ".lora.down.weight", ".lora.up.weight", **options)


def diffusers_lora(**options) -> dict:
    """The same modules as diffusers spells them; the stock loader reads it."""
    modules = {f"transformer.{name}": (HIDDEN, HIDDEN) for name in attention_modules()}
    return lora_state_dict(modules, ".lora_A.weight", ".lora_B.weight", **options)


def kohya_lora(**options) -> dict:
    """Fused native modules as kohya's scripts spell them; the stock loader reads it."""
    shapes = {
        "img_attn_qkv": (3, 1),
        "txt_attn_qkv": (3, 1),
        "img_attn_proj": (1, 1),
        "img_mlp_0": (4, 1),
        "img_mlp_2": (1, 4),
    }
    modules = {
        f"lora_unet_double_blocks_{block}_{name}": (outputs * HIDDEN, inputs * HIDDEN)
        for block in range(DOUBLE_BLOCKS)
        for name, (outputs, inputs) in shapes.items()
    }
    return lora_state_dict(modules, ".lora_down.weight", ".lora_up.weight", ".alpha", **options)


def encoder_lora(**options) -> dict:
    """The same as kohya_lora(), and two modules of the text encoder CLIP-L."""
    wide, narrow = 4 * TEXT_WIDTH, TEXT_WIDTH
    layer = "lora_te1_text_model_encoder_layers_0_mlp"
    modules = {f"{layer}_fc1": (wide, narrow), f"{layer}_fc2": (narrow, wide)}
    encoder = lora_state_dict(modules, ".lora_down.weight", ".lora_up.weight", ".alpha", **options)
    return kohya_lora(**options) | encoder


def write_loras(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(simpletuner_broken_lora(), folder / BROKEN_LORA)
    save_file(diffusers_lora(), folder / DIFFUSERS_LORA, {"format": "pt"})
    save_file(kohya_lora(), folder / KOHYA_LORA, {"ss_network_module": "networks.lora_flux"})


def write_models(comfyui: Path, models: Path) -> None:
    """Write the demo's models and LoRA files (45 MB on disk) into a ComfyUI models folder."""
    from safetensors.torch import save_file

    for folder in ("diffusion_models", "text_encoders", "vae_approx", "loras"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    save_file(flux_state_dict(), models / "diffusion_models" / FLUX)
    write_clip_l(models / "text_encoders" / CLIP_L, comfyui)
    for name, tensors in taef1_state_dicts().items():
        save_file(tensors, models / "vae_approx" / name)
    write_loras(models / "loras")


if __name__ == "__main__":
    import_comfy(Path(sys.argv[1]))
    write_models(Path(sys.argv[1]), Path(sys.argv[2]))
