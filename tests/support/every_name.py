"""Every name of a family's table as each tool spells it, planned on a model that is drawn from that
table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lora_locksmith.adapters.rows import Rows
from lora_locksmith.identify.reference_model import ReferenceSpec, _draw
from lora_locksmith.key_maps.dialect import DENOISER, Dialect
from lora_locksmith.key_maps.table import (
    UNNAMED,
    Family,
    TableRow,
    families,
    fill,
    numbered,
    slices,
)
from lora_locksmith.planning.keys import parse_key
from lora_locksmith.planning.names import prefix_for
from lora_locksmith.planning.plan import PLACED, UNSUPPORTED, Adapter, make_plan
from lora_locksmith.planning.resolve import network_named
from lora_locksmith.planning.target_model import Network, TargetModel

NATIVE, DIFFUSERS, PROCESSOR = "native", "diffusers", "processor"
PREFIX = "diffusion_model."
BLOCKS = 2  # of each kind that are drawn: a table has one row for all of them
RANK = 4
# What a letter of a table stands for where no published size is stated: no two alike, each to be
# divided by the parts of a fused weight.
UNSTATED = {letter: 240 * (place + 2) for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
ATTENTION = ("to_", "add_")  # how the layers of diffusers' attention are called
USUAL = {
    "flat": ("lora_down.weight", "lora_up.weight"),
    "dotted": ("lora_A.weight", "lora_B.weight"),
}
Slices = frozenset[tuple[str, Rows | None]]


class Place(NamedTuple):
    """Where a spelled module belongs: rows of weights, whether its halves are swapped, and the
    shape of a change of it.
    """

    slices: Slices
    swap: bool
    shape: tuple[int, ...]


def denoisers() -> list[Family]:
    return [family for family in families().values() if family.kind == DENOISER]


def variants(family: Family) -> Sequence[str]:
    return tuple(dict.fromkeys((*family.sizes, *family.blocks))) or ("",)


def drawn(family: Family, variant: str) -> TargetModel:
    """A model of a published variant with every module of the table, in a few blocks."""
    sizes = UNSTATED | dict(family.sizes.get(variant, {}))
    kinds = {at for row in family.rows for name in row.native for at, _ in numbered(name, name)}
    blocks = tuple((at, BLOCKS) for at in sorted(kinds))
    spec = ReferenceSpec(family.name, DENOISER, PREFIX, tuple(sizes.items()), blocks)
    return TargetModel([_draw(family, spec)])


def states(family: Family, names: str) -> bool:
    """Whether the family's table says what `names` calls its modules: a row that says nothing has
    its own name as another tool's.
    """
    return names == NATIVE or any(
        tuple(part.name for part in row.alternatives[place].parts) != row.native
        for row in family.rows
        for place in _alternatives(row, names)
    )


def _alternatives(row: TableRow, names: str) -> list[int]:
    """The places of the row's alternatives that are names of this kind."""
    if names == PROCESSOR:
        return [
            place
            for place, alternative in enumerate(row.alternatives)
            if any(f".{PROCESSOR}." in f".{part.name}" for part in alternative.parts)
        ]
    return [
        place
        for place in range(len(row.alternatives))
        if ((row.names if place == 0 else "") or DIFFUSERS) == names
    ]


def places(network: Network, names: str) -> Iterator[tuple[str, Place]]:
    """(name, place) of every matrix of the network as `names` calls it; by its own name what has no
    other.
    """
    named: set[str] = set()
    for row in network.family.rows if names != NATIVE else ():
        for numbers in _numbers(network, row):
            native = tuple(fill(name, numbers) for name in row.native)
            for place in _alternatives(row, names):
                yield from _parts(network, row, native, (place, numbers))
                named |= {network.modules[name] for name in native}
    for module, weight in network.modules.items() if names != PROCESSOR else ():
        if weight not in named and len(network.weights[weight]) > 1:
            yield module, Place(frozenset({(weight, None)}), False, network.weights[weight])


def _numbers(network: Network, row: TableRow) -> Iterator[list[str]]:
    """The block numbers of the modules that the network has of a row, matrices all."""
    count = row.native[0].count("{}")
    choices = [[]]
    for _ in range(count):
        choices = [[*before, str(number)] for before in choices for number in range(BLOCKS)]
    for numbers in choices:
        weights = [network.modules.get(fill(name, numbers), "") for name in row.native]
        if all(len(network.weights.get(weight, ())) > 1 for weight in weights):
            yield numbers


