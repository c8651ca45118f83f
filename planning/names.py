"""Spells a network's modules the way a dialect writes them: the reverse of reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..adapters.rows import Rows
from ..key_maps.dialect import DENOISER, Dialect
from ..key_maps.table import Family, TableRow, flatten, numbered, slices
from .target_model import Network, TargetModel

# Alternatives of a row: the first is what its @names says, diffusers' spelling without one.
OWN_NAMES, FIRST_SPELLING = -1, 0


class Spelled(NamedTuple):
    """One module as a dialect spells it: prefix and name, the weight it is (a slice of), and
    whether halves are swapped.
    """

    module: str
    weight: str
    rows: Rows | None
    swap: bool
    shape: tuple[int, ...]


def spell(target_model: TargetModel, network: Network, dialect: Dialect) -> Iterator[Spelled]:
    """Every weight matrix of the network as `dialect` names it; nothing where the dialect cannot
    name the network.
    """
    prefix = prefix_for(target_model, network, dialect)
    if prefix is None:
        return
    seen: dict[str, str] = {}
    for module, weight in network.modules.items():
        if len(network.weights[weight]) < 2 or weight.endswith(".bias"):
            continue
        for name, rows, swap in _names(network, module, weight, dialect.names):
            spelled = prefix + (name.replace(".", "_") if dialect.form == "flat" else name)
            # Where flattening or a shared name makes two weights one name, the first keeps it.
            if seen.setdefault(spelled, weight) == weight:
                out, *inner = network.weights[weight]
                yield Spelled(spelled, weight, rows, swap, (rows.length if rows else out, *inner))


def prefix_for(target_model: TargetModel, network: Network, dialect: Dialect) -> str | None:
    """What the dialect writes before this network's names, "" for nothing, None where it has no
    way to write them.
    """
    if network.name == DENOISER:
        root = f"{target_model.family.root}." if target_model.family else "transformer."
        return root if root in dialect.writes else next(iter(dialect.writes), "")
    for text in target_model.family.encoders.get(network.name, ()) if target_model.family else ():
        if text in dialect.encoders:
            return text
    pattern = next((text for text in dialect.encoders if "{encoder}" in text), None)
    return pattern.format(encoder=network.prefix) if pattern else None


def _names(
    network: Network, module: str, weight: str, names: str
) -> list[tuple[str, Rows | None, bool]]:
    """(name, rows of the weight, halves swapped) of a module: several where the other naming splits
    it.
    """
    parts = (
        []
        if names == "native"
        else names_of(network.family, module, network.weights[weight], names)
    )
    return parts or [(module, None, False)]


def names_of(
    family: Family | None, module: str, shape: tuple[int, ...], names: str = "diffusers"
) -> list[tuple[str, Rows | None, bool]]:
    """(name, rows of the weight, halves swapped) of the modules that make up a native one; none
    where no table has them.

    names: whose, "diffusers" or what a table's @names says.
    """
    if not family:
        return []
    for row in _rows_of(family, module):
        if not row.alternatives or (row.names or "diffusers") != names:
            continue
        alternative = row.alternatives[FIRST_SPELLING]
        placed = [
            spans
            for part in range(len(alternative.parts))
            if (spans := slices(row, FIRST_SPELLING, part, (shape,))) is not None
        ]
        if len(placed) == len(alternative.parts):
            spelled = family.spellings(
                row, FIRST_SPELLING, [number for _, number in numbered(row.native[0], module)]
            )
            return [
                (name, spans[0].rows, alternative.swap)
                for name, spans in zip(spelled, placed, strict=True)
            ]
    return []


def _rows_of(family: Family, module: str) -> Iterator[TableRow]:
    """The table's rows of a native module: the one that its name finds, and those of others' names
    for it.
    """
    for match in family.find(flatten(module)):
        if match.alternative == OWN_NAMES:
            yield match.row
            yield from (row for row in family.rows if row.names and row.native == match.row.native)
