"""Tells which model a LoRA was trained for, from names, shapes and metadata alone; what they leave
open is said, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..key_maps.dialect import DENOISER
from ..key_maps.table import (
    ABSENT,
    Family,
    Match,
    Size,
    evaluate,
    families,
    flatten,
    generalise,
    numbered,
    unify,
)
from ..messages import first_of, joined, message
from ..planning.assign import Misfit, assign
from ..planning.groups import Group
from ..planning.resolve import LONGEST_MODULE, MAX_PEELS, alias_names
from ..planning.target_model import Network, TargetModel
from .variants import (
    NO_MEANING,
    BlockCount,
    RowFit,
    agreeing,
    agrees,
    blocks_of,
    contradicted,
    faults,
    possible,
    published,
    stated,
    titled,
    told_variant,
)

Shape = tuple[int, ...]
Shapes = Mapping[str, "Shape | None"]
# What speaks against a family: names read otherwise, then (too few blocks, samples of other sizes,
# another number of blocks) of the variant with the fewest of them.
Rank = tuple[int, tuple[int, ...]]
NO_RANK: Rank = (0, ())  # of no family

MAX_SAMPLES = 400
MIN_PATTERNS = 3  # of a file in sizes that no published model has, for which a family is named
MAX_RIVALS = 3  # that are named beside the likeliest family
MAX_REMEMBERED = 20_000  # samples whose meanings are remembered
MAX_MEMBERS = 4  # of one pattern, looked at where families fit equally well
MIN_FITTING = 0.75  # share of a file's module patterns a family must know
MIN_TRAINED = (
    0.75  # share of the blocks below the highest that must be trained for their number to tell
)
LONGEST_NUMBER = 6  # digits of what can no longer be a block's number
CLOSE = 0.7  # share of the best score that makes a family worth naming beside the best
OWN_FAMILY = "locksmith.family"  # what this pack's own files tell: the table's name
# Metadata that names the base model, the plainer first; the last is the module of its network.
FAMILY_METADATA = (
    OWN_FAMILY,
    "modelspec.architecture",
    "ss_base_model_version",
    "ss_network_module",
)
LONGEST_VALUE = 100
WITHOUT_DIGITS = str.maketrans("", "", "0123456789")
NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")


class FlatShape(tuple[int, ...]):
    """The shape (outputs, product of all inner sizes) of a weight, where a file tells no more."""


class ModulePattern(NamedTuple):
    """Modules of one pattern and shape: what one is called after each possible peel, and its
    weight's shape where known.

    `alias_names`: what it is called if its names stand for others (`planning.resolve.alias_names`),
    which counts less than `names`.
    """

    names: tuple[str, ...]
    shape: Shape | None
    members: tuple[str, ...]
    skip: int = 0  # numbers in the prefix, which count no blocks
    alias_names: tuple[str, ...] = ()


class FamilyMatch(NamedTuple):
    """A family read off a file; `name` is "" where it cannot be told, then `ties` are the families
    that fit equally well, the likeliest first.

    is_likely: most files that fit all of `ties` are for the first. absent: the tables of models
    that ComfyUI does not have and that fit as well. is_absent: they alone fit, ComfyUI itself has
    no such model; then it has a title and no name.
    """

    name: str
    title: str
    ties: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    near_misses: tuple[
        tuple[str, float], ...
    ] = ()  # (title, share of the file's patterns it knows) of others that come close
    samples: tuple[ModulePattern, ...] = ()
    depths: Mapping[str, BlockCount] = {}
    encoder_modules: tuple[str, ...] = ()  # modules whose prefixes name a text encoder
    is_likely: bool = False
    absent: tuple[str, ...] = ()
    is_absent: bool = False

    @property
    def could_be(self) -> tuple[str, ...]:
        """All families that fit equally well, the likeliest first; () where one is told."""
        several = bool(self.ties) or len(self.absent) > 1
        return (*self.ties, *self.absent) if several else ()


def identify(
    groups: Iterable[Group], shapes: Shapes, metadata: Mapping[str, str], target_model: TargetModel
) -> FamilyMatch:
    """The family whose table fits most of the file's denoiser modules, names and shapes; the wired
    model breaks ties.

    `target_model` gives the families and prefixes; those of models that ComfyUI does not have are
    held against them. Metadata that names the base model decides between families that fit equally
    well, and that one has more blocks than is published; nothing else: files are often trained from
    merges whose metadata name something else.
    """
    samples, encoder_modules = denoiser_samples(groups, shapes, target_model)
    if encoder_modules and not samples:
        return _of_encoders(encoder_modules, metadata, target_model)
    here = _candidates(samples, metadata, target_model)
    absent = _candidates(samples, metadata, _absent_models(), least=1.0)
    here, absent = _matched(here, absent, metadata, target_model)
    return _told(here, absent, metadata, target_model)._replace(encoder_modules=encoder_modules)


@lru_cache(maxsize=1)
def _absent_models() -> TargetModel:
    """A target model whose families are those that ComfyUI does not have."""
    target_model = TargetModel()
    target_model.families = families(ABSENT)
    return target_model


class _Candidates(NamedTuple):
    """The families of one kind, those that ComfyUI has or those that it lacks, that fit most of the
    samples and against which least speaks.

    best: how many samples they know. rank: how much speaks against them (`_rank`). unpublished:
    they fit in no published size.
    """

    samples: tuple[ModulePattern, ...]
    scores: Mapping[str, int]
    target_model: TargetModel
    closest: tuple[Family, ...] = ()
    depths: Mapping[str, BlockCount] = {}
    rank: Rank = NO_RANK
    unpublished: bool = False

    @property
    def best(self) -> int:
        return max(self.scores.values(), default=0)

    @property
    def fitting(self) -> bool:
        """Whether a family knows enough of the file to be named at all."""
        return bool(self.best) and self.best >= MIN_FITTING * len(self.samples)

    @property
    def whole(self) -> bool:
        """Whether they know all samples."""
        return bool(self.closest) and self.best == len(self.samples)

    @property
    def exact(self) -> bool:
        """Whether they know all samples in a published size."""
        return self.whole and not self.unpublished

    @property
    def counted(self) -> bool:
        """Whether the file trains as many blocks as one of them has."""
        return self.exact and not self.rank[1][-1]


def _candidates(
    samples: tuple[ModulePattern, ...],
    metadata: Mapping[str, str],
    target_model: TargetModel,
    least: float = MIN_FITTING,
) -> _Candidates:
    """The families of a target model that know at least this share of the samples."""
    meanings = [_meanings(target_model, sample) for sample in samples]
    found = _Candidates(samples, _scores(meanings, target_model), target_model)
    if not found.best or found.best < least * len(samples):
        return found
    found = found._replace(depths=block_counts(samples))
    closest, rank = _closest(found, meanings, metadata)
    unpublished = _unpublished(found.scores, samples, meanings, closest, target_model)
    return found._replace(
        closest=tuple(unpublished or closest), rank=rank, unpublished=bool(unpublished)
    )


def _matched(
    here: _Candidates, absent: _Candidates, metadata: Mapping[str, str], target_model: TargetModel
) -> tuple[_Candidates, _Candidates]:
    """What is left of the models that ComfyUI has and of those that it lacks, once they are held
    against each other: metadata first, then how much speaks against each, then the connected
    model.
    """
    neither = here._replace(closest=()), absent._replace(closest=())
    only_here, only_absent = (here, neither[1]), (neither[0], absent)
    if not absent.whole or here.exact > absent.exact:
        return only_here
    chosen, _ = _by_metadata((*(here.closest if here.whole else ()), *absent.closest), metadata)
    if chosen is not None:
        return only_here if chosen in here.closest else only_absent
    is_enough = absent.counted or not _few_names(here.samples)
    if not here.whole or absent.exact > here.exact:
        return only_absent if is_enough else only_here
    if here.rank < absent.rank:
        return only_here
    if here.rank == absent.rank:  # as where both are of no published size
        return only_here if target_model.family in here.closest else (here, absent)
    return only_absent if is_enough else (here, absent)


def _told(
    here: _Candidates, absent: _Candidates, metadata: Mapping[str, str], target_model: TargetModel
) -> FamilyMatch:
    """What is said of the families that are left."""
    closest = (*here.closest, *absent.closest)
    found = here if here.closest or not closest else absent
    fit = FamilyMatch("", "", samples=found.samples, depths=found.depths)
    winners = [family.name for family in closest]
    fit = fit._replace(near_misses=_near_misses(found, winners))
    if not found.fitting:
        return fit
    known = {"known": found.best, "count": len(found.samples)}
    if not closest:
        return fit._replace(evidence=(message("identify.names_in_table", **known),))
    chosen, reason = _decide(closest, metadata, target_model)
    sizes = message("identify.sizes_unpublished") if found.unpublished else ""
    evidence = (message("identify.patterns_in_table", **known), sizes, reason)
    fit = fit._replace(evidence=tuple(filter(None, evidence)))
    return _named(fit, [chosen] if chosen else closest, here, absent)


def _named(
    fit: FamilyMatch, left: Sequence[Family], here: _Candidates, absent: _Candidates
) -> FamilyMatch:
    """The match with what the families that are left are called."""
    title = _title(left, here if left[0] in here.closest else absent)
    ties, others = (
        tuple(one.name for one in each.closest if one in left) for each in (here, absent)
    )
    if not ties:
        evidence = (*fit.evidence, message("identify.not_in_host", model=title))
        return fit._replace(title=title, evidence=evidence, absent=others, is_absent=True)
    if len(left) == 1:
        return fit._replace(name=left[0].name, title=title)
    return fit._replace(title=title, ties=ties, absent=others, is_likely=_is_likely(left))


def _title(left: Sequence[Family], found: _Candidates) -> str:
    """What the families that are left are called."""
    if len(left) > 1:
        return _title_of_several(left, found.unpublished)
    if found.unpublished:
        return _unpublished_title(left[0].title)
    return variant_title(left[0], found.samples, found.target_model, found.depths)


def _unpublished_title(title: str) -> str:
    return message("identify.unpublished", title=title)


def _is_likely(closest: Sequence[Family]) -> bool:
    """Whether the first of several families is the one that most files are for."""
    return closest[0].common and not any(family.common for family in closest[1:2])


def _title_of_several(closest: Sequence[Family], unpublished: bool) -> str:
    """Families that fit equally well: the common one and in brackets the others, or all of them."""
    first, *others = (family.title for family in closest)
    likely = _is_likely(closest)
    title = first if likely else joined((first, *others), "or")
    if unpublished:
        title = _unpublished_title(title)
    if not likely:
        return title
    return message("identify.also_fits", title=title, others=first_of(others, MAX_RIVALS))


def _of_encoders(
    encoder_modules: tuple[str, ...], metadata: Mapping[str, str], target_model: TargetModel
) -> FamilyMatch:
    """The family of a file that trains text encoders only, which models share: the connected
    model's, or as the metadata say.
    """
    denoisers = [family for family in target_model.families.values() if family.kind == DENOISER]
    chosen, reason = (
        (target_model.family, message("identify.connected_model"))
        if target_model.family is not None
        else _by_metadata(denoisers, metadata)
    )
    if chosen is None:
        return FamilyMatch("", "", encoder_modules=encoder_modules)
    return FamilyMatch(
        chosen.name,
        chosen.title,
        (),
        (message("identify.only_encoders", evidence=reason),),
        encoder_modules=encoder_modules,
    )


def _closest(
    found: _Candidates, meanings: Sequence[Mapping[str, RowFit]], metadata: Mapping[str, str]
) -> tuple[list[Family], Rank]:
    """(the families with the best score against which least speaks, the common ones first, how much
    speaks against them); none where they have other sizes or fewer blocks.
    """
    target_model, samples = found.target_model, found.samples
    ranks, fewest = _ranks(found, meanings, metadata)
    first = [target_model.families[name] for name in ranks]
    closest = _lowest(first, lambda family: ranks[family.name])
    if not closest or ranks[closest[0].name][1][1] > fewest:
        return [], NO_RANK
    if len(closest) > 1:
        # Numbers may mean blocks of another kind, as in a UNet.
        members = [names for sample in samples for names in _all_names(sample)]
        closest = _lowest(
            closest,
            lambda family: sum(_lacks(target_model, family, names) for names in members),
        )
    closest.sort(key=lambda family: not family.common)
    return closest, ranks[closest[0].name]


def _ranks(
    found: _Candidates, meanings: Sequence[Mapping[str, RowFit]], metadata: Mapping[str, str]
) -> tuple[dict[str, Rank], int]:
    """(how much speaks against each family with the best score that can have the file, the fewest
    samples of other sizes that one has which can not, its blocks being too few).
    """
    target_model, ranks, fewest = found.target_model, {}, len(meanings)
    known = target_model.families.values()
    first = [family for family in known if found.scores.get(family.name) == found.best]
    shaped = [
        fits
        for sample, fits in zip(found.samples, meanings, strict=True)
        if sample.shape is not None
    ]
    claimed, _ = _by_metadata(first, metadata)
    for family in first:
        fits, sized = _fits_of(family, meanings), _fits_of(family, shaped)
        is_other = family is target_model.family and not _is_published(target_model)
        if possible(family, sized, found.depths):
            ranks[family.name] = _rank(family, found.depths, fits, sized)
        elif is_other or (family is claimed and agrees(family, sized)):
            ranks[family.name] = _rank(family, {}, fits, sized)
        elif agrees(family, sized):
            fewest = min(fewest, _rank(family, {}, fits, sized)[1][1])
    return ranks, fewest


def _is_published(target_model: TargetModel) -> bool:
    """Whether the connected model has a size and a number of blocks that its family's table states,
    so that a file of another size is not for it.
    """
    family = target_model.family
    if family is None:
        return False
    known = _published.get(target_model)
    if known is None:
        samples = model_samples(target_model.networks[DENOISER])
        shaped = _of_shapes(family, samples, target_model)
        known = bool(possible(family, shaped, block_counts(samples)))
        _published[target_model] = known
    return known


_published: WeakKeyDictionary[TargetModel, bool] = WeakKeyDictionary()


def model_samples(network: Network) -> list[ModulePattern]:
    """One sample for each pattern and shape of a network's modules, biases left out."""
    alike: dict[tuple[str, Shape], list[str]] = {}
    for module, weight in network.modules.items():
        if not weight.endswith(".bias"):
            shape = network.weights[weight]
            alike.setdefault((generalise(flatten(module))[0], shape), []).append(module)
    return [
        ModulePattern((flatten(members[0]),), shape if all(shape) else None, tuple(members))
        for (_, shape), members in alike.items()
    ]


