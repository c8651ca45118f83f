"""LoRA files as the trainers write them: true names, shapes and metadata at full size, zeros in
place of what was trained.

Shapes come from ComfyUI's or diffusers' own models on the meta device. PEFT, diffusers and LyCORIS
name their files themselves. The metadata are what each trainer writes: kohya-ss/sd-scripts
train_network.py, ostris/ai-toolkit toolkit/metadata.py, Nerogar/OneTrainer DtypeModelSaverMixin.py,
bghira/SimpleTuner save_hooks.py, kohya-ss/musubi-tuner trainer_base.py.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import comfy_models
from hollow_files import write_hollow
from lora_locksmith.key_maps.dialect import dialects
from lora_locksmith.planning.names import Spelled, spell
from lora_locksmith.planning.target_model import TargetModel, denoiser_network, encoder_networks

FACTORS = ("lora_A.weight", "lora_B.weight")
KOHYA_FACTORS = ("lora_down.weight", "lora_up.weight")
Shapes = dict[str, "tuple[int, ...]"]

MAKERS: dict[str, Callable[[Path], Path]] = {}


def made(maker: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Put a maker on the list; it writes its file into a folder of its own and returns the path."""
    MAKERS[maker.__name__] = maker
    return maker


def write(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    metadata=None,
    numbers: Mapping[str, float] | None = None,
    dtype="BF16",
) -> Path:
    """Write a safetensors file whose tensors are zeros, a hole on the disk; `numbers`: the F32
    scalars in it, by key.
    """
    told = {key: str(value) for key, value in (metadata or {}).items()}
    scalars = {key: struct.pack("<f", number) for key, number in (numbers or {}).items()}
    return write_hollow(path, {**shapes, **dict.fromkeys(scalars, ("F32",))}, told, dtype, scalars)


def low_rank(modules: Mapping[str, tuple[int, ...]], rank: int, factors=FACTORS) -> Shapes:
    """The two factors of every module (name -> shape of its weight)."""
    down, up = factors
    shapes: Shapes = {}
    for module, (out, *inner) in modules.items():
        shapes[f"{module}.{down}"] = (rank, *inner)
        shapes[f"{module}.{up}"] = (out, rank, *(1 for _ in inner[1:]))
    return shapes


@cache
def target_model(model: str, encoder: str = "") -> TargetModel:
    """ComfyUI's own model at its published size, with text encoders where they are named."""
    encoders = encoder_networks(comfy_models.encoder_shapes(encoder)) if encoder else []
    return TargetModel([denoiser_network(comfy_models.shapes(model)), *encoders])


def spelled(place: TargetModel, dialect: str, network: str = "denoiser") -> list[Spelled]:
    """The network's modules in a dialect."""
    return list(spell(place, place.networks[network], dialects()[dialect]))


