"""Every published model in every dialect: the family, its variant and the trainer are told right
from names and shapes, or not told.
"""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import chain

import comfy_models
import pytest
from architectures import ARCHITECTURES, OTHERS
from lora_locksmith.identify import reference_model
from lora_locksmith.identify.lora_family import identify
from lora_locksmith.identify.reference_model import ReferenceSpec
from lora_locksmith.identify.trainer import model_title, name_trainer
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.key_maps.table import families, flatten, generalise, numbered
from lora_locksmith.planning.groups import group_keys
from lora_locksmith.planning.names import spell
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import TargetModel, all_families, encoder_networks

RANK = 4
ATTENTION = ("attn", "attention", "to_q", "to_k", "to_v", "qkv")
# Models whose modules, names and shapes are all found in another as well: the tie is the right
# answer.
WITHIN_ANOTHER = {
    "cosmos_predict2_2b": {"anima"},  # Anima adds llm_adapter
    "koala_700m": {"sdxl"},  # under diffusers' names a small SDXL is a part of SDXL
    "koala_1b": {"sdxl"},
}
VARIANTS = {
    "sd3_medium": "medium",
    "sd35_medium": "medium",
    "sd35_large": "large",
    "flux1_fill": "Fill",
    "flux2_dev": "dev",
    "flux2_klein_4b": "klein 4B",
    "flux2_klein_9b": "klein 9B",
    "stable_cascade_b": "stage B",
    "stable_cascade_c": "stage C",
    "hunyuan3d_2_mini": "mini",
    "kandinsky5_lite": "video Lite",
    "lumina2": "2.0",
    "lumina2_newbie": "NewBie",
    "wan21_t2v_1_3b": "2.1 1.3B",
    "wan22_ti2v_5b": "2.2 5B",
    "ltxv_2b": "2B",
    "ltxv_13b": "13B",
    "cosmos_predict2_2b": "2B",
    "ace_step_15": "2B",
    "cogvideox_2b": "2B",
    "cogvideox_15_5b": "5B, 1.5",
    "seedvr2_3b": "3B",
    "seedvr2_7b": "7B",
    "seedvr2_7b_shared": "7B",
    "kandinsky5_image": "image Lite",
    "cosmos1_7b": "7B",
    "cosmos1_14b": "14B",
}
WHOLE_TITLES = {"ltx23": "LTX-2.3, 2.5", "ltx25": "LTX-2.3, 2.5"}
SMALLEST = 40  # modules in a file for which `cannot tell` is no answer

every_model = pytest.mark.parametrize("name", comfy_models.MODELS)


@pytest.fixture(scope="module")
def known():
    return all_families()


def lora(spelled, dialect):
    """The keys of a LoRA on one module, in the dialect's own spelling of its factors."""
    down = next(role for role in dialect.roles if "down" in role or "lora_A" in role)
    up = down.replace("down", "up").replace("lora_A", "lora_B")
    out, *inner = spelled.shape
    joint = "" if down.startswith("_") else "."
    keys = {
        f"{spelled.module}{joint}{down}": (RANK, *inner),
        f"{spelled.module}{joint}{up}": (out, RANK, *(1 for _ in inner[1:])),
    }
    keys = {key.replace("<adapter>", "default"): shape for key, shape in keys.items()}
    return keys | ({f"{spelled.module}.alpha": ()} if "alpha" in dialect.roles else {})


def dora(spelled, dialect):
    out, *inner = spelled.shape
    if dialect.form == "flat":
        return lora(spelled, dialect) | {
            f"{spelled.module}.dora_scale": (1, *inner[:1], *(1 for _ in inner[1:]))
        }
    return lora(spelled, dialect) | {f"{spelled.module}.lora_magnitude_vector": (out,)}


def lokr(spelled, dialect):
    out, *inner = spelled.shape
    (a, b), (c, d) = split(out), split(inner[0])
    return {
        f"{spelled.module}.lokr_w1": (a, c),
        f"{spelled.module}.lokr_w2": (b, d, *inner[1:]),
        f"{spelled.module}.alpha": (),
    }


