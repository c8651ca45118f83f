"""Which new names a planned file gets: every row of every weight once, for every family and
dialect, without torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import comfy_models
import pytest
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.lora.rewrite.peft_config import PeftTraining, adapter_config
from lora_locksmith.lora.rewrite.rename import Refused, output_format_for, plan_renames, writable
from lora_locksmith.planning.names import spell
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network, encoder_networks

ROOT = Path(__file__).resolve().parents[2]
RANK = 4
FAMILIES = ("sd15", "sdxl", "sd3_medium", "flux1_dev", "z_image", "auraflow", "wan21_t2v_1_3b")
SPELLINGS = {
    "flat": ("lora_down.weight", "lora_up.weight"),
    "dotted": ("lora_A.weight", "lora_B.weight"),
}


@pytest.fixture(params=FAMILIES, scope="module")
def target_model(request, comfy):
    return TargetModel([denoiser_network(comfy_models.shapes(request.param))])


def file_in(target_model, dialect, network=DENOISER):
    """A LoRA on every module of a network, as `dialect` names them: name -> shape."""
    down, up = SPELLINGS[dialect.form]
    keys = {}
    for spelled in spell(target_model, target_model.networks[network], dialect):
        out, *inner = spelled.shape
        keys |= {
            f"{spelled.module}.{down}": (RANK, *inner),
            f"{spelled.module}.{up}": (out, RANK, *(1 for _ in inner[1:])),
        }
    return keys


@pytest.mark.parametrize("source", ["diffusers", "comfyui"])
def test_every_row_goes_somewhere_once_in_every_dialect(target_model, source):
    plan = make_plan(file_in(target_model, dialects()[source]), {}, target_model)
    for dialect in writable():
        found = plan_renames(plan, dialect)
        assert not found.refusals, (dialect, found.refusals)
        assert len({unit.module for unit in found.units}) == len(found.units)
        taken: dict[int, list[tuple[int, int]]] = {index: [] for index in range(len(plan.adapters))}
        for part in (part for unit in found.units for part in unit.parts):
            taken[part.adapter].append(part.rows or (0, plan.adapters[part.adapter].target.out))
        for index, pieces in taken.items():
            end = 0
            for start, length in sorted(pieces):
                assert start == end, (dialect, plan.adapters[index].module)
                end += length
            assert end == plan.adapters[index].target.out, (dialect, plan.adapters[index].module)


@pytest.mark.parametrize("dialect", ["comfyui", "diffusers", "kohya"])
def test_a_file_that_has_the_names_keeps_them(target_model, dialect):
    writing = output_format_for(dialect, target_model.family.name)
    keys = file_in(target_model, dialects()[writing.record]._replace(names=writing.names))
    plan = make_plan(keys, {}, target_model)
    units = plan_renames(plan, dialect).units
    assert {unit.module for unit in units} == {adapter.module for adapter in plan.adapters}
    assert all(part.rows is None and part.into is None for unit in units for part in unit.parts)


def test_sd_scripts_names_of_stable_diffusion_are_those_of_diffusers(comfy):
    for name, expected in (
        ("sd15", "lora_unet_down_blocks_0_"),
        ("sdxl", "lora_unet_input_blocks_1_"),
    ):
        target_model = TargetModel([denoiser_network(comfy_models.shapes(name))])
        plan = make_plan(file_in(target_model, dialects()["diffusers"]), {}, target_model)
        assert any(unit.module.startswith(expected) for unit in plan_renames(plan, "kohya").units)


@pytest.mark.parametrize(
    "name, start",
    [
        ("flux1_dev", "transformer."),
        ("sd3_medium", "transformer."),
        ("sdxl", "lora_unet_down_blocks_"),
    ],
)
def test_diffusion_pipe_reads_again_what_is_written_for_it(comfy, name, start):
    """Its FLUX.1, SD 3 and SDXL are diffusers' models (models/flux.py, sd3.py, sdxl.py), where
    init_from_existing finds no native name.
    """
    target_model = TargetModel([denoiser_network(comfy_models.shapes(name))])
    plan = make_plan(file_in(target_model, dialects()["comfyui"]), {}, target_model)
    assert any(unit.module.startswith(start) for unit in plan_renames(plan, "diffusion_pipe").units)


def test_text_encoders_get_the_names_each_tool_has_for_them(comfy):
    target_model = TargetModel(
        [
            denoiser_network(comfy_models.shapes("sdxl")),
            *encoder_networks(comfy_models.encoder_shapes("sdxl")),
        ]
    )
    keys = file_in(target_model, dialects()["comfyui"], "clip_l") | file_in(
        target_model, dialects()["comfyui"], "clip_g"
    )
    plan = make_plan(keys, {}, target_model)
    starts = {
        "kohya": {"lora_te1_", "lora_te2_"},
        "diffusers": {"text_encoder.", "text_encoder_2."},
    }
    for dialect, expected in starts.items():
        found = plan_renames(plan, dialect)
        assert not found.refusals
        assert {unit.prefix for unit in found.units} == expected
        # transformers 5 dropped this word; sd-scripts, stock ComfyUI and diffusers with an older
        # transformers need it.
        assert all(unit.name.startswith(("text_model", "text_projection")) for unit in found.units)
    assert plan_renames(plan, "peft").refusals == (
        "PEFT has no names for the text encoder clip_l",
        "PEFT has no names for the text encoder clip_g",
    )


# What OneTrainer (commit 23df383) writes as its kohya format, by modules/util/convert_lora_util.py
# and modules/model/*.py: each model's count of modules under q, k and v as it fuses them, and names
# that are neither ComfyUI's nor diffusers' flattened.
OF_ONETRAINER = {
    "hunyuan_video": (
        344,
        {
            "time_in_mlp_0",
            "txt_in_c_embedder_linear_2",
            "txt_in_individual_token_refiner_blocks_1_mlp_fc1",
            "double_blocks_3_img_attn_qkv",
            "double_blocks_3_txt_mod_linear",
            "double_blocks_3_img_mlp_fc2",
            "single_blocks_39_modulation_linear",
            "single_blocks_39_linear1",
        },
    ),
    "z_image": (
        278,
        {
            "all_x_embedder_2-1",
            "layers_7_attention_to_q",
            "layers_7_attention_to_out_0",
            "all_final_layer_2-1_linear",
        },
    ),
    "stable_cascade_c": (
        839,
        {"down_blocks_0_2_attention_attn_in_proj_0", "up_blocks_1_2_attention_attn_out_proj"},
    ),
}


@pytest.mark.parametrize("name", OF_ONETRAINER)
def test_onetrainer_gets_the_names_that_its_strict_reader_has(comfy, name):
    target_model = TargetModel([denoiser_network(comfy_models.shapes(name))])
    plan = make_plan(file_in(target_model, dialects()["diffusers"]), {}, target_model)
    found = plan_renames(plan, "onetrainer")
    count, some = OF_ONETRAINER[name]
    assert not found.refusals and len(found.units) == count
    assert {f"lora_unet_{module}" for module in some} <= {unit.module for unit in found.units}


def test_onetrainer_numbers_its_text_encoders(comfy):
    for name, slots in (
        ("flux1_dev", {"clip_l": "lora_te1_", "t5xxl": "lora_te2_"}),
        ("hidream", {"clip_l": "lora_te1_"}),
    ):
        target_model = TargetModel(
            [
                denoiser_network(comfy_models.shapes(name)),
                *encoder_networks(comfy_models.encoder_shapes("flux1")),
            ]
        )
        for slot, prefix in slots.items():
            units = plan_renames(
                make_plan(file_in(target_model, dialects()["comfyui"], slot), {}, target_model),
                "onetrainer",
            ).units
            assert {unit.prefix for unit in units} == {prefix}


def test_keys_without_a_place_are_refused_or_left_out_with_their_reason(comfy):
    target_model = TargetModel([denoiser_network(comfy_models.shapes("flux1_dev"))])
    keys = file_in(target_model, dialects()["diffusers"]) | {
        "transformer.nowhere.lora_A.weight": (4, 8),
        "transformer.nowhere.lora_B.weight": (8, 4),
    }
    plan = make_plan({**keys, "step": ()}, {}, target_model)
    found = plan_renames(plan, "kohya")
    assert len(found.refusals) == 1 and "transformer.nowhere" in found.refusals[0]
    dropped = plan_renames(plan, "kohya", drop=True)
    assert not dropped.refusals and set(dropped.left_out) == {
        "transformer.nowhere.lora_A.weight",
        "transformer.nowhere.lora_B.weight",
        "step",
    }
    assert "unknown module" in dropped.left_out["transformer.nowhere.lora_A.weight"]


def test_a_size_that_is_not_known_cannot_be_divided(comfy):
    weights = dict.fromkeys(comfy_models.shapes("flux1_dev"), (0, 0))
    known = TargetModel([denoiser_network(comfy_models.shapes("flux1_dev"))])
    target_model = TargetModel(
        [
            type(known.networks[DENOISER])(
                DENOISER, "diffusion_model.", weights, known.family, is_reference=True
            )
        ]
    )
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    plan = make_plan(
        {f"{name}.lora_down.weight": (4, 96), f"{name}.lora_up.weight": (288, 4)}, {}, target_model
    )
    assert len(plan.adapters) == 1
    assert plan_renames(plan, "kohya").refusals == ()
    assert [unit.module for unit in plan_renames(plan, "diffusers").units] != [] or plan_renames(
        plan, "diffusers"
    ).refusals


def test_a_dialect_that_is_only_read_is_refused_by_name():
    with pytest.raises(Refused, match=r"xlabs.*comfyui"):
        output_format_for("xlabs", "flux1")


def peft_takes(config, module):
    """How PEFT chooses its targets: peft tuners/tuners_utils.py check_target_module_exists."""

    def ends(names):
        return any(module == name or module.endswith(f".{name}") for name in names or ())

    return ends(config["target_modules"]) and not ends(config["exclude_modules"])


def peft_value(config, patterns, default, module):
    """peft utils/other.py get_pattern_key."""
    key = next((key for key in config[patterns] if re.match(rf"(.*\.)?({key})$", module)), None)
    return config[patterns].get(key, config[default])


def test_peft_would_take_just_these_modules_with_just_these_strengths():
    known = ["proj_out", "a.proj_out", "b.proj_out", "a.b.proj_out", "a.to_q", "b.to_q"]
    modules = {
        "proj_out": PeftTraining(8, 0.5),
        "b.proj_out": PeftTraining(4, 1.0),
        "a.to_q": PeftTraining(4, 1.0),
        "b.to_q": PeftTraining(4, 0.3),
    }
    config = adapter_config(modules, known)
    assert {module for module in known if peft_takes(config, module)} == set(modules)
    for module, item in modules.items():
        rank = peft_value(config, "rank_pattern", "r", module)
        assert rank == item.rank
        assert peft_value(config, "alpha_pattern", "lora_alpha", module) / rank == pytest.approx(
            item.scale
        )


def test_no_torch_is_imported():
    code = (
        "import sys, importlib.util as u; root = sys.argv[1];spec ="
        " u.spec_from_file_location('lora_locksmith', root + '/__init__.py',"
        " submodule_search_locations=[root]);sys.modules['lora_locksmith'] = m ="
        " u.module_from_spec(spec); spec.loader.exec_module(m);import"
        " lora_locksmith.lora.rewrite.rename as r, lora_locksmith.commands.fix; r.writable();assert"
        " 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT)], check=True)