def modules(found: Iterable[Spelled], *parts: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape, of the modules whose name has one of `parts` in it (all
    where there are none).
    """
    return {
        module.module: module.shape
        for module in found
        if not parts or any(part in module.module for part in parts)
    }


# kohya's sd-scripts


def sd_scripts(**changes: Any) -> dict[str, str]:
    """What train_network.py writes: every value through str() or json.dumps()."""
    values = {
        "ss_session_id": 2931476155,
        "ss_training_started_at": 1718000000.5,
        "ss_training_finished_at": 1718009060.5,
        "ss_output_name": "ohwx",
        "ss_learning_rate": 0.0001,
        "ss_text_encoder_lr": 5e-05,
        "ss_unet_lr": 0.0001,
        "ss_num_train_images": 250,
        "ss_num_reg_images": 0,
        "ss_num_batches_per_epoch": 125,
        "ss_num_epochs": 10,
        "ss_epoch": 10,
        "ss_batch_size_per_device": 2,
        "ss_total_batch_size": 2,
        "ss_gradient_checkpointing": True,
        "ss_gradient_accumulation_steps": 1,
        "ss_max_train_steps": 1250,
        "ss_steps": 1250,
        "ss_lr_warmup_steps": 100,
        "ss_lr_scheduler": "cosine",
        "ss_network_module": "networks.lora",
        "ss_network_dim": 8,
        "ss_network_alpha": 4.0,
        "ss_network_dropout": None,
        "ss_mixed_precision": "bf16",
        "ss_full_fp16": False,
        "ss_v2": False,
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_clip_skip": None,
        "ss_max_token_length": 225,
        "ss_cache_latents": True,
        "ss_seed": 42,
        "ss_lowram": False,
        "ss_noise_offset": 0.0357,
        "ss_min_snr_gamma": 5.0,
        "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)",
        "ss_max_grad_norm": 1.0,
        "ss_prior_loss_weight": 1.0,
        "ss_training_comment": None,
        "ss_sd_scripts_commit_hash": "25f961bc77fbbbdb5c4dbd8ff8b0e5c0d2a5e0c5",
        "ss_sd_model_name": "sd_xl_base_1.0.safetensors",
        "ss_sd_model_hash": "be9edd61",
        "ss_new_sd_model_hash": "31e35c80" * 8,
        "ss_vae_name": None,
        "ss_resolution": (1024, 1024),
        "ss_caption_dropout_rate": 0.05,
        "ss_enable_bucket": True,
        "ss_min_bucket_reso": 512,
        "ss_max_bucket_reso": 2048,
        "ss_bucket_no_upscale": False,
        "ss_shuffle_caption": True,
        "ss_keep_tokens": 1,
        "ss_flip_aug": False,
        "ss_color_aug": False,
        "ss_random_crop": False,
        "ss_dataset_dirs": json.dumps({"10_ohwx man": {"n_repeats": 10, "img_count": 25}}),
        "ss_reg_dataset_dirs": json.dumps({}),
        "ss_tag_frequency": json.dumps(
            {"10_ohwx man": {"ohwx man": 25, "solo": 17, "smile": 12, "outdoors": 5}}
        ),
        "ss_bucket_info": json.dumps(
            {"buckets": {"0": {"resolution": [832, 1216], "count": 250}}, "mean_img_ar_error": 0.01}
        ),
        "sshs_model_hash": "ab" * 32,
        "sshs_legacy_hash": "cdcdcdcd",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": "ohwx",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.date": "2024-06-10T08:44:20",
        "modelspec.resolution": "1024x1024",
        "modelspec.prediction_type": "epsilon",
    }
    return {key: str(value) for key, value in (values | changes).items() if value != ...}


SDXL_LAYERS = (
    "_transformer_blocks_",
    "_proj_in",
    "_proj_out",
)  # networks/lora.py UNET_TARGET_REPLACE_MODULE: Transformer2DModel
CLIP_LAYERS = ("_self_attn_", "_mlp_")  # TEXT_ENCODER_TARGET_REPLACE_MODULE: CLIPAttention, CLIPMLP


@made
def kohya_sdxl(folder: Path) -> Path:
    """networks.lora with both text encoders."""
    place = target_model("sdxl", "sdxl")
    trained = modules(spelled(place, "kohya"), *SDXL_LAYERS)
    trained |= modules(
        [*spelled(place, "kohya", "clip_l"), *spelled(place, "kohya", "clip_g")], *CLIP_LAYERS
    )
    shapes = low_rank(trained, 8, KOHYA_FACTORS)
    return write(
        folder / "ohwx.safetensors",
        shapes,
        sd_scripts(),
        {f"{name}.alpha": 4.0 for name in trained},
        "F16",
    )


@made
def kohya_flux_split_qkv(folder: Path) -> Path:
    """networks.lora_flux with split_qkv=True: ranks add up when it is saved, the alphas stay
    (lora_flux.py, state_dict).
    """
    trained = modules(
        spelled(target_model("flux1_dev"), "kohya"), "double_blocks_", "single_blocks_"
    )
    shapes: Shapes = {}
    for name, shape in trained.items():
        shapes |= low_rank(
            {name: shape},
            4 * (3 if name.endswith("qkv") else 4 if name.endswith("linear1") else 1),
            KOHYA_FACTORS,
        )
    metadata = sd_scripts(
        ss_network_module="networks.lora_flux",
        ss_base_model_version="flux1",
        ss_network_dim=4,
        ss_network_alpha=4.0,
        ss_network_args=json.dumps({"split_qkv": "True"}),
        ss_sd_model_name="flux1-dev.safetensors",
        ss_text_encoder_lr=...,
        **{
            "modelspec.architecture": "flux-1-dev/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        },
    )
    return write(
        folder / "split.safetensors",
        shapes,
        metadata,
        {f"{name}.alpha": 4.0 for name in trained},
        "BF16",
    )


# What PEFT, diffusers and LyCORIS name themselves


def flux_twin():
    """diffusers' FLUX.1 dev on the meta device."""
    import torch
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


@cache
def named_by_peft(*targets: str, rank: int = 4) -> Shapes:
    """The keys and shapes of an adapter that PEFT puts on FLUX.1's layers, as diffusers' trainings
    get them.
    """
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    twin = flux_twin()
    twin.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)))
    return {key: tuple(tensor.shape) for key, tensor in get_peft_model_state_dict(twin).items()}


