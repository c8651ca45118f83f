"""Every family table against the real ComfyUI models: rows, shapes, sizes, recognition, other
spellings, and what stock accepts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import comfy_models
import pytest
from lora_locksmith.key_maps.table import (
    UNNAMED,
    TableError,
    TableRow,
    families,
    fill,
    flatten,
    generalise,
    numbered,
    parse_table,
    slices,
    unify,
)
from lora_locksmith.planning.plan import PLACED, make_plan
from lora_locksmith.planning.target_model import (
    Network,
    TargetModel,
    denoiser_network,
    encoder_networks,
)

DENOISERS = sorted(name for name, family in families().items() if family.kind == "denoiser")
PUBLISHED = [
    name
    for name, model in comfy_models.MODELS.items()
    if model.published and model.family in families()
]
NUMBERED_IN_A_ROW = (
    "sd15",
    "sd21",
    "sdxl",
    "sdxl_refiner",
    "koala",
    "stable_cascade",
)  # each number is a block of another kind
NUMBERED_IN_A_WORD = (
    "cosmos1",
)  # blocks.block7: each block has a header of its own, and diffusers' name counts them
RANK = 4
# What stock itself gets wrong: FLUX.1's proj_mlp on wider weights (FLUX.2, Ovis); equal thirds
# where Lumina has fewer heads for k and v.
STOCK_MISTAKES = {
    "flux2": re.compile(r"[._]proj_mlp$"),
    "ovis_image": re.compile(r"[._]proj_mlp$"),
    "lumina2": re.compile(r"[._]attention[._]to_[qkv]$"),
}

pytestmark = pytest.mark.usefixtures("comfy")
every_model = pytest.mark.parametrize("name", comfy_models.MODELS)
every_encoder = pytest.mark.parametrize("name", comfy_models.ENCODERS)


def counted(family: str) -> bool:
    """Whether the table states how many blocks of a native name there are."""
    return bool(families()[family].blocks) and family not in NUMBERED_IN_A_WORD


def network_of(name: str) -> Network:
    try:
        return denoiser_network(comfy_models.shapes(name))
    except comfy_models.NotInThisComfyUI as fault:
        pytest.skip(str(fault))


def encoders_of(name: str) -> list[Network]:
    try:
        return encoder_networks(comfy_models.encoder_shapes(name))
    except (ImportError, AttributeError) as fault:
        pytest.skip(f"this ComfyUI has no such text encoder: {fault}")


def unlisted(network: Network) -> list[str]:
    """The network's modules that no native row of its table names with their shape."""
    missing = []
    for module, weight in network.modules.items():
        matches = [match for match in network.family.find(flatten(module)) if match.alternative < 0]
        if not any(
            slices(match.row, -1, 0, (network.weights[weight],)) is not None for match in matches
        ):
            missing.append(f"{module} {network.weights[weight]}")
    return missing


def spelled(network: Network) -> Iterator[tuple[str, tuple[str, ...], TableRow, int, int]]:
    """Every other spelling of every row the network has: (name, native modules, row, alternative,
    part), two blocks of each pattern.
    """
    numbers_of = defaultdict(list)
    for module in network.modules:
        template, numbers = generalise(flatten(module))
        numbers_of[template].append(numbers)
    for row in network.family.rows:
        for blocks in some_blocks(row.native[0], numbers_of):
            native = tuple(fill(name, blocks) for name in row.native)
            shapes = tuple(
                network.weights[network.modules[name]] for name in native if name in network.modules
            )
            if len(shapes) == len(native) and slices(row, -1, 0, shapes) is not None:
                for index, alternative in enumerate(row.alternatives):
                    for number, part in enumerate(alternative.parts):
                        if part.name.rpartition(".")[2] != UNNAMED:
                            yield fill(part.name, blocks), native, row, index, number


def some_blocks(
    native: str, numbers_of: Mapping[str, Sequence[Sequence[str]]]
) -> Iterator[list[str]]:
    """What can stand for the {} of a native name in a model: the first and the last choice."""
    template, stated = generalise(flatten(native.replace("{}", "0")))
    free = [word == "{}" for word in flatten(native).split("_") if word == "{}" or word.isdigit()]
    choices = []
    for numbers in numbers_of.get(template, ()):
        places = list(zip(free, stated, numbers, strict=True))
        if all(is_free or number == literal for is_free, literal, number in places):
            choices.append([number for is_free, _, number in places if is_free])
    yield from choices[:1] + choices[1:][-1:]


