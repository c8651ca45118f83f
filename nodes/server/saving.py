"""Writes a LoRA in another tool's names into the loras folder, for the node Save LoRA and the route
alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths

from ...errors import LocksmithError, exhausted, fault_and_remedy
from ...files.atomic import is_file_name
from ...files.hashes import source_metadata
from ...files.header import LoraFileError
from ...key_maps.dialect import DENOISER
from ...lora.copies import compared
from ...lora.io.dtypes import DTYPES
from ...lora.io.writer import Written, write_as
from ...lora.not_finite import NotFinite
from ...lora.rewrite.rename import (
    ModelNeeded,
    Refused,
    assumption,
    check_base_known,
    rivals_apart,
    writable,
)
from ...lora.rewrite.repair import as_family
from ...lora.rewrite.verify import VerificationError
from ...messages import joined, message, text_of
from ...planning.target_model import all_families
from ...report.inspection import Inspection
from .. import host
from ..files import MadeFiles, lora_path, own_maps
from .about_file import listed

ENDING = ".safetensors"

written_files = MadeFiles()  # by the name they were saved under


class SaveError(LocksmithError, RuntimeError):
    """What is wrong, and the remedy; `taken`: there is a file of this name already; `models`: name
    -> title of those among which a person has to choose.
    """

    def __init__(
        self,
        fault: str,
        remedy: str,
        taken: bool = False,
        *,
        models: Mapping[str, str] | None = None,
    ):
        super().__init__(message("joints.sentence", text=fault_and_remedy(fault, remedy)))
        self.fault, self.remedy, self.taken, self.models = fault, remedy, taken, models or {}


class Opened(NamedTuple):
    """A LoRA that is to be saved: what is in it, its tensors, and where it comes from."""

    inspection: Inspection
    tensors: Mapping[str, Any]
    provenance: Mapping[str, str]


def save_lora(
    opened: Opened, filename: str, *, dialect: str, dtype: str, overwrite: bool
) -> Written:
    """Write what was inspected as `dialect`; `dtype`: one of DTYPES, anything else keeps them.
    Raises SaveError.
    """
    if apart := rivals_apart(opened.inspection, dialect):
        fault = message("nodes.ambiguous_for", models=", ".join(apart), dialect=dialect)
        raise SaveError(fault, message("nodes.connect_model_or_dialect"))
    return _save(opened, filename, dialect=dialect, dtype=dtype, overwrite=overwrite)


def _save(opened: Opened, filename: str, *, dialect: str, dtype: str, overwrite: bool) -> Written:
    """The same of a file of which it is known that no other model would name it otherwise."""
    inspection, tensors, provenance = opened
    path = destination(filename)
    try:
        with _folders_of(path):
            metadata = {**inspection.family_metadata, **provenance}
            written = write_as(
                compared(inspection, tensors),
                tensors,
                path,
                dialect,
                dtype=DTYPES.get(dtype),
                provenance=metadata,
                overwrite=overwrite,
                cautions=assumption(inspection, dialect),
            )
            written_files.note(filename, written.path)
            return written
    except FileExistsError:
        raise SaveError(
            message("nodes.exists_already", name=filename),
            message("nodes.other_name_or_overwrite"),
            taken=True,
        ) from None
    except NotFinite as error:
        raise SaveError(
            message("nodes.not_written_because", error=error),
            message("nodes.merge_can_leave_out"),
        ) from None
    except Refused as error:
        raise SaveError(
            message("nodes.dialect_cannot_hold", dialect=dialect, error=error),
            message("nodes.choose_other_dialect"),
        ) from None
    except VerificationError as error:
        fault = message("nodes.verification_failed", error=error)
        raise SaveError(fault, message("nodes.choose_other_dialect_or_dtype")) from None
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        raise SaveError(message("nodes.not_written", name=filename), exhausted(error)) from None
    except OSError as error:
        raise SaveError(
            message("nodes.cannot_write", name=filename, fault=error.strerror or error),
            message("nodes.other_name_or_disk"),
        ) from None


def read_listed(lora_name: str, model=None, clip=None, *, family: str = "") -> Opened:
    """A listed file; `family`: which it is for, where a person says so. Raises SaveError for one
    that cannot be read.
    """
    path = lora_path(lora_name)
    try:
        inspection = host.inspect(model, clip, path, own_maps(), whole=True)
        if family:
            inspection = as_family(inspection, family, own_maps())
        provenance = source_metadata(path)
        return Opened(inspection, host.read_lora(path).to_be_written(), provenance)
    except LoraFileError as error:
        fault = message("joints.about", subject=lora_name, text=error.fault)
        raise SaveError(fault, error.remedy) from None
    except OSError as error:
        raise SaveError(
            message("nodes.cannot_read", name=lora_name, fault=error.strerror or error),
            message("nodes.look_at_disk"),
        ) from None


def check_known(value: Any, known: Iterable[str]) -> None:
    """Raises SaveError for what is none of those that are known."""
    if value not in known:
        raise SaveError(
            message("nodes.not_known", name=value),
            message("nodes.choose_one_of", options=", ".join(known)),
        )


def titles_of(families: Sequence[str]) -> dict[str, str]:
    """Name -> title of the families; of all diffusion models for ()."""
    known = all_families(own_maps()).families
    denoisers = [name for name, family in known.items() if family.kind == DENOISER]
    named = families or sorted(denoisers, key=lambda name: known[name].title.casefold())
    return {name: known[name].title for name in named}


def save_listed(
    name: str, *, dialect: str, filename: str, dtype: str, overwrite: bool, model: str
) -> dict[str, str]:
    """What the route `save` does and tells. model: the family a person says the file is for.

    Raises Unknown, SaveError.
    """
    name, _ = listed("loras", name)
    check_known(dialect, writable())
    check_known(dtype or "fp32", DTYPES)
    check_known(model, ("", *titles_of(())))
    opened = read_listed(name, family=model)
    try:
        check_base_known(opened.inspection, dialect, False, message("nodes.choice_of_model"))
    except ModelNeeded as error:
        remedy, models = message("nodes.choose_base_model"), titles_of(error.families)
        raise SaveError(text_of(error), remedy, models=models) from None
    except Refused as error:
        raise SaveError(text_of(error), message("nodes.choose_other_file")) from None
    written = _save(opened, filename, dialect=dialect, dtype=dtype, overwrite=overwrite)
    return {"file": os.path.relpath(written.path, _folder()), "report": report_on(written)}


def destination(filename: str) -> Path:
    """The file a name stands for, inside the first loras folder. Raises SaveError for a name that
    leads out of it.
    """
    remedy = message("nodes.give_name_with_folder")
    name = filename.strip().removesuffix(ENDING).replace("\\", "/")
    if not all(map(is_file_name, name.split("/"))):
        raise SaveError(message("nodes.not_a_name_in_loras", name=filename), remedy)
    try:
        # The folder of this name is where a file of PEFT would be.
        path, folder = ((_folder() / f"{name}{ending}").resolve() for ending in (ENDING, ""))
    except (OSError, RuntimeError) as error:
        raise SaveError(
            message("nodes.cannot_be_a_file", name=filename, error=error), remedy
        ) from None
    if not (path.is_relative_to(_folder()) and folder.is_relative_to(_folder())):
        raise SaveError(message("nodes.leads_out_of_loras", name=filename), remedy)
    return path


@contextmanager
def _folders_of(path: Path) -> Iterator[None]:
    """Makes the folders of a file to be written; those that stay empty go again."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _folder() -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0]).resolve()


def report_on(written: Written) -> str:
    """What was done, in a few lines: a message."""
    path = (
        written.path.relative_to(_folder())
        if written.path.is_relative_to(_folder())
        else written.path
    )
    lines = [
        message(
            "nodes.wrote", path=path.as_posix(), bytes=f"{written.bytes:,}", dialect=written.dialect
        )
    ]
    lines.append(message("nodes.wrote_modules", renamed=written.renamed, computed=written.computed))
    lines += [message("nodes.wrote_full_matrices", count=written.full)] * bool(written.full)
    if written.caution:
        lines.append(message("nodes.wrote_but", caution=written.caution))
    lines += [
        message("nodes.left_out", key=key, reason=reason)
        for key, reason in list(written.left_out.items())[:20]
    ]
    return joined(lines, "line")
