"""Takes a key apart: module name + adapter name + role, by the spellings listed in roles.table."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..key_maps import KEY_MAPS
from ..key_maps.lines import lines_of, read_text
from ..messages import message

MAX_WORDS = 40  # at the end of a key, among which the role stands; real keys have twenty in all
ROLES_TABLE = KEY_MAPS / "roles.table"


class ParsedKey(NamedTuple):
    """A key taken apart; `module` still has its prefix. `role` is None where no spelling fits."""

    module: str
    adapter: str
    role: str | None
    spelling: str


class RoleSpellings(NamedTuple):
    """roles.table as lookup tables, from the most to the least specific way of matching."""

    # Tail after the module's dot -> (role, addition to the module name).
    exact: Mapping[str, tuple[str, str]]
    # (ending of the key, how much of it stays with the module, role).
    glued: tuple[tuple[str, int, str], ...]
    # (marker word, last word or "") -> role; adapter names stand between.
    named: Mapping[tuple[str, str], str]
    longest: int  # words in the longest exact tail
    # The exact tails of two words that no longer spelling ends with.
    final: Mapping[str, tuple[str, str]]
    # Exact tail of one word -> (role, longer spellings that end with it).
    lone: Mapping[str, tuple[str, tuple[str, ...]]]
    markers: frozenset[str]


@lru_cache(maxsize=1)
def role_spellings(path: Path = ROLES_TABLE) -> RoleSpellings:
    """Read roles.table; raises ValueError naming the line where a spelling stands twice."""
    exact: dict[str, tuple[str, str]] = {}
    glued: list[tuple[str, int, str]] = []
    named: dict[tuple[str, str], str] = {}
    for number, line in lines_of(read_text(path)):
        role, *spellings = line.split()
        for spelling in spellings:
            if "*" in spelling:
                marker, _, last = spelling.partition("*")
                if named.setdefault((marker, last.removeprefix(".")), role) != role:
                    raise ValueError(
                        message(
                            "planning.spelling_twice", file=path, line=number, spelling=spelling
                        )
                    )
                spelling = marker + last
            if spelling.startswith("("):
                stays, _, tail = spelling[1:].partition(")")
                glued.append((stays + tail, len(stays), role))
            elif spelling.startswith("_"):
                glued.append((spelling, 0, role))
            else:
                tail, _, addition = spelling.partition("@")
                if exact.setdefault(tail, (role, addition)) != (role, addition):
                    raise ValueError(
                        message(
                            "planning.spelling_twice", file=path, line=number, spelling=spelling
                        )
                    )
    endings = [*("." + tail for tail in exact), *(ending for ending, _, _ in glued)]
    plain = {tail: meaning for tail, meaning in exact.items() if not meaning[1]}
    final = {
        tail: meaning
        for tail, meaning in plain.items()
        if tail.count(".") == 1 and not _longer(tail, endings)
    }
    lone = {
        tail: (meaning[0], _longer(tail, endings))
        for tail, meaning in plain.items()
        if "." not in tail
    }
    markers = frozenset(marker for marker, _ in named)
    return RoleSpellings(
        exact, tuple(glued), named, max(tail.count(".") + 1 for tail in exact), final, lone, markers
    )


def _longer(tail: str, endings: list[str]) -> tuple[str, ...]:
    """The spellings of more words that end with these words."""
    words = "." + tail
    return tuple(one for one in endings if one.endswith(words) and one != words)


def parse_key(key: str) -> ParsedKey:
    """Split `key` into module name (prefix included), adapter name and role; the longest spelling
    that fits wins.
    """
    spellings = role_spellings()
    dot = key.rfind(".", 0, key.rfind("."))
    meaning = spellings.final.get(key[dot + 1 :]) if dot > 0 else None
    if meaning is not None:
        return ParsedKey(key[:dot], "", meaning[0], key[dot + 1 :])
    words = key.rsplit(".", MAX_WORDS)
    count = len(words)
    lone = spellings.lone.get(words[-1])
    if (
        lone is not None
        and count > 1
        and not key.endswith(lone[1])
        and spellings.markers.isdisjoint(words[:-1])
    ):
        return ParsedKey(key[: -len(words[-1]) - 1], "", lone[0], words[-1])
    for size in range(min(spellings.longest, count - 1), 1, -1):
        tail = ".".join(words[count - size :])
        meaning = spellings.exact.get(tail)
        if meaning is not None:
            return _parsed(key[: -len(tail) - 1], "", meaning, tail)
    for ending, stays, role in spellings.glued:
        if key.endswith(ending):
            cut = len(key) - len(ending) + stays
            return ParsedKey(key[:cut], "", role, ending[stays:].lstrip("."))
    for position in range(count - 1, 0, -1):
        parsed = _named(words, position, spellings)
        if parsed is not None:
            return parsed
    meaning = spellings.exact.get(words[-1])
    # An alpha may stand alone: it is the whole file's.
    if meaning is not None and (count > 1 or meaning[0] == "alpha"):
        return _parsed(key[: -len(words[-1]) - 1], "", meaning, words[-1])
    return ParsedKey(key, "", None, "")


def _parsed(module: str, adapter: str, meaning: tuple[str, str], spelling: str) -> ParsedKey:
    role, addition = meaning
    return ParsedKey(f"{module}.{addition}" if addition else module, adapter, role, spelling)


def _named(words: list[str], position: int, spellings: RoleSpellings) -> ParsedKey | None:
    last = words[-1]
    marker = words[position]
    role = spellings.named.get((marker, last)) if position < len(words) - 1 else None
    adapter = words[position + 1 : -1]
    if role is None:
        role, adapter = spellings.named.get((marker, "")), words[position + 1 :]
    if role is None:
        return None
    spelling = ".".join(
        [
            marker,
            *(["<adapter>"] if adapter else []),
            *([last] if words[position + 1 :] != adapter else []),
        ]
    )
    return ParsedKey(".".join(words[:position]), ".".join(adapter), role, spelling)
