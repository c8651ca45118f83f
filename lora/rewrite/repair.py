"""Writes one LoRA file again under names that load, and leaves good ones alone: what `fix` and the
library's page share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...files.hashes import source_metadata
from ...identify.trainer import UNTOLD
from ...key_maps.user_maps import NO_USER_MAPS, UserMaps
from ...messages import joined, message
from ...planning.disagreement import unreadable
from ...report.inspection import Inspection, inspect_file, inspect_header
from .rename import (
    NATIVE,
    Refused,
    assumption,
    check_base_known,
    losses,
    losses_told,
    model_of_family,
    plan_renames,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...planning.target_model import TargetModel
    from ..io.writer import Written
    from .convert import Conversion

# Ids of why a file needs no new one.
SOUND = "lora.loads_correctly"
ALREADY = "lora.has_these_names"
WAYS = ("lora.modules_renamed", "lora.modules_computed", "lora.modules_full")


class NotWhole(Refused):
    """Keys that a dialect cannot hold; `rest_fits`: without them the rest could be written."""

    rest_fits = False


class Order(NamedTuple):
    """How files shall be written again.

    to: the dialect; None: ComfyUI's own names, and only where the stock loader falls short.
    drop: what has no place is left out. sampled: of a sound file the numbers are sampled; glance:
    of any, as is enough to tell what would become of it.
    replaced: the new file goes into the old one's place. option: with which a person gives the
    model here.
    """

    to: str | None = None
    dtype: torch.dtype | None = None
    drop: bool = False
    sampled: bool = False
    glance: bool = False
    replaced: bool = False
    option: str = ""

    @property
    def dialect(self) -> str:
        """Whose names the new files get."""
        return self.to or NATIVE


class Kept(NamedTuple):
    """A file that needs no new one: SOUND or ALREADY, and what is odd about it ("": nothing)."""

    why: str
    caution: str = ""


class Repair(NamedTuple):
    """A file that is to be written again: what is in it, its tensors, and what they become."""

    inspection: Inspection
    tensors: Mapping[str, Tensor]
    conversion: Conversion
    order: Order

    @property
    def lost(self) -> dict[str, str]:
        """The keys without which the new file does less, with the reason."""
        return losses(self.inspection.plan, self.conversion.left_out)

    @property
    def cautions(self) -> tuple[str, ...]:
        """What is doubtful about the new file, in sentences."""
        assumed = assumption(self.inspection, self.order.dialect, self.order.drop)
        return *assumed, *unreadable(self.inspection.config_beside)

    @property
    def summary(self) -> str:
        """What becomes of the file, in a few words."""
        dialect, left_out = self.order.dialect, self.conversion.left_out
        writer = self.inspection.writer
        if writer == UNTOLD:
            parts = [message("lora.to_dialect", dialect=dialect)]
        else:
            parts = [message("lora.from_to", source=writer, dialect=dialect)]
        ways = zip(self.conversion.ways.values(), WAYS, strict=True)
        parts += [message(way, count=count) for count, way in ways if count]
        rest = len(left_out) - len(self.lost)
        if rest:
            parts.append(message("lora.left_out_without_effect", count=rest))
        caution = self.conversion.caution
        told: list[str] = [*parts, *([caution] if caution else [])]
        return joined(filter(None, (losses_told(self.lost), joined(told))), "semicolon")


def as_family(inspection: Inspection, family: str, own: UserMaps = NO_USER_MAPS) -> Inspection:
    """The inspection of the same file for a model that a person names, as the file does not tell
    it: drawn from the family's table.
    """
    target_model = model_of_family(inspection, family, own)
    header, config = inspection.header, inspection.config_beside
    return inspect_header(inspection.path, header, config, target_model, own=own, whole=True)


def plan_repair(
    path: str | os.PathLike[str],
    order: Order,
    target_model: TargetModel | None = None,
    *,
    own: UserMaps = NO_USER_MAPS,
    family: str = "",
) -> Repair | Kept:
    """What a file becomes. target_model: None: the file tells it, or a person names its `family`.

    Raises LoraFileError for a file that cannot be read; Refused where it cannot be written so:
    ModelNeeded where it does not tell its model, NotWhole where keys would be lost; NotFinite.
    """
    from ..copies import compared
    from ..io.mapped import map_tensors
    from ..not_finite import without_odd
    from ..soundness import look_at_file

    inspection = inspect_file(path, target_model, own, whole=True)
    if family:
        inspection = as_family(inspection, family, own)
    check_base_known(inspection, order.dialect, order.drop, order.option)
    sound = not order.to and inspection.loads_whole and not inspection.gains
    sampled = (sound and order.sampled) or order.glance
    is_finite = sampled and look_at_file(path, inspection.header).finite
    if sound and is_finite:
        return Kept(SOUND)
    tensors = map_tensors(path, inspection.header, passing=True, replaced=order.replaced)
    planned = inspection.with_plan(compared(inspection, tensors))
    plan = planned.plan
    if not is_finite:
        plan = without_odd(plan, tensors.__getitem__, order.drop)
    inspection = planned.with_plan(plan)
    if sound and plan is planned.plan:
        return Kept(SOUND)
    conversion = _converted(inspection, tensors, order)
    if order.dtype is None and _already(inspection, conversion):
        return Kept(ALREADY, conversion.caution)
    return Repair(inspection, tensors, conversion, order)


def _converted(inspection: Inspection, tensors: Mapping[str, Tensor], order: Order) -> Conversion:
    from .convert import convert

    plan, dialect = inspection.plan, order.dialect
    try:
        return convert(plan, tensors, dialect, order.dtype, order.drop)
    except Refused as error:
        if order.drop or not plan_renames(plan, dialect).refusals:
            raise
        rest = plan_renames(plan, dialect, drop=True)
        refusal = NotWhole(error.reasons)
        refusal.rest_fits = bool(rest.units and not rest.refusals)
        raise refusal from None


def _already(inspection: Inspection, conversion: Conversion) -> bool:
    """Whether the file has the dialect's names, and its strength where the dialect's readers look
    for it.
    """
    if conversion.specs.keys() != inspection.header.tensors.keys():
        return False
    told = conversion.header_settings.keys() <= inspection.header.metadata.keys() or (
        "" in conversion.configs and inspection.config_beside
    )
    kept = {"tensor": True, "config": bool(told), "folded": False}
    return kept[conversion.writing.alpha] or all(
        item.scale == 1 for item in conversion.trained.values()
    )


def write_repair(
    repair: Repair,
    destination: Path,
    *,
    overwrite: bool = False,
    at_last: Callable[[], Any] | None = None,
) -> Written:
    """Write what was planned, verified before it is put in place. `at_last` runs right before.

    Raises FileExistsError, OSError, VerificationError, and what `write_as` raises.
    """
    from ..io.writer import write_as

    inspection, order = repair.inspection, repair.order
    provenance = inspection.family_metadata | source_metadata(inspection.path)
    return write_as(
        inspection.plan,
        repair.tensors,
        destination,
        order.dialect,
        dtype=order.dtype,
        provenance=provenance,
        overwrite=overwrite,
        drop=order.drop,
        at_last=at_last,
        conversion=repair.conversion,
    )
