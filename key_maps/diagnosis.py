"""Second looks at a plan, for people: which model the file is for, who wrote it, what is near a name that fits nothing."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from .adapters import Misfit, assign
from .dialect import Dialect
from .grammar import parse_key
from .plan import PLACED, Plan
from .site import Site
from .table import Family, families, flatten, generalise, unify


class Guess(NamedTuple):
    """A family read off a file: its name ("" where it cannot be told), title, and runners-up that fit as well."""

    name: str
    title: str
    rivals: tuple[str, ...]
    model_title: str = ""


def guess_family(plan: Plan) -> Guess:
    """The family whose table fits most of the file's denoiser modules, names and shapes; ties are told, not broken."""
    modules = _module_shapes(plan)
    if not modules:
        return Guess("", "", ())
    scores = {}
    for family in families().values():
        if family.kind == "denoiser":
            fitting = sum(_fits(family, names, shape) for names, shape in modules)
            if fitting:
                scores[family.name] = fitting
    if not scores:
        return Guess("", "", ())
    best = max(scores.values())
    if best < 0.5 * len(modules):
        return Guess("", "", ())
    first = [name for name, score in scores.items() if score == best]
    first.sort(key=lambda name: _size_distance(families()[name], modules))
    own = plan.site.family
    if own and own.name in first:
        first = [own.name]
    tied = [name for name in first[1:] if _size_distance(families()[name], modules) == _size_distance(families()[first[0]], modules)]
    if tied:
        return Guess("", " or ".join(families()[name].title for name in [first[0], *tied]), tuple([first[0], *tied]))
    return Guess(first[0], families()[first[0]].title, ())


def _module_shapes(plan: Plan) -> list[tuple[tuple[str, ...], tuple[int, ...] | None]]:
    """One sample for each pattern of denoiser modules: (names after each possible peel, weight shape where known)."""
    samples: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[int, ...] | None]] = {}
    groups: dict[str, dict[str, tuple[int, ...] | None]] = {}
    for key, shape in plan.shapes.items():
        parsed = parse_key(key)
        if parsed.role:
            groups.setdefault(parsed.module, {})[parsed.role] = shape
    for module, roles in groups.items():
        names = tuple(_peelings(plan.site, module))
        if not names:
            continue
        pattern = tuple(generalise(flatten(name))[0] for name in names[-1:]) + (_weight_shape(roles),)
        if pattern not in samples and len(samples) < 400:
            samples[pattern] = (names, _weight_shape(roles))
    return list(samples.values())


def _peelings(site: Site, module: str) -> list[str]:
    """The module name after each number of wrappers; none where a wrapper names a text encoder."""
    names, queue = [], [module]
    for name in queue:
        names.append(flatten(name).strip("_"))
        for wrapper in site.wrappers.peelable(name):
            if wrapper.component not in (None, "denoiser"):
                return []
            rest = name[len(wrapper.text) :]
            if rest not in queue:
                queue.append(rest)
    return names


def _weight_shape(roles: Mapping[str, tuple[int, ...] | None]) -> tuple[int, ...] | None:
    if any(shape is None for shape in roles.values()):
        return None
    try:
        for assignment in assign(roles)[0]:
            module = assignment.kind.shape({role: roles[role] for role in assignment.roles})
            if module.out is not None and module.inner and not module.flat:
                return (module.out, *module.inner)
    except (Misfit, IndexError, TypeError):
        pass
    return None


def _fits(family: Family, names: tuple[str, ...], shape: tuple[int, ...] | None) -> bool:
    for name in names:
        for match in family.find(name):
            row = match.row
            whole = match.alternative < 0 or len(row.alternatives[match.alternative].parts) == 1
            if shape is None or row.shape is None or not whole or len(row.native) > 1:
                return True
            if unify(row.shape, shape) is not None or unify(row.shape, (*shape, 1, 1)) is not None:
                return True
    return False


def _size_distance(family: Family, modules) -> int:
    """How many modules disagree with every published size of the family: the fewer the better."""
    if not family.sizes:
        return len(modules)
    return min(sum(_contradicts(family, sizes, names, shape) for names, shape in modules) for sizes in family.sizes.values())


def _contradicts(family: Family, sizes: Mapping[str, int], names: tuple[str, ...], shape: tuple[int, ...] | None) -> bool:
    for name in names:
        for match in family.find(name):
            if shape is None or match.row.shape is None or len(match.row.native) > 1:
                return False
            whole = match.alternative < 0 or len(match.row.alternatives[match.alternative].parts) == 1
            expected, actual = (match.row.shape, shape) if whole else (match.row.shape[1:], shape[1:])
            solved = unify(expected, actual)
            return solved is None or any(sizes.get(symbol, number) != number for symbol, number in solved.items())
    return True


def name_trainer(plan: Plan) -> str:
    """The title of the dialect that explains the file best: metadata first, then wrappers, names and role spellings."""
    known = plan.site.dialects.values()
    by_metadata = [(length, dialect.title) for dialect in known if (length := _metadata_match(dialect, plan.metadata))]
    if by_metadata:
        return max(by_metadata)[1]
    profile = Counter(
        (adapter.location.wrapper, _naming(adapter.target.naming), spelling)
        for adapter in plan.adapters
        for spelling in adapter.spellings
    )
    scores = [(_likeness(dialect, profile), dialect.title) for dialect in known]
    best, title = max(scores, default=(0.0, ""))
    return title if best >= 0.5 else "cannot tell"


def _metadata_match(dialect: Dialect, metadata: Mapping[str, str]) -> int:
    """Length of the longest telling mark in the metadata; 0 for none. A bare lora_adapter_metadata is diffusers' and many others'."""
    best = 0
    for mark in dialect.metadata:
        key, equals, start = mark.partition("=")
        value = metadata.get(key)
        if value is not None and value.replace(" ", "").startswith(start):
            best = max(best, len(mark) if equals else 1)
    return best


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
        score += count * (0.5 * right + 0.3 * (spelling in dialect.roles) + 0.2 * (naming == dialect.names))
    return score / total


def nearest_name(site: Site, key: str) -> str:
    """`; nearest: x` where the model has a module of a similar name, else nothing."""
    denoiser = site.components.get("denoiser")
    if denoiser is None:
        return ""
    name = (_peelings(site, parse_key(key).module) or [""])[-1]
    template = generalise(name)[0]
    templates = {generalise(flat)[0]: modules[0] for flat, modules in denoiser.flat.items()}
    close = difflib.get_close_matches(template, templates, n=1, cutoff=0.75)
    return f"; nearest: {templates[close[0]]}" if close else ""


def untrained(plan: Plan) -> list[str]:
    """Patterns of the model's weight matrices that the file trains in no block (`{}`: any block), for wired components it touches."""
    touched = {adapter.target.component for adapter in plan.adapters}
    trained = {piece[0] for adapter in plan.adapters for piece in adapter.target.pieces}
    patterns: dict[str, bool] = {}
    for name in touched:
        component = plan.site.components[name]
        for weight, shape in component.weights.items():
            if len(shape) < 2 or weight.endswith(".bias"):
                continue
            local = weight[len(component.prefix) :].removesuffix(".weight")
            pattern = ".".join("{}" if word.isdigit() else word for word in local.split("."))
            patterns[pattern] = patterns.get(pattern, False) or weight in trained
    return [pattern for pattern, done in patterns.items() if not done]


__all__ = ["PLACED", "Guess", "guess_family", "name_trainer", "nearest_name", "untrained"]
