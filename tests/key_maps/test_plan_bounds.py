"""Where a plan draws its lines: how many whole weights are a model, what an input may grow to,
which prefix may be guessed.
"""

from __future__ import annotations

import json

import pytest
from lora_locksmith.files.header import TensorInfo, Unreadable
from lora_locksmith.key_maps.convention import asked_metadata, conventions
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.key_maps.table import families, parse_table
from lora_locksmith.key_maps.user_maps import read_own_maps
from lora_locksmith.messages import message
from lora_locksmith.planning import plan as plans
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.scale import FROM_TENSORS
from lora_locksmith.planning.target_model import (
    Network,
    TargetModel,
    denoiser_network,
    encoder_networks,
)

QKV, PROJ, LINEAR = (
    "double_blocks.0.img_attn.qkv",
    "double_blocks.0.img_attn.proj",
    "single_blocks.0.linear1",
)
FLUX = {
    "img_in": (8, 16),
    QKV: (24, 8),
    PROJ: (8, 8),
    "double_blocks.0.img_mlp.0": (32, 8),
    LINEAR: (56, 8),
    "single_blocks.0.linear2": (8, 40),
    "double_blocks.0.txt_attn.qkv": (24, 8),
    "double_blocks.0.txt_attn.proj": (8, 8),
    "double_blocks.0.img_mod.lin": (48, 8),
    "final_layer.linear": (16, 8),
}
CLIP = {
    f"text_model.encoder.layers.0.{name}": (4, 4)
    for name in ("self_attn.q_proj", "self_attn.k_proj")
}
TABLE = """@title Home Made
picture 8 16 2 2.. = pixels
look 8 16.. = looks
view 8 16 = views
[layers.{} = stages.{}]
wq 4 4 = to_q
wk 4 4 = to_k
wq + wk = to_qk
out 4 4 = to_out
"""
HOME = {"picture": (8, 16, 2, 2), "look": (8, 16), "view": (8, 16)}
HOME |= {f"layers.{i}.{name}": (4, 4) for i in range(2) for name in ("wq", "wk", "out")}


def denoiser(modules, biases=(), own=None):
    weights = {f"diffusion_model.{name}.weight": shape for name, shape in modules.items()}
    return denoiser_network(
        weights | {f"diffusion_model.{name}.bias": modules[name][:1] for name in biases}, own
    )


@pytest.fixture(scope="module")
def clip():
    return encoder_networks(
        {f"clip_l.transformer.{name}.weight": shape for name, shape in CLIP.items()}
    )


@pytest.fixture(scope="module")
def target_model(clip):
    return TargetModel([denoiser(FLUX, biases=[QKV]), *clip])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model that only this test knows: a convolution that may grow, and halves that are one
    module elsewhere.
    """
    folder = tmp_path_factory.mktemp("maps")
    (folder / "families").mkdir()
    (folder / "families" / "home.table").write_text(TABLE, "utf-8")
    own = read_own_maps(folder)
    assert not own.errors
    return TargetModel([denoiser(HOME, own=own.families)], own)


def lora(module: str, out: int, *inner: int, rank: int = 2) -> dict[str, tuple[int, ...]]:
    ones = (1,) * (len(inner) - 1)
    return {
        f"{module}.lora_A.weight": (rank, *inner),
        f"{module}.lora_B.weight": (out, rank, *ones),
    }


def categories(plan) -> set[str]:
    return {outcome.category for outcome in plan.outcomes.values()}


def check_whole(plan, keys) -> None:
    """Every key has its outcome, in the order of the file, and those that are placed name the
    adapter that uses them.
    """
    assert list(plan.outcomes) == list(keys)
    for key, outcome in plan.outcomes.items():
        assert (outcome.category == plans.PLACED) == (outcome.adapter is not None)
        assert outcome.adapter is None or key in plan.adapters[outcome.adapter].roles.values()


def whole(prefix, modules) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{name}.weight": shape for name, shape in modules}


def test_whole_weights_of_half_of_a_model_are_a_lora_and_of_more_are_none(target_model):
    modules = list(FLUX.items())
    half, more = whole("diffusion_model.", modules[:5]), whole("diffusion_model.", modules[:6])
    assert len(modules) == 10
    assert categories(make_plan(half, {}, target_model)) == {plans.PLACED}
    refused = make_plan(more, {}, target_model)
    assert categories(refused) == {plans.UNSUPPORTED} and refused.adapters == ()
    assert categories(make_plan(more | lora("final_layer.linear", 16, 8), {}, target_model)) == {
        plans.PLACED
    }


def test_whole_weights_of_a_text_encoder_are_a_model_too(target_model):
    """The share of each network counts, not of all together."""
    encoder = whole("text_encoder.", CLIP.items())
    assert categories(make_plan(encoder, {}, target_model)) == {plans.UNSUPPORTED}
    assert categories(
        make_plan(encoder | whole("diffusion_model.", list(FLUX.items())[:1]), {}, target_model)
    ) == {plans.UNSUPPORTED}
    assert categories(
        make_plan(whole("text_encoder.", list(CLIP.items())[:1]), {}, target_model)
    ) == {plans.PLACED}


def test_whole_weights_that_are_split_in_the_file_count_as_one_of_the_model(target_model):
    """Two fused modules of ten, under six names of diffusers."""
    names = [
        f"transformer_blocks.0.attn.{name}"
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
    ]
    split = whole("transformer.", [(name, (8, 8)) for name in names])
    plan = make_plan(split, {}, target_model)
    assert categories(plan) == {plans.PLACED} and len(plan.adapters) == 6
    rest = [(name, shape) for name, shape in FLUX.items() if "qkv" not in name]
    assert categories(make_plan(split | whole("diffusion_model.", rest[:3]), {}, target_model)) == {
        plans.PLACED
    }
    assert categories(make_plan(split | whole("diffusion_model.", rest[:4]), {}, target_model)) == {
        plans.UNSUPPORTED
    }


def test_an_input_grows_only_where_the_model_allows_it(home):
    (grown,) = make_plan(lora("looks", 8, 32), {}, home).adapters
    assert grown.padded_shape == (8, 32) and grown.resized
    (same,) = make_plan(lora("looks", 8, 16), {}, home).adapters
    assert same.padded_shape is None and not same.resized
    (turned,) = make_plan({"looks.oft_blocks": (2, 4, 4)}, {}, home).adapters
    assert turned.padded_shape is None
    for keys in (
        lora("looks", 8, 15),
        lora("looks", 9, 32),
        lora("looks", 8, 32, 3, 3),
        lora("views", 8, 32),
    ):
        assert categories(make_plan(keys, {}, home)) == {plans.SHAPE_CONFLICT}


def test_an_input_that_grows_shrinks_nowhere(home):
    """A convolution has three inner sizes, and none may be less than the model's."""
    (grown,) = make_plan(lora("picture", 8, 32, 2, 2), {}, home).adapters
    assert grown.padded_shape == (8, 32, 2, 2)
    for inner in ((32, 1, 2), (15, 2, 2), (16, 2, 1)):
        assert categories(make_plan(lora("picture", 8, *inner), {}, home)) == {plans.SHAPE_CONFLICT}


