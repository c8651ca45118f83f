"""Second looks at a plan, for people: which model the file is for, who wrote it, what is near a
name that fits nothing.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

from ..key_maps.dialect import DENOISER, Dialect
from ..key_maps.table import flatten, generalise
from ..messages import joined, message
from ..planning.groups import group_keys
from ..planning.keys import parse_key
from ..planning.names import FIRST_SPELLING, OWN_NAMES
from ..planning.plan import Plan
from ..planning.resolve import LONGEST_MODULE, peeled
from ..planning.target_model import Target, TargetModel
from .lora_family import (
    WITHOUT_DIGITS,
    FamilyMatch,
    block_counts,
    identify,
    model_samples,
    stripped_names,
    variant_title,
)

Profile = Counter[tuple[str, tuple[str, ...], str]]  # prefix, whose names, role's spelling
LONGEST_NAME = (
    200  # characters of a name that is compared with others; real ones have less than half
)


def guess_family(plan: Plan) -> FamilyMatch:
    """The family a planned file was trained for, as `identify` tells it."""
    return identify(
        group_keys(plan.shapes, plan.metadata).groups, plan.shapes, plan.metadata, plan.target_model
    )


def model_title(target_model: TargetModel) -> str:
    """The wired model's family and variant; "" where no table knows it."""
    if target_model.family is None:
        return ""
    samples = model_samples(target_model.networks[DENOISER])
    return variant_title(target_model.family, samples, target_model, block_counts(samples))


UNTOLD = "cannot tell"  # in place of a trainer


class Writer(NamedTuple):
    """The tool that wrote a file (UNTOLD where nothing tells it, several joined by "or"),
    and what says so. `is_guess`: its names speak for it, which others may use as well.
    """

    title: str
    evidence: str = ""
    is_guess: bool = False


def name_trainer(plan: Plan, families: Sequence[str] = ()) -> Writer:
    """The dialect that explains the file best: metadata first, then prefixes, names and role
    spellings.

    `families`: those the file can be for, none where that cannot be told; a tool that trains none
    of them is left out.
    """
    known = list(plan.target_model.dialects.values())
    by_metadata = [
        match
        for match in zip(metadata_matches(known, plan.metadata), known, strict=True)
        if match[0]
    ]
    if by_metadata:
        mark, dialect = max(by_metadata, key=lambda match: (*_weight(match[0]), match[1].title))
        key = mark.partition("=")[0]
        return Writer(dialect.title, message("identify.by_metadata", key=key))
    profile = _profile(plan)
    seen = {spelling for _, _, spelling in profile} | plan.metadata.keys()
    known = [
        dialect
        for dialect in known
        if (not dialect.families or not families or set(families) & set(dialect.families))
        and (not dialect.needs or not seen.isdisjoint(dialect.needs))
    ]
    hinted = [one for one in known if not plan.metadata.keys().isdisjoint(one.hints)]
    users = Counter(role for one in plan.target_model.dialects.values() for role in one.roles)
    common = {role for role, count in users.items() if count > MAX_TRAINERS}
    return (
        _likeliest(hinted, profile, common) or _likeliest(known, profile, common) or Writer(UNTOLD)
    )


def _likeliest(known: Iterable[Dialect], profile: Profile, common: Set[str]) -> Writer | None:
    """The tools whose files look so; None where none is, or too many are. common: spellings of
    roles that too many use.
    """
    scores: dict[str, float] = {}
    for dialect in known:
        score = _likeness(dialect, profile, common)
        scores[dialect.title] = max(score, scores.get(dialect.title, 0.0))
    best = max(scores.values(), default=0.0)
    titles = [title for title, score in scores.items() if score >= best - SLACK]
    if best <= MIN_LIKENESS or len(titles) > MAX_TRAINERS:
        return None
    return Writer(_one_of(titles), message("identify.by_names"), is_guess=True)


def _one_of(titles: Sequence[str]) -> str:
    """`a, b or c`."""
    *others, last = titles
    return joined((joined(others), last), "or") if others else last