def _unpublished(
    scores: Mapping[str, int],
    samples: Sequence[ModulePattern],
    meanings: Sequence[Mapping[str, RowFit]],
    closest: Sequence[Family],
    target_model: TargetModel,
) -> list[Family]:
    """The families that know all names of the file, in sizes that no published variant has but that
    agree with each other: pruned, distilled, tiny models. The common ones first; none where a
    published model has all of it.
    """
    if target_model.family in closest:
        return []
    members = [[*_all_names(sample)] for sample in samples]

    def left_over(family: Family) -> int:
        """Modules that it lacks; of those whose names are read otherwise nothing is known."""
        return sum(
            _lacks(target_model, family, names)
            for fit, each in zip(_fits_of(family, meanings), members, strict=True)
            for names in (each if fit.plain else ())
        )

    if not all(map(left_over, closest)) or _few_names(samples):
        return []
    able = [
        family
        for family in target_model.families.values()
        if scores.get(family.name) == len(samples)
        and _has_one_size(family, _fits_of(family, meanings))
    ]
    # Where all lack some modules, the file has more blocks than any published model. Of one that
    # has the widths it is as likely a deeper size as it is another width of one that is as deep.
    able = [
        family
        for family in able
        if not left_over(family) or _has_published_widths(family, samples, target_model)
    ] or able
    able = _lowest(able, lambda family: sum(not fit.plain for fit in _fits_of(family, meanings)))
    return sorted(able, key=lambda family: not family.common)


