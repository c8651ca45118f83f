"""Knows the keys that have no effect by themselves: the trainer's notes, and leftovers of a
quantized base model.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from pathlib import Path

from ..key_maps import KEY_MAPS
from ..key_maps.lines import lines_of, read_text
from ..messages import message

BOOKKEEPING_TABLE = KEY_MAPS / "bookkeeping.table"
QUANTIZED = "quantized"  # in the table, and the tool behind it
# What else the table calls a key -> the id of that.
NOTES = {
    "boft_order": "planning.key_boft_order",
    "bundled_embedding": "planning.key_bundled_embedding",
    "conversion_notes": "planning.key_conversion_notes",
    "copied_layer": "planning.key_copied_layer",
    "copied_weight": "planning.key_copied_weight",
    "embedding": "planning.key_embedding",
    "epoch_counter": "planning.key_epoch_counter",
    "monteclora_sampler": "planning.key_monteclora_sampler",
    "norm_counter": "planning.key_norm_counter",
    "position_ids": "planning.key_position_ids",
    "slider_notes": "planning.key_slider_notes",
    "step_counter": "planning.key_step_counter",
    "trained_words": "planning.key_trained_words",
    "training_state": "planning.key_training_state",
    "velora_embedding": "planning.key_velora_embedding",
}


@lru_cache(maxsize=1)
def _bookkeeping_rules(
    path: Path = BOOKKEEPING_TABLE,
) -> tuple[dict[str, str], tuple[tuple[re.Pattern[str], str], ...]]:
    """(last word -> what it is for patterns of the form *.word, all others compiled)."""
    endings, others = {}, []
    for _, line in lines_of(read_text(path)):
        pattern, _, meaning = line.strip().partition(" ")
        if pattern.startswith("*.") and "*" not in pattern[2:] and "." not in pattern[2:]:
            endings[pattern[2:]] = meaning.strip()
        else:
            others.append((re.compile(fnmatch.translate(pattern)), meaning.strip()))
    return endings, tuple(others)


# The endings of nearly every key in nearly every file; none is bookkeeping, whatever stands before
# it.
ORDINARY = frozenset({"alpha"})


def bookkeeping(key: str) -> str:
    """What a key is that has no effect by itself; empty for all others."""
    endings, others = _bookkeeping_rules()
    last = key.rpartition(".")[2]
    if last in ORDINARY:
        return ""
    if last in endings:
        return _note(endings[last])
    if last == "weight" and ".lora" in key and "base_layer" not in key:
        return ""
    return next((_note(meaning) for pattern, meaning in others if pattern.match(key)), "")


def _note(meaning: str) -> str:
    """What the table's name of a key means, in words."""
    name, _, tool = meaning.partition(" ")
    if name == QUANTIZED:
        return message("planning.key_quantized", tool=tool.strip())
    return message(NOTES[name])
