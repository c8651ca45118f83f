"""The part of Python's regular expressions that adapter settings use, as an automaton over a
reversed name: it never goes back.

Read are: characters and escaped ones, `.`, `\\d \\w \\s` and their opposites, `[...]`, groups, `|`,
`* + ? {m,n}` (lazy or not), `^ $ \\A \\Z`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

MAX_DEPTH = 40  # groups within groups
MAX_TIMES = 1000  # of a repetition that is counted
NEVER = 1 << 60  # a place behind all patterns
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = frozenset("0123456789")
SPECIAL = frozenset("*+?")


class PatternError(ValueError):
    """A pattern that is richer than what is read, or none at all."""


class Exhausted(Exception):
    """The patterns cost more than any honest ones do."""


class Allowance:
    """What the patterns of one file may cost, all together: characters read, states made, states
    gone through.
    """

    def __init__(self, read: int = 200_000, states: int = 200_000, work: int = 300_000):
        self.read, self.states, self.work = read, states, work


Test = Callable[[str], bool]


class One(NamedTuple):
    """One character that passes the test."""

    test: Test


class PatternRow(NamedTuple):
    """Parts one after another."""

    parts: tuple[Any, ...]


class Choice(NamedTuple):
    """One of several."""

    parts: tuple[Any, ...]


class Repeat(NamedTuple):
    """A part again and again; most None: without end."""

    part: Any
    least: int
    most: int | None


class Anchor(NamedTuple):
    """The start or the end of the name."""

    start: bool


CLASSES: dict[str, Test] = {
    "d": str.isdecimal,
    "w": lambda one: one.isalnum() or one == "_",
    "s": str.isspace,
    "D": lambda one: not one.isdecimal(),
    "W": lambda one: not (one.isalnum() or one == "_"),
    "S": lambda one: not one.isspace(),
}


def parse(pattern: str) -> Any:
    """The pattern as a tree of the classes above. Raises Unreadable for what is more than that."""
    parser = _Parser(pattern)
    tree = parser.choice(0)
    if parser.at < len(pattern):
        raise PatternError  # a group is closed that was not opened
    return tree


class _Parser:
    """A recursive descent; every character is looked at once."""

    def __init__(self, text: str):
        self.text, self.at = text, 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        one = self.peek()
        if not one:
            raise PatternError  # it ends too soon
        self.at += 1
        return one

    def choice(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise PatternError  # groups are nested too deep
        parts = [self.row(depth)]
        while self.peek() == "|":
            self.at += 1
            parts.append(self.row(depth))
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def row(self, depth: int) -> PatternRow:
        parts = []
        while self.peek() not in ("", "|", ")"):
            part = self.item(depth)
            bounds = self.bounds()
            if bounds:
                if isinstance(part, Anchor):
                    raise PatternError  # nothing to repeat
                part = Repeat(part, *bounds)
            parts.append(part)
        return PatternRow(tuple(parts))

    def item(self, depth: int) -> Any:
        one = self.take()
        if one == "(":
            self.opening()
            part = self.choice(depth + 1)
            if self.take() != ")":
                raise PatternError  # a group is not closed
            return part
        if one in ("^", "$"):
            return Anchor(one == "^")
        if one == ".":
            return One(lambda _: True)
        if one == "[":
            return One(self.members())
        if one == "\\":
            return self.escaped()
        if one in SPECIAL:
            raise PatternError  # nothing to repeat
        if one == "{":
            self.at -= 1
            if self.counted():
                raise PatternError  # nothing to repeat
            self.at += 1
        return One(one.__eq__)

    def opening(self) -> None:
        """What follows a bracket: nothing, or `?:`, or a name."""
        if self.peek() != "?":
            return
        self.at += 1
        one = self.take()
        if one == "P" and self.take() == "<":
            end = self.text.find(">", self.at)
            if not self.text[self.at : max(end, 0)].isidentifier():
                raise PatternError  # a group has no name
            self.at = end + 1
        elif one != ":":
            raise PatternError  # a group of a kind that is not read

    def escaped(self) -> Any:
        one = self.take()
        if one in ("A", "Z"):
            return Anchor(one == "A")
        return One(self.meant(one))

    def meant(self, one: str) -> Test:
        if one in CLASSES:
            return CLASSES[one]
        if one in LETTERS or one in DIGITS:
            raise PatternError  # an escape that is not read
        return one.__eq__

    def members(self) -> Test:
        """What stands between square brackets, the closing one taken."""
        opposite = self.peek() == "^"
        self.at += opposite
        tests: list[Test] = []
        first = True
        while first or self.peek() != "]":
            first = False
            low = self.member()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("", "]"):
                self.at += 1
                tests.append(_between(low, self.member()))
            else:
                tests.append(low.__eq__ if isinstance(low, str) else low)
        self.at += 1
        if opposite:
            return lambda one: not any(test(one) for test in tests)
        return lambda one: any(test(one) for test in tests)

    def member(self) -> str | Test:
        one = self.take()
        if one != "\\":
            return one
        one = self.take()
        meaning = self.meant(one)
        return meaning if one in CLASSES else one

    def bounds(self) -> tuple[int, int | None] | None:
        """How often the part before is repeated; None: it is not."""
        one = self.peek()
        if one in SPECIAL:
            self.at += 1
            found: tuple[int, int | None] = {"*": (0, None), "+": (1, None), "?": (0, 1)}[one]
        else:
            counted = self.counted()
            if counted is None:
                return None
            found = counted
        if self.peek() == "?":
            self.at += 1
        if self.peek() in SPECIAL or self.counted():
            raise PatternError  # a repetition is repeated
        return found

    def counted(self) -> tuple[int, int | None] | None:
        """{m}, {m,}, {,n} or {m,n}; None, and nothing taken, for all else."""
        if self.peek() != "{":
            return None
        end = self.text.find("}", self.at, self.at + 12)
        inner = self.text[self.at + 1 : max(end, self.at + 1)]
        low, comma, high = inner.partition(",")
        if end < 0 or not inner or not DIGITS.issuperset(low + high):
            ahead = self.text[self.at + 1 : self.at + 12]
            if end < 0 and len(ahead) == 11 and DIGITS.issuperset(ahead.replace(",", "")):
                raise PatternError  # a repetition of too many digits
            return None
        self.at = end + 1
        least = int(low or 0)
        most = (int(high) if high else None) if comma else least
        if most is not None and most < least:
            raise PatternError  # a repetition of fewer than its least
        if max(least, most or 0) > MAX_TIMES:
            raise PatternError  # a repetition of too many times
        return least, most


def _between(low: str | Test, high: str | Test) -> Test:
    if not isinstance(low, str) or not isinstance(high, str) or low > high:
        raise PatternError  # a range that is none
    return lambda one: low <= one <= high


class _Place:
    """A set of states of the automaton: which pattern is whole here, and where each character
    leads.
    """

    __slots__ = ("at_start", "open", "to", "whole")

    def __init__(self, open_: tuple[int, ...], whole: int):
        self.open, self.whole = open_, whole
        self.to: dict[str, _Place] = {}
        self.at_start: int | None = None


class Automaton:
    """Many patterns at once: reads a name from its end and tells the first of them that fits it by
    PEFT's rule.

    A state is (test, next) for a character, (None, (next, ...)) for none, (Anchor, next), or (None,
    pattern) where it is whole.
    """

    def __init__(self, allowance: Allowance):
        self.allowance = allowance
        self.states: list[tuple[Any, Any]] = []
        self.entries: list[int] = []
        self.known: dict[tuple[int, ...], _Place] = {}
        self.begin: _Place | None = None

    def add(self, place: int, tree: Any) -> None:
        """Take the pattern at `place`. Raises Unreadable for one that is too large."""
        before = len(self.states)
        try:
            self.entries.append(self._build(tree, self._state(None, place)))
        except PatternError:
            del self.states[before:]
            raise
        self.begin = None

    def first(self, name: str) -> int:
        """The least place of a pattern that fits; NEVER where none does. Raises Exhausted for
        patterns that cost too much.
        """
        if self.begin is None:
            self.begin = self._place(self.entries, at_end=True)
        place, best = self.begin, NEVER
        for position in range(len(name), 0, -1):
            before = name[position - 1]
            if before == "." and place.whole < best:
                best = place.whole
            place = place.to.get(before) or self._step(place, before)
            if not place.open and place.whole == NEVER:
                return best
        return min(best, self._whole_at_start(place))

    def _state(self, test: Any, following: Any) -> int:
        self.states.append((test, following))
        return len(self.states) - 1

    def _build(self, tree: Any, following: int) -> int:
        """The state in which what `tree` says begins, read backwards, before `following`."""
        self.allowance.states -= 1
        if self.allowance.states < 0:
            raise PatternError  # too large
        if isinstance(tree, One):
            return self._state(tree.test, following)
        if isinstance(tree, Anchor):
            return self._state(tree, following)
        if isinstance(tree, Choice):
            return self._state(None, tuple(self._build(part, following) for part in tree.parts))
        if isinstance(tree, Repeat):
            return self._repeat(tree, following)
        for part in tree.parts:
            following = self._build(part, following)
        return following

    def _repeat(self, tree: Repeat, following: int) -> int:
        if tree.most is None:
            again = self._state(None, ())
            self.states[again] = (None, (self._build(tree.part, again), following))
            following = again
        for _ in range((tree.most or tree.least) - tree.least):
            following = self._state(None, (self._build(tree.part, following), following))
        for _ in range(tree.least):
            following = self._build(tree.part, following)
        return following

    def _spend(self, work: int) -> None:
        self.allowance.work -= work
        if self.allowance.work < 0:
            raise Exhausted

    def _step(self, place: _Place, one: str) -> _Place:
        self._spend(1 + len(place.open))
        states = self.states
        reached = [
            states[state][1]
            for state in place.open
            if not isinstance(states[state][0], Anchor) and states[state][0](one)
        ]
        place.to[one] = found = self._place(reached)
        return found

    def _place(self, states: Iterable[int], at_end: bool = False) -> _Place:
        open_, whole = self._closure(states, at_end, False)
        key = tuple(sorted(open_))
        found = self.known.get(key) if whole == NEVER and not at_end else None
        if found is None:
            found = _Place(key, whole)
            if whole == NEVER and not at_end:
                self.known[key] = found
        return found

    def _whole_at_start(self, place: _Place) -> int:
        if place.at_start is None:
            anchored = [state for state in place.open if isinstance(self.states[state][0], Anchor)]
            place.at_start = min(place.whole, self._closure(anchored, False, True)[1])
        return place.at_start

    def _closure(self, states: Iterable[int], at_end: bool, at_start: bool) -> tuple[set[int], int]:
        """(the states that wait for a character or the start, the first pattern that is whole) from
        these states on.
        """
        waiting, seen, open_, whole = list(states), set(), set(), NEVER
        while waiting:
            state = waiting.pop()
            if state in seen:
                continue
            seen.add(state)
            test, following = self.states[state]
            if test is None and isinstance(following, int):
                whole = min(whole, following)
            elif test is None:
                waiting.extend(following)
            elif isinstance(test, Anchor) and (at_start if test.start else at_end):
                waiting.append(following)
            elif not isinstance(test, Anchor) or test.start:
                open_.add(state)
        self._spend(len(seen))
        return open_, whole
