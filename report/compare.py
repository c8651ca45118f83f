"""Compares two LoRA files by the layers they change, however each spells its names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ..key_maps.dialect import DENOISER
from ..key_maps.user_maps import NO_USER_MAPS, UserMaps
from ..messages import ENGLISH, Speaker, joined, message
from ..planning.target_model import model_alone
from .both_trained import both_trained
from .coverage import TrainedLayers, blocks_of
from .file_names import told_apart
from .inspection import Inspection, inspect_file, spread
from .markdown import cell, code, counted, table

MAX_LISTED = 40
MAX_BLOCKS = 80  # no published model has more


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
    def _trained(self) -> tuple[Sequence[TrainedLayers], Sequence[TrainedLayers]]:
        return self.first.report.trained, self.second.report.trained

    @property
    def unknown(self) -> list[str]:
        """Which of A and B change no layers that are known."""
        return [
            name
            for name, inspection in (("A", self.first), ("B", self.second))
            if not inspection.report.trained
        ]

    @property
    def one_model(self) -> bool:
        """Whether both can be for the same model."""
        families = [
            set(inspection.family.ties) | {inspection.family.name} - {""}
            for inspection in (self.first, self.second)
        ]
        return not all(families) or bool(families[0] & families[1])

    @property
    def verdict(self) -> str:
        """One line: how much they have in common."""
        if not self.one_model:
            return message(
                "compare.different_models",
                first=self.first.family.title,
                second=self.second.family.title,
            )
        if self.unknown:
            return message("compare.unknown_layers", files=joined(self.unknown, "and"))
        if self.same_layers:
            return message("compare.same_layers", count=len(self.layers))
        counts = [
            sum(bool(a and b) for a, b in self.layers.values()),
            *(sum(not pair[i] for pair in self.layers.values()) for i in (1, 0)),
        ]
        return message("compare.layers", both=counts[0], only_a=counts[1], only_b=counts[2])

    @property
    def facts(self) -> dict[str, tuple[str, str]]:
        """What is said of both: label -> (A, B)."""
        both = (self.first, self.second)
        facts: dict[str, Sequence[str]] = {
            "library.head_file": told_apart([file.path for file in both]),
            "library.head_made_for": [
                file.family.title or message("report.unknown") for file in both
            ],
            "library.head_trainer": [file.report.trainer_title for file in both],
            "compare.adapters": [counted(file.kinds) for file in both],
            "inspect.head_rank": [spread(file.ranks) for file in both],
            "inspect.head_alpha": [spread(file.alpha_counts) for file in both],
            "compare.scale": [spread(file.scales) for file in both],
            "compare.data_types": [counted(file.dtypes) for file in both],
            "compare.modules": [
                message("inspect.part_of", part=modules["placed"], whole=modules["total"])
                for modules in (file.report.modules for file in both)
            ],
        }
        return {message(label): (a, b) for label, (a, b) in facts.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "verdict": self.verdict,
            "one_model": self.one_model,
            "same_layers": self.same_layers,
            "facts": {label: list(pair) for label, pair in self.facts.items()},
            "layers": {name: list(pair) for name, pair in self.layers.items()},
            "networks": both_trained(*self._trained) if self.one_model else [],
        }

    def markdown(self, weights: Mapping[str, Any] | None = None, *, language: str = ENGLISH) -> str:
        """The comparison for people; `weights`: as_dict() of lora.statistics.Comparison and of
        lora.by_layer.ByLayer.
        """
        speak = Speaker(language)
        lines = [
            f"**{speak(self.verdict)}**",
            "",
            *self._fact_table(speak),
            *self._layer_table(speak),
            *(_weight_lines(weights, speak) if weights else ()),
        ]
        return "\n".join(lines) + "\n"

    def _fact_table(self, speak: Speaker) -> Iterator[str]:
        rows = (
            (speak.text(label), cell(speak.text(a)), cell(speak.text(b)))
            for label, (a, b) in self.facts.items()
        )
        yield from table(("", "A", "B"), rows)

    def _layer_table(self, speak: Speaker) -> Iterator[str]:
        apart = {name: pair for name, pair in self.layers.items() if pair[0] != pair[1]}
        if not apart:
            return
        yield from ("", f"## {speak('compare.layers_that_differ')}", "")
        rows = [
            (code(name), *(speak(blocks_of(choice)) if choice else "-" for choice in pair))
            for name, pair in list(apart.items())[:MAX_LISTED]
        ]
        yield from table((speak("compare.layer"), "A", "B"), rows)
        if len(apart) > MAX_LISTED:
            yield speak("joints.and_more", count=len(apart) - MAX_LISTED)


def _weight_lines(weights: Mapping[str, Any], speak: Speaker) -> Iterator[str]:
    yield from ("", f"## {speak('inspect.weights')}", "")
    yield "- " + speak("compare.cosine", cosine=_digits(weights["cosine"]))
    sizes = {side: _size(weights[f"norm_{side}"], speak) for side in "ab"}
    yield "- " + speak("compare.norms", **sizes)
    only = {side: _size(weights[f"energy_only_{side}"], speak) for side in "ab"}
    yield "- " + speak("compare.energy", **only)
    yield from _left_lines(weights["left_out"], speak)
    yield ""
    yield from _block_table(weights, speak)
    rows = []
    for overlap in weights["meetings"][:MAX_LISTED]:
        first, behind = overlap["rows"]
        place = speak("inspect.rows_of", weight=overlap["weight"], first=first, last=behind - 1)
        norms = (_size(overlap["norm_a"], speak), _size(overlap["norm_b"], speak))
        rows.append((code(place), _digits(overlap["cosine"]), *norms))
    heads = ("compare.weight", "compare.cosine_head", "compare.norm_a", "compare.norm_b")
    yield from table([speak(head) for head in heads], rows)


def _left_lines(left: Sequence[Mapping[str, str]], speak: Speaker) -> Iterator[str]:
    """What could not be measured, and so is in no number, and why."""
    if left:
        yield "- " + speak("compare.left_out", count=len(left))
    for one in left[:MAX_LISTED]:
        reason = speak.text(one["reason"])
        yield f"  - {one['file'].upper()}: {code(one['module'])}: {reason}"
    if len(left) > MAX_LISTED:
        yield "  - " + speak("joints.and_more", count=len(left) - MAX_LISTED)


def _block_table(weights: Mapping[str, Any], speak: Speaker) -> Iterator[str]:
    """Where the energy of each file lies."""
    rows = [
        (
            _block_name(block, speak),
            _digits(block["cosine"]),
            *(_percent(block[f"energy_{side}"], weights[f"norm_{side}"]) for side in "ab"),
        )
        for block in weights["blocks"]
    ]
    heads = ("compare.block", "compare.cosine_head", "compare.share_a", "compare.share_b")
    yield from table([speak(head) for head in heads], rows[:MAX_BLOCKS])
    if len(rows) > MAX_BLOCKS:
        yield speak("joints.and_more", count=len(rows) - MAX_BLOCKS)
    yield ""


def _block_name(block: Mapping[str, Any], speak: Speaker) -> str:
    place = "" if block["component"] == DENOISER else f"{block['component']}: "
    if not block["blocks"]:
        return place + speak("lora.outside_blocks")
    return code(f"{place}{block['blocks']}.{block['number']}")


def _percent(energy: float | None, norm: float | None) -> str:
    return f"{100 * energy / (norm * norm):.1f} %" if energy and norm else "-"


def _digits(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}"


def _size(number: float | None, speak: Speaker) -> str:
    return speak("compare.not_known") if number is None else f"{number:.4g}"


def _choices(inspection: Inspection) -> dict[str, str]:
    """Layer name with {} for the block -> its choice of blocks, for layers that
    are trained at all.
    """
    counts = {}
    for trained in inspection.report.trained:
        place = "" if trained.network == DENOISER else f"{trained.network}: "
        for blocks in trained.blocks:
            for kind in blocks.kinds:
                if kind.is_trained:
                    counts[place + blocks.layer(kind)] = kind.trained
    return counts


def compare_files(
    first: str | os.PathLike[str], second: str | os.PathLike[str], own: UserMaps = NO_USER_MAPS
) -> FileComparison:
    """Compare the safetensors files A and B by their headers. Raises LoraFileError.

    Where one file could be for several models, it is read as the other one is. own: as for
    `inspect_file`.
    """
    a, b = inspect_file(first, own=own), inspect_file(second, own=own)
    if a.family.name in b.family.ties:
        b = inspect_file(second, model_alone(a.plan.target_model), own, whole=True)
    elif b.family.name in a.family.ties:
        a = inspect_file(first, model_alone(b.plan.target_model), own, whole=True)
    return FileComparison(a, b)
