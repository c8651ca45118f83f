"""A setting that a file can carry: its type, its range, and what holds where it is out of it."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from ..messages import message

# The types of settings, as ids of what they are called.
BOOLEAN, INTEGER, NUMBER = "adapters.boolean", "adapters.whole_number", "adapters.number"
MODULES = "adapters.module_names"  # its value is whether it means the module that is asked about
# Its value is the tuple of those of the module that is asked about.
TOKENS = "adapters.token_numbers"
WORD = "adapters.word"  # of those that the setting names
MAX_SHOWN = 60  # characters of a value or a pattern that a sentence repeats
MAX_RANK = 1_000_000
MAX_ALPHA = (
    1e9  # trainers write up to some thousands; AI-Toolkit's 1e10 stands where alpha does not count
)


class Setting(NamedTuple):
    """One setting: `least` and `most` are in its range; `default` holds where it is not stated or
    out of range (None: none does).

    words: all that a WORD may be. needed: without a value that holds, nothing is computed
    (`Kind.lacks`).
    """

    name: str
    type: str
    default: Any
    least: float = -math.inf
    most: float = math.inf
    # the id of what holds in its place, where the default does not say it
    instead: str = ""
    words: tuple[str, ...] = ()
    needed: bool = False

    def read(self, value: object) -> tuple[Any, str]:
        """(the value that holds, what is wrong with `value`, "" where nothing is). None is a
        setting that is not stated.
        """
        if value is None:
            return self.default, ""
        usable: Any = (
            (value if value in self.words else None)
            if self.type == WORD
            else typed(value, self.type)
        )
        if usable is None or not (self.type == WORD or self.least <= usable <= self.most):
            return self.default, self._fault(value)
        return usable, ""

    def _fault(self, value: object) -> str:
        if self.needed and not self.instead:
            return setting_unused(self.name, value, self.lawful)
        return message(
            "adapters.setting_replaced",
            name=self.name,
            value=shown(value),
            lawful=self.lawful,
            instead=message(self.instead) if self.instead else shown(self.default),
        )

    @property
    def lawful(self) -> str:
        """What it may be, in words."""
        if self.words:
            return message("adapters.one_of", words=", ".join(self.words))
        if math.isinf(self.most):
            return message(self.type)
        least, most = f"{self.least:g}", f"{self.most:g}"
        return message("adapters.in_range", type=message(self.type), least=least, most=most)


def setting_unused(name: str, value: object, lawful: str) -> str:
    """That a setting has a value which cannot be used; lawful: what it can be."""
    return message("adapters.setting_unused", name=name, value=shown(value), lawful=lawful)


def shown(value: object) -> str:
    """A value for a sentence: as JSON, and short."""
    if isinstance(value, (dict, list)):
        return message("adapters.object" if isinstance(value, dict) else "adapters.list")
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return message("adapters.many_digits")
    text = (
        json.dumps(value, ensure_ascii=True)
        if isinstance(value, (str, bool, int, float)) or value is None
        else str(value)
    )
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def typed(value: object, kind: str) -> Any:
    """The value as this type, None where it is of another: 5.0 and "5" are whole numbers, 0 and 1
    are true or false, NaN is nothing.
    """
    if kind == BOOLEAN:
        return bool(value) if isinstance(value, (bool, int)) and value in (0, 1) else None
    if isinstance(value, str) and len(value) <= MAX_SHOWN:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if not math.isfinite(number):
        return None
    if kind == INTEGER:
        return int(number) if number.is_integer() and abs(number) < 2**53 else None
    return number


# What several of PEFT's adapters multiply their change with, and draw their places from
SCALING = Setting("scaling", NUMBER, None, -MAX_ALPHA, MAX_ALPHA, needed=True)
SEED = Setting("random_loc_seed", INTEGER, None, 0, 2**53 - 1, needed=True)
