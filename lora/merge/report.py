"""Tells what a merge did: from what, into what, where the LoRAs agree or fight,
and what was lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ...messages import ENGLISH, Message, Speaker, joined, message
from ...report.markdown import cell, code, plain, table
from ..math.low_rank import tensors_of
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
        tensors = tensors_of(merged.native.delta)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        name = (
            merged.native.weight
            if merged.native.parameter == "weight"
            else f"{merged.native.weight} (bias)"
        )
        self._row(
            name,
            merged.sources,
            rank=merged.rank,
            size=size,
            overlaps=merged.overlaps,
            kept=merged.kept,
            error=merged.error,
            norm=merged.norm,
        )

    def expect(self, expected: Forecast) -> None:
        """Take note of a forecast instead of results."""
        self.forecast, self.refused = True, expected.refused
        for row in expected.rows:
            self._row(
                row.name,
                row.sources,
                rank=row.rank,
                size=row.bytes,
                overlaps=row.overlaps,
                kept=row.kept,
                error=_error(row),
                norm=row.norm,
            )
        self.refactored = sum(row.refactored for row in expected.rows)

    def _row(
        self,
        name: str,
        sources: Sequence[int],
        *,
        rank: int | None,
        size: int,
        overlaps: Sequence[Overlap],
        kept: float | None,
        error: float | None,
        norm: float | None,
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
        return not (self.refused or self.unplaced or (self._cuts() and self.method.form != ENTRIES))

    @property
    def losses(self) -> list[Message]:
        """One sentence for each thing that is not in the result though nobody asked for that; empty
        for an exact merge.
        """
        refused = [
            message("merge.not_written", count=len(modules), lora=name, adapter=modules[0])
            for name, modules in self.refused.items()
        ]
        unplaced = [
            message("merge.not_whole", count=len(lost), lora=name, reason=next(iter(lost.values())))
            for name, lost in self.unplaced.items()
        ]
        return [*refused, *unplaced, *self._cuts()]

    @cached_property
    def _exact_size(self) -> int:
        """Bytes of the file where nothing is cut, at most."""
        return forecast(self.sources, self.recipe._replace(exact=True)).bytes

    def _cuts(self) -> list[Message]:
        """What is cut though nobody asked for it."""
        lost = [row for row in self.rows if (row["error"] or 0) > ROUNDING]
        if self.recipe.cuts or not (lost or self.refactored):
            return []
        remedy = message("merge.exact_instead", size=f"{self._exact_size / MEGABYTE:,.1f}")
        if self.forecast:
            return [message("merge.would_cut", count=self.refactored, remedy=remedy)]
        worst = max(lost, key=lambda row: row["error"])
        alike = len({row["rank"] for row in lost}) == 1
        cut = (
            message("merge.cut_to_rank", count=len(lost), rank=worst["rank"])
            if alike
            else message("merge.cut_to_ranks", count=len(lost))
        )
        error = f"{100 * worst['error']:.2g}"
        return [
            message("merge.not_exact", cut=cut, error=error, weight=worst["weight"], remedy=remedy)
        ]

    @property
    def verdict(self) -> Message:
        """One line: what was lost, and what came out."""
        return joined([*self.losses, self._result()], "space")

    def _result(self) -> Message:
        return message(
            "merge.would_be_merged" if self.forecast else "merge.merged",
            loras=message("merge.loras", count=len(self.sources)),
            method=self.method.title,
            weights=self._weights(),
            size=f"{sum(row['bytes'] for row in self.rows) / MEGABYTE:.1f}",
        )

    def _weights(self) -> Message:
        """How many weights there are, and of which ranks."""
        count, ranks = len(self.rows), sorted({row["rank"] for row in self.rows if row["rank"]})
        if not ranks:
            return message("merge.weights", count=count)
        if len(ranks) == 1:
            return message("merge.weights_of_rank", count=count, rank=ranks[0])
        return message("merge.weights_of_ranks", count=count, low=ranks[0], high=ranks[-1])

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

    def markdown(self, *, language: str = ENGLISH) -> str:
        """The report for people."""
        speak = Speaker(language)
        paper = f" ({self.method.paper})" * bool(self.method.paper)
        lines = [f"**{plain(speak(self.verdict))}**", "", f"{speak(self.method.text)}{paper}", ""]
        lines += [speak("merge.written_to", path=code(self.written)), ""] * bool(self.written)
        lines += [
            *self._table_of_sources(speak),
            *self._table_of_cuts(speak),
            *self._table_of_overlaps(speak),
            *self._left_out(speak),
        ]
        return "\n".join(lines).rstrip() + "\n"

    def _table_of_sources(self, speak: Speaker) -> Iterator[str]:
        rows = []
        for place in range(len(self.sources)):
            source = self._source(place)
            strengths = f"{source['strength_model']:g} / {source['strength_text_encoder']:g}"
            rows.append(
                (
                    cell(source["name"]),
                    strengths,
                    cell(", ".join(source["blocks"])) or "-",
                    str(source["weights"]),
                    str(source["alone"]),
                )
            )
        yield from table(
            (
                "LoRA",
                speak("merge.column_strength"),
                speak("inspect.head_blocks"),
                speak("merge.column_weights"),
                speak("merge.column_alone"),
            ),
            rows,
        )

    def _table_of_cuts(self, speak: Speaker) -> Iterator[str]:
        lost = sorted(
            (row for row in self.rows if (row["error"] or 0) > ROUNDING),
            key=lambda row: -row["error"],
        )
        if not lost:
            if not self.losses:
                yield from (
                    "",
                    speak("merge.nothing_would_be_cut")
                    if self.forecast
                    else speak("merge.nothing_lost"),
                )
            return
        sentences = [message("merge.cut_to_smaller", count=len(lost))]
        if self.kept is not None:
            sentences.append(message("merge.energy_kept", share=f"{100 * self.kept:.2f}"))
        yield from ("", f"## {speak('merge.heading_cut')}", "")
        yield from (speak.joined(sentences, "space"), "")
        rows = [
            (code(row["weight"]), str(row["rank"] or "-"), f"{row['error']:.4f}")
            for row in lost[:MAX_LISTED]
        ]
        yield from table(
            (speak("compare.weight"), speak("inspect.head_rank"), speak("merge.column_error")),
            rows,
        )
        yield from _more(len(lost), speak)

    def _table_of_overlaps(self, speak: Speaker) -> Iterator[str]:
        met = [
            (row["weight"], overlap)
            for row in self.rows
            for overlap in row["meetings"]
            if overlap["cosine"] is not None
        ]
        if not met:
            return
        yield from ("", f"## {speak('merge.heading_overlaps')}", "")
        yield speak(
            "merge.overlaps",
            count=len(met),
            alike=sum(overlap["cosine"] > ALIKE for _, overlap in met),
            above=ALIKE,
            opposed=sum(overlap["cosine"] < OPPOSED for _, overlap in met),
            below=OPPOSED,
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
        yield from table(
            (speak("compare.weight"), "LoRA", "LoRA", speak("compare.cosine_head")), rows
        )
        yield from _more(len(met), speak)

    def _left_out(self, speak: Speaker) -> Iterator[str]:
        for name, modules in self.refused.items():
            yield ""
            yield speak(
                "merge.adapters_need_model",
                lora=cell(name),
                count=len(modules),
                adapter=code(modules[0]),
            )
        for name, lost in self.unplaced.items():
            key, reason = next(iter(lost.items()))
            yield ""
            yield speak(
                "merge.keys_not_merged",
                lora=cell(name),
                count=len(lost),
                key=code(key),
                reason=cell(speak.text(reason)),
            )


def _error(row: ForecastRow) -> float | None:
    return None if row.kept is None else math.sqrt(max(0.0, 1 - row.kept))


def _more(count: int, speak: Speaker) -> list[str]:
    more = count - MAX_LISTED
    return [speak("joints.and_more", count=more)] if more > 0 else []
