"""The typed reader of settings: whatever JSON says, what holds is of the type and in the range, and
what was not used is told.
"""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_locksmith.adapters.setting import WORD
from lora_locksmith.files.header import Header, TensorInfo, adapter_config_beside
from lora_locksmith.files.json_text import read_json
from lora_locksmith.planning.plan import PLACED, UNSUPPORTED, make_plan
from lora_locksmith.planning.scale import FROM_RANK, FROM_TENSORS
from lora_locksmith.planning.settings import (
    BOOLEAN,
    INTEGER,
    MODULES,
    PATTERNED,
    TOKENS,
    Values,
    alpha_fault,
    shown,
)
from lora_locksmith.planning.settings import settings as all_settings
from lora_locksmith.planning.target_model import TargetModel, denoiser_network

SETTINGS = {
    name: setting
    for name, setting in all_settings().items()
    if setting.type not in (MODULES, TOKENS, WORD)
}
ALL = {**SETTINGS, **PATTERNED}
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [
            0,
            -1,
            5.5,
            -7,
            10_000_000,
            10**400,
            -(10**400),
            2**53,
            1e308,
            1e-320,
            math.nan,
            math.inf,
            -math.inf,
            1e10,
        ]
    ),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.text(max_size=9),
    st.sampled_from(["16", "nan", "1e999", "true", " 4 ", "\u0664"]),
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def lawful(setting, value):
    if value is None or setting.type == BOOLEAN:
        return value in (None, True, False) and type(value) in (bool, type(None))
    return (
        type(value) is (int if setting.type == INTEGER else float)
        and math.isfinite(value)
        and setting.least <= value <= setting.most
    )


@settings(
    max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.sampled_from(sorted(ALL)), JSON)
def test_any_json_value_gives_a_lawful_one_and_a_word_where_it_was_not_used(name, value):
    setting = ALL[name]
    found, fault = setting.read(value)
    assert found == setting.default or lawful(setting, found)
    if value is None:
        assert (found, fault) == (setting.default, "")
    elif fault:
        assert found == setting.default and name in fault and len(fault) < 300
    else:
        assert float(found) == float(value)


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_ends_of_a_range_are_in_it_and_what_is_beyond_is_not(name):
    setting = ALL[name]
    if setting.type == BOOLEAN:
        assert [setting.read(value) for value in (True, False, 1, 0)] == [
            (True, ""),
            (False, ""),
        ] * 2
        assert all(setting.read(value)[1] for value in (2, -1, "true", 0.5, [], math.nan))
        return
    for value in (setting.least, setting.most):
        assert setting.read(value) == (value, "")
    for value in (
        setting.least - max(1, abs(setting.least) * 1e-9),
        setting.most + max(1, abs(setting.most) * 1e-9),
        True,
        math.nan,
        10**400,
    ):
        assert setting.read(value)[0] == setting.default and setting.read(value)[1]


WORDS = {name: setting for name, setting in all_settings().items() if setting.type == WORD}


@pytest.mark.parametrize("name", WORDS)
def test_a_word_is_one_of_those_that_are_known(name):
    setting = WORDS[name]
    assert setting.words and setting.default is None and setting.needed
    assert [setting.read(word) for word in setting.words] == [(word, "") for word in setting.words]
    for value in ("", "no such word", setting.words[0].upper(), 1, True, [setting.words[0]], {}):
        found, fault = setting.read(value)
        assert found is None and name in fault and setting.words[-1] in fault


@pytest.mark.parametrize(
    ("stated", "module", "tokens"),
    [
        ([3, 1], "text.words", (3, 1)),
        ([], "words", ()),
        ({"words": [3], "head": [4]}, "text.words", (3,)),
        ({"model.text.words": [3]}, "text.words", (3,)),
        ({"words": [3], "text.words": [3]}, "text.words", (3,)),
        ({"words": [3], "text.words": [4]}, "text.words", None),
        ({"head": [4]}, "text.words", None),
        ([3, True], "words", None),
        ([3, 1.0], "words", None),
        ([-1], "words", None),
        ([2**31], "words", None),
        ("3", "words", None),
        (7, "words", None),
    ],
)
def test_token_numbers_of_a_module(stated, module, tokens):
    values = Values({"trainable_token_indices": stated}, "there")
    assert values.of("trainable_token_indices", module) == tokens
    assert bool(values.cautions) == (tokens is None and stated != {"head": [4]})


