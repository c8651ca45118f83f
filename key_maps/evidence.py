"""What one adapter's file says that tells whose it is, and the conditions that
records put to it.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence, Set
from functools import lru_cache
from typing import Any, NamedTuple

from ..messages import joined, message
from .arithmetic import Expression, Shapes, as_number
from .patterns import Patterns

MISSING = object()
# an alpha cast to bf16 or fp8 keeps two to three digits; a wrong rule is off by a factor of 1.4 at
# least
TOLERANCE = 0.01
LONGEST_TEXT = 100_000  # characters of a metadata value that is read as JSON
ROOMS = ("metadata.", "setting.", "role.")
PLAIN = frozenset({"name", "kind", "layer", "adapter", "family"})


class Evidence(NamedTuple):
    """One adapter, as far as conventions may ask for it.

    kind: the adapter's. name: its module as the file spells it. shapes: role -> shape. rank: from
    the shapes, or None.
    metadata: the header's. settings: the adapter settings that hold for it. number: role -> value
    of a tensor of one element, None where it cannot be read. layer: the shape of the weight it goes
    to, () where it is not known. path: the module's name without a prefix. parts: how many modules
    elsewhere are this one. listed: what `Let` has read of the file's lists.
    """

    kind: str
    name: str
    shapes: Shapes
    rank: int | None
    metadata: Mapping[str, str]
    settings: Mapping[str, Any]
    number: Callable[[str], float | None]
    layer: Sequence[int] = ()
    adapter: str = ""
    family: str = ""
    path: str = ""
    parts: int = 1
    listed: dict[str, NumberedPatterns] | None = None

    @property
    def sizes(self) -> Shapes:
        """What arithmetic may ask sizes of: the tensors by role, and the layer's weight."""
        return {**self.shapes, "layer": tuple(self.layer)}

    def find(self, path: str) -> Any:
        """The value of metadata.KEY, metadata.KEY>FIELD (of the JSON there), setting.NAME>FIELD,
        role.NAME (a shape), or one of PLAIN.
        """
        room, _, rest = path.partition(".")
        if room == "metadata":
            return _inside(self.metadata, rest)
        if room == "setting":
            name, *fields = rest.split(">")
            return _deeper(self.settings.get(name, MISSING), fields)
        if room == "role":
            return self.shapes.get(rest, MISSING)
        return len(self.layer) or MISSING if path == "layer" else getattr(self, path)

    def numbers(self, lets: Sequence[Let]) -> dict[str, float]:
        """The numbers expressions may name: parts, rank, alpha, and what the `let` lines say, of
        several with one name the first that says anything; those without a value are left out.
        """
        numbers = {"parts": float(self.parts)}
        if self.rank is not None:
            numbers["rank"] = float(self.rank)
        alpha = self.number("alpha") if "alpha" in self.shapes else None
        if alpha is not None:
            numbers["alpha"] = alpha
        sizes = self.sizes if lets else {}
        said = set()
        for let in lets:
            value = MISSING if let.name in said else let.value(self, numbers, sizes)
            if value is MISSING or value is None:
                continue
            said.add(let.name)
            number = as_number(value)
            if number is not None:
                numbers[let.name] = number
        return numbers


class NumberedPatterns:
    """A list `PATTERN=NUMBER, PATTERN=NUMBER`, of which the first pattern found in a name counts;
    pairs without a whole number are passed over.
    """

    def __init__(self, text: str):
        pairs = [pair.partition("=") for pair in text.split(",")]
        numbers = {
            pattern.strip(): number.strip()
            for pattern, _, number in pairs
            if number.strip().isdecimal()
        }
        self.patterns = Patterns(f"^(.*({pattern}).*)" for pattern in numbers)
        self.numbers = tuple(numbers.values())

    def of(self, name: str) -> str | None:
        """The number for a name; None where no pattern is found in it, "" where that cannot be
        told.
        """
        place, unread = self.patterns.first(name)
        return "" if unread else None if place is None else self.numbers[place]


class Let(NamedTuple):
    """A name for a number: arithmetic, or what stands at a path of the evidence. words: it holds
    only for modules whose path has all of them. before: at the path is a list of numbers for
    patterns, which are looked for in the module's path behind this, with underscores for dots.
    """

    name: str
    source: str | Expression
    words: tuple[str, ...] = ()
    before: str | None = None

    @property
    def of_file(self) -> bool:
        """Whether it is the same for all adapters of a file."""
        return (
            isinstance(self.source, str)
            and not self.source.startswith("role.")
            and not self.words
            and self.before is None
        )

    def value(self, evidence: Evidence, numbers: Mapping[str, float], sizes: Shapes) -> Any:
        """What it stands for; None or MISSING where nothing is said of it."""
        if isinstance(self.source, Expression):
            return self.source.value(numbers, sizes)
        if not all(word in evidence.path for word in self.words):
            return MISSING
        value = evidence.find(self.source)
        if self.before is None or value is MISSING:
            return value
        known = {} if evidence.listed is None else evidence.listed
        if self.source not in known:
            known[self.source] = NumberedPatterns(str(value))
        return known[self.source].of(self.before + evidence.path.replace(".", "_"))