def test_an_input_grows_to_no_width_of_another_published_model(home):
    """Such a LoRA is that model's; one of a model whose inputs are the first of this one's fits
    without them.
    """

    def grown(widths, model, made):
        table = TABLE.replace("@title Home Made", f"@title Home Made\n@inputs {widths}").replace(
            "8 16.. = looks", "8 i.. = looks"
        )
        target_model = TargetModel(
            [denoiser(HOME | {"look": (8, model)}, own={"home": parse_table("home", table)})]
        )
        plan = make_plan(lora("looks", 8, made), {}, target_model)
        assert make_plan(lora("looks", 9, made), {}, target_model).adapters == ()
        assert [adapter.resized for adapter in plan.adapters] == [made != model] * len(
            plan.adapters
        )
        return [(adapter.padded_shape, adapter.columns) for adapter in plan.adapters]

    assert grown("16<32 16<24.. 40", 16, 32) == grown("16<32 16<24.. 40", 16, 40) == []
    assert grown("16<32 16<24.. 40", 16, 24) == [((8, 24), None)]
    assert grown("16<32 16<24.. 40", 16, 17) == [((8, 17), None)]
    assert grown("16<32 16<24.. 40", 32, 16) == grown("16<24..", 24, 16) == [(None, 16)]
    assert (
        grown("16<32 16<24.. 40", 40, 16)
        == grown("16<32<40", 40, 16)
        == grown("16 32", 32, 16)
        == []
    )
    assert grown("16<32", 16, 16) == [(None, None)]


def test_a_file_that_says_how_large_a_weight_becomes_is_believed(home):
    for module, shape in (("views", (8, 32)), ("views", (9, 16)), ("out", (6, 4))):
        module = "stages.0.to_out" if module == "out" else module
        (adapter,) = make_plan(
            lora(module, *shape) | {f"{module}.reshape_weight": (2,)}, {}, home
        ).adapters
        assert adapter.padded_shape == shape
    smaller = lora("views", 7, 16) | {"views.reshape_weight": (2,)}
    assert categories(make_plan(smaller, {}, home)) == {plans.SHAPE_CONFLICT}


def test_what_turns_a_whole_module_cannot_be_split(home, target_model):
    fused = "stages.1.to_qk"
    (split,) = make_plan(lora(fused, 8, 4), {}, home).adapters
    assert [piece[2] for piece in split.target.slices] == [(0, 4), (4, 4)]
    for shape, category in (
        ((8, 1), plans.PLACED),
        ((8,), plans.PLACED),
        ((1, 4), plans.UNSUPPORTED),
    ):
        plan = make_plan(lora(fused, 8, 4) | {f"{fused}.dora_scale": shape}, {}, home)
        assert categories(plan) == {category}, shape
    turning = make_plan({f"{fused}.oft_blocks": (2, 4, 4)}, {}, home)
    assert categories(turning) == {plans.UNSUPPORTED}
    assert (
        "oft changes the whole fused module at once"
        in turning.outcomes[f"{fused}.oft_blocks"].reason
    )
    assert categories(make_plan({"stages.1.to_out.oft_blocks": (2, 2, 2)}, {}, home)) == {
        plans.PLACED
    }
    part = make_plan({"transformer_blocks.0.attn.to_q.oft_blocks": (2, 4, 4)}, {}, target_model)
    assert categories(part) == {plans.PLACED}  # a module that only the model has fused
    across = make_plan(
        lora("stages.1.to_out", 4, 4) | {"stages.1.to_out.dora_scale": (1, 4)}, {}, home
    )
    assert categories(across) == {plans.PLACED}


def test_copies_that_are_left_out_leave_every_key_with_its_adapter(target_model):
    keys = lora("final_layer.linear", 16, 8) | lora(QKV, 24, 8)
    for name in ("to_q", "to_k", "to_v"):
        keys |= lora(f"transformer_blocks.0.attn.{name}", 8, 8)
    keys |= lora("img_in", 8, 16) | {"nothing.lora_A.weight": (2, 2), "_aux.x": (1,)}
    plan = make_plan(keys, {}, target_model)
    check_whole(plan, keys)
    assert [adapter.module.rpartition(".")[2] for adapter in plan.adapters] == [
        "linear",
        "to_q",
        "to_k",
        "to_v",
        "img_in",
    ]
    assert {
        key for key, outcome in plan.outcomes.items() if outcome.category == plans.DUPLICATE_TARGET
    } == set(lora(QKV, 24, 8))
    assert "img_attn.qkv a second time" in plan.outcomes[f"{QKV}.lora_A.weight"].reason


def test_what_is_left_keeps_the_keys_that_it_shares_with_what_is_left_out(target_model):
    """The alpha of a whole network is that of the split adapters too, when the fused copy is left
    out.
    """
    fused = {f"transformer.{key}": shape for key, shape in lora(QKV, 24, 8).items()}
    keys = {"transformer.lora_alpha": ()} | fused
    for name in ("to_q", "to_k", "to_v"):
        keys |= lora(f"transformer.transformer_blocks.0.attn.{name}", 8, 8)
    for file in (keys, dict(reversed(keys.items()))):
        plan = make_plan(file, {}, target_model)
        check_whole(plan, file)
        assert [adapter.roles.get("alpha") for adapter in plan.adapters] == [
            "transformer.lora_alpha"
        ] * 3
        assert {
            key for key, outcome in plan.outcomes.items() if outcome.category != plans.PLACED
        } == set(fused)
        less = plans.without_adapters(plan, {0: "told", 2: "told"})
        check_whole(less, file)
        assert (
            less.adapters == plan.adapters[1:2]
            and less.outcomes["transformer.lora_alpha"].adapter == 0
        )
        lost = {key for place in (0, 2) for key in plan.adapters[place].roles.values()} - {
            "transformer.lora_alpha"
        }
        assert {
            key
            for key, outcome in less.outcomes.items()
            if outcome == (plans.UNSUPPORTED, "told", None)
        } == lost
        nothing = plans.without_adapters(plan, dict.fromkeys(range(3), "told"))
        assert nothing.adapters == () and nothing.outcomes["transformer.lora_alpha"] == (
            plans.UNSUPPORTED,
            "told",
            None,
        )


def test_a_bias_needs_one_of_its_size(target_model):
    bias = {f"{QKV}.diff_b": (24,)}
    assert categories(make_plan(bias, {}, target_model)) == {plans.PLACED}
    wrong = make_plan({f"{QKV}.diff_b": (23,)}, {}, target_model).outcomes[f"{QKV}.diff_b"]
    assert wrong[:2] == (
        plans.SHAPE_CONFLICT,
        f"trained for a bias of 23, {QKV} has 24",
    )
    none = make_plan({"img_in.diff_b": (8,)}, {}, target_model).outcomes["img_in.diff_b"]
    assert none[:2] == (plans.SHAPE_CONFLICT, "img_in has no bias in this model")


def test_a_bias_of_a_size_that_is_not_known():
    """Neither where the file does not tell it nor where the model is only drawn."""
    target_model = TargetModel([denoiser(FLUX, biases=[QKV])])
    assert categories(make_plan({f"{QKV}.diff_b": None}, {}, target_model)) == {plans.PLACED}
    assert (
        make_plan({"img_in.diff_b": None}, {}, target_model).outcomes["img_in.diff_b"].reason
        == "img_in has no bias in this model"
    )
    reference = TargetModel(
        [
            Network(
                DENOISER,
                "diffusion_model.",
                {"diffusion_model.layer.weight": (0, 0)},
                None,
                is_reference=True,
            )
        ]
    )
    assert categories(make_plan({"layer.diff_b": (24,)}, {}, reference)) == {plans.PLACED}


