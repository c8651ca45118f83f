"""What a file's metadata say of its model, held against its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..key_maps.dialect import DENOISER
from ..key_maps.table import Family
from ..messages import joined, message
from ..planning.target_model import TargetModel
from .lora_family import (
    FAMILY_METADATA,
    LONGEST_VALUE,
    FamilyMatch,
    family_named,
    meanings_of,
    short_title,
)
from .variants import agrees, published, titled, told_variant

NETWORK_MODULE = "ss_network_module"  # names the trainer's code, which serves related models too
LONGEST_NAME = 300  # characters of a name that are searched
MIN_KNOWN = 0.5  # share of a file's patterns that a model must know for which that code can be
SIZE = re.compile(r"\d+(?:\.\d+)?b(?![a-z0-9])|medium|large")  # bare numbers are versions


def contradiction(
    metadata: Mapping[str, str], guess: FamilyMatch, target_model: TargetModel
) -> str:
    """That the metadata name another model than names and shapes do, in a sentence; "" where they
    do not, or where the file's model cannot be told.
    """
    claims: dict[str, list[str]] = {}
    known = [one for one in target_model.families.values() if one.kind == DENOISER]
    for key in FAMILY_METADATA if guess.samples and guess.title else ():
        value = metadata.get(key)
        if isinstance(value, str) and (family := family_named(known, key, value)):
            claimed = _claimed(family, key, value, guess, target_model)
            if claimed:
                claims.setdefault(claimed, []).append(f"{key} = {value[:LONGEST_VALUE]}")
    for claimed, evidence in claims.items():
        return message(
            "identify.contradiction",
            claimed=claimed,
            evidence=joined(evidence),
            actual=short_title(target_model, guess),
        )
    return ""


# What may say for which stage of a model a file was trained.
STAGE_METADATA = ("ss_sd_model_name", "ss_output_name", "modelspec.title", "name")


class Stage(NamedTuple):
    """One of a family's models that sample one after the other, and what names it."""

    name: str
    evidence: str


def stage_of(family: Family, metadata: Mapping[str, str], file_name: str = "") -> Stage | None:
    """The stage that a file's metadata name, else its own name; None where they name none, or
    several.
    """
    texts = {key: metadata[key] for key in STAGE_METADATA if isinstance(metadata.get(key), str)}
    for source in (texts, {"": file_name}):
        found = {
            Stage(stage, f"{key} = {text[:LONGEST_VALUE]}" if key else text[:LONGEST_VALUE])
            for key, text in source.items()
            for stage in family.stages
            if re.search(stage.replace(" ", "[ _.-]?"), text[:LONGEST_NAME], re.IGNORECASE)
        }
        if found:
            stages = {stage.name for stage in found}
            return min(found) if len(stages) == 1 else None
    return None


def may_contradict(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata say anything of the model at all."""
    return any(key in metadata for key in FAMILY_METADATA)


def _claimed(
    family: Family, key: str, value: str, guess: FamilyMatch, target_model: TargetModel
) -> str:
    """The model that a value names, where the file cannot be for it; "" where it can."""
    meanings = meanings_of(family, guess.samples, target_model)
    shaped = [
        fit for fit, sample in zip(meanings, guess.samples, strict=True) if sample.shape is not None
    ]
    if family.name == guess.name:
        return _other_size(family, value, told_variant(family, shaped, guess.depths))
    if family.name in guess.ties:
        return ""
    known = sum(fit.fits for fit in meanings) / len(meanings)
    able = known >= MIN_KNOWN if key == NETWORK_MODULE else known == 1 and agrees(family, shaped)
    return "" if able else family.title


def _other_size(family: Family, value: str, variant: str) -> str:
    """The published size that a value names, where shapes say another one."""
    mentioned, own = _sizes(value), _sizes(variant)
    if not own or own <= mentioned:
        return ""
    others = [one for one in published(family) if _sizes(one) and _sizes(one) <= mentioned]
    return titled(family, others[0]) if len(others) == 1 else ""


def _sizes(text: str) -> set[str]:
    return set(SIZE.findall(text.lower()))
