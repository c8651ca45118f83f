"""ComfyUI's own models at their published sizes on torch's meta device: the name and shape of every
weight, and no memory.

The configurations are those comfy.model_detection reads off the published files. Call import_comfy
(tiny_models.py) first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

Shapes = Mapping[str, "tuple[int, ...]"]


class Model(NamedTuple):
    """One published model: its family (the table's name), its class in comfy.supported_models, and
    its configuration.
    """

    family: str
    kind: str
    config: dict[str, Any]
    published: bool = True  # False: a stage or size the table states no @sizes for
    beside: Mapping[
        str, tuple[int, ...]
        # weights of its file that ComfyUI needs to build it, though they are no part of the network
    ] = {}
    shows: str = ""  # a weight by which a ComfyUI tells that it knows this version of the model


class NotInThisComfyUI(LookupError):
    """The ComfyUI under test is too old to know the model."""


UNET = {
    "use_checkpoint": False,
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "legacy": False,
}
SD15 = {
    **UNET,
    "adm_in_channels": None,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "num_heads": 8,
}
SD21 = {key: value for key, value in SD15.items() if key != "num_heads"} | {
    "use_linear_in_transformer": True,
    "context_dim": 1024,
    "num_head_channels": 64,
}
SDXL = {
    **UNET,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
}
SDXL_REFINER = {
    **SDXL,
    "adm_in_channels": 2560,
    "model_channels": 384,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
    "transformer_depth_middle": 4,
    "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
    "context_dim": 1280,
}
KOALA = {
    **SDXL,
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 2, 5],
    "transformer_depth_output": [0, 0, 2, 2, 5, 5],
    "transformer_depth_middle": -2,
}
SDXS = {
    **{key: value for key, value in SD15.items() if key != "num_heads"},
    "num_head_channels": 64,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": -2,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "hidden_size": 3072,
    "num_heads": 24,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
    "mlp_ratio": 4.0,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "txt_ids_dims": [],
    "qkv_bias": True,
    "guidance_embed": True,
    "yak_mlp": False,
    "txt_norm": False,
}
CHROMA = {
    key: value
    for key, value in FLUX.items()
    if key not in ("guidance_embed", "yak_mlp", "txt_norm")
} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "vec_in_dim": None,
    "in_dim": 64,
    "out_dim": 3072,
    "hidden_dim": 5120,
    "n_layers": 5,
}
RADIANCE = {
    **CHROMA,
    "image_model": "chroma_radiance",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 16,
    "nerf_hidden_size": 64,
    "nerf_mlp_ratio": 4,
    "nerf_depth": 4,
    "nerf_max_freqs": 8,
    "nerf_tile_size": 512,
    "nerf_embedder_dtype": None,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}
HUNYUAN_VIDEO = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "hidden_size": 3072,
    "num_heads": 24,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
    "mlp_ratio": 4.0,
    "depth": 20,
    "depth_single_blocks": 40,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "qkv_bias": True,
    "byt5": False,
    "guidance_embed": True,
    "meanflow": False,
    "meanflow_sum": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
HUNYUAN_IMAGE = {
    **HUNYUAN_VIDEO,
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": [1, 1],
    "axes_dim": [64, 64],
    "hidden_size": 3584,
    "num_heads": 28,
    "context_in_dim": 3584,
    "vec_in_dim": None,
    "byt5": True,
    "guidance_embed": False,
}
HUNYUAN_VIDEO_15 = {
    **HUNYUAN_VIDEO,
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "hidden_size": 2048,
    "num_heads": 16,
    "context_in_dim": 3584,
    "vec_in_dim": None,
    "depth": 54,
    "depth_single_blocks": 0,
    "byt5": True,
    "guidance_embed": False,
    "meanflow_sum": True,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
}
HUNYUAN_DIT = {"image_model": "hydit", "depth": 40, "hidden_size": 1408, "mlp_ratio": 4.3637}
PIXART = {
    "image_model": "pixart_sigma",
    "num_heads": 16,
    "patch_size": 2,
    "hidden_size": 1152,
    "in_channels": 4,
    "depth": 28,
    "model_max_length": 300,
    "input_size": 128,
    "pe_interpolation": 2,
    "micro_condition": False,
}
KANDINSKY = {
    "image_model": "kandinsky5",
    "model_dim": 1792,
    "axes_dims": (16, 24, 24),
    "time_dim": 512,
    "ff_dim": 7168,
    "visual_embed_dim": 132,
    "num_text_blocks": 2,
    "num_visual_blocks": 32,
}
COSMOS = {
    "image_model": "cosmos_predict2",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 2048,
    "num_blocks": 28,
    "num_heads": 16,
    "concat_padding_mask": True,
    "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 256,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0,
    "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0,
    "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}
COSMOS_1 = {
    "image_model": "cosmos",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 4096,
    "block_config": "FA-CA-MLP",
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": False,
    "pos_emb_interpolation": "crop",
    "block_x_format": "THWBD",
    "affline_emb_norm": True,
    "use_adaln_lora": True,
    "adaln_lora_dim": 256,
    "num_blocks": 28,
    "num_heads": 32,
    "extra_per_block_abs_pos_emb": True,
    "rope_h_extrapolation_ratio": 1.0,
    "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 2.0,
    "extra_per_block_abs_pos_emb_type": "learnable",
}
Z_IMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 30,
    "n_heads": 30,
    "n_kv_heads": 30,
    "qk_norm": True,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
LUMINA2 = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 2304,
    "cap_feat_dim": 2304,
    "n_layers": 26,
    "n_heads": 24,
    "n_kv_heads": 8,
    "qk_norm": True,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
PIXEL_DECODER = {
    "image_model": "zimage_pixel",
    "patch_size": 32,
    "in_channels": 3,
    "decoder_in_channels": 3,
    "decoder_hidden_size": 3840,
    "decoder_num_res_blocks": 4,
    "decoder_max_freqs": 8,
}
HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 128,
    "axes_dims_rope": [64, 32, 32],
    "caption_channels": [4096, 4096],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "llama_layers": [*range(32), *[31] * 16],
    "num_attention_heads": 20,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "num_layers": 16,
    "num_single_layers": 32,
    "text_emb_dim": 2048,
}
ACE_STEP = {
    "audio_model": "ace",
    "attention_head_dim": 128,
    "num_attention_heads": 20,
    "inner_dim": 2560,
    "num_layers": 24,
    "in_channels": 8,
    "out_channels": 8,
    "patch_size": [16, 1],
    "max_height": 16,
    "max_width": 32768,
    "max_position": 32768,
    "mlp_ratio": 2.5,
    "rope_theta": 1000000.0,
    "speaker_embedding_dim": 512,
    "text_embedding_dim": 768,
    "ssl_encoder_depths": [8, 8],
    "ssl_latent_dims": [1024, 768],
    "ssl_names": ["mert", "m-hubert"],
    "lyric_encoder_vocab_size": 6693,
    "lyric_hidden_size": 1024,
}
ACE_STEP_15 = {
    "audio_model": "ace1.5",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_heads": 16,
    "encoder_hidden_size": 2048,
    "encoder_intermediate_size": 6144,
    "encoder_num_heads": 16,
    "num_dit_layers": 24,
}
MOCHI = {
    "image_model": "mochi_preview",
    "depth": 48,
    "patch_size": 2,
    "num_heads": 24,
    "hidden_size_x": 3072,
    "hidden_size_y": 1536,
    "mlp_ratio_x": 4.0,
    "mlp_ratio_y": 4.0,
    "learn_sigma": False,
    "in_channels": 12,
    "qk_norm": True,
    "qkv_bias": False,
    "out_bias": True,
    "attn_drop": 0.0,
    "patch_embed_bias": True,
    "posenc_preserve_area": True,
    "timestep_mlp_bias": True,
    "attend_to_padding": False,
    "timestep_scale": 1000.0,
    "use_t5": True,
    "t5_feat_dim": 4096,
    "t5_token_length": 256,
    "rope_theta": 10000.0,
}
OMNIGEN2 = {
    "image_model": "omnigen2",
    "axes_dim_rope": [40, 40, 40],
    "axes_lens": [1024, 1664, 1664],
    "ffn_dim_multiplier": None,
    "hidden_size": 2520,
    "in_channels": 16,
    "out_channels": None,
    "patch_size": 2,
    "multiple_of": 256,
    "norm_eps": 1e-05,
    "num_attention_heads": 21,
    "num_kv_heads": 7,
    "num_layers": 32,
    "num_refiner_layers": 2,
    "text_feat_dim": 2048,
    "timestep_scale": 1000.0,
}
KREA2 = {
    "image_model": "krea2",
    "features": 6144,
    "channels": 16,
    "patch": 2,
    "layers": 28,
    "heads": 48,
    "kvheads": 12,
    "txtlayers": 12,
    "txtdim": 2560,
}
LTX2 = {
    "image_model": "ltxav",
    "num_layers": 48,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
}
LTX23 = {
    "apply_gated_attention": True,
    "connector_apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "connector_num_layers": 8,
}
COGVIDEOX = {
    "image_model": "cogvideox",
    "num_attention_heads": 30,
    "attention_head_dim": 64,
    "time_embed_dim": 512,
    "num_layers": 30,
    "in_channels": 16,
    "patch_size": 2,
    "text_embed_dim": 4096,
    "use_learned_positional_embeddings": False,
    "use_rotary_positional_embeddings": True,
}
HUNYUAN_3D = {
    "image_model": "hunyuan3d2",
    "in_channels": 64,
    "context_in_dim": 1536,
    "hidden_size": 1024,
    "mlp_ratio": 4.0,
    "num_heads": 16,
    "depth": 16,
    "depth_single_blocks": 32,
    "qkv_bias": True,
    "guidance_embed": False,
}
SEEDVR2 = {"image_model": "seedvr2", "norm_eps": 1e-5}
SEEDVR2_7B = {
    **SEEDVR2,
    "vid_dim": 3072,
    "heads": 24,
    "num_layers": 36,
    "rope_type": "rope3d",
    "rope_dim": 64,
}
STABLE_AUDIO = {
    "audio_model": "dit1.0",
    "global_cond_dim": 1536,
    "project_cond_tokens": False,
    "embed_dim": 1536,
    "timestep_features_type": "learned",
    "io_channels": 64,
    "input_concat_dim": 0,
    "depth": 24,
}
STABLE_AUDIO_3 = {
    "audio_model": "dit1.0",
    "global_cond_dim": 768,
    "project_cond_tokens": True,
    "embed_dim": 1536,
    "num_memory_tokens": 64,
    "attn_kwargs": {"qk_norm": "rms", "differential": True},
    "norm_type": "rms_norm",
    "num_heads": 24,
    "timestep_features_type": "expo",
    "io_channels": 256,
    "input_concat_dim": 0,
    "local_add_cond_dim": 257,
    "global_cond_shared_embed": True,
    "global_cond_type": "adaLN",
    "depth": 24,
}
CASCADE_B = {
    "stable_cascade_stage": "b",
    "c_hidden": [320, 640, 1280, 1280],
    "nhead": [-1, -1, 20, 20],
    "blocks": [[2, 6, 28, 6], [6, 28, 6, 2]],
    "block_repeat": [[1, 1, 1, 1], [3, 3, 2, 2]],
}


def flux2(
    hidden: int, double_blocks: int, single_blocks: int, context: int, guidance: bool
) -> dict[str, Any]:
    return {
        **FLUX,
        "image_model": "flux2",
        "in_channels": 128,
        "out_channels": 128,
        "patch_size": 1,
        "hidden_size": hidden,
        "num_heads": hidden // 128,
        "context_in_dim": context,
        "vec_in_dim": None,
        "mlp_ratio": 3.0,
        "depth": double_blocks,
        "depth_single_blocks": single_blocks,
        "axes_dim": [32, 32, 32, 32],
        "theta": 2000,
        "txt_ids_dims": [3],
        "qkv_bias": False,
        "ops_bias": False,
        "guidance_embed": guidance,
        "global_modulation": True,
        "mlp_silu_act": True,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
    }


def sd3(
    depth: int, patches: int = 192, normed: bool = True, self_attention_blocks: int = 0
) -> dict[str, Any]:
    config = {
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "depth": depth,
        "input_size": None,
        "adm_in_channels": 2048,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": 4096, "out_features": depth * 64},
        },
        "num_patches": patches * patches,
        "pos_embed_max_size": patches,
        "pos_embed_scaling_factor": None,
        "x_block_self_attn_layers": list(range(self_attention_blocks)),
    }
    return {**config, "qk_norm": "rms"} if normed else config


def wan(
    kind: str,
    hidden: int = 5120,
    mlp: int = 13824,
    layers: int = 40,
    channels: int = 16,
    **more: Any,
) -> dict[str, Any]:
    return {
        "image_model": "wan2.1",
        "model_type": kind,
        "dim": hidden,
        "ffn_dim": mlp,
        "num_layers": layers,
        "num_heads": hidden // 128,
        "in_dim": channels,
        "out_dim": 16,
        "patch_size": (1, 2, 2),
        "freq_dim": 256,
        "window_size": (-1, -1),
        "qk_norm": True,
        "cross_attn_norm": True,
        "eps": 1e-6,
        **more,
    }


MODELS: dict[str, Model] = {
    "sd15": Model("sd15", "SD15", SD15),
    "sd21": Model("sd21", "SD20", SD21),
    "sdxl": Model("sdxl", "SDXL", SDXL),
    "sdxl_refiner": Model("sdxl_refiner", "SDXLRefiner", SDXL_REFINER),
    "koala_700m": Model("koala", "KOALA_700M", KOALA, published=False),
    "koala_1b": Model(
        "koala",
        "KOALA_1B",
        {
            **KOALA,
            "transformer_depth": [0, 2, 6],
            "transformer_depth_output": [0, 0, 2, 2, 6, 6],
            "transformer_depth_middle": 6,
        },
        published=False,
    ),
    "sdxs": Model("koala", "SD15", SDXS, published=False),
    "sdxs_09": Model(
        "koala",
        "SD20",
        {
            **SDXS,
            "transformer_depth": [1, 1, 1],
            "transformer_depth_output": [1] * 6,
            "use_linear_in_transformer": True,
            "context_dim": 1024,
            "disable_self_attentions": [True, False, False],
        },
        published=False,
    ),
    "lotus": Model(
        "sd21",
        "LotusD",
        {**SD21, "adm_in_channels": 4, "num_classes": "sequential"},
        published=False,
    ),
    "stable_cascade_c": Model(
        "stable_cascade", "Stable_Cascade_C", {"stable_cascade_stage": "c", "c_cond": 2048}
    ),
    "stable_cascade_b": Model("stable_cascade", "Stable_Cascade_B", CASCADE_B, published=False),
    "sd3_medium": Model("sd3", "SD3", sd3(24, normed=False)),
    "sd35_medium": Model("sd3", "SD3", sd3(24, patches=384, self_attention_blocks=13)),
    "sd35_large": Model("sd3", "SD3", sd3(38)),
    "auraflow": Model(
        "auraflow",
        "AuraFlow",
        {"max_seq": 9216, "cond_seq_dim": 2048, "n_double_layers": 4, "n_layers": 36},
    ),
    "pixart_sigma": Model("pixart", "PixArtSigma", PIXART),
    "pixart_alpha": Model(
        "pixart", "PixArtAlpha", {**PIXART, "image_model": "pixart_alpha", "micro_condition": True}
    ),
    "hunyuandit": Model("hunyuandit", "HunyuanDiT", HUNYUAN_DIT),
    "hunyuandit_1": Model(
        "hunyuandit",
        "HunyuanDiT1",
        {**HUNYUAN_DIT, "image_model": "hydit1", "size_cond": True, "use_style_cond": True},
    ),
    "flux1_dev": Model("flux1", "Flux", FLUX),
    "flux1_schnell": Model("flux1", "FluxSchnell", {**FLUX, "guidance_embed": False}),
    "flux1_fill": Model("flux1", "FluxInpaint", {**FLUX, "in_channels": 96}),
    "longcat_image": Model(
        "longcat_image",
        "LongCatImage",
        {
            **FLUX,
            "vec_in_dim": None,
            "context_in_dim": 3584,
            "guidance_embed": False,
            "depth": 10,
            "depth_single_blocks": 20,
            "txt_ids_dims": [1, 2],
        },
    ),
    "ovis_image": Model(
        "ovis_image",
        "Flux",
        {
            **FLUX,
            "depth": 6,
            "depth_single_blocks": 27,
            "context_in_dim": 2048,
            "vec_in_dim": None,
            "guidance_embed": False,
            "yak_mlp": True,
            "txt_norm": True,
            "txt_ids_dims": [1, 2],
        },
    ),
    "flux2_dev": Model("flux2", "Flux2", flux2(6144, 8, 48, 15360, True)),
    "flux2_klein_4b": Model("flux2", "Flux2", flux2(3072, 5, 20, 7680, False)),
    "flux2_klein_9b": Model("flux2", "Flux2", flux2(4096, 8, 24, 12288, False)),
    "chroma": Model("chroma", "Chroma", CHROMA),
    "chroma_radiance": Model(
        "chroma", "ChromaRadiance", {**RADIANCE, "nerf_final_head_type": "conv"}
    ),
    "chroma_radiance_linear": Model(
        "chroma", "ChromaRadiance", {**RADIANCE, "nerf_final_head_type": "linear"}
    ),
    "hunyuan_video": Model("hunyuan_video", "HunyuanVideo", HUNYUAN_VIDEO),
    "hunyuan_video_i2v": Model(
        "hunyuan_video", "HunyuanVideoI2V", {**HUNYUAN_VIDEO, "in_channels": 33}
    ),
    "hunyuan_video_15": Model("hunyuan_video_15", "HunyuanVideo15", HUNYUAN_VIDEO_15),
    "hunyuan_video_15_distilled": Model(
        "hunyuan_video_15",
        "HunyuanVideo15",
        {**HUNYUAN_VIDEO_15, "meanflow": True, "guidance_embed": True},
    ),
    "hunyuan_image_21": Model("hunyuan_image_21", "HunyuanImage21", HUNYUAN_IMAGE),
    "hunyuan_image_21_distilled": Model(
        "hunyuan_image_21",
        "HunyuanImage21",
        {**HUNYUAN_IMAGE, "meanflow": True, "guidance_embed": True},
    ),
    "hidream": Model("hidream", "HiDream", HIDREAM),
    "hidream_o1": Model("hidream_o1", "HiDreamO1", {"image_model": "hidream_o1"}),
    "kandinsky5_lite": Model("kandinsky5", "Kandinsky5", KANDINSKY),
    "omnigen2": Model("omnigen2", "Omnigen2", OMNIGEN2),
    "qwen_image": Model(
        "qwen_image",
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60},
    ),
    "qwen_image_layered": Model(
        "qwen_image",
        "QwenImage",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 60,
            "use_additional_t_cond": True,
        },
    ),
    "qwen_image_21": Model("qwen_image_21", "QwenImage21", {"image_model": "qwen_image21"}),
    "qwen_image_21_apart": Model(
        "qwen_image_21",
        "QwenImage21",
        {"image_model": "qwen_image21", "fused_mlp": False},
        published=False,
    ),
    "z_image": Model("z_image", "ZImage", Z_IMAGE),
    "z_image_omni": Model("z_image", "ZImage", {**Z_IMAGE, "siglip_feat_dim": 1152}),
    "z_image_pixel": Model("z_image", "ZImagePixelSpace", {**Z_IMAGE, **PIXEL_DECODER}),
    "lumina2": Model("lumina2", "Lumina2", LUMINA2),
    "lumina2_newbie": Model(
        "lumina2", "Lumina2", {**LUMINA2, "cap_feat_dim": 2560, "clip_text_dim": 1024}
    ),
    "wan21_t2v_1_3b": Model("wan", "WAN21_T2V", wan("t2v", 1536, 8960, 30)),
    "wan21_t2v_14b": Model("wan", "WAN21_T2V", wan("t2v")),
    "wan21_i2v_14b": Model("wan", "WAN21_I2V", wan("i2v", channels=36)),
    "wan21_flf2v_14b": Model(
        "wan", "WAN21_I2V", wan("i2v", channels=36, flf_pos_embed_token_number=514)
    ),
    "wan21_vace_14b": Model("wan", "WAN21_Vace", wan("vace", vace_in_dim=96, vace_layers=8)),
    "wan21_fun_14b": Model(
        "wan", "WAN21_FunControl2V", wan("i2v", channels=48, in_dim_ref_conv=16), published=False
    ),
    "wan22_i2v_14b": Model("wan", "WAN21_T2V", wan("t2v", channels=36)),
    "wan22_ti2v_5b": Model("wan", "WAN22_T2V", wan("t2v", 3072, 14336, 30, 48, out_dim=48)),
    "wan21_camera": Model("wan", "WAN21_Camera", wan("camera", channels=32), published=False),
    "wan21_humo": Model("wan", "WAN21_HuMo", wan("humo", channels=36), published=False),
    "wan21_scail": Model("wan", "WAN21_SCAIL", wan("scail", channels=20), published=False),
    "wan21_scail2": Model("wan", "WAN21_SCAIL2", wan("scail2", channels=20), published=False),
    "wan22_s2v": Model("wan", "WAN22_S2V", wan("s2v"), published=False),
    "wan22_animate": Model("wan", "WAN22_Animate", wan("animate", channels=36), published=False),
    "wan_animate2": Model("wan", "WAN_Animate2", wan("animate2", channels=36)),
    "wan22_dancer": Model("wan", "WAN22_WanDancer", wan("wandancer", channels=36), published=False),
    "ltxv_2b": Model(
        "ltxv",
        "LTXV",
        {
            "image_model": "ltxv",
            "num_layers": 28,
            "attention_head_dim": 64,
            "cross_attention_dim": 2048,
        },
    ),
    "ltxv_13b": Model(
        "ltxv",
        "LTXV",
        {
            "image_model": "ltxv",
            "num_layers": 48,
            "attention_head_dim": 128,
            "cross_attention_dim": 4096,
        },
    ),
    "ltx2": Model("ltx2", "LTXAV", LTX2),
    "ltx23": Model("ltx2", "LTXAV", {**LTX2, **LTX23}),
    "ltx25": Model(
        "ltx2",
        "LTXAV",
        {**LTX2, **LTX23, "ff_bias": False, "use_keyframes_abs_pos_embedding": True},
        shows="keyframes_abs_pos_embedding",
    ),
    "cosmos1_7b": Model("cosmos1", "CosmosT2V", COSMOS_1),
    "cosmos1_14b": Model(
        "cosmos1",
        "CosmosT2V",
        {
            **COSMOS_1,
            "model_channels": 5120,
            "num_blocks": 36,
            "num_heads": 40,
            "rope_h_extrapolation_ratio": 2.0,
            "rope_w_extrapolation_ratio": 2.0,
        },
    ),
    "cosmos_predict2_2b": Model("cosmos_predict2", "CosmosT2IPredict2", COSMOS),
    "anima": Model("anima", "Anima", {**COSMOS, "image_model": "anima"}),
    "krea2": Model("krea2", "Krea2", KREA2),
    "ernie": Model("ernie", "ErnieImage", {"image_model": "ernie"}),
    "mochi": Model("mochi", "GenmoMochi", MOCHI),
    "ace_step": Model("ace_step", "ACEStep", ACE_STEP),
    "ace_step_15": Model("ace_step_15", "ACEStep15", ACE_STEP_15),
    "ideogram4": Model(
        "ideogram4", "Ideogram4", {"image_model": "ideogram4", "in_channels": 128, "num_layers": 34}
    ),
    "cogvideox_2b": Model(
        "cogvideox",
        "CogVideoX_T2V",
        {
            **COGVIDEOX,
            "use_learned_positional_embeddings": True,
            "use_rotary_positional_embeddings": False,
        },
    ),
    "cogvideox_15_5b": Model(
        "cogvideox",
        "CogVideoX_I2V",
        {
            **COGVIDEOX,
            "num_attention_heads": 48,
            "num_layers": 42,
            "in_channels": 32,
            "patch_size_t": 2,
            "ofs_embed_dim": 512,
        },
    ),
    "minimax_h3": Model("minimax_h3", "MiniMaxH3", {"image_model": "minimax_h3"}),
    "minimax_h3_curve": Model(
        "minimax_h3",
        "MiniMaxH3",
        {"image_model": "minimax_h3", "adaln_curve_grid": 1024, "time_embed_dim": 8},
        published=False,
        shows="adaln_t_table",
    ),
    "minimax_h3_vsa": Model(
        "minimax_h3",
        "MiniMaxH3",
        {"image_model": "minimax_h3", "gate_compress": True},
        published=False,
        shows="blocks.0.attn.to_gate_compress.weight",
    ),
    "minimax_music3": Model("minimax_music3", "MiniMaxMusic3", {"audio_model": "minimax_music3"}),
    "mage_flow": Model("mage_flow", "MageFlow", {"image_model": "mage_flow"}),
    "joyimage": Model("joyimage", "JoyImage", {"image_model": "joyimage"}),
    "boogu": Model("boogu", "Boogu", {"image_model": "boogu"}),
    "lens": Model("lens", "Lens", {"image_model": "lens"}),
    "lens_single": Model(
        "lens",
        "Lens",
        {"image_model": "lens", "multi_layer_encoder_feature": False, "selected_layer_index": (0,)},
        published=False,
    ),
    "stable_audio": Model(
        "stable_audio",
        "StableAudio",
        STABLE_AUDIO,
        beside={
            f"conditioner.conditioners.{number}.embedder.embedding.{name}": shape
            for number in ("seconds_start", "seconds_total")
            for name, shape in {
                "0.weights": (128,),
                "1.weight": (768, 257),
                "1.bias": (768,),
            }.items()
        },
    ),
    "stable_audio_3": Model(
        "stable_audio_3",
        "StableAudio3",
        STABLE_AUDIO_3,
        beside={
            "conditioner.conditioners.seconds_total.embedder.embedding.1.weight": (768, 256),
            "conditioner.conditioners.seconds_total.embedder.embedding.1.bias": (768,),
        },
    ),
    "hunyuan3d_2": Model("hunyuan3d_2", "Hunyuan3Dv2", HUNYUAN_3D),
    "hunyuan3d_2_mini": Model(
        "hunyuan3d_2", "Hunyuan3Dv2mini", {**HUNYUAN_3D, "depth": 8, "depth_single_blocks": 16}
    ),
    "hunyuan3d_2_guided": Model(
        "hunyuan3d_2", "Hunyuan3Dv2", {**HUNYUAN_3D, "guidance_embed": True}
    ),
    "hunyuan3d_21": Model(
        "hunyuan3d_21",
        "Hunyuan3Dv2_1",
        {
            "image_model": "hunyuan3d2_1",
            "in_channels": 64,
            "context_dim": 1024,
            "hidden_size": 2048,
            "mlp_ratio": 4.0,
            "num_heads": 16,
            "depth": 21,
            "qkv_bias": False,
            "guidance_cond_proj_dim": None,
        },
    ),
    "seedvr2_3b": Model(
        "seedvr2",
        "SeedVR2",
        {
            **SEEDVR2,
            "vid_dim": 2560,
            "heads": 20,
            "num_layers": 32,
            "mlp_type": "swiglu",
            "vid_out_norm": True,
        },
    ),
    "seedvr2_7b": Model(
        "seedvr2", "SeedVR2", {**SEEDVR2_7B, "mm_layers": 36, "mlp_type": "normal"}
    ),
    "seedvr2_7b_shared": Model(
        "seedvr2", "SeedVR2", {**SEEDVR2_7B, "mm_layers": 10, "mlp_type": "swiglu"}
    ),
    "trellis2": Model(
        "trellis2",
        "Trellis2",
        {"image_model": "trellis2", "resolution": 64, "init_txt_model": True, "txt_only": False},
    ),
    "pixal3d": Model(
        "trellis2",
        "Trellis2",
        {
            "image_model": "trellis2",
            "resolution": 64,
            "init_txt_model": True,
            "txt_only": False,
            **{f"image_attn_mode_{part}": "proj" for part in ("shape", "texture", "structure")},
            **{
                f"proj_in_channels_{part}": size
                for part, size in (("shape", 2048), ("texture", 2048), ("structure", 1024))
            },
        },
        published=False,
    ),
    "kandinsky5_image": Model(
        "kandinsky5",
        "Kandinsky5Image",
        {
            **KANDINSKY,
            "model_dim": 2560,
            "axes_dims": (16, 24, 24),
            "ff_dim": 10240,
            "visual_embed_dim": 64,
            "num_visual_blocks": 50,
        },
        published=False,
    ),
    "yue2": Model("yue2", "YuE2", {"audio_model": "yue2"}),
}


@cache
def network(name: str):
    """ComfyUI's BaseModel of a model in MODELS, on the meta device; raises NotInThisComfyUI where
    the host does not know it.
    """
    import torch
    from comfy import supported_models

    kind = getattr(supported_models, MODELS[name].kind, None)
    if kind is None:
        raise NotInThisComfyUI(f"this ComfyUI has no {MODELS[name].kind}")
    config = kind(dict(MODELS[name].config))
    config.set_inference_dtype(torch.bfloat16, None)
    with _numbers_on_meta():
        beside = {name: torch.zeros(shape) for name, shape in MODELS[name].beside.items()}
        model = config.get_model(beside, device=torch.device("meta"))
    if f"diffusion_model.{MODELS[name].shows}" not in model.state_dict() and MODELS[name].shows:
        raise NotInThisComfyUI(
            f"this ComfyUI has a {MODELS[name].kind}, but no {MODELS[name].shows}"
        )
    return model


def shapes(name: str) -> Shapes:
    """The diffusion model's weights: full name (diffusion_model. included) -> shape."""
    return _shapes(network(name).state_dict(), "diffusion_model.")


def all_shapes(name: str) -> Shapes:
    """The same with what ComfyUI's model keeps beside the diffusion model."""
    return _shapes(network(name).state_dict())


def _shapes(weights: Mapping[str, Any], prefix: str = "") -> Shapes:
    return {name: tuple(value.shape) for name, value in weights.items() if name.startswith(prefix)}


@contextmanager
def _numbers_on_meta():
    # ACE-Step 1.5 reads a number off one of its buffers while it is built; on the meta device any
    # will do.
    import torch

    item = torch.Tensor.item
    torch.Tensor.item = lambda tensor: 1 if tensor.is_meta else item(tensor)
    try:
        yield
    finally:
        torch.Tensor.item = item


class Encoder(NamedTuple):
    """One of ComfyUI's CLIPs: how it is built, and the table that knows each of its slots."""

    module: str
    build: Callable[[Any, dict[str, Any]], Any]
    tables: Mapping[str, str]


ENCODERS: dict[str, Encoder] = {
    "sd15": Encoder(
        "comfy.sd1_clip", lambda module, options: module.SD1ClipModel(**options), {"clip_l": "clip"}
    ),
    "sd21": Encoder(
        "comfy.text_encoders.sd2_clip",
        lambda module, options: module.SD2ClipModel(**options),
        {"clip_h": "clip"},
    ),
    "sdxl": Encoder(
        "comfy.sdxl_clip",
        lambda module, options: module.SDXLClipModel(**options),
        {"clip_l": "clip", "clip_g": "clip"},
    ),
    "stable_cascade": Encoder(
        "comfy.sdxl_clip",
        lambda module, options: module.StableCascadeClipModel(**options),
        {"clip_g": "clip"},
    ),
    "flux1": Encoder(
        "comfy.text_encoders.flux",
        lambda module, options: module.flux_clip()(**options),
        {"clip_l": "clip", "t5xxl": "t5"},
    ),
    "flux2_klein_4b": Encoder(
        "comfy.text_encoders.flux",
        lambda module, options: module.klein_te(model_type="qwen3_4b")(**options),
        {"qwen3_4b": "llm"},
    ),
    "auraflow": Encoder(
        "comfy.text_encoders.aura_t5",
        lambda module, options: module.AuraT5Model(**options),
        {"pile_t5xl": "t5"},
    ),
    "hunyuandit": Encoder(
        "comfy.text_encoders.hydit",
        lambda module, options: module.HyditModel(**options),
        {"hydit_clip": "bert", "mt5xl": "t5"},
    ),
    "hunyuan_video": Encoder(
        "comfy.text_encoders.hunyuan_video",
        lambda module, options: module.hunyuan_video_clip()(**options),
        {"clip_l": "clip", "llama": "llm"},
    ),
    "hunyuan_image_21": Encoder(
        "comfy.text_encoders.hunyuan_image",
        lambda module, options: module.te()(**options),
        {"qwen25_7b": "llm", "byt5_small": "t5"},
    ),
    "z_image": Encoder(
        "comfy.text_encoders.z_image",
        lambda module, options: module.te()(**options),
        {"qwen3_4b": "llm"},
    ),
    "lumina2": Encoder(
        "comfy.text_encoders.lumina2",
        lambda module, options: module.te()(**options),
        {"gemma2_2b": "llm"},
    ),
    "wan": Encoder(
        "comfy.text_encoders.wan", lambda module, options: module.te()(**options), {"umt5xxl": "t5"}
    ),
    "ltx2": Encoder(
        "comfy.text_encoders.lt",
        lambda module, options: module.LTXAVTEModel(dtype_llama=options["dtype"], **options),
        {"gemma3_12b": "llm", "text_embedding_projection": "ltx2_text_projection"},
    ),
    "ltx23": Encoder(
        "comfy.text_encoders.lt",
        lambda module, options: module.LTXAVTEModel(
            dtype_llama=options["dtype"], text_projection_type="dual_linear", **options
        ),
        {"gemma3_12b": "llm", "text_embedding_projection": "ltx2_text_projection"},
    ),
    "anima": Encoder(
        "comfy.text_encoders.anima",
        lambda module, options: module.te()(**options),
        {"qwen3_06b": "llm"},
    ),
}


@cache
def encoder_shapes(name: str) -> Shapes:
    """The weights of a CLIP in ENCODERS as ComfyUI names them (slot first) -> shape."""
    import torch

    encoder = ENCODERS[name]
    options = {"device": torch.device("meta"), "dtype": torch.bfloat16, "model_options": {}}
    return _shapes(encoder.build(import_module(encoder.module), options).state_dict())
