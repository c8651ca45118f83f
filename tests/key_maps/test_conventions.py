"""Convention records: their language, the pack's own records, and what each says of the files that
it is about.
"""

from __future__ import annotations

import json
from string import Formatter

import pytest
from lora_locksmith.key_maps.convention import (
    USUAL,
    ConventionError,
    Conventions,
    conventions,
    read_convention,
)
from lora_locksmith.key_maps.evidence import Evidence
from lora_locksmith.messages import Message, catalog, languages, translate
from lora_locksmith.planning.plan import PLACED, UNSUPPORTED, make_plan

PAIR = {"down": (4, 8), "up": (8, 4)}
WITH_ALPHA = {**PAIR, "alpha": ()}
WHOLE_LOKR = {"lokr_w1": (4, 4), "lokr_w2": (8, 8), "alpha": ()}
RS_LORA = {"ss_network_args": json.dumps({"rs_lora": "True"}), "ss_network_alpha": "2"}
ANIMA = {
    "ss_network_args": json.dumps({"algo": "lokr", "factor": 8}),
    "ss_network_dim": "32",
    "ss_network_alpha": "1",
}


def meaning(
    shapes,
    kind="lora",
    rank=4,
    metadata=None,
    settings=None,
    alpha=None,
    name="lora_unet_block",
    known=None,
):
    """What conventions say of one adapter."""
    evidence = Evidence(
        kind, name, shapes, rank, metadata or {}, settings or {}, {"alpha": alpha}.get
    )
    return Conventions(evidence.metadata, evidence.settings, known).meaning(evidence)


def record(folder, text, name="example"):
    """Read a record with this text."""
    path = folder / f"{name}.convention"
    path.write_text(text, "utf-8")
    return read_convention(path)


def test_every_record_of_the_pack_names_its_sources():
    assert len(conventions()) >= 10
    assert all(convention.sources and convention.title for convention in conventions())


def sentences(convention):
    """What people read of a record when it refuses or doubts."""
    return {text for case in convention.cases for text in (case.refuse, case.caution) if text}


def test_refusals_and_cautions_are_sentences_of_every_language():
    ids = set().union(*(sentences(one) for one in conventions()))
    for language in languages():
        mine = {id for id in catalog(language) if id.startswith("conventions.")}
        titles = {id for id in mine if id.startswith("conventions.title_")}
        assert ids == mine - titles - {"conventions.case"}, language


def test_the_gaps_of_a_sentence_are_numbers_of_its_record():
    for one in conventions():
        known = {"alpha", "rank", "parts", *(let.name for let in one.lets)}
        for id in sentences(one):
            assert {gap for _, gap, _, _ in Formatter().parse(catalog("en")[id]) if gap} <= known


def test_a_caution_is_told_in_the_readers_language():
    (caution,) = meaning(WITH_ALPHA, metadata=RS_LORA, alpha=7).cautions
    chinese = translate(caution, "zh")
    assert "rs_lora" in chinese and "7" in chinese and "\u672c\u610f" in chinese


def test_a_record_whose_sentence_is_in_no_catalog_is_named(tmp_path):
    with pytest.raises(ConventionError, match=r"line 3: .*conventions\.nowhere") as error:
        record(tmp_path, "title x\nsource y\ncaution @nowhere\n")
    assert "en, zh" in str(error.value)
    plain = record(tmp_path, "title x\nsource y\ncaution of {alpha}\n")
    assert meaning(WITH_ALPHA, alpha=2, known=[plain]).cautions == ("of 2",)


def test_records_named_in_over_exist():
    names = {convention.name for convention in conventions()}
    assert all(convention.over <= names for convention in conventions())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("scale open('x')", "is not arithmetic"),
        ("scale alpha.real", "is not arithmetic"),
        ("scale [1]", "is not arithmetic"),
        ("scale alpha **", "line 3"),
        ("if alpha", "has no relation"),
        ("if colour is red", "is not a path"),
        ("let 3 = alpha", "must be NAME"),
        ("strength 2", "has no meaning"),
        ("if", "needs a value"),
    ],
)
def test_a_line_that_breaks_the_rules_is_named(tmp_path, line, told):
    with pytest.raises(ConventionError, match=r"example\.convention, line 3: .*") as error:
        record(tmp_path, f"title x\nsource y\n{line}\nscale 1\n")
    assert told in str(error.value)