@pytest.mark.parametrize("family", DENOISERS)
def test_a_family_has_a_real_model_to_hold_it_against(family):
    assert family in {model.family for model in comfy_models.MODELS.values()}, (
        "Add the model to tests/support/comfy_models.py"
    )


@every_model
def test_a_model_is_recognised(name):
    assert network_of(name).family.name == comfy_models.MODELS[name].family


@pytest.mark.parametrize(
    "name",
    [name for name, model in comfy_models.MODELS.items() if model.family not in NUMBERED_IN_A_ROW],
)
def test_a_model_of_two_blocks_is_recognised(name):
    network = network_of(name)
    few = {}
    for weight, shape in network.weights.items():
        if all(int(number) < 2 or int(number) > 99 for number in generalise(flatten(weight))[1]):
            few[weight] = shape
    assert denoiser_network(few).family.name == comfy_models.MODELS[name].family


@every_encoder
def test_a_text_encoder_is_recognised(name):
    assert {
        network.name: network.family and network.family.name for network in encoders_of(name)
    } == comfy_models.ENCODERS[name].tables


@every_model
def test_every_weight_of_a_model_has_a_row(name):
    network = network_of(name)
    parameters = {
        parameter
        for parameter, _ in comfy_models.network(name).named_parameters()
        if not parameter.endswith(".bias")
    }
    network.modules = {
        module: weight for module, weight in network.modules.items() if weight in parameters
    }
    assert not unlisted(network)


@every_encoder
def test_every_weight_of_a_text_encoder_has_a_row(name):
    for network in encoders_of(name):
        network.modules = {
            module: weight
            for module, weight in network.modules.items()
            if weight.endswith(".weight")
        }
        assert not unlisted(network)


@pytest.mark.parametrize("family", DENOISERS)
def test_every_row_is_in_a_model(family):
    rows = {(row.native, row.shape): row for row in families()[family].rows}
    missing = []
    for name, model in comfy_models.MODELS.items():
        if model.family == family:
            try:
                network = denoiser_network(comfy_models.all_shapes(name))
            except comfy_models.NotInThisComfyUI as fault:
                missing.append(str(fault))
                continue
            for module, weight in network.modules.items():
                for match in network.family.find(flatten(module)):
                    fits = slices(match.row, -1, 0, (network.weights[weight],)) is not None
                    if match.alternative < 0 and fits:
                        rows.pop((match.row.native, match.row.shape), None)
    # A UNet's resnets share their rows; only those that change the width have a skip_connection.
    left = sorted(
        native[0]
        for native, _ in rows
        if len(native) == 1 and not native[0].endswith(".skip_connection")
    )
    if left and missing:
        pytest.skip("; ".join(missing))
    assert not left, f"{family}.table names what no model of tests/support/comfy_models.py has"


@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if families()[comfy_models.MODELS[name].family].sizes]
)
def test_published_sizes_agree_with_the_model(name):
    network = network_of(name)
    faults = defaultdict(set)
    for module, weight in network.modules.items():
        solved = [
            unify(match.row.shape, network.weights[weight])
            for match in network.family.find(flatten(module))
            if match.alternative < 0 and match.row.shape
        ]
        for variant, sizes in network.family.sizes.items():
            wrong = [
                known
                for known in solved
                if known is not None
                and any(sizes.get(symbol, size) != size for symbol, size in known.items())
            ]
            if wrong and len(wrong) == len([known for known in solved if known is not None]):
                faults[variant].add(f"{module}: {wrong[0]}")
    assert any(not faults[variant] for variant in network.family.sizes), dict(faults)


@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if counted(comfy_models.MODELS[name].family)]
)
def test_published_blocks_agree_with_the_model(name):
    network = network_of(name)
    counts = defaultdict(int)
    for module in network.modules:
        for match in network.family.find(flatten(module)):
            if match.alternative < 0 and match.native[0] == module:
                for blocks, number in numbered(match.row.native[0], module):
                    counts[blocks] = max(counts[blocks], int(number) + 1)
    stated = network.family.blocks.values()
    agreeing = [
        variant
        for variant in stated
        if all(counts.get(blocks, count) == count for blocks, count in variant.items())
    ]
    assert any(variant.keys() & counts.keys() for variant in agreeing), dict(counts)