def test_defaults_are_lawful():
    assert all(lawful(setting, setting.default) for setting in ALL.values())


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(JSON)
def test_a_value_in_a_sentence_is_short_and_of_one_line(value):
    assert len(shown(value)) < 80 and "\n" not in shown(value)


def test_numbers_of_any_length_are_read():
    digits = "9" * 5000
    assert read_json(f'{{"a": {digits}, "b": -{digits}, "c": 3, "d": NaN, "e": 1e400}}')["c"] == 3
    assert read_json(digits) == math.inf and read_json("-" + digits) == -math.inf
    for text in ("[" * 100_000, "{", ""):
        with pytest.raises(ValueError):
            read_json(text)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1e308, -1e308, True, 1 + 2j, None, "4"[:0]]
)
def test_an_alpha_of_which_no_strength_can_be_made(value):
    assert "alpha" in alpha_fault(value)
    assert not alpha_fault(value, counts=False)


@pytest.mark.parametrize("value", [0, 1, -4.5, 1e6, 2**-20])
def test_an_alpha_of_which_a_strength_can_be_made(value):
    assert not alpha_fault(value)


# The settings of a whole file

WEIGHTS = {f"diffusion_model.blocks.{i}.lin.weight": (16, 16) for i in range(3)}
SITE = TargetModel([denoiser_network(WEIGHTS)])
ROLES = {
    "lora": {"lora_A.weight": (4, 16), "lora_B.weight": (16, 4)},
    "lokr": {"lokr_w1": (4, 4), "lokr_w2": (4, 4)},
    "loha": {
        "hada_w1_a": (16, 4),
        "hada_w1_b": (4, 16),
        "hada_w2_a": (16, 4),
        "hada_w2_b": (4, 16),
    },
    "oft": {"oft_R.weight": (2, 28)},
}


def keys(kind, spelling="base_model.model."):
    return {
        f"{spelling}blocks.{i}.lin.{role}": shape
        for i in range(3)
        for role, shape in ROLES[kind].items()
    }


def planned(kind, config, in_header=False):
    if in_header:
        return make_plan(
            keys(kind, "transformer."),
            {
                "lora_adapter_metadata": json.dumps(
                    {f"transformer.{k}": v for k, v in config.items()}
                )
            },
            SITE,
        )
    return make_plan(keys(kind), {}, SITE, config_beside=config)


PATTERNS = st.dictionaries(
    st.sampled_from(["lin", "blocks.0.lin", r"blocks\.\d+\.lin", "(?=x)", "*", ".*"]),
    LEAVES,
    max_size=3,
)
CONFIG = st.dictionaries(st.sampled_from(sorted(SETTINGS)), JSON, max_size=5)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(
    st.sampled_from(sorted(ROLES)),
    CONFIG,
    st.one_of(JSON, PATTERNS),
    st.one_of(JSON, PATTERNS),
    st.booleans(),
)
def test_no_settings_break_a_plan_and_every_strength_is_a_number(
    kind, config, alphas, ranks, in_header
):
    plan = planned(kind, config | {"alpha_pattern": alphas, "rank_pattern": ranks}, in_header)
    assert len(plan.adapters) == 3
    for adapter in plan.adapters:
        assert adapter.strength.scale is None or math.isfinite(adapter.strength.scale)
        assert all(lawful(SETTINGS[name], value) for name, value in adapter.options)
    assert all(len(caution) < 700 for caution in plan.cautions)


WRONG = [5.5, 10**400, -7, True, 10_000_000, math.nan, math.inf, 0, "many", [5], {}]


@pytest.mark.parametrize("value", WRONG, ids=shown)
def test_terms_out_of_range_are_the_default_and_told(value):
    plan = planned("oft", {"num_cayley_neumann_terms": value})
    assert plan.adapters[0].options == (), "what holds anyway is not said"
    (caution,) = plan.cautions
    assert "num_cayley_neumann_terms" in caution and "5 is used" in caution