def test_a_bias_without_a_place_leaves_its_factors_theirs(target_model):
    """PEFT's lora_bias borrows the factors' rank and alpha; where the layer has no bias, the
    factors still have their weight.
    """
    keys = lora("img_in", 8, 16) | {"img_in.alpha": (), "img_in.lora_B.bias": (8,)}
    plan = make_plan(keys, {}, target_model)
    check_whole(plan, keys)
    assert plan.outcomes["img_in.lora_B.bias"].category == plans.SHAPE_CONFLICT
    assert [outcome.category for outcome in plan.outcomes.values()].count(plans.PLACED) == 3


def test_what_is_said_of_a_shape_that_does_not_fit(target_model):
    outcome = make_plan(lora("img_in", 9, 16), {}, target_model).outcomes["img_in.lora_A.weight"]
    assert outcome.reason == "trained for [9, 16], img_in is [8, 16]"
    blocks = make_plan({"img_in.oft_blocks": (3, 4, 4)}, {}, target_model).outcomes[
        "img_in.oft_blocks"
    ]
    assert blocks.reason == "trained for [12, '?'], img_in is [8, 16]"
    partly = make_plan(
        {"img_in.lora_A.weight": None, "img_in.lora_B.weight": (9, 2)}, {}, target_model
    )
    assert categories(partly) == {plans.PLACED}  # a shape that is not known fits anything
    numbers = {f"img_in.hada_{name}": () for name in ("w1_a", "w1_b", "w2_a", "w2_b")} | {
        "img_in.hada_t1": (2, 2, 3, 3)
    }
    flat = make_plan(numbers, {}, target_model).outcomes["img_in.hada_t1"]
    assert (
        flat.category == plans.SHAPE_CONFLICT
        and "too few dimensions: hada_w1_a [], hada_w1_b []" in flat.reason
    )


SPLITS = next(one for one in conventions() if one.name == "split_qkv")
FROM_SPLITS = f"{SPLITS.title}: {SPLITS.cases[0].title}"
NOT_SPLIT = message("conventions.split_qkv_other_rank")
SPLIT = {"ss_network_args": '{"split_qkv": "True"}', "ss_network_dim": "2"}


@pytest.mark.parametrize(
    ("module", "out", "rank", "metadata", "factor"),
    [
        (QKV, 24, 6, SPLIT, 3.0),
        (QKV, 24, 5, SPLIT, 1.0),
        (QKV, 24, 7, SPLIT, 1.0),
        (QKV, 24, 12, SPLIT, 1.0),
        (QKV, 24, 2, SPLIT, 1.0),
        (LINEAR, 56, 8, SPLIT, 4.0),
        (LINEAR, 56, 6, SPLIT, 1.0),
        ("img_in", 8, 2, SPLIT, 1.0),
        (QKV, 24, 6, {**SPLIT, "ss_network_dim": "3"}, 1.0),
        (QKV, 24, 6, {**SPLIT, "ss_network_dim": "2.0"}, 3.0),
        (QKV, 24, 6, {**SPLIT, "ss_network_args": '{"split_qkv": true}'}, 3.0),
        (QKV, 24, 6, {**SPLIT, "ss_network_args": '{"split_qkv": "False"}'}, 1.0),
        (QKV, 24, 6, {**SPLIT, "ss_network_args": '{"other": "True"}'}, 1.0),
        (QKV, 24, 6, {**SPLIT, "ss_network_dim": "Dynamic"}, 1.0),
        (QKV, 24, 6, {"ss_network_args": SPLIT["ss_network_args"]}, 1.0),
    ],
)
def test_only_what_split_qkv_merged_is_corrected(target_model, module, out, rank, metadata, factor):
    """sd-scripts merges three or four splits of one rank: the rank is just so many times theirs, or
    it was no split.
    """
    inner = FLUX[module][1]
    (adapter,) = make_plan(
        lora(module, out, inner, rank=rank) | {f"{module}.alpha": ()}, metadata, target_model
    ).adapters
    assert adapter.strength.factor == factor
    assert adapter.strength.origin == (FROM_SPLITS if factor != 1 else FROM_TENSORS)


TEXT = "double_blocks.0.txt_attn.qkv"


@pytest.mark.parametrize(
    ("module", "rank", "arguments", "factor"),
    [
        (QKV, 12, {"img_attn_dim": "4"}, 3.0),
        (QKV, 6, {"img_attn_dim": "4"}, 1.0),
        (QKV, 6, {"txt_attn_dim": "4", "single_dim": "5"}, 3.0),
        (TEXT, 12, {"txt_attn_dim": "4", "img_attn_dim": "5"}, 3.0),
        (TEXT, 15, {"txt_attn_dim": "4", "img_attn_dim": "5"}, 1.0),
        (LINEAR, 20, {"single_dim": "5"}, 4.0),
        (LINEAR, 8, {"single_dim": "5"}, 1.0),
        (LINEAR, 8, {"single_mod_dim": "5", "img_attn_dim": "5"}, 4.0),
        (QKV, 9, {"network_reg_dims": "img_attn=3"}, 3.0),
        (
            QKV,
            9,
            {"network_reg_dims": "txt_.*=7, double.*_attn=3, img_attn=4", "img_attn_dim": "5"},
            3.0,
        ),
        (QKV, 15, {"network_reg_dims": "single=3", "img_attn_dim": "5"}, 3.0),
        (QKV, 9, {"network_reg_dims": "^lora_unet_double_blocks_0_img_attn_qkv$=3"}, 3.0),
        (LINEAR, 8, {"network_reg_dims": "double=3,,nothing, single = four"}, 4.0),
        (LINEAR, 16, {"network_reg_dims": "double=3, linear1 = 4"}, 4.0),
        (LINEAR, 16, {"network_reg_dims": "double=3,=4"}, 4.0),
        (
            QKV,
            6,
            {"network_reg_dims": "(?!txt)img_attn=3"},
            1.0,
        ),  # it cannot be read, so that nothing is known of what it means
        (QKV, 6, {"network_reg_dims": "img_attn=0"}, 1.0),
        (QKV, 6, {"network_reg_dims": 5}, 3.0),
        (QKV, 6, {"img_attn_dim": "0"}, 1.0),
        (QKV, 6, {"img_attn_dim": None}, 3.0),
    ],
)
def test_splits_of_a_rank_of_their_own(target_model, module, rank, arguments, factor):
    """sd-scripts networks/lora_flux.py: by a pattern, by the type of the module, else that of the
    network, which is 2 here.
    """
    metadata = {
        "ss_network_args": json.dumps({"split_qkv": "True"} | arguments),
        "ss_network_dim": "2",
    }
    out, inner = FLUX[module]
    named = f"lora_unet_{module.replace('.', '_')}"
    keys = {
        f"{named}.lora_down.weight": (rank, inner),
        f"{named}.lora_up.weight": (out, rank),
        f"{named}.alpha": (),
    }
    plan = make_plan(keys, metadata, target_model)
    (adapter,) = plan.adapters
    assert adapter.strength.factor == factor
    assert plan.cautions == (() if factor > 1 else (f"1 layer: {NOT_SPLIT}",))


