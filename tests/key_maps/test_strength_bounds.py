"""Which of a file's settings hold for which of its networks, and for which modules they give a
strength at all.
"""

from __future__ import annotations

import json

import pytest
from lora_locksmith.adapters.registry import named
from lora_locksmith.key_maps.convention import Conventions
from lora_locksmith.key_maps.evidence import Evidence
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.scale import (
    FROM_CONFIG,
    FROM_HEADER,
    FROM_RANK,
    FROM_TENSORS,
    Settings,
    Strength,
    read_settings,
    scale_of,
    settings_for,
)
from lora_locksmith.planning.target_model import TargetModel, denoiser_network

COMPONENTS = ("transformer", "text_encoder", "text_encoder_2", "unet")


def told(*networks: str) -> dict[str, str]:
    """Header metadata with settings for each of the networks; "" for those that name none."""
    return {
        "lora_adapter_metadata": json.dumps(
            {f"{name}.r".lstrip("."): number for number, name in enumerate(networks, 1)}
        )
    }


@pytest.mark.parametrize(
    ("prefix", "network"),
    [
        ("transformer.", "transformer"),
        ("base_model.model.transformer.", "transformer"),
        ("transformer.base_model.model.", "transformer"),
        ("text_encoder.", "text_encoder"),
        ("text_encoder_2.", "text_encoder_2"),
        ("text_encoder_2.text_model.", "text_encoder_2"),
        ("unet.", "unet"),
        ("my_unet.", None),
        ("unet_2.", None),
        ("unet_", None),
        ("lora_unet_", None),
        ("transformer_2.", None),
        ("", None),
    ],
)
def test_settings_hold_for_the_network_they_name(prefix, network):
    """Its whole name, between dots: text_encoder is not text_encoder_2."""
    settings = read_settings(told(*COMPONENTS), None)
    assert set(settings) == set(COMPONENTS)
    assert settings_for(settings, prefix) is (settings[network] if network else None)


def test_settings_that_name_no_network_hold_for_what_is_left():
    settings = read_settings(told("text_encoder", ""), None)
    assert settings_for(settings, "text_encoder.") is settings["text_encoder"]
    for prefix in ("", "transformer.", "text_encoder_2.", "lora_te1_", "text_encoder"):
        assert settings_for(settings, prefix) is settings[""]


def test_settings_of_the_only_network_that_is_no_text_encoder_hold_for_it_whatever_it_is_called():
    for networks in (("transformer",), ("transformer", "text_encoder", "text_encoder_2")):
        settings = read_settings(told(*networks), None)
        for prefix in ("", "diffusion_model.", "lora_unet_", "base_model.model."):
            assert settings_for(settings, prefix) is settings["transformer"]
        for prefix in ("text_encoder_3.", "lora_te1_"):
            assert settings_for(settings, prefix) is None
    assert settings_for(read_settings(told("text_encoder"), None), "diffusion_model.") is None
    assert settings_for(read_settings({}, None), "") is None


def test_the_settings_in_the_file_go_before_those_beside_it():
    beside = {"r": 1, "lora_alpha": 1}
    both = read_settings(told(""), beside)
    assert list(both) == [""] and both[""].source == FROM_HEADER
    other = read_settings(told("transformer"), beside)
    assert settings_for(other, "transformer.").source == FROM_HEADER
    assert read_settings({}, {}) == {}
    alone = read_settings({}, beside)
    assert list(alone) == [""] and alone[""].source == FROM_CONFIG
    assert settings_for(alone, "text_encoder.") is settings_for(alone, "transformer.") is alone[""]


def test_a_name_that_begins_with_a_dot_names_its_network():
    settings = read_settings(told("", "transformer"), None)
    assert settings_for(settings, ".transformer.") is settings["transformer"]


@pytest.mark.parametrize(
    ("scale", "factor", "by_tensors"),
    [
        (None, 1.0, True),
        (None, 3.0, False),
        (None, 0.0, False),
        (None, 2.0, False),
        (1.0, 1.0, False),
    ],
)
def test_what_alpha_tensor_and_rank_decide_alone(scale, factor, by_tensors):
    assert Strength(scale, FROM_TENSORS, factor).by_tensors is by_tensors
    assert Strength(None, FROM_TENSORS).by_tensors


