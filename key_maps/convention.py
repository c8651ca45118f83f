"""Reads convention records (what a writer means by its tensors, and which evidence gives it away)
and decides which of them hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from ..errors import LocksmithError, about_file, at_line
from ..messages import ENGLISH, catalog, joined, languages, message, text_of
from .arithmetic import Expression, as_number
from .evidence import ROOMS, Condition, Evidence, Let, NumberedPatterns, read_condition
from .lines import lines_of, read_text

FOLDER = Path(__file__).parent / "conventions"
Option = tuple[str, "str | float | bool"]


class ConventionError(LocksmithError, ValueError):
    """A convention record that breaks the rules: the text names file, line, fault and remedy."""


class Case(NamedTuple):
    """What a convention means under some conditions.

    scale: what multiplies the delta. times: what multiplies the strength that alpha and rank give.
    kind: of adapter that its tensors are. options: for its mathematics. refuse: why it is not
    applied. caution: why the result is doubtful. All empty: what is usual.
    """

    title: str
    conditions: tuple[Condition, ...] = ()
    scale: Expression | None = None
    times: Expression | None = None
    kind: str = ""
    options: tuple[Option, ...] = ()
    refuse: str = ""
    caution: str = ""

    @property
    def decides(self) -> bool:
        """Whether it says more than a doubt."""
        return bool(self.scale or self.times or self.kind or self.options or self.refuse)


class Convention(NamedTuple):
    """One record: where all `conditions` hold, the first case counts whose own hold too. `over`:
    records it stands before. settled: fields of the metadata, as paths, that must not stand in a
    new file whose tensors hold what they call for.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    kinds: frozenset[str]
    lets: tuple[Let, ...]
    conditions: tuple[Condition, ...]
    over: frozenset[str]
    settled: frozenset[str]
    cases: tuple[Case, ...]

    def possible(self) -> Possible:
        """All of it: nothing is answered yet."""
        return Possible(
            self, self.conditions, tuple((case, case.conditions) for case in self.cases)
        )

    def beyond_numbers(self) -> Convention:
        """What it says that no tensor can: a file this pack has written has all scales in its
        tensors, and is in no doubt.
        """
        return self._replace(
            cases=tuple(case._replace(scale=None, times=None, caution="") for case in self.cases)
        )

    @property
    def is_of_numbers(self) -> bool:
        """Whether a scale, or a doubt, is all that any of its cases says."""
        return not any(case._replace(scale=None, times=None).decides for case in self.cases)


class Possible(NamedTuple):
    """A convention as far as it is still open: its conditions without those that were answered with
    yes already.
    """

    convention: Convention
    conditions: tuple[Condition, ...]
    cases: tuple[tuple[Case, tuple[Condition, ...]], ...]

    def narrowed(
        self, evidence: Evidence, answered: Callable[[Condition], bool]
    ) -> Possible | None:
        """What is left when the conditions for which `answered` have had their answer; None where
        it does not hold.
        """
        numbers = _Numbers(evidence, self.convention.lets)
        conditions = _left(self.conditions, evidence, numbers, answered)
        cases = [
            (case, left)
            for case, ones in self.cases
            if (left := _left(ones, evidence, numbers, answered)) is not None
        ]
        certain = next((place + 1 for place, (_, left) in enumerate(cases) if not left), None)
        return (
            self._replace(conditions=conditions, cases=tuple(cases[:certain]))
            if conditions is not None and cases
            else None
        )

    def may_hold(self, name: str) -> bool:
        """Whether an adapter of this name can be meant: most records ask for a name first, and no
        evidence need be gathered for the others.
        """
        return not _denied(self.conditions, name) and not all(
            _denied(conditions, name) for _, conditions in self.cases
        )

    def case(self, evidence: Evidence) -> Case | None:
        """The case that holds for an adapter; None where the convention says nothing of it."""
        numbers = _Numbers(evidence, self.convention.lets)
        if not all(condition.holds(evidence, numbers) for condition in self.conditions):
            return None
        return next(
            (
                case
                for case, conditions in self.cases
                if all(one.holds(evidence, numbers) for one in conditions)
            ),
            None,
        )