def test_splits_whose_rank_no_network_has(target_model):
    """The type's alone is told; or the file was resized to one rank, and is split no more."""
    keys = lora(QKV, 24, 8, rank=12) | {f"{QKV}.alpha": ()}
    for dim in ("None", None):
        metadata = {"ss_network_args": '{"split_qkv": "True", "img_attn_dim": "4"}'} | (
            {"ss_network_dim": dim} if dim else {}
        )
        assert make_plan(keys, metadata, target_model).adapters[0].strength.factor == 3.0
    resized = make_plan(keys, SPLIT | {"ss_network_dim": "12"}, target_model)
    assert (resized.adapters[0].strength.factor, resized.cautions) == (1.0, ())
    other = make_plan(
        keys, {"ss_network_args": '{"img_attn_dim": "4"}', "ss_network_dim": "4"}, target_model
    )
    assert (other.adapters[0].strength.factor, other.cautions) == (1.0, ())


def test_why_splits_are_not_corrected_is_told_once_and_where_it_counts(target_model):
    unread = SPLIT | {"ss_network_dim": "many"}
    fused, other = (
        lora(name, *FLUX[name], rank=6) | {f"{name}.alpha": ()} for name in (QKV, "img_in")
    )
    (told,) = make_plan(fused, unread, target_model).cautions
    assert told.startswith("1 layer: ss_network_dim is no rank, although sd-scripts' split_qkv")
    assert (
        make_plan(other, unread, target_model).cautions
        == make_plan(lora(QKV, 24, 8), unread, target_model).cautions
        == ()
    )


RS_LORA = {"ss_network_args": '{"rs_lora": "True"}', "ss_network_alpha": "2", "ss_network_dim": "4"}
FULL = {"img_in.lokr_w1": (2, 4), "img_in.lokr_w2": (4, 4), "img_in.alpha": ()}


@pytest.mark.parametrize(
    ("keys", "metadata", "alpha", "scale"),
    [
        (
            lora("img_in", 8, 16, rank=4) | {"img_in.alpha": ()},
            RS_LORA,
            4.0,
            None,
        ),  # as alpha / rank says, too
        (lora("img_in", 8, 16, rank=4) | {"img_in.alpha": ()}, RS_LORA, 2.0, 1.0),
        (FULL, RS_LORA, 4.0, 2.0),
        (
            FULL,
            RS_LORA | {"ss_network_dim": "1"},
            4.0,
            None,
        ),  # what a whole LoKr has without any alpha
        (FULL, {"ss_network_module": "networks.krona"}, 0.25, None),
    ],
)
def test_a_meaning_is_told_as_a_scale_only_where_the_alpha_tensor_says_another(
    target_model, keys, metadata, alpha, scale
):
    plan = make_plan(keys, metadata, target_model, number=lambda key: alpha)
    (adapter,) = plan.adapters
    assert (
        plan.by_values and not make_plan(keys, {}, target_model, number=lambda key: alpha).by_values
    )
    assert (adapter.strength.scale, adapter.strength.factor) == (scale, 1.0)
    assert adapter.strength.origin not in (FROM_TENSORS, FROM_SPLITS)


def test_a_meaning_without_an_alpha_is_a_scale(target_model):
    """PEFT 0.13 left alpha / r of a LoKr out."""
    config = {"peft_type": "LOKR", "r": 8, "alpha": 4}
    (adapter,) = make_plan(
        {key: shape for key, shape in FULL.items() if "alpha" not in key},
        {},
        target_model,
        config_beside=config,
    ).adapters
    assert adapter.strength.scale == 1.0


def test_an_alpha_that_is_no_number_is_refused_where_it_counts(target_model):
    for alpha, told in (
        ((2,), "has the shape [2]"),
        ((0,), "has the shape [0]"),
        (TensorInfo("BOOL", ()), "is of the type BOOL"),
    ):
        keys = lora("img_in", 8, 16) | {"img_in.alpha": alpha}
        outcomes = make_plan(keys, {}, target_model).outcomes.values()
        reason = (
            f"its alpha img_in.alpha {told}, but it should be one number: the strength of the"
            " adapter is not known"
        )
        assert {outcome[:2] for outcome in outcomes} == {(plans.UNSUPPORTED, reason)}
        assert categories(make_plan(FULL | {"img_in.alpha": alpha}, {}, target_model)) == {
            plans.PLACED
        }
    for alpha in ((), (1,), (1, 1), None, TensorInfo("F16", (1,))):
        assert categories(
            make_plan(lora("img_in", 8, 16) | {"img_in.alpha": alpha}, {}, target_model)
        ) == {plans.PLACED}


@pytest.mark.parametrize("alike", [True, False])
def test_twins_are_copies_only_where_their_numbers_are(target_model, alike):
    asked = []

    def same(fused, parts):
        asked.append((fused.module, [part.target.module for part in parts]))
        return alike

    keys = lora(QKV, 24, 8)
    for name in ("to_q", "to_k", "to_v"):
        keys |= lora(f"transformer_blocks.0.attn.{name}", 8, 8)
    plan = make_plan(keys, {}, target_model, same=same)
    assert asked == [(QKV, [QKV] * 3)] and plan.by_values
    assert len(plan.adapters) == (3 if alike else 4)
    assert plan.cautions == (() if alike else (f"1 layer: {message(plans.DIFFERENT_TWINS)}",))
    assert not make_plan(keys, {}, target_model).by_values
    assert not make_plan(lora(QKV, 24, 8), {}, target_model, same=same).by_values


def test_twins_under_another_wrapper_are_copies_only_by_their_numbers(target_model):
    """The header alone says so only of what one tool wrote."""
    keys = {f"diffusion_model.{key}": shape for key, shape in lora(QKV, 24, 8).items()}
    for name in ("to_q", "to_k", "to_v"):
        keys |= lora(f"transformer.transformer_blocks.0.attn.{name}", 8, 8)
    assert len(make_plan(keys, {}, target_model).adapters) == 4
    assert len(make_plan(keys, {}, target_model, same=lambda fused, parts: True).adapters) == 3


def test_only_twins_that_differ_are_told(target_model):
    text = "double_blocks.0.txt_attn.qkv"
    keys = lora(QKV, 24, 8) | lora(text, 24, 8)
    for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
        keys |= lora(f"transformer_blocks.0.attn.{name}", 8, 8)
    plan = make_plan(keys, {}, target_model, same=lambda fused, parts: fused.module == text)
    assert len(plan.adapters) == 7 and plan.cautions == (
        f"1 layer: {message(plans.DIFFERENT_TWINS)}",
    )


def test_an_alpha_of_zero_that_a_meaning_makes_zero(target_model):
    """By itself it means that none is set, which is a strength of 1."""
    keys = lora("img_in", 8, 16, rank=4) | {"img_in.alpha": ()}
    (adapter,) = make_plan(
        keys, RS_LORA | {"ss_network_alpha": "0"}, target_model, number=lambda key: 0.0
    ).adapters
    assert adapter.strength.scale == 0.0