def _has_published_widths(
    family: Family, samples: Iterable[ModulePattern], target_model: TargetModel
) -> bool:
    """Whether no shape speaks against one of the family's published sizes."""
    fits = _of_shapes(family, samples, target_model)
    return any(not contradicted(sizes, fits) for sizes in family.sizes.values())


def meanings_of(
    family: Family, samples: Iterable[ModulePattern], target_model: TargetModel
) -> list[RowFit]:
    """What each sample can be in the family."""
    return _fits_of(family, (_meanings(target_model, sample) for sample in samples))


def short_title(target_model: TargetModel, guess: FamilyMatch) -> str:
    """What a file is for without what its names fit besides, where one is the likely one."""
    return target_model.families[guess.ties[0]].title if guess.is_likely else guess.title


def _fits_of(family: Family, meanings: Iterable[Mapping[str, RowFit]]) -> list[RowFit]:
    """What each sample can be in the family."""
    return [fits.get(family.name, NO_MEANING) for fits in meanings]


def _lacks(target_model: TargetModel, family: Family, names: Iterable[str]) -> bool:
    """Whether the family has no module of any of the names that one may have."""
    return not any(_has(target_model, family, name) for name in names)


def _few_names(samples: Sequence[ModulePattern]) -> bool:
    """Whether the modules' names, block numbers aside, are too few to tell a model by."""
    names = {NUMBER.sub("", member) for sample in samples for member in sample.members}
    return len(names) < MIN_PATTERNS