class _Numbers(dict[str, float]):
    """The numbers of one adapter, read when the first is asked for: most conditions need none."""

    def __init__(self, evidence: Evidence, lets: Sequence[Let]):
        super().__init__()
        self.read: Callable[[], dict[str, float]] | None = lambda: evidence.numbers(lets)

    def __missing__(self, name: str) -> float:
        if self.read is None:
            raise KeyError(name)
        self.update(self.read())
        self.read = None
        return self[name]


def _denied(conditions: Iterable[Condition], name: str) -> bool:
    return any(condition.denies(name) for condition in conditions)


def _left(
    conditions: Sequence[Condition],
    evidence: Evidence,
    numbers: Mapping[str, float],
    answered: Callable[[Condition], bool],
) -> tuple[Condition, ...] | None:
    """The conditions that are not answered yet; None where the answer of one is no."""
    left = []
    for condition in conditions:
        if not answered(condition):
            left.append(condition)
        elif not condition.holds(evidence, numbers):
            return None
    return tuple(left)


# Reading

CATALOG = "conventions."  # where the sentences of the pack's records are
TITLE = "conventions.title_"  # of their titles
EFFECTS = ("scale", "times", "kind", "option", "refuse", "caution")
OF_RECORD = ("title", "source", "kinds", "let", "over", "settled")


def read_convention(path: Path) -> Convention:
    """Read the record at `path`; raises ConventionError naming file, line, what is wrong and the
    remedy.
    """
    record: dict[str, Any] = {
        "sources": (),
        "kinds": frozenset(),
        "lets": (),
        "over": frozenset(),
        "settled": frozenset(),
        "conditions": (),
    }
    cases: list[Case] = []
    for number, line in lines_of(read_text(path, ConventionError)):
        line = line.strip()
        try:
            if line.startswith("["):
                cases.append(Case(titled(line[1:].removesuffix("]").strip())))
            else:
                _take(record, cases, *line.partition(" ")[::2])
        except (ValueError, SyntaxError) as error:
            remedy = message("key_maps.correct_line")
            raise ConventionError(at_line(path, number, text_of(error), remedy)) from None
    if not record.get("title") or not record["sources"] or not cases:
        fault, remedy = message("key_maps.record_lacks_lines"), message("key_maps.add_lines")
        raise ConventionError(about_file(path, fault, remedy))
    return Convention(path.stem, cases=tuple(cases), **record)


def _take(record: dict[str, Any], cases: list[Case], key: str, value: str) -> None:
    value = value.strip()
    if not value:
        raise ValueError(message("key_maps.needs_value", key=key))
    if key in EFFECTS:
        cases[:] = cases or [Case("")]
        cases[-1] = _with_effect(cases[-1], key, value)
    elif key == "if" and cases:
        cases[-1] = cases[-1]._replace(conditions=(*cases[-1].conditions, read_condition(value)))
    elif key == "if":
        record["conditions"] += (read_condition(value),)
    elif key not in OF_RECORD or cases:
        allowed = ("if", *(EFFECTS if cases else (*OF_RECORD, *EFFECTS)))
        id = "key_maps.no_key_of_case" if cases else "key_maps.no_key_of_record"
        raise ValueError(message(id, key=key, allowed=joined(allowed)))
    elif key == "title":
        record["title"] = titled(value)
    elif key == "let":
        record["lets"] += (_let(value),)
    elif key == "source":
        record["sources"] += (value,)
    else:
        record[key] |= frozenset(value.split())


def _with_effect(case: Case, key: str, value: str) -> Case:
    if key == "scale":
        return case._replace(scale=Expression(value))
    if key == "times":
        return case._replace(times=Expression(value))
    if key == "option":
        name, _, setting = value.partition(" ")
        return case._replace(options=(*case.options, (name, _literal(setting.strip()))))
    effects: dict[str, Any] = {key: _known(value) if value.startswith("@") else value}
    return case._replace(**effects)


def titled(text: str) -> str:
    """A title of a record, which the catalogs may have in other languages: their ids are made of
    its words.
    """
    id = TITLE + re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return message(id) if catalog(ENGLISH).get(id) == text else text


