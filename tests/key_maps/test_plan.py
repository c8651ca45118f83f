"""The plan's laws, on a small FLUX.1: nothing guessed, nothing silently dropped, each key with its
reason.
"""

import json

import pytest
from lora_locksmith.adapters.registry import kinds, named
from lora_locksmith.planning import plan as plans
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network, encoder_networks
from lora_locksmith.report.load_report import Report

H, M = 8, 32


def flux_weights() -> dict[str, tuple[int, ...]]:
    modules = {
        "img_in": (H, 16),
        "final_layer.linear": (16, H),
        "final_layer.adaLN_modulation.1": (2 * H, H),
    }
    for i in range(2):
        for side in ("img", "txt"):
            modules |= {
                f"double_blocks.{i}.{side}_mod.lin": (6 * H, H),
                f"double_blocks.{i}.{side}_attn.qkv": (3 * H, H),
                f"double_blocks.{i}.{side}_attn.proj": (H, H),
                f"double_blocks.{i}.{side}_mlp.0": (M, H),
                f"double_blocks.{i}.{side}_mlp.2": (H, M),
            }
        modules |= {
            f"single_blocks.{i}.linear1": (3 * H + M, H),
            f"single_blocks.{i}.linear2": (H, H + M),
        }
        modules |= {f"single_blocks.{i}.modulation.lin": (3 * H, H)}
    weights = {f"diffusion_model.{name}.weight": shape for name, shape in modules.items()}
    return weights | {f"diffusion_model.{name}.bias": shape[:1] for name, shape in modules.items()}


CLIP = {
    f"clip_l.transformer.text_model.encoder.layers.{i}.{name}.weight": shape
    for i in range(2)
    for name, shape in {"self_attn.q_proj": (4, 4), "mlp.fc1": (12, 4)}.items()
}


@pytest.fixture(scope="module")
def target_model():
    return TargetModel([denoiser_network(flux_weights()), *encoder_networks(CLIP)])


@pytest.fixture(scope="module")
def bare_model():
    return TargetModel([denoiser_network(flux_weights())])


def lora(
    module: str, out: int, inner: int, rank: int = 2, down="lora_A.weight", up="lora_B.weight"
) -> dict[str, tuple[int, ...]]:
    return {f"{module}.{down}": (rank, inner), f"{module}.{up}": (out, rank)}


def only_target(plan):
    assert len(plan.adapters) == 1, {
        key: outcome for key, outcome in plan.outcomes.items() if outcome.category != "placed"
    }
    return plan.adapters[0].target


