"""Reads the presets of layer weights: what people name and choose in place of writing them, one
file per model.

A line is a preset, `NAME : WEIGHTS`, or begins with @ and is about all presets behind it:
`@families sd15 sd21` (`any`: of every model), `@source` (who documents them) and `@for` (what they
are chosen for, one of KINDS).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..errors import LocksmithError, about_file, at_line
from ..messages import Message, joined, message
from .lines import lines_of, read_text

FOLDER = Path(__file__).parent / "weights"
KINDS = ("character", "style", "composition", "part", "prompt")
TYPED = "prompt"  # of a kind that no menu offers
ANY = ("any",)
DIRECTIVES = ("@families", "@source", "@for")


class WeightPresetError(LocksmithError, ValueError):
    """A file of presets that breaks the rules: the text names file, line, fault and remedy."""


class WeightPreset(NamedTuple):
    """Layer weights that have a name. families: the models it is for; ANY: all. kind: one of
    KINDS.
    """

    name: str
    weights: str
    kind: str
    families: tuple[str, ...]
    source: str

    @property
    def title(self) -> Message:
        """What it is, for people."""
        word = re.sub("[^a-z0-9]+", "_", self.name.lower()).strip("_")
        return message(f"weight_presets.title_{word}")

    def is_for(self, family: str) -> bool:
        """Whether it is one for LoRAs of this model; "" where that is not known."""
        return self.families == ANY or family in self.families


@cache
def weight_presets(folder: Path = FOLDER) -> Mapping[str, WeightPreset]:
    """Every preset of the files in `folder`, by name; those of every model first. Raises
    WeightPresetError.
    """
    paths = sorted(folder.glob("*.weights"))
    return {preset.name: preset for path in paths for preset in read_weight_presets(path)}


def read_weight_presets(path: Path) -> tuple[WeightPreset, ...]:
    """The presets in one file. Raises WeightPresetError."""
    told: dict[str, str] = {}
    found: dict[str, WeightPreset] = {}
    for number, line in lines_of(read_text(path, WeightPresetError)):
        fault = _read(line, told, found)
        if fault:
            remedy = message("weight_presets.write_so", kinds=joined(KINDS))
            raise WeightPresetError(at_line(path, number, fault, remedy))
    if not found:
        fault = message("weight_presets.none")
        remedy = message("weight_presets.write_so", kinds=joined(KINDS))
        raise WeightPresetError(about_file(path, fault, remedy))
    return tuple(found.values())


def _read(line: str, told: dict[str, str], found: dict[str, WeightPreset]) -> Message | None:
    """Take one line in; what is wrong with it."""
    if line.startswith("@"):
        word, _, value = line.partition(" ")
        value = " ".join(value.split())
        if word not in DIRECTIVES or not value or (word == "@for" and value not in KINDS):
            return message("weight_presets.no_directive", line=line)
        told[word] = value
        return None
    name, _, weights = (part.strip() for part in line.partition(" : "))
    if not name or not weights:
        return message("weight_presets.no_preset", line=line)
    missing = [word for word in DIRECTIVES if word not in told]
    if missing:
        return message("weight_presets.not_told", name=name, word=missing[0])
    if name in found:
        return message("weight_presets.twice", name=name)
    families = tuple(told["@families"].split())
    found[name] = WeightPreset(name, weights, told["@for"], families, told["@source"])
    return None