def _known(name: str) -> str:
    """The id of a sentence of the catalogs, which a record names as @NAME; raises ValueError where
    a language lacks it.
    """
    id = CATALOG + name[1:]
    lacking = [language for language in languages() if id not in catalog(language)]
    if lacking:
        raise ValueError(message("key_maps.no_sentence", id=id, languages=joined(lacking)))
    return id


def _let(text: str) -> Let:
    name, equals, source = (part.strip() for part in text.partition("="))
    if not equals or not name.isidentifier():
        raise ValueError(message("key_maps.no_let", text=text))
    if not source.startswith(ROOMS):
        return Let(name, Expression(source))
    path, *words = source.split()
    if not words:
        return Let(name, path)
    if words[0] == "for" and len(words) > 1:
        return Let(name, path, tuple(words[1:]))
    if words[0] == "listed" and len(words) == 2:
        return Let(name, path, before=words[1])
    raise ValueError(message("key_maps.no_let", text=text))


def _literal(text: str) -> str | float | bool:
    number = as_number(text)
    return text == "true" if text in ("true", "false") else text if number is None else number


@cache
def conventions(folder: Path = FOLDER) -> tuple[Convention, ...]:
    """Every convention whose record lies in `folder`: the folder is the registry."""
    return tuple(read_convention(path) for path in sorted(folder.glob("*.convention")))


@cache
def asked_metadata() -> tuple[str, ...]:
    """The keys of a file's metadata that the pack's conventions ask for."""
    return _metadata_keys((*(condition.subject for condition in _conditions()), *_sources()))


@cache
def noticed_metadata() -> tuple[str, ...]:
    """Those of `asked_metadata` of which it counts only whether they are there, such as a hash,
    which is another one in each file.
    """
    presence = _metadata_keys(one.subject for one in _conditions() if one.of_presence)
    others = (one.subject for one in _conditions() if not one.of_presence)
    read = _metadata_keys((*others, *_sources()))
    return tuple(key for key in presence if key not in read)


def _conditions() -> Iterator[Condition]:
    for one in conventions():
        yield from one.conditions
        for case in one.cases:
            yield from case.conditions


def _sources() -> Iterator[str]:
    for one in conventions():
        yield from (let.source for let in one.lets if isinstance(let.source, str))


def _metadata_keys(paths: Iterable[str]) -> tuple[str, ...]:
    keys = {
        path.partition(".")[2].partition(">")[0] for path in paths if path.startswith("metadata.")
    }
    return tuple(sorted(keys))