def _parts(
    network: Network, row: TableRow, native: Sequence[str], spelling: tuple[int, list[str]]
) -> Iterator[tuple[str, Place]]:
    """(name, place) of each part of an alternative; spelling: its place in the row, block
    numbers.
    """
    index, numbers = spelling
    alternative = row.alternatives[index]
    weights = [network.modules[name] for name in native]
    shapes = tuple(network.weights[weight] for weight in weights)
    for number, part in enumerate(alternative.parts):
        found = slices(row, index, number, shapes)
        if found is None or part.name.rpartition(".")[2] == UNNAMED:
            continue
        out = sum(each.rows.length if each.rows else shapes[each.native][0] for each in found)
        at = frozenset((weights[each.native], each.rows) for each in found)
        yield fill(part.name, numbers), Place(at, alternative.swap, (out, *shapes[0][1:]))


def namings(dialect: Dialect) -> list[str]:
    """Whose names of modules a dialect writes."""
    if PROCESSOR in dialect.inside and dialect.families:
        return [PROCESSOR]
    return list(dict.fromkeys((dialect.names, *dialect.also)))


def written(
    target_model: TargetModel, dialect: Dialect, names: str
) -> tuple[dict[str, tuple[int, ...]], dict[str, Place]]:
    """The keys of a LoRA on every module as the dialect spells them, and where each module
    belongs.
    """
    network = target_model.networks[DENOISER]
    prefix = prefix_for(target_model, network, dialect) or ""
    keys: dict[str, tuple[int, ...]] = {}
    expected: dict[str, Place] = {}
    for name, place in places(network, names):
        spelled = _spelled(dialect, name)
        module = prefix + (spelled.replace(".", "_") if dialect.form == "flat" else spelled)
        if target_model.is_elsewhere(name) and network_named(target_model, module) is None:
            continue  # a text encoder's name
        # Where flattening makes two weights one name, the first keeps it.
        if expected.setdefault(module, place) is place:
            keys |= keys_of(dialect, module, place.shape)
    return keys, expected


def _spelled(dialect: Dialect, name: str) -> str:
    """A dotted name with the words that the dialect puts into it and the ending that it cuts."""
    for spelled, meant in dialect.endings:
        if name.endswith(f".{meant}"):
            name = name.removesuffix(meant) + spelled
    before, _, last = name.rpartition(".")
    inside = PROCESSOR in dialect.inside and last.startswith(ATTENTION)
    return f"{before}.{PROCESSOR}.{last}" if inside else name


def keys_of(dialect: Dialect, module: str, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The keys of the two factors, as the dialect spells them first of all that mean this module."""
    out, *inner = shape
    shapes = {"down": (RANK, *inner), "up": (out, RANK, *(1 for _ in inner[1:]))}
    keys = {}
    for role in (*dialect.roles, *USUAL[dialect.form]):
        spelled = role.replace("<adapter>", "default")
        key = f"{module}{'' if spelled.startswith('_') else '.'}{spelled}"
        parsed = parse_key(key)
        if parsed.module == module and parsed.role in shapes:
            keys[key] = shapes.pop(parsed.role)
    return keys


class Result(NamedTuple):
    """What became of a family's names in one spelling: modules that are refused with a reason, and
    those whose keys are lost or misplaced.
    """

    refused: Mapping[str, str]
    wrong: tuple[str, ...]


def landed(
    target_model: TargetModel, keys: Mapping[str, tuple[int, ...]], expected: Mapping[str, Place]
) -> Result:
    """Plan the keys, and compare where each lands with where it belongs."""
    plan = make_plan(dict(keys), {}, target_model)
    right = {adapter.module for adapter in plan.adapters if _is_right(adapter, expected)}
    refused, lost = {}, set()
    for key, outcome in plan.outcomes.items():
        module = parse_key(key).module
        if outcome.category == UNSUPPORTED:
            refused[module] = str(outcome.reason)
        elif outcome.category != PLACED:
            lost.add(module)
    wrong = [one for one in expected if one not in refused and (one not in right or one in lost)]
    return Result(refused, tuple(wrong))


def _is_right(adapter: Adapter, expected: Mapping[str, Place]) -> bool:
    place = expected.get(adapter.module)
    return place is not None and (place.slices, place.swap) == (
        frozenset((weight, rows) for weight, rows, _ in adapter.target.slices),
        adapter.target.swap,
    )