@pytest.mark.parametrize(
    ("module", "arguments", "rank"),
    [
        ("joint_blocks.0.context_block.attn.qkv", {"context_attn_dim": "4", "x_attn_dim": "5"}, 4),
        ("joint_blocks.0.x_block.attn2.qkv", {"context_attn_dim": "4", "x_attn_dim": "5"}, 5),
        ("joint_blocks.0.x_block.attn.qkv", {"context_attn_dim": "4"}, 2),
        ("layers.0.attention.qkv", {"attn_dim": "4", "refiner_dim": "5"}, 4),
        ("noise_refiner.0.attention.qkv", {"attn_dim": "4", "refiner_dim": "5"}, 4),
        ("noise_refiner.0.attention.qkv", {"refiner_dim": "5"}, 5),
        ("layers.0.attention.qkv", {"refiner_dim": "5"}, 2),
        ("single_blocks.0.linear1", {"single_dim": "5"}, 5),
        ("single_blocks.0.modulation.lin", {"single_dim": "5"}, 2),
        (
            "double_blocks.0.img_attn.qkv",
            {"single_dim": "5", "x_attn_dim": "6", "attn_dim": "7"},
            2,
        ),
        ("double_blocks.0.img_attn.qkv", {"img_attn_dim": "1e9"}, None),
        ("double_blocks.0.img_attn.qkv", {"split_qkv": "False", "img_attn_dim": "4"}, None),
    ],
)
def test_the_rank_of_a_types_splits(module, arguments, rank):
    """sd-scripts networks/lora_flux.py, lora_sd3.py and lora_lumina.py, in their order; 2 is the
    network's.
    """
    metadata = {
        "ss_network_args": json.dumps({"split_qkv": "True"} | arguments),
        "ss_network_dim": "2",
    }
    for name in (module, module.replace(".", "_")):
        merged = [of_a_fused_module(metadata, name, 3 * own).times for own in range(1, 9)]
        assert merged == [3.0 if own == rank else None for own in range(1, 9)]


def of_a_fused_module(metadata, path, rank):
    """What conventions say of a module of three parts."""
    shapes = {"down": (rank, 8), "up": (24, rank), "alpha": ()}
    evidence = Evidence(
        "lora", path, shapes, rank, metadata, {}, lambda role: 1.0, path=path, parts=3
    )
    return Conventions(metadata, {}).meaning(evidence)


@pytest.mark.parametrize("kind", ["diff", "oft_peft", "ia3", "adalora", "moslora"])
def test_kinds_of_which_settings_give_no_strength(kind):
    """What alpha / r does not multiply, and what has a strength of its own."""
    settings = Settings({"r": 4, "lora_alpha": 8}, FROM_CONFIG)
    scaled = named(kind).scaled and not named(kind).own_scale
    assert scale_of(settings, "layer", 4, kind) == (
        Strength(2.0, FROM_CONFIG) if scaled else Strength(None, FROM_RANK)
    )
    assert (
        scale_of(None, "layer", 4, kind)
        == scale_of(None, "layer", 4, "lora")
        == Strength(None, FROM_RANK)
    )
    assert scale_of(settings, "layer", 4, "lora") == Strength(2.0, FROM_CONFIG)
    assert scale_of(settings, "layer", None, "lora") == Strength(None, FROM_RANK)


TRUE = '{"split_qkv": "True"}'


@pytest.mark.parametrize(
    ("metadata", "times", "doubt"),
    [
        ({"ss_network_args": TRUE, "ss_network_dim": "2"}, 3.0, ""),
        ({"ss_network_args": TRUE}, None, "although sd-scripts' split_qkv needs it"),
        (
            {"ss_network_args": TRUE, "ss_network_dim": "Dynamic"},
            None,
            "although sd-scripts' split_qkv needs it",
        ),
        ({"ss_network_args": TRUE, "ss_network_dim": "4"}, None, "not the one"),
        ({"ss_network_args": TRUE, "ss_network_dim": "6"}, None, ""),
        ({"ss_network_args": '{"split_qkv": "False"}', "ss_network_dim": "Dynamic"}, None, ""),
        ({"ss_network_args": '["split_qkv"]', "ss_network_dim": "Dynamic"}, None, ""),
        ({"ss_network_args": "{}", "ss_network_dim": "Dynamic"}, None, ""),
        ({"ss_network_dim": "2"}, None, ""),
    ],
)
def test_the_rank_of_splits_and_why_it_is_not_known(metadata, times, doubt):
    found = of_a_fused_module(metadata, "double_blocks.0.img_attn.qkv", 6)
    assert found.times == times and doubt in "".join(found.cautions)
    assert bool(found.cautions) == bool(doubt)


@pytest.fixture(scope="module")
def target_model():
    return TargetModel(
        [
            denoiser_network(
                {"diffusion_model.layer.weight": (8, 8), "diffusion_model.layer.bias": (8,)}
            )
        ]
    )


LORA = {"layer.lora_A.weight": (4, 8), "layer.lora_B.weight": (8, 4)}
LOHA = {
    "layer.hada_w1_a": (8, 2),
    "layer.hada_w1_b": (2, 8),
    "layer.hada_w2_a": (8, 2),
    "layer.hada_w2_b": (2, 8),
}
LOKR = {"layer.lokr_w1": (2, 2), "layer.lokr_w2_a": (4, 2), "layer.lokr_w2_b": (2, 4)}
LOKR_LEFT = {"layer.lokr_w1_a": (2, 1), "layer.lokr_w1_b": (1, 2), "layer.lokr_w2": (4, 4)}
FULL_LOKR = {"layer.lokr_w1": (2, 2), "layer.lokr_w2": (4, 4)}


def strength(target_model, keys, config, kind=None):
    adapters = {
        adapter.kind: adapter
        for adapter in make_plan(keys, {}, target_model, config_beside=config).adapters
    }
    return adapters[kind].strength if kind else next(iter(adapters.values())).strength


