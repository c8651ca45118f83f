"""The presets of layer weights: read strictly, true to who documents them, with layers to act on."""

from __future__ import annotations

import pytest
from every_name import variants
from lora_locksmith.identify.reference_model import ReferenceSpec, _draw
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.key_maps.table import families
from lora_locksmith.key_maps.weight_presets import (
    ANY,
    FOLDER,
    WeightPresetError,
    read_weight_presets,
    weight_presets,
)
from lora_locksmith.lora.merge.block_weights import is_vector, read_block_weights
from lora_locksmith.messages import translate

PREFIX = "diffusion_model."
HEAD = "@families sd15\n@source x\n@for style\n"
SD_BLOCKS = (
    *(f"input_blocks.{number}" for number in (1, 2, 4, 5, 7, 8)),
    "middle_block",
    *(f"output_blocks.{number}" for number in range(3, 12)),
)
# Behind the text encoder's number: ComfyUI-Inspire-Pack 1aef2c5, resources/lbw-preset*.
INSPIRE = {
    "SD-BODY": "1 1 1 1 1 1 1 0 0 0 1 1 1 1 1 1",
    "SD-BODY0.5": "1 1 1 1 1 .2 1 .2 0 0 .8 1 1 1 1 1",
    "SD-FACE": "0 0 0 0 0 0 0 1 1 1 0 0 0 0 0 0",
    "SD-FACE0.5": "0 0 0 0 0 0 0 .8 1 1 .2 0 0 0 0 0",
    "SD-FACE0.2": "0 0 0 0 0 0 0 .2 .6 .8 .2 0 0 0 0 0",
    "SD-HAND": "0 1 1 .2 0 0 0 0 0 0 0 0 0 0 0 0",
    "SD-CLOTHING": "1 1 1 1 0 .2 0 .8 1 1 .2 0 0 0 0 0",
    "SD-POSE": "0 0 0 0 0 .2 1 1 1 0 0 0 0 0 0 0",
    "SD-PALETTE": "0 0 0 0 0 0 0 0 0 0 .8 1 1 1 1 1",
    "SD-KEEPCHAR": "1 1 1 1 0 0 0 1 1 1 1 1 1 1 0 0",
    "SD-KEEPBG": "1 1 1 1 1 .2 1 .2 0 0 .8 1 1 1 0 0",
    "SD-REDUCEFIT": "0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1",
    "SD-MIDD0.2": "0 0 0 0 0 .2 .4 .4 .2 0 0 0 0 0 0 0",
    "SD-MIDD0.8": "0 0 0 0 .5 .8 .8 .4 0 0 0 0 0 0 0 0",
    "SD-MOUT": "0 0 0 0 0 1 1 1 1 1 1 1 1 .5 0 0",
}


def modules(family: str) -> list[tuple[str, str]]:
    """(network, native name) of every weight of a family's published model."""
    known = families()[family]
    blocks = tuple(known.blocks[variants(known)[0]].items())
    sizes = tuple(next(iter(known.sizes.values())).items())
    network = _draw(known, ReferenceSpec(family, DENOISER, PREFIX, sizes, blocks))
    return [
        (DENOISER, weight.removeprefix(PREFIX).removesuffix(".weight"))
        for weight in network.weights
    ]


@pytest.mark.parametrize("preset", weight_presets().values(), ids=lambda preset: preset.name)
def test_a_preset_has_a_title_in_both_languages_and_layers_of_its_models(preset):
    assert preset.source and preset.title and translate(preset.title, "zh") != preset.title
    assert preset.families == ANY or set(preset.families) <= families().keys()
    weights = read_block_weights(preset.weights)
    for family in set(preset.families) - set(ANY):
        layers = modules(family)
        weights.check(layers)
        assert is_vector(preset.weights) or weights.found_in(layers) == preset.weights
        assert (
            preset.kind == "prompt"
            or len({weights.factor(*layer) for layer in layers}) > 1
            or (preset.name == "ALL0.5")
        )
    by_name = read_block_weights(preset.name)
    assert by_name.entries == weights.entries and not by_name.strict


@pytest.mark.parametrize("name", INSPIRE)
def test_a_preset_is_what_the_pack_documents_block_by_block(name):
    weights = read_block_weights(name)
    layers = [module for _, module in modules("sd15")]
    for block, told in zip(SD_BLOCKS, INSPIRE[name].split(), strict=True):
        found = {
            weights.factor(DENOISER, module) for module in layers if module.startswith(f"{block}.")
        }
        assert found == {float(told)}, block
    assert weights.factor("clip_l", "text_model.encoder.layers.0.mlp.fc1") == 1


@pytest.mark.parametrize(
    ("name", "single", "double"),
    [
        ("FLUX-DBL-FRONT7", (), range(7)),
        ("FLUX-DBL-MID6", (), range(7, 13)),
        ("FLUX-DBL-TAIL6", range(38), range(13, 19)),
        ("FLUX-SINGLE-1to10", range(10), ()),
        ("FLUX-SINGLE-31to37", range(30, 38), ()),
        ("FLUX: single blocks 7 and 20", (7, 20), ()),
    ],
)
def test_blocks_of_flux_are_those_that_are_named(name, single, double):
    weights = read_block_weights(name)
    for kind, count, on in (("single_blocks", 38, single), ("double_blocks", 19, double)):
        kept = [n for n in range(count) if weights.factor(DENOISER, f"{kind}.{n}.linear1")]
        assert kept == list(on)


def test_every_file_is_read_and_no_name_stands_in_two():
    read = [preset for path in FOLDER.iterdir() for preset in read_weight_presets(path)]
    assert len(read) == len(weight_presets())


def test_a_preset_is_for_its_models():
    presets = weight_presets()
    assert presets["SD-FACE"].is_for("sd15") and not presets["SD-FACE"].is_for("sdxl")
    assert presets["no text encoder"].is_for("wan") and presets["no text encoder"].is_for("")
    assert not presets["SD-FACE"].is_for("")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"x\.weights: .*no preset"),
        (HEAD, r"x\.weights: .*no preset"),
        (HEAD + "A model=0\n", r"x\.weights.*4.*A model=0"),
        (HEAD + " : model=0\n", r"x\.weights.*4.*model=0"),
        (HEAD + "A : model=0\n\nA : te=0\n", r"x\.weights.*6.*A.*twice"),
        (HEAD + "@for fun\nA : te=0\n", r"x\.weights.*4.*fun.*composition"),
        (HEAD + "@color red\nA : te=0\n", r"x\.weights.*4.*color"),
        ("@families\nA : te=0\n", r"x\.weights.*1.*@families"),
        ("@families any\n@for part\nA : te=0\n", r"x\.weights.*3.*@source.*A"),
    ],
)
def test_a_mistake_is_told_with_its_line(text, said, tmp_path):
    path = tmp_path / "x.weights"
    path.write_text(text, "utf-8")
    with pytest.raises(WeightPresetError, match=said):
        read_weight_presets(path)
