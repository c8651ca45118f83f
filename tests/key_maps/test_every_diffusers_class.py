"""No class of diffusers' transformers is called another model, whatever of it a file trains: the
file is told for its own model, for several of which it is one, or for none.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from importlib import import_module

import pytest
import torch
from lora_locksmith.key_maps.table import ABSENT, families
from model_files import inspected, pair

# class -> its table. Their own settings are those of a published model, but for PUBLISHED.
OWN = {
    "AceStepTransformer1DModel": "ace_step_15",
    "AllegroTransformer3DModel": "allegro",
    "AnyFlowFARTransformer3DModel": "wan",
    "AnyFlowTransformer3DModel": "wan",
    "AuraFlowTransformer2DModel": "auraflow",
    "BriaFiboTransformer2DModel": "fibo",
    "BriaTransformer2DModel": "fibo",
    "ChromaTransformer2DModel": "chroma",
    "ChronoEditTransformer3DModel": "wan",
    "CogVideoXTransformer3DModel": "cogvideox",
    "CogView3PlusTransformer2DModel": "glm_image",
    "CogView4Transformer2DModel": "glm_image",
    "ConsisIDTransformer3DModel": "cogvideox",
    "Cosmos3OmniTransformer": "cosmos3",
    "CosmosTransformer3DModel": "cosmos1",
    "DiTTransformer2DModel": "dit",
    "EasyAnimateTransformer3DModel": "easyanimate",
    "ErnieImageTransformer2DModel": "ernie",
    "Flux2Transformer2DModel": "flux2",
    "FluxTransformer2DModel": "flux1",
    "GlmImageTransformer2DModel": "glm_image",
    "HeliosTransformer3DModel": "wan",
    "HiDreamImageTransformer2DModel": "hidream",
    "HunyuanDiT2DModel": "hunyuandit",
    "HunyuanImageTransformer2DModel": "hunyuan_image_21",
    "HunyuanVideo15Transformer3DModel": "hunyuan_video_15",
    "HunyuanVideoFramepackTransformer3DModel": "hunyuan_video",
    "HunyuanVideoTransformer3DModel": "hunyuan_video",
    "Ideogram4Transformer2DModel": "ideogram4",
    "JoyImageEditPlusTransformer3DModel": "joyimage",
    "JoyImageEditTransformer3DModel": "joyimage",
    "Kandinsky5Transformer3DModel": "kandinsky5",
    "Kandinsky6SRTransformer3DModel": "kandinsky6_sr",
    "Kandinsky6Transformer3DModel": "kandinsky6",
    "Krea2Transformer2DModel": "krea2",
    "LTX2VideoTransformer3DModel": "ltx2",
    "LTXVideoTransformer3DModel": "ltxv",
    "LongCatAudioDiTTransformer": "longcat_audio_dit",
    "LongCatImageTransformer2DModel": "longcat_image",
    "Lumina2Transformer2DModel": "lumina2",
    "LuminaNextDiT2DModel": "lumina_next",
    "MiniMaxH3Transformer3DModel": "minimax_h3",
    "MiniMaxMusic3RVQDepthDecoder": "minimax_music3_depth",
    "MiniMaxMusic3Transformer1DModel": "minimax_music3",
    "MochiTransformer3DModel": "mochi",
    "MotifVideoTransformer3DModel": "motif_video",
    "NucleusMoEImageTransformer2DModel": "nucleus_image",
    "OmniGenTransformer2DModel": "omnigen",
    "OvisImageTransformer2DModel": "ovis_image",
    "PixArtTransformer2DModel": "pixart",
    "PriorTransformer": "kandinsky22_prior",
    "QwenImage21Transformer2DModel": "qwen_image_21",
    "QwenImageTransformer2DModel": "qwen_image",
    "SD3Transformer2DModel": "sd3",
    "SanaTransformer2DModel": "sana",
    "SanaVideoTransformer3DModel": "sana_video",
    "SanaWMLTX2RefinerTransformer3DModel": "ltx2",
    "SanaWMTransformer3DModel": "sana_wm",
    "SkyReelsV2Transformer3DModel": "wan",
    "StableAudio3DiTModel": "stable_audio_3",
    "StableAudioDiTModel": "stable_audio",
    "WanAnimate2Transformer3DModel": "wan",
    "WanAnimateTransformer3DModel": "wan",
    "WanTransformer3DModel": "wan",
    "WanVACETransformer3DModel": "wan",
    "ZImageTransformer2DModel": "z_image",
}
# Of these no table is known: a file of theirs must be told for none.
NO_TABLE = {
    "BriaFibo2Transformer2DModel",
    "Flux3Transformer2DModel",
    "LatteTransformer3DModel",
    "PRXTransformer2DModel",
    "RFD4ProteinaTransformer",
    "T5FilmDecoder",
}
# Layers of which networks are made, which are none themselves.
PARTS = {
    "DreamLiteTransformer2DModel",
    "DualTransformer2DModel",
    "Transformer2DModel",
    "TransformerTemporalModel",
}
TWO_SCALES = {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48, "type": "su"}
PUBLISHED = {
    "BriaFiboTransformer2DModel": {"num_layers": 8},
    "BriaTransformer2DModel": {"num_layers": 8},
    "EasyAnimateTransformer3DModel": {"in_channels": 16, "out_channels": 16, "patch_size": 2},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "num_layers": 16,
        "num_single_layers": 32,
        "num_attention_heads": 20,
        "attention_head_dim": 128,
        "caption_channels": [4096, 4096],
        "text_emb_dim": 2048,
        "axes_dims_rope": (64, 32, 32),
        "max_resolution": (128, 128),
        "llama_layers": [0, 1],
    },
    "HunyuanDiT2DModel": {
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 1408,
        "num_layers": 40,
    },
    "LatteTransformer3DModel": {
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "patch_size": 2,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
        "norm_type": "ada_norm_single",
    },
    "LongCatImageTransformer2DModel": {"num_layers": 10, "num_single_layers": 20},
    "LuminaNextDiT2DModel": {"num_layers": 24, "num_kv_heads": 8, "norm_eps": 1e-5},
    "MotifVideoTransformer3DModel": {
        "num_attention_heads": 12,
        "num_layers": 12,
        "num_single_layers": 24,
        "num_decoder_layers": 8,
        "enable_text_cross_attention_dual": True,
        "enable_text_cross_attention_single": True,
    },
    "OmniGenTransformer2DModel": {"rope_scaling": TWO_SCALES},
    "SD3Transformer2DModel": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
    },
    "SkyReelsV2Transformer3DModel": {
        "num_attention_heads": 12,
        "num_layers": 30,
        "ffn_dim": 8960,
    },
}
FEW = 3  # blocks
NUMBER = re.compile(r"\.(\d+)\.")
PEFT_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def transformers():
    return import_module("diffusers.models.transformers")


@cache
def linear_layers(name):
    """module -> (outputs, inputs) of all linear layers of a class."""
    build = getattr(transformers(), name, None)
    if build is None:
        pytest.skip(f"this diffusers has no {name}")
    with torch.device("meta"):
        model = build(**PUBLISHED.get(name, {}))
    return {
        module: (layer.out_features, layer.in_features)
        for module, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


def in_first_blocks(module):
    number = NUMBER.search(module)
    return bool(number) and int(number[1]) < FEW


LAYOUTS = {
    "all": lambda module: True,
    "attention": lambda module: "attn" in module or "attention" in module,
    "PEFT's attention": lambda module: module.endswith(PEFT_ATTENTION),
    "query and value": lambda module: module.endswith(("to_q", "to_v")),
    "blocks": NUMBER.search,
    "first blocks": in_first_blocks,
    "PEFT's attention of first blocks": lambda module: (
        module.endswith(PEFT_ATTENTION) and in_first_blocks(module)
    ),
    "feed-forward": lambda module: "ff" in module or "mlp" in module or "feed_forward" in module,
}


def file_of(name, layout):
    shapes = {}
    for module, (out, inputs) in linear_layers(name).items():
        if LAYOUTS[layout](module):
            shapes |= pair(f"transformer.{module}", out, (inputs,))
    return shapes


def title_of(table):
    return {**families(), **families(ABSENT)}[table].title


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", sorted({*OWN, *NO_TABLE}))
def test_no_class_is_called_another_model(name, layout):
    shapes = file_of(name, layout)
    guess = inspected(shapes).guess if shapes else None
    if guess is None or not guess.title:
        return
    told = guess.could_be or guess.absent or (guess.name,)
    assert OWN.get(name) in told, (name, layout, guess.title, told)
    assert guess.is_absent == set(told).issubset(families(ABSENT))


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_file_of_the_whole_class_is_told_for_its_model(name):
    told = inspected(file_of(name, "all"))
    assert title_of(OWN[name]) in told.guess.title
    is_absent = OWN[name] in families(ABSENT)
    assert ("ComfyUI itself has no such model" in told.verdict) == is_absent


def test_the_list_has_every_class_of_diffusers():
    """A new class wants its table, or to be among those that have none."""
    room = transformers()
    classes = {
        name
        for name, each in vars(room).items()
        if inspect.isclass(each) and issubclass(each, torch.nn.Module)
    }
    assert classes and classes <= OWN.keys() | NO_TABLE | PARTS