@pytest.mark.parametrize(
    ("keys", "config", "scale"),
    [
        (LORA, {"r": 4, "lora_alpha": 8}, 2.0),
        (LORA, {"r": 16, "lora_alpha": 8}, 2.0),  # the rank is the factors'
        (LORA, {"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        (LORA, {"r": 4, "lora_alpha": 8, "use_rslora": False}, 2.0),
        (LORA, {"r": 4, "lora_alpha": 0}, 0.0),
        (LORA, {"r": 4, "alpha": 2}, 0.5),
        (LORA, {"r": 4, "lora_alpha": 8, "alpha": 2}, 2.0),
        (LORA, {"r": 4}, None),
        (LORA, {"r": 4, "lora_alpha": True}, None),
        (LORA, {"r": 4, "lora_alpha": "eight"}, None),
        ({"layer.lora_A.weight": (1, 8), "layer.lora_B.weight": (8, 1)}, {"lora_alpha": 3}, 3.0),
        (
            {"layer.lora_A.weight": (0, 8), "layer.lora_B.weight": (8, 0)},
            {"r": 0, "lora_alpha": 3},
            None,
        ),
        (LOHA, {"r": 9, "alpha": 8}, 4.0),
        (LOHA, {"alpha": 8, "use_rslora": True}, 8 / 2**0.5),
        (LOHA, {"alpha": 8, "rank_stabilized": True}, 8 / 2**0.5),
        (
            LOKR,
            {"r": 8, "alpha": 4},
            0.5,
        ),  # PEFT divides by the rank that was asked for, not by the one there was room for
        (LOKR_LEFT, {"r": 8, "alpha": 4}, 0.5),
        (FULL_LOKR, {"r": 8, "alpha": 4}, 0.5),
        (FULL_LOKR, {"r": 1, "alpha": 4}, 4.0),
        (FULL_LOKR, {"r": 0, "alpha": 4}, None),
        (FULL_LOKR, {"r": -8, "alpha": 4}, None),
        (FULL_LOKR, {"alpha": 4}, None),
        (LOKR, {"r": 8, "alpha": 4, "rank_pattern": {"layer": 2}}, 2.0),
        (
            LORA,
            {"r": 4, "lora_alpha": 8, "rank_pattern": {"layer": 2}, "alpha_pattern": {"layer": 4}},
            1.0,
        ),
        ({"layer.diff": (8, 8)}, {"r": 4, "lora_alpha": 8}, None),
        ({"layer.oft_R.weight": (2, 6)}, {"r": 4, "lora_alpha": 8}, None),
    ],
)
def test_the_strength_that_settings_give(target_model, keys, config, scale):
    found = strength(target_model, keys, config)
    assert found.scale == scale
    assert found.origin == (FROM_CONFIG if scale is not None else FROM_RANK)


def test_a_bias_is_as_strong_as_its_factors(target_model):
    keys = LORA | {"layer.lora_B.bias": (8,)}
    found = strength(target_model, keys, {"r": 4, "lora_alpha": 8}, "bias_lora")
    assert (found.scale, found.origin) == (2.0, FROM_CONFIG)
    (bias,) = [
        adapter
        for adapter in make_plan(keys | {"layer.alpha": ()}, {}, target_model).adapters
        if adapter.kind == "bias_lora"
    ]
    assert (set(bias.roles), bias.rank) == ({"up_bias", "alpha", "down"}, 4)
    (factors,) = [
        adapter for adapter in make_plan(keys, {}, target_model).adapters if adapter.kind == "lora"
    ]
    assert set(factors.roles) == {"up", "down"}
    with_alpha = strength(
        target_model, keys | {"layer.alpha": ()}, {"r": 4, "lora_alpha": 8}, "bias_lora"
    )
    assert (with_alpha.scale, with_alpha.origin) == (None, FROM_TENSORS)
    assert (
        strength(target_model, keys, None).scale,
        strength(target_model, keys, None).origin,
    ) == (
        None,
        FROM_RANK,
    )


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '"text"', "{", "[" * 100_000, '{"transformer": {"r": 4}}']
)
def test_settings_in_the_header_that_are_none(target_model, text):
    plan = make_plan(LORA, {"lora_adapter_metadata": text}, target_model)
    assert plan.adapters[0].strength.origin == FROM_RANK


SPOILT = (
    "split_qkv",
    "[]",
    '"split_qkv"',
    "[" * 100_000 + "split_qkv",
    '{"split_qkv": NaN}',
    '{"split_qkv": 1}',
)


@pytest.mark.parametrize("arguments", SPOILT)
@pytest.mark.parametrize("dim", ["2", "", "NaN", "Infinity", "1e999"])
def test_split_qkv_that_cannot_be_read_corrects_nothing(target_model, arguments, dim):
    plan = make_plan(
        LORA | {"layer.alpha": ()},
        {"ss_network_args": arguments, "ss_network_dim": dim},
        target_model,
    )
    assert plan.adapters[0].strength.factor == 1.0
