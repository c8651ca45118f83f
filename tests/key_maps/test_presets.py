"""Which preset a file was trained with: PEFT and the trainers' own rules choose the modules of real
models, every dialect spells them.
"""

from __future__ import annotations

import gc
import random
import re
import weakref
from functools import cache

import comfy_models
import pytest
import torch
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.messages import catalog, languages, message, translate
from lora_locksmith.planning.names import prefix_for, spell
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import Network, TargetModel, denoiser_network
from lora_locksmith.report import presets as engine
from lora_locksmith.report.labels import label_id
from lora_locksmith.report.presets import (
    Preset,
    PresetError,
    PresetReport,
    match_presets,
    parse_presets,
    presets,
)

RANK = 4
DIALECTS = ("diffusers", "simpletuner", "ai_toolkit", "peft")

# ComfyUI's model -> the class diffusers has for it, and how many blocks it has there; widths do not
# matter to names.
TWINS = {
    "flux1_dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "chroma": ("ChromaTransformer2DModel", {}),
    "longcat_image": (
        "LongCatImageTransformer2DModel",
        {"num_layers": 10, "num_single_layers": 20},
    ),
    "sd35_medium": (
        "SD3Transformer2DModel",
        {"num_layers": 24, "dual_attention_layers": tuple(range(13))},
    ),
    "hidream": (
        "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 16,
            "num_single_layers": 32,
            "num_routed_experts": 4,
            "num_activated_experts": 2,
            "caption_channels": [4096, 4096],
            "llama_layers": [*range(48)],
        },
    ),
    "qwen_image": ("QwenImageTransformer2DModel", {}),
    "pixart_sigma": ("PixArtTransformer2DModel", {"caption_channels": 4096}),
    "wan21_t2v_1_3b": ("WanTransformer3DModel", {"num_layers": 30}),
    "z_image": ("ZImageTransformer2DModel", {}),
    "lumina2": ("Lumina2Transformer2DModel", {}),
    "auraflow": ("AuraFlowTransformer2DModel", {}),
    "flux2_klein_9b": ("Flux2Transformer2DModel", {"num_layers": 8, "num_single_layers": 24}),
    "kandinsky5_lite": ("Kandinsky5Transformer3DModel", {"num_visual_blocks": 32}),
    "ltxv_2b": ("LTXVideoTransformer3DModel", {}),
    "sd15": ("UNet2DConditionModel", {"cross_attention_dim": 768}),
    "sdxl": (
        "UNet2DConditionModel",
        {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "block_out_channels": (320, 640, 1280),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_time_embed_dim": 256,
            "addition_embed_type": "text_time",
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
}

# SimpleTuner v0.9.8.1, train.py: the list whose `ff` and `to_add_out.0` name nothing.
OLD_ALL_FFS = [
    "to_k",
    "to_q",
    "to_v",
    "add_k_proj",
    "add_q_proj",
    "add_v_proj",
    "to_out.0",
    "to_add_out.0",
    "ff.0",
    "ff.2",
    "ff_context.0",
    "ff_context.2",
    "proj_mlp",
    "proj_out",
]
OLD_ALL = OLD_ALL_FFS[:8]

pytestmark = pytest.mark.usefixtures("comfy")


@cache
def target_model_of(name: str) -> TargetModel:
    try:
        return TargetModel([denoiser_network(comfy_models.shapes(name))])
    except comfy_models.NotInThisComfyUI as fault:
        pytest.skip(str(fault))


@cache
def twin(name: str) -> torch.nn.Module:
    """Diffusers' model on the meta device."""
    import diffusers

    kind, config = TWINS[name]
    if not hasattr(diffusers, kind):
        pytest.skip(f"this diffusers has no {kind}")
    with torch.device("meta"):
        return getattr(diffusers, kind)(**config)


@cache
def layers(name: str) -> dict[str, torch.nn.Module]:
    """All layers a trainer can put a LoRA on."""
    sorts = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    return {
        module: layer for module, layer in twin(name).named_modules() if isinstance(layer, sorts)
    }


def listed(preset: Preset) -> list[str]:
    return [entry for rule in preset.chosen for entry in rule.entries]


def by_peft(name: str, targets: list[str]) -> set[str]:
    """The modules PEFT chooses in diffusers' model."""
    return set(_by_peft(name, tuple(targets)))


@cache
def _by_peft(name: str, targets: tuple[str, ...]) -> frozenset[str]:
    return frozenset(peft_targets(layers(name), target_modules=list(targets)))


def peft_targets(names, **settings) -> set[str]:
    """Those of the names that PEFT puts an adapter on."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(**settings)
    return {name for name in names if check_target_module_exists(config, name)}


def by_substring(name: str, words: list[str]) -> set[str]:
    return {module for module in layers(name) if any(word in module for word in words)}


def under_classes(name: str, classes: tuple[str, ...]) -> set[str]:
    """The layers inside modules of certain classes, as sd-scripts and others walk a model."""
    inside = [
        module for module, layer in twin(name).named_modules() if type(layer).__name__ in classes
    ]
    return {
        module
        for module in layers(name)
        if any(module.startswith(f"{parent}.") for parent in inside)
    }


@cache
def names_in(name: str, dialect: str) -> dict[str, tuple[int, ...]]:
    """Every module of a model as a dialect spells it, and its shape."""
    target_model = target_model_of(name)
    return {
        module.module: module.shape
        for module in spell(target_model, target_model.networks[DENOISER], dialects()[dialect])
    }


def spelled(name: str, chosen: set[str], dialect: str) -> dict[str, tuple[int, ...]]:
    """The keys of a LoRA on these diffusers modules; every one of them must be known to the
    family's table.
    """
    target_model, record = target_model_of(name), dialects()[dialect]
    prefix = prefix_for(target_model, target_model.networks[DENOISER], record)
    wanted = {
        prefix + (module.replace(".", "_") if record.form == "flat" else module)
        for module in chosen
    }
    known = names_in(name, dialect)
    assert wanted <= known.keys()
    return {
        key: shape for module in wanted for key, shape in factors(module, known[module]).items()
    }


def factors(module: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    out, *inner = shape
    return {
        f"{module}.lora_A.weight": (RANK, *inner),
        f"{module}.lora_B.weight": (out, RANK, *(1 for _ in inner[1:])),
    }


def report_of(
    name: str, chosen: set[str], dialect: str = "diffusers", trainer: str = ""
) -> PresetReport:
    plan = make_plan(spelled(name, chosen, dialect), {}, target_model_of(name))
    assert len(plan.adapters) == len(chosen)
    return match_presets(plan, trainer)


def native_report(name: str, modules: dict[str, tuple[int, ...]]) -> PresetReport:
    """The report of a kohya file on native modules."""
    keys = {}
    for module, shape in modules.items():
        flat = "lora_unet_" + module.replace(".", "_")
        keys |= {
            f"{flat}.lora_down.weight": (RANK, *shape[1:]),
            f"{flat}.lora_up.weight": (shape[0], RANK),
            f"{flat}.alpha": (),
        }
    plan = make_plan(keys, {}, target_model_of(name))
    assert len(plan.adapters) == len(modules)
    return match_presets(plan)


def titles(report: PresetReport) -> list[str]:
    return [str(finding.preset) for finding in report.exact]


def of_family(trainer: str, family: str) -> list[Preset]:
    return [
        preset for preset in presets() if preset.trainer == trainer and family in preset.families
    ]


def cases(trainer: str, how: str) -> list:
    """(model, preset) for every preset of a trainer that picks modules in one way, on every model
    that has a twin.
    """
    found = []
    for name in TWINS:
        for preset in of_family(trainer, comfy_models.MODELS[name].family):
            if {rule.how for rule in preset.chosen} == {how} and preset.space == "diffusers":
                found.append(pytest.param(name, preset, id=f"{name} {preset}"))
    assert found
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("preset", of_family("SimpleTuner", "flux1"), ids=str)
def test_flux_presets_of_simpletuner_in_every_dialect(preset, dialect):
    chosen = by_peft("flux1_dev", listed(preset))
    report = report_of("flux1_dev", chosen, dialect, trainer="SimpleTuner")
    assert str(preset) in titles(report)
    same = {other for other in titles(report) if other.startswith("SimpleTuner's")}
    equals = {
        str(other)
        for other in of_family("SimpleTuner", "flux1")
        if by_peft("flux1_dev", listed(other)) == chosen
    }
    assert same == equals
    assert titles(report)[0].startswith("SimpleTuner's")


@pytest.mark.parametrize(
    ("name", "preset"), [*cases("SimpleTuner", "names"), *cases("diffusers", "names")]
)
def test_lists_as_peft_reads_them(name, preset):
    report = report_of(name, by_peft(name, listed(preset)))
    assert str(preset) in titles(report)


@pytest.mark.parametrize(
    ("name", "preset"), [*cases("OneTrainer", "contains"), *cases("AI-Toolkit", "contains")]
)
def test_substrings_as_onetrainer_and_ai_toolkit_read_them(name, preset):
    chosen = by_substring(name, listed(preset))
    for rule in preset.left_out:
        chosen -= by_substring(name, list(rule.entries))
    assert str(preset) in titles(report_of(name, chosen))


@pytest.mark.parametrize(("name", "preset"), cases("OneTrainer", "regex"))
def test_patterns_as_onetrainer_reads_them(name, preset):
    chosen = {
        module
        for module in layers(name)
        if any(re.match(pattern, module) for pattern in listed(preset))
    }
    assert str(preset) in titles(report_of(name, chosen))


@pytest.mark.parametrize(("name", "preset"), cases("OneTrainer", "globs"))
def test_onetrainer_full_is_every_layer(name, preset):
    assert preset.name == "full"
    assert str(preset) in titles(report_of(name, set(layers(name))))


def test_layers_injected_by_peft():
    from peft import LoraConfig, inject_adapter_in_model

    model = twin.__wrapped__("flux1_dev")
    inject_adapter_in_model(
        LoraConfig(r=RANK, target_modules=OLD_ALL_FFS), model, low_cpu_mem_usage=True
    )
    chosen = {module for module, layer in model.named_modules() if hasattr(layer, "lora_A")}
    assert chosen == by_peft("flux1_dev", OLD_ALL_FFS)
    assert titles(report_of("flux1_dev", chosen)) == [
        "SimpleTuner's 'all+ffs' (v0.9.8.1 and v0.9.8.2)"
    ]


def test_what_the_old_all_ffs_missed():
    report = report_of("flux1_dev", by_peft("flux1_dev", OLD_ALL_FFS), "simpletuner")
    assert set(report.dead_names) == {
        "to_add_out.0",
        "ff.0",
        "ff.2",
        "ff_context.0",
        "ff_context.2",
    }
    assert report.missed == ("feed-forward layer of the double blocks", "`to_add_out`")
    assert report.surprises == ("`proj_out` also hit the final layer",)
    assert (
        report.sentence
        == "looks like SimpleTuner's 'all+ffs' (v0.9.8.1 and v0.9.8.2): `to_add_out.0`, `ff.0`,"
        " `ff.2`, `ff_context.0` and `ff_context.2` name no module, so no feed-forward layer of"
        " the double blocks and no `to_add_out` was trained; `proj_out` also hit the final layer"
    )


def test_what_the_old_all_missed():
    report = report_of("flux1_dev", by_peft("flux1_dev", OLD_ALL))
    assert titles(report) == ["SimpleTuner's 'all' (v0.9.8.1 and v0.9.8.2)"]
    assert (report.dead_names, report.missed, report.surprises) == (
        ("to_add_out.0",),
        ("`to_add_out`",),
        (),
    )


def test_todays_presets_missed_nothing():
    for targets in (
        "to_k to_q to_v add_k_proj add_q_proj add_v_proj to_out.0 to_add_out",
        "to_k to_q to_v to_out.0",
    ):
        report = report_of("flux1_dev", by_peft("flux1_dev", targets.split()))
        assert report.exact
        assert not report.dead_names + report.missed + report.surprises


def test_hidream_has_no_to_out_0():
    report = report_of(
        "hidream", by_peft("hidream", ["to_k", "to_q", "to_v", "to_out.0"]), trainer="SimpleTuner"
    )
    assert titles(report)[0] == "SimpleTuner's 'default' (since v2.0)"
    assert (report.dead_names, report.missed) == (("to_out.0",), ("`to_out`",))


def test_a_missing_comma_in_onetrainer():
    report = report_of("pixart_sigma", by_substring("pixart_sigma", ["attn1attn2", "ff.net"]))
    assert titles(report) == ["OneTrainer's 'attn-mlp' (2024-08-03 to 2024-08-09)"]
    assert report.missed == ("attention layer",)


def test_ltx2_leaves_the_connectors_out():
    from diffusers import LTX2VideoTransformer3DModel

    with torch.device("meta"):
        model = LTX2VideoTransformer3DModel()
    names = [name for name, _ in model.named_modules()]
    settings = {
        "target_modules": ["to_k", "to_q", "to_v", "to_out.0"],
        "exclude_modules": r".*connector.*|.*embedding.*",
    }
    chosen = peft_targets(names, **settings)
    assert "SimpleTuner's 'default' (v4.0.0 to v4.3.5)" in titles(report_of("ltx2", chosen))
    without = {name for name in chosen if "video_to_audio_attn" not in name}
    assert titles(report_of("ltx2", without)) == [
        "SimpleTuner's 'default, data without audio' (since v4.4.0)"
    ]


@pytest.mark.parametrize(
    ("name", "classes", "trainers"),
    [
        (
            "flux1_dev",
            ("DoubleStreamBlock", "SingleStreamBlock"),
            {"kohya", "AI-Toolkit", "OneTrainer", "diffusion-pipe"},
        ),
        (
            "chroma",
            ("DoubleStreamBlock", "SingleStreamBlock"),
            {"kohya", "AI-Toolkit", "OneTrainer", "diffusion-pipe"},
        ),
        (
            "flux2_klein_9b",
            ("DoubleStreamBlock", "SingleStreamBlock"),
            {"AI-Toolkit", "OneTrainer", "diffusion-pipe", "musubi-tuner"},
        ),
        (
            "wan21_t2v_1_3b",
            ("WanAttentionBlock",),
            {"AI-Toolkit", "diffusion-pipe", "musubi-tuner"},
        ),
        ("lumina2", ("JointTransformerBlock", "FinalLayer"), {"kohya"}),
        ("z_image", ("JointTransformerBlock",), {"diffusion-pipe"}),
        (
            "qwen_image",
            ("QwenImageTransformerBlock",),
            {"AI-Toolkit", "OneTrainer", "diffusion-pipe", "musubi-tuner"},
        ),
    ],
)
def test_all_linear_layers_inside_classes(name, classes, trainers):
    report = native_report(name, inside_natively(name, classes))
    assert {finding.preset.trainer for finding in report.exact} == trainers


def inside_natively(name: str, classes: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """ComfyUI's own layers inside modules of these classes, whose names are those of the models'
    authors, and their shapes.
    """
    modules = dict(comfy_models.network(name).diffusion_model.named_modules())
    parents = [module for module, layer in modules.items() if type(layer).__name__ in classes]
    assert parents
    return {
        module: tuple(layer.weight.shape)
        for module, layer in modules.items()
        if isinstance(layer, torch.nn.Linear)
        and any(module.startswith(f"{parent}.") for parent in parents)
    }


def test_kohya_trains_one_sort_of_blocks():
    report = native_report("flux1_dev", inside_natively("flux1_dev", ("DoubleStreamBlock",)))
    assert titles(report) == ["kohya's 'train_blocks=double'"]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_unets_of_sd_scripts(name):
    small = {
        module
        for module, layer in layers(name).items()
        if isinstance(layer, torch.nn.Linear) or layer.kernel_size == (1, 1)
    }
    report = report_of(
        name, under_classes(name, ("Transformer2DModel",)) & small, trainer="kohya sd-scripts"
    )
    assert titles(report)[0] == "kohya's 'default'"
    convolved = under_classes(
        name, ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    )
    assert (
        titles(report_of(name, convolved, trainer="kohya sd-scripts"))[0]
        == "kohya's 'default with conv_dim'"
    )
    assert "AI-Toolkit's 'default'" in titles(report_of(name, small))
    assert "AI-Toolkit's 'default with conv'" in titles(report_of(name, set(layers(name))))


def test_some_blocks_only():
    chosen = by_peft(
        "flux1_dev",
        [
            "to_k",
            "to_q",
            "to_v",
            "add_k_proj",
            "add_q_proj",
            "add_v_proj",
            "to_out.0",
            "to_add_out",
        ],
    )
    some = {
        module
        for module in chosen
        if module.startswith(("transformer_blocks.7.", "transformer_blocks.8."))
    }
    some |= {module for module in chosen if module.startswith("single_transformer_blocks.20.")}
    report = report_of("flux1_dev", some, trainer="SimpleTuner")
    assert not report.exact
    assert str(report.partial[0].preset) == "SimpleTuner's 'all' (since v0.9.8.3)"
    assert report.blocks == "double_blocks 7-8 and single_blocks 20"
    assert report.sentence.endswith("- on double_blocks 7-8 and single_blocks 20 only")


def test_old_slips_on_some_blocks():
    some = {module for module in by_peft("flux1_dev", OLD_ALL) if ".4." in module}
    report = report_of("flux1_dev", some)
    assert "SimpleTuner's 'all' (v0.9.8.1 and v0.9.8.2)" in [
        str(finding.preset) for finding in report.partial
    ]
    assert report.dead_names == ("to_add_out.0",)
    assert report.missed == ("`to_add_out`",)


def test_the_nearest_preset():
    chosen = by_peft("flux1_dev", ["to_k", "to_q", "to_v", "to_out.0"]) - {
        "transformer_blocks.3.attn.to_out.0"
    } | {"x_embedder"}
    report = report_of("flux1_dev", chosen)
    assert not report.exact and not report.partial
    assert report.nearest.preset.name == "mmdit"
    assert report.nearest.share == 189 / 191
    assert report.nearest.lacking == ("transformer_blocks.{}.attn.to_out.0",)
    assert report.nearest.extra == ("x_embedder",)
    assert "nearest is SimpleTuner's 'mmdit' (since v0.9.8.1), but without" in report.sentence


@pytest.mark.parametrize("seed", range(5))
def test_random_modules_are_no_preset(seed):
    names = sorted(layers("flux1_dev"))
    chosen = set(random.Random(seed).sample(names, 5 + 60 * seed))
    report = report_of("flux1_dev", chosen)
    assert not report.exact and not report.partial and report.nearest is None
    assert report.sentence == "no documented preset trains just these layers"
    assert not report.dead_names + report.missed + report.surprises


def test_one_norm_more_is_another_set():
    target_model = target_model_of("flux1_dev")
    keys = spelled(
        "flux1_dev", by_peft("flux1_dev", ["to_k", "to_q", "to_v", "to_out.0"]), "diffusers"
    )
    plan = make_plan(
        keys | {"diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": (128,)},
        {},
        target_model,
    )
    assert len(plan.adapters) == 191
    report = match_presets(plan)
    assert not report.exact
    assert report.nearest.extra == ("something that is not a weight matrix of the model",)


def test_a_slip_is_told_only_if_every_preset_had_it():
    blocks = parse_presets(
        "@trainer One\n[flux1]\npreset a\n names to_k gone\n dead gone=to_q : query\n@trainer"
        " Other\n[flux1]\npreset b\n names to_k\n"
    )
    network = target_model_of("flux1_dev").networks[DENOISER]
    both, alone = engine.Layout(network, blocks), engine.Layout(network, blocks[:1])
    trained = both.masks[blocks[0]]
    told = [
        PresetReport(tuple(layout.finding(preset, trained) for preset in layout.by_mask[trained]))
        for layout in (both, alone)
    ]
    assert told[0].dead_names == ()
    assert told[1].dead_names == ("gone",)
    assert told[1].missed == ("query",)


def test_the_files_and_the_catalogs_have_the_same_words():
    described = {preset.name for preset in presets() if " " in preset.name}
    described -= {"transformer_only: false"}
    bugs = [bug for preset in presets() for bug in (*preset.dead, *preset.stray)]
    layers_meant = {bug.label for bug in bugs if not bug.label.startswith("`")}
    ids = {label_id("presets.name", name): name for name in described}
    ids |= {label_id("presets.layer", name): name for name in layers_meant}
    assert ids == {
        id: text
        for id, text in catalog("en").items()
        if id.startswith(("presets.name_", "presets.layer_"))
    }


@pytest.mark.parametrize(
    ("versions", "span"),
    [
        ("since v2.0", message("presets.since", first="v2.0")),
        ("until 2026-07-02", message("presets.until", last="2026-07-02")),
        ("v4.0.0 to v4.3.5", message("presets.from_to", first="v4.0.0", last="v4.3.5")),
        ("v2.0 and v2.0.1", message("presets.both", first="v2.0", last="v2.0.1")),
        ("v3", "v3"),
    ],
)
def test_a_title_with_its_versions(versions, span):
    text = f"@trainer A\n[flux1]\npreset all : {versions}\nnames to_k\npreset b\nnames to_k"
    with_versions, without = parse_presets(text)
    assert (str(with_versions), str(without)) == (f"A's 'all' ({versions})", "A's 'b'")
    for language in languages():
        title = translate(with_versions.title, language)
        assert translate(span, language) in title and "and" not in title.replace(versions, "")
    assert (
        span == versions and translate(without.title, "zh") == "A \u7684\u9884\u8bbe\u201cb\u201d"
    )


def test_the_sentence_is_said_in_chinese():
    report = report_of("flux1_dev", by_peft("flux1_dev", OLD_ALL_FFS), "simpletuner")
    chinese = translate(report.sentence, "zh")
    for part in (
        "\u770b\u8d77\u6765\u662f SimpleTuner \u7684\u9884\u8bbe\u201call+ffs\u201d",
        "v0.9.8.1 \u548c v0.9.8.2",
        "`ff.2`\u3001`ff_context.0` \u548c `ff_context.2` \u6ca1\u6709\u5bf9\u5e94\u7684\u6a21\u5757",
        "double \u5757\u7684\u524d\u9988\u5c42\u3001`to_add_out`",
        "`proj_out` \u8fd8\u9009\u4e2d\u4e86\u6700\u7ec8\u8f93\u51fa\u5c42",
    ):
        assert part in chinese
    assert not re.search("[a-z] [a-z]", chinese), "no English words"


def test_nothing_to_compare():
    assert (
        match_presets(make_plan({}, {}, target_model_of("flux1_dev"))).sentence
        == "no documented preset trains just these layers"
    )
    assert (
        match_presets(make_plan({"\udce9.lora_A.weight": (4, 8)}, {}, TargetModel()))
        == PresetReport()
    )
    strange = TargetModel(
        [Network(DENOISER, "diffusion_model.", {"diffusion_model.wonder.weight": (8, 8)}, [])]
    )
    plan = make_plan(factors("wonder", (8, 8)), {}, strange)
    assert len(plan.adapters) == 1
    assert match_presets(plan).sentence == ""


def test_reports_are_json():
    report = report_of("flux1_dev", by_peft("flux1_dev", OLD_ALL_FFS))
    told = report.as_dict()
    assert told["exact"][0]["preset"] == "all+ffs"
    assert told["missed"] == list(report.missed)
    assert told["nearest"] is None


def test_layouts_die_with_their_models():
    network = denoiser_network(comfy_models.shapes("sd15"))
    gone = weakref.ref(network)
    engine.layout_of(network)
    del network
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", TWINS)
def test_every_dead_entry_is_explained(name):
    """An entry that names nothing is either for another variant (`spare`) or a slip whose meaning
    the file states (`dead`).
    """
    layout = engine.layout_of(target_model_of(name).networks[DENOISER])
    assert layout.presets
    for preset, mask in layout.masks.items():
        finding = layout.finding(preset, mask)
        explained = {entry for slip in preset.dead for entry, _ in slip.pairs}
        assert set(finding.dead_names) == explained, str(preset)
        assert set(finding.missed) == {slip.label for slip in preset.dead}, str(preset)
        assert len(finding.surprises) == len(preset.stray), str(preset)
        assert mask, str(preset)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "holds no preset"),
        ("[flux1]\npreset all\nnames to_k", "line 2: a preset needs a trainer"),
        ("@trainer A\npreset all\nnames to_k", "line 2: a preset needs a trainer"),
        ("@trainer A\n[flux1\npreset all\nnames to_k", "line 2: a section names no families"),
        ("@trainer A\n[]\n", "line 2: a section names no families"),
        ("@author A\n", "line 1: @author A is not understood"),
        ("@trainer A\n@space onnx", "line 2: @space onnx is not understood"),
        ("@trainer A\n[flux1]\nnames to_k", "line 3: 'names' is outside of a preset"),
        ("@trainer A\n[flux1]\npreset all\nmodules to_k", "line 4: 'modules' is not understood"),
        (
            "@trainer A\n[flux1]\npreset all\nnames",
            "line 4: 'names' is not understood or says nothing",
        ),
        (
            "@trainer A\n[flux1]\npreset all\nspare to_k\npreset b\nnames a",
            "line 3: all picks no modules",
        ),
        (
            "@trainer A\n[flux1]\npreset all\nregex (to_k",
            "line 4: '(to_k' is not a regular expression",
        ),
        (
            "@trainer A\n[flux1]\npreset all\nnames to_k\nwithout to_q",
            "line 5: 'to_q' is not a way to pick modules",
        ),
        (
            "@trainer A\n[flux1]\npreset all\nnames to_k\nspare to_q",
            "line 3: 'to_q' is not an entry of the preset",
        ),
        (
            "@trainer A\n[flux1]\npreset all\nnames to_k\ndead to_q=q : x",
            "line 3: 'to_q' is not an entry of the preset",
        ),
        (
            "@trainer A\n[flux1]\npreset all\nnames to_k\ndead to_k=q",
            "line 5: 'to_k=q' is not understood",
        ),
        (
            "@trainer A\n[flux1]\npreset all\nnames to_k\nstray to_k : q",
            "line 5: 'to_k : q' is not understood",
        ),
        (
            "@trainer A\n[flux1]\npreset all\nnames to_k\nlayers dense",
            "line 3: 'dense' is not a kind of layer",
        ),
        (
            "@trainer A\n[flux1]\npreset all\nnames to_k\npreset all\nnames to_k",
            "line 5: all is there twice",
        ),
    ],
)
def test_the_reader_names_line_and_fault(text, fault):
    with pytest.raises(PresetError) as told:
        parse_presets(text, "mine.presets")
    assert fault in str(told.value)
    assert str(told.value).startswith("mine.presets")


def test_unreadable_files(tmp_path):
    with pytest.raises(PresetError, match="cannot be read"):
        engine.read_presets(tmp_path / "none.presets")
    (tmp_path / "latin.presets").write_bytes(b"@trainer \xe9\n")
    with pytest.raises(PresetError, match="Save it as UTF-8"):
        engine.read_presets(tmp_path / "latin.presets")
