"""Where the adapter_config.json beside a file cannot be read, or tells another strength than the
header: what counts, in a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..files.header import PEFT_CONFIG, Unreadable
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
    found = [
        settings
        for settings in read_settings(metadata, None).values()
        if any(name in settings.config for name in TELLING)
    ]
    others = [_different(settings, config_beside) for settings in found]
    if not others or not all(others):
        return ()
    name = others[0][0]
    told = (
        f"{name} is {_shown(found[0].config.get(name))} in the header and"
        f" {_shown(config_beside.get(name))} in {PEFT_CONFIG}"
    )
    return (
        (
            f"The settings in the file's header and in the {PEFT_CONFIG} beside it differ: {told}."
            f" The header counts here, PEFT itself reads {PEFT_CONFIG}: save both again from where"
            " the file was trained, or remove the one that is not its own."
        ),
    )


def unreadable(config_beside: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A caution where there are settings beside a file, and nobody can read them; else ()."""
    if not isinstance(config_beside, Unreadable):
        return ()
    return (
        (
            f"The {PEFT_CONFIG} beside the file cannot be read ({config_beside.fault}), so that"
            " alpha = rank where nothing else tells it: get it again from where the file is from."
        ),
    )


def _different(settings: Settings, config_beside: Mapping[str, Any]) -> list[str]:
    """The names of the settings that differ; an empty or missing one is none."""
    return [
        name
        for name in TELLING
        if (settings.config.get(name) or None) != (config_beside.get(name) or None)
    ]


def _shown(value: object) -> str:
    return "not set" if value is None else str(value)[:MAX_OF_VALUE]