def _inside(metadata: Mapping[str, str], path: str) -> Any:
    key, *fields = path.split(">")
    value: Any = metadata.get(key, MISSING)
    if not fields or value is MISSING:
        return value
    value = _read(value) if isinstance(value, str) and len(value) <= LONGEST_TEXT else MISSING
    return _deeper(value, fields)


def _deeper(value: Any, fields: Sequence[str]) -> Any:
    """What stands in a value under these names, one in the other."""
    for field in fields:
        value = value.get(field, MISSING) if isinstance(value, Mapping) else MISSING
    return value


@lru_cache(maxsize=4)  # of one file, whose adapters all ask for it
def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return MISSING


def _same(value: Any, texts: str) -> bool:
    """Whether a value is one of `a|b|c`: texts without regard to case, numbers by value."""
    number, wanted = as_number(value), texts.casefold().split("|")
    return (
        str(value).casefold() in wanted
        if number is None
        else any(number == as_number(text) for text in wanted)
    )


ON_VALUES: Mapping[str, Callable[[Any, str], bool]] = {
    "is": _same,
    "isnt": lambda value, texts: not _same(value, texts),
    "starts": (
        lambda value, texts: isinstance(value, str) and value.startswith(tuple(texts.split("|")))
    ),
    "contains": lambda value, texts: (
        isinstance(value, str) and any(text in value for text in texts.split("|"))
    ),
    "exists": lambda value, _: value is not MISSING,
    "missing": lambda value, _: value is MISSING,
    "number": lambda value, _: not isinstance(value, str) and as_number(value) is not None,
}
ON_NUMBERS: Mapping[str, Callable[[float, float], bool]] = {
    "about": lambda left, right: math.isclose(left, right, rel_tol=TOLERANCE),
    "off": lambda left, right: not math.isclose(left, right, rel_tol=TOLERANCE),
    "equals": operator.eq,
    "above": operator.gt,
    "below": operator.lt,
}
OF_WHAT_IS_MISSING = frozenset({"exists", "missing", "isnt"})


class Condition(NamedTuple):
    """One piece of evidence: `path relation value`, or `arithmetic relation arithmetic`."""

    subject: str
    relation: str
    value: str
    left: Expression | None = None
    right: Expression | None = None

    def of_file(self, names: Set[str]) -> bool:
        """Whether metadata, settings and the model alone answer it; `names` are the numbers that
        they give.
        """
        if self.left is not None and self.right is not None:
            return (
                self.left.names | self.right.names <= names
                and not self.left.on_shapes
                and not self.right.on_shapes
            )
        return self.subject.startswith(("metadata.", "setting.")) or self.subject == "family"

    @property
    def of_role(self) -> bool:
        """Whether it asks for nothing but whether a tensor is there."""
        return (
            self.left is None
            and self.subject.startswith("role.")
            and self.relation in ("exists", "missing")
        )

    @property
    def of_presence(self) -> bool:
        """Whether it asks for nothing but whether a key of the metadata is there."""
        return self.relation in ("exists", "missing") and ">" not in self.subject

    def denies(self, name: str) -> bool:
        """Whether a module's name alone answers it with no."""
        return self.subject == "name" and not ON_VALUES[self.relation](name, self.value)

    def holds(self, evidence: Evidence, numbers: Mapping[str, float]) -> bool:
        """Whether the evidence bears it out; a number that is not there bears out nothing."""
        if self.left is not None and self.right is not None:
            sizes = evidence.sizes
            left, right = (side.value(numbers, sizes) for side in (self.left, self.right))
            return left is not None and right is not None and ON_NUMBERS[self.relation](left, right)
        value = evidence.find(self.subject)
        if value is MISSING and self.relation not in OF_WHAT_IS_MISSING:
            return False
        return ON_VALUES[self.relation](value, self.value)

    def __str__(self) -> str:
        subject = self.subject.partition(".")[2] if self.subject.startswith(ROOMS) else self.subject
        relation = TOLD.get(self.relation, self.relation)
        return f"{subject.replace('>', ' ')} {relation} {self.value}".strip()


TOLD = {
    "is": "=",
    "isnt": "is not",
    "about": "=",
    "equals": "=",
    "off": "is not",
    "starts": "begins with",
    "exists": "is there",
    "missing": "is not there",
}


def read_condition(text: str) -> Condition:
    """Read `subject relation value`; raises ValueError for what is none."""
    words = text.split()
    place = next(
        (place for place, word in enumerate(words) if word in ON_VALUES or word in ON_NUMBERS), 0
    )
    if not place:
        known = joined((*ON_VALUES, *ON_NUMBERS))
        raise ValueError(message("key_maps.no_relation", text=text, known=known))
    subject, relation, value = " ".join(words[:place]), words[place], " ".join(words[place + 1 :])
    if relation in ON_NUMBERS:
        return Condition(subject, relation, value, Expression(subject), Expression(value))
    if not subject.startswith(ROOMS) and subject not in PLAIN:
        raise ValueError(
            message(
                "key_maps.no_path",
                text=subject,
                begins=joined(ROOMS),
                plain=joined(sorted(PLAIN)),
            )
        )
    return Condition(subject, relation, value)
