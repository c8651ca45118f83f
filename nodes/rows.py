"""The rows of LoRAs that a node keeps as JSON text, and which the front end shows as a list
(web/stack/).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

from comfy_api.latest import io

from ..messages import message, text_of
from .faults import noted
from .files import listed_name, lora_changed, lora_is_listed

STRONGEST = 100.0
FIELDS = ("on", "name", "strength", "strength_clip", "blocks")
SHAPE = '[{"on": true, "name": "folder/file.safetensors", "strength": 1.0}]'
WIRED = re.compile(r"lora_\d{1,2}")  # what a row names that stands for a connected LoRA


def rows_input(tooltip: str, blocks: bool | Literal["asked"] = False) -> io.Input:
    """The input `loras`; with `blocks` its rows have weights for parts of their LoRAs, which are
    shown always, or when asked for.
    """
    shown = {"widgetType": "LOCKSMITH_LORA_STACK"} | ({"blocks": blocks} if blocks else {})
    return io.String.Input(
        "loras", default="[]", socketless=True, extra_dict=shown, tooltip=tooltip
    )


def rows_are_right(
    loras: Any, blocks: bool = False, wired: Collection[str] | None = None
) -> bool | str:
    """True, or what is wrong with rows that cannot be read or name a file that is not there; blocks
    and wired: as of `read_rows`.
    """
    if loras is None:
        return True  # another node makes it
    try:
        read_rows(loras, blocks, wired)
    except ValueError as fault:
        return noted(text_of(fault))
    return True


def rows_changed(
    loras: Any, blocks: bool = False, wired: Collection[str] | None = None
) -> tuple | float:
    """Changes when a file that is on changes on disk; blocks and wired: as of `read_rows`."""
    if loras is None:
        # The host tells a node nothing of what another makes: it is run to be sure.
        return float("nan")
    try:
        return tuple(lora_changed(row.name) for row in read_rows(loras, blocks, wired) if row.on)
    except ValueError:
        return ()


class OfRows:
    """What nodes share whose input `loras` is rows of files alone."""

    @classmethod
    def validate_inputs(cls, loras=None) -> bool | str:
        """Refuse, before anything runs, rows that cannot be read and names that are not in the
        loras folders.
        """
        return rows_are_right(loras, wired=())

    @classmethod
    def fingerprint_inputs(cls, loras=None, **_) -> tuple | float:
        """Makes the node run again when a file that is on changes on disk."""
        return rows_changed(loras, wired=())


class StackRow(NamedTuple):
    """One LoRA of a stack, as the user set it; `number` counts from 1."""

    number: int
    on: bool
    name: str
    strength: float
    strength_clip: float
    blocks: str = ""

    @property
    def title(self) -> str:
        """Its number, file and strength, as a report names it."""
        values = {
            "number": self.number,
            "name": self.name,
            "strength": f"{self.strength:g}",
        }
        if self.strength_clip == self.strength:
            return message("nodes.row_title", **values)
        return message("nodes.row_title_clip", **values, clip=f"{self.strength_clip:g}")

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in the node's value."""
        fields = FIELDS if self.blocks else FIELDS[:4]
        return {name: getattr(self, name) for name in fields}


def read_rows(
    loras: str | Sequence[Any], blocks: bool = False, wired: Collection[str] | None = ()
) -> list[StackRow]:
    """The rows a value of the node stands for: JSON text, or the list itself. Raises ValueError,
    which names the row and the remedy.

    blocks: whether a row may have weights for parts of its LoRA. wired: names that stand for what
    is connected; None: any may.
    """
    if isinstance(loras, str):
        try:
            loras = json.loads(loras.strip() or "[]")
        except ValueError as fault:
            raise ValueError(message("nodes.rows_not_json", fault=fault, example=SHAPE)) from None
    if not isinstance(loras, list):
        raise ValueError(message("nodes.rows_not_a_list", example=SHAPE))
    return [
        _read_row(number, entry, FIELDS if blocks else FIELDS[:4], wired)
        for number, entry in enumerate(loras, 1)
    ]


def _read_row(
    number: int, entry: Any, fields: Sequence[str], wired: Collection[str] | None
) -> StackRow:
    if not isinstance(entry, dict):
        raise ValueError(
            message("nodes.row_not_a_row", number=number, value=short(entry), example=SHAPE[1:-1])
        )
    strange = [name for name in entry if name not in fields]
    if strange:
        raise ValueError(
            message(
                "nodes.row_unknown_field",
                number=number,
                field=short(strange[0]),
                fields=", ".join(fields),
            )
        )
    on, name = entry.get("on", True), entry.get("name")
    if not isinstance(on, bool):
        raise ValueError(message("nodes.row_on_not_boolean", number=number, value=short(on)))
    if not isinstance(name, str) or not name:
        raise ValueError(message("nodes.row_names_no_file", number=number))
    strength = _number(number, "strength", entry.get("strength", 1.0))
    strength_clip = _number(number, "strength_clip", entry.get("strength_clip", strength))
    blocks = entry.get("blocks", "")
    if not isinstance(blocks, str):
        raise ValueError(message("nodes.row_blocks_not_text", number=number, value=short(blocks)))
    is_wired = name in wired if wired is not None else WIRED.fullmatch(name)
    return StackRow(
        number,
        on,
        _listed(number, name) if on and not is_wired else name,
        strength,
        strength_clip,
        blocks,
    )


def _number(number: int, name: str, value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not -STRONGEST <= value <= STRONGEST
    ):
        raise ValueError(
            message(
                "nodes.row_strength_out_of_range",
                number=number,
                name=name,
                value=short(value),
                low=f"{-STRONGEST:g}",
                high=f"{STRONGEST:g}",
            )
        )
    return float(value)


def _listed(number: int, name: str) -> str:
    verdict = lora_is_listed(name)
    if verdict is True:
        return listed_name(name)
    raise ValueError(message("nodes.row_file_missing", number=number, fault=verdict))


def short(value: Any) -> str:
    """A value as a fault repeats it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]} ..."
