"""Every setting that a file can carry: its type, its range and what holds where it is out of it.
All who need one ask here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..adapters.registry import kinds
from ..adapters.setting import (
    BOOLEAN,
    INTEGER,
    MAX_ALPHA,
    MAX_RANK,
    MODULES,
    NUMBER,
    TOKENS,
    Setting,
    setting_unused,
    shown,
    typed,
)
from ..key_maps.pattern_syntax import Allowance
from ..key_maps.patterns import Patterns
from ..messages import joined, message

MAX_NAMED = 3  # patterns in one sentence
MAX_CAUTIONS = 20  # of one file's settings
MAX_TOKENS = 2**31  # in a vocabulary; real ones have some hundred thousand


RANK_AS_ALPHA = "planning.rank_as_alpha"
OF_ALL = (
    # PEFT: tuners/lora/config.py; LoKr and LoHa call it alpha
    Setting("lora_alpha", NUMBER, None, -MAX_ALPHA, MAX_ALPHA, RANK_AS_ALPHA),
    Setting("alpha", NUMBER, None, -MAX_ALPHA, MAX_ALPHA, RANK_AS_ALPHA),
    Setting("r", INTEGER, None, 1, MAX_RANK, RANK_AS_ALPHA),
    Setting("use_rslora", BOOLEAN, False),
    Setting("rank_stabilized", BOOLEAN, False),
)


@lru_cache(maxsize=1)
def settings() -> Mapping[str, Setting]:
    """Every setting by its name: of all adapters, and of single kinds."""
    return {
        setting.name: setting
        for setting in (*(setting for kind in kinds() for setting in kind.settings), *OF_ALL)
    }


# The value that a pattern sets, and the setting it stands for.
PATTERNED = {
    "alpha_pattern": Setting("alpha_pattern", NUMBER, None, -MAX_ALPHA, MAX_ALPHA),
    "rank_pattern": Setting("rank_pattern", INTEGER, None, 1, MAX_RANK),
}


def alpha_fault(value: object, counts: bool = True) -> str:
    """What is wrong with the value of an alpha tensor, "" where a strength can be made of it or
    where it does not count.
    """
    number = typed(value, NUMBER)
    if not counts or (number is not None and abs(number) <= MAX_ALPHA):
        return ""
    return message("planning.alpha_unusable", value=shown(value))


class Values:
    """The settings of one file for one network, read when they are asked for. `cautions` tells
    what was not used.

    where: what a sentence calls the place they stand in. Settings of one file share the `allowance`
    for their patterns.
    """

    def __init__(self, config: Mapping[str, Any], where: str, allowance: Allowance | None = None):
        self.config, self.where, self.allowance = config, where, allowance
        self.faults: dict[str, None] = {}
        self.patterns: dict[str, _Patterned | None] = {}
        self.meant: dict[str, tuple[str, ...] | Patterns | None] = {}

    def get(self, name: str) -> Any:
        """The value of the setting `name`: in its range, or the default."""
        value, fault = settings()[name].read(self.config.get(name))
        self._tell(fault)
        return value

    def of(self, name: str, module: str) -> Any:
        """The value of the setting `name` for a module."""
        read = {MODULES: self.names, TOKENS: self.tokens}.get(settings()[name].type)
        return read(name, module) if read else self.get(name)

    def names(self, name: str, module: str) -> bool | None:
        """Whether a setting of modules means this one: the name ends like one of a list, or is what
        a pattern says; None: unreadable.

        Source: peft 0.21.2 tuners/ia3/model.py _check_target_module_feedforward (endswith,
        re.fullmatch).
        """
        if name not in self.meant:
            self.meant[name] = self._meant(name, self.config.get(name))
        meant = self.meant[name]
        if not isinstance(meant, Patterns):
            return None if meant is None else module.endswith(meant)
        place, unread = meant.first(module)
        if unread:
            self._tell(
                message("planning.pattern_unread", name=name, pattern=shown(self.config[name]))
            )
        return None if unread else place is not None

    def tokens(self, name: str, module: str) -> tuple[int, ...] | None:
        """The token numbers that the setting `name` gives a module, in its order; None where it
        gives none that can be read.

        A list is for every module that has rows of its own; an object has names, or their ends, as
        keys. Source: peft 0.21.2 utils/other.py set_additional_trainable_modules, _set_trainable.
        """
        value = self.config.get(name)
        if isinstance(value, dict):
            lists = [
                tokens
                for key, tokens in value.items()
                if module.endswith(key) or f".{key}".endswith(f".{module}")
            ]
            if not lists:
                return None
            if any(one != lists[0] for one in lists):
                self._tell(message("planning.several_lists", name=name))
                return None
            value = lists[0]
        if isinstance(value, list) and all(
            type(one) is int and 0 <= one < MAX_TOKENS for one in value
        ):
            return tuple(value)
        self._tell(setting_unused(name, value, message(TOKENS)))
        return None

    def _meant(self, name: str, value: object) -> tuple[str, ...] | Patterns | None:
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
        if isinstance(value, str):
            return Patterns([f"^({value})"], self.allowance)
        self._tell(setting_unused(name, value, message(MODULES)))
        return None

    def states(self, name: str) -> bool:
        """Whether the setting is there and is not null."""
        return self.config.get(name) is not None

    def by_pattern(self, name: str, module: str, default: str) -> Any:
        """What the first pattern of `name` that fits the module's name says; else the setting
        `default`.
        """
        if name not in self.patterns:
            self.patterns[name] = self._patterned(name)
        patterned = self.patterns[name]
        value, fault = patterned.value(module) if patterned else (None, "")
        if fault:
            self._tell(message("planning.other_used", fault=fault, name=default))
        return self.get(default) if value is None else value

    @property
    def cautions(self) -> list[str]:
        """One sentence for each setting, and for all patterns of a kind, that were not used as they
        stand.
        """
        doubts = [patterned.doubt() for patterned in self.patterns.values() if patterned]
        return [
            message("joints.about", subject=self.where, text=text)
            for text in (*self.faults, *doubts)
            if text
        ]

    def _patterned(self, name: str) -> _Patterned | None:
        patterns = self.config.get(name)
        if isinstance(patterns, dict):
            return _Patterned(name, patterns, self.allowance) if patterns else None
        if patterns is not None:
            self._tell(setting_unused(name, patterns, message("planning.object_of_patterns")))
        return None

    def _tell(self, fault: str) -> None:
        if fault and len(self.faults) < MAX_CAUTIONS:
            self.faults[fault] = None


class _Patterned:
    """`alpha_pattern` or `rank_pattern`: its patterns, what they set, and how many modules each
    unread one may be about.
    """

    def __init__(self, name: str, patterns: Mapping[str, Any], allowance: Allowance | None):
        self.name, self.values = name, tuple(patterns.values())
        self.patterns = Patterns(map(str, patterns), allowance)
        self.places = {pattern: place for place, pattern in enumerate(self.patterns.patterns)}
        self.doubtful: dict[int, int] = {}  # number of unread patterns that may fit -> modules

    def value(self, module: str) -> tuple[Any, str]:
        """(what holds for the module, None where no pattern says it; what is wrong with it)."""
        place, unread = self.patterns.first(module)
        if place is None:
            # PEFT looks the name itself up where no pattern fits it.
            place = self.places.get(module)
        if unread:
            self.doubtful[unread] = self.doubtful.get(unread, 0) + 1
        return PATTERNED[self.name].read(self.values[place]) if place is not None else (None, "")

    def doubt(self) -> str:
        """A sentence on the patterns that could not be read, "" where no module may be meant by
        one.
        """
        if not self.doubtful:
            return ""
        unread = self.patterns.unread[: max(self.doubtful)]
        patterns = [
            message(
                "planning.pattern_sets",
                pattern=shown(self.patterns.patterns[place]),
                value=shown(self.values[place]),
            )
            for place in unread[:MAX_NAMED]
        ]
        if len(unread) > MAX_NAMED:
            patterns.append(message("planning.more_patterns", count=len(unread) - MAX_NAMED))
        return message(
            "planning.patterns_unread",
            name=self.name,
            patterns=joined(patterns, "comma"),
            count=sum(self.doubtful.values()),
        )
