"""What the name of a layer says, for people: `img_attn.qkv` is "image attention: query, key,
value".

The words and the phrases that stand for them are data, `layer_words.table`, whose head tells how a
name is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import LocksmithError, at_line
from ..messages import Message, message
from .lines import lines_of, read_text

TABLE = Path(__file__).with_name("layer_words.table")
PLACES = ("where", "what", "which")
CUT = re.compile(r"[._]")
# A transformer in a block of a UNet: its own number, and what is in there.
NESTED = re.compile(r"(?:\d+\.)?transformer_blocks\.(\d+)\.(.+)")
# A UNet's blocks differ, so that each has rows of its own.
OF_UNET = re.compile(
    r"((?:in|out)put_blocks(?=\.(?!0\.0$)\d+)|middle_block)(?:(?<!middle_block)\.\d+)?\.(.+)"
)
MAX_NAMES = 4096


class LayerWordsError(LocksmithError, ValueError):
    """A table that breaks the rules: the text names file, line, fault and remedy."""


class LayerWords(NamedTuple):
    """Ids of words. where: whose stream of tokens; what: the part; which: of its layers; "" where
    the name does not tell. nested: the number of a transformer within the block, or "".
    """

    where: str
    what: str
    which: str
    nested: str = ""

    @property
    def part(self) -> Message:
        """The part of the model: "image attention"."""
        what = message(f"layers.{self.what}")
        if self.where:
            what = message("layers.of", where=message(f"layers.{self.where}"), what=what)
        return message("layers.nested", part=what, number=self.nested) if self.nested else what

    @property
    def text(self) -> Message:
        """The part and which of its layers: "image attention: query"."""
        if not self.which:
            return self.part
        return message("layers.layer", part=self.part, which=message(f"layers.{self.which}"))


class Phrases(NamedTuple):
    """The table: phrase -> word by its place, and of how many words the longest phrase is."""

    words: Mapping[tuple[str, ...], Mapping[str, str]]
    longest: int


def layer_words(name: str, blocks: str = "") -> LayerWords | None:
    """What a layer's name in its block says, by itself or behind the name of its blocks; None where
    a piece of it is not known.
    """
    unet = OF_UNET.fullmatch(name)
    name = unet[2] if unet else name
    nested = NESTED.fullmatch(name)
    words = _words(nested[2] if nested else name) or (
        _words(f"{blocks}.{name}") if blocks else None
    )
    return words._replace(nested=nested[1]) if words and nested else words


def blocks_in(name: str) -> str:
    """The blocks that the name of a layer of a UNet begins with, "" for all others."""
    unet = OF_UNET.fullmatch(name)
    return unet[1] if unet else ""


@lru_cache(maxsize=MAX_NAMES)
def _words(name: str) -> LayerWords | None:
    known, pieces, found = phrases(), CUT.split(name.lower()), dict[str, str]()
    while pieces:
        for length in range(min(known.longest, len(pieces)), 0, -1):
            said = known.words.get(tuple(pieces[:length]))
            if said is not None:
                break
        else:
            return None
        if any(found.get(place, word) != word for place, word in said.items()):
            return None
        found |= said
        del pieces[:length]
    return LayerWords(**(dict.fromkeys(PLACES, "") | found)) if "what" in found else None


@cache
def phrases(path: Path = TABLE) -> Phrases:
    """The table at `path`. Raises LayerWordsError."""
    places: dict[str, str] = {}
    words: dict[tuple[str, ...], Mapping[str, str]] = {}
    for number, line in lines_of(read_text(path, LayerWordsError)):
        fault = _read(line, places, words)
        if fault:
            remedy = message("layers.write_so", places=", ".join(f"@{place}" for place in PLACES))
            raise LayerWordsError(at_line(path, number, fault, remedy))
    return Phrases(words, max(map(len, words), default=0))


def _read(
    line: str, places: dict[str, str], words: dict[tuple[str, ...], Mapping[str, str]]
) -> Message | None:
    """Take one line in; what is wrong with it."""
    if line.startswith("@"):
        place, *listed = line[1:].split()
        places |= dict.fromkeys(listed, place)
        return None if place in PLACES and listed else message("layers.no_place", line=line)
    said, _, right = line.partition(" : ")
    taken = {places.get(word, ""): word for word in said.split()}
    if not right.strip() or "" in taken or len(taken) != len(said.split()):
        return message("layers.no_words", line=line)
    for phrase in right.split("|"):
        pieces = tuple(phrase.split())
        if not pieces or pieces in words:
            return message("layers.no_phrase", phrase=phrase.strip())
        words[pieces] = taken
    return None
