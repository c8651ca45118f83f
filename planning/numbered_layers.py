"""Knows files whose layers have numbers and no names, which tell nobody what they belong to."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import islice
from typing import NamedTuple

# weights.12.lora_up, unet:3:down, 7.lora_A.weight, lora_layers.0.alpha: what holds the layers, a
# number, a role. lora_up.12 has the role first; bare numbers have none.
WORD = r"(?:lora_?)?(?:up|down|a|b|mid|alpha|rank|scale|magnitude)"
ROLE = rf"{WORD}(?:[._:]weight)?"
BOX = r"(?:[A-Za-z][A-Za-z_.:]*[._:])??"
NAMES = re.compile(rf"({BOX})(\d+)[._:]{ROLE}|({BOX}){WORD}[._:](\d+)(?:[._:]weight)?|(\d+)", re.I)
LOOKED_AT = 24  # keys, before all are
MOST = 0.75  # share of the keys that have such names
MIN_LAYERS = 4  # numbered from 0 on without a gap
LONGEST = 100  # characters of such a name


class Layers(NamedTuple):
    """The layers of a file: how many, and what the first and the last are called."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which is not asked here
    first: str
    last: str


def numbered_layers(keys: Collection[str]) -> Layers | None:
    """The layers of a file that only numbers them, as one does that is saved from a list of
    torch's; None for all others.
    """
    step = max(1, len(keys) // LOOKED_AT)
    if not _mostly_numbered(list(islice(keys, 0, None, step))):
        return None
    boxes: dict[str, set[int]] = {}
    matched = 0
    for key in keys:
        match = NAMES.fullmatch(key) if len(key) <= LONGEST else None
        if match:
            before, number, box, other, bare = match.groups()
            boxes.setdefault(before or box or "", set()).add(int(number or other or bare))
            matched += 1
    whole = [box for box, numbers in boxes.items() if len(numbers) > max(numbers)]
    most = max(whole, key=lambda box: len(boxes[box]), default=None)
    if most is None or matched < MOST * len(keys) or len(boxes[most]) < MIN_LAYERS:
        return None
    count = sum(map(len, boxes.values()))
    return Layers(count, f"{most}0", f"{most}{max(boxes[most])}")


def _mostly_numbered(keys: Collection[str]) -> bool:
    named = sum(len(key) > LONGEST or not NAMES.fullmatch(key) for key in keys)
    return bool(keys) and named <= (1 - MOST) * len(keys)
