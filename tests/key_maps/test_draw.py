"""A model drawn from its table: the names, sizes and depths of the real one, and the same plan for
a LoRA of all its modules.
"""

from __future__ import annotations

import comfy_models
import pytest
from lora_locksmith.identify.lora_family import FamilyMatch, identify
from lora_locksmith.identify.reference_model import build_reference_model
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.key_maps.table import families, flatten, generalise
from lora_locksmith.planning.groups import group_keys
from lora_locksmith.planning.names import spell
from lora_locksmith.planning.plan import PLACED, make_plan
from lora_locksmith.planning.target_model import TargetModel, all_families, encoder_networks
from lora_locksmith.report.coverage import trained_layers, untrained_kinds

RANK = 4
PUBLISHED = [name for name, model in comfy_models.MODELS.items() if model.published]
# tests/support/comfy_models.py gives it another depth than the published file has.
OTHER_DEPTH = {"lumina2_newbie"}
# Its levels have numbers of blocks of their own, which a table cannot state: every level is drawn
# as deep as the deepest.
UNEVEN_LEVELS = {"stable_cascade_c"}


def keys_of(modules, dialect):
    down, up = (
        ("lora_down.weight", "lora_up.weight")
        if dialect.form == "flat"
        else ("lora_A.weight", "lora_B.weight")
    )
    keys = {}
    for module in modules:
        out, *inner = module.shape
        keys[f"{module.module}.{down}"] = (RANK, *inner)
        keys[f"{module.module}.{up}"] = (out, RANK, *(1 for _ in inner[1:]))
    return keys


def drawn_for(keys, family):
    """The target model drawn for a file whose family is known (ties are another test's)."""
    groups = group_keys(keys).groups
    guess = identify(groups, keys, {}, all_families())
    assert family in (guess.name, *guess.ties)
    return build_reference_model(guess._replace(name=family, ties=()), groups, keys, all_families())


def matrices(network):
    """Local name -> shape, for weights that a LoRA can be trained on."""
    return {
        module: network.weights[weight]
        for module, weight in network.modules.items()
        if len(network.weights[weight]) > 1 and not weight.endswith(".bias")
    }


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in OTHER_DEPTH])
def test_the_drawn_model_is_the_real_one(target_model_of, name):
    """Every weight of the real model, every size that is known, and no kind of layer or block it
    has not, but for those marked optional.
    """
    target_model, family = target_model_of(name), comfy_models.MODELS[name].family
    real = target_model.networks[DENOISER]
    reference = drawn_for(
        keys_of(spell(target_model, real, dialects()["comfyui"]), dialects()["comfyui"]), family
    ).networks[DENOISER]
    flat = {flatten(module): weight for module, weight in reference.modules.items()}
    for module, shape in matrices(real).items():
        assert flatten(module) in flat, f"{module} is not drawn"
        sizes = reference.weights[flat[flatten(module)]]
        assert not any(sizes) or unlike(sizes, shape) is None, (module, sizes, shape)
    kinds = {kind_of(module) for module in real.modules}
    certain = [
        module for module, weight in reference.modules.items() if weight not in reference.optional
    ]
    assert not [module for module in certain if kind_of(module) not in kinds]
    assert name in UNEVEN_LEVELS or {block_of(module) for module in certain} <= {
        block_of(module) for module in real.modules
    }


def unlike(sizes, shape):
    """The first pair of sizes that differ; a size of 0 is not known, a convolution's kernel may be
    left out.
    """
    return next(
        (pair for pair in zip(sizes, shape, strict=False) if pair[0] not in (0, pair[1])), None
    )


def kind_of(module):
    return generalise(flatten(module))[0]


def block_of(module):
    """The outermost block a module is in: (`double_blocks`, "7")."""
    words = module.split(".")
    place = next((place for place, word in enumerate(words) if word.isdigit()), None)
    return (".".join(words[:place]), words[place]) if place is not None else None


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in OTHER_DEPTH])
def test_a_lora_is_planned_as_on_the_real_model(target_model_of, name):
    target_model, family = target_model_of(name), comfy_models.MODELS[name].family
    able = [
        dialect
        for dialect in dialects().values()
        if not dialect.families or family in dialect.families
    ]
    start = list(comfy_models.MODELS).index(name)
    dialect = able[start % len(able)]
    keys = keys_of(spell(target_model, target_model.networks[DENOISER], dialect), dialect)
    place = drawn_for(keys, family)
    real, reference = make_plan(keys, {}, target_model), make_plan(keys, {}, place)
    assert categories(real) == categories(reference), dialect.name
    for one, other in zip(real.adapters, reference.adapters, strict=True):
        assert one.module == other.module
        assert pieces(one) == pieces(other), (dialect.name, one.module)
        assert one.target.swap == other.target.swap and one.kind == other.kind
    assert name in UNEVEN_LEVELS or not {
        kind_of(kind.replace("{}", "0")) for kind in untrained_kinds(trained_layers(reference))
    } & trained_kinds(real), dialect.name


