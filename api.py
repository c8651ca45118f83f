"""The library: what other programs call, and what stays stable under semantic versioning.

`inspect_file`, `scan` and `make_plan` need the standard library only; `convert`, `merge` and
`resize` need torch; `load_and_fix` runs inside ComfyUI. Torch and ComfyUI are imported when a
function that needs them is called. Every error of the pack's own is a LocksmithError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LocksmithError
from .identify.checkpoint import target_model_of_checkpoint
from .planning.plan import Plan
from .report.inspection import Inspection
from .report.inspection import inspect_file as _inspect
from .report.library import LibraryRow
from .report.library import scan as _scan
from .report.load_report import Report

if TYPE_CHECKING:
    from .lora.io.writer import Written
    from .lora.merge.report import MergeReport
    from .lora.rewrite.resize import Resized
    from .planning.target_model import TargetModel

__all__ = [
    "Inspection",
    "LocksmithError",
    "Plan",
    "Report",
    "LibraryRow",
    "convert",
    "inspect_file",
    "load_and_fix",
    "make_plan",
    "merge",
    "resize",
    "scan",
]

PathLike = str | os.PathLike[str]


def inspect_file(path: PathLike, *, model: PathLike | None = None) -> Inspection:
    """Inspect a LoRA file from its header.

    Args:
        path: a safetensors file.
        model: the base model's file (its header is read), for an exact answer; None: the model is
            identified from the LoRA's names and shapes.

    Raises:
        LoraFileError: a file cannot be read; the text names it and the remedy.
    """
    return _inspect(path, _target(model))


def scan(folder: PathLike, *, index: PathLike | None = None) -> Iterator[LibraryRow]:
    """Inspect every LoRA file in a folder and below it, one row a file, by name.

    Args:
        index: a file that keeps the rows, so that unchanged files are not read again.

    Raises:
        LoraFileError: the folder cannot be listed. A file that cannot be read is a row with
        `error`.
    """
    return _scan(folder, None if index is None else Path(index))


def make_plan(path: PathLike, *, model: PathLike | None = None) -> Plan:
    """Plan which weights of the base model the file changes, by which adapters, at which strength.

    The same as `inspect_file(path, model=model).plan`.
    """
    return inspect_file(path, model=model).plan


def convert(
    path: PathLike,
    to: PathLike,
    dialect: str = "comfyui",
    *,
    model: PathLike | None = None,
    dtype: Any = None,
    drop: bool = False,
    overwrite: bool = False,
) -> Written:
    """Write a LoRA file under the names of another tool, and verify it before it is put in place.

    Args:
        path: the source, which stays as it is.
        to: the new file; for "peft" a folder.
        dialect: whose names: "comfyui", "kohya", "diffusers", "peft" and others.
        dtype: a torch.dtype for the tensors; None keeps theirs.
        drop: leave out what has no place, instead of refusing.

    Raises:
        LocksmithError: the dialect cannot say it, or the result differs; nothing is written.
        FileExistsError: `to` is there, and not `overwrite`.
    """
    from .lora.copies import compared
    from .lora.io.mapped import map_tensors
    from .lora.io.writer import write_as
    from .lora.rewrite.rename import assumption, check_base_known

    inspection = _inspect(path, _target(model), whole=True)
    check_base_known(inspection, dialect, drop, "model=")
    tensors = map_tensors(path, inspection.header, passing=True)
    plan = compared(inspection, tensors)
    return write_as(
        plan,
        tensors,
        to,
        dialect,
        dtype=dtype,
        drop=drop,
        overwrite=overwrite,
        cautions=assumption(inspection, dialect, drop),
    )


def merge(
    loras: Mapping[PathLike, float] | Sequence[PathLike],
    to: PathLike,
    *,
    dialect: str = "comfyui",
    method: str = "sum",
    model: PathLike | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> MergeReport:
    """Merge LoRA files of any trainer and kind into one file.

    Args:
        loras: path -> strength, or paths (strength 1).
        method: "sum" is exact where factors are; `lora-locksmith merge --help` lists the others.
        model: the base model's file, for adapters that depend on its weights (DoRA, OFT).
        settings: of the merge: rank, energy, error, exact, dtype, seed, options (the method's own).

    Returns:
        What was merged, cut or lost; `is_whole` where nothing was.

    Raises:
        LocksmithError: the files do not fit one model, or cannot be merged so. FileExistsError.
    """
    from .lora.merge.files import Entry, merge_files, open_sources
    from .lora.merge.merge import MergeConfig

    strengths = loras if isinstance(loras, Mapping) else dict.fromkeys(loras, 1.0)
    entries = [Entry(os.fspath(path), one, one) for path, one in strengths.items()]
    recipe = MergeConfig(method, **settings)
    recipe.check(len(entries))
    with ExitStack() as stack:
        opened = open_sources(entries, model, stack)
        return merge_files(
            to, entries, opened, recipe, model=model, dialect=dialect, overwrite=overwrite
        )


def resize(
    path: PathLike,
    to: PathLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    model: PathLike | None = None,
    dtype: Any = None,
    overwrite: bool = False,
) -> Resized:
    """Write a LoRA file at a smaller rank, every low-rank adapter cut to its best approximation.

    Args:
        rank: the largest rank; energy: the share of the squared norm to keep, (0, 1];
        error: the largest relative error, [0, 1). At least one of the three.

    Raises:
        LocksmithError: it holds adapters that cannot be cut. FileExistsError. ValueError: none of
            the three is given, or one is out of its range.
    """
    from .lora.rewrite.resize import RankTarget, resize_file

    rank_target = RankTarget(rank, energy, error)
    return resize_file(
        path, to, rank_target, dtype=dtype, overwrite=overwrite, target_model=_target(model)
    )


def load_and_fix(
    model: Any,
    clip: Any,
    path: PathLike,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    *,
    bypass: bool = False,
    mode: str = "",
) -> tuple[Any, Any, Report]:
    """Load a LoRA file onto ComfyUI's model and CLIP, as the node Load and Fix LoRA does.

    Args:
        model: a ModelPatcher or None; clip: a CLIP or None. Neither is changed.
        bypass: act beside the layers instead of patching their weights.
        mode: "patch", "bypass", or "auto", which chooses for each weight; "": as `bypass` says.

    Returns:
        The patched clones, and the report of every key.

    Raises:
        LocksmithError: the file cannot be read.
    """
    from .nodes.host import load_and_fix as load

    strengths = (strength_model, strength_clip)
    return load(model, clip, os.fspath(path), *strengths, bypass=bypass, mode=mode)


def _target(model: PathLike | None) -> TargetModel | None:
    return None if model is None else target_model_of_checkpoint(model).target_model
