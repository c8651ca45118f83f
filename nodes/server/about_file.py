"""What one LoRA file is, and whether it fits a model's file, told from their headers alone and
remembered until they change.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import folder_paths

from ...errors import LocksmithError
from ...files.header import LoraFileError
from ...identify.checkpoint import Checkpoint, target_model_of_checkpoint
from ...planning.keys import parse_key
from ...planning.plan import NOT_WIRED
from ...report.inspection import inspect_file
from ...report.library import Findings, LibraryRow, Stamp, findings_of, stamp_of
from ...report.load_report import Report
from ...report.markdown import markdown
from ..files import own_maps, own_stamp, spellings
from .library import told_row

MODEL_FOLDERS = ("checkpoints", "diffusion_models", "unet", "unet_gguf")
NOTHING_MORE = {"inspection": None, "markdown": "", "trigger_words": []}


class Unknown(LocksmithError):
    """A name that the host does not list."""

    def __init__(self, fault: str, remedy: str):
        super().__init__(fault)
        self.fault, self.remedy = fault, remedy


def listed(folder: str, name: str) -> tuple[str, str]:
    """(name, path) of a file that the host lists in one of its folders of models, under this name
    or another system's spelling of it.

    Raises Unknown.
    """
    known = folder_paths.map_legacy(folder) in folder_paths.folder_names_and_paths
    names = frozenset(folder_paths.get_filename_list(folder) if known else ())
    found = next((spelling for spelling in spellings(name) if spelling in names), "")
    path = folder_paths.get_full_path(folder, found) if found else None
    if path is None:
        raise Unknown(
            f"{name!r} is not in the {folder} folders",
            "Put the file there, or choose another and refresh the list",
        )
    return found, path


def about_file(
    name: str, model_folder: str = "", model: str = "", full: bool = False
) -> dict[str, Any]:
    """What the route `file` tells. Raises Unknown."""
    name, path = listed("loras", name)
    against = _model_path(model_folder, model) if model else None
    stamp, own = stamp_of(path), own_stamp()
    if stamp is None:
        raise Unknown(f"{name!r} is gone", "Refresh the list")
    found = _findings(path, stamp, own)
    told = told_row(LibraryRow(name, stamp, found))
    told["fit"] = (
        _fit(path, stamp, against, stamp_of(against), own) if against and not found.error else None
    )
    return told | (_everything(name, path, found, stamp, own) if full else {})


def _model_path(folder: str, model: str) -> str:
    if folder not in MODEL_FOLDERS:
        raise Unknown(
            f"{folder!r} is no folder of models",
            f"Ask for one of {', '.join(MODEL_FOLDERS)}",
        )
    return listed(folder, model)[1]


@lru_cache(maxsize=256)
def _findings(path: str, stamp: Stamp, own: tuple) -> Findings:
    return findings_of(path, own_maps())


@lru_cache(maxsize=4)
def _checkpoint(path: str, stamp: Stamp | None, own: tuple) -> Checkpoint | None:
    """The model in a file; None where its header does not tell."""
    try:
        return target_model_of_checkpoint(path, own_maps())
    except LoraFileError:
        return None


@lru_cache(maxsize=256)
def _fit(
    path: str, stamp: Stamp, model_path: str, model_stamp: Stamp | None, own: tuple
) -> dict[str, Any] | None:
    """How many modules of the file have a place in the model; those of text encoders count where
    the model's file holds them.
    """
    checkpoint = _checkpoint(model_path, model_stamp, own)
    if checkpoint is None:
        return None
    try:
        report = inspect_file(path, checkpoint.target_model, own_maps()).report
    except LoraFileError:
        return None
    placed = report.modules["placed"]
    total = report.modules["total"] - len(_not_wired(report))
    return {
        "placed": placed,
        "total": total,
        "model": checkpoint.title,
        "mismatch": report.mismatch,
    }


def _not_wired(report: Report) -> set[str]:
    missing = {
        parse_key(key).module
        for key, outcome in report.outcomes.items()
        if outcome.category == NOT_WIRED
    }
    return missing - {adapter.module for adapter in report.adapters}


def _everything(name: str, path: str, found: Findings, stamp: Stamp, own: tuple) -> dict[str, Any]:
    if found.error:
        return NOTHING_MORE
    try:
        return _inspection(name, path, stamp, own)
    except LoraFileError as error:
        return {**NOTHING_MORE, "error": f"{error.fault}. {error.remedy}"}


@lru_cache(maxsize=8)
def _inspection(name: str, path: str, stamp: Stamp, own: tuple) -> dict[str, Any]:
    found = inspect_file(path, own=own_maps())
    words = [trigger.word for trigger in found.metadata.trigger_words]
    return {
        "inspection": found.as_dict() | {"file": name},
        "markdown": markdown(found),
        "trigger_words": words,
    }