@pytest.mark.parametrize("value", [math.nan, 10**400, -1, True, "x", math.inf], ids=shown)
def test_eps_out_of_range_is_the_default_and_told(value):
    plan = planned("oft", {"coft": True, "eps": value})
    assert dict(plan.adapters[0].options).get("eps", SETTINGS["eps"].default) == 6e-5
    assert "eps" in plan.cautions[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e308, True, "x", [4], 10**400], ids=shown)
@pytest.mark.parametrize("in_header", [True, False])
def test_an_alpha_out_of_range_is_the_rank_and_told(value, in_header):
    plan = planned("lora", {"r": 4, "lora_alpha": value}, in_header)
    assert {adapter.strength for adapter in plan.adapters} == {(None, FROM_RANK, 1.0)}
    assert (
        len(plan.cautions) == 1
        and "lora_alpha" in plan.cautions[0]
        and "alpha = rank" in plan.cautions[0]
    )


@pytest.mark.parametrize("value", [0, -4, 10**400, True, 2.5, math.nan], ids=shown)
def test_a_rank_out_of_range_counts_only_where_it_is_asked_for(value):
    assert [
        adapter.strength.scale
        for adapter in planned("lora", {"r": value, "lora_alpha": 8}).adapters
    ] == [2.0] * 3
    assert not planned("lora", {"r": value, "lora_alpha": 8}).cautions
    plan = planned("lokr", {"r": value, "alpha": 8})
    assert [adapter.strength.scale for adapter in plan.adapters] == [None] * 3
    assert "r is" in plan.cautions[0]


def test_a_value_of_a_pattern_out_of_range_is_the_setting_for_all():
    plan = planned(
        "lora", {"lora_alpha": 8, "alpha_pattern": {"blocks.0.lin": math.nan, "blocks.1.lin": 16}}
    )
    assert [adapter.strength.scale for adapter in plan.adapters] == [2.0, 4.0, 2.0]
    assert len(plan.cautions) == 1 and "alpha_pattern" in plan.cautions[0]
    assert (
        "alpha_pattern"
        in planned("lora", {"lora_alpha": 8, "alpha_pattern": ["blocks.0.lin"]}).cautions[0]
    )


def test_lawful_settings_are_no_caution():
    told = {
        "r": 4,
        "lora_alpha": 8.0,
        "use_rslora": True,
        "alpha_pattern": {},
        "rank_pattern": None,
        "fan_in_fan_out": False,
        "extra": [1],
    }
    plan = planned("lora", told, in_header=True)
    assert [adapter.strength.scale for adapter in plan.adapters] == [4.0] * 3 and not plan.cautions
    told = {"use_cayley_neumann": True, "num_cayley_neumann_terms": 7.0, "eps": 1e-4, "r": 0}
    assert not planned("oft", told).cautions


@pytest.mark.parametrize("text", ["{", "[1]", "3", '"x"', "[" * 100_000])
def test_settings_in_the_header_that_are_none_are_told(text):
    plan = make_plan(keys("lora"), {"lora_adapter_metadata": text}, SITE)
    assert len(plan.adapters) == 3 and "lora_adapter_metadata" in plan.cautions[0]


def test_a_number_of_5000_digits_does_not_cost_the_other_settings(tmp_path):
    text = '{"r": 4, "lora_alpha": 8, "seed": %s}' % ("9" * 5000)
    (tmp_path / "adapter_config.json").write_text(text)
    config = adapter_config_beside(tmp_path / "adapter_model.safetensors")
    assert [
        adapter.strength.scale
        for adapter in make_plan(keys("lora"), {}, SITE, config_beside=config).adapters
    ] == [2.0] * 3
    packed = {
        "lora_adapter_metadata": (
            text.replace('"', '"transformer.', 1).replace('"lora_', '"transformer.lora_')
        )
    }
    assert [
        adapter.strength.scale
        for adapter in make_plan(keys("lora", "transformer."), packed, SITE).adapters
    ] == [2.0] * 3