@every_model
def test_every_other_spelling_finds_its_weight(name):
    network = network_of(name)
    for spelling, native, row, alternative, part in spelled(network):
        found = network.find(flatten(spelling))
        assert len(found) == 1, (
            f"{spelling} finds {[candidate.module for candidate in found]}, line {row.line}"
        )
        if found[0].naming < 0 and spelling in network.modules:
            # the model has a module of this very name; test_every_weight_of_a_model_has_a_row
            # covers it
            continue
        weights = [network.modules[module] for module in native]
        expected = slices(
            row, alternative, part, tuple(network.weights[weight] for weight in weights)
        )
        assert found[0].slices == tuple(
            (weights[piece.native], piece.rows, piece.source) for piece in expected
        ), f"{spelling}, line {row.line}"
        assert found[0].swap == row.alternatives[alternative].swap, f"{spelling}, line {row.line}"


@every_model
def test_the_parts_of_a_spelling_cover_their_weight(name):
    network = network_of(name)
    covered, sized = defaultdict(int), {}
    for spelling, native, row, alternative, _ in spelled(network):
        if all(
            piece.name.rpartition(".")[2] != UNNAMED
            for piece in row.alternatives[alternative].parts
        ):
            covered[native, row.line, alternative] += network.find(flatten(spelling))[0].out
            sized[native, row.line, alternative] = sum(
                (network.weights[network.modules[module]] or (1,))[0] for module in native
            )
    assert {key: out for key, out in covered.items() if out % sized[key]} == {}


def stock_names(name: str) -> Iterator[tuple[str, str, tuple[int, int] | None]]:
    """What ComfyUI's own list accepts for a model, two names of each pattern: (name, weight, rows
    of it).
    """
    import comfy.lora

    mistake, seen = STOCK_MISTAKES.get(comfy_models.MODELS[name].family), defaultdict(int)
    for key, target in comfy.lora.model_lora_keys_unet(comfy_models.network(name), {}).items():
        weight, rows, *_ = (target, None) if isinstance(target, str) else target
        pattern = generalise(flatten(key))[0]
        seen[pattern] += 1
        if seen[pattern] <= 2 and not (mistake and mistake.search(key)):
            yield key, weight, tuple(rows[1:]) if rows else None


@every_model
def test_what_stock_accepts_is_placed_at_the_same_weight(name):
    target_model, weights = TargetModel([network_of(name)]), comfy_models.shapes(name)
    for key, weight, rows in stock_names(name):
        if len(weights.get(weight, ())) < 2 or not weight.endswith(".weight"):
            continue
        out, *inner = weights[weight]
        up = (rows[1] if rows else out, RANK, *[1] * len(inner[1:]))
        plan = make_plan(
            {f"{key}.lora_down.weight": (RANK, *inner), f"{key}.lora_up.weight": up},
            {},
            target_model,
        )
        assert {outcome.category for outcome in plan.outcomes.values()} == {PLACED}, plan.outcomes
        assert plan.adapters[0].target.slices == (
            (weight, None if rows == (0, out) else rows, None),
        ), key


def test_a_table_that_means_two_things_by_one_name_is_refused():
    text = "@title Two\nfirst  h h = x\nsecond  h h = x\n"
    with pytest.raises(TableError, match="'x' already means something else in line 2"):
        parse_table("two", text)


def test_the_parts_of_a_fused_weight_must_add_up():
    text = "@title Sum\nfused  3h h = q:h + k:h\n"
    with pytest.raises(TableError, match="do not add up"):
        parse_table("sum", text)


@every_model
def test_the_width_of_a_published_input_that_may_grow_is_in_the_table(name):
    """Else a LoRA of one model of the family would make another as wide."""
    network = network_of(name)
    if name in PUBLISHED:
        for module in network.modules:
            for found in network.find(module):
                if found.widens_input:
                    assert found.inner[0] in found.widens_input.fixed, module