def _profile(plan: Plan) -> Profile:
    """How many tensors of a file have each (prefix, whose names, role spelling)."""
    remembered: dict[object, tuple[str, ...]] = {}
    profile: Profile = Counter()
    for adapter in plan.adapters:
        target = adapter.target
        key = (target.network, target.naming, target.module.translate(WITHOUT_DIGITS))
        if key not in remembered:
            remembered[key] = _namings(plan.target_model, target)
        profile.update(
            [(adapter.location.prefix, remembered[key], spelling) for spelling in adapter.spellings]
        )
    if profile:
        return profile
    parsed = [parse_key(key) for key in plan.shapes]
    return Counter(
        (_longest_prefix(plan.target_model, key.module), (), key.spelling)
        for key in parsed
        if key.role
    )


MIN_LIKENESS = 0.5  # what the prefix alone counts, which says little
SLACK = 0.02  # likeness that a few odd modules may cost
MAX_TRAINERS = 4  # more that fit equally well are no answer


def _longest_prefix(target_model: TargetModel, module: str) -> str:
    return "".join(prefix.text for prefix, _ in peeled(target_model, module[:LONGEST_MODULE]))


def metadata_matches(known: Iterable[Dialect], metadata: Mapping[str, str]) -> list[str]:
    """For each dialect the mark of it that the metadata bear: one with a value before one without;
    "" for none.
    """
    return [
        max((mark for mark in dialect.metadata if _bears(metadata, mark)), key=_weight, default="")
        for dialect in known
    ]


def _bears(metadata: Mapping[str, str], mark: str) -> bool:
    key, start = _read_mark(mark)
    value = metadata.get(key)
    return value is not None and value[:LONGEST_NAME].replace(" ", "").startswith(start)


@lru_cache(maxsize=1024)
def _read_mark(mark: str) -> tuple[str, str]:
    """(a key of the metadata, how its value begins)."""
    key, _, start = mark.partition("=")
    return key, start


def _weight(mark: str) -> tuple[bool, int]:
    return "=" in mark, len(mark) if "=" in mark else 0


def _namings(target_model: TargetModel, target: Target) -> tuple[str, ...]:
    """Whose names a module bears; of some modules native and diffusers' names are the same."""
    if target.naming > FIRST_SPELLING:
        return ("other",)
    if target.naming == FIRST_SPELLING:
        return ("diffusers",)
    family = target_model.networks[target.network].family
    rows = (
        [
            match.row
            for match in family.find(flatten(target.module))
            if match.alternative == OWN_NAMES
        ]
        if family
        else []
    )
    same = any(
        row.alternatives
        and [flatten(part.name) for part in row.alternatives[FIRST_SPELLING].parts]
        == [flatten(name) for name in row.native]
        for row in rows
    )
    return ("native", "diffusers") if same else ("native",)


def _likeness(dialect: Dialect, profile: Profile, common: Set[str]) -> float:
    total = sum(profile.values())
    if not total:
        return 0.0
    score = 0.0
    for (prefix, namings, spelling), count in profile.items():
        prefixes = (*dialect.writes, *dialect.encoders) or ("",)
        known_role = spelling in dialect.roles
        known_names = not {dialect.names, *dialect.also}.isdisjoint(namings)
        # That a name has no prefix says nothing by itself: many write none.
        its_own = known_role and (known_names or spelling not in common)
        right = prefix in prefixes and (bool(prefix) or its_own)
        score += count * (0.5 * right + 0.3 * known_role + 0.2 * known_names)
    return score / total


def nearest_name(target_model: TargetModel, key: str) -> str:
    """The model's module of the most similar name; "" where none is similar."""
    denoiser = target_model.networks.get(DENOISER)
    if denoiser is None:
        return ""
    name = (stripped_names(target_model, parse_key(key).module) or [""])[-1]
    if not name or len(name) > LONGEST_NAME:
        return ""
    template, numbers = generalise(name)
    templates: dict[str, dict[tuple[str, ...], str]] = {}
    for flat, modules in denoiser.flat.items():
        other, places = generalise(flat)
        templates.setdefault(other, {})[places] = modules[0]
    close = difflib.get_close_matches(template, templates, n=1, cutoff=0.75)
    if not close:
        return ""
    blocks = templates[close[0]]
    return blocks.get(numbers) or next(iter(blocks.values()))
