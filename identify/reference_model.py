"""Draws the model a LoRA was made for from its family's table, where no model is connected: names
exact, sizes as far as known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import islice, product
from typing import NamedTuple

from ..key_maps.dialect import DENOISER
from ..key_maps.table import (
    Family,
    Match,
    TableRow,
    evaluate,
    families,
    fill,
    flatten,
    generalise,
    in_one_form,
    numbered,
    unify,
)
from ..key_maps.user_maps import NO_USER_MAPS, UserMaps
from ..planning.groups import Group
from ..planning.resolve import peeled
from ..planning.target_model import Network, Shape, TargetModel
from .lora_family import (
    LONGEST_NUMBER,
    FamilyMatch,
    ModulePattern,
    Shapes,
    agreeing_variant,
    is_whole,
    matches_of,
    member_names,
    solved_sizes,
    weight_shape,
)
from .variants import blocks_of, same_blocks, too_few

MAX_BLOCKS = 1000  # of one name, that are drawn
MAX_MODULES = 10_000  # of one row, that are drawn
MAX_DRAWN = 256  # models kept; each takes some ten kilobytes
Numbers = tuple[tuple[str, int], ...]


class ReferenceSpec(NamedTuple):
    """What a network is drawn from: a family of the pack, its place, the family's sizes and
    numbers of blocks.
    """

    family: str
    slot: str
    prefix: str
    sizes: Numbers
    blocks: Numbers
    stated: tuple[
        tuple[str, Shape], ...
    ] = ()  # shapes the file tells of modules that the table has in several shapes


def build_reference_model(
    guess: FamilyMatch,
    groups: Sequence[Group],
    shapes: Shapes,
    known: TargetModel,
    own: UserMaps = NO_USER_MAPS,
) -> TargetModel:
    """The target model a file was made for: its denoiser, and the text encoders it trains; empty
    where the family cannot be told.

    `known` gives the families. Of families that fit equally well the first is drawn. Sizes that
    neither a table nor the file states are 0.
    """
    name = guess.name or next(iter(guess.ties), "")
    if not name:
        return TargetModel((), own)
    specs = [
        ReferenceSpec(
            name,
            DENOISER,
            "diffusion_model.",
            *_measured(known.families[name], guess, known),
            _told_shapes(known.families[name], guess.samples),
        )
    ]
    if guess.encoder_modules:
        specs += _encoder_specs(known, known.families[name], guess.encoder_modules, groups, shapes)
    if own is not NO_USER_MAPS:
        return TargetModel([_draw(known.families[spec.family], spec) for spec in specs], own)
    return _known_model(tuple(map(_without_drawn, specs)))


def with_encoders(
    target_model: TargetModel,
    guess: FamilyMatch,
    groups: Sequence[Group],
    shapes: Shapes,
    own: UserMaps = NO_USER_MAPS,
) -> TargetModel:
    """The target model with the text encoders beside it that the file trains and the target model
    lacks, drawn from their tables.

    A model's file or a wired MODEL holds no text encoders; which ones belong to it its family's
    table tells all the same.
    """
    denoiser = target_model.networks.get(DENOISER)
    family = (denoiser and denoiser.family) or target_model.families.get(guess.name)
    if denoiser is None or family is None or not guess.encoder_modules:
        return target_model
    specs = _encoder_specs(target_model, family, guess.encoder_modules, groups, shapes)
    make = (
        _known_network
        if own is NO_USER_MAPS
        else lambda spec: _draw(target_model.families[spec.family], spec)
    )
    missing = [make(spec) for spec in specs if spec.slot not in target_model.networks]
    return (
        TargetModel([*target_model.networks.values(), *missing], own) if missing else target_model
    )


@lru_cache(maxsize=MAX_DRAWN)
def _known_model(specs: tuple[ReferenceSpec, ...]) -> TargetModel:
    return TargetModel([_known_network(spec) for spec in specs])


@lru_cache(maxsize=MAX_DRAWN)
def _known_network(spec: ReferenceSpec) -> Network:
    family = families()[spec.family]
    if not spec.stated:
        return _draw(family, spec)
    drawn = _known_network(spec._replace(stated=()))
    return drawn.reshaped(_stated_weights(family, spec, drawn.weights))


def _without_drawn(spec: ReferenceSpec) -> ReferenceSpec:
    """The spec without what is drawn anyway, so that files which train other parts of one model
    share its drawing.
    """
    if not spec.stated:
        return spec
    drawn, family = _known_network(spec._replace(stated=())).weights, families()[spec.family]
    left = (
        (module, shape)
        for module, shape in spec.stated
        if drawn.get(_weight(family, spec, module), shape) != shape
    )
    return spec._replace(stated=tuple(left))


def _measured(family: Family, guess: FamilyMatch, known: TargetModel) -> tuple[Numbers, Numbers]:
    """Sizes and numbers of blocks of the published variant that fits the file,
    else the file's own.
    """
    variant, sizes = _fitting_sizes(family, guess.samples, known)
    published = _published_blocks(family, variant, guess)
    own = _own_blocks(family, guess.samples, published)
    return _numbers(sizes), _numbers({**own, **published})


def _told_shapes(family: Family, samples: Iterable[ModulePattern]) -> tuple[tuple[str, Shape], ...]:
    """(native name, shape) of the file's modules that the family has in several shapes, such as the
    modulation of a last block.
    """
    several = _in_several_shapes(family)
    stated = {}
    for sample in samples:
        kinds = {_kind(match.row.native[0]) for match in matches_of(family, sample)}
        if sample.shape is None or kinds.isdisjoint(several):
            continue
        for match in (match for name in member_names(sample) for match in family.find(name)):
            row = match.row
            if _is_one(match) and row.shape and unify(row.shape, sample.shape) is not None:
                stated[match.native[0]] = sample.shape
    return tuple(sorted(stated.items()))


def _in_several_shapes(family: Family) -> set[str]:
    """The kinds of modules for which a table has rows of several shapes."""
    shapes: dict[str, set[object]] = {}
    for row in family.rows:
        if len(row.native) == 1:
            shapes.setdefault(_kind(row.native[0]), set()).add(row.shape)
    return {kind for kind, seen in shapes.items() if len(seen) > 1}


def _kind(native: str) -> str:
    return generalise(flatten(native.replace("{}", "0")))[0]


def _is_one(match: Match) -> bool:
    return len(match.native) == 1 and match.row.shape is not None and is_whole(match)


def _numbers(numbers: Mapping[str, int]) -> Numbers:
    return tuple(sorted(numbers.items()))


def _fitting_sizes(
    family: Family, samples: Sequence[ModulePattern], known: TargetModel
) -> tuple[str, Mapping[str, int]]:
    """The published variant that agrees with the file, and its sizes; the file's own where none
    does.
    """
    variant = agreeing_variant(family, samples, known)
    if variant is not None:
        return variant, family.sizes[variant]
    return "", _in_proportion(family, solved_sizes(family, samples))


def _in_proportion(family: Family, stated: Mapping[str, int]) -> Mapping[str, int]:
    """The sizes with those that the file does not tell, where all published variants have them in
    one proportion to one that it does: a feed-forward layer four times as wide as its block.
    """
    sizes = dict(stated)
    published = list(family.sizes.values())
    for symbol in {name for one in published for name in one} - stated.keys():
        for known, size in stated.items():
            both = [one for one in published if {symbol, known} <= one.keys()]
            sized = {Fraction(size * one[symbol], one[known]) for one in both}
            if len(sized) == 1 and (whole := sized.pop()).denominator == 1:
                sizes[symbol] = int(whole)
                break
    return sizes


def _published_blocks(family: Family, variant: str, guess: FamilyMatch) -> Mapping[str, int]:
    variants = dict.fromkeys((*family.sizes, *family.blocks))
    fitting = {
        name: blocks
        for name in variants
        if (blocks := blocks_of(family, name)) and not too_few(blocks, guess.depths)
    }
    same = [name for name, blocks in fitting.items() if same_blocks(blocks, guess.depths)]
    return next((fitting[name] for name in (variant, *same, *fitting) if name in fitting), {})


def _own_blocks(
    family: Family, samples: Iterable[ModulePattern], published: Mapping[str, int]
) -> dict[str, int]:
    """The highest block of each native name that the file trains, + 1, for names without a
    published number.
    """
    blocks: dict[str, int] = {}
    for sample in samples:
        rows = [match.row.native[0] for match in matches_of(family, sample)]
        if all(prefix in published for row in rows for prefix, _ in numbered(row, row)):
            continue
        for name in member_names(sample):
            for match in family.find(name):
                for prefix, number in numbered(match.row.native[0], match.native[0]):
                    if number.isdecimal() and len(number) < LONGEST_NUMBER:
                        blocks[prefix] = max(blocks.get(prefix, 0), int(number) + 1)
    return blocks


def _draw(family: Family, spec: ReferenceSpec) -> Network:
    """A network with every module the family's table has, in as many blocks as
    the drawing says.
    """
    sizes, blocks = dict(spec.sizes), dict(spec.blocks)
    weights: dict[str, Shape] = {}
    optional: set[str] = set()
    for row in in_one_form(family.rows):
        shape = (
            tuple([evaluate(size, sizes) or 0 for size in row.shape])
            if row.shape is not None
            else (0, 0)
        )
        for module in _modules(row, blocks) if len(row.native) == 1 else ():
            weight = _weight(family, spec, module)
            if 0 in weights.setdefault(weight, shape):
                weights[weight] = shape
            if row.optional:
                optional.add(weight)
    weights |= _stated_weights(family, spec, weights)
    return Network(
        spec.slot, spec.prefix, weights, family, is_reference=True, optional=frozenset(optional)
    )


def _stated_weights(
    family: Family, spec: ReferenceSpec, weights: Collection[str]
) -> dict[str, Shape]:
    """The shapes that the file tells of the drawn weights; what it has beyond the last block is in
    no model.
    """
    stated = {_weight(family, spec, module): shape for module, shape in spec.stated}
    return {weight: shape for weight, shape in stated.items() if weight in weights}


def _weight(family: Family, spec: ReferenceSpec, module: str) -> str:
    beside = module.partition(".")[0] in family.beside
    return f"{'' if beside else spec.prefix}{module}.weight"


def _modules(row: TableRow, blocks: Mapping[str, int]) -> Iterable[str]:
    """The native names of a row, in every block."""
    counts = [
        range(min(blocks.get(prefix, 0), MAX_BLOCKS))
        for prefix, _ in numbered(row.native[0], row.native[0])
    ]
    for numbers in islice(product(*counts), MAX_MODULES):
        yield fill(row.native[0], [str(number) for number in numbers])


def _encoder_specs(
    known: TargetModel,
    family: Family,
    modules: Sequence[str],
    groups: Iterable[Group],
    shapes: Shapes,
) -> list[ReferenceSpec]:
    """One drawing for each text encoder of the denoiser's family that the file trains."""
    names = Network(DENOISER, "", {}, family)
    target_model = TargetModel([names, *(Network(slot, "", {}, None) for slot in family.encoders)])
    patterns: dict[str, list[ModulePattern]] = {}
    wanted = set(modules)
    for group in groups:
        if group.module in wanted:
            slot, name = _encoder_of(target_model, group.module)
            shape = weight_shape({role: shapes[key] for role, key in group.keys.items()})
            patterns.setdefault(slot, []).append(
                ModulePattern((flatten(name).strip("_"),), shape, (name,))
            )
    specs = [_encoder_spec(known, slot, samples) for slot, samples in patterns.items() if slot]
    return [spec for spec in specs if spec]


def _encoder_of(target_model: TargetModel, module: str) -> tuple[str, str]:
    """(slot of the text encoder that a module's prefixes name, the module's name behind them); slot
    "" where they name none.
    """
    slot, name = "", module
    for prefix, rest in peeled(target_model, module):
        stated = target_model.networks_of(prefix)
        slot, name = slot or (stated[0] if stated else ""), rest
    return slot, name


def _encoder_spec(
    known: TargetModel, slot: str, samples: Sequence[ModulePattern]
) -> ReferenceSpec | None:
    encoders = [family for family in known.families.values() if family.kind != DENOISER]
    knowing = {
        family.name: sum(bool(family.find(sample.names[0])) for sample in samples)
        for family in encoders
    }
    best = max(encoders, key=lambda family: knowing[family.name], default=None)
    if best is None or not knowing[best.name]:
        return None
    _, sizes = _fitting_sizes(best, samples, known)
    return ReferenceSpec(
        best.name,
        slot,
        f"{slot}.transformer.",
        _numbers(sizes),
        _numbers(_own_blocks(best, samples, {})),
    )