def test_lone_downs_of_whole_matrices_are_adapters_only_where_no_up_is_lost(target_model):
    """AI-Toolkit's fullrank names a whole matrix lora_down; a LoRA whose ups were lost in part
    looks the same.
    """
    whole = {f"{module}.lora_down.weight": FLUX[module] for module in ("img_in", PROJ)}
    plan = make_plan(whole, {}, target_model)
    check_whole(plan, whole)
    assert [adapter.kind for adapter in plan.adapters] == ["fullrank"] * 2
    alone = {"img_in.lora_down.weight": FLUX["img_in"]}  # with fewer outputs than inputs
    assert [one.kind for one in make_plan(alone, {}, target_model).adapters] == ["fullrank"]
    misfit = whole | {f"{QKV}.lora_down.weight": (4, 8)}
    pair = whole | {f"{QKV}.lora_down.weight": (4, 8), f"{QKV}.lora_up.weight": (24, 4)}
    whole_weight = {"final_layer.linear.diff": (16, 8)}
    for file, placed in (
        (misfit, []),
        (dict(reversed(misfit.items())), []),
        (pair, ["lora"]),
        (misfit | whole_weight, ["diff"]),
    ):
        plan = make_plan(file, {}, target_model)
        check_whole(plan, file)
        assert [adapter.kind for adapter in plan.adapters] == placed
        lost = {
            outcome[:2] for outcome in plan.outcomes.values() if outcome.category != plans.PLACED
        }
        no_up = "lora_up or lora_B is missing"
        assert lost == {(plans.INCOMPLETE, no_up)}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("shapes", "whole"),
    [
        ({"attn1.to_q": (4, 640), "attn2.to_k": (4, 2048)}, False),  # one rank
        ({"attn1.to_q": (4, 640), "attn2.to_k": (8, 2048)}, False),  # two ranks; to_q is square
        ({"attn1.to_q": (640, 640), "attn2.to_k": (640, 2048)}, True),
    ],
)
def test_a_model_of_unknown_sizes_takes_no_half_of_a_lora_as_a_whole_weight(known, shapes, whole):
    """A drawn SDXL does not know the width of a block: every number of rows fits it."""
    plan = lone_downs(shapes, known)
    assert [adapter.kind for adapter in plan.adapters] == ["fullrank"] * (whole * len(shapes))
    if not whole:
        reasons = {outcome.reason for outcome in plan.outcomes.values()}
        assert reasons == {"lora_up or lora_B is missing"}


def lone_downs(shapes, known):
    """The plan of downs without ups, on a block of SDXL whose sizes are known or not."""
    block = "input_blocks.4.1.transformer_blocks.0"
    sizes = {"attn1.to_q": (640, 640), "attn2.to_k": (640, 2048), "attn2.to_v": (640, 2048)}
    weights = {
        f"diffusion_model.{block}.{name}.weight": shape if known else (0, 0)
        for name, shape in sizes.items()
    }
    target_model = TargetModel(
        [Network("denoiser", "diffusion_model.", weights, families()["sdxl"])]
    )
    file = {f"unet.{block}.{name}.lora_A.weight": shape for name, shape in shapes.items()}
    plan = make_plan(file, {}, target_model)
    check_whole(plan, file)
    return plan


@pytest.mark.parametrize("rows", [4, 640])
def test_halves_and_whole_weights_that_look_alike_are_told_as_both(rows):
    """Where no square weight is among them, a rank and a width look alike: AI-Toolkit's fullrank is
    never called half a LoRA, unless the model's sizes say so.
    """
    shapes = {"attn2.to_k": (rows, 2048), "attn2.to_v": (rows, 2048)}
    plan = lone_downs(shapes, known=False)
    assert not plan.adapters
    (reason,) = {outcome.reason for outcome in plan.outcomes.values()}
    missing, _, told = reason.partition(", or ")
    assert missing == "lora_up or lora_B is missing"
    assert told.startswith("it is a full-rank difference: connect the model")
    plan = lone_downs(shapes, known=True)
    assert [adapter.kind for adapter in plan.adapters] == ["fullrank"] * (2 * (rows == 640))
    reasons = {outcome.reason for outcome in plan.outcomes.values()}
    assert (missing in reasons) == (rows == 4) and reason not in reasons


KOALA, SDXL = (
    f"{block}.1.{name}"
    for block, name in (
        ("input_blocks.3", "proj_in"),
        ("input_blocks.4", "transformer_blocks.0.attn2.to_k"),
    )
)
VALUES = SDXL.replace("to_k", "to_v")


def drawn(sizes, family) -> TargetModel:
    """A model with these sizes, 0 where one is not known."""
    weights = {f"diffusion_model.{name}.weight": shape for name, shape in sizes.items()}
    return TargetModel([Network(DENOISER, "diffusion_model.", weights, family, is_reference=True)])


@pytest.mark.parametrize(
    ("family", "sizes", "shapes", "whole"),
    [
        ("sdxl", {SDXL: (640, 0)}, {SDXL: (640, 2048)}, False),
        ("sdxl", {SDXL: (0, 2048)}, {SDXL: (4, 2048)}, False),
        ("sdxl", {SDXL: (0, 0), VALUES: (0, 0)}, {SDXL: (4, 2048), VALUES: (8, 2048)}, True),
        ("sdxl", {SDXL: (0, 0)}, {SDXL: None}, False),
        ("sdxl", {SDXL: (0, 0), VALUES: (0, 0)}, {SDXL: (4, 2048), VALUES: None}, False),
        ("koala", {KOALA: (0, 0)}, {KOALA: (640, 640)}, True),  # a layer in two forms
        ("free", {"layer": (0, 0)}, {"layer": (8, 8)}, True),  # a table without its sizes
        (None, {"layer": (0, 0), "more": (0, 0)}, {"layer": (8, 8), "more": (4, 8)}, True),
        (None, {"layer": (0, 0), "more": (0, 0)}, {"layer": (4, 8), "more": (4, 8)}, False),
        (None, {"layer": (0, 0)}, {"layer": None}, True),
    ],
)
def test_what_a_lone_matrix_is_where_the_model_is_known_in_part(family, sizes, shapes, whole):
    """One number of rows for all, below all inputs, looks like a rank, unless the model's own
    sizes are known.
    """
    known = {**families(), "free": parse_table("free", "@title Free\nlayer - = loose\n")}
    file = {f"{name}.lora_A.weight": shape for name, shape in shapes.items()}
    plan = make_plan(file, {}, drawn(sizes, known.get(family)))
    check_whole(plan, file)
    assert categories(plan) == {plans.PLACED if whole else plans.INCOMPLETE}


def test_other_adapters_of_a_file_do_not_tell_its_rank():
    target_model = drawn({SDXL: (0, 0), VALUES: (0, 0)}, families()["sdxl"])
    file = {f"{SDXL}.lora_A.weight": (4, 2048), f"{VALUES}.diff": (640, 2048)}
    plan = make_plan(file, {}, target_model)
    assert [adapter.kind for adapter in plan.adapters] == ["diff"]


@pytest.mark.parametrize("size", [(0, 0), (8, 0), (0, 4)])
def test_a_weight_of_unknown_size_is_not_said_to_grow(size):
    keys = lora("layer", 8, 4) | {"layer.reshape_weight": (2,)}
    (adapter,) = make_plan(keys, {}, drawn({"layer": size}, None)).adapters
    assert adapter.padded_shape is None and not adapter.resized


def test_which_matrices_may_stand_for_a_convolution(home):
    """Those whose writers flatten the kernel; a whole difference has the weight's own shape."""
    factors = {"w1_a": (8, 2), "w1_b": (2, 64), "w2_a": (8, 2), "w2_b": (2, 64)}
    for keys, category in (
        ({f"pixels.hada_{name}": shape for name, shape in factors.items()}, plans.PLACED),
        (lora("pixels", 8, 64), plans.PLACED),
        (
            {"pixels.lora_A.weight": (2, 16, 4), "pixels.lora_B.weight": (8, 2, 1)},
            plans.SHAPE_CONFLICT,
        ),
        ({"pixels.diff": (8, 64)}, plans.SHAPE_CONFLICT),
        ({"pixels.diff": (8, 16, 2, 2)}, plans.PLACED),
    ):
        assert categories(make_plan(keys, {}, home)) == {category}, keys


