"""How strong an adapter is meant to be: alpha, rank and adapter settings, from whatever the trainer
left in or beside the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..adapters.registry import named
from ..adapters.setting import shown
from ..files.json_text import read_json
from ..key_maps.pattern_syntax import Allowance
from ..messages import message
from .settings import Values

# Where a strength comes from, as ids of what that is called.
FROM_TENSORS, FROM_HEADER = "planning.from_tensors", "planning.from_header"
FROM_CONFIG, FROM_RANK = "planning.from_config", "planning.from_rank"
ORIGINS = frozenset({FROM_TENSORS, FROM_HEADER, FROM_CONFIG, FROM_RANK})
PACKED = "lora_adapter_metadata"  # diffusers' settings in the header: network.field -> value


class Strength(NamedTuple):
    """`scale` None: the alpha tensor (or, without one, alpha = rank) decides; `factor` multiplies
    what decides. origin: one of ORIGINS, or the title of a convention.
    """

    scale: float | None
    origin: str
    factor: float = 1.0

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        return in_words(self.origin)

    @property
    def by_tensors(self) -> bool:
        """Whether alpha tensor and rank alone decide."""
        return self.scale is None and self.factor == 1


def in_words(origin: str) -> str:
    """What one of ORIGINS is called; another text as it is."""
    return message(origin) if origin in ORIGINS else origin


class Settings:
    """PEFT's adapter settings for one network ("" for all): config dictionary, where it came
    from, and its values in their ranges.
    """

    def __init__(self, config: Mapping[str, Any], source: str, allowance: Allowance | None = None):
        self.config, self.source = config, source
        self.values = Values(config, in_words(source), allowance)


def read_settings(
    metadata: Mapping[str, str], config_beside: Mapping[str, Any] | None
) -> dict[str, Settings]:
    """Adapter settings by network prefix: `transformer`, `unet`, `text_encoder` ...; "" where
    they name none.

    Those in the header were written together with the tensors; those beside the file count only
    where it has none.
    """
    settings: dict[str, Settings] = {}
    allowance = Allowance()
    content, _ = _unpacked(metadata)
    parts: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        network, _, field = key.rpartition(".")
        parts.setdefault(network, {})[field] = value
    for network, config in parts.items():
        settings[network] = Settings(config, FROM_HEADER, allowance)
    return settings or (
        {"": Settings(config_beside, FROM_CONFIG, allowance)} if config_beside else {}
    )


def _unpacked(metadata: Mapping[str, str]) -> tuple[Mapping[str, Any], str]:
    """(the header's settings, what is wrong with them)."""
    text = metadata.get(PACKED, "")
    try:
        content = read_json(text) if text else {}
    except ValueError:
        return {}, message("files.not_json")
    if content is None or isinstance(content, dict):
        return content or {}, ""
    return {}, message("planning.not_an_object", value=shown(content))


def cautions_of(
    settings: Iterable[Settings | None], metadata: Mapping[str, str]
) -> tuple[str, ...]:
    """What the settings say that was not used, a sentence each, once they have been asked for all
    that is needed.
    """
    _, fault = _unpacked(metadata)
    cautions: list[str] = (
        [message("planning.header_unreadable", where=message(FROM_HEADER), fault=fault)]
        if fault
        else []
    )
    for one in settings:
        if one is not None:
            cautions += one.values.cautions
    return tuple(dict.fromkeys(cautions))


def settings_for(settings: Mapping[str, Settings], prefix: str) -> Settings | None:
    """The settings that hold for a key with this prefix; those that name no network hold for
    all.
    """
    for network, own in settings.items():
        if network and f".{network}." in f".{prefix}":
            return own
    if "" in settings:
        return settings[""]
    networks = [network for network in settings if not network.startswith("text_encoder")]
    if len(networks) == 1 and not prefix.startswith(("text_encoder", "lora_te")):
        return settings[networks[0]]
    return None


NUMBERLESS = frozenset({"BOOL", "C64"})  # dtypes that hold no number, as the header calls them


def scale_of(settings: Settings | None, name: str, rank: int | None, kind: str) -> Strength:
    """The scale PEFT's settings give the module `name`: lora_alpha / r, or / sqrt(r) with
    use_rslora, patterns first.

    Source: peft tuners/lora/config.py and utils/other.py get_pattern_key; LoKr and LoHa call the
    field `alpha`.
    """
    known = named(kind)
    if settings is None or not known.scaled or known.own_scale:
        return Strength(None, FROM_RANK)
    values = settings.values
    alpha = values.by_pattern(
        "alpha_pattern", name, "lora_alpha" if values.states("lora_alpha") else "alpha"
    )
    rank = values.by_pattern("rank_pattern", name, "r") if known.rank_in_settings else rank
    if alpha is None or not rank:
        return Strength(None, FROM_RANK)
    stabilized = values.get("use_rslora") or values.get("rank_stabilized")
    return Strength(alpha / (rank**0.5 if stabilized else rank), settings.source)
