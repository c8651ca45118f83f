"""LoRAs for models that neither ComfyUI nor diffusers has, with the names of their own code: none
is called another model.
"""

from __future__ import annotations

import pytest
from model_files import inspected, pair

# Blocks, and layer -> (outputs, inputs) of one block; then what a file of them is told for.
# meituan-longcat/LongCat-Video longcat_video/modules/longcat_video_dit.py
LONGCAT_VIDEO = {
    "attn.qkv": (12288, 4096),
    "attn.proj": (4096, 4096),
    "cross_attn.q_linear": (4096, 4096),
    "cross_attn.kv_linear": (8192, 4096),
    "cross_attn.proj": (4096, 4096),
    "ffn.w1": (11008, 4096),
    "ffn.w2": (4096, 11008),
    "ffn.w3": (11008, 4096),
}
# stepfun-ai/Step-Video-T2V stepvideo/modules/blocks.py
STEP_VIDEO = {
    "attn1.wqkv": (18432, 6144),
    "attn1.wo": (6144, 6144),
    "attn2.wq": (6144, 6144),
    "attn2.wkv": (12288, 6144),
    "attn2.wo": (6144, 6144),
    "ff.net.0.proj": (24576, 6144),
    "ff.net.2": (6144, 24576),
}
# Tencent-Hunyuan/HunyuanImage-3.0 hunyuan_image_3/hunyuan.py
HUNYUAN_IMAGE_3 = {
    "self_attn.qkv_proj": (6144, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.shared_mlp.gate_and_up_proj": (6144, 4096),
    "mlp.shared_mlp.down_proj": (4096, 3072),
}
# SkyworkAI/SkyReels-V3 skyreels_v3/modules/transformer.py: Wan's own code, and its weights' names
SKYREELS_V3 = {
    f"{part}.{layer}": (5120, 5120)
    for part in ("self_attn", "cross_attn")
    for layer in ("q", "k", "v", "o")
} | {"ffn.0": (13824, 5120), "ffn.2": (5120, 13824)}
MODELS = {
    "LongCat-Video": ("blocks", 48, LONGCAT_VIDEO),
    "Step-Video": ("transformer_blocks", 48, STEP_VIDEO),
    "HunyuanImage 3": ("model.layers", 32, HUNYUAN_IMAGE_3),
    "Wan 14B": ("blocks", 40, SKYREELS_V3),
}
ATTENTION = ("attn", "attn1", "self_attn")


def file_of(model, blocks=None, chosen=lambda layer: True, start="base_model.model."):
    prefix, count, layers = MODELS[model]
    shapes = {}
    for block in range(blocks or count):
        for layer, (out, inputs) in layers.items():
            if chosen(layer):
                shapes |= pair(f"{start}{prefix}.{block}.{layer}", out, (inputs,))
    return shapes


def in_attention(layer):
    return layer.startswith(ATTENTION)


@pytest.mark.parametrize("start", ["base_model.model.", "", "diffusion_model.", "transformer."])
@pytest.mark.parametrize("title", MODELS)
def test_a_file_of_all_blocks_is_told_for_its_model(title, start):
    for chosen in (lambda layer: True, in_attention):
        guess = inspected(file_of(title, chosen=chosen, start=start)).guess
        assert guess.title == title
        assert guess.is_absent == (title != "Wan 14B")


@pytest.mark.parametrize("title", MODELS)
def test_a_file_of_few_blocks_is_told_for_no_other(title):
    for chosen in (lambda layer: True, in_attention):
        guess = inspected(file_of(title, 3, chosen)).guess
        assert title.startswith(guess.title), guess[:4]


def test_longcat_video_s_own_loras_are_told_for_none_other():
    """longcat_video/modules/lora_utils.py: names without dots, and one down for three ups."""
    hyphen = "___lorahyphen___"
    shapes = {}
    for block in range(48):
        name = hyphen.join(("lora", "blocks", str(block), "attn", "qkv"))
        shapes[f"{name}.lora_down.weight"] = (384, 4096)
        shapes |= {f"{name}.lora_up.blocks.{part}.weight": (4096, 128) for part in range(3)}
        shapes[f"{name}.alpha_scale"] = ()
    guess = inspected(shapes).guess
    assert guess.title in ("", "LongCat-Video")