def split(size):
    factor = max(number for number in range(1, 9) if size % number == 0)
    return factor, size // factor


def unshaped(spelled, dialect):
    return dict.fromkeys(lora(spelled, dialect))


def spellings(target_model, name):
    """(dialect, all modules as it spells them): two dialects, a different choice for each model."""
    family = comfy_models.MODELS[name].family
    able = [
        dialect
        for dialect in dialects().values()
        if not dialect.families or family in dialect.families
    ]
    able = [
        dialect for dialect in able if dialect.name != "xlabs"
    ]  # its names are those of attention processors: see below
    start = list(comfy_models.MODELS).index(name)
    for step in range(2):
        dialect = able[(start + step * 7) % len(able)]
        yield dialect, list(spell(target_model, target_model.networks[DENOISER], dialect))


def parts_of(spelled, seed):
    """(what is trained, the modules): attention, blocks, handfuls."""
    chance = random.Random(seed)
    yield (
        "attention",
        [module for module in spelled if any(word in module.module for word in ATTENTION)],
    )
    blocks = defaultdict(list)
    for module in spelled:
        template, numbers = generalise(flatten(module.module))
        if numbers:
            blocks[template.partition("{}")[0], numbers[0]].append(module)
    for _ in range(2):
        yield "one block", blocks[chance.choice(sorted(blocks))]
    yield (
        "a few blocks",
        [
            module
            for block in chance.sample(sorted(blocks), min(4, len(blocks)))
            for module in blocks[block]
        ],
    )
    for _ in range(2):
        yield "a handful", chance.sample(spelled, min(len(spelled), chance.choice((2, 4, 8))))


def told(known, keys, metadata=None):
    return identify(group_keys(keys).groups, keys, metadata or {}, known)


def keys_of(modules, kind, dialect):
    return {key: shape for module in modules for key, shape in kind(module, dialect).items()}


@every_model
def test_a_file_with_all_modules_names_the_one_right_family(target_model_of, known, name):
    family, target_model = comfy_models.MODELS[name].family, target_model_of(name)
    for (dialect, spelled), kinds in zip(
        spellings(target_model, name), ((lora, lokr), (dora,)), strict=True
    ):
        for kind in kinds:
            guess = told(known, keys_of(spelled, kind, dialect))
            also = WITHIN_ANOTHER.get(name, set())
            assert guess.name == family or (
                also and {*guess.ties} <= {family, *also} and family in guess.ties
            ), (
                dialect.name,
                guess[:4],
            )
            title = families()[family].title
            if guess.name:
                assert guess.title in (
                    WHOLE_TITLES.get(name, title),
                    f"{title} {VARIANTS.get(name, '')}",
                    f"{title} 14B",
                ), dialect.name
            if guess.title == "Wan 14B":
                assert name.startswith("wan") and "5b" not in name and "1_3b" not in name


@every_model
def test_parts_of_a_model_are_never_told_for_another(target_model_of, known, name):
    family, target_model = comfy_models.MODELS[name].family, target_model_of(name)
    for dialect, spelled in spellings(target_model, name):
        for number, (part, modules) in enumerate(parts_of(spelled, name)):
            kind = (lora, unshaped, lokr, dora)[number % 4]
            guess = told(known, keys_of(modules, kind, dialect))
            names = [module.module for module in modules[:4]]
            assert guess.name == family if guess.name else not guess.ties or family in guess.ties, (
                part,
                dialect.name,
                guess[:4],
                names,
            )
            assert guess.title or len(modules) < SMALLEST, (part, dialect.name, names)


