"""Reads dialect records (one small file per trainer) and knows which prefixes may stand in front of
a module name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..errors import LocksmithError, about_file, at_line
from ..messages import message
from .lines import lines_of, missing_fields, read_text, unknown_field

FOLDER = Path(__file__).parent / "dialects"
ALPHAS = ("tensor", "config", "folded")  # where the alpha of what is written stands
FORMS = ("flat", "dotted")
NUMBERED = re.compile(r"(?:te|text_encoder_?)(\d?)[._]$")
DENOISER = "denoiser"
ENCODER = "text encoder"


class DialectError(LocksmithError, ValueError):
    """A dialect record that breaks the rules: the text names file, line, fault and remedy."""


class Dialect(NamedTuple):
    """How one trainer spells keys."""

    name: str
    title: str
    names: str  # whose module names: native, diffusers, or another that only tables know
    form: str  # flat (separators are _) or dotted
    also: tuple[str, ...] = ()  # other module names it writes for some models
    writes: tuple[str, ...] = ()  # what it puts in front of the denoiser's module names
    encoders: tuple[
        str, ...
    ] = ()  # the same for text encoders; {encoder} stands for what ComfyUI puts before its names
    roles: tuple[str, ...] = ()  # role spellings it uses
    reads: tuple[str, ...] = ()  # denoiser prefixes seen in the wild, never written
    encoder_reads: tuple[str, ...] = ()  # the same for text encoders
    noise: tuple[str, ...] = ()  # prefixes that say nothing
    inside: tuple[str, ...] = ()  # words without meaning inside a module name
    dots: tuple[str, ...] = ()  # signs that stand for the dots of a module name
    endings: tuple[tuple[str, str], ...] = ()  # (spelled, meant) endings of module names
    starts: tuple[tuple[str, str], ...] = ()  # (spelled, meant) beginnings of module names
    families: tuple[
        str, ...
    ] = ()  # the only models it is for, by the names of their tables; empty: any
    metadata: tuple[
        str, ...
    ] = ()  # header metadata that gives it away: key, or key=beginning of the value
    hints: tuple[str, ...] = ()  # header metadata that it writes, and a few others do
    needs: tuple[
        str, ...
    ] = ()  # role spellings and metadata without one of which its names do not tell it


LISTS = (
    "also",
    "writes",
    "encoders",
    "roles",
    "reads",
    "encoder_reads",
    "noise",
    "inside",
    "dots",
    "families",
    "metadata",
    "hints",
    "needs",
)
PAIRS = ("endings", "starts")


class Prefix(NamedTuple):
    """Text in front of a module name; `network` is DENOISER, ENCODER, an encoder slot, or None
    for noise.
    """

    text: str
    network: str | None


def read_dialect(path: Path) -> Dialect:
    """Read the record at `path`; raises DialectError naming file, line, what is wrong and the
    remedy.
    """
    fields: dict[str, object] = {"name": path.stem}
    for number, line in lines_of(read_text(path, DialectError)):
        key, _, value = line.strip().partition(" ")
        value = value.strip()
        if key not in Dialect._fields or key == "name":
            raise DialectError(unknown_field(path, number, key, Dialect._fields))
        fields[key] = _value(path, number, key, value, fields.get(key))
    missing = [field for field in ("title", "names", "form") if field not in fields]
    if missing:
        raise DialectError(missing_fields(path, missing))
    if fields["form"] not in FORMS:
        fault = message("key_maps.unknown_form", form=fields["form"])
        raise DialectError(about_file(path, fault, message("key_maps.forms")))
    return Dialect(**fields)  # type: ignore[arg-type]


def _value(path: Path, number: int, key: str, value: str, before: object) -> object:
    if key in PAIRS:
        pairs = tuple(tuple(pair.split("=")) for pair in value.split())
        if any(len(pair) != 2 or not all(pair) for pair in pairs):
            fault = message("key_maps.needs_pairs", field=key)
            raise DialectError(at_line(path, number, fault, message("key_maps.write_pairs")))
        return (*(before or ()), *pairs)  # type: ignore[misc]
    if key in LISTS:
        return (*(before or ()), *value.split())  # type: ignore[misc]
    return value


@cache
def dialects(folder: Path = FOLDER) -> Mapping[str, Dialect]:
    """Every dialect whose record lies in `folder`, by file name: the folder is the registry."""
    return {path.stem: read_dialect(path) for path in sorted(folder.glob("*.record"))}


class PrefixSet:
    """All prefixes that may be peeled off, found by the first characters of a name."""

    def __init__(
        self,
        known: Mapping[str, Dialect],
        slots: tuple[str, ...],
        encoder_prefixes: Mapping[str, tuple[str, ...]],
    ):
        prefixes: dict[str, str | None] = {}
        for dialect in known.values():
            prefixes |= dict.fromkeys((*dialect.writes, *dialect.reads), DENOISER)
            prefixes |= {
                text: ENCODER
                for text in (*dialect.encoders, *dialect.encoder_reads)
                if "{encoder}" not in text
            }
        self.noise = frozenset(text for dialect in known.values() for text in dialect.noise)
        prefixes |= dict.fromkeys(self.noise, None)
        # ComfyUI names an encoder by its slot; files without the slot's name mean whichever encoder
        # has the module.
        prefixes |= {
            "text_encoders.": ENCODER,
            "text_encoders.transformer.": ENCODER,
            "transformer.": DENOISER,
        }
        for slot in slots:
            prefixes |= dict.fromkeys(
                (
                    f"text_encoders.{slot}.transformer.",
                    f"{slot}.transformer.",
                    f"text_encoders.{slot}.",
                    f"{slot}.",
                    f"{slot}_",
                ),
                slot,
            )
        self.slots_of: dict[str, tuple[str, ...]] = {}
        for slot, texts in encoder_prefixes.items():
            for text in texts:
                self.slots_of[text] = (*self.slots_of.get(text, ()), slot)
                prefixes.setdefault(text, ENCODER)
        # One number means one encoder, however a trainer spells what stands before it.
        for text in [
            text
            for text, network in prefixes.items()
            if network == ENCODER and text not in self.slots_of
        ]:
            numbered = NUMBERED.search(text)
            if numbered:
                self.slots_of[text] = self.slots_of.get(f"lora_te{numbered.group(1)}_", ())
        self.by_start: dict[str, list[Prefix]] = {}
        for text, network in sorted(prefixes.items(), key=lambda item: -len(item[0])):
            self.by_start.setdefault(text[:3], []).append(Prefix(text, network))
        self.inside = tuple(word for dialect in known.values() for word in dialect.inside)
        self.dots = tuple(sign for dialect in known.values() for sign in dialect.dots)
        self.endings = tuple(pair for dialect in known.values() for pair in dialect.endings)
        self.starts = tuple(pair for dialect in known.values() for pair in dialect.starts)

    def peelable(self, name: str) -> list[Prefix]:
        """The prefixes that `name` begins with, longest first; never the whole name."""
        return [
            prefix
            for prefix in self.by_start.get(name[:3], ())
            if name.startswith(prefix.text) and len(name) > len(prefix.text)
        ]
