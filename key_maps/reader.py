"""Reads the records of other programs that load LoRA files by name or path: what each of them can
read, one small file per reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..errors import LocksmithError, at_line
from ..messages import message
from .dialect import ALPHAS
from .lines import lines_of, missing_fields, read_text, unknown_field

FOLDER = Path(__file__).parent / "readers"


class ReaderError(LocksmithError, ValueError):
    """A reader's record that breaks the rules: the text names file, line, fault and remedy."""


class Form(NamedTuple):
    """How a file's keys look: by which record's prefixes, with whose module names, where alpha is,
    role -> spelling. One that has a record alone is a dialect of written.table.
    """

    record: str
    names: str = ""
    alpha: str = ""
    roles: Mapping[str, str] = {}


class Reader(NamedTuple):
    """What another program reads.

    families: the only models it reads LoRAs for; empty: any. encoders: whether it reads text
    encoders. writes: the form that a file for it gets. reads: forms that it reads besides. stock:
    it reads whatever the stock loader does. together: endings of modules that it wants all or none
    of. same_rank: those that it wants with one rank besides. never: keys that it takes for
    something else.
    """

    name: str
    title: str
    source: str
    writes: Form
    families: tuple[str, ...] = ()
    encoders: bool = True
    reads: tuple[Form, ...] = ()
    stock: bool = False
    together: tuple[tuple[str, ...], ...] = ()
    same_rank: tuple[tuple[str, ...], ...] = ()
    never: tuple[str, ...] = ()


@cache
def readers(folder: Path = FOLDER) -> Mapping[str, Reader]:
    """Every reader whose record lies in `folder`, by title: the folder is the registry."""
    found = [read_reader(path) for path in sorted(folder.glob("*.reader"))]
    return {reader.title: reader for reader in found}


def read_reader(path: Path) -> Reader:
    """The record at `path`; raises ReaderError."""
    fields: dict[str, list[list[str]]] = {}
    for number, line in lines_of(read_text(path, ReaderError)):
        key, *words = line.split()
        if key not in Reader._fields or key == "name" or not words:
            raise ReaderError(unknown_field(path, number, key, Reader._fields))
        if key in ("writes", "reads") and not _is_form(words):
            fault = message("key_maps.no_form", line=" ".join(words))
            raise ReaderError(at_line(path, number, fault, message("key_maps.write_form")))
        fields.setdefault(key, []).append(words)
    missing = [field for field in ("title", "source", "writes") if field not in fields]
    if missing:
        raise ReaderError(missing_fields(path, missing))
    return _reader(path.stem, fields)


def _reader(name: str, fields: Mapping[str, list[list[str]]]) -> Reader:
    def words(field: str) -> tuple[str, ...]:
        return tuple(word for line in fields.get(field, ()) for word in line)

    def lines(field: str) -> tuple[tuple[str, ...], ...]:
        return tuple(map(tuple, fields.get(field, ())))

    return Reader(
        name,
        " ".join(words("title")),
        " ".join(words("source")),
        _form(fields["writes"][0]),
        families=words("families"),
        encoders=words("encoders") != ("no",),
        reads=tuple(map(_form, fields.get("reads", ()))),
        stock=words("stock") == ("reads",),
        together=lines("together"),
        same_rank=lines("same_rank"),
        never=words("never"),
    )


def _is_form(words: list[str]) -> bool:
    return len(words) == 1 or (len(words) > 3 and words[2] in ALPHAS)


def _form(words: list[str]) -> Form:
    if len(words) == 1:
        return Form(words[0])
    record, names, alpha, *roles = words
    pairs = (word.partition("=") for word in roles)
    return Form(record, names, alpha, {role: spelling or role for role, _, spelling in pairs})