@pytest.mark.parametrize(
    "text", ["title x\nscale 1\n", "source y\nscale 1\n", "title x\nsource y\n"]
)
def test_a_record_needs_title_source_and_an_effect(tmp_path, text):
    with pytest.raises(ConventionError, match="are needed"):
        record(tmp_path, text)


def test_the_first_case_that_holds_counts(tmp_path):
    text = (
        "title x\nsource y\nlet dim = metadata.dim\n[a]\nif alpha about dim\nscale 1\n[b]\nif alpha"
        " above 1\nscale 2\n[c]\nscale 3\n"
    )
    known = [record(tmp_path, text)]
    scales = [
        meaning(WITH_ALPHA, metadata={"dim": "8"}, alpha=alpha, known=known).scale
        for alpha in (8, 4, 0.5)
    ]
    assert scales == [1, 2, 3]
    assert meaning(WITH_ALPHA, alpha=8, known=known).scale == 2, (
        "without the number in the metadata the first case cannot hold"
    )


def test_a_record_that_is_over_another_silences_it(tmp_path):
    weak = record(tmp_path, "title x\nsource y\nscale 1\ncaution doubtful\n", "weak")
    strong = record(tmp_path, "title x\nsource y\nover weak\nscale 2\n", "strong")
    told = meaning(PAIR, known=[weak, strong])
    assert (told.scale, told.cautions) == (2, ())


@pytest.mark.parametrize("value", ["NaN", "1e999", "[1]", "x" * 50, "-", "true", '{"a": 1}', ""])
def test_a_number_that_cannot_be_computed_with_bears_out_nothing(tmp_path, value):
    known = [record(tmp_path, "title x\nsource y\nlet n = metadata.n\nif n above 0\nscale n\n")]
    assert meaning(PAIR, metadata={"n": value}, known=known) == USUAL


@pytest.mark.parametrize(
    "expression",
    [
        "1 / 0",
        "10 ** 400",
        "(0 - 1) ** 0.5",
        "sqrt(0 - 1)",
        "size(down, 9)",
        "size(mid)",
        "nothing",
    ],
)
def test_arithmetic_that_fails_has_no_value(tmp_path, expression):
    known = [record(tmp_path, f"title x\nsource y\nscale {expression}\n")]
    assert meaning(PAIR, known=known).scale is None


@pytest.mark.parametrize(
    ("alpha", "scale", "doubtful"),
    [(2, 2 / 4**0.5, False), (4, 4 / 4, False), (2.004, 2.004 / 2, False), (3, 3 / 4, True)],
)
def test_rs_lora_of_lycoris_is_told_by_its_alpha(alpha, scale, doubtful):
    told = meaning(WITH_ALPHA, metadata=RS_LORA, alpha=alpha)
    assert told.scale == pytest.approx(scale)
    assert bool(told.cautions) == doubtful


@pytest.mark.parametrize(
    ("metadata", "scale", "doubtful"),
    [
        (ANIMA, 1 / 32, False),
        ({**ANIMA, "sshs_model_hash": "0"}, 1, True),
        ({**ANIMA, "ss_network_alpha": "32"}, 1 / 32, False),
        (
            {
                "ss_network_module": "networks.krona",
                "ss_network_dim": "32",
                "ss_network_alpha": "1",
            },
            1,
            False,
        ),
        ({}, None, False),
    ],
)
def test_a_whole_lokr_means_what_its_writer_meant(metadata, scale, doubtful):
    told = meaning(WHOLE_LOKR, "lokr", None, metadata, alpha=1)
    assert told.scale == scale
    assert bool(told.cautions) == doubtful