@every_model
def test_a_connected_model_is_called_by_its_right_variant(target_model_of, name):
    title = families()[comfy_models.MODELS[name].family].title
    if not comfy_models.MODELS[name].published:
        return
    assert model_title(target_model_of(name)) in (
        WHOLE_TITLES.get(name, title),
        f"{title} {VARIANTS.get(name, '')}",
        f"{title} 14B",
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_metadata_decide_between_families_that_fit_equally_well(target_model_of, known, name):
    """Attention of blocks that two models have: without shapes, or with the same ones."""
    family, target_model = comfy_models.MODELS[name].family, target_model_of(name)
    dialect = dialects()["kohya"]
    spelled = [
        module
        for module in spell(target_model, target_model.networks[DENOISER], dialect)
        if "attn" in module.module
    ]
    spelled = [module for module in spelled if "llm_adapter" not in module.module]
    keys = keys_of(spelled, unshaped, dialect)
    assert family in told(known, keys).ties
    for value in ARCHITECTURES[name]:
        for key in ("modelspec.architecture", "ss_base_model_version"):
            guess = told(known, keys, {key: value})
            assert guess.name == family and value in guess.evidence[1], (key, value, guess[:4])


def test_each_architecture_a_trainer_writes_is_one_family():
    values = OTHERS | {
        comfy_models.MODELS[name].family: values for name, values in ARCHITECTURES.items()
    }
    for family, value in ((family, value) for family, values in values.items() for value in values):
        plain = "".join(filter(str.isalnum, value.lower()))
        lengths = {
            name: max((len(mark) for mark in known.metadata if plain.startswith(mark)), default=0)
            for name, known in families().items()
        }
        assert (
            max(lengths, key=lengths.get) == family
            and [*lengths.values()].count(lengths[family]) == 1
        ), (value, lengths[family])


def test_metadata_never_overrule_names_and_shapes(target_model_of, known):
    target_model = target_model_of("sdxl")
    dialect = dialects()["kohya"]
    keys = keys_of(
        list(spell(target_model, target_model.networks[DENOISER], dialect)), lora, dialect
    )
    assert (
        told(
            known,
            keys,
            {"modelspec.architecture": "flux-1-dev/lora", "ss_base_model_version": "sd_v1"},
        ).name
        == "sdxl"
    )


@pytest.mark.parametrize("value", [7, None, "\ud800", "x" * 1_000_000, "", "[", b"flux1"], ids=repr)
def test_odd_metadata_decide_nothing(target_model_of, known, value):
    dialect, target_model = dialects()["kohya"], target_model_of("sd15")
    keys = keys_of(
        [
            module
            for module in spell(target_model, target_model.networks[DENOISER], dialect)
            if "attn" in module.module
        ],
        unshaped,
        dialect,
    )
    assert set(told(known, keys, {"modelspec.architecture": value}).ties) == {"sd15", "sd21"}


@pytest.mark.parametrize(
    ("name", "encoders"),
    [("sd15", "sd15"), ("sdxl", "sdxl"), ("flux1_fill", "flux1"), ("z_image", "z_image")],
)
def test_text_encoders_in_the_file_change_nothing(target_model_of, known, name, encoders):
    denoiser = target_model_of(name)
    both = TargetModel(
        [*denoiser.networks.values(), *encoder_networks(comfy_models.encoder_shapes(encoders))]
    )
    for dialect in (
        dialects()[key] for key in ("kohya", "diffusers", "onetrainer_legacy", "comfyui")
    ):
        parts = [[*spell(both, both.networks[slot], dialect)] for slot in both.networks]
        alone, mixed = (
            told(known, keys_of(modules, lora, dialect))
            for modules in (parts[0], list(chain(*parts)))
        )
        assert alone[:3] == mixed[:3] and alone.name == comfy_models.MODELS[name].family
        assert not alone.encoder_modules and bool(mixed.encoder_modules) == any(parts[1:])
        if any(parts[1:]):
            lone = told(known, keys_of(list(chain(*parts[1:])), lora, dialect))
            assert (lone.name, lone.title, lone.ties) == ("", "", ()), dialect.name


# Models of another architecture than any that is left when their table is taken away.
UNLIKE_OTHERS = (
    "krea2",
    "wan21_t2v_14b",
    "hidream",
    "kandinsky5_lite",
    "ernie",
    "mochi",
    "ace_step",
    "ace_step_15",
    "ideogram4",
    "minimax_h3",
    "stable_cascade_c",
    "auraflow",
    "hunyuandit",
    "sd35_large",
    "z_image",
    "flux2_klein_9b",
    "pixart_sigma",
    "lumina2",
)


@pytest.mark.parametrize("name", UNLIKE_OTHERS)
def test_a_model_that_no_table_knows_is_not_told_for_another(target_model_of, name):
    ignorant = TargetModel()
    ignorant.families = {
        key: family for key, family in families().items() if key != comfy_models.MODELS[name].family
    }
    target_model = target_model_of(name)
    for dialect in (dialects()["kohya"], dialects()["comfyui"]):
        spelled = list(spell(target_model, target_model.networks[DENOISER], dialect))
        for modules in (
            spelled,
            *(modules for part, modules in parts_of(spelled, name) if part == "one block"),
        ):
            guess = told(ignorant, keys_of(modules, lora, dialect))
            assert (guess.name, guess.ties) == ("", ()), (
                dialect.name,
                guess[:4],
                [module.module for module in modules[:3]],
            )


SIZED = [name for name, family in families().items() if family.kind == DENOISER and family.sizes]


def narrow_model(family, share):
    """A model of the family in a size that nobody has published."""
    symbols = {symbol for row in family.rows for size in row.shape or () for symbol, _ in size}
    sizes = dict.fromkeys(symbols - {""}, 80)  # UNets state few of theirs
    sizes |= {symbol: size // share for symbol, size in next(iter(family.sizes.values())).items()}
    blocks = {
        prefix: 2 for row in family.rows for prefix, _ in numbered(row.native[0], row.native[0])
    }
    spec = ReferenceSpec(
        family.name, DENOISER, "diffusion_model.", tuple(sizes.items()), tuple(blocks.items())
    )
    return TargetModel([reference_model._draw(family, spec)])


@pytest.mark.parametrize("name", SIZED)
def test_an_unpublished_size_of_a_family_is_called_that(known, name):
    family = families()[name]
    target_model = narrow_model(family, 4)
    for dialect in (dialects()["kohya"], dialects()["comfyui"]):
        spelled = [
            module
            for module in spell(target_model, target_model.networks[DENOISER], dialect)
            if len(module.shape) > 1 and 0 not in module.shape
        ]
        assert len(spelled) > 4
        for kind in (lora, lokr):
            guess = told(known, keys_of(spelled, kind, dialect))
            if guess.name:
                assert guess.name == name
                assert guess.title in (f"{family.title}, unpublished size", family.title)
            else:
                assert name in guess.ties and "unpublished size" in guess.title


def test_metadata_settle_an_unpublished_size_that_several_families_could_have(known):
    keys = {
        f"transformer.transformer_blocks.{block}.attn.{layer}.{role}.weight": shape
        for block in range(3)
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
        for role, shape in (("lora_A", (4, 640)), ("lora_B", (640, 4)))
    }
    guess = told(known, keys)
    assert not guess.name and {"flux1", "qwen_image"} <= set(guess.ties)
    assert "unpublished size" in guess.title and not guess.is_likely
    guess = told(known, keys, {"ss_network_module": "networks.lora_qwen_image"})
    assert (guess.name, guess.title) == ("qwen_image", "Qwen-Image, unpublished size")


def test_a_common_model_is_named_before_the_others_that_fit(known):
    keys = {
        f"lora_unet_single_blocks_{block}_linear{number}.{role}.weight": shape
        for block in range(6)
        for number, out, inner in ((1, 21504, 3072), (2, 3072, 15360))
        for role, shape in (("lora_down", (16, inner)), ("lora_up", (out, 16)))
    }
    guess = told(known, keys)
    assert guess.is_likely and guess.ties[0] == "flux1" and not guess.name
    assert guess.title.startswith("FLUX.1 (its keys also fit Chroma")


def test_names_nobody_uses_are_not_told(known):
    chance = random.Random(4)
    words = ("layer", "block", "attn", "q", "up", "proj", "net", "7", "0", "x")
    for prefix in ("", "lora_unet_", "diffusion_model.", "transformer.", "base_model.model."):
        names = [
            prefix + ".".join(chance.choice(words) for _ in range(chance.randint(1, 6)))
            for _ in range(20)
        ]
        keys = {
            f"{name}.{role}": (4, 4)
            for name in names
            for role in ("lora_A.weight", "lora_B.weight")
        }
        guess = told(known, keys)
        assert (guess.name, guess.ties) == ("", ())
    for names in (
        [],
        [""],
        ["."],
        ["\ud800"],
        ["lora_unet_"],
        ["a." * 5000],
        ["1" * 300],
        ["_" * 300],
    ):
        guess = told(known, {f"{name}.lora_A.weight": (4, 4) for name in names})
        assert (guess.name, guess.ties) == ("", ())


def test_the_processors_of_x_flux(known):
    keys = {}
    for block in range(19):
        for layer, out in (
            ("qkv_lora1", 9216),
            ("qkv_lora2", 9216),
            ("proj_lora1", 3072),
            ("proj_lora2", 3072),
        ):
            keys[f"double_blocks.{block}.processor.{layer}.down.weight"] = (16, 3072)
            keys[f"double_blocks.{block}.processor.{layer}.up.weight"] = (out, 16)
    guess = told(known, keys)
    assert (guess.name, guess.ties) == ("", ("flux1", "chroma"))
    assert told(known, keys, {"modelspec.architecture": "flux-1-dev/lora"}).name == "flux1"


ONE_OF_EACH = tuple(
    {model.family: name for name, model in reversed(comfy_models.MODELS.items())}.values()
)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_trainer_that_writes_so_is_among_those_named(target_model_of, name):
    family, target_model = comfy_models.MODELS[name].family, target_model_of(name)
    for dialect, spelled in spellings(target_model, name):
        plan = make_plan(
            keys_of(spelled[:: max(1, len(spelled) // 80)], lora, dialect), {}, target_model
        )
        assert dialect.title in name_trainer(plan, (family,)).title, dialect.name


TRAINERS = {
    "kohya sd-scripts": [
        {"ss_network_module": "networks.lora"},
        {"ss_network_module": "networks.lora_flux", "ss_base_model_version": "flux1"},
    ],
    "musubi-tuner": [
        {
            "ss_network_module": "networks.lora_wan",
            "ss_base_model_version": "wan",
            "modelspec.architecture": "wan2.1/lora",
        },
        {"ss_network_module": "networks.lora", "ss_base_model_version": "hunyuan_video"},
        {"ss_network_module": "networks.lora_kandinsky", "ss_base_model_version": "kandinsky5"},
        {"ss_network_module": "networks.lora_hv_1_5", "ss_base_model_version": "hunyuan_video_1_5"},
        {"ss_network_module": "networks.lora_qwen_image", "ss_base_model_version": "qwen_image"},
    ],
    "AI-Toolkit": [
        {
            "software": '{"name": "ai-toolkit", "version": "0.7"}',
            "ss_base_model_version": "flux2_klein_9b",
            "format": "pt",
        }
    ],
    "OneTrainer": [
        {"ot_branch": "master", "ot_revision": "0", "modelspec.architecture": "Flux.1-dev/lora"}
    ],
    "LyCORIS": [{"ss_network_module": "lycoris.kohya"}, {"lycoris_config": "{}"}],
}


@pytest.mark.parametrize("title", TRAINERS)
def test_metadata_name_the_trainer_alone(title):
    keys = {f"lora_unet_x.{role}": (4, 4) for role in ("lora_down.weight", "lora_up.weight")}
    for metadata in TRAINERS[title]:
        assert name_trainer(make_plan(keys, metadata, TargetModel())).title == title, metadata
