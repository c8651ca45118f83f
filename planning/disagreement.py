"""Where the adapter_config.json beside a file cannot be read, or tells another strength than the
header: what counts, in a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..files.header import PEFT_CONFIG, Unreadable
from ..messages import message
from .scale import Settings, read_settings

# What the strength depends on, under all its names: see `scale_of`.
TELLING = (
    "r",
    "lora_alpha",
    "alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "rank_stabilized",
)
MAX_OF_VALUE = 40  # characters


def disagreement(
    metadata: Mapping[str, str], config_beside: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """A caution where no settings in the header agree with those beside the file, or those beside
    it cannot be read and none are in it.
    """
    if unreadable(config_beside) and not metadata.get("lora_adapter_metadata"):
        return unreadable(config_beside)
    if not config_beside or not metadata.get("lora_adapter_metadata"):
        return ()
    in_header = [
        settings
        for settings in read_settings(metadata, None).values()
        if any(name in settings.config for name in TELLING)
    ]
    others = [_different(settings, config_beside) for settings in in_header]
    if not others or not all(others):
        return ()
    name = others[0][0]
    return (
        message(
            "planning.settings_disagree",
            file=PEFT_CONFIG,
            name=name,
            header=_shown(in_header[0].config.get(name)),
            beside=_shown(config_beside.get(name)),
        ),
    )


def unreadable(config_beside: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A caution where there are settings beside a file, and nobody can read them; else ()."""
    if not isinstance(config_beside, Unreadable):
        return ()
    return (
        message("planning.settings_beside_unreadable", file=PEFT_CONFIG, fault=config_beside.fault),
    )


def _different(settings: Settings, config_beside: Mapping[str, Any]) -> list[str]:
    """The names of the settings that differ; an empty or missing one is none."""
    return [
        name
        for name in TELLING
        if (settings.config.get(name) or None) != (config_beside.get(name) or None)
    ]


def _shown(value: object) -> str:
    return message("planning.not_set") if value is None else str(value)[:MAX_OF_VALUE]
