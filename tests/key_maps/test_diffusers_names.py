"""The tables against diffusers' own classes on torch's meta device: every matrix that a trainer may
choose there has a name.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from lora_locksmith.key_maps.table import families, flatten

# class of diffusers.models.transformers -> family; the defaults of each are its published
# configuration, where it has defaults for all
CLASSES = {
    "AceStepTransformer1DModel": "ace_step_15",
    "AuraFlowTransformer2DModel": "auraflow",
    "ChromaTransformer2DModel": "chroma",
    "CogVideoXTransformer3DModel": "cogvideox",
    "CosmosTransformer3DModel": "cosmos1 cosmos_predict2",
    "ErnieImageTransformer2DModel": "ernie",
    "Flux2Transformer2DModel": "flux2",
    "FluxTransformer2DModel": "flux1",
    "HiDreamImageTransformer2DModel": "hidream",
    "HunyuanDiT2DModel": "hunyuandit",
    "HunyuanImageTransformer2DModel": "hunyuan_image_21",
    "HunyuanVideo15Transformer3DModel": "hunyuan_video_15",
    "HunyuanVideoTransformer3DModel": "hunyuan_video",
    "Ideogram4Transformer2DModel": "ideogram4",
    "JoyImageEditTransformer3DModel": "joyimage",
    "Kandinsky5Transformer3DModel": "kandinsky5",
    "Krea2Transformer2DModel": "krea2",
    "LongCatImageTransformer2DModel": "longcat_image",
    "LTX2VideoTransformer3DModel": "ltx2",
    "LTXVideoTransformer3DModel": "ltxv",
    "Lumina2Transformer2DModel": "lumina2",
    "MiniMaxH3Transformer3DModel": "minimax_h3",
    "MiniMaxMusic3Transformer1DModel": "minimax_music3",
    "MochiTransformer3DModel": "mochi",
    "OvisImageTransformer2DModel": "ovis_image",
    "PixArtTransformer2DModel": "pixart",
    "QwenImage21Transformer2DModel": "qwen_image_21",
    "QwenImageTransformer2DModel": "qwen_image",
    "SD3Transformer2DModel": "sd3",
    "StableAudioDiTModel": "stable_audio",
    "StableAudio3DiTModel": "stable_audio_3",
    "WanAnimate2Transformer3DModel": "wan",
    "WanAnimateTransformer3DModel": "wan",
    "WanTransformer3DModel": "wan",
    "WanVACETransformer3DModel": "wan",
    "ZImageTransformer2DModel": "z_image",
}
SETTINGS = {
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 128,
        "num_attention_heads": 20,
        "caption_channels": [4096, 4096],
        "text_emb_dim": 2048,
        "num_routed_experts": 4,
        "num_activated_experts": 2,
        "axes_dims_rope": (64, 32, 32),
        "max_resolution": (128, 128),
        "llama_layers": [0, 1, 2, 3],
    },
    "HunyuanDiT2DModel": {"patch_size": 2, "in_channels": 4, "hidden_size": 1408, "num_layers": 4},
}
# Convolutions of a network beside the transformer, whose names in diffusers no table has: no trainer
# that was read trains them.
BESIDE = {"WanAnimateTransformer3DModel": "motion_encoder."}
# Its rows lie in another order than in ComfyUI (q, q2, k, k2, v): no name is better than wrong
# rows.
OTHER_ROWS = {"StableAudio3DiTModel": "self_attn.to_qkv"}


@pytest.mark.parametrize(
    ("name", "family"), [(name, one) for name, of in CLASSES.items() for one in of.split()]
)
def test_every_matrix_of_diffusers_has_a_name(name, family):
    build = getattr(import_module("diffusers.models.transformers"), name, None)
    if build is None:
        pytest.skip(f"this diffusers has no {name}")
    with torch.device("meta"):
        weights = build(**SETTINGS.get(name, {})).state_dict()
    matrices = [
        key.removesuffix(".weight")
        for key, weight in weights.items()
        if key.endswith(".weight") and weight.ndim > 1
    ]
    unknown = [matrix for matrix in matrices if not families()[family].find(flatten(matrix))]
    others = {each for each in matrices if each.endswith(OTHER_ROWS.get(name, "?"))}
    beside = {each for each in unknown if each.startswith(BESIDE.get(name, "?"))}
    assert matrices and set(unknown) == others | beside