ATTENTION = ("to_k", "to_q", "to_v", "add_k_proj", "add_q_proj", "add_v_proj", "to_out.0")


def simpletuner(**changes: str) -> dict[str, str]:
    """save_hooks.py _build_modelspec_metadata."""
    metadata = {
        "format": "pt",
        "global_step": "5000",
        "trained_words": "xyz person",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "flux-dev/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "simpletuner-lora",
        "modelspec.resolution": "1024x1024",
        "ss_tag_frequency": json.dumps({"mine": {"xyz person": 40, "photo": 25}}),
    }
    return metadata | changes


@made
def simpletuner_all(folder: Path) -> Path:
    """--flux_lora_target=all since v0.9.8.3."""
    shapes = named_by_peft(*ATTENTION, "to_add_out")
    settings = {
        "r": 4,
        "lora_alpha": 4,
        "peft_type": "LORA",
        "use_dora": False,
        "use_rslora": False,
        "target_modules": ["to_k", "to_q"],
    }
    metadata = simpletuner(
        lora_adapter_metadata=json.dumps(
            {f"transformer.{name}": value for name, value in settings.items()}
        )
    )
    return write(
        folder / "pytorch_lora_weights.safetensors",
        {f"transformer.{key}": shape for key, shape in shapes.items()},
        metadata,
    )


@made
def simpletuner_wrapper_bug(folder: Path) -> Path:
    """August 2024: PEFT's own prefix left in, no metadata but the format."""
    shapes = {
        f"transformer.base_model.model.{key}": shape
        for key, shape in named_by_peft(*ATTENTION, "to_add_out").items()
    }
    return write(folder / "pytorch_lora_weights.safetensors", shapes, {"format": "pt"})


@made
def simpletuner_buggy_all_ffs(folder: Path) -> Path:
    """--flux_lora_target=all+ffs of v0.9.8.1: most of its names name nothing."""
    names = (
        *ATTENTION,
        "to_add_out.0",
        "ff.0",
        "ff.2",
        "ff_context.0",
        "ff_context.2",
        "proj_mlp",
        "proj_out",
    )
    shapes = {f"transformer.{key}": shape for key, shape in named_by_peft(*names).items()}
    return write(folder / "pytorch_lora_weights.safetensors", shapes, {"format": "pt"})