def trained_kinds(plan):
    """The kinds of layers that a file trains."""
    return {kind_of(adapter.target.module) for adapter in plan.adapters}


def categories(plan):
    return {key: outcome.category for key, outcome in plan.outcomes.items()}


def pieces(adapter):
    # A table does not tell a lone parameter from a module with a .weight.
    return [
        (flatten(weight.removesuffix(".weight")), rows, source)
        for weight, rows, source in adapter.target.slices
    ]


@pytest.mark.parametrize(
    ("name", "block", "depths"),
    [
        ("flux2_klein_4b", "double_blocks.1.", {"double_blocks": 5, "single_blocks": 20}),
        ("wan21_t2v_14b", "blocks.7.", {"blocks": 40}),
        ("wan21_t2v_1_3b", "blocks.7.", {"blocks": 30}),
        ("sd35_large", "joint_blocks.2.", {"joint_blocks": 38}),
        ("qwen_image", "transformer_blocks.5.", {"transformer_blocks": 60}),
        ("krea2", "blocks.3.", {"blocks": 28}),
        ("cogvideox_15_5b", "blocks.3.", {"blocks": 42}),
    ],
)
def test_a_lora_of_one_block_gets_the_published_depth(target_model_of, name, block, depths):
    target_model, family = target_model_of(name), comfy_models.MODELS[name].family
    dialect = dialects()["comfyui"]
    modules = [
        module
        for module in spell(target_model, target_model.networks[DENOISER], dialect)
        if f".{block}" in f".{module.module}"
    ]
    reference = drawn_for(keys_of(modules, dialect), family).networks[DENOISER]
    for blocks, depth in depths.items():
        numbers = {
            int(module[len(blocks) + 1 :].partition(".")[0])
            for module in reference.modules
            if module.startswith(f"{blocks}.")
        }
        assert numbers == set(range(depth)), blocks


@pytest.mark.parametrize(
    ("name", "encoders"),
    [("sd15", "sd15"), ("sdxl", "sdxl"), ("flux1_fill", "flux1"), ("hunyuandit", "hunyuandit")],
)
@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "comfyui"])
def test_text_encoders_are_drawn(target_model_of, name, encoders, dialect):
    """CLIP-L, CLIP-G, BERT and T5 take what the real ones take, on the same weights."""
    denoiser, spoken = target_model_of(name), dialects()[dialect]
    target_model = TargetModel(
        [*denoiser.networks.values(), *encoder_networks(comfy_models.encoder_shapes(encoders))]
    )
    parts = {
        slot: list(spell(target_model, target_model.networks[slot], spoken))
        for slot in target_model.networks
    }
    if not any(modules for slot, modules in parts.items() if slot != DENOISER):
        pytest.skip(f"{dialect} has no way to write these")
    keys = keys_of(
        parts[DENOISER][::5]
        + [module for slot, modules in parts.items() if slot != DENOISER for module in modules],
        spoken,
    )
    place = drawn_for(keys, comfy_models.MODELS[name].family)
    assert set(place.slots) == {
        slot for slot, modules in parts.items() if modules and slot != DENOISER
    }
    real, reference = make_plan(keys, {}, target_model), make_plan(keys, {}, place)
    assert categories(real) == categories(reference)
    for one, other in zip(real.adapters, reference.adapters, strict=True):
        assert pieces(one) == pieces(other), one.module


def test_nothing_is_drawn_where_the_family_cannot_be_told():
    assert not build_reference_model(FamilyMatch("", ""), (), {}, all_families()).networks


def test_a_size_nobody_states_is_no_obstacle():
    """A LoRA of a size that is not published is placed on the model drawn for it."""
    keys = {
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (4, 96),
        "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": (96, 4),
    }
    groups = group_keys(keys).groups
    guess = identify(groups, keys, {}, all_families())
    place = build_reference_model(
        guess._replace(name="flux1", ties=()), groups, keys, all_families()
    )
    assert place.family is families()["flux1"]
    assert {outcome.category for outcome in make_plan(keys, {}, place).outcomes.values()} == {
        PLACED
    }
