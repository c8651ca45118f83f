"""Knows adapters that are not computed: what they are called, why, and what to do."""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..key_maps import KEY_MAPS
from ..key_maps.lines import TextError, lines_of, read_text
from ..messages import message

NOT_COMPUTED_TABLE = KEY_MAPS / "not_computed.table"
MIN_LITERAL = 4  # characters of a pattern without a wildcard: what keys are sifted by
# What the table calls a reason with its remedy -> the id of that.
REASONS = {
    "block_outputs": "planning.why_block_outputs",
    "condition_tokens": "planning.why_condition_tokens",
    "joint_decomposition": "planning.why_joint_decomposition",
    "missing_clusters": "planning.why_missing_clusters",
    "missing_singular_vectors": "planning.why_missing_singular_vectors",
    "motion_module": "planning.why_motion_module",
    "no_weight": "planning.why_no_weight",
    "one_vector": "planning.why_one_vector",
    "order_of_layers": "planning.why_order_of_layers",
    "own_kronecker_sum": "planning.why_own_kronecker_sum",
    "packed_for_nunchaku": "planning.why_packed_for_nunchaku",
    "reference_tokens": "planning.why_reference_tokens",
    "router_of_experts": "planning.why_router_of_experts",
    "router_of_loras": "planning.why_router_of_loras",
    "router_of_matrices": "planning.why_router_of_matrices",
    "router_of_tasks": "planning.why_router_of_tasks",
    "second_network": "planning.why_second_network",
    "small_singular_parts": "planning.why_small_singular_parts",
}
WILDCARDS = re.compile(r"[*?]")


class Known(NamedTuple):
    """One line: the adapter's name, why it is not applied and the remedy (a name of REASONS, or a
    text), and patterns over the whole key.
    """

    title: str
    reason: str
    patterns: tuple[re.Pattern[str], ...]

    @property
    def sentence(self) -> str:
        """Its name, and why it is not applied."""
        reason = message(REASONS[self.reason]) if self.reason in REASONS else self.reason
        return message("joints.about", subject=self.title, text=reason)


class _Records(NamedTuple):
    records: tuple[Known, ...]
    sieve: re.Pattern[str]  # found in every key that a pattern matches


@lru_cache(maxsize=1)
def known_adapters(path: Path = NOT_COMPUTED_TABLE) -> _Records:
    """Read the records; raises TextError naming file, line, fault and remedy."""
    records: dict[str, Known] = {}
    literals: dict[str, None] = {}
    for number, line in lines_of(read_text(path)):
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 3 or not all(fields):
            raise TextError(message("planning.not_computed_fields", file=path, line=number))
        title, reason, patterns = fields
        if title in records:
            raise TextError(
                message("planning.not_computed_twice", file=path, line=number, title=title)
            )
        for pattern in patterns.split():
            literal = max(WILDCARDS.split(pattern), key=len)
            if len(literal) < MIN_LITERAL:
                raise TextError(
                    message(
                        "planning.pattern_too_short",
                        file=path,
                        line=number,
                        pattern=pattern,
                        characters=MIN_LITERAL,
                    )
                )
            literals[literal] = None
        records[title] = Known(
            title,
            reason,
            tuple(re.compile(fnmatch.translate(pattern)) for pattern in patterns.split()),
        )
    return _Records(tuple(records.values()), re.compile("|".join(map(re.escape, literals))))


def not_computed(key: str) -> Known | None:
    """The adapter that a key is of, where it is one that is known and not computed."""
    known = known_adapters()
    if known.sieve.search(key) is None:
        return None
    return next(
        (one for one in known.records if any(pattern.match(key) for pattern in one.patterns)), None
    )
