"""Compares two LoRA files by the layers they change, however each spells its names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from ..key_maps.dialect import DENOISER
from ..planning.target_model import model_alone
from .coverage import blocks_of
from .file_names import told_apart
from .inspection import Inspection, inspect_file, spread
from .markdown import cell, code, counted, table

MAX_LISTED = 40


class FileComparison:
    """Two inspections side by side."""

    def __init__(self, first: Inspection, second: Inspection):
        self.first, self.second = first, second

    @cached_property
    def layers(self) -> dict[str, tuple[str, str]]:
        """Layer name with {} for the block -> the blocks of it that A and that B train, "" for
        none.
        """
        both = [_choices(inspection) for inspection in (self.first, self.second)]
        return {
            name: (both[0].get(name, ""), both[1].get(name, ""))
            for name in dict.fromkeys([*both[0], *both[1]])
        }

    @property
    def same_layers(self) -> bool:
        """Whether both change just the same layers of the same model."""
        return self.one_model and not self.unknown and all(a == b for a, b in self.layers.values())

    @property
    def unknown(self) -> list[str]:
        """Which of A and B change no layers that are known."""
        return [
            name
            for name, found in (("A", self.first), ("B", self.second))
            if not found.report.trained
        ]

    @property
    def one_model(self) -> bool:
        """Whether both can be for the same model."""
        families = [
            set(found.family.ties) | {found.family.name} - {""}
            for found in (self.first, self.second)
        ]
        return not all(families) or bool(families[0] & families[1])

    @property
    def verdict(self) -> str:
        """One line: how much they have in common."""
        if not self.one_model:
            return (
                f"They are for different models: {self.first.family.title} and"
                f" {self.second.family.title}."
            )
        if self.unknown:
            return f"Which layers {' and '.join(self.unknown)} would change cannot be told."
        if self.same_layers:
            return f"Both change the same {len(self.layers)} kinds of layers, in the same blocks."
        counts = [
            sum(bool(a and b) for a, b in self.layers.values()),
            *(sum(not pair[i] for pair in self.layers.values()) for i in (1, 0)),
        ]
        return f"Both change {counts[0]} kinds of layers; {counts[1]} only A, {counts[2]} only B."

    @property
    def facts(self) -> dict[str, tuple[str, str]]:
        """What is told of both: label -> (A, B)."""
        both = (self.first, self.second)
        told = {
            "file": told_apart([found.path for found in both]),
            "made for": [found.family.title or "cannot tell" for found in both],
            "written by": [found.report.trainer for found in both],
            "adapters": [counted(found.kinds) for found in both],
            "rank": [spread(found.ranks) if found.ranks else "" for found in both],
            "alpha": [spread(found.alpha_counts) if found.alpha_counts else "" for found in both],
            "alpha / rank": [spread(found.scales) if found.scales else "" for found in both],
            "data types": [counted(found.dtypes) for found in both],
            "modules that load": [
                "{placed} of {total}".format(**found.report.modules) for found in both
            ],
        }
        return {label: (a, b) for label, (a, b) in told.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "verdict": self.verdict,
            "one_model": self.one_model,
            "same_layers": self.same_layers,
            "facts": {label: list(pair) for label, pair in self.facts.items()},
            "layers": {name: list(pair) for name, pair in self.layers.items()},
        }

    def markdown(self, weights: Mapping[str, Any] | None = None, *, language: str = "en") -> str:
        """The comparison for people; `weights`: what lora.weights.Comparison.as_dict() gives."""
        lines = [
            f"**{self.verdict}**",
            "",
            *self._facts_told(),
            *self._layers_told(),
            *(_weights_told(weights) if weights else ()),
        ]
        return "\n".join(lines) + "\n"

    def _facts_told(self) -> Iterator[str]:
        yield from table(
            ("", "A", "B"), [(label, cell(a), cell(b)) for label, (a, b) in self.facts.items()]
        )

    def _layers_told(self) -> Iterator[str]:
        apart = {name: pair for name, pair in self.layers.items() if pair[0] != pair[1]}
        if not apart:
            return
        yield from ("", "## Layers that differ", "")
        rows = [
            (code(name), blocks_of(a) if a else "-", blocks_of(b) if b else "-")
            for name, (a, b) in list(apart.items())[:MAX_LISTED]
        ]
        yield from table(("layer", "A", "B"), rows)
        yield from [f"and {len(apart) - MAX_LISTED} more"] * (len(apart) > MAX_LISTED)


def _weights_told(weights: Mapping[str, Any]) -> Iterator[str]:
    def told(number: float | None) -> str:
        return "-" if number is None else f"{number:.4f}"

    def size(number: float | None) -> str:
        return "not a number" if number is None else f"{number:.4g}"

    yield from (
        "",
        "## Weights",
        "",
        f"- Cosine of all changes together: {told(weights['cosine'])}",
    )
    yield f"- Norm of A {size(weights['norm_a'])}, of B {size(weights['norm_b'])}"
    yield (
        f"- Energy where only A changes anything: {size(weights['energy_only_a'])}; only B:"
        f" {size(weights['energy_only_b'])}"
    )
    yield ""
    overlaps = weights["meetings"][:MAX_LISTED]
    rows = [
        (
            code(f"{meeting['weight']}, rows {meeting['rows'][0]} to {meeting['rows'][1] - 1}"),
            told(meeting["cosine"]),
            size(meeting["norm_a"]),
            size(meeting["norm_b"]),
        )
        for meeting in overlaps
    ]
    yield from table(("weight", "cosine", "norm in A", "norm in B"), rows)


def _choices(inspection: Inspection) -> dict[str, str]:
    """Layer name with {} for the block -> its choice of blocks, for layers that
    are trained at all.
    """
    found = {}
    for trained in inspection.report.trained:
        place = "" if trained.network == DENOISER else f"{trained.network}: "
        for blocks in trained.blocks:
            for kind in blocks.kinds:
                if kind.is_trained:
                    found[place + blocks.layer(kind)] = kind.trained
    return found


def compare_files(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> FileComparison:
    """Compare the safetensors files A and B by their headers. Raises LoraFileError.

    Where one file could be for several models, it is read as the other one is.
    """
    a, b = inspect_file(first), inspect_file(second)
    if a.family.name in b.family.ties:
        b = inspect_file(second, model_alone(a.plan.target_model), whole=True)
    elif b.family.name in a.family.ties:
        a = inspect_file(first, model_alone(b.plan.target_model), whole=True)
    return FileComparison(a, b)