@pytest.mark.parametrize(
    "dim, scaled",
    [
        ("4", True),
        ("4.0", True),
        ("0", False),
        ("-4", False),
        ("1e999", False),
        ("nan", False),
        ("x", False),
    ],
)
def test_the_rank_of_split_parts(dim, scaled):
    target_model = TargetModel(
        [denoiser_network({"diffusion_model.blocks.0.qkv.weight": (48, 16)}, FAMILIES)]
    )
    shapes = {
        "lora_unet_blocks_0_qkv.lora_down.weight": (12, 16),
        "lora_unet_blocks_0_qkv.lora_up.weight": (48, 12),
    }
    metadata = {"ss_network_args": '{"split_qkv": "True"}', "ss_network_dim": dim}
    plan = make_plan({**shapes, "lora_unet_blocks_0_qkv.alpha": ()}, metadata, target_model)
    (adapter,) = plan.adapters
    assert (adapter.strength.origin != FROM_TENSORS) == scaled == (adapter.strength.factor == 3)
    assert bool(plan.cautions) != scaled and all(
        "ss_network_dim" in caution for caution in plan.cautions
    )


def families():
    from lora_locksmith.key_maps.table import parse_table

    return {
        "home": parse_table("home", "@title Home\n[blocks.{} = stages.{}]\nqkv 3h h = q + k + v\n")
    }


FAMILIES = families()


ALPHAS = {
    "two": (TensorInfo("F32", (2,)), False),
    "none": (TensorInfo("F32", (0,)), False),
    "complex": (TensorInfo("C64", ()), False),
    "bool": (TensorInfo("BOOL", ()), False),
    "one": (TensorInfo("F32", (1, 1)), True),
    "whole number": (TensorInfo("I64", ()), True),
}


@pytest.mark.parametrize("name", ALPHAS)
@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_an_alpha_that_is_not_one_number_refuses_its_adapter(kind, name):
    info, placed = ALPHAS[name]
    tensors = {key: TensorInfo("F32", shape) for key, shape in keys(kind).items()}
    alpha = "base_model.model.blocks.1.lin.alpha"
    plan = make_plan({**tensors, alpha: info}, {}, SITE)
    assert len(plan.adapters) == 2 + placed
    assert plan.outcomes[alpha].category == (PLACED if placed else UNSUPPORTED)
    assert placed or "should be one number" in plan.outcomes[alpha].reason


@pytest.mark.parametrize("name", ALPHAS)
def test_an_alpha_that_does_not_count_refuses_nothing(name):
    tensors = {key: TensorInfo("F32", shape) for key, shape in keys("lokr").items()}
    plan = make_plan({**tensors, "base_model.model.blocks.1.lin.alpha": ALPHAS[name][0]}, {}, SITE)
    assert len(plan.adapters) == 3


def test_a_header_with_such_an_alpha_is_inspected():
    from lora_locksmith.report.inspection import inspect_header

    tensors = {key: TensorInfo("F32", shape) for key, shape in keys("lora").items()}
    found = inspect_header(
        "x",
        Header({**tensors, "base_model.model.blocks.1.lin.alpha": TensorInfo("F32", (2,))}, {}),
        None,
        SITE,
    )
    assert "should be one number" in json.dumps(found.as_dict())


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (["net.2", "proj"], [True, True, False]),
        (["down.proj", "."], [False, True, False]),
        ([], [False, False, False]),
        (r".*net\.\d", [True, False, True]),
        ("net.2|down.proj", [False, True, False]),
        (r"blocks\.0\.net\.(2|3)", [True, False, False]),
        ("(?=net)", [None, None, None]),
        (7, [None, None, None]),
        ({"net.2": 1}, [None, None, None]),
    ],
)
def test_modules_are_meant_by_their_ending_or_by_a_pattern_of_the_whole_name(value, meant):
    values = Values({"feedforward_modules": value}, "adapter_config.json")
    modules = ["blocks.0.net.2", "down.proj", "blocks.0.net.1"]
    assert [values.of("feedforward_modules", module) for module in modules] == meant
    assert len(values.cautions) == (None in meant)
