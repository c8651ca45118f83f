"""Second looks at a plan, for people: which model the file is for, who wrote it, what is near a name that fits nothing."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .adapters import Misfit, assign
from .dialect import DENOISER, Dialect
from .grammar import parse_key
from .locate import LONGEST_MODULE, MOST_PEELS, readings
from .plan import Plan
from .site import Site
from .table import Family, Match, flatten, generalise, unify


class Guess(NamedTuple):
    """A family read off a file: name ("" where it cannot be told), title with the variant, and all that fit equally well."""

    name: str
    title: str
    rivals: tuple[str, ...] = ()


Sample = tuple[tuple[str, ...], "tuple[int, ...] | None"]
MOST_SAMPLES = 400
LONGEST_NAME = 200  # characters of a name that is compared with others; real ones have less than half
LEAST_FITTING = 0.5  # share of a file's module patterns a family must know
LEAST_TRAINED = 0.75  # share of the blocks below the highest that must be trained for their number to tell
LONGEST_NUMBER = 6  # digits of what can no longer be a block's number


def guess_family(plan: Plan) -> Guess:
    """The family whose table fits most of the file's denoiser modules, names and shapes; ties are told, not broken."""
    samples = _module_shapes(plan)
    known = [family for family in plan.site.families.values() if family.kind == "denoiser"]
    scores = {family.name: sum(_fits(family, names, shape) for names, shape in samples) for family in known}
    best = max(scores.values(), default=0)
    if not best or best < LEAST_FITTING * len(samples):
        return Guess("", "")
    first = [family for family in known if scores[family.name] == best]
    depths = _block_counts(plan)
    ranks = {
        family.name: (_too_few_blocks(family, depths), _least_contradictions(family, samples), not _same_blocks(family, depths))
        for family in first
    }
    closest = [family for family in first if ranks[family.name] == min(ranks.values())]
    if plan.site.family is not None and plan.site.family.name in {family.name for family in closest}:
        closest = [plan.site.family]
    if len(closest) == 1:
        return Guess(closest[0].name, variant_title(closest[0], samples))
    return Guess("", " or ".join(family.title for family in closest), tuple(family.name for family in closest))


def model_title(site: Site) -> str:
    """The wired model's family and variant; "" where no table knows it."""
    if site.family is None:
        return ""
    component = site.components[DENOISER]
    samples = [((flatten(module),), component.weights[weight]) for module, weight in component.modules.items()]
    return variant_title(site.family, samples[:: max(1, len(samples) // 60)])


def variant_title(family: Family, samples: Sequence[Sample]) -> str:
    """The family's title, with the one published variant whose sizes contradict nothing."""
    fitting = [variant for variant, sizes in family.sizes.items() if not _contradictions(family, sizes, samples)]
    return f"{family.title} {fitting[0]}" if len(fitting) == 1 and fitting[0] else family.title


class Blocks(NamedTuple):
    """The blocks of one name that a file trains: highest number + 1, and whether most of those below are there too."""

    depth: int
    complete: bool


def _block_counts(plan: Plan) -> dict[str, Blocks]:
    """The blocks the file trains, by the name before their first number."""
    trained: dict[str, set[int]] = {}
    for module in {parse_key(key).module for key in plan.shapes}:
        for name in _peelings(plan.site, module)[-1:]:
            words = name.split("_")
            number = next((i for i, word in enumerate(words) if word.isdigit()), None)
            if number is not None and len(words[number]) < LONGEST_NUMBER:
                trained.setdefault("_".join(words[:number]), set()).add(int(words[number]))
    return {blocks: Blocks(max(numbers) + 1, len(numbers) > max(numbers) * LEAST_TRAINED) for blocks, numbers in trained.items()}


def _same_blocks(family: Family, counts: Mapping[str, Blocks]) -> bool:
    """Whether a published variant has just as many blocks; files that train a few blocks only do not tell."""
    for variant in family.blocks:
        told = {name: depth for name, depth in variant.items() if flatten(name) in counts}
        if told and all(counts[flatten(name)] == (depth, True) for name, depth in told.items()):
            return True
    return False


def _too_few_blocks(family: Family, counts: Mapping[str, Blocks]) -> bool:
    """Whether every published variant has fewer blocks than the file trains."""
    return bool(family.blocks) and all(
        any(counts[flatten(name)].depth > depth for name, depth in variant.items() if flatten(name) in counts) for variant in family.blocks
    )


def _module_shapes(plan: Plan) -> list[Sample]:
    """One sample for each pattern of denoiser modules: (names after each possible peel, weight shape where known)."""
    samples: dict[tuple[str, tuple[int, ...] | None], Sample] = {}
    groups: dict[str, dict[str, tuple[int, ...] | None]] = {}
    for key, shape in plan.shapes.items():
        parsed = parse_key(key)
        if parsed.role:
            groups.setdefault(parsed.module, {})[parsed.role] = shape
    for module, roles in groups.items():
        names = tuple(_peelings(plan.site, module))
        if not names:
            continue
        shape = _weight_shape(roles)
        pattern = (generalise(flatten(names[-1]))[0], shape)
        if pattern not in samples and len(samples) < MOST_SAMPLES:
            samples[pattern] = (names, shape)
    return list(samples.values())


def _peelings(site: Site, module: str) -> list[str]:
    """The flattened module name after each number of wrappers, in every reading; none where a wrapper names a text encoder."""
    names, queue = [], [module, *readings(site, module)] if len(module) <= LONGEST_MODULE else []
    for name in queue:
        names.append(flatten(name).strip("_"))
        for wrapper in site.wrappers.peelable(name):
            if wrapper.component not in (None, DENOISER):
                return []
            rest = name[len(wrapper.text) :]
            if len(queue) < MOST_PEELS and rest not in queue:
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


def _least_contradictions(family: Family, samples: Sequence[Sample]) -> int:
    """How many samples disagree with the best of the family's published sizes: the fewer the better."""
    return min((_contradictions(family, sizes, samples) for sizes in family.sizes.values()), default=len(samples))


def _contradictions(family: Family, sizes: Mapping[str, int], samples: Sequence[Sample]) -> int:
    return sum(_contradicts(family, sizes, names, shape) for names, shape in samples)


def _contradicts(family: Family, sizes: Mapping[str, int], names: tuple[str, ...], shape: tuple[int, ...] | None) -> bool:
    """Whether no meaning the names have in the family agrees with these sizes."""
    if shape is None:
        return False
    return not any(_agrees(match, sizes, shape) for name in names for match in family.find(name))


def _agrees(match: Match, sizes: Mapping[str, int], shape: tuple[int, ...]) -> bool:
    row = match.row
    if row.shape is None or len(row.native) > 1:
        return True
    whole = match.alternative < 0 or len(row.alternatives[match.alternative].parts) == 1
    solved = unify(row.shape, shape) if whole else unify(row.shape[1:], shape[1:])
    return solved is not None and all(sizes.get(symbol, number) == number for symbol, number in solved.items())


def name_trainer(plan: Plan) -> str:
    """The title of the dialect that explains the file best: metadata first, then wrappers, names and role spellings."""
    known = plan.site.dialects.values()
    by_metadata = [(length, dialect.title) for dialect in known if (length := _metadata_match(dialect, plan.metadata))]
    if by_metadata:
        return max(by_metadata)[1]
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
        return "cannot tell"
    return " or ".join(filter(None, (", ".join(titles[:-1]), titles[-1])))


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
    if not name or len(name) > LONGEST_NAME:
        return ""
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
