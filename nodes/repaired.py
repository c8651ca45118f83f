"""Files repaired for other readers: made once, kept in the pack's folder of the user directory, and
found there by every later run.

Not below the host's folder for temporary files: a second ComfyUI that starts with the same one
deletes it, and a folder of LoRAs that is gone makes the first one's lists of them fail.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import folder_paths

from ..files.atomic import is_file_name, making_folder
from ..files.header import LoraFileError, read_header
from ..key_maps.reader import Reader
from ..lora.io.writer import VerificationError, Written, write_as
from ..lora.not_finite import NotFinite
from ..lora.rewrite.for_reader import ForReader, for_reader
from ..lora.rewrite.rename import Refused, losses, losses_told
from ..messages import first_of, joined, message
from .faults import NodeError, in_plain_words
from .files import listed_name, lora_path, own_folder, own_stamp
from .server.saving import Opened, read_listed

FORMAT = "1"  # rises when the same file would be written otherwise
FOLDER, ENDING = "repaired", ".safetensors"
# The host leaves folders of this name out of its lists, and finds files in them by their names all
# the same: what is made here can be loaded by name, and fills no one's list.
UNLISTED = ".git"
MAX_FILES, MAX_BYTES = 32, 8 << 30
MAX_STEM = 90  # bytes of the source's name
NAMED = 3  # modules in one sentence
DIGITS = 16  # of the hash in the name
JUST_GIVEN = 8

_given: deque[Path] = deque(maxlen=JUST_GIVEN)


class Repaired(NamedTuple):
    """The file to give a reader, its name for the host (`loras` finds it by that), and what was
    done: a message.
    """

    path: Path
    name: str
    report: str


def repaired(lora_name: str, reader: Reader, drop: bool) -> Repaired:
    """A listed file for a reader: itself where that reads it as it is, else one that is made, or
    was made before. Raises NodeError.
    """
    with in_plain_words(lora_name):
        opened = read_listed(lora_name)
        try:
            made = for_reader(opened.inspection, opened.tensors, reader, drop)
            if made.conversion is None:
                report = message("nodes.reader_reads_it", reader=reader.title, file=lora_name)
                return Repaired(Path(lora_path(lora_name)), listed_name(lora_name), report)
            path = _place(opened, reader, drop)
            written = None if _usable(path, opened) else _write(path, opened, made)
        except (Refused, NotFinite, VerificationError) as error:
            raise NodeError(
                message("nodes.reader_cannot", file=lora_name, reader=reader.title, error=error)
            ) from None
    _given.append(path)
    # Not the folder of the files itself: were it deleted, the host would fail to list any LoRA.
    folder_paths.add_model_folder_path("loras", os.fspath(path.parents[2]))
    sweep(path.parent)
    return Repaired(path, f"{FOLDER}/{UNLISTED}/{path.name}", _report(path, made, reader, written))


def _place(opened: Opened, reader: Reader, drop: bool) -> Path:
    """Where the file for a reader is: another one for another content, reader or map."""
    source = opened.inspection
    told = (
        FORMAT,
        opened.provenance["locksmith.source_sha256"],
        json.dumps(source.config_beside, sort_keys=True, default=str),
        reader,
        drop,
        own_stamp(),
    )
    digest = hashlib.sha256(repr(told).encode("utf-8", "replace")).hexdigest()[:DIGITS]
    folder = own_folder().absolute() / FOLDER / UNLISTED
    return folder / f"{_stem(Path(source.path).stem)}.{reader.name}.{digest}{ENDING}"


def _stem(name: str) -> str:
    """What can begin a file's name on every system, of the source's."""
    plain = "".join(
        character if character.isalnum() or character in " -_.+()" else "_" for character in name
    )
    short = plain.encode("utf-8", "ignore")[:MAX_STEM].decode("utf-8", "ignore").strip(" .")
    return short if short and is_file_name(short) else "lora"


def _usable(path: Path, opened: Opened) -> bool:
    """Whether the file is there whole, and made of this source; then it counts as just used."""
    try:
        metadata = read_header(path).metadata
    except (LoraFileError, OSError):
        return False
    if any(metadata.get(key) != value for key, value in opened.provenance.items()):
        return False
    with suppress(OSError):
        os.utime(path)
    return True


def _write(path: Path, opened: Opened, made: ForReader) -> Written | None:
    """Write the file; None where another run has meanwhile. Raises NodeError where the host's
    folder cannot hold it.
    """
    assert made.conversion is not None, "the file itself is given"
    try:
        with making_folder(path.parent):
            written = write_as(
                made.plan,
                opened.tensors,
                path,
                made.conversion.writing.dialect,
                provenance={**opened.inspection.family_metadata, **opened.provenance},
                # What is there and not usable is no file of anyone's.
                overwrite=os.path.lexists(path),
                cautions=made.cautions,
                conversion=made.conversion,
            )
        read_header(path)
        return written
    except FileExistsError:
        if _usable(path, opened):
            return None
        raise
    except OSError as error:
        fault = error.strerror or error
        raise NodeError(message("nodes.not_kept", folder=path.parent, fault=fault)) from None


def sweep(folder: Path, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
    """Take away the files that were not used for longest, beyond these bounds; never one of those
    that were given last.
    """
    found = []
    for path in folder.glob(f"*{ENDING}"):
        with suppress(OSError):
            about = path.stat()
            found.append((about.st_mtime_ns, about.st_size, path))
    total = 0
    for place, (_, size, path) in enumerate(sorted(found, reverse=True), start=1):
        total += size
        if (place > max_files or total > max_bytes) and path not in _given:
            with suppress(OSError):
                path.unlink()


def _report(path: Path, made: ForReader, reader: Reader, written: Written | None) -> str:
    """What was done, in a few lines: a message."""
    assert made.conversion is not None, "the file itself is given"
    lines: list[str] = [
        message("nodes.repaired_made", reader=reader.title, path=path)
        if written
        else message("nodes.repaired_found", reader=reader.title, path=path)
    ]
    renamed, computed, full = made.conversion.ways.values()
    lines.append(message("nodes.wrote_modules", renamed=renamed, computed=computed))
    lines += [message("nodes.wrote_full_matrices", count=full)] * bool(full)
    if made.filled:
        names = first_of(made.filled, NAMED)
        lines.append(
            message("nodes.filled", count=len(made.filled), reader=reader.title, names=names)
        )
    if made.encoders:
        lines.append(
            message("nodes.without_encoders", count=len(made.encoders), reader=reader.title)
        )
    lost = losses_told(losses(made.plan, made.conversion.left_out))
    lines += filter(None, (lost, *made.cautions, made.conversion.caution))
    return joined(lines, "line")
