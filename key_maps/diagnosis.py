"""Second looks at a plan, for people: which model the file is for, who wrote it, what is near a name that fits nothing."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .dialect import DENOISER, Dialect
from .grammar import parse_key
from .groups import group_keys
from .identify import Guess, Sample, identify, peelings, variant_title
from .locate import LONGEST_MODULE, MOST_PEELS
from .plan import Plan
from .site import Site
from .table import flatten, generalise

LONGEST_NAME = 200  # characters of a name that is compared with others; real ones have less than half


def guess_family(plan: Plan) -> Guess:
    """The family a planned file was trained for, as `identify` tells it."""
    return identify(group_keys(plan.shapes).groups, plan.shapes, plan.metadata, plan.site)


def model_title(site: Site) -> str:
    """The wired model's family and variant; "" where no table knows it."""
    if site.family is None:
        return ""
    component = site.components[DENOISER]
    samples = [Sample((flatten(module),), component.weights[weight], (module,)) for module, weight in component.modules.items()]
    return variant_title(site.family, samples[:: max(1, len(samples) // 60)], site)


class Writer(NamedTuple):
    """The tool that wrote a file ("cannot tell" where nothing tells it, several joined by "or"), and what says so."""

    title: str
    evidence: str = ""


def name_trainer(plan: Plan, families: Sequence[str] = ()) -> Writer:
    """The dialect that explains the file best: metadata first, then wrappers, names and role spellings.

    `families`: those the file can be for; a tool that trains none of them is left out.
    """
    known = list(plan.site.dialects.values())
    by_metadata = [match for match in zip(metadata_matches(known, plan.metadata), known, strict=True) if match[0]]
    if by_metadata:
        mark, dialect = max(by_metadata, key=lambda match: (*_weight(match[0]), match[1].title))
        return Writer(dialect.title, f"metadata: {mark.partition('=')[0]}")
    known = [dialect for dialect in known if not (families and dialect.families) or set(families) & set(dialect.families)]
    profile = Counter(
        (adapter.location.wrapper, _naming(adapter.target.naming), spelling) for adapter in plan.adapters for spelling in adapter.spellings
    )
    if not profile:
        parsed = [parse_key(key) for key in plan.shapes]
        profile = Counter((_deepest_wrapper(plan.site, key.module), "", key.spelling) for key in parsed if key.role)
    scores = {dialect.title: _likeness(dialect, profile) for dialect in known}
    best = max(scores.values(), default=0.0)
    titles = [title for title, score in scores.items() if score == best]
    if best < LEAST_LIKENESS or len(titles) > MOST_TRAINERS:
        return Writer("cannot tell")
    return Writer(" or ".join(filter(None, (", ".join(titles[:-1]), titles[-1]))), "wrappers, module names and role spellings")


LEAST_LIKENESS = 0.5
MOST_TRAINERS = 4  # more that fit equally well are no answer


def _deepest_wrapper(site: Site, module: str) -> str:
    rest = module[:LONGEST_MODULE]
    for _ in range(MOST_PEELS):
        wrappers = site.wrappers.peelable(rest)
        if not wrappers:
            break
        rest = rest[len(wrappers[0].text) :]
    return module[: len(module[:LONGEST_MODULE]) - len(rest)]


def metadata_matches(known: Iterable[Dialect], metadata: Mapping[str, str]) -> list[str]:
    """For each dialect the mark of it that the metadata bear: one with a value before one without; "" for none."""
    return [max((mark for mark in dialect.metadata if _bears(metadata, mark)), key=_weight, default="") for dialect in known]


def _bears(metadata: Mapping[str, str], mark: str) -> bool:
    key, _, start = mark.partition("=")
    value = metadata.get(key)
    return value is not None and value[:LONGEST_NAME].replace(" ", "").startswith(start)


def _weight(mark: str) -> tuple[bool, int]:
    # A bare lora_adapter_metadata is diffusers' and many others'.
    return "=" in mark, len(mark) if "=" in mark else 0


def _naming(alternative: int) -> str:
    return "native" if alternative < 0 else "diffusers" if alternative == 0 else "other"


def _likeness(dialect: Dialect, profile: Counter) -> float:
    total = sum(profile.values())
    if not total:
        return 0.0
    score = 0.0
    for (wrapper, naming, spelling), count in profile.items():
        wrappers = (*dialect.writes, *dialect.encoders) or ("",)
        right = wrapper in wrappers
        score += count * (0.5 * right + 0.3 * (spelling in dialect.roles) + 0.2 * (naming in (dialect.names, *dialect.also)))
    return score / total


def nearest_name(site: Site, key: str) -> str:
    """`; nearest: x` where the model has a module of a similar name, else nothing."""
    denoiser = site.components.get("denoiser")
    if denoiser is None:
        return ""
    name = (peelings(site, parse_key(key).module) or [""])[-1]
    if not name or len(name) > LONGEST_NAME:
        return ""
    template = generalise(name)[0]
    templates = {generalise(flat)[0]: modules[0] for flat, modules in denoiser.flat.items()}
    close = difflib.get_close_matches(template, templates, n=1, cutoff=0.75)
    return f"; nearest: {templates[close[0]]}" if close else ""
