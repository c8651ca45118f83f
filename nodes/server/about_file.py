"""What one LoRA file is, and whether it fits a model's file, told from their headers alone and
remembered until they change.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import folder_paths

from ...adapters.spec import AdapterError
from ...errors import LocksmithError, fault_and_remedy
from ...files.header import LoraFileError
from ...identify.checkpoint import Checkpoint, target_model_of_checkpoint
from ...identify.claims import stage_of
from ...messages import message, text_of
from ...planning.keys import parse_key
from ...planning.plan import NOT_WIRED
from ...planning.target_model import model_alone
from ...report.beside import beside_stamp, preview_of, read_beside
from ...report.findings import Findings, findings_of
from ...report.inspection import Inspection, inspect_file
from ...report.judgement import GOOD, judged
from ...report.library import LibraryRow
from ...report.listing import Stamp, stamp_of
from ...report.load_report import Report
from ...report.markdown import markdown
from ...report.metadata import words_to_use
from ..files import own_maps, own_stamp, spellings
from ..host import words_of
from ..languages import answered
from ..layer_weights import layer_weights
from .library import row_as_dict

YES, NO = "1", "0"
MAX_FITS = 4096  # answers that are remembered
MODEL_FOLDERS = ("checkpoints", "diffusion_models", "unet", "unet_gguf")
NOTHING_MORE: dict[str, Any] = {
    "inspection": None,
    "markdown": "",
    "words_to_use": [],
}


class Unknown(LocksmithError):
    """A name that the host does not list."""

    def __init__(self, fault: str, remedy: str):
        super().__init__(fault)
        self.fault, self.remedy = fault, remedy


def names_in(folder: str) -> frozenset[str]:
    """What the host lists in one of its folders of models; nothing for a folder it does not
    know.
    """
    known = folder_paths.map_legacy(folder) in folder_paths.folder_names_and_paths
    return frozenset(folder_paths.get_filename_list(folder) if known else ())


def listed(folder: str, name: str, names: Collection[str] | None = None) -> tuple[str, str]:
    """(name, path) of a file that the host lists in one of its folders of models, under this name
    or another system's spelling of it. names: all that it lists there, as `names_in` gave them: it
    lists anew whenever a file was written.

    Raises Unknown.
    """
    names = names_in(folder) if names is None else names
    listed = next((spelling for spelling in spellings(name) if spelling in names), "")
    path = folder_paths.get_full_path(folder, listed) if listed else None
    if path is None:
        raise Unknown(
            message("nodes.file_not_listed", name=name, folder=folder),
            message("nodes.put_file_there"),
        )
    return listed, path


def about_file(
    name: str,
    model_folder: str = "",
    model: str = "",
    *,
    clip: str = "",
    full: bool = False,
    layers: str = "",
    language: str = "",
) -> dict[str, Any]:
    """What the route `file` tells, and what to show instead in a language. Raises Unknown.

    clip: whether a node has one connected, YES or NO; "" where that is not known. layers: layer
    weights of a node, to be told with all of the file.
    """
    clip = clip if clip in (YES, NO) else ""
    name, path = listed("loras", name)
    against = _model_path(model_folder, model) if model else None
    stamp, own = stamp_of(path), own_stamp()
    if stamp is None:
        raise Unknown(message("nodes.file_is_gone", name=name), message("nodes.refresh_list"))
    beside = beside_stamp(path)
    findings = _findings(path, (stamp, beside), own)
    about = row_as_dict(LibraryRow(name, stamp, findings, preview_of(path) is not None))
    strength = read_beside(path).strength
    about["advised"] = strength and strength._asdict()
    about["fit"] = None
    about["words_to_use"] = [] if findings.error else words_of(path)
    if against and not findings.error:
        held = (against, stamp_of(against), own)
        about["fit"] = _fit(path, stamp, *held, clip=clip)
        # Whether it fits the model is no matter of a CLIP.
        alone = _fit(path, stamp, *held, clip="") if clip == NO else about["fit"]
        _note_fit((name, stamp, *held), alone)
    if not full:
        return answered(about, language)
    if findings.error:
        return answered(about | NOTHING_MORE, language)
    now = (stamp, beside, own)
    about |= _everything(name, path, now)
    about["layer_weights"], fault = _weighted(path, now, layers)
    about["cautions"] = [*about["cautions"], *([fault] if fault else ())]
    renders = {"markdown": partial(_markdown, path, now)} if about["inspection"] else {}
    return answered(about, language, **renders)


def inspection_of(name: str) -> tuple[str, Inspection]:
    """(name as listed, what the header tells) of a LoRA file. Raises Unknown, LoraFileError."""
    name, path = listed("loras", name)
    return name, _inspected(path, (stamp_of(path), beside_stamp(path), own_stamp()))


def _model_path(folder: str, model: str) -> str | None:
    """The path of a model's file; None where it is not there, as in a workflow that was just
    opened.
    """
    if folder not in MODEL_FOLDERS:
        raise Unknown(
            message("nodes.not_a_model_folder", name=folder),
            message("nodes.ask_for_one_of", options=", ".join(MODEL_FOLDERS)),
        )
    try:
        return listed(folder, model)[1]
    except Unknown:
        return None


class Model(NamedTuple):
    """A listed model's file as it is now, and what is in it."""

    path: str
    stamp: Stamp | None
    own: tuple
    checkpoint: Checkpoint


