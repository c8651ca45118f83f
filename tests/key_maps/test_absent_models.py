"""A LoRA for a model that ComfyUI does not have is told for that, alone and on another model."""

from __future__ import annotations

from importlib import import_module

import comfy_models
import pytest
import torch
from lora_locksmith.key_maps.table import ABSENT, families
from lora_locksmith.messages import translate
from lora_locksmith.report.library import _summary
from lora_locksmith.report.markdown import markdown
from model_files import file_for, held, inspected, pair

ATTENTION = ("to_q", "to_k", "to_v")
# diffusers models/transformers/sana_transformer.py: width, blocks
SANA = {"0.6B": (1152, 28), "1.6B": (2240, 20), "4.8B": (2240, 60)}


# Classes of diffusers for models that no ComfyUI has, by what a file is told for that trains all
# their linear layers; "": for no model, rather than for a wrong one.
CLASSES = {
    "BriaFiboTransformer2DModel": "Bria 3 or FIBO",
    "BriaTransformer2DModel": "Bria 3 or FIBO",
    "CogView3PlusTransformer2DModel": "GLM-Image or CogView",
    "CogView4Transformer2DModel": "GLM-Image or CogView",
    "GlmImageTransformer2DModel": "GLM-Image or CogView",
    "NucleusMoEImageTransformer2DModel": "Nucleus-Image",
    "BriaFibo2Transformer2DModel": "",
    "Cosmos3OmniTransformer": "",
    "Flux3Transformer2DModel": "",
    "Kandinsky6SRTransformer3DModel": "",
    "Kandinsky6Transformer3DModel": "",
    "LongCatAudioDiTTransformer": "",
    "PRXTransformer2DModel": "",
}


def linear_layers_of(name):
    """A LoRA on all linear layers of a class of diffusers, with its own settings."""
    build = getattr(import_module("diffusers.models.transformers"), name, None)
    if build is None:
        pytest.skip(f"this diffusers has no {name}")
    with torch.device("meta"):
        model = build()
    shapes = {}
    for module, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            shapes |= pair(f"transformer.{module}", layer.out_features, (layer.in_features,))
    return shapes


@pytest.mark.parametrize(("name", "title"), CLASSES.items())
def test_a_model_that_only_diffusers_has_is_never_called_another(name, title):
    told = inspected(linear_layers_of(name))
    assert told.family.title == title
    assert ("ComfyUI itself has no such model" in told.verdict) == bool(title)


def sana(size, layers=ATTENTION, *, whole=False):
    """As diffusers' own script trains it, or with its feed-forward layers."""
    width, blocks = SANA[size]
    shapes = {}
    for block in range(blocks):
        start = f"transformer.transformer_blocks.{block}"
        for module in (f"{part}.{layer}" for part in ("attn1", "attn2") for layer in layers):
            shapes |= pair(f"{start}.{module}", width, (width,))
        if whole:
            shapes |= pair(f"{start}.ff.conv_inverted", 5 * width, (width,))
            shapes |= pair(f"{start}.ff.conv_point", width, (5 * width // 2,))
    return shapes


def test_the_folder_holds_models_that_no_table_of_comfyui_s_has():
    assert families(ABSENT) and not families(ABSENT).keys() & families().keys()


@pytest.mark.parametrize(
    ("size", "shapes"),
    [
        ("1.6B", sana("1.6B")),
        ("1.6B", sana("1.6B", (*ATTENTION, "to_out.0"))),
        ("1.6B", sana("1.6B", whole=True)),
        ("0.6B", sana("0.6B", whole=True)),
        ("4.8B", sana("4.8B")),
    ],
)
def test_sana_is_told_alone_and_on_pixart(target_model_of, size, shapes):
    alone = inspected(shapes)
    assert (alone.family.name, alone.family.title) == ("", f"Sana {size}")
    assert alone.verdict.startswith(f"Sana {size}, ")
    assert alone.verdict.endswith("ComfyUI itself has no such model: nothing can load.")
    assert "a node pack that brings this model" in markdown(alone)
    assert alone.report.modules["placed"] == 0 and alone.report.state == "bad"
    row = _summary(alone)
    assert row.made_for == f"Sana {size}" and f"no Sana {size}" in row.losses[0]
    assert translate(alone.verdict, "zh") != alone.verdict
    for wired in ("pixart_sigma", "flux1_dev", "anima"):
        report = held(shapes, target_model_of(wired)).report
        assert report.guess.title == f"Sana {size}" and report.state == "bad"
        assert f"made for Sana {size}; this is" in report.verdict
        assert f"ComfyUI itself has no Sana {size}." in report.remedy


# Width, widths of q and k, of the inner layer, and blocks: their config.json.
CHATTING = {
    "Qwen3-4B": (2560, 4096, 1024, 9728, 36),
    "Qwen3-8B": (4096, 4096, 1024, 12288, 36),
    "Qwen2.5-7B": (3584, 3584, 512, 18944, 28),
    "Llama 3 8B, Mistral 7B": (4096, 4096, 1024, 14336, 32),
    "Gemma 2 2B": (2304, 2048, 1024, 9216, 26),
}


@pytest.mark.parametrize("size", CHATTING)
def test_a_lora_of_a_language_model_is_no_music(target_model_of, size):
    """ACE-Step 1.5 and YuE2 have layers of the same names."""
    width, queries, keys, inner, blocks = CHATTING[size]
    sizes = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    shapes = {}
    for block in range(blocks):
        for layer, (out, inputs) in sizes.items():
            module = f"base_model.model.model.layers.{block}.{layer}"
            shapes |= pair(module, out, (inputs,))
    alone = inspected(shapes)
    assert alone.family.title == f"Language model (Llama, Mistral, Qwen or Gemma) {size}"
    assert alone.verdict.endswith("ComfyUI itself has no such model: nothing can load.")
    for wired in ("flux1_dev", "anima"):
        assert held(shapes, target_model_of(wired)).report.state == "bad"


def test_where_a_model_of_comfyui_s_fits_as_well_the_metadata_say(target_model_of):
    """Attention of the smallest Sana is as wide as PixArt's."""
    shapes = sana("0.6B")
    assert inspected(shapes).family.name == "pixart"
    assert inspected(shapes, {"modelspec.architecture": "sana/lora"}).family.title == "Sana 0.6B"
    assert held(shapes, target_model_of("pixart_sigma")).report.mismatch == ""


def test_a_single_layer_tells_no_model():
    shapes = pair("transformer.transformer_blocks.0.attn1.to_q", 2240, (2240,))
    assert inspected(shapes).family.title == ""


@pytest.mark.parametrize("name", comfy_models.MODELS)
def test_no_file_of_comfyui_s_models_is_taken_for_one(target_model_of, name):
    shapes = file_for(target_model_of(name))
    assert not inspected(shapes).guess.is_absent
    odd = pair("diffusion_model.blocks.0.no_such_layer", 64, (64,))
    assert not inspected(shapes | odd).guess.is_absent
