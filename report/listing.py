"""Lists LoRA files with what tells that they, or what lies beside them, changed: each folder is
read once, and only files that count are asked for their size and time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..files.atomic import OLD_ENDING
from ..files.header import ENDINGS, PEFT_CONFIG, PICKLED, LoraFileError
from ..messages import message
from .beside import aside_of, is_file

GONE = (FileNotFoundError, NotADirectoryError)


class Stamp(NamedTuple):
    """What tells that a file did not change: its size, its time, the time of the
    adapter_config.json beside it (0: none).
    """

    size: int
    changed: int
    config_changed: int


class Listed(NamedTuple):
    """A file that can be looked into.

    key: by which an index knows it. beside: changes when what other tools keep beside it does.
    """

    path: str
    stamp: Stamp
    key: bytes
    beside: str = ""
    has_picture: bool = False


class Folder:
    """What a folder held when it was listed. root: of the keys of its files; inside: the folder's
    path below that, "" or with a separator at its end. Raises OSError.
    """

    def __init__(self, path: str, root: str, inside: str):
        with os.scandir(path) as entries:
            self.entries = {entry.name: entry for entry in entries}
        self._place = os.path.join(root, inside.replace("/", os.sep))
        config = self.entries.get(PEFT_CONFIG) or self.entries.get(PEFT_CONFIG + OLD_ENDING)
        self._config = _changed(config) if config else 0

    def file(self, name: str) -> Listed | None:
        """What it holds under a name, if only a pipe; None where there is nothing."""
        entry = self.entries.get(name)
        try:
            about = entry.stat() if entry else None
        except OSError:
            return None
        if entry is None or about is None:
            return None
        stamp = Stamp(about.st_size, about.st_mtime_ns, self._config)
        key = os.fsencode(self._place + name)
        return Listed(entry.path, stamp, key, *aside_of(name, self.entries))


def list_files(
    folder: str | os.PathLike[str], left_out: dict[str, str] | None = None
) -> dict[str, Listed]:
    """Every LoRA file in the folder and all below it (links followed), by its path inside the
    folder, with /. Raises LoraFileError for a folder that cannot be listed.

    left_out: is given the folders below it that cannot be listed, with why.
    """
    files: dict[str, Listed] = {}
    seen: set[str] = set()
    root = key_root(folder)
    waiting = [("", os.fspath(folder))]
    for inside, path in waiting:
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            listed = Folder(path, root, inside)
        except OSError as error:
            if not inside:
                raise _not_listed(path, error) from None
            if left_out is not None and not isinstance(error, GONE):
                left_out[inside.rstrip("/")] = _why_not(error)
            continue
        for name, entry in listed.entries.items():
            if _is_folder(entry):
                waiting.append((f"{inside}{name}/", entry.path))
            elif name.lower().endswith((*ENDINGS, *PICKLED)) and (file := listed.file(name)):
                files[inside + name] = file
    return dict(sorted(files.items()))


def find_files(names: Iterable[str], folders: Sequence[str]) -> Iterator[tuple[str, Listed]]:
    """The files of these names, each in the first of the folders that has it, in the names' order.
    A folder is listed, and a file asked for its time, when it is its turn.
    """
    known: dict[tuple[str, str], Folder | None] = {}
    for name in names:
        inside, last = os.path.split(name)
        inside = os.path.join(inside, "") if inside else ""
        for folder in folders:
            place = folder, inside
            if place not in known:
                known[place] = None
                with suppress(OSError):
                    path = os.path.join(folder, inside)
                    known[place] = Folder(path, key_root(folder), inside)
            listed = known[place]
            file = listed.file(last) if listed and is_file(listed.entries.get(last)) else None
            if file is not None:
                yield name, file
                break


def key_root(folder: str | os.PathLike[str]) -> str:
    """What the keys of all files below a folder begin with."""
    return os.path.join(os.path.realpath(folder), "")


def _not_listed(folder: str, error: OSError) -> LoraFileError:
    if isinstance(error, NotADirectoryError):
        return LoraFileError(folder, message("files.is_a_file"), message("library.scan_its_folder"))
    if isinstance(error, FileNotFoundError):
        return LoraFileError(folder, message("library.no_folder"), message("library.check_name"))
    return LoraFileError(folder, _why_not(error), message("library.check_folder"))


def _why_not(error: OSError) -> str:
    return message("library.not_listed", error=str(error.strerror))


def stamp_of(path: str | os.PathLike[str]) -> Stamp | None:
    """The stamp of one file, None where there is none."""
    try:
        about = os.stat(path)
        config = Path(os.path.dirname(path), PEFT_CONFIG)
        changed = config.stat().st_mtime_ns if config.exists() else 0
    except OSError:
        return None
    return Stamp(about.st_size, about.st_mtime_ns, changed)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _changed(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_mtime_ns
    except OSError:
        return 0
