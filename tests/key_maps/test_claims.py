"""Metadata that name another model than names and shapes do are told, and never count."""

from __future__ import annotations

import comfy_models
import pytest
from architectures import ARCHITECTURES, OTHERS
from lora_locksmith.files.header import Header, TensorInfo
from lora_locksmith.messages import translate
from lora_locksmith.report.inspection import inspect_header
from lora_locksmith.report.markdown import markdown
from model_files import file_for, held, inspected, matters

WRONG = [
    ("flux1_dev", {"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL", "FLUX.1"),
    ("flux1_dev", {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL", "FLUX.1"),
    ("sdxl", {"ss_network_module": "networks.lora_flux"}, "FLUX.1", "SDXL"),
    ("sd15", {"ss_base_model_version": "sdxl_1.0"}, "SDXL", "Stable Diffusion 1.5"),
    ("sdxl", {"ss_base_model_version": "sd_1.5"}, "Stable Diffusion 1.5", "SDXL"),
    ("qwen_image", {"ss_base_model_version": "flux1"}, "FLUX.1", "Qwen-Image"),
    ("z_image", {"ss_network_module": "networks.lora_wan"}, "Wan", "Z-Image"),
    (
        "wan21_t2v_14b",
        {
            "software": '{"name": "ai-toolkit", "version": "0.7"}',
            "ss_base_model_version": "sdxl_1.0",
        },
        "SDXL",
        "Wan 14B",
    ),
    (
        "flux2_klein_4b",
        {"ss_base_model_version": "flux2_klein_9b"},
        "FLUX.2 klein 9B",
        "FLUX.2 klein 4B",
    ),
    ("wan22_ti2v_5b", {"ss_base_model_version": "wan_2.2_14b"}, "Wan 14B", "Wan 2.2 5B"),
    (
        "sd35_large",
        {"modelspec.architecture": "stable-diffusion-3-medium/lora"},
        "Stable Diffusion 3 / 3.5 medium",
        "Stable Diffusion 3 / 3.5 large",
    ),
]


@pytest.mark.parametrize(("name", "metadata", "claimed", "actual"), WRONG)
def test_a_contradiction_is_told_in_one_sentence(target_model_of, name, metadata, claimed, actual):
    """With a model and without; names and shapes win."""
    shapes = file_for(target_model_of(name))
    key = next(key for key in metadata if key != "software")
    sentence = (
        f"The metadata say {claimed} ({key} = {metadata[key]}); names and shapes say {actual},"
        " and they count."
    )
    alone = inspected(shapes, metadata)
    assert alone.family.title == actual and alone.family.name == comfy_models.MODELS[name].family
    assert alone.report.contradiction == sentence
    assert sentence in markdown(alone) and sentence in alone.as_dict()["family"]["contradiction"]
    assert translate(sentence_of(alone), "zh") != sentence
    wired = held(shapes, target_model_of(name), metadata).report
    assert wired.contradiction == sentence and wired.state == "good" and wired.mismatch == ""
    assert sentence in wired.text() and wired.text().count(sentence) == 1


def sentence_of(inspection):
    return inspection.report.contradiction


RIGHT = [
    (name, value)
    for name, values in (
        *ARCHITECTURES.items(),
        *(
            (name, OTHERS[model.family])
            for name, model in comfy_models.MODELS.items()
            if model.family in OTHERS
        ),
    )
    for value in values
    # of another size of the family
    if not any(
        size in value.lower() for size in ("1.3b", "5b", "9b", "14b", "4b", "large", "medium")
    )
]


@pytest.mark.parametrize(("name", "value"), RIGHT[::3])
def test_metadata_that_are_right_contradict_nothing(target_model_of, name, value):
    shapes = file_for(target_model_of(name), matters)
    for key in ("modelspec.architecture", "ss_base_model_version"):
        assert inspected(shapes, {key: value}).report.contradiction == "", (key, value)


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("chroma", {"ss_network_module": "networks.lora_flux"}),  # sd-scripts trains both with it
        ("flux1_dev", {"ss_network_module": "networks.lora"}),
        ("flux1_dev", {"modelspec.architecture": "something of my own"}),
        ("anima", {"ss_base_model_version": "anima"}),
        ("wan21_t2v_14b", {"modelspec.architecture": "wan2.1/lora"}),
        ("wan22_i2v_14b", {"modelspec.architecture": "wan2.1/lora"}),
    ],
)
def test_what_says_nothing_of_another_model_is_no_contradiction(target_model_of, name, metadata):
    shapes = file_for(target_model_of(name), matters)
    assert inspected(shapes, metadata).report.contradiction == ""
    assert held(shapes, target_model_of(name), metadata).report.contradiction == ""


def test_a_file_of_a_part_that_two_models_have_is_not_contradicted_by_either(target_model_of):
    """FLUX.1's attention is Chroma's, too, and the connected model decides."""
    attention = file_for(target_model_of("flux1_dev"), lambda module: "_attn.qkv" in module)
    for value, wired in (("flux1", "chroma"), ("chroma", "flux1_dev")):
        report = held(attention, target_model_of(wired), {"ss_base_model_version": value}).report
        assert report.contradiction == "" and report.modules["placed"] == 38
    odd = held(attention, target_model_of("chroma"), {"ss_base_model_version": "sdxl"}).report
    assert "say SDXL" in odd.contradiction and "say Chroma" in odd.contradiction


def test_a_file_whose_model_cannot_be_told_contradicts_nothing():
    shapes = {"lora_unet_strange_x.lora_down.weight": (4, 64)}
    assert inspected(shapes, {"ss_base_model_version": "sdxl"}).report.contradiction == ""


STAGED = [
    ({"ss_sd_model_name": "wan2.2_t2v_high_noise_14B_fp16.safetensors"}, "a", "high noise"),
    ({"ss_output_name": "mine-LowNoise"}, "a", "low noise"),
    ({}, "mine_HIGH-NOISE_rank16", "high noise"),
    ({"modelspec.title": "mine high_noise"}, "mine_low_noise", "high noise"),
    ({"ss_output_name": "high_noise and low_noise"}, "a", ""),
    ({}, "noise_low_and_high", ""),
]


@pytest.mark.parametrize(("metadata", "file", "stage"), STAGED)
def test_a_stage_of_wan_2_2_is_told_where_the_file_says_so_itself(
    target_model_of, metadata, file, stage
):
    """In a note, whatever model is connected: shapes do not tell the two apart."""
    shapes = file_for(target_model_of("wan21_t2v_14b"), matters)
    tensors = {key: TensorInfo("F32", shape) for key, shape in shapes.items()}
    header = Header(tensors, metadata)
    for target_model in (None, target_model_of("wan21_t2v_14b")):
        report = inspect_header(f"{file}.safetensors", header, None, target_model).report
        assert (report.stage.name if report.stage else "") == stage
        told = [note for note in report.notes() if note.startswith("It says it is for the")]
        assert bool(told) == bool(stage) and all(f"the {stage} model" in note for note in told)
        assert report.state == "good" and report.mismatch == ""


def test_other_models_have_no_stages(target_model_of):
    shapes = file_for(target_model_of("flux1_dev"), matters)
    assert inspected(shapes, {"ss_output_name": "high_noise"}).report.stage is None