@pytest.mark.parametrize(
    ("module", "arguments", "scale", "doubtful"),
    [
        ("krona", {"use_cdka_scale": "true", "krona_alpha": "16"}, 16 / 4**0.5, False),
        ("krona", {"cdka_alpha": "16", "cdka_factor_in": "4"}, 1, False),
        ("cdka", {"cdka_alpha": "16", "cdka_factor_in": "4"}, 1, False),
        ("cdka", {"cdka_alpha": "16"}, 1, True),
        ("cdka", {}, 1, False),
    ],
)
def test_krona_and_cdka_save_their_strength_within_the_weights_or_not(
    module, arguments, scale, doubtful
):
    metadata = {
        "ss_network_module": f"networks.{module}",
        "ss_network_args": json.dumps(arguments),
        "ss_network_dim": "32",
        "ss_network_alpha": "16",
    }
    told = meaning(WHOLE_LOKR, "lokr", None, metadata, alpha=16)
    assert told.scale == pytest.approx(scale)
    assert ["8 times the strength" in caution for caution in told.cautions] == [True] * doubtful


def test_an_infinite_alpha_of_a_whole_lokr_says_nothing():
    assert meaning(WHOLE_LOKR, "lokr", None, {"ss_network_dim": "32"}, alpha=None) == USUAL


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"lora_config": json.dumps({"r": 4, "lora_alpha": 2})}, 0.5),
        ({"lora_config": json.dumps({"adapter_type": "lora", "rank": 4, "alpha": 8})}, 2),
        ({"alpha": "8", "key_format": "minimax-h3-diffusers"}, 2),
        ({"lora_alpha": "2"}, 0.5),
        ({"alpha": "high"}, None),
        ({"lora_config": "{"}, None),
    ],
)
def test_strength_under_other_names_in_the_header(metadata, scale):
    assert meaning(PAIR, metadata=metadata).scale == scale
    assert meaning(WITH_ALPHA, metadata=metadata, alpha=1).scale is None, (
        "an alpha tensor comes first"
    )
    assert meaning(PAIR, metadata=metadata, settings={"lora_alpha": 4}).scale is None, (
        "so do PEFT's settings"
    )


@pytest.mark.parametrize(("rank", "scale"), [(4, 0.5), (8, 1), (5120, 1)])
def test_the_layer_that_takes_finetrainers_control_has_its_rank_as_alpha(rank, scale):
    told = {"r": 4, "lora_alpha": 2, "init_lora_weights": True, "target_modules": "attn"}
    control = {
        "rank_pattern": {"patch_embedding": rank},
        "alpha_pattern": {"patch_embedding": rank},
    }
    shapes = {"down": (rank, 8), "up": (8, rank)}
    metadata = {"lora_config": json.dumps({**told, **control}, indent=4)}
    assert meaning(shapes, rank=rank, metadata=metadata).scale == scale
    plain = {"lora_config": json.dumps(told, indent=4)}
    assert meaning(shapes, rank=rank, metadata=plain).scale == 2 / rank, "without a pattern"


@pytest.mark.parametrize(
    ("settings", "refused", "doubtful", "kind"),
    [
        ({"init_lora_weights": True}, False, False, ""),
        ({"init_lora_weights": "pissa"}, False, False, "pissa"),
        ({"init_lora_weights": "pissa_niter_4"}, False, True, "pissa"),
        ({"init_lora_weights": "olora"}, False, False, "olora"),
        ({"init_lora_weights": "corda"}, True, False, ""),
        ({"init_lora_weights": "loftq"}, False, True, ""),
        ({"alora_invocation_tokens": [1]}, True, False, ""),
        ({"alora_invocation_tokens": None}, False, False, ""),
        ({"layer_replication": [[0, 4]]}, True, False, ""),
    ],
)
def test_settings_that_change_what_factors_mean(settings, refused, doubtful, kind):
    told = meaning(PAIR, settings={"lora_alpha": 4, **settings})
    assert (bool(told.refusal), bool(told.cautions), told.kind) == (refused, doubtful, kind)


REG_DIMS = {
    "ss_network_args": json.dumps({"lora_reg_dims": {".*mlp.*": 64}}),
    "ss_network_alpha": "16",
    "ss_network_dim": "32",
}
REG_DIMS_RS = REG_DIMS | {
    "ss_network_args": json.dumps({"lora_reg_dims": {".*mlp.*": 64}, "rs_lora": True})
}