def without_settled(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file for a new one, whose tensors hold what the conventions call for; an
    entry that cannot be read says nothing and is emptied.
    """
    result = dict(metadata)
    for path in sorted({path for one in conventions() for path in one.settled}):
        key, _, field = path.removeprefix("metadata.").partition(">")
        if field in result.get(key, ""):
            result[key] = _without(result[key], field)
    return result


def _without(text: str, field: str) -> str:
    try:
        return json.dumps({key: value for key, value in json.loads(text).items() if key != field})
    except (ValueError, AttributeError, RecursionError):
        return "{}"


# Deciding


class Meaning(NamedTuple):
    """What the conventions that hold for an adapter say of it. `title` and `evidence`: which ones,
    and why, for the report.
    """

    scale: float | None = None
    times: float | None = None
    kind: str = ""
    options: tuple[Option, ...] = ()
    refusal: str = ""
    cautions: tuple[str, ...] = ()
    title: str = ""
    evidence: str = ""


USUAL = Meaning()
OWN_MARKS = frozenset(
    {"locksmith.converter", "locksmith.merge", "locksmith.resized", "locksmith.extracted"}
)


class Conventions:
    """The conventions that the metadata of one file, its model, and the settings that hold for some
    of its adapters, leave possible.
    """

    def __init__(
        self,
        metadata: Mapping[str, str],
        settings: Mapping[str, Any],
        known: Sequence[Convention] | None = None,
        family: str = "",
    ):
        self.metadata, self.settings = metadata, settings
        file = Evidence("", "", {}, None, metadata, settings, _no_number, family=family)
        known = conventions() if known is None else known
        if not OWN_MARKS.isdisjoint(metadata):
            known = [one.beyond_numbers() for one in known if not one.is_of_numbers]
        narrowed = (one.possible().narrowed(file, _by_file(one)) for one in known)
        self.possible = [possible for possible in narrowed if possible is not None]
        self.by_roles: dict[tuple[str, tuple[str, ...]], list[Possible]] = {}
        self.listed: dict[str, NumberedPatterns] = {}

    def of(self, kind: str, roles: tuple[str, ...]) -> list[Possible]:
        """Those that are possible for adapters of a kind with these tensors; for most there are
        none.
        """
        possible = self.by_roles.get((kind, roles))
        if possible is None:
            evidence = Evidence(
                kind, "", dict.fromkeys(roles, ()), None, self.metadata, self.settings, _no_number
            )
            mine = (
                one
                for one in self.possible
                if not one.convention.kinds or kind in one.convention.kinds
            )
            possible = [
                left for one in mine if (left := one.narrowed(evidence, _by_roles)) is not None
            ]
            self.by_roles[kind, roles] = possible
        return possible

    def meaning(self, evidence: Evidence) -> Meaning:
        """What they say of one adapter; where two decide the same thing, the one that is `over` the
        other counts.
        """
        asked = self.of(evidence.kind, tuple(evidence.shapes))
        evidence = evidence._replace(listed=self.listed)
        holding = [
            (one.convention, case) for one in asked if (case := one.case(evidence)) is not None
        ]
        if not holding:
            return USUAL
        beaten = frozenset().union(*(convention.over for convention, _ in holding))
        return _joined([one for one in holding if one[0].name not in beaten], evidence)


def _no_number(role: str) -> None:
    return None


def _by_file(convention: Convention) -> Callable[[Condition], bool]:
    others = {let.name for let in convention.lets if not let.of_file}
    names = {let.name for let in convention.lets} - others
    return lambda condition: condition.of_file(names)


def _by_roles(condition: Condition) -> bool:
    return condition.of_role


def _joined(holding: Sequence[tuple[Convention, Case]], evidence: Evidence) -> Meaning:
    scale: float | None = None
    times: float | None = None
    options: dict[str, str | float | bool] = {}
    cautions: list[str] = []
    for convention, case in holding:
        numbers = evidence.numbers(convention.lets)
        if scale is None and case.scale is not None:
            scale = case.scale.value(numbers, evidence.sizes)
        if times is None and case.times is not None:
            times = case.times.value(numbers, evidence.sizes)
        options |= {name: value for name, value in case.options if name not in options}
        if case.caution:
            cautions.append(_said(case.caution, numbers))
    return Meaning(
        scale,
        times,
        next((case.kind for _, case in holding if case.kind), ""),
        tuple(options.items()),
        next((_said(case.refuse, {}) for _, case in holding if case.refuse), ""),
        tuple(cautions),
        joined(
            (
                message("conventions.case", title=convention.title, case=case.title)
                if case.title
                else convention.title
                for convention, case in holding
            ),
            "semicolon",
        ),
        ", ".join(dict.fromkeys(_evidence(holding))),
    )


def _said(text: str, numbers: Mapping[str, float]) -> str:
    """A sentence of a record: of the catalogs, or as it stands there."""
    told = _Told(numbers)
    template = catalog(ENGLISH).get(text)
    if not isinstance(template, str):
        return text.format_map(told)
    gaps = [gap for _, gap, _, _ in Formatter().parse(template) if gap]
    return message(text, **{gap: told[gap] for gap in gaps})


class _Told(dict[str, Any]):
    """Numbers as a sentence has them; what a file does not say is a question mark."""

    def __missing__(self, name: str) -> str:
        return "?"

    def __getitem__(self, name: str) -> str:
        value = super().__getitem__(name) if name in self else self.__missing__(name)
        return value if isinstance(value, str) else f"{value:.4g}"


def _evidence(holding: Iterable[tuple[Convention, Case]]) -> Iterable[str]:
    for convention, case in holding:
        yield from map(str, (*convention.conditions, *case.conditions))
