"""Tells what a merge did: from what, into what, where the LoRAs agree or fight,
and what was lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ...report.load_report import plural
from ...report.markdown import cell, code, plain, table
from ..math.low_rank import Factors, Kronecker
from .collect import Source, unplaced
from .dry_run import Forecast, ForecastRow, forecast
from .merge import MergeConfig, Merged, Overlap
from .methods import ENTRIES, find

__all__ = ["MergeReport"]

MAX_LISTED = 12
ALIKE, OPPOSED = 0.9, -0.2
MEGABYTE = 1e6
# Of a weight's change: what decompositions in fp32 leave of what has just this rank.
ROUNDING = 1e-5


class MergeReport:
    """Collects results (`add`) or a forecast (`expect`) of the merge of these sources."""

    def __init__(self, sources: Sequence[Source], recipe: MergeConfig):
        self.sources, self.recipe = sources, recipe
        self.method = find(recipe.method)
        self.rows: list[dict[str, Any]] = []
        self.unplaced = unplaced(sources)
        self.refused: Mapping[str, Sequence[str]] = {}
        self.refactored = 0  # weights that a forecast expects to be cut though nobody asked for it
        self.forecast = False
        self.written = ""  # the file, where there is one

    def add(self, merged: Merged) -> None:
        """Take note of one result; its tensors are not kept."""
        delta = merged.native.delta
        halves = (delta.first, delta.second) if isinstance(delta, Kronecker) else (delta,)
        tensors = [
            tensor
            for half in halves
            for tensor in ((half.up, half.down) if isinstance(half, Factors) else (half,))
            if tensor is not None
        ]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        name = (
            merged.native.weight
            if merged.native.parameter == "weight"
            else f"{merged.native.weight} (bias)"
        )
        self._row(
            name,
            merged.sources,
            merged.rank,
            size,
            merged.overlaps,
            merged.kept,
            merged.error,
            merged.norm,
        )

    def expect(self, told: Forecast) -> None:
        """Take note of a forecast instead of results."""
        self.forecast, self.refused = True, told.refused
        for row in told.rows:
            self._row(
                row.name,
                row.sources,
                row.rank,
                row.bytes,
                row.overlaps,
                row.kept,
                _error(row),
                row.norm,
            )
        self.refactored = sum(row.refactored for row in told.rows)

    def _row(
        self, name, sources, rank, size, overlaps: Sequence[Overlap], kept, error, norm
    ) -> None:
        met = [overlap._asdict() for overlap in overlaps]
        self.rows.append(
            {
                "weight": name,
                "sources": list(sources),
                "rank": rank,
                "bytes": size,
                "meetings": met,
                "kept": kept,
                "error": error,
                "norm": norm,
            }
        )

    @property
    def is_whole(self) -> bool:
        """Whether all that the sources do is in it; what was asked for, and what the method leaves
        out by itself, is no loss.
        """
        return not (
            self.refused or self.unplaced or (self._cut_told() and self.method.form != ENTRIES)
        )

    @property
    def losses(self) -> list[str]:
        """One sentence for each thing that is not in the result though nobody asked for that; empty
        for an exact merge.
        """
        told = []
        for name, modules in self.refused.items():
            told.append(
                f"Nothing would be written: {plural(len(modules), 'adapter')} of {name} need the"
                f" model, such as {modules[0]}."
            )
        for name, lost in self.unplaced.items():
            are = "is" if len(lost) == 1 else "are"
            reason = next(iter(lost.values()))
            told.append(
                f"Not whole: {plural(len(lost), 'key')} of {name} {are} left out: {reason}."
            )
        return told + self._cut_told()

    @cached_property
    def _exact_size(self) -> int:
        """Bytes of the file where nothing is cut, at most."""
        return forecast(self.sources, self.recipe._replace(exact=True)).bytes

    def _cut_told(self) -> list[str]:
        lost = [row for row in self.rows if (row["error"] or 0) > ROUNDING]
        if self.recipe.cuts or not (lost or self.refactored):
            return []
        remedy = (
            f"exact (--exact) writes them as full differences, {self._exact_size / MEGABYTE:,.1f}"
            " MB in all"
        )
        if self.forecast:
            cut = (
                f"{plural(self.refactored, 'weight')} would be cut, as no exact factors are small"
                " enough"
            )
            return [f"Not exact: {cut}; how much that loses is known when it is done; {remedy}."]
        worst = max(lost, key=lambda row: row["error"])
        cut = (
            f"{plural(len(lost), 'weight')} cut to rank {worst['rank']}"
            if len({row["rank"] for row in lost}) == 1
            else ""
        )
        cut = cut or f"{plural(len(lost), 'weight')} cut to smaller ranks"
        return [
            f"Not exact: {cut}, the largest error {100 * worst['error']:.2g} % of the change of"
            f" {worst['weight']}; {remedy}."
        ]

    @property
    def verdict(self) -> str:
        """One line: what was lost, and what came out."""
        return " ".join([*self.losses, self._made_told()])

    def _made_told(self) -> str:
        ranks = sorted({row["rank"] for row in self.rows if row["rank"]})
        told = (
            f" of rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else ""
        )
        size = sum(row["bytes"] for row in self.rows) / MEGABYTE
        done = "would be merged" if self.forecast else "merged"
        return (
            f"{plural(len(self.sources), 'LoRA')} {done} by {self.method.title}:"
            f" {plural(len(self.rows), 'weight')}{told}, {size:.1f} MB."
        )

    @property
    def kept(self) -> float | None:
        """Share of the energy of the exact result that is kept, where norms were measured."""
        known = [
            (row["norm"] ** 2, row["kept"])
            for row in self.rows
            if row["norm"] is not None and row["kept"] is not None
        ]
        total = math.fsum(energy for energy, _ in known)
        return (
            math.fsum(energy * kept for energy, kept in known) / total
            if total and math.isfinite(total)
            else None
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "verdict": self.verdict,
            "losses": self.losses,
            "forecast": self.forecast,
            "written": self.written,
            "recipe": dict(self.recipe._asdict()) | {"options": dict(self.recipe.options)},
            "paper": self.method.paper,
            "sources": [self._source(place) for place in range(len(self.sources))],
            "kept": self.kept,
            "weights": self.rows,
            "unplaced": {name: dict(lost) for name, lost in self.unplaced.items()},
            "refused": {name: list(modules) for name, modules in self.refused.items()},
        }

    def _source(self, place: int) -> dict[str, Any]:
        source = self.sources[place]
        touched = [row["sources"] for row in self.rows if place in row["sources"]]
        return {
            "name": source.name,
            "strength_model": source.strength_model,
            "strength_text_encoder": source.strength_text_encoder,
            "blocks": [entry.text for entry in source.blocks.entries],
            "weights": len(touched),
            "alone": sum(len(sources) == 1 for sources in touched),
        }

    def markdown(self, language: str = "en") -> str:
        """The report for people."""
        lines = [f"**{plain(self.verdict)}**", "", f"{self.method.text} ({self.method.paper})", ""]
        lines += [f"Written to {code(self.written)}.", ""] * bool(self.written)
        lines += [
            *self._sources_told(),
            *self._losses_told(),
            *self._meetings_told(),
            *self._unplaced_told(),
        ]
        return "\n".join(lines).rstrip() + "\n"

    def _sources_told(self) -> Iterator[str]:
        rows = []
        for place in range(len(self.sources)):
            told = self._source(place)
            strengths = f"{told['strength_model']:g} / {told['strength_text_encoder']:g}"
            rows.append(
                (
                    cell(told["name"]),
                    strengths,
                    cell(", ".join(told["blocks"])) or "-",
                    str(told["weights"]),
                    str(told["alone"]),
                )
            )
        yield from table(
            ("LoRA", "strength (model / text encoder)", "blocks", "weights", "it alone changes"),
            rows,
        )

    def _losses_told(self) -> Iterator[str]:
        lost = sorted(
            (row for row in self.rows if (row["error"] or 0) > ROUNDING),
            key=lambda row: -row["error"],
        )
        if not lost:
            if not self.losses:
                exact = (
                    "Nothing would be cut."
                    if self.forecast
                    else "Nothing was lost: the result is exact, but for rounding."
                )
                yield from ("", exact)
            return
        whole = (
            f" {100 * self.kept:.2f} % of the energy is kept in all."
            if self.kept is not None
            else ""
        )
        yield from (
            "",
            "## What was cut",
            "",
            f"{plural(len(lost), 'weight')} cut to a smaller rank.{whole}",
            "",
        )
        rows = [
            (code(row["weight"]), str(row["rank"] or "-"), f"{row['error']:.4f}")
            for row in lost[:MAX_LISTED]
        ]
        yield from table(("weight", "rank", "relative error"), rows)
        yield from _more(len(lost))

    def _meetings_told(self) -> Iterator[str]:
        met = [
            (row["weight"], overlap)
            for row in self.rows
            for overlap in row["meetings"]
            if overlap["cosine"] is not None
        ]
        if not met:
            return
        counts = [
            sum(overlap["cosine"] > ALIKE for _, overlap in met),
            sum(overlap["cosine"] < OPPOSED for _, overlap in met),
        ]
        yield from ("", "## Where they meet", "")
        alike, opposed = (
            f"(cosine {word} {limit})" for word, limit in (("above", ALIKE), ("below", OPPOSED))
        )
        yield (
            f"{plural(len(met), 'overlap')} on shared weights: {counts[0]} nearly parallel {alike},"
            f" {counts[1]} opposed {opposed}."
        )
        yield ""
        met.sort(key=lambda pair: -abs(pair[1]["cosine"]))
        names = [cell(source.name) for source in self.sources]
        rows = [
            (
                code(name),
                names[overlap["first"]],
                names[overlap["second"]],
                f"{overlap['cosine']:.4f}",
            )
            for name, overlap in met[:MAX_LISTED]
        ]
        yield from table(("weight", "LoRA", "LoRA", "cosine"), rows)
        yield from _more(len(met))

    def _unplaced_told(self) -> Iterator[str]:
        for name, modules in self.refused.items():
            yield from (
                "",
                (
                    f"{cell(name)}: {plural(len(modules), 'adapter')} need the model, such as"
                    f" {code(modules[0])}."
                ),
            )
        for name, lost in self.unplaced.items():
            key, reason = next(iter(lost.items()))
            told = (
                f"{plural(len(lost), 'key')} found no place and {'is' if len(lost) == 1 else 'are'}"
                " not in the merge"
            )
            yield from ("", f"{cell(name)}: {told}, such as {code(key)}: {cell(reason)}")


def _error(row: ForecastRow) -> float | None:
    return None if row.kept is None else math.sqrt(max(0.0, 1 - row.kept))


def _more(count: int) -> list[str]:
    return [f"and {count - MAX_LISTED} more"] * (count > MAX_LISTED)
