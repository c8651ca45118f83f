"""Which of all listed LoRA files fit a model, from what the library and earlier questions know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...identify.lora_family import agreeing_variant, model_samples
from ...identify.variants import titled
from ...key_maps.dialect import DENOISER
from ...key_maps.table import Family
from ...planning.target_model import TargetModel
from ...report.judgement import BAD
from ...report.library import UNREADABLE, LibraryRow
from .about_file import known_fit, model_in


def fitting(rows: Iterable[LibraryRow], folder: str, model: str) -> dict[str, Any]:
    """Names of the files that fit a listed model (fits), and of those that do not (others); what is
    in neither is not known. No file is read but the model's header. Raises Unknown.
    """
    found = model_in(folder, model)
    fits: list[str] = []
    others: list[str] = []
    if found is not None:
        family, width = _family_and_width(found.checkpoint.target_model)
        for row in rows:
            about = known_fit(row.file, row.stamp, found)
            fit = _said(about) if about else row_fits(row, family, width)
            if fit is not None:
                (fits if fit else others).append(row.file)
    return {"fits": fits, "others": others}


def _said(fit: dict[str, Any]) -> bool:
    return fit["state"] != BAD and not fit["mismatch"]


def row_fits(row: LibraryRow, family: Family | None, width: int) -> bool | None:
    """Whether a file is for a model of this family and width (0: of no published size), as its row
    of the library tells; None where it does not.
    """
    findings = row.findings
    if row.state == UNREADABLE or not (findings.error or findings.total):
        return False
    if family is None or not findings.family or findings.error:
        return None
    if findings.family != family.name:
        return False
    widths = {titled(family, variant): _width(family, variant) for variant in family.sizes}
    own = widths.get(findings.made_for, 0)
    return own == width if own and width else None


def _family_and_width(target_model: TargetModel) -> tuple[Family | None, int]:
    """Of the diffusion model in a file; 0 where it is of no published size."""
    network, family = target_model.networks.get(DENOISER), target_model.family
    if network is None or family is None:
        return None, 0
    variant = agreeing_variant(family, model_samples(network), target_model)
    return family, _width(family, variant) if variant is not None else 0


def _width(family: Family, variant: str) -> int:
    """The first of the sizes in its table."""
    return next(iter(family.sizes[variant].values()), 0)
