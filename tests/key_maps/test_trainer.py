"""The trainer is said as evidence allows: metadata first, several where several fit, a guess as one."""

from __future__ import annotations

import pytest
from lora_locksmith.identify.trainer import UNTOLD
from lora_locksmith.messages import translate
from model_files import inspected

ADAPTER = "lora_adapter_metadata"


def lora(template, names, roles, width, blocks=4):
    """Roles: (down, up), and what else stands beside them."""
    down, up, *more = roles
    shapes = {}
    for block in range(blocks):
        for name in names:
            module = template.format(block=block, name=name)
            out = width * (3 if name.endswith("qkv") else 1)
            shapes |= {f"{module}.{down}": (4, width), f"{module}.{up}": (out, 4)}
            shapes |= {f"{module}.{role}": () if role == "alpha" else (out,) for role in more}
    return shapes


FLUX = ("attn.to_q", "attn.to_k", "attn.to_out.0", "attn.add_q_proj")
FLUX_NATIVE = ("img_attn.qkv", "img_attn.proj", "txt_attn.qkv", "txt_attn.proj")
PEFT = ("lora_A.weight", "lora_B.weight")
DEFAULT = ("lora_A.default.weight", "lora_B.default.weight")
KOHYA = ("lora_down.weight", "lora_up.weight", "alpha")


def flux(template, roles):
    """With a layer that only FLUX.1 has."""
    single = template.replace("transformer_blocks", "single_transformer_blocks").replace(
        "double_blocks", "single_blocks"
    )
    native = "double_blocks" in template
    shapes = lora(template, FLUX_NATIVE if native else FLUX, roles, 3072)
    name = "modulation.lin" if native else "norm.linear"
    for block in range(4):
        module = single.format(block=block, name=name)
        shapes |= {f"{module}.{roles[0]}": (4, 3072), f"{module}.{roles[1]}": (9216, 4)}
    return shapes


def qwen(template, roles):
    names = ("attn.to_q", "attn.add_q_proj")
    shapes = lora(template, names, roles, 3072)
    for block in range(4):
        module = template.format(block=block, name="img_mod.1")
        shapes |= {f"{module}.{roles[0]}": (4, 3072), f"{module}.{roles[1]}": (18432, 4)}
    return shapes


def wan(template, roles):
    return lora(template, ("self_attn.q", "cross_attn.k"), roles, 5120, 40)


BARE = "transformer_blocks.{block}.{name}"
LOOKS = {
    # bare names of diffusers are no control LoRA of Black Forest Labs', nor DiffSynth-Studio's
    "bare diffusers names": (flux(BARE, PEFT), "diffusers (save_lora_adapter)"),
    "a control LoRA": (
        flux("double_blocks.{block}.{name}", (*PEFT, "lora_B.bias")),
        "Black Forest Labs (control LoRA)",
    ),
    "Lightning": (qwen(BARE, KOHYA), "LightX2V"),
    "an adapter's name": (flux(BARE, DEFAULT), "DiffSynth-Studio"),
    "which two write": (qwen(BARE, DEFAULT), "DiffSynth-Studio or LightX2V"),
    "native names": (wan("blocks.{block}.{name}", DEFAULT), "DiffSynth-Studio"),
    "fal": (flux("base_model.model.double_blocks.{block}.{name}", PEFT), "fal or PEFT"),
    "PEFT": (flux(f"base_model.model.{BARE}", PEFT), "PEFT"),
    "distilled": (
        wan("diffusion_model.blocks.{block}.{name}", KOHYA[:2])
        | {f"diffusion_model.blocks.{block}.diff_m": (1, 6, 5120) for block in range(40)},
        "LightX2V",
    ),
    "kohya of Wan": (
        wan("lora_unet_blocks_{block}_{name}", KOHYA),
        "kohya sd-scripts, musubi-tuner or OneTrainer",
    ),
    "attention processors": (
        {
            f"double_blocks.{block}.processor.qkv_lora{number}.{role}": shape
            for block in range(19)
            for number in (1, 2)
            for role, shape in (("down.weight", (16, 3072)), ("up.weight", (9216, 16)))
        },
        "XLabs x-flux",
    ),
    "diffusers": (
        flux(f"transformer.{BARE}", PEFT),
        "AI-Toolkit, diffusers, OneTrainer (diffusers format) or SimpleTuner",
    ),
}


@pytest.mark.parametrize("name", LOOKS)
def test_names_alone_look_like_whoever_writes_so(name):
    shapes, title = LOOKS[name]
    found = inspected(shapes)
    assert found.report.trainer == title and found.report.writer.is_guess
    assert found.report.trainer_title == f"looks like {title}"
    assert f"looks like a file of {title}." in found.verdict and "written by" not in found.verdict
    assert translate(found.verdict, "zh") != found.verdict


@pytest.mark.parametrize(
    "shapes",
    [
        flux("double_blocks.{block}.{name}", PEFT),  # native names without a prefix: nobody's
        flux(BARE, ("lora_left.weight", "lora_right.weight")),
        {"strange.lora_A.weight": (4, 8), "strange.lora_B.weight": (8, 4)},
    ],
    ids=["bare native names", "other roles", "one module"],
)
def test_what_nobody_is_known_to_write_is_not_told(shapes):
    found = inspected(shapes)
    assert found.report.trainer == UNTOLD and "written by" not in found.verdict
    assert "looks like" not in found.verdict


def test_metadata_come_first_and_are_no_guess():
    shapes = flux("lora_unet_double_blocks_{block}_{name}", KOHYA)
    found = inspected(shapes, {"ss_network_module": "networks.lora_flux"})
    assert found.report.trainer == "kohya sd-scripts" and not found.report.writer.is_guess
    assert "FLUX.1, written by kohya sd-scripts." in found.verdict
    bare = inspected(flux(BARE, PEFT), {"software": '{"name": "ai-toolkit"}'})
    assert bare.report.trainer_title == "AI-Toolkit"


@pytest.mark.parametrize(
    ("template", "roles", "title"),
    [
        (f"transformer.{BARE}", PEFT, "diffusers or SimpleTuner"),
        (f"diffusion_model.{BARE}", (*PEFT, "alpha"), "SimpleTuner (ComfyUI format)"),
        (BARE, PEFT, "diffusers (save_lora_adapter)"),
    ],
)
def test_metadata_that_several_write_leave_those_whose_names_fit(template, roles, title):
    found = inspected(flux(template, roles), {ADAPTER: '{"r": 4}'})
    assert found.report.trainer == title and found.report.writer.is_guess


def test_musubi_tuner_is_not_named_for_what_it_does_not_train():
    names = [
        f"lora_unet_input_blocks_{block}_1_transformer_blocks_{depth}_attn1_to_q"
        for block in (4, 5, 7, 8)
        for depth in (0, 1)
    ]
    shapes = {
        f"{name}.{role}": shape
        for name in names
        for role, shape in zip(KOHYA, ((4, 1280), (1280, 4), ()), strict=True)
    }
    assert "musubi" not in inspected(shapes).report.trainer