@made
def peft_with_config(folder: Path) -> Path:
    """PeftModel.save_pretrained: rsLoRA and an alpha, both told only in adapter_config.json beside
    it.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["to_q", "to_v"],
        base_model_name_or_path="flux-dev",
    )
    model = get_peft_model(flux_twin(), config)
    tensors = {
        name: torch.zeros(value.shape, dtype=torch.bfloat16)
        for name, value in model.state_dict().items()
        if "lora_" in name
    }
    model.save_pretrained(folder, state_dict=tensors)
    return folder / "adapter_model.safetensors"


@made
def diffusers_with_metadata(folder: Path) -> Path:
    """FluxPipeline.save_lora_weights with the adapter's settings, DoRA among them: since diffusers
    0.34.
    """
    import torch
    from diffusers import FluxPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    twin = flux_twin()
    config = LoraConfig(
        r=4, lora_alpha=2, use_dora=True, target_modules=["to_q", "to_k"], init_lora_weights=False
    )
    twin.add_adapter(config)
    layers = {
        key: torch.zeros(value.shape, dtype=torch.bfloat16)
        for key, value in get_peft_model_state_dict(twin).items()
    }
    settings = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in config.to_dict().items()
    }
    FluxPipeline.save_lora_weights(
        folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=settings
    )
    return folder / "pytorch_lora_weights.safetensors"


def lycoris_file(
    path: Path, module, metadata: Mapping[str, str], preset: Mapping[str, Any], **settings: Any
) -> Path:
    """LyCORIS' prefix around a module, saved by itself."""
    import torch
    from lycoris import LycorisNetwork, create_lycoris
    from trainers import lycoris_as_before

    logging.getLogger("LyCORIS").setLevel(logging.CRITICAL)
    with lycoris_as_before():
        LycorisNetwork.apply_preset({"enable_conv": False, **preset})
        network = create_lycoris(module, 1.0, **settings)
        network.apply_to()
    tensors = network.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    numbers = {key: float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")}
    assert not any(tensor.dtype is torch.int64 for tensor in tensors.values())
    return write(
        path, {key: shape for key, shape in shapes.items() if key not in numbers}, metadata, numbers
    )


@made
def lycoris_lokr(folder: Path) -> Path:
    """LoKr of full matrices on FLUX.1's attention and feed-forward layers, with SimpleTuner's
    metadata.
    """
    config = {
        "algo": "lokr",
        "multiplier": 1.0,
        "linear_dim": 10000,
        "linear_alpha": 1,
        "factor": 16,
    }
    preset = {"target_module": ["FluxAttention", "FeedForward"]}
    metadata = simpletuner(lycoris_config=json.dumps(config | {"apply_preset": preset}))
    return lycoris_file(
        folder / "lokr.safetensors",
        flux_twin(),
        metadata,
        preset,
        linear_dim=10000,
        linear_alpha=1,
        algo="lokr",
        factor=16,
    )


@made
def lycoris_loha(folder: Path) -> Path:
    """LoHa on a Stable Diffusion 1.5, attention only."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    preset = {"target_module": ["Attention"], "target_name": []}
    return lycoris_file(
        folder / "loha.safetensors", unet, {}, preset, linear_dim=4, linear_alpha=2, algo="loha"
    )


# The other trainers


def ai_toolkit(**changes: str) -> dict[str, str]:
    software = {
        "name": "ai-toolkit",
        "repo": "https://github.com/ostris/ai-toolkit",
        "version": "0.7.2",
    }
    metadata = {
        "name": "my_first_lora",
        "version": "1.0",
        "format": "pt",
        "training_info": json.dumps({"step": 2000, "epoch": 12}),
        "software": json.dumps(software),
        "ss_output_name": "my_first_lora",
        "sshs_model_hash": "ef" * 32,
        "sshs_legacy_hash": "01234567",
    }
    return metadata | changes


@made
def ai_toolkit_flux(folder: Path) -> Path:
    """All linear layers inside of the blocks, as its FLUX.1 example trains them."""
    blocks = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.")
    trained = modules(spelled(target_model("flux1_dev"), "diffusers"), *blocks)
    tags = json.dumps({"1_p3rs0n": {"p3rs0n": 1}})
    metadata = ai_toolkit(
        ss_base_model_version="flux.1", ss_tag_frequency=tags, trigger_word="p3rs0n"
    )
    return write(folder / "my_first_lora.safetensors", low_rank(trained, 16), metadata)


@made
def ai_toolkit_wan(folder: Path) -> Path:
    """Wan 2.2 14B, the high noise half: native names."""
    trained = modules(
        spelled(target_model("wan21_t2v_14b"), "diffusion_pipe"),
        ".self_attn.",
        ".cross_attn.",
        ".ffn.",
    )
    return write(
        folder / "wan22_high_noise.safetensors",
        low_rank(trained, 4),
        ai_toolkit(ss_base_model_version="wan22_14b"),
    )


@made
def onetrainer_sdxl_dora(folder: Path) -> Path:
    """DoRA on the attention layers and CLIP-L, per-input magnitudes as OneTrainer's default is."""
    place = target_model("sdxl", "sdxl")
    trained = modules(spelled(place, "kohya"), "_attn1_", "_attn2_") | modules(
        spelled(place, "kohya", "clip_l"), "_self_attn_"
    )
    shapes = low_rank(trained, 8, KOHYA_FACTORS) | {
        f"{name}.dora_scale": (1, shape[1]) for name, shape in trained.items()
    }
    settings = {
        "training_method": "LORA",
        "model_type": "STABLE_DIFFUSION_XL_10_BASE",
        "base_model_name": "stabilityai/sdxl",
        "peft_type": "LORA",
        "lora_rank": 8,
        "lora_alpha": 1.0,
        "lora_decompose": True,
        "learning_rate": 0.0003,
        "resolution": "1024",
        "epochs": 100,
        "optimizer": {"optimizer": "PRODIGY", "weight_decay": 0.01},
        "layer_filter": "attn",
        "tensorboard": True,
    }
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.date": "2024-11-05",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "Stable Diffusion XL 1.0 Base LoRA",
        "modelspec.hash_sha256": "0x" + "aa" * 32,
        "ot_branch": "master",
        "ot_revision": "9b2a6d8",
        "ot_config": json.dumps(settings),
        "ss_base_model_version": "sdxl_",
    }
    return write(
        folder / "dora.safetensors", shapes, metadata, {f"{name}.alpha": 1.0 for name in trained}
    )


