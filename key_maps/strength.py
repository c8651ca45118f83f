"""How strong an adapter is meant to be: alpha, rank and adapter settings, from whatever the trainer left in or beside the file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

FROM_TENSORS = "alpha tensors in the file"
FROM_HEADER = "lora_adapter_metadata in the file's header"
FROM_CONFIG = "adapter_config.json beside the file"
FROM_SPLITS = "alpha tensors, corrected for sd-scripts' split_qkv (saved with a multiple of the rank but the old alpha)"
FROM_RANK = "none named in the file: alpha = rank"
MOST_PATTERN = 200  # characters of a pattern from a stranger's file that are tried as a regular expression


class Strength(NamedTuple):
    """`scale` None: the alpha tensor (or, without one, alpha = rank) decides; `factor` multiplies what decides."""

    scale: float | None
    source: str
    factor: float = 1.0

    @property
    def by_tensors(self) -> bool:
        """Whether alpha tensor and rank alone decide."""
        return self.scale is None and self.factor == 1


class Settings(NamedTuple):
    """PEFT's adapter settings for one component ("" for all): config dictionary and where it came from."""

    config: Mapping[str, Any]
    source: str


def read_settings(metadata: Mapping[str, str], config_beside: Mapping[str, Any] | None) -> dict[str, Settings]:
    """Adapter settings by component prefix: `transformer`, `unet`, `text_encoder` ...; "" where they name none."""
    settings: dict[str, Settings] = {}
    if config_beside:
        settings[""] = Settings(config_beside, FROM_CONFIG)
    try:
        content = json.loads(metadata.get("lora_adapter_metadata", "null"))
    except (ValueError, RecursionError):
        content = None
    parts: dict[str, dict[str, Any]] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        component, _, field = key.rpartition(".")
        parts.setdefault(component, {})[field] = value
    for component, config in parts.items():
        settings[component] = Settings(config, FROM_HEADER)
    return settings


def settings_for(settings: Mapping[str, Settings], wrapper: str) -> Settings | None:
    """The settings that hold for a key with this wrapper; those that name no component hold for all."""
    for component, found in settings.items():
        if component and (wrapper.startswith(component + ".") or f".{component}." in f".{wrapper}"):
            return found
    if "" in settings:
        return settings[""]
    components = [component for component in settings if not component.startswith("text_encoder")]
    if len(components) == 1 and not wrapper.startswith(("text_encoder", "lora_te")):
        return settings[components[0]]
    return None


SCALED = ("lora", "loha", "lokr", "bias_lora")  # kinds whose change PEFT scales; a LoKr of full factors has no rank but a scale


def scale_of(settings: Settings | None, name: str, rank: int | None, kind: str) -> Strength:
    """The scale PEFT's settings give the module `name`: lora_alpha / r, or / sqrt(r) with use_rslora, patterns first.

    Source: peft tuners/lora/config.py and utils/other.py get_pattern_key; LoKr and LoHa call the field `alpha`.
    """
    if settings is None or kind not in SCALED or (rank is None and kind != "lokr"):
        return Strength(None, FROM_RANK)
    config = settings.config
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", config.get("alpha")))
    rank = _by_pattern(config.get("rank_pattern"), name, config.get("r")) if kind == "lokr" else rank
    if not _is_number(alpha) or not _is_number(rank) or rank <= 0:
        return Strength(None, FROM_RANK)
    divisor = rank**0.5 if config.get("use_rslora") or config.get("rank_stabilized") else rank
    return Strength(alpha / divisor, settings.source)


def _by_pattern(patterns: object, name: str, default: Any) -> Any:
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        compiled = _compiled(str(pattern))
        if compiled is not None and compiled.match(name):
            return value
    return default


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    # A stranger's regular expression is only trusted without nested repetition, which may take for ever.
    if len(pattern) > MOST_PATTERN or re.search(r"[*+}]\)?[*+{]", pattern):
        return None
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        return None


def _is_number(value: object) -> bool:
    """Whether a value from a file can be computed with: JSON, as Python reads it, has NaN and numbers that are too large."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def split_qkv_rank(metadata: Mapping[str, str]) -> int | None:
    """The rank each split was trained with, where sd-scripts' `split_qkv` network wrote the file; else None.

    sd-scripts networks/lora_flux.py merges the splits on saving to rank 3r (qkv) or 4r (linear1) and keeps alpha: issue #2204.
    """
    if "split_qkv" not in metadata.get("ss_network_args", ""):
        return None
    try:
        arguments = json.loads(metadata["ss_network_args"])
        if str(arguments.get("split_qkv")).lower() != "true":
            return None
        return int(float(metadata.get("ss_network_dim", "")))
    except (ValueError, AttributeError, RecursionError, OverflowError):
        return None
