"""Names seen in issue trackers, converters and the trainers' own code, each on the real models:
where it goes, and what is said of it.
"""

from __future__ import annotations

import comfy_models
import pytest
from lora_locksmith.planning.plan import BOOKKEEPING, NOT_WIRED, PLACED, SHAPE_CONFLICT, make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network, encoder_networks
from lora_locksmith.report.load_report import Report

pytestmark = pytest.mark.usefixtures("comfy")


def target_model_of(model: str = "", encoder: str = "") -> TargetModel:
    try:
        networks = [denoiser_network(comfy_models.shapes(model))] if model else []
        return TargetModel(
            networks + (encoder_networks(comfy_models.encoder_shapes(encoder)) if encoder else [])
        )
    except (comfy_models.NotInThisComfyUI, ImportError, AttributeError) as fault:
        pytest.skip(f"this ComfyUI does not know it: {fault}")


def place(
    target_model: TargetModel, module: str, down: str = "lora_A.weight", up: str = "lora_B.weight"
):
    plan = make_plan({f"{module}.{down}": None, f"{module}.{up}": None}, {}, target_model)
    assert {outcome.category for outcome in plan.outcomes.values()} == {PLACED}, plan.outcomes
    return plan.adapters[0].target.slices


@pytest.mark.parametrize(
    ("model", "module", "weight", "rows"),
    [
        # `diffusion_model.` cut off by length: diffusers
        # _convert_non_diffusers_flux2_lora_to_diffusers
        (
            "flux2_klein_4b",
            "sformer_blocks.0.attn.to_k",
            "double_blocks.0.img_attn.qkv",
            (3072, 3072),
        ),
        ("flux2_klein_4b", "le_transformer_blocks.0.attn.to_out", "single_blocks.0.linear2", None),
        ("flux1_dev", "e_transformer_blocks.0.attn.to_k", "single_blocks.0.linear1", (3072, 3072)),
        ("wan21_t2v_14b", "ks.0.attn1.to_q", "blocks.0.self_attn.q", None),
        # filipstrand/mflux feed_forward.py: a feed-forward's layers by its own names
        (
            "flux1_dev",
            "transformer.transformer_blocks.0.ff.linear1",
            "double_blocks.0.img_mlp.0",
            None,
        ),
        (
            "flux1_dev",
            "transformer.transformer_blocks.0.ff_context.linear2",
            "double_blocks.0.txt_mlp.2",
            None,
        ),
        # `default.` before the name: diffusers _convert_non_diffusers_z_image_lora_to_diffusers
        (
            "z_image",
            "diffusion_model.default.layers.0.attention.to_k",
            "layers.0.attention.qkv",
            (3840, 3840),
        ),
        # ComfyUI #4347: an underscore too many at the end
        (
            "flux1_dev",
            "lora_unet_single_transformer_blocks_1_attn_to_k_",
            "single_blocks.1.linear1",
            (3072, 3072),
        ),
        # XLabs' processors of a model that torch.compile wrapped
        (
            "flux1_dev",
            "lora_unet__orig_mod_double_blocks_0_processor_qkv_lora1",
            "double_blocks.0.img_attn.qkv",
            None,
        ),
        # One resnet in a block: the same name is another block than in SDXL (comfy/utils.py
        # unet_to_diffusers)
        (
            "koala_700m",
            "unet.up_blocks.1.attentions.0.transformer_blocks.1.ff.net.2",
            "output_blocks.2.1.transformer_blocks.1.ff.net.2",
            None,
        ),
        (
            "sdxl",
            "unet.up_blocks.1.attentions.0.transformer_blocks.1.ff.net.2",
            "output_blocks.3.1.transformer_blocks.1.ff.net.2",
            None,
        ),
    ],
)
def test_a_name_seen_in_the_wild_finds_its_weight(model, module, weight, rows):
    assert place(target_model_of(model), module) == (
        (f"diffusion_model.{weight}.weight", rows, None),
    )


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_down.default.weight", "lora_up.default.weight"),
        ("lora_down", "lora_up"),
        ("lora.down.default.weight", "lora.up.default.weight"),
        ("lora_conv_layer.down.weight", "lora_conv_layer.up.weight"),
        (
            "lora_A.default_0.default.weight",
            "lora_B.default_0.default.weight",
        ),  # DiffSynth-Studio #886
    ],
)
def test_a_role_seen_in_the_wild_is_read(down, up):
    assert place(
        target_model_of("flux1_dev"), "transformer.double_blocks.0.img_attn.proj", down, up
    )