@made
def musubi_qwen_image(folder: Path) -> Path:
    """networks.lora_qwen_image: all linear layers of the blocks but the
    modulation (exclude_mod).
    """
    trained = modules(
        spelled(target_model("qwen_image"), "musubi_tuner"), "_attn_", "_img_mlp_", "_txt_mlp_"
    )
    datasets = [
        {
            "resolution": [1024, 1024],
            "batch_size_per_device": 1,
            "num_repeats": 1,
            "image_directory": "pictures",
        }
    ]
    metadata = {
        "ss_network_module": "networks.lora_qwen_image",
        "ss_network_dim": "4",
        "ss_network_alpha": "1.0",
        "ss_base_model_version": "qwen_image",
        "ss_output_name": "style",
        "ss_steps": "1600",
        "ss_learning_rate": "5e-05",
        "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit",
        "ss_mixed_precision": "bf16",
        "ss_datasets": json.dumps(datasets),
        "sshs_model_hash": "ab" * 32,
        "sshs_legacy_hash": "89abcdef",
        "modelspec.architecture": "Qwen-Image/lora",
        "modelspec.title": "style",
    }
    return write(
        folder / "style.safetensors",
        low_rank(trained, 4, KOHYA_FACTORS),
        metadata,
        {f"{name}.alpha": 1.0 for name in trained},
    )


@made
def diffusion_pipe_wan(folder: Path) -> Path:
    """Wan 2.1 1.3B: every linear layer of the blocks; settings beside the file."""
    trained = modules(
        spelled(target_model("wan21_t2v_1_3b"), "diffusion_pipe"),
        ".self_attn.",
        ".cross_attn.",
        ".ffn.",
    )
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["q", "k", "v"],
        "use_rslora": False,
        "use_dora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return write(folder / "adapter_model.safetensors", low_rank(trained, 8), {"format": "pt"})


@made
def xlabs_flux(folder: Path) -> Path:
    """x-flux: processors on the double blocks' attention."""
    shapes: Shapes = {}
    for block in range(19):
        for side in ("1", "2"):
            for layer, out in (("qkv", 9216), ("proj", 3072)):
                shapes |= low_rank(
                    {f"double_blocks.{block}.processor.{layer}_lora{side}": (out, 3072)},
                    16,
                    ("down.weight", "up.weight"),
                )
    return write(folder / "lora.safetensors", shapes)