@pytest.mark.parametrize("rank", [1, 32, 64])
@pytest.mark.parametrize(("metadata", "scale"), [(REG_DIMS, 16 / 32), (REG_DIMS_RS, 16 / 32**0.5)])
def test_layers_of_a_rank_of_their_own_keep_the_scale_of_all(rank, metadata, scale):
    for alpha in (scale * 32, scale * rank):  # older files, newer files
        told = meaning(
            {"down": (rank, 8), "up": (8, rank), "alpha": ()},
            rank=rank,
            metadata=metadata,
            alpha=alpha,
        )
        assert told.scale == pytest.approx(scale) and not told.cautions


def test_an_alpha_that_fits_neither_form_of_lora_reg_dims_is_told_with_both_strengths():
    told = meaning(WITH_ALPHA, metadata=REG_DIMS, alpha=5)
    assert told.scale == 5 / 4 and "1.25" in told.cautions[0] and "0.1562" in told.cautions[0]


SPLIT_LOKR = {"lokr_w1": (4, 4), "lokr_w2_a": (8, 4), "lokr_w2_b": (4, 8), "alpha": ()}


@pytest.mark.parametrize(
    ("metadata", "alpha", "doubtful"),
    [
        ({"ss_network_args": json.dumps({"bypass_mode": "True"})}, 2, True),
        ({"lycoris_config": json.dumps({"bypass_mode": True})}, 2, True),
        ({"ss_network_args": json.dumps({"bypass_mode": "True"})}, 4, False),
        ({"ss_network_args": json.dumps({"bypass_mode": "False"})}, 2, False),
    ],
)
def test_a_lokr_of_bypass_mode_is_told_with_both_strengths(metadata, alpha, doubtful):
    told = meaning(SPLIT_LOKR, "lokr", 4, metadata, alpha=alpha)
    assert told.scale is None and bool(told.cautions) == doubtful
    assert not doubtful or ("0.5 (alpha / rank)" in told.cautions[0] and "at 1" in told.cautions[0])


@pytest.mark.parametrize(
    ("module", "adapter", "placed"),
    [
        ("blocks.0.attn.qkv_proj", ".default", False),
        ("pipe.dit.blocks.0.attn.qkv_proj", ".default", False),
        ("token_refiner.blocks.0.attn.qkv_proj", ".default", False),
        ("blocks.0.attn.out_proj", ".default", True),
        ("blocks.0.attn.qkv_proj", "", True),
        ("diffusion_model.blocks.0.attn.qkv_proj", ".default", True),
        ("transformer_blocks.0.attn.to_qkv", ".default", True),
    ],
)
def test_rows_of_minimax_h3_that_may_lie_head_by_head_are_not_guessed(
    target_model_of, module, adapter, placed
):
    out, inner = (5376, 7168) if "out_proj" in module else (3 * 7168, 5376)
    keys = {
        f"{module}.lora_A{adapter}.weight": (2, inner),
        f"{module}.lora_B{adapter}.weight": (out, 2),
    }
    plan = make_plan(keys, {}, target_model_of("minimax_h3"))
    assert {outcome.category for outcome in plan.outcomes.values()} == {
        PLACED if placed else UNSUPPORTED
    }, plan.outcomes
    assert placed or all("head by head" in outcome.reason for outcome in plan.outcomes.values())


def test_a_record_may_be_about_one_model(tmp_path):
    known = [record(tmp_path, "title x\nsource y\nif family is minimax_h3\nscale 2\n")]
    scales = [
        Conventions({}, {}, known, family)
        .meaning(Evidence("lora", "x", PAIR, 4, {}, {}, {}.get, family=family))
        .scale
        for family in ("minimax_h3", "wan", "")
    ]
    assert scales == [2, None, None]


@pytest.mark.parametrize(("adapter_type", "extra"), [
    ("lora", ()),
    ("dora-rows", ("magnitude",)),
    ("dora", ("magnitude",)),
    ("dora-cols", ("magnitude",)),
    ("bora", ("magnitude_r", "magnitude_c")),
])  # fmt: skip
@pytest.mark.parametrize("root", ["", "model."])
def test_files_of_the_trainer_of_stable_audio_3(target_model_of, adapter_type, extra, root):
    module = f"{root}transformer.layers.3.self_attn.to_out.parametrizations.weight.0"
    keys = {f"{module}.lora_A": (4, 1536), f"{module}.lora_B": (1536, 4)} | {
        f"{module}.{name}": (1536,) for name in extra
    }
    metadata = {
        "lora_config": json.dumps(
            {"rank": 4, "alpha": 8, "adapter_type": adapter_type, "include": None, "exclude": None}
        )
    }
    plan = make_plan(keys, metadata, target_model_of("stable_audio_3"))
    assert len(plan.adapters) == 1 and plan.adapters[0].roles.keys() == {"down", "up", *extra}
    assert plan.adapters[0].strength.scale == 2


