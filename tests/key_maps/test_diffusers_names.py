"""The tables against diffusers' own classes on torch's meta device: every matrix that a trainer may
choose there has a name.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from lora_locksmith.key_maps.table import families, flatten

# family -> (module of diffusers.models.transformers, class); the defaults of each are its published
# configuration
CLASSES = {
    "cosmos1": ("transformer_cosmos", "CosmosTransformer3DModel"),
    "joyimage": ("transformer_joyimage", "JoyImageEditTransformer3DModel"),
    "longcat_image": ("transformer_longcat_image", "LongCatImageTransformer2DModel"),
    "ltx2": ("transformer_ltx2", "LTX2VideoTransformer3DModel"),
    "minimax_h3": ("transformer_minimax_h3", "MiniMaxH3Transformer3DModel"),
    "minimax_music3": ("transformer_minimax_music3", "MiniMaxMusic3Transformer1DModel"),
    "ovis_image": ("transformer_ovis_image", "OvisImageTransformer2DModel"),
    "qwen_image_21": ("transformer_qwenimage21", "QwenImage21Transformer2DModel"),
    "stable_audio": ("stable_audio_transformer", "StableAudioDiTModel"),
    "stable_audio_3": ("transformer_stable_audio3", "StableAudio3DiTModel"),
    "wan": ("transformer_wan_animate_2", "WanAnimate2Transformer3DModel"),
}
# Its rows lie in another order than in ComfyUI (q, q2, k, k2, v): no name is better than wrong
# rows.
OTHER_ROWS = {"stable_audio_3": "self_attn.to_qkv"}


@pytest.mark.parametrize("family", CLASSES)
def test_every_matrix_of_diffusers_has_a_name(family):
    module, name = CLASSES[family]
    try:
        build = getattr(import_module(f"diffusers.models.transformers.{module}"), name)
    except (ImportError, AttributeError):
        pytest.skip(f"this diffusers has no {name}")
    with torch.device("meta"):
        weights = build().state_dict()
    matrices = [
        key.removesuffix(".weight")
        for key, weight in weights.items()
        if key.endswith(".weight") and weight.ndim > 1
    ]
    unknown = [matrix for matrix in matrices if not families()[family].find(flatten(matrix))]
    expected = [
        matrix
        for matrix in matrices
        if family in OTHER_ROWS and matrix.endswith(OTHER_ROWS[family])
    ]
    assert matrices and unknown == expected
