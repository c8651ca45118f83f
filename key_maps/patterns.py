"""Reads the patterns of module names in PEFT's settings and finds the first that fits a name, in
linear time whatever they say.

PEFT (utils/other.py get_pattern_key) takes the first pattern for which `(.*\\.)?(PATTERN)$` matches
the module's name. A stranger's pattern is not given to `re`, which may search for ever. Plain
names, and alternatives of such, are looked up. What is richer is read by `pattern_syntax` and
becomes one automaton over the reversed name, which has no way to go back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

from .pattern_syntax import Allowance, Automaton, Exhausted, PatternError, parse

PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
ESCAPED = "\0"  # stands for `\.`, a dot that is one
LONGEST_NAME = 1000  # characters of a module's name
MAX_CUTS = (
    32  # ways in which plain patterns of one length are cut by their dots; more go to the automaton
)
FREE, FIRST, INNER = range(
    3
    # where a pattern may begin: at the name's start or behind a dot, only at the start, only behind
    # a dot
)

Pieces = str | tuple[str, ...]  # of a name between the dots that may be any character
Cuts = dict[tuple[int, ...], dict[Pieces, int]]  # lengths of the pieces -> pieces -> place
Lookup = dict[int, Cuts]  # length of the name -> its cuts


class Patterns:
    """Patterns in their order; `unread` are the places of those that cannot be read, in order.
    Those of one file share an allowance.
    """

    def __init__(self, patterns: Iterable[str], allowance: Allowance | None = None):
        self.patterns = tuple(patterns)
        self.none = len(self.patterns)
        self.unread: list[int] = []
        self.rich: list[int] = []
        self.lookups: tuple[Lookup, Lookup, Lookup] = ({}, {}, {})
        self.allowance = allowance or Allowance()
        self.automaton = Automaton(self.allowance)
        for place, pattern in enumerate(self.patterns):
            if not self._plain(place, pattern):
                self._rich(place, pattern)
        self.getters = tuple(
            {length: _getters(cuts) for length, cuts in lookup.items()} for lookup in self.lookups
        )

    def first(self, name: str) -> tuple[int | None, int]:
        """(the place of the first pattern that is read and fits `name`, how many of `unread` stand
        before it and may fit too).
        """
        known = len(name) <= LONGEST_NAME and "\n" not in name  # as every model's names are
        best = self._look_up(name) if known else self.none
        if self.rich and known and self.rich[0] < best:
            try:
                best = min(best, self.automaton.first(name))
            except Exhausted:
                self.unread = sorted([*self.unread, *self.rich])
                self.rich = []
        return (best if best < self.none else None), bisect_left(self.unread, best)

    def _plain(self, place: int, pattern: str) -> bool:
        """Take a pattern that is a name, perhaps with escapes and anchors, or several such; False
        for any other.
        """
        if ESCAPED in pattern or ("|" in pattern and not self._allowed(pattern)):
            return False
        for body in pattern.split("|"):
            anchor, body = FREE, body.replace("\\.", ESCAPED)
            if "|" not in pattern:
                body = body.removesuffix("$")
            if body.startswith("^"):
                anchor, body = FIRST, body[1:]
            elif body.startswith(".*" + ESCAPED):
                anchor, body = INNER, body[3:]
            if "\\" in body:
                body = body.replace("\\_", "_").replace("\\-", "-")
            if body.strip(PLAIN + ESCAPED) or not self._enter(place, anchor, body):
                return False
        return True

    def _enter(self, place: int, anchor: int, body: str) -> bool:
        if len(body) > LONGEST_NAME:
            return True
        words = tuple(
            body.replace(ESCAPED, ".").split(".") if ESCAPED not in body else _words(body)
        )
        cuts = self.lookups[anchor].setdefault(len(body), {})
        cut = tuple(map(len, words))
        if cut not in cuts and len(cuts) == MAX_CUTS:
            return False
        cuts.setdefault(cut, {}).setdefault(words if len(words) > 1 else words[0], place)
        return True

    def _allowed(self, pattern: str) -> bool:
        self.allowance.read -= len(pattern)
        return self.allowance.read >= 0

    def _rich(self, place: int, pattern: str) -> None:
        try:
            if not self._allowed(pattern):
                raise PatternError
            self.automaton.add(place, parse(pattern))
            self.rich.append(place)
        except PatternError:
            self.unread.append(place)

    def _look_up(self, name: str) -> int:
        best, start = self.none, 0
        free, first, inner = self.getters
        while True:
            end = name[start:]
            for getters in (free, inner if start else first):
                for getter, found in getters.get(len(end), ()):
                    place = found.get(getter(end), best)
                    if place < best:
                        best = place
            start = name.find(".", start) + 1
            if not start:
                return best


def _words(body: str) -> list[str]:
    """The pieces of a name between the dots that stand for any character; dots that are dots stay
    in them.
    """
    return [word.replace(ESCAPED, ".") for word in body.split(".")]


def _getters(cuts: Cuts) -> list[tuple[itemgetter[Any], dict[Pieces, int]]]:
    """For each way to cut a name: what takes the pieces out of it, and the places of the patterns
    by their pieces.
    """
    made = []
    for cut, found in cuts.items():
        pieces, start = [], 0
        for length in cut:
            pieces.append(slice(start, start + length))
            start += length + 1
        made.append((itemgetter(*pieces), found))
    return made