PREFIXES = (
    "",
    "transformer.",
    "diffusion_model.",
    "model.diffusion_model.",
    "base_model.model.",
    "transformer.base_model.model.",
    "base_model.model.transformer.",
    "base_model.model.transformer.diffusion_model.",
    "model.model.",
    "module.",
    "_orig_mod.",
    "pipe.dit.",
    "base_model.model.model.",
    "unet.base_model.model.",
    "transformer._orig_mod.module.base_model.model.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("adapter", ["", ".default", ".default_0.default", ".my_style"])
def test_wrappers_in_any_number_and_order_and_any_adapter_name(target_model, prefix, adapter):
    keys = lora(
        f"{prefix}transformer_blocks.1.attn.add_k_proj",
        H,
        H,
        down=f"lora_A{adapter}.weight",
        up=f"lora_B{adapter}.weight",
    )
    target = only_target(make_plan(keys, {}, target_model))
    assert target.slices == (("diffusion_model.double_blocks.1.txt_attn.qkv.weight", (H, H), None),)


FLAT = ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_", "Hunyuan_video_I2V_lora_")


@pytest.mark.parametrize("prefix", FLAT)
@pytest.mark.parametrize(
    "name",
    [
        "double_blocks_0_img_attn_qkv",
        "double_blocks_0.img_attn.qkv",
        "double_blocks__0_img_attn_qkv",
    ],
)
def test_flattened_half_flattened_and_doubled_separators(target_model, prefix, name):
    keys = lora(prefix + name, 3 * H, H, down="lora_down.weight", up="lora_up.weight")
    assert only_target(make_plan(keys, {}, target_model)).slices == (
        ("diffusion_model.double_blocks.0.img_attn.qkv.weight", None, None),
    )


def test_a_compiled_block_and_a_cut_name(target_model):
    for module in (
        "transformer.single_transformer_blocks.0._orig_mod.attn.to_q",
        "transformer.single_transformer_blocks.0.attn.to_q",
    ):
        assert only_target(make_plan(lora(module, H, H), {}, target_model)).slices[0][1] == (0, H)
    assert (
        only_target(
            make_plan(lora("sformer_blocks.0.attn.to_out.0", H, H), {}, target_model)
        ).module
        == "double_blocks.0.img_attn.proj"
    )


def test_halves_of_the_final_layer_are_swapped_only_in_diffusers_order(target_model):
    assert only_target(
        make_plan(lora("transformer.norm_out.linear", 2 * H, H), {}, target_model)
    ).swap
    assert not only_target(
        make_plan(
            lora("diffusion_model.final_layer.adaLN_modulation.1", 2 * H, H), {}, target_model
        )
    ).swap


def test_wrapper_before_every_key_is_inferred_and_said(target_model):
    keys = lora("acme_wrap.transformer_blocks.0.attn.to_q", H, H) | lora(
        "acme_wrap.transformer_blocks.1.ff.net.2", H, M
    )
    plan = make_plan(keys, {}, target_model)
    assert plan.inferred_prefix == "acme_wrap."
    assert len(plan.adapters) == 2
    assert "acme_wrap" in str(Report(plan))


def test_wrapper_is_not_inferred_where_one_name_or_shape_behind_it_does_not_fit(target_model):
    good = lora("acme.transformer_blocks.0.attn.to_q", H, H) | lora(
        "acme.transformer_blocks.1.attn.to_q", H, H
    )
    for odd in (
        lora("acme.transformer_blocks.0.nothing", H, H),
        lora("acme.transformer_blocks.0.attn.to_k", H, H + 1),
    ):
        plan = make_plan(good | odd, {}, target_model)
        assert plan.inferred_prefix == ""
        assert not plan.adapters


CASES = {
    "unknown module": (
        lora("transformer.transformer_blocks.0.attn.to_z", H, H),
        plans.UNKNOWN_MODULE,
        "to_z",
    ),
    "block that is not there": (
        lora("transformer.transformer_blocks.7.attn.to_q", H, H),
        plans.UNKNOWN_MODULE,
        "double_blocks.7",
    ),
    "unknown role": (
        {"transformer.transformer_blocks.0.attn.to_q.lora_Q.weights": (2, 2)},
        plans.UNKNOWN_ROLE,
        "ending",
    ),
    "wrong size": (
        lora("transformer.transformer_blocks.0.attn.to_q", H + 1, H),
        plans.SHAPE_CONFLICT,
        "trained for",
    ),
    "ranks differ": (
        {"img_in.lora_A.weight": (2, 16), "img_in.lora_B.weight": (H, 3)},
        plans.SHAPE_CONFLICT,
        "rank",
    ),
    "same size, other shape": (
        lora("transformer.transformer_blocks.0.attn.to_q", H // 2, H * 2),
        plans.SHAPE_CONFLICT,
        "trained for",
    ),
    "half an adapter": ({"img_in.lora_A.weight": (2, 16)}, plans.INCOMPLETE, "up"),
    "lone alpha": ({"img_in.alpha": ()}, plans.INCOMPLETE, "down"),
    "VeRA": (
        {"img_in.vera_lambda_d": (2,), "img_in.vera_lambda_b": (H,)},
        plans.UNSUPPORTED,
        "base",
    ),
    "half a T-LoRA": (
        {"img_in.q_layer.weight": (2, 16)},
        plans.INCOMPLETE,
        "tlora_lambda, tlora_p",
    ),
    "bundled embedding": ({"bundle_emb.word.vectors": (1, 4)}, plans.BOOKKEEPING, "embedding"),
    "slider notes": ({"_aux.x": (1,)}, plans.BOOKKEEPING, "notes"),
    "quantised base": (
        {"transformer.transformer_blocks.0.attn.to_q.base_layer.weight": (4, 4)},
        plans.BOOKKEEPING,
        "base model",
    ),
    "a conv where a linear layer is": (
        {"img_in.lora_A.weight": (2, 16, 3, 3), "img_in.lora_B.weight": (H, 2, 1, 1)},
        plans.SHAPE_CONFLICT,
        "trained for",
    ),
}


@pytest.mark.parametrize("keys, category, reason", CASES.values(), ids=CASES.keys())
def test_every_key_without_effect_has_one_category_and_its_reason(
    target_model, keys, category, reason
):
    plan = make_plan(keys, {}, target_model)
    assert set(plan.outcomes) == set(keys)
    assert {outcome.category for outcome in plan.outcomes.values()} == {category}
    assert all(reason in outcome.reason for outcome in plan.outcomes.values())


def test_a_1x1_convolution_is_a_linear_layer(target_model):
    keys = {"img_in.lora_A.weight": (2, 16, 1, 1), "img_in.lora_B.weight": (H, 2, 1, 1)}
    assert only_target(make_plan(keys, {}, target_model)).module == "img_in"


def test_role_twice_in_one_module_is_a_duplicate(target_model):
    keys = lora("img_in", H, 16) | {"img_in.lora_down.weight": (2, 16)}
    outcomes = make_plan(keys, {}, target_model).outcomes
    assert outcomes["img_in.lora_down.weight"].category == plans.DUPLICATE_TARGET


def test_a_bias_that_peft_trained_is_told_from_a_copy_of_the_base(target_model):
    bias = {"transformer.x_embedder.base_layer.bias": (H,)}
    keys = lora("transformer.x_embedder", H, 16) | bias
    assert [adapter.kind for adapter in make_plan(keys, {}, target_model).adapters] == [
        "lora",
        "bias_set",
    ]
    dumped = make_plan(
        keys | {"transformer.x_embedder.base_layer.weight": (H, 16)}, {}, target_model
    )
    assert [adapter.kind for adapter in dumped.adapters] == ["lora"]
    assert {dumped.outcomes[key].category for key in bias} == {plans.BOOKKEEPING}


def test_a_layer_that_peft_saved_under_two_names_is_placed_once(target_model):
    keys = {
        f"x_embedder.{name}": (H,)
        for name in ("bias", "modules_to_save.bias", "original_module.bias")
    }
    plan = make_plan(keys, {}, target_model)
    assert [adapter.roles for adapter in plan.adapters] == [{"bias": "x_embedder.bias"}]
    assert {
        plan.outcomes[f"x_embedder.{name}.bias"].category
        for name in ("modules_to_save", "original_module")
    } == {plans.BOOKKEEPING}


def test_two_adapters_on_one_weight_are_both_placed(target_model):
    keys = lora("img_in", H, 16) | {"img_in.diff": (H, 16)} | lora("transformer.x_embedder", H, 16)
    plan = make_plan(keys, {}, target_model)
    assert [adapter.kind for adapter in plan.adapters] == ["lora", "diff", "lora"]
    assert {adapter.target.module for adapter in plan.adapters} == {"img_in"}


def test_text_encoder_keys_without_clip_are_one_calm_line(bare_model, target_model):
    keys = {}
    for i in range(2):
        keys |= lora(
            f"lora_te1_text_model_encoder_layers_{i}_self_attn_q_proj",
            4,
            4,
            down="lora_down.weight",
            up="lora_up.weight",
        )
    report = Report(make_plan(keys, {}, bare_model))
    assert report.categories == {plans.NOT_WIRED: 4}
    assert str(report).splitlines()[1] == "Connect a CLIP to load the text encoder's part."
    assert len([line for line in str(report).splitlines() if "CLIP" in line]) == 1
    assert Report(make_plan(keys, {}, target_model)).categories == {plans.PLACED: 4}


@pytest.mark.parametrize(
    "prefix",
    [
        "lora_te_",
        "lora_te1_",
        "text_encoder.",
        "text_encoders.clip_l.transformer.",
        "clip_l.transformer.",
    ],
)
def test_text_encoder_wrappers(target_model, prefix):
    name = "text_model.encoder.layers.1.mlp.fc1"
    module = prefix + (name if prefix.endswith(".") else name.replace(".", "_"))
    target = only_target(make_plan(lora(module, 12, 4), {}, target_model))
    assert target.network == "clip_l"


def test_names_only(target_model):
    plan = make_plan(
        dict.fromkeys(lora("transformer.transformer_blocks.0.attn.to_q", H, H)), {}, target_model
    )
    assert only_target(plan).slices[0][0] == "diffusion_model.double_blocks.0.img_attn.qkv.weight"


def test_names_only_with_a_setting_that_shapes_make_needless(target_model):
    plan = make_plan(
        {"transformer.transformer_blocks.0.ff.net.2.ia3_l": None},
        {},
        target_model,
        config_beside={"feedforward_modules": ["ff.net.2"]},
    )
    assert only_target(plan).slices[0][0].endswith("double_blocks.0.img_mlp.2.weight")
    assert plan.adapters[0].options == (("feedforward_modules", True),)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_no_kind_needs_shapes_for_what_the_plan_asks(kind):
    """A plan of names alone has them all unknown."""
    settings = {setting.name: setting.default for setting in kind.settings}
    for need in kind.needs or named(kind.variant_of or "lora").needs:
        shapes = dict.fromkeys([*need, *kind.takes])
        kind.claims(shapes, dict.fromkeys(kind.metadata, '"adapter_type" networks.oft'), settings)
        assert kind.rank(shapes) is None
        assert isinstance(kind.lacks(settings, shapes), str)
        assert all(isinstance(kind.asks(name, shapes, (4, 4)), bool) for name in settings)


CONFIG = {
    "r": 4,
    "lora_alpha": 16,
    "alpha_pattern": {"attn.to_k": 1},
    "rank_pattern": {"attn.to_k": 2},
}


@pytest.mark.parametrize("name, scale", [("attn.to_q", 4.0), ("attn.to_k", 0.5)])
def test_strength_from_peft_settings(target_model, name, scale):
    keys = lora(
        f"transformer.transformer_blocks.0.{name}", H, H, rank=2 if name.endswith("k") else 4
    )
    header = {
        "lora_adapter_metadata": json.dumps(
            {f"transformer.{key}": value for key, value in CONFIG.items()}
        )
    }
    for metadata, beside in ((header, None), ({}, CONFIG)):
        strength = (
            make_plan(keys, metadata, target_model, config_beside=beside).adapters[0].strength
        )
        assert strength.scale == scale
        assert (
            "lora_adapter_metadata" in strength.source or "adapter_config.json" in strength.source
        )
    rooted = dict(CONFIG, use_rslora=True, alpha_pattern={})
    assert (
        make_plan(
            lora("base_model.model.x_embedder", H, 16, rank=4),
            {},
            target_model,
            config_beside=rooted,
        )
        .adapters[0]
        .strength.scale
        == 16 / 4**0.5
    )


def test_alpha_tensors_go_before_settings(target_model):
    keys = lora("transformer.x_embedder", H, 16) | {"transformer.x_embedder.alpha": ()}
    strength = make_plan(keys, {}, target_model, config_beside=CONFIG).adapters[0].strength
    assert strength.scale is None
    assert "tensors" in strength.source


def test_split_qkv_files_of_sd_scripts_are_corrected(target_model):
    metadata = {"ss_network_args": '{"split_qkv": "True"}', "ss_network_dim": "2"}
    qkv = lora("lora_unet_double_blocks_0_img_attn_qkv", 3 * H, H, rank=6) | {
        "lora_unet_double_blocks_0_img_attn_qkv.alpha": ()
    }
    linear1 = lora("lora_unet_single_blocks_0_linear1", 3 * H + M, H, rank=8) | {
        "lora_unet_single_blocks_0_linear1.alpha": ()
    }
    proj = lora("lora_unet_double_blocks_0_img_attn_proj", H, H, rank=2) | {
        "lora_unet_double_blocks_0_img_attn_proj.alpha": ()
    }
    plan = make_plan(qkv | linear1 | proj, metadata, target_model)
    assert [adapter.strength.factor for adapter in plan.adapters] == [3.0, 4.0, 1.0]
    assert [adapter.strength.factor for adapter in make_plan(qkv, {}, target_model).adapters] == [
        1.0
    ]


@pytest.mark.parametrize(
    "metadata",
    [
        {"lora_adapter_metadata": "{nonsense"},
        {"lora_adapter_metadata": "[1]"},
        {"ss_network_args": '{"split_qkv"'},
    ],
)
def test_spoilt_metadata_is_ignored(target_model, metadata):
    assert (
        make_plan(lora("transformer.x_embedder", H, 16), metadata, target_model)
        .adapters[0]
        .strength.scale
        is None
    )


@pytest.mark.parametrize("alpha", ["NaN", "-Infinity", "1" + 400 * "0"])
def test_a_setting_that_cannot_be_computed_with_is_ignored(target_model, alpha):
    metadata = {
        "lora_adapter_metadata": f'{{"transformer.r": 4, "transformer.lora_alpha": {alpha}}}'
    }
    strength = (
        make_plan(lora("transformer.x_embedder", H, 16), metadata, target_model)
        .adapters[0]
        .strength
    )
    assert strength.scale is None and "alpha = rank" in strength.source


def test_report_is_whole_json(target_model):
    keys = (
        lora("transformer.x_embedder", H, 16)
        | lora("transformer.nothing", H, 16)
        | {"_aux.x": (1,)}
    )
    report = json.loads(Report(make_plan(keys, {}, target_model), "some.safetensors").as_json())
    assert report["keys"] == {"placed": 2, "total": 5}
    assert report["modules"] == {"placed": 1, "total": 2}
    assert {entry["category"] for entry in report["unplaced"]} == {
        plans.UNKNOWN_MODULE,
        plans.BOOKKEEPING,
    }
    assert report["verdict"] and report["trainer"] and report["strength_source"]
    assert "double_blocks.{}.img_attn.qkv" in report["untrained"]


def test_one_training_stored_twice_is_read_once(target_model):
    """Fused and split copies under one prefix, as Anime-Z has them; the fused ones are dropped,
    other doubles add up.
    """
    keys = lora("double_blocks.0.img_attn.qkv", 3 * H, H) | lora(
        "double_blocks.0.img_attn.proj", H, H
    )
    keys |= lora("transformer_blocks.0.attn.to_out.0", H, H)
    for name in ("to_q", "to_k", "to_v"):
        keys |= lora(f"transformer_blocks.0.attn.{name}", H, H)
    plan = make_plan(keys, {}, target_model)
    assert Report(plan).categories == {plans.PLACED: 8, plans.DUPLICATE_TARGET: 4}
    assert all(
        plan.adapters[outcome.adapter].roles
        for outcome in plan.outcomes.values()
        if outcome.adapter is not None
    )
    del (
        keys["transformer_blocks.0.attn.to_v.lora_A.weight"],
        keys["transformer_blocks.0.attn.to_v.lora_B.weight"],
    )
    assert Report(make_plan(keys, {}, target_model)).categories == {plans.PLACED: 10}


def test_an_alpha_for_the_whole_network(target_model):
    keys = (
        lora("transformer.x_embedder", H, 16)
        | lora("transformer.proj_out", 16, H)
        | {"transformer.lora_alpha": ()}
    )
    plan = make_plan(keys, {}, target_model)
    assert Report(plan).categories == {plans.PLACED: 5}
    assert {adapter.roles["alpha"] for adapter in plan.adapters} == {"transformer.lora_alpha"}
    alone = make_plan({"transformer.lora_alpha": ()}, {}, target_model)
    assert alone.outcomes["transformer.lora_alpha"].category == plans.BOOKKEEPING


def test_an_alpha_without_the_name_its_factors_carry(target_model):
    keys = lora("x_embedder", H, 16, down="lora_A.mine.weight", up="lora_B.mine.weight") | {
        "x_embedder.alpha": ()
    }
    assert set(make_plan(keys, {}, target_model).adapters[0].roles) == {"down", "up", "alpha"}
    twice = make_plan(keys | {"x_embedder.alpha.mine": ()}, {}, target_model)
    assert set(twice.outcomes) == {*keys, "x_embedder.alpha.mine"}


def test_whole_weights_of_most_of_a_model_are_no_lora(bare_model):
    model = flux_weights()
    report = Report(make_plan(model, {}, bare_model))
    assert set(report.categories) == {plans.UNSUPPORTED} and "not a LoRA" in report.verdict
    some = dict(list(model.items())[: len(model) // 3])
    assert set(Report(make_plan(some, {}, bare_model)).categories) == {plans.PLACED}


@pytest.mark.parametrize(
    "name",
    [
        "model." * 5000 + "x",
        "lora_unet_" * 5000 + "x",
        "a." * 5000 + "b",
        "9" * 10_000,
        "._" * 5000,
    ],
)
def test_absurd_names_end_in_a_category_and_soon(target_model, name):
    keys = {
        f"{name}{i}.{role}": (2, 2) for i in range(3) for role in ("lora_A.weight", "lora_B.weight")
    }
    report = Report(make_plan(keys, {}, target_model))
    assert set(report.categories) == {plans.UNKNOWN_MODULE}
    assert str(report)


@pytest.mark.parametrize("start", ["", "transformer.", "base_model.model."])
def test_names_of_another_model_are_no_unknown_prefix(target_model_of, start):
    """FLUX.1's `single_transformer_blocks` are not `single_` before the `transformer_blocks` of
    Qwen-Image, which are as wide.
    """
    keys = {
        f"{start}{blocks}.{block}.attn.to_{layer}.{role}.weight": shape
        for blocks in ("transformer_blocks", "single_transformer_blocks")
        for block in range(8)
        for layer in "qkv"
        for role, shape in (("lora_A", (4, 3072)), ("lora_B", (3072, 4)))
    }
    plan = make_plan(keys, {}, target_model_of("qwen_image"))
    assert not plan.inferred_prefix
    assert {key for key, outcome in plan.outcomes.items() if outcome.category == plans.PLACED} == {
        key for key in keys if ".single_" not in f".{key}"
    }
    alone = {key: shape for key, shape in keys.items() if "single_" in key}
    assert not make_plan(alone, {}, target_model_of("qwen_image")).adapters
