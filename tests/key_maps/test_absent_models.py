"""A LoRA for a model that ComfyUI does not have is told for that, alone and on another model."""

from __future__ import annotations

import comfy_models
import pytest
from lora_locksmith.key_maps.table import ABSENT, families
from lora_locksmith.messages import translate
from lora_locksmith.report.findings import _summary
from lora_locksmith.report.markdown import markdown
from model_files import file_for, held, inspected, pair

ATTENTION = ("to_q", "to_k", "to_v")
# diffusers models/transformers/sana_transformer.py: width, blocks
SANA = {"0.6B": (1152, 28), "1.6B": (2240, 20), "4.8B": (2240, 60)}


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
        ("1.6B", sana("1.6B") | pair("transformer.cfg_embedder.mlp.0", 2240, (256,))),
        ("0.6B", sana("0.6B", whole=True)),
        ("4.8B", sana("4.8B")),
        ("4.8B", sana("4.8B", (*ATTENTION, "to_out.0"))),
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


@pytest.mark.parametrize("layers", [ATTENTION, (*ATTENTION, "to_out.0")])
def test_layers_that_two_models_share_name_both(target_model_of, layers):
    shapes = sana("1.6B", layers, whole=True)
    alone = inspected(shapes)
    assert alone.guess.could_be == ("sana", "sana_video") and alone.guess.is_absent
    assert alone.verdict.startswith("Sana or SANA-Video (")
    assert alone.as_dict()["family"]["could_be"] == ["sana", "sana_video"]
    told = inspected(shapes, {"modelspec.architecture": "sana-video/lora"})
    assert (told.guess.title, told.guess.could_be) == ("SANA-Video", ())
    report = held(shapes, target_model_of("flux1_dev")).report
    assert report.state == "bad" and "no Sana or SANA-Video" in report.remedy


# Width, widths of q and k, of the inner layer, and blocks: their config.json.
CHATTING = {
    "Qwen3-1.7B": (2048, 2048, 1024, 6144, 28),
    "Qwen3-4B": (2560, 4096, 1024, 9728, 36),
    "Qwen3-8B": (4096, 4096, 1024, 12288, 36),
    "Qwen2.5-7B": (3584, 3584, 512, 18944, 28),
    "Llama 3 8B, Mistral 7B": (4096, 4096, 1024, 14336, 32),
    "Gemma 2 2B": (2304, 2048, 1024, 9216, 26),
}


SHARED = "Qwen3-1.7B"  # names, sizes and blocks are YuE2's
LANGUAGE = "Language model (Llama, Mistral, Qwen or Gemma)"


def chatting(size, layers=()):
    """A LoRA of a language model as PEFT writes it, on all layers or on these."""
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
            if not layers or layer.endswith(layers):
                shapes |= pair(module, out, (inputs,))
    return shapes


@pytest.mark.parametrize("layers", [(), ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")])
@pytest.mark.parametrize("size", CHATTING)
def test_a_lora_of_a_language_model_is_no_music(target_model_of, size, layers):
    """ACE-Step 1.5 and YuE2 have layers of the same names."""
    shapes = chatting(size, layers)
    alone = inspected(shapes)
    if size == SHARED:
        assert alone.guess.could_be == ("yue2", "language_model")
        assert alone.guess.title == f"YuE2 or {LANGUAGE}" and not alone.guess.is_likely
        assert inspected(shapes, {"ss_base_model_version": "qwen3"}).guess.is_absent
        assert inspected(shapes, {"ss_base_model_version": "yue2"}).guess.name == "yue2"
        return
    assert alone.family.title in (f"{LANGUAGE} {size}", LANGUAGE)
    assert alone.verdict.endswith("ComfyUI itself has no such model: nothing can load.")
    for wired in ("flux1_dev", "anima"):
        assert held(shapes, target_model_of(wired)).report.state == "bad"


def test_where_a_model_of_comfyui_s_fits_as_well_the_metadata_say(target_model_of):
    """Attention of the smallest Sana is as wide as PixArt's."""
    shapes = sana("0.6B")
    guess = inspected(shapes).guess
    assert (guess.name, guess.ties, guess.absent) == ("", ("pixart",), ("sana",))
    assert guess.title == "PixArt or Sana" and guess.could_be == ("pixart", "sana")
    assert inspected(shapes, {"modelspec.architecture": "pixart/lora"}).family.name == "pixart"
    assert inspected(shapes, {"modelspec.architecture": "sana/lora"}).family.title == "Sana 0.6B"
    assert held(shapes, target_model_of("pixart_sigma")).report.mismatch == ""


def test_a_single_layer_tells_no_model():
    shapes = pair("transformer.transformer_blocks.0.attn1.to_q", 2240, (2240,))
    assert inspected(shapes).family.title == ""


FEW = 80  # tensors that several models may share


@pytest.mark.parametrize("name", comfy_models.MODELS)
def test_no_file_of_comfyui_s_models_is_taken_for_one(target_model_of, name):
    shapes = file_for(target_model_of(name))
    alone = inspected(shapes).guess
    assert not alone.is_absent and not (alone.absent and len(shapes) > FEW)
    odd = pair("diffusion_model.blocks.0.no_such_layer", 64, (64,))
    assert not inspected(shapes | odd).guess.is_absent