def _has_one_size(family: Family, meanings: Sequence[RowFit]) -> bool:
    """Whether each symbol whose sizes the family's table states has one size in the whole file."""
    symbols = stated(family)
    sizes: dict[str, int] = {}
    for solutions in sorted((meaning.sizes for meaning in meanings), key=len):
        told = [{name: solved[name] for name in symbols & solved.keys()} for solved in solutions]
        fitting = [
            one for one in told if all(sizes.get(name, size) == size for name, size in one.items())
        ]
        if told and not fitting:
            return False
        if len(fitting) == 1:
            sizes |= fitting[0]
    return True


def agreeing_variant(
    family: Family, samples: Iterable[ModulePattern], target_model: TargetModel
) -> str | None:
    """The published variant whose sizes the file's modules have, most of them; None where its
    sizes are others.
    """
    return next(iter(agreeing(family, _of_shapes(family, samples, target_model))), None)


def _of_shapes(
    family: Family, samples: Iterable[ModulePattern], target_model: TargetModel
) -> list[RowFit]:
    """What each sample whose shape is known can be in the family."""
    shaped = [sample for sample in samples if sample.shape is not None]
    return meanings_of(family, shaped, target_model)


def _lowest(known: Sequence[Family], rank: Callable[[Family], Any]) -> list[Family]:
    ranks = [rank(family) for family in known]
    return [family for family, own in zip(known, ranks, strict=True) if own == min(ranks)]