def model_in(folder: str, name: str) -> Model | None:
    """None where the file is not there, or its header does not tell. Raises Unknown for a folder
    that holds no models.
    """
    path = _model_path(folder, name)
    if path is None:
        return None
    now = (path, stamp_of(path), own_stamp())
    checkpoint = _checkpoint(*now)
    return Model(*now, checkpoint) if checkpoint else None


_fits: OrderedDict[tuple, dict[str, Any] | None] = OrderedDict()


def known_fit(name: str, stamp: Stamp, model: Model) -> dict[str, Any] | None:
    """The fit of a listed file that was asked for already; None where it was not."""
    return _fits.get((name, stamp, model.path, model.stamp, model.own))


def _note_fit(key: tuple, fit: dict[str, Any] | None) -> None:
    _fits[key] = fit
    while len(_fits) > MAX_FITS:
        _fits.popitem(last=False)


@lru_cache(maxsize=256)
def _findings(path: str, now: tuple, own: tuple) -> Findings:
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
    path: str, stamp: Stamp, model_path: str, model_stamp: Stamp | None, own: tuple, *, clip: str
) -> dict[str, Any] | None:
    """How a run would count the file: text encoders without a CLIP are not there. Where it is not
    known whether there is one, those modules are left out.
    """
    checkpoint = _checkpoint(model_path, model_stamp, own)
    if checkpoint is None:
        return None
    target = model_alone(checkpoint.target_model) if clip == NO else checkpoint.target_model
    try:
        report = inspect_file(path, target, own_maps()).report
    except LoraFileError:
        return None
    placed, total = _counted(report, clip)
    is_whole = total == report.modules["total"] and placed == report.modules["placed"]
    return {
        "placed": placed,
        "total": total,
        "model": checkpoint.title,
        "family": report.guess.title,
        "mismatch": report.mismatch,
        "lacking": report.lacking,
        "verdict": report.verdict if is_whole else "",
        "remedy": report.remedy if is_whole else "",
        "stage": _other_stage(report, model_path),
        "stock": report.stock_modules,
        # A file of text encoders alone has nothing that such a model could lack.
        "state": judged(placed, total, report.mismatch) if total else GOOD,
        "needs_clip": not total and bool(report.modules["total"]),
    }


def _counted(report: Report, clip: str) -> tuple[int, int]:
    """(placed, total) modules. The model's file need not hold the text encoders that a connected
    CLIP is of.
    """
    placed, total = report.modules["placed"], report.modules["total"]
    unwired = len(_not_wired(report)) if clip != NO else 0
    return (placed + unwired, total) if clip == YES else (placed, total - unwired)


def _other_stage(report: Report, model_path: str) -> str:
    """That the file is for another of a family's stages than the model's file is by its name."""
    family = report.plan.target_model.families.get(report.guess.name)
    here = stage_of(family, {}, os.path.basename(model_path)) if family else None
    if not report.stage or not here or report.stage.name == here.name:
        return ""
    return message("report.other_stage", stage=report.stage.name, here=here.name)


def _not_wired(report: Report) -> set[str]:
    missing = {
        parse_key(key).module
        for key, outcome in report.outcomes.items()
        if outcome.category == NOT_WIRED
    }
    return missing - {adapter.module for adapter in report.adapters}


def _everything(name: str, path: str, now: tuple) -> dict[str, Any]:
    try:
        return _inspection(name, path, now)
    except LoraFileError as error:
        return {
            **NOTHING_MORE,
            "error": fault_and_remedy(error.fault, error.remedy),
        }


def _weighted(path: str, now: tuple, layers: str) -> tuple[Mapping[str, Mapping[str, float]], str]:
    """(network -> layer -> what layer weights multiply its strength with, what is wrong with
    them).
    """
    try:
        return layer_weights(_inspected(path, now).plan, layers).by_layer, ""
    except AdapterError as error:
        return {}, message("nodes.layer_weights_fault", fault=text_of(error))
    except LoraFileError:  # told already
        return {}, ""


@lru_cache(maxsize=8)
def _inspection(name: str, path: str, now: tuple) -> dict[str, Any]:
    inspection = _inspected(path, now)
    words = [trigger.word for trigger in inspection.metadata.trigger_words]
    return {
        "inspection": inspection.as_dict() | {"file": name},
        "markdown": markdown(inspection),
        "trigger_words": words,
        "words_to_use": words_to_use(inspection.metadata),
    }


@lru_cache(maxsize=8)
def _inspected(path: str, now: tuple) -> Inspection:
    """now: what changes with the file, what lies beside it and the user's own maps."""
    return inspect_file(path, own=own_maps())


@lru_cache(maxsize=8)
def _markdown(path: str, now: tuple, language: str) -> str:
    return markdown(_inspected(path, now), language=language)
