"""Plans several LoRA files for one model, so that they can be merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...adapters.spec import AdapterError
from ...files.header import Header
from ...key_maps.user_maps import NO_USER_MAPS, UserMaps
from ...messages import message
from ...planning.target_model import TargetModel, model_alone
from ...report.inspection import Inspection, inspect_header
from ..rewrite.rename import BASE_UNKNOWN

__all__ = ["File", "inspect_together"]


class File(NamedTuple):
    """A LoRA to be planned. config_beside: PEFT's adapter_config.json beside it."""

    name: str
    header: Header
    config_beside: Mapping[str, Any] | None = None


def inspect_together(
    files: Sequence[File], target_model: TargetModel | None = None, own: UserMaps = NO_USER_MAPS
) -> list[Inspection]:
    """Inspect files for the same model: the given one, else the one they were made for; text
    encoders that are not given are drawn.

    A file that could be for several models is read as the others are. Raises AdapterError, naming
    the file, where none of this tells the model; files for different models are left to the merge
    to refuse.
    """
    alone = [
        inspect_header(file.name, file.header, file.config_beside, None, own=own) for file in files
    ]
    if target_model is None:
        target_model = next(
            (
                model_alone(inspection.plan.target_model)
                for inspection in alone
                if inspection.guess.name and not inspection.guess.ties
            ),
            None,
        )
    inspections = [
        _again(file, first, target_model, own) for file, first in zip(files, alone, strict=True)
    ]
    for inspection in inspections:
        if not inspection.plan.adapters:
            raise AdapterError(
                message("joints.about", subject=inspection.path, text=_why_nothing(inspection))
            )
    return inspections


def _again(
    file: File, alone: Inspection, target_model: TargetModel | None, own: UserMaps
) -> Inspection:
    if target_model is None or (
        alone.guess.name
        and not alone.guess.ties
        and alone.is_reference
        and not _is_given(target_model)
    ):
        return alone
    return inspect_header(
        file.name, file.header, file.config_beside, target_model, own=own, whole=True
    )


def _is_given(target_model: TargetModel) -> bool:
    return any(not network.is_reference for network in target_model.networks.values())


def _why_nothing(inspection: Inspection) -> str:
    if not inspection.report.modules["total"]:
        return message("merge.no_adapter")
    if not inspection.plan.target_model.networks:
        return message(BASE_UNKNOWN)
    return message("merge.nothing_fits")