def test_split_qkv_of_a_module_of_two_parts():
    table = parse_table("two", "@title Two\nkv 8 4 = to_k + to_v\n")
    keys = lora("kv", 8, 4, rank=4) | {"kv.alpha": ()}
    (adapter,) = make_plan(keys, SPLIT, drawn({"kv": (8, 4)}, table)).adapters
    assert (adapter.strength.factor, adapter.strength.origin) == (2.0, FROM_SPLITS)


DIFFERING = {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 8}'}


def test_settings_that_differ_are_told_whatever_the_strength_comes_from(target_model):
    keys = lora("img_in", 8, 16)
    for file in (keys, keys | {"img_in.alpha": ()}):
        (told,) = make_plan(
            file, DIFFERING, target_model, config_beside={"r": 2, "lora_alpha": 4}
        ).cautions
        assert "lora_alpha is 8 in the header and 4 in adapter_config.json" in told
        assert (
            make_plan(
                file, DIFFERING, target_model, config_beside={"r": 2, "lora_alpha": 8}
            ).cautions
            == ()
        )


def test_settings_that_cannot_be_read_are_told_where_a_strength_is_asked_of_them(target_model):
    unreadable, alpha = Unreadable("it is not JSON"), {"img_in.alpha": ()}
    without, beside = lora("img_in", 8, 16), lora(PROJ, 8, 8)
    for file, told in (
        (without, True),
        (without | alpha, False),
        (without | alpha | beside, True),
        (lora("nothing", 8, 8), True),
    ):
        cautions = make_plan(file, {}, target_model, config_beside=unreadable).cautions
        assert [text.partition(" (")[0] for text in cautions] == [
            "The adapter_config.json beside the file cannot be read"
        ] * told


ROAD = {"img_in.road_theta": (4,), "img_in.road_alpha": (4,)}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "RoAd: no readable PEFT setting gives its group_size"),
        ({"r": 3}, "RoAd: no readable PEFT setting gives its group_size"),
        ({"group_size": "many"}, 'RoAd: its group_size is "many", not a whole number from 1'),
        ({"group_size": 4}, ""),
    ],
)
def test_an_adapter_that_needs_a_setting_is_refused_without_a_lawful_one(
    target_model, config, reason
):
    plan = make_plan(ROAD, {}, target_model, config_beside=config)
    check_whole(plan, ROAD)
    assert [dict(adapter.options) for adapter in plan.adapters] == [config] * (not reason)
    assert reason == "" or all(
        (outcome.category, outcome.reason[: len(reason)]) == (plans.UNSUPPORTED, reason)
        for outcome in plan.outcomes.values()
    )


@pytest.mark.parametrize(
    ("tensors", "config", "reason"),
    [
        ("deft", {"decomposition_method": "qr", "alpha": "much"}, ""),
        (
            "deft",
            {"decomposition_method": "x", "alpha": "much"},
            'DEFT: its decomposition_method is "x"',
        ),
        ("deft", {"alpha": "much"}, "DEFT: no readable PEFT setting gives its decomp"),
        (
            "peanut",
            {"depth": 0, "scaling": 1},
            "PEANuT: no readable PEFT setting gives its act_fn;",
        ),
        ("peanut", {"depth": 0, "scaling": 1, "act_fn": "x"}, 'PEANuT: its act_fn is "x"'),
        ("peanut", {"depth": 0, "scaling": 1, "act_fn": "relu"}, ""),
    ],
)
def test_only_a_setting_that_is_needed_and_not_lawful_is_the_reason_of_a_refusal(
    target_model, tensors, config, reason
):
    """DEFT's alpha may be left out; what is lawful is no fault where another is missing."""
    files = {
        "deft": {"img_in.deft_P": (8, 2), "img_in.deft_R": (2, 16)},
        "peanut": {"img_in.peanut_A.weight": (2, 8), "img_in.peanut_B.weight": (8, 2)},
    }
    plan = make_plan(files[tensors], {}, target_model, config_beside=config)
    check_whole(plan, files[tensors])
    assert len(plan.adapters) == (not reason)
    assert all(outcome.reason.startswith(reason) for outcome in plan.outcomes.values())


VECTORS = {
    f"transformer.proj_out.vblora_{name}": shape
    for name, shape in {
        "logits_A": (2, 4, 3),
        "logits_B": (8, 2, 3),
        "vector_bank": (3, 2),
    }.items()
}


@pytest.mark.parametrize(
    ("alpha", "first", "refused", "config"),
    [
        ((), lora("transformer.x_embedder", 8, 16), VECTORS, None),
        ((2,), VECTORS, lora("transformer.x_embedder", 8, 16), {"topk": 2}),
        (
            (),
            lora("transformer.stages.0.to_out", 4, 4),
            lora("transformer.stages.1.to_qk", 8, 4),
            {"init_lora_weights": "pissa"},
        ),
    ],
)
def test_an_adapter_that_is_refused_takes_no_alpha_from_one_that_is_applied(
    target_model, home, alpha, first, refused, config
):
    """The alpha of a whole network: a setting is missing, the alpha cannot count, the model has
    the module split.
    """
    file = {"transformer.lora_alpha": alpha} | first | refused
    model = home if "transformer.stages.0.to_out.lora_A.weight" in file else target_model
    plan = make_plan(file, {}, model, config_beside=config)
    check_whole(plan, file)
    unsupported = {key for key, one in plan.outcomes.items() if one.category == plans.UNSUPPORTED}
    assert unsupported == set(refused)
    assert plan.outcomes["transformer.lora_alpha"].category == plans.PLACED


@pytest.mark.parametrize(
    ("config", "kind", "told"),
    [
        ({"init_lora_weights": "pissa"}, "pissa", ""),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa", "1 layer: init_lora_weights is pissa_"),
        ({"use_bdlora": {"target_modules_bd_a": ["x"]}}, "bdlora", ""),
        ({}, "lora", ""),
    ],
)
def test_settings_make_another_kind_of_plain_factors(target_model, config, kind, told):
    plan = make_plan(lora("img_in", 8, 16), {}, target_model, config_beside=config)
    assert [adapter.kind for adapter in plan.adapters] == [kind]
    assert [text[: len(told)] for text in plan.cautions] == [told] * bool(told)


def test_what_a_writer_means_can_be_a_reason_to_refuse(target_model):
    """By the settings; or by the family of the model, which may have the rows in another order."""
    plan = make_plan(
        lora("img_in", 8, 16), {}, target_model, config_beside={"init_lora_weights": "corda"}
    )
    assert plan.adapters == ()
    assert {outcome.reason.partition(" (")[0] for outcome in plan.outcomes.values()} == {
        "the base model was changed when training began"
    }
    module = "blocks.0.attn.qkv_proj"
    keys = {
        f"{module}.lora_A.default.weight": (2, 4),
        f"{module}.lora_B.default.weight": (12, 2),
    }
    for family, refused in ((families()["minimax_h3"], True), (None, False)):
        plan = make_plan(keys, {}, drawn({module: (12, 4)}, family))
        assert categories(plan) == {plans.UNSUPPORTED if refused else plans.PLACED}


def test_a_meaning_that_asks_for_numbers_nobody_reads_is_not_told(target_model):
    keys = lora("img_in", 8, 16, rank=4) | {"img_in.alpha": ()}
    (adapter,) = make_plan(keys, RS_LORA, target_model).adapters
    assert (adapter.strength.scale, adapter.strength.origin) == (None, FROM_TENSORS)


