"""A file held against a model: a right one is never called wrong, a lacking branch is called that,
and a wrong base says what the user needs.
"""

from __future__ import annotations

import comfy_models
import pytest
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.key_maps.table import families
from lora_locksmith.messages import translate
from lora_locksmith.planning.target_model import TargetModel, denoiser_network
from lora_locksmith.report.base_model import BRANCHES
from model_files import RANK, file_for, held, matters, modules, pair

every_model = pytest.mark.parametrize("name", comfy_models.MODELS)

ODD = pair("diffusion_model.blocks.0.no_such_layer", 64, (64,)) | pair(
    "diffusion_model.extra_head.proj", 96, (32,)
)


@every_model
def test_a_right_file_is_never_called_wrong(target_model_of, name):
    """Also with modules that no model has."""
    target_model = target_model_of(name)
    shapes = file_for(target_model)
    assert held(shapes, target_model).report.mismatch == ""
    report = held(shapes | ODD, target_model).report
    assert (report.mismatch, report.lacking) == ("", "")
    assert report.modules == {"placed": len(modules(shapes)), "total": len(modules(shapes)) + 2}
    assert report.state == "part"


@every_model
def test_nor_where_the_model_is_quantised_or_has_layers_of_another_pack(target_model_of, name):
    weights = dict(target_model_of(name).networks[DENOISER].weights)
    for weight, shape in list(weights.items()):
        if weight.endswith(".weight") and len(shape) > 1:
            weights[f"{weight.removesuffix('weight')}scale_weight"] = ()
            weights[f"{weight.removesuffix('weight')}comfy_quant"] = (40,)
    weights |= {f"diffusion_model.adapter.{n}.to_k_ip.weight": (64, 48) for n in range(40)}
    quantised = TargetModel([denoiser_network(weights)])
    report = held(file_for(target_model_of(name)) | ODD, quantised).report
    assert report.mismatch == "" and report.modules["total"] - report.modules["placed"] == 2


WRONG = [
    ("wan21_t2v_14b", "wan21_t2v_1_3b", "made for Wan 14B; this is Wan 2.1 1.3B: nothing can load"),
    ("wan21_t2v_1_3b", "wan21_t2v_14b", "made for Wan 2.1 1.3B; this is Wan 14B: nothing can load"),
    ("wan22_ti2v_5b", "wan21_t2v_14b", "made for Wan 2.2 5B; this is Wan 14B: nothing can load"),
    (
        "flux2_klein_9b",
        "flux2_klein_4b",
        "made for FLUX.2 klein 9B; this is FLUX.2 klein 4B: nothing can load",
    ),
    (
        "flux2_klein_4b",
        "flux2_dev",
        "made for FLUX.2 klein 4B; this is FLUX.2 dev: nothing can load",
    ),
    (
        "sd35_large",
        "sd35_medium",
        "made for Stable Diffusion 3 / 3.5 large; this is Stable Diffusion 3 / 3.5 medium:"
        " nothing can load",
    ),
    ("ltxv_13b", "ltxv_2b", "made for LTX-Video 13B; this is LTX-Video 2B: nothing can load"),
    ("cogvideox_2b", "cogvideox_15_5b", "made for CogVideoX 2B; this is CogVideoX 5B, 1.5: "),
    ("hunyuan3d_2", "hunyuan3d_2_mini", "made for Hunyuan3D 2; this is Hunyuan3D 2 mini: "),
    ("flux1_dev", "chroma", "made for FLUX.1; this is Chroma: "),
    ("sdxl", "flux1_dev", "made for SDXL; this is FLUX.1: nothing can load"),
    ("sd15", "sd21", "made for Stable Diffusion 1.5; this is Stable Diffusion 2.1: "),
    (
        "z_image",
        "lumina2",
        "made for Z-Image; this is Lumina-Image 2.0: 99 % of its layers have no",
    ),
]


@pytest.mark.parametrize(("made_for", "wired", "words"), WRONG)
def test_a_wrong_base_says_both_models(target_model_of, made_for, wired, words):
    report = held(file_for(target_model_of(made_for), matters), target_model_of(wired)).report
    assert words[0].upper() + words[1:] in report.mismatch and words in report.verdict
    assert report.state == "bad" and report.guess.title in report.remedy
    assert translate(report.mismatch, "zh") != report.mismatch


LACKING = [
    ("wan21_i2v_14b", "wan21_t2v_14b", "the image branch of Wan 2.1 I2V; this model has none"),
    ("wan21_i2v_14b", "wan22_i2v_14b", "the image branch of Wan 2.1 I2V; this model has none"),
    ("wan21_vace_14b", "wan21_t2v_14b", "the VACE branch of Wan VACE; this model has none"),
    (
        "sd35_medium",
        "sd3_medium",
        "the second attention of Stable Diffusion 3.5 medium; this model has none",
    ),
    ("flux1_dev", "flux1_schnell", "the guidance embedder of FLUX.1 dev; this model has none"),
]


@pytest.mark.parametrize(("made_for", "wired", "words"), LACKING)
def test_a_loss_that_is_one_branch_is_said_as_that(target_model_of, made_for, wired, words):
    shapes = file_for(target_model_of(made_for))
    report = held(shapes, target_model_of(wired)).report
    assert report.mismatch == "" and report.state == "part"
    assert report.lacking.endswith(f"{words}; the rest loads.") and words in report.verdict
    assert translate(report.lacking, "zh") != report.lacking
    more = held(shapes | ODD, target_model_of(wired)).report
    assert more.lacking.endswith(f"{words}; 2 others have no counterpart here.")
    assert held(shapes, target_model_of(made_for)).report.lacking == ""


def test_inputs_of_another_width_are_named(target_model_of):
    """Of Fill on dev, and of image to video on text to video."""
    fill = file_for(target_model_of("flux1_fill"))
    report = held(fill, target_model_of("flux1_dev")).report
    assert report.mismatch == ""
    assert report.lacking == (
        "Made for FLUX.1 Fill; this is FLUX.1; the file's img_in has 384 inputs, this model's 64;"
        " the rest loads."
    )
    embedding = pair("diffusion_model.patch_embedding", 5120, (36, 1, 2, 2))
    up = "diffusion_model.patch_embedding.lora_B.weight"
    embedding[up] = (5120, RANK, 1, 1, 1)
    wan = file_for(target_model_of("wan21_t2v_14b")) | embedding
    report = held(wan, target_model_of("wan21_t2v_14b")).report
    assert report.mismatch == ""
    assert report.lacking == (
        "The file's patch_embedding has 36 inputs, this model's 16; the rest loads."
    )


def test_a_model_that_no_table_knows_is_no_wrong_base_while_most_loads(target_model_of):
    known = target_model_of("wan21_t2v_14b").networks[DENOISER]
    few = {
        weight: shape
        for weight, shape in known.weights.items()
        if ".self_attn." in weight or ".ffn." in weight
    }
    few |= {f"diffusion_model.strange.{'x' * n}.weight": (64, 48) for n in range(1, 40)}
    strange = TargetModel([denoiser_network(few)])
    assert strange.family is None
    shapes = file_for(target_model_of("wan21_t2v_14b"), lambda module: ".self_attn." in module)
    report = held(shapes | ODD, strange).report
    assert report.modules["placed"] == 160 and report.mismatch == ""
    sdxl = held(file_for(target_model_of("sdxl")), strange).report
    assert sdxl.mismatch == "Made for SDXL; this is another model: nothing can load."


def test_every_branch_of_the_tables_has_words():
    branches = {branch.what for family in families().values() for branch in family.branches}
    assert branches == BRANCHES.keys()