@pytest.mark.parametrize(
    "ending",
    ["alpha.default", "lora_alpha", "lora_linear_layer.network_alpha", "network_alpha", "alpha"],
)
def test_an_alpha_joins_its_factors(ending):
    name = "transformer.transformer_blocks.0.attn.to_out.0"
    adapter = ".default" if ending.endswith("default") else ""
    keys = [f"{name}.lora_A{adapter}.weight", f"{name}.lora_B{adapter}.weight", f"{name}.{ending}"]
    plan = make_plan(dict.fromkeys(keys), {}, target_model_of("flux1_dev"))
    assert [sorted(adapter.roles) for adapter in plan.adapters] == [["alpha", "down", "up"]]


@pytest.mark.parametrize(
    ("encoder", "prefix", "slot"),
    [
        ("sdxl", "lora_te2.", "clip_g"),
        ("sdxl", "te2_", "clip_g"),
        ("sdxl", "text_encoder_2_", "clip_g"),
        ("sdxl", "lora_te1_", "clip_l"),
        ("sdxl", "text_encoder.", "clip_l"),
    ],
)
@pytest.mark.parametrize("model", ["", "sdxl"])
def test_a_number_names_a_text_encoder_with_or_without_a_model(model, encoder, prefix, slot):
    pieces = place(target_model_of(model, encoder), f"{prefix}text_model.encoder.layers.0.mlp.fc1")
    assert pieces[0][0] == f"{slot}.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


def test_the_text_encoder_of_wan_is_found_by_its_own_names():
    pieces = place(target_model_of("", "wan"), "text_encoder.blocks.3.ffn.gate.0")
    assert pieces[0][0] == "umt5xxl.transformer.encoder.block.3.layer.1.DenseReluDense.wi_0.weight"


def test_a_bias_without_a_place_takes_no_factors_with_it():
    name = "unet.mid_block.attentions.0.transformer_blocks.1.attn2.to_q"
    shapes = {
        f"{name}.lora_A.weight": (4, 1280),
        f"{name}.lora_B.weight": (1280, 4),
        f"{name}.lora_B.bias": (1280,),
    }
    plan = make_plan(shapes, {}, target_model_of("sdxl"))
    assert [outcome.category for outcome in plan.outcomes.values()] == [
        PLACED,
        PLACED,
        SHAPE_CONFLICT,
    ]


def test_a_text_encoder_that_is_not_wired_hides_no_wrapper():
    keys = [
        f"backbone.double_blocks.{block}.img_attn.proj.lora_{side}.weight"
        for block in (0, 1)
        for side in "AB"
    ]
    encoder = "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"
    plan = make_plan(dict.fromkeys([*keys, encoder]), {}, target_model_of("flux1_dev"))
    assert plan.inferred_prefix == "backbone."
    assert [plan.outcomes[key].category for key in (*keys, encoder)] == [PLACED] * 4 + [NOT_WIRED]


@pytest.mark.parametrize(
    "key",
    [
        "embeddings.indices",
        "epoch",
        "scaled_fp8",
        "text_model.embeddings.position_ids",
        "lora_alpha",
    ],
)
def test_a_note_of_the_trainer_is_no_loss(key):
    assert (
        make_plan({key: ()}, {}, target_model_of("flux1_dev")).outcomes[key].category == BOOKKEEPING
    )


@pytest.mark.parametrize(
    ("family", "modules"),
    [
        # One late block is no proof of a model with just so many
        ("wan", {"transformer.blocks.27.attn1.to_k": (5120, 5120)}),
        # Chroma, FLUX.1 and FLUX.2 share the name and the shape
        ("chroma", {"lora_unet_double_blocks_4_txt_attn_qkv": (9216, 3072)}),
        # ComfyUI #1144: attention processors
        (
            "sdxl",
            {
                "unet.down_blocks.2.attentions.1.transformer_blocks.9.attn2.processor.to_k": (
                    1280,
                    2048,
                )
            },
        ),
    ],
)
def test_a_guess_without_a_model_is_right_or_open(family, modules):
    shapes = {}
    for module, (out, inner) in modules.items():
        shapes |= {f"{module}_lora.down.weight": (4, inner), f"{module}_lora.up.weight": (out, 4)}
    guess = Report(make_plan(shapes, {}, TargetModel())).guess
    assert family in (guess.name, *guess.ties)
