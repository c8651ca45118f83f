"""Reads convention records (what a writer means by its tensors, and which evidence gives it away) and decides which of them hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .arithmetic import Expression, as_number
from .errors import LocksmithError
from .evidence import ROOMS, Condition, Evidence, read_condition

FOLDER = Path(__file__).parent / "conventions"
Option = tuple[str, "str | float | bool"]


class ConventionError(LocksmithError, ValueError):
    """A convention record that breaks the rules: the text names file, line, fault and remedy."""


class Case(NamedTuple):
    """What a convention means under some conditions.

    scale: what multiplies the delta. options: for the adapter's mathematics. refuse: why it is not applied. caution: why the
    result is doubtful. All empty: what is usual.
    """

    title: str
    conditions: tuple[Condition, ...] = ()
    scale: Expression | None = None
    options: tuple[Option, ...] = ()
    refuse: str = ""
    caution: str = ""


class Convention(NamedTuple):
    """One record: where all `conditions` hold, the first case counts whose own hold too. `over`: records it stands before."""

    name: str
    title: str
    sources: tuple[str, ...]
    kinds: frozenset[str]
    lets: tuple[tuple[str, str | Expression], ...]
    conditions: tuple[Condition, ...]
    over: frozenset[str]
    cases: tuple[Case, ...]

    def case(self, evidence: Evidence) -> Case | None:
        """The case that holds for an adapter; None where the convention says nothing of it."""
        if self.kinds and evidence.kind not in self.kinds:
            return None
        numbers = evidence.numbers(self.lets)
        if not all(condition.holds(evidence, numbers) for condition in self.conditions):
            return None
        return next((case for case in self.cases if all(one.holds(evidence, numbers) for one in case.conditions)), None)


# Reading

EFFECTS = ("scale", "option", "refuse", "caution")
OF_RECORD = ("title", "source", "kinds", "let", "over")


def read_convention(path: Path) -> Convention:
    """Read the record at `path`; raises ConventionError naming file, line, what is wrong and the remedy."""
    record: dict[str, Any] = {"sources": (), "kinds": frozenset(), "lets": (), "over": frozenset(), "conditions": ()}
    cases: list[Case] = []
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        line = line.strip()
        try:
            if line.startswith("["):
                cases.append(Case(line[1:].removesuffix("]").strip()))
            elif line and not line.startswith("#"):
                _take(record, cases, *line.partition(" ")[::2])
        except (ValueError, SyntaxError) as error:
            raise ConventionError(f"{path}, line {number}: {error}. Correct the line") from None
    if not record.get("title") or not record["sources"] or not cases:
        raise ConventionError(f"{path}: a title, a source and what it means are needed. Add the lines")
    return Convention(path.stem, cases=tuple(cases), **record)


def _take(record: dict[str, Any], cases: list[Case], key: str, value: str) -> None:
    value = value.strip()
    if not value:
        raise ValueError(f"{key} needs a value")
    if key in EFFECTS:
        cases[:] = cases or [Case("")]
        cases[-1] = _with_effect(cases[-1], key, value)
    elif key == "if" and cases:
        cases[-1] = cases[-1]._replace(conditions=(*cases[-1].conditions, read_condition(value)))
    elif key == "if":
        record["conditions"] += (read_condition(value),)
    elif key not in OF_RECORD or cases:
        place = "below a [case]" if cases else "in a record"
        raise ValueError(f"{key!r} has no meaning {place}: use one of if, {', '.join(EFFECTS if cases else (*OF_RECORD, *EFFECTS))}")
    elif key == "title":
        record["title"] = value
    elif key == "let":
        record["lets"] += (_let(value),)
    elif key == "source":
        record["sources"] += (value,)
    else:
        record[key] |= frozenset(value.split())


def _with_effect(case: Case, key: str, value: str) -> Case:
    if key == "scale":
        return case._replace(scale=Expression(value))
    if key == "option":
        name, _, told = value.partition(" ")
        return case._replace(options=(*case.options, (name, _literal(told.strip()))))
    return case._replace(**{key: value})


def _let(text: str) -> tuple[str, str | Expression]:
    name, equals, source = (part.strip() for part in text.partition("="))
    if not equals or not name.isidentifier():
        raise ValueError(f"{text!r} must be NAME = PATH or NAME = ARITHMETIC")
    return name, source if source.startswith(ROOMS) else Expression(source)


def _literal(text: str) -> str | float | bool:
    number = as_number(text)
    return text == "true" if text in ("true", "false") else text if number is None else number


@cache
def conventions(folder: Path = FOLDER) -> tuple[Convention, ...]:
    """Every convention whose record lies in `folder`: the folder is the registry."""
    return tuple(read_convention(path) for path in sorted(folder.glob("*.convention")))


# Deciding


class Meaning(NamedTuple):
    """What the conventions that hold for an adapter say of it. `title` and `evidence`: which ones, and why, for the report."""

    scale: float | None = None
    options: tuple[Option, ...] = ()
    refusal: str = ""
    cautions: tuple[str, ...] = ()
    title: str = ""
    evidence: str = ""


USUAL = Meaning()


class Conventions:
    """The conventions that the metadata of one file leave possible."""

    def __init__(self, metadata: Mapping[str, str], known: Sequence[Convention] | None = None):
        file = Evidence("", "", {}, None, metadata, {}, lambda role: None)
        self.possible = tuple(
            convention
            for convention in (conventions() if known is None else known)
            if all(condition.holds(file, {}) for condition in convention.conditions if condition.of_file)
        )

    def meaning(self, evidence: Evidence) -> Meaning:
        """What they say of one adapter; where two decide the same thing, the one that is `over` the other counts."""
        holding = [(convention, case) for convention in self.possible if (case := convention.case(evidence)) is not None]
        if not holding:
            return USUAL
        beaten = frozenset().union(*(convention.over for convention, _ in holding))
        return _joined([one for one in holding if one[0].name not in beaten], evidence)


def _joined(holding: Sequence[tuple[Convention, Case]], evidence: Evidence) -> Meaning:
    scale, options, cautions = None, {}, []
    for convention, case in holding:
        numbers = evidence.numbers(convention.lets)
        if scale is None and case.scale is not None:
            scale = case.scale.value(numbers, evidence.shapes)
        options |= {name: value for name, value in case.options if name not in options}
        if case.caution:
            cautions.append(case.caution.format_map(_Told(numbers)))
    return Meaning(
        scale,
        tuple(options.items()),
        next((case.refuse for _, case in holding if case.refuse), ""),
        tuple(cautions),
        "; ".join(f"{convention.title}: {case.title}" if case.title else convention.title for convention, case in holding),
        ", ".join(dict.fromkeys(_evidence(holding))),
    )


class _Told(dict):
    """Numbers as a sentence has them; what a file does not say is a question mark."""

    def __missing__(self, name: str) -> str:
        return "?"

    def __getitem__(self, name: str) -> str:
        value = super().__getitem__(name) if name in self else self.__missing__(name)
        return value if isinstance(value, str) else f"{value:.4g}"


def _evidence(holding: Iterable[tuple[Convention, Case]]) -> Iterable[str]:
    for convention, case in holding:
        yield from map(str, (*convention.conditions, *case.conditions))