@made
def diffsynth_qwen(folder: Path) -> Path:
    """DiffSynth-Studio's Qwen-Image example: bare names with PEFT's adapter name, no metadata."""
    parts = (".attn.", ".img_mlp.net.2", ".img_mod.1", ".txt_mlp.net.2", ".txt_mod.1")
    trained = modules(spelled(target_model("qwen_image"), "diffsynth"), *parts)
    return write(
        folder / "epoch-4.safetensors",
        low_rank(trained, 4, ("lora_A.default.weight", "lora_B.default.weight")),
    )


# Files with something wrong


@made
def broken(folder: Path) -> Path:
    """A cut and badly merged file: adapters that lack a factor, alphas that are no numbers or 0,
    one module under two names.
    """
    trained = modules(
        spelled(target_model("flux1_dev"), "kohya"),
        "double_blocks_0_",
        "double_blocks_1_",
        "double_blocks_2_",
    )
    shapes = low_rank(trained, 4, KOHYA_FACTORS)
    names = list(trained)
    for name in names[:3]:
        del shapes[f"{name}.lora_up.weight"]
    shapes |= low_rank({"transformer.transformer_blocks.1.attn.to_out.0": (3072, 3072)}, 4)
    shapes |= low_rank(
        {
            "lora_unet_double_blocks_2_img_mlp_1": (3072, 3072),
            "lora_unet_double_blocks_3_img_attn_proj": (640, 640),
        },
        4,
        KOHYA_FACTORS,
    )
    shapes |= {
        "lora_unet_double_blocks_2_img_attn_proj.lora_sideways.weight": (4, 3072),
        "lora_unet_double_blocks_2_txt_mlp_2.lora_A.weight": (4, 12288),
    }
    numbers = {f"{name}.alpha": 4.0 for name in names}
    numbers |= {
        f"{names[4]}.alpha": float("nan"),
        f"{names[5]}.alpha": 0.0,
        f"{names[6]}.alpha": -4.0,
        f"{names[7]}.alpha": 4000.0,
    }
    metadata = {
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": "four",
        "ss_tag_frequency": '{"a": {"b"',
        "note": "<b>|`x`",
    }
    return write(folder / "b`roken`.safetensors", shapes, metadata, numbers)


@made
def unknown_family(folder: Path) -> Path:
    """A model of one's own that no table knows."""
    trained = {
        f"backbone.stage{i % 4}.mixer.{name}": (96, 96)
        for i in range(4)
        for name in ("query", "value")
    }
    return write(folder / "mine.safetensors", low_rank(trained, 4))


@made
def several_families(folder: Path) -> Path:
    """Nothing but the query and value of attention in blocks that several models have, of a size
    the file alone does not tell apart.
    """
    trained = {
        f"transformer.transformer_blocks.{i}.attn.{name}": (3072, 3072)
        for i in range(3)
        for name in ("to_q", "to_v")
    }
    return write(folder / "attention.safetensors", low_rank(trained, 4))


@made
def text_encoder_only(folder: Path) -> Path:
    """sd-scripts with --network_train_text_encoder_only on Stable Diffusion 1.5."""
    trained = modules(spelled(target_model("sd15", "sd15"), "kohya", "clip_l"), *CLIP_LAYERS)
    metadata = sd_scripts(
        ss_base_model_version="sd_v1",
        ss_sd_model_name="v1-5-pruned.safetensors",
        ss_unet_lr=None,
        ss_resolution=(512, 512),
        **{"modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.resolution": "512x512"},
    )
    return write(
        folder / "te.safetensors",
        low_rank(trained, 8, KOHYA_FACTORS),
        metadata,
        {f"{name}.alpha": 4.0 for name in trained},
        "F16",
    )


@made
def no_lora(folder: Path) -> Path:
    """A VAE put among the LoRAs."""
    shapes = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.conv_in.bias": (512,),
    }
    return write(folder / "vae.safetensors", shapes, dtype="F32")
