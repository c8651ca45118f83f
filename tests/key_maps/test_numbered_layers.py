"""A file that only numbers its layers is told for what it is, and none that names them is."""

from __future__ import annotations

import comfy_models
import pytest
from lora_locksmith.messages import translate
from lora_locksmith.planning.numbered_layers import numbered_layers
from lora_locksmith.report.markdown import markdown
from model_files import file_for, held, inspected

DOWN, UP = (4, 2048), (2048, 4)


def pairs(pattern, roles, count=40):
    return {
        pattern.format(n=n, role=role): shape
        for n in range(count)
        for role, shape in zip(roles, (DOWN, UP), strict=True)
    }


NUMBERED = {
    # Stability-AI/StableCascade train/train_c_lora.py: a torch ParameterList
    "Stable Cascade": (
        pairs("weights.{n}.{role}", ("lora_down", "lora_up"))
        | {"embeddings.embeddings": (2, 1280), "embeddings.indices": (2,)},
        40,
        "weights.0 to weights.39",
    ),
    # cloneofsimo/lora lora_diffusion/lora.py save_safeloras: a list for each model
    "lora_diffusion": (
        pairs("unet:{n}:{role}", ("down", "up"), 32)
        | pairs("text_encoder:{n}:{role}", ("down", "up"), 12),
        44,
        "unet:0 to unet:31",
    ),
    "bare": (pairs("{n}.{role}.weight", ("lora_A", "lora_B")), 40, "0 to 39"),
    "a list": (pairs("lora_layers.{n}.{role}.weight", ("lora_down", "lora_up")), 40, "lora_layers"),
    "halves of a name": (pairs("lora.{n}.{role}.weight", ("down", "up")), 40, "lora.0 to lora.39"),
    "flat": (pairs("lora_unet_{n}.{role}.weight", ("lora_down", "lora_up")), 40, "lora_unet_39"),
    "role first": (pairs("{role}.{n}", ("lora_down", "lora_up")), 40, "0 to 39"),
    "few": (pairs("weights.{n}.{role}", ("lora_A", "lora_B"), 4), 4, "weights.3"),
    "numbers alone": ({str(n): DOWN for n in range(80)}, 80, "0 to 79"),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_a_file_that_numbers_its_layers_says_so(target_model_of, name):
    shapes, count, words = NUMBERED[name]
    alone = inspected(shapes)
    assert f"numbers its {count} layers and does not name them" in alone.verdict
    assert words in alone.verdict and alone.family.name == alone.family.title == ""
    page = markdown(alone)
    assert "Nothing: no loader knows which layers it is for." in page
    assert "holds whole weights" not in page and "not a LoRA" not in page
    wired = held(shapes, target_model_of("stable_cascade_c")).report
    assert "does not name them" in wired.verdict and wired.state == "bad"
    assert wired.mismatch == wired.remedy == ""
    assert translate(alone.verdict, "zh") != alone.verdict


NAMED = [
    pairs("blocks.{n}.attn.{role}.weight", ("lora_A", "lora_B")),
    pairs("mlp.{n}.{role}.weight", ("lora_A", "lora_B"), 3),
    pairs("lora_unet_time_embed_{n}.{role}.weight", ("lora_down", "lora_up"), 3),
    {f"blocks.{n}.norm.weight": (64,) for n in range(30)},
    {},
    {"": DOWN, ".": DOWN, "1" * 300: DOWN, "a." * 5000: DOWN},
    {"weights.0.lora_up": UP, "weights.7.lora_up": UP, "weights.9.lora_up": UP},
]


@pytest.mark.parametrize("shapes", NAMED, ids=range(len(NAMED)))
def test_one_that_names_them_does_not(shapes):
    assert numbered_layers(shapes) is None


@pytest.mark.parametrize("name", comfy_models.MODELS)
def test_no_file_of_a_known_model_is_taken_for_one(target_model_of, name):
    assert numbered_layers(file_for(target_model_of(name))) is None


def test_names_that_nobody_would_write_take_no_time():
    keys = [("a_" * 60 + "0") * 3, "a" * 99 + "!", "._:" * 33, "a:" * 49 + "0"] * 2000
    assert numbered_layers(keys) is None