@pytest.mark.parametrize(
    ("layer", "doubted"),
    [
        ((8, 4), False),
        ((8, 4, 1, 1), False),
        ((8, 4, 3, 3), True),
        ((8, 4, 1, 3), True),
        ((8, 4, 3, 1), True),
        ((), False),
    ],
)
def test_pefts_oft_on_a_kernel_is_in_doubt(layer, doubted):
    evidence = Evidence("oft_peft", "conv", {"oft_R": (1, 6)}, None, {}, {}, {}.get, layer)
    assert bool(Conventions({}, {}).meaning(evidence).cautions) == doubted


@pytest.mark.parametrize(
    ("alpha", "metadata", "limit", "doubted"),
    [
        (1.0, {}, (("norm_limit", "alpha"),), False),
        (0.001, {}, (), True),
        (0.0, {}, (), False),
        (0.001, {"ss_network_module": "lycoris.kohya"}, (), False),
    ],
)
def test_the_limit_of_an_oft_in_comfyuis_names(alpha, metadata, limit, doubted):
    shapes = {"oft_blocks": (4, 2, 2), "alpha": ()}
    values = {"alpha": alpha}.get
    name = "diffusion_model.blocks.0.proj"
    evidence = Evidence("oft", name, shapes, None, metadata, {}, values, (8, 4))
    told = Conventions(metadata, {}).meaning(evidence)
    assert (told.options, bool(told.cautions)) == (limit, doubted)


# Titles without a word of any language.
NAMES_ALONE = {
    "Arrow",
    "CorDA, LoRA-GA",
    "LightX2V",
    "LoftQ",
    "Stable Audio 3",
    "VideoX-Fun",
    "AdaLoRA: lora_alpha / init_r",
    "alibaba-pai",
    "finetrainers",
}


def test_every_title_is_in_the_catalogs_or_a_name():
    titles = {
        title
        for record in conventions()
        for title in (record.title, *(case.title for case in record.cases))
        if title
    }
    assert {title for title in titles if not isinstance(title, Message)} == NAMES_ALONE
    for title in titles - NAMES_ALONE:
        assert translate(title, "zh") != title
    used = {id for id in catalog("en") if id.startswith("conventions.title_")}
    assert used == {title.source.id for title in titles - NAMES_ALONE}


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        ("self_attn_q_proj", True),
        ("cross_attn_v_proj", True),
        ("cross_attn_q_proj", False),
        ("self_attn_output_proj", False),
        ("mlp_layer1", False),
    ],
)
def test_a_lokr_cut_out_of_a_fused_layer_is_refused(layer, refused):
    """scvxzf1/anima_lora_webui: the other layers are alpha / rank."""
    metadata = {"ss_network_spec": "lokr", "ss_network_dim": "32", "ss_network_alpha": "8"}
    said = meaning(
        WHOLE_LOKR, "lokr", None, metadata, alpha=8.0, name=f"lora_unet_blocks_0_{layer}"
    )
    assert bool(said.refusal) == refused
    assert refused or (said.scale == 0.25 and not said.cautions)


@pytest.mark.parametrize(
    ("name", "stated", "told"),
    [
        ("lora_unet_block", "8", True),
        ("lora_unet_block", "4", False),  # the rank
        ("diffusion_model.block", "8", False),  # musubi-tuner folds it there
    ],
)
def test_an_alpha_that_only_the_header_has_is_told(name, stated, told):
    metadata = {"ss_network_dim": "4", "ss_network_alpha": stated}
    said = meaning(PAIR, metadata=metadata, name=name)
    assert said.scale is None
    assert any("header" in caution for caution in said.cautions) == told