def _all_names(sample: ModulePattern) -> Iterable[tuple[str, ...]]:
    """What each of a few of a sample's modules is called after each possible peel."""
    return zip(*(member_names(sample, MAX_MEMBERS, name) for name in sample.names), strict=False)


def member_names(sample: ModulePattern, most: int | None = None, peeled: str = "") -> list[str]:
    """The flattened names of a sample's modules, or of about `most` of them spread over all; peeled
    down to `peeled`, else all the way.
    """
    whole, name = flatten(sample.members[0]).strip("_"), peeled or sample.names[-1]
    if not whole.endswith(name):
        return [name]
    cut, last = len(whole) - len(name), len(sample.members) - 1
    chosen = (
        sample.members
        if most is None or last < most
        else [sample.members[last * place // (most - 1)] for place in range(most)]
    )
    return [flatten(member).strip("_")[cut:] for member in chosen]


def _has(target_model: TargetModel, family: Family, name: str) -> bool:
    """Whether the family has a module of this name, in a block that a published variant has."""
    known: bool = _remembered(
        target_model,
        (family.name, name),
        lambda: any(_within(family, match) for match in family.find(name)),
    )
    return known


def _within(family: Family, match: Match) -> bool:
    """Whether a published variant has the block that a match names."""
    counted = [
        (prefix, int(number))
        for prefix, number in numbered(match.row.native[0], match.native[0])
        if len(number) < LONGEST_NUMBER
    ]
    return any(
        all(
            number < blocks_of(family, variant).get(prefix, number + 1)
            for prefix, number in counted
        )
        for variant in published(family)
    )


def _decide(
    closest: Sequence[Family], metadata: Mapping[str, str], target_model: TargetModel
) -> tuple[Family | None, str]:
    """The one family that is left, and what decided where several were; None where nothing does."""
    if len(closest) == 1:
        return closest[0], ""
    if target_model.family is not None and target_model.family in closest:
        return target_model.family, message("identify.model_decides")
    chosen, reason = _by_metadata(closest, metadata)
    if chosen is not None:
        return chosen, message("identify.metadata_decide", evidence=reason)
    return None, "" if _is_likely(closest) else message("identify.not_told_apart")


def _by_metadata(
    families: Sequence[Family], metadata: Mapping[str, str]
) -> tuple[Family | None, str]:
    """The one family that the metadata name, and by which key and value; None where they name none
    or several.
    """
    for key in FAMILY_METADATA:
        value = metadata.get(key)
        if isinstance(value, str) and (named := family_named(families, key, value)):
            return named, f"{key} = {value[:LONGEST_VALUE]}"
    return None, ""


def family_named(families: Sequence[Family], key: str, value: str) -> Family | None:
    """The one of these families that the value of a key of the metadata names; None where it names
    none or several.
    """
    lengths = [
        int(family.name == value) if key == OWN_FAMILY else _longest_mark(family, value)
        for family in families
    ]
    longest = max(lengths, default=0)
    if not longest or lengths.count(longest) > 1:
        return None
    return families[lengths.index(longest)]


def _longest_mark(family: Family, value: str) -> int:
    """Length of the longest of the family's metadata marks that the value begins with."""
    plain = "".join(filter(str.isalnum, value[:LONGEST_VALUE].lower()))
    return max((len(mark) for mark in family.metadata if plain.startswith(mark)), default=0)


def _near_misses(found: _Candidates, winners: Collection[str]) -> tuple[tuple[str, float], ...]:
    """(title, share of the samples it knows) of families that come close to the best."""
    close = [
        (found.target_model.families[name].title, score / len(found.samples))
        for name, score in found.scores.items()
        if score and name not in winners and score >= CLOSE * found.best
    ]
    return tuple(sorted(close, key=lambda runner: -runner[1])[:3])


def _rank(
    family: Family,
    depths: Mapping[str, BlockCount],
    meanings: Sequence[RowFit],
    shaped: Sequence[RowFit],
) -> Rank:
    """How much speaks against a family; the lower the better: names read otherwise, then the
    variant with the fewest faults.
    """
    read = sum(meaning.fits and not meaning.plain for meaning in meanings)
    return read, min(faults(family, variant, depths, shaped) for variant in published(family))


def _scores(told: Iterable[Mapping[str, RowFit]], target_model: TargetModel) -> dict[str, int]:
    """How many samples each denoiser family knows, by name."""
    scores: dict[str, int] = {}
    for meanings in told:
        for name, meaning in meanings.items():
            if target_model.families[name].kind == DENOISER:
                scores[name] = scores.get(name, 0) + meaning.fits
    return scores


def _meanings(target_model: TargetModel, sample: ModulePattern) -> Mapping[str, RowFit]:
    """Family -> what a sample can be in it; remembered, because the files of one
    trainer are alike.
    """
    key = (sample.names, sample.alias_names, type(sample.shape), sample.shape)
    known: Mapping[str, RowFit] = _remembered(
        target_model, key, lambda: _new_meanings(target_model, sample)
    )
    return known


def _remembered(target_model: TargetModel, key: object, make: Callable[[], Any]) -> Any:
    value = target_model.memory.get(key)
    if value is None:
        if len(target_model.memory) >= MAX_REMEMBERED:
            target_model.memory.clear()
        value = target_model.memory[key] = make()
    return value


def _new_meanings(target_model: TargetModel, sample: ModulePattern) -> Mapping[str, RowFit]:
    names = (*sample.names, *sample.alias_names)
    possible = {
        name for flat in names for name in target_model.knowing.get(generalise(flat)[0], ())
    }
    return {
        name: _meaning(family, sample)
        for name, family in target_model.families.items()
        if name in possible
    }


def _meaning(family: Family, sample: ModulePattern) -> RowFit:
    plain = _meaning_of(family, sample.names, sample.shape)
    if plain.fits or not sample.alias_names:
        return plain
    read = _meaning_of(family, sample.alias_names, sample.shape)
    return read._replace(plain=False) if read.fits else plain


def _meaning_of(family: Family, names: Iterable[str], shape: Shape | None) -> RowFit:
    matches = [match for name in names for match in family.find(name)]
    sizes = [_solved(match, shape) for match in matches] if shape is not None else []
    return RowFit(
        any(_fits(match, shape) for match in matches),
        tuple(solved for solved in sizes if solved is not None),
    )


def variant_title(
    family: Family,
    samples: Iterable[ModulePattern],
    target_model: TargetModel,
    depths: Mapping[str, BlockCount],
) -> str:
    """The family's title with the one published variant that fits."""
    return titled(family, told_variant(family, _of_shapes(family, samples, target_model), depths))


def denoiser_samples(
    groups: Iterable[Group], shapes: Shapes, target_model: TargetModel
) -> tuple[tuple[ModulePattern, ...], tuple[str, ...]]:
    """(one sample for each pattern and shape of denoiser modules, the modules whose prefixes name a
    text encoder).
    """
    samples, encoder_modules = [], []
    for shape, members in list(_alike(groups, shapes))[:MAX_SAMPLES]:
        names = tuple(stripped_names(target_model, members[0]))
        if names:
            skip = len(generalise(flatten(members[0]))[1]) - len(generalise(names[-1])[1])
            samples.append(
                ModulePattern(
                    names,
                    shape,
                    tuple(members),
                    max(skip, 0),
                    _read_otherwise(target_model, members[0]),
                )
            )
        elif len(members[0]) <= LONGEST_MODULE:
            encoder_modules += members
    return tuple(samples), tuple(encoder_modules)


def _alike(groups: Iterable[Group], shapes: Shapes) -> Iterable[tuple[Shape | None, list[str]]]:
    """(the shape of the weight where known, the modules) of groups that are called and made alike.
    Ranks, of which a resized file has one for each module, tell none apart.
    """
    alike: dict[tuple[object, ...], tuple[Shape | None, list[str]]] = {}
    known: dict[tuple[object, ...], Shape | None] = {}
    for group in groups:
        roles = tuple(group.keys)
        tensors = tuple([shapes[key] for key in group.keys.values()])
        try:
            shape = known[roles, tensors]
        except KeyError:
            shape = weight_shape(dict(zip(roles, tensors, strict=True)))
            known[roles, tensors] = shape
        told = tensors if shape is None else (type(shape), shape)
        key = (group.module.translate(WITHOUT_DIGITS), roles, told)
        alike.setdefault(key, (shape, []))[1].append(group.module)
    return alike.values()


def block_counts(samples: Iterable[ModulePattern]) -> dict[str, BlockCount]:
    """The blocks the file trains, by the name before their first number."""
    trained: dict[str, set[int]] = {}
    for sample in samples:
        words = sample.names[-1].split("_")
        place = next((i for i, word in enumerate(words) if word.isdecimal()), None)
        if place is None:
            continue
        numbers = trained.setdefault("_".join(words[:place]), set())
        for member in sample.members:
            texts = NUMBER.findall(member)[sample.skip :]
            if texts and len(texts[0]) < LONGEST_NUMBER:
                numbers.add(int(texts[0]))
    return {
        blocks: BlockCount(max(numbers) + 1, len(numbers) > max(numbers) * MIN_TRAINED)
        for blocks, numbers in trained.items()
        if numbers
    }


def stripped_names(target_model: TargetModel, module: str) -> list[str]:
    """The flattened module name after each number of prefixes, the shortest last; none where a
    prefix names a text encoder.
    """
    return _peeled(target_model, [module])


def _read_otherwise(target_model: TargetModel, module: str) -> tuple[str, ...]:
    """What a module may be called if its name is read otherwise, after each number of prefixes."""
    others = alias_names(target_model, module) if len(module) <= LONGEST_MODULE else []
    return tuple(_peeled(target_model, others)) if others else ()


def _peeled(target_model: TargetModel, queue: list[str]) -> list[str]:
    names = []
    for name in queue if len(queue[0]) <= LONGEST_MODULE else ():
        names.append(flatten(name).strip("_"))
        for prefix in target_model.prefixes.peelable(name):
            if prefix.network not in (None, DENOISER):
                return []
            rest = name[len(prefix.text) :]
            if len(queue) < MAX_PEELS and rest not in queue:
                queue.append(rest)
    return sorted(names, key=len, reverse=True)


def weight_shape(roles: Shapes) -> Shape | None:
    """The shape of the weight that adapters with these tensors were trained on,
    where they tell it.
    """
    stated = {role: shape for role, shape in roles.items() if shape is not None}
    if len(stated) < len(roles):
        return None
    try:
        for assignment in assign(roles)[0]:
            module = assignment.kind.shape({role: stated[role] for role in assignment.roles})
            if assignment.kind.never_beside:
                continue  # it may be half of another
            if module.out is not None and module.inner:
                shape = (module.out, *module.inner)
                return FlatShape(shape) if module.flat else shape
    except (Misfit, IndexError, TypeError):
        pass
    return None


def _fits(match: Match, shape: Shape | None) -> bool:
    row = match.row
    if shape is None or row.shape is None or not is_whole(match) or len(row.native) > 1:
        return True
    if solve(row.shape, shape) is not None:
        return True
    return not isinstance(shape, FlatShape) and unify(row.shape, (*shape, 1, 1)) is not None


def solve(row: Sequence[Size], shape: Shape) -> Mapping[str, int] | None:
    """The sizes of the symbols in a row's shape if it is `shape`; None where it cannot be."""
    if not isinstance(shape, FlatShape) or len(row) < 3:
        return unify(tuple(row), shape)
    kernel = [known for size in row[2:] if (known := evaluate(size, {})) is not None]
    if len(kernel) < len(row) - 2:
        return {}
    inner, rest = divmod(shape[1], prod(kernel))
    return None if rest else unify(tuple(row[:2]), (shape[0], inner))


def is_whole(match: Match) -> bool:
    """Whether a name stands for all rows of its module, and not for a part of a fused one."""
    return match.alternative < 0 or len(match.row.alternatives[match.alternative].parts) == 1


def _solved(match: Match, shape: Shape) -> Mapping[str, int] | None:
    """The sizes of the symbols in a match's row if a module of it has this shape; None where it
    cannot have it.
    """
    row = match.row
    if row.shape is None or len(row.native) > 1:
        return {}
    return solve(row.shape, shape) if is_whole(match) else unify(row.shape[1:], shape[1:])


def solved_sizes(family: Family, samples: Iterable[ModulePattern]) -> dict[str, int]:
    """The sizes of a family's symbols as the file's own modules tell them; those that mean several
    sizes are left out.
    """
    sizes: dict[str, set[int]] = {}
    for sample in samples:
        shapes = [
            match.row.shape
            for match in matches_of(family, sample)
            if match.row.shape and len(match.row.native) == 1 and is_whole(match)
        ]
        solved = (
            [solve(shape, sample.shape) for shape in shapes] if sample.shape is not None else []
        )
        told = [known for known in solved if known is not None]
        if told and all(known == told[0] for known in told):
            for symbol, number in told[0].items():
                sizes.setdefault(symbol, set()).add(number)
    return {symbol: next(iter(numbers)) for symbol, numbers in sizes.items() if len(numbers) == 1}


def matches_of(family: Family, sample: ModulePattern) -> list[Match]:
    """Every row of a family that a sample's name can mean; of its other readings where it has none
    as it is spelled.
    """
    plain = [match for name in sample.names for match in family.find(name)]
    return plain or [match for name in sample.alias_names for match in family.find(name)]