def test_a_part_of_a_weight_does_not_grow(target_model):
    part = "transformer_blocks.0.attn.to_q"
    plan = make_plan(lora(part, 9, 8) | {f"{part}.reshape_weight": (2,)}, {}, target_model)
    assert categories(plan) == {plans.SHAPE_CONFLICT}


def test_settings_count_where_the_shapes_do_not_tell():
    """Which side of a layer an (IA)3 is of: a square convolution has two of one size."""
    target_model = TargetModel([denoiser({"conv": (8, 8, 3, 3), "other": (8, 4, 3, 3)})])
    square, other = {"conv.ia3_l": (1, 8, 1, 1)}, {"other.ia3_l": (1, 8, 1, 1)}
    config = {"peft_type": "IA3", "feedforward_modules": ["conv", "other"]}
    told = {"feedforward_modules": True}
    for keys, settings, options in (
        (square, config, told),
        (other, config, {}),
        (square, {"peft_type": "IA3"}, {}),
    ):
        plan = make_plan(keys, {}, target_model, config_beside=settings)
        assert [dict(adapter.options) for adapter in plan.adapters] == [options]
        assert plan.cautions == ()


def test_a_whole_networks_alpha_is_for_those_with_a_rank_and_none_of_their_own(target_model):
    keys = lora("transformer.x_embedder", 8, 16) | lora("transformer.proj_out", 16, 8)
    keys |= {
        "transformer.proj_out.alpha": (),
        "transformer.transformer_blocks.0.attn.to_out.0.diff": (8, 8),
        "transformer.lora_alpha": (),
    }
    plan = make_plan(keys, {}, target_model)
    check_whole(plan, keys)
    alphas = {adapter.target.module: adapter.roles.get("alpha") for adapter in plan.adapters}
    assert alphas == {
        "img_in": "transformer.lora_alpha",
        "final_layer.linear": "transformer.proj_out.alpha",
        "double_blocks.0.img_attn.proj": None,
    }
    other = lora("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 4, 4)
    both = {"transformer.lora_alpha": (), "text_encoder.lora_alpha": ()}
    plan = make_plan(other | lora("transformer.x_embedder", 8, 16) | both, {}, target_model)
    assert [adapter.roles.get("alpha") for adapter in plan.adapters] == [
        None,
        "transformer.lora_alpha",
    ]
    assert plan.outcomes["text_encoder.lora_alpha"][:2] == (
        plans.BOOKKEEPING,
        "an alpha for all of text_encoder, which no adapter here needs",
    )
    plan = make_plan({"lora_alpha": ()}, {}, target_model)
    assert plan.outcomes["lora_alpha"][:2] == (
        plans.BOOKKEEPING,
        "an alpha for all of the file, which no adapter here needs",
    )


def test_a_network_that_is_not_connected_is_told_as_such(target_model, clip):
    only_clip = TargetModel(clip)
    keys = lora("transformer.transformer_blocks.0.attn.to_q", 8, 8)
    outcome = make_plan(keys, {}, only_clip).outcomes[
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    ]
    assert outcome[:2] == (
        plans.NOT_WIRED,
        "it belongs to the diffusion model, and no MODEL is connected",
    )
    assert categories(make_plan(keys, {}, target_model)) == {plans.PLACED}
    for keys, model in (
        (lora("lora_te1_nothing", 4, 4), target_model),
        (lora("nothing", 4, 4), only_clip),
    ):
        assert categories(make_plan(keys, {}, model)) == {plans.UNKNOWN_MODULE}


def test_what_cannot_be_supported_is_said_so_wherever_it_was_to_go(target_model):
    keys = {"nothing.vera_lambda_d": (2,), "nothing.vera_lambda_b": (8,), "nothing.diff": (8, 8)}
    outcomes = make_plan(keys, {}, target_model).outcomes
    assert [outcome.category for outcome in outcomes.values()] == [
        plans.UNSUPPORTED,
        plans.UNSUPPORTED,
        plans.UNKNOWN_MODULE,
    ]
    assert "base matrices" in outcomes["nothing.vera_lambda_d"].reason


@pytest.mark.parametrize(
    ("shape", "role", "metadata", "kind"),
    [
        ((2, 4, 4), "oft_blocks", {}, "oft"),
        ((2, 4, 4), "oft_blocks", {"ss_network_module": "lycoris.kohya"}, "oft"),
        ((2, 4, 4), "oft_blocks", {"ss_network_module": "networks.oft"}, "oft_kohya"),
        ((2, 4, 2, 2), "oft_blocks", {}, "boft"),
        ((2, 4, 2, 2), "oft_blocks", {"ss_network_module": "networks.oft"}, "boft"),
        (None, "oft_blocks", {}, "oft"),
        ((2, 6), "oft_R.weight", {}, "oft_peft"),
        ((2, 6), "oft_R.weight", {"ot_branch": "master"}, "oft_onetrainer"),
        ((2, 6), "oft_R.weight", {"ot_revision": "1"}, "oft_onetrainer"),
        (
            (4, 4),
            "lora_A.weight",
            {"ot_branch": "master", "ss_network_module": "networks.oft"},
            None,
        ),
    ],
)
def test_one_name_of_several_kinds(target_model, shape, role, metadata, kind):
    """What the blocks look like and who wrote them tells which kind it is."""
    kinds = [
        adapter.kind
        for adapter in make_plan({f"{PROJ}.{role}": shape}, metadata, target_model).adapters
    ]
    assert kinds == ([kind] if kind else [])
    if role.startswith("oft_R"):
        both = make_plan(
            {f"{PROJ}.oft_R.weight": shape, f"{PROJ}.oft_R.scaled_oft": ()}, {}, target_model
        )
        assert [adapter.kind for adapter in both.adapters] == ["oft_onetrainer"]


def test_settings_that_change_what_factors_mean_go_with_their_kind(target_model):
    config = {
        "r": 2,
        "fan_in_fan_out": True,
        "use_cayley_neumann": False,
        "num_cayley_neumann_terms": 7,
        "coft": True,
        "eps": 6e-5,
    }
    (plain,) = make_plan(lora("img_in", 8, 16), {}, target_model, config_beside=config).adapters
    assert plain.options == (("fan_in_fan_out", True),)
    (turning,) = make_plan(
        {f"{PROJ}.oft_R.weight": (2, 6)}, {}, target_model, config_beside=config
    ).adapters
    expected = {"use_cayley_neumann": False, "num_cayley_neumann_terms": 7, "coft": True}
    assert dict(turning.options) == expected, (
        "what holds anyway is not said, nor what another kind asks for"
    )


GOOD = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k")


def wrapped(prefix: str, *modules: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for module in modules for key, shape in lora(prefix + module, 8, 8).items()}


@pytest.mark.parametrize(
    ("prefix", "inferred"),
    [
        ("acme.", "acme."),
        ("acme_", "acme_"),
        ("acme.v2.", "acme.v2."),
        ("acme.transformer.", "acme."),
        ("x" * 119 + ".", "x" * 119 + "."),
        ("x" * 120 + ".", ""),
    ],
)
def test_a_wrapper_that_may_be_guessed(target_model, prefix, inferred):
    plan = make_plan(wrapped(prefix, *GOOD), {}, target_model)
    assert plan.inferred_prefix == inferred
    assert len(plan.adapters) == (2 if inferred else 0)
    assert {adapter.location.prefix for adapter in plan.adapters} <= {prefix}
    assert all(
        f"unknown prefix {inferred!r} inferred" in adapter.location.rule
        for adapter in plan.adapters
    )


def test_a_guess_needs_two_modules_and_all_that_are_open(target_model):
    assert make_plan(wrapped("acme.", *GOOD[:1]), {}, target_model).inferred_prefix == ""
    good = wrapped("acme.", *GOOD)
    lone = {"acme.transformer_blocks.0.attn.to_v.lora_A.weight": (2, 8)}
    more = {f"acme.{GOOD[0]}.hada_w1_a": (8, 2)}
    misfit = {
        "acme.transformer_blocks.0.attn.to_v.lora_A.weight": (2, 8),
        "acme.transformer_blocks.0.attn.to_v.lora_B.weight": (8, 3),
    }
    other = wrapped("emca.", "transformer_blocks.0.attn.to_v")
    for odd in (lone, more, misfit, other):
        plan = make_plan(good | odd, {}, target_model)
        assert (plan.inferred_prefix, plan.adapters) == ("", ())
    assert (
        make_plan(
            good | wrapped("transformer.", "transformer_blocks.0.attn.to_v"), {}, target_model
        ).inferred_prefix
        == "acme."
    )


def test_a_network_that_is_not_connected_hinders_no_guess():
    bare = TargetModel([denoiser(FLUX)])
    keys = wrapped("acme.", *GOOD) | lora(
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 4, 4
    )
    plan = make_plan(keys, {}, bare)
    assert plan.inferred_prefix == "acme."
    assert categories(plan) == {plans.PLACED, plans.NOT_WIRED}


@pytest.mark.parametrize(
    ("keys", "metadata"),
    [
        (lora("img_in", 8, 16), {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 8}'}),
        (lora(QKV, 24, 8, rank=6) | {f"{QKV}.alpha": ()}, SPLIT),
        ({f"{PROJ}.oft_blocks": (2, 4, 4)}, {"ss_network_module": "networks.oft"}),
        ({f"{PROJ}.oft_R.weight": (2, 6)}, {"ot_branch": "master"}),
        ({f"{PROJ}.oft_R.weight": (2, 6)}, {"ot_revision": "1"}),
    ],
)
def test_what_a_plan_depends_on_is_named(target_model, keys, metadata):
    """Whoever remembers plans by what PLAN_METADATA and the conventions ask for must not take one
    file's for another's.
    """
    asked = {*plans.PLAN_METADATA, *asked_metadata()}
    named = {key: value for key, value in metadata.items() if key in asked}
    planned = make_plan(keys, metadata, target_model).adapters
    assert make_plan(keys, named, target_model).adapters == planned
    for left_out in metadata:
        others = {key: value for key, value in metadata.items() if key != left_out}
        assert make_plan(keys, others, target_model).adapters != planned


def test_an_adapter_that_is_not_computed_is_told_by_its_name_and_stops_what_is_beside_it(
    target_model,
):
    key = f"{QKV}.lily_A.weight"
    plan = make_plan(lora(QKV, 24, 8) | {key: (2, 8)} | lora(PROJ, 8, 8), {}, target_model)
    category, reason, adapter = plan.outcomes[key]
    assert (category, adapter) == (plans.UNSUPPORTED, None)
    assert reason.startswith("Lily: it picks its matrices by a router")
    for role in ("A", "B"):
        told = plan.outcomes[f"{QKV}.lora_{role}.weight"]
        assert told.category == plans.UNSUPPORTED
        assert told.reason.startswith(f"{key} is beside it, which no known adapter has there")
    assert only_modules(plan) == [PROJ]


def only_modules(plan) -> list[str]:
    return [adapter.target.module for adapter in plan.adapters]


def test_a_whole_weight_below_a_layer_of_factors_stops_them(target_model):
    """A layer has no layers of its own: a bare weight there is a part of another formula."""
    odd = f"{QKV}.router.weight"
    plan = make_plan(lora(QKV, 24, 8) | {odd: (2, 8)}, {}, target_model)
    assert plan.adapters == ()
    assert plan.outcomes[f"{QKV}.lora_A.weight"].reason.startswith(f"{odd} is beside it")
    for file, key in (
        (lora(QKV, 24, 8) | {f"{QKV}.diff_b": (24,), odd: (2, 8)}, odd),
        (lora(QKV, 24, 8) | {f"{QKV}.router.lora_B.weight": (8, 2)}, f"{QKV}.router.lora_B.weight"),
    ):
        plan = make_plan(file, {}, target_model)
        assert plan.adapters == ()
        assert plan.outcomes[f"{QKV}.lora_A.weight"].reason.startswith(f"{key} is beside it")
    for more in (
        lora(f"{QKV}.more", 8, 8),
        {f"{QKV}.more.diff": (8, 2)},
        {f"{QKV}.more.weight": (8, 2), f"{QKV}.more.diff_b": (8,)},
    ):
        assert only_modules(make_plan(lora(QKV, 24, 8) | more, {}, target_model)) == [QKV]
    lone = make_plan({f"{QKV}.alpha": (), odd: (2, 8)}, {}, target_model).outcomes
    assert lone[f"{QKV}.alpha"].category == plans.INCOMPLETE


def test_a_whole_bias_may_be_larger_as_the_file_says_and_a_change_of_one_may_not(target_model):
    (adapter,) = make_plan({f"{QKV}.set_bias": (25,)}, {}, target_model).adapters
    assert (adapter.parameter, adapter.padded_shape) == ("bias", (25,))
    for keys in (
        {f"{QKV}.set_bias": (23,)},
        {"img_in.set_bias": (9,)},
        {f"{QKV}.diff_b": (25,)},
    ):
        assert categories(make_plan(keys, {}, target_model)) == {plans.SHAPE_CONFLICT}


def test_a_shape_that_does_not_fit_behind_a_wrapper_leaves_it_a_guess_not_made(target_model):
    module = "acme.transformer_blocks.0.attn.to_v"
    for odd in (lora(module, 9, 8), {f"{module}.oft_blocks": (2, 4, 5)}):
        plan = make_plan(wrapped("acme.", *GOOD) | odd, {}, target_model)
        assert (plan.inferred_prefix, plan.adapters) == ("", ())
        assert categories(plan) == {plans.UNKNOWN_MODULE}
        assert {outcome.reason for outcome in plan.outcomes.values()} >= {
            f"no module of this model is called 'acme.{GOOD[0]}'",
            f"no module of this model is called {module!r}",
        }


def test_a_module_of_a_larger_model_is_told_by_the_name_it_would_have(target_model):
    outcomes = make_plan(lora("transformer_blocks.7.attn.to_q", 8, 8), {}, target_model).outcomes
    assert {outcome[:2] for outcome in outcomes.values()} == {
        (
            plans.UNKNOWN_MODULE,
            "it would be double_blocks.7.img_attn.qkv, which this model does not have",
        )
    }


def test_a_text_encoder_that_is_not_connected_is_told_as_such():
    outcomes = make_plan(lora("lora_te1_x", 4, 4), {}, TargetModel([denoiser(FLUX)])).outcomes
    assert {outcome[:2] for outcome in outcomes.values()} == {
        (plans.NOT_WIRED, "it belongs to a text encoder, and no CLIP is connected")
    }


def test_what_is_said_of_a_weight_without_inner_sizes_that_are_known(target_model):
    outcome = make_plan({"img_in.diff": (8,)}, {}, target_model).outcomes["img_in.diff"]
    assert outcome[:2] == (
        plans.SHAPE_CONFLICT,
        "trained for [8], img_in is [8, 16]",
    )
