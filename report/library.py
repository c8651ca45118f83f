"""Inspects whole folders of LoRA files: one row for each file, and an index, so that nothing is
read again that did not change.
"""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import fault_and_remedy
from ..files.atomic import write_whole
from ..files.header import (
    ENDINGS,
    PEFT_CONFIG,
    PICKLED,
    Header,
    LoraFileError,
    NotReached,
    adapter_config_beside,
    read_header,
)
from ..identify.trainer import UNTOLD
from ..key_maps.user_maps import NO_USER_MAPS, UserMaps
from ..messages import joined, message, packed, unpacked
from .inspection import Inspection, cache_key, inspect_header, spread
from .judgement import BAD, GOOD, judged

# Rooms whose code and tables decide what a row says.
KNOWING = ("files", "adapters", "key_maps", "planning", "identify", "report", "locales")
MAX_ALIKE = 64  # kinds of files whose findings are remembered
# seconds of reading whose result is kept at once, so that a scan that is cut off need not begin
# anew
KEEP_AFTER = 20.0
# States of a row besides GOOD and BAD. MENDED: the stock loader would fall short; UNKNOWN: whether
# it loads depends on the model, which the file does not tell; PICKLED_FILE: only a node reads it.
MENDED, PARTLY, DOUBTFUL, UNKNOWN = "mended", "partly", "doubtful", "untold"
PICKLED_FILE, UNREADABLE = "pickled", "unreadable"


class Findings(NamedTuple):
    """What is found in a file, as far as files that are alike share it; `family` is "" where it
    cannot be told.
    """

    family: str = ""
    made_for: str = ""
    trainer: str = ""
    kinds: str = ""
    rank: str = ""
    placed: int = 0
    total: int = 0
    stock: int = 0
    gains: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    cautions: tuple[
        str, ...
    ] = ()  # what makes it doubtful, as far as the header tells, that it comes out as trained
    contradiction: str = ""  # that its metadata name another model than names and shapes do
    trainer_guessed: bool = False  # names alone speak for the trainer
    error: str = ""  # why it cannot be read; then the rest is empty


class Passing(Findings):
    """Findings that are others the next time, as the file was out of reach; no index keeps them."""

    __slots__ = ()


# What is found in files, in their order, each when it is asked for.
Engine = Callable[[Sequence[str]], Iterator[Findings]]
Read = Callable[[str], tuple[Header, Mapping[str, Any] | None]]  # header, and settings beside it


class Stamp(NamedTuple):
    """What tells that a file did not change: its size, its time, the time of the
    adapter_config.json beside it (0: none).
    """

    size: int
    changed: int
    config_changed: int


class LibraryRow(NamedTuple):
    """One file of a folder: its path inside the folder (with /), its stamp, and what is in it."""

    file: str
    stamp: Stamp
    findings: Findings

    @property
    def state(self) -> str:
        """How well it loads, in a word for programs."""
        findings = self.findings
        if findings.error:
            return PICKLED_FILE if self.is_pickled else UNREADABLE
        if findings.total and not findings.placed and not findings.made_for:
            return UNKNOWN
        state = judged(findings.placed, findings.total, cautions=findings.cautions)
        if state == BAD:
            return BAD
        if state == GOOD:
            return MENDED if findings.gains else GOOD
        return PARTLY if findings.placed < findings.total else DOUBTFUL

    @property
    def is_pickled(self) -> bool:
        """Whether only ComfyUI's own loader of pickles reads it."""
        return self.file.lower().endswith(PICKLED)

    @property
    def verdict(self) -> str:
        """In a few words: what loads."""
        findings = self.findings
        if findings.error:
            return message("files.cannot_be_read")
        if not findings.total:
            return message("library.no_lora")
        if self.state == UNKNOWN:
            return message("library.unknown_model")
        if findings.placed == findings.total:
            return message("library.loads")
        return message("report.modules_load", placed=findings.placed, count=findings.total)

    @property
    def has_problem(self) -> bool:
        """Whether something in it has no effect, or the stock loader would not do it justice."""
        return self.state != GOOD

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        findings = self.findings._asdict()
        return {
            "file": self.file,
            "bytes": self.stamp.size,
            **findings,
            "verdict": self.verdict,
            "state": self.state,
            "problem": self.has_problem,
        }


def scan(
    folder: str | os.PathLike[str],
    index: Path | None = None,
    own: UserMaps = NO_USER_MAPS,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[LibraryRow]:
    """One row for each LoRA file in the folder and all below it, by name; `scan_files` tells the
    rest.

    Raises LoraFileError for a folder that cannot be listed.
    """
    files = {
        file: (os.path.join(folder, file), stamp) for file, stamp in list_files(folder).items()
    }
    yield from scan_files(files, index, own, progress)


def scan_files(
    files: Mapping[str, tuple[str, Stamp]],
    index: Path | None = None,
    own: UserMaps = NO_USER_MAPS,
    progress: Callable[[int, int], None] | None = None,
    marks: Any = "",
    *,
    engine: Engine | None = None,
) -> Iterator[LibraryRow]:
    """One row for each file, in their order; `files`: what a row calls it -> (path, stamp).

    `index`: a file that keeps the rows; files whose stamp is in it are not read. It is written when
    the scan ends, early or not, and now and then before. It is not used when `marks` differ from
    those it was made with (they tell when `own` changes). `told(done, total)` is called before each
    file. `engine` looks into the files; without one they are read here, one after another.
    """
    version = f"{knowledge_version(own)} {marks}"
    before = _read_index(index, version) if index else {}
    kept = {
        file: row
        for file, (_, stamp) in files.items()
        if (row := before.get(file)) is not None and row.stamp == stamp
    }
    look = engine or partial(map, partial(findings_or_fault, own=own))
    found = look([path for file, (path, _) in files.items() if file not in kept])
    rows: dict[str, LibraryRow] = {}
    kept_at = time.monotonic()
    try:
        for file, (_, stamp) in files.items():
            if progress:
                progress(len(rows), len(files))
            row = kept.get(file)
            if row is None:
                row = LibraryRow(file, stamp, next(found))
                if index and time.monotonic() - kept_at > KEEP_AFTER:
                    _write_index(index, version, before | rows)
                    kept_at = time.monotonic()
            rows[file] = row
            yield row
    finally:
        whole = rows if len(rows) == len(files) else before | rows
        if index and whole != before:
            _write_index(index, version, whole)
        if isinstance(found, Generator):
            found.close()


def findings_or_fault(
    path: str, own: UserMaps = NO_USER_MAPS, *, read: Read | None = None
) -> Findings:
    """`findings_of`, also where the pack makes a mistake."""
    try:
        return findings_of(path, own, read=read)
    except MemoryError:  # The file is not to blame, and the index would remember it.
        raise
    except Exception as error:  # A mistake of ours about one file must not hide all others.
        return Findings(
            error=message("library.not_understood", kind=type(error).__name__, error=str(error))
        )


def list_files(folder: str | os.PathLike[str]) -> dict[str, Stamp]:
    """Every LoRA file in the folder and all below it (links followed), by its path inside the
    folder: path -> stamp.
    """
    stamps: dict[str, Stamp] = {}
    seen: set[str] = set()
    waiting = [("", os.fspath(folder))]
    for inside, path in waiting:
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            if not inside and isinstance(error, NotADirectoryError):
                raise LoraFileError(
                    path,
                    message("files.is_a_file"),
                    message("library.scan_its_folder"),
                ) from None
            if not inside and isinstance(error, FileNotFoundError):
                raise LoraFileError(
                    path, message("library.no_folder"), message("library.check_name")
                ) from None
            if not inside:
                raise LoraFileError(
                    path,
                    message("library.not_listed", error=str(error.strerror)),
                    message("library.check_folder"),
                ) from None
            continue
        config = next((_changed(entry) for entry in entries if entry.name == PEFT_CONFIG), 0)
        for entry in entries:
            if _is_folder(entry):
                waiting.append((f"{inside}{entry.name}/", entry.path))
            elif entry.name.lower().endswith((*ENDINGS, *PICKLED)):
                with suppress(OSError):
                    about = entry.stat()
                    stamps[inside + entry.name] = Stamp(about.st_size, about.st_mtime_ns, config)
    return dict(sorted(stamps.items()))


def stamp_of(path: str | os.PathLike[str], configs: dict[str, int] | None = None) -> Stamp | None:
    """The stamp of one file, None where there is none; `configs` remembers the settings beside
    files by folder.
    """
    configs = {} if configs is None else configs
    folder = os.path.dirname(path)
    try:
        about = os.stat(path)
        if folder not in configs:
            config = Path(folder, PEFT_CONFIG)
            configs[folder] = config.stat().st_mtime_ns if config.exists() else 0
    except OSError:
        return None
    return Stamp(about.st_size, about.st_mtime_ns, configs[folder])


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


def findings_of(
    path: str | os.PathLike[str], own: UserMaps = NO_USER_MAPS, *, read: Read | None = None
) -> Findings:
    """What is in one file. Never raises for what the file holds: `error` says why it cannot be
    read. read: gets what is looked at, of a file on another machine.
    """
    if os.fspath(path).lower().endswith(PICKLED):
        fault, remedy = message("files.pickle"), message("files.pickle_remedy")
        return Findings(error=fault_and_remedy(fault, remedy))
    try:
        header, config = (read or read_with_settings)(os.fspath(path))
    except LoraFileError as error:
        kind = Passing if isinstance(error, NotReached) else Findings
        return kind(error=fault_and_remedy(error.fault, error.remedy))
    if own is not NO_USER_MAPS:
        return _summary(inspect_header(path, header, config, own=own))
    key = cache_key(header, config)
    # Taken out and put back in single steps, because several threads ask.
    findings = _alike.pop(key, None)
    if findings is None:
        inspection = inspect_header(path, header, config)
        findings = _summary(inspection)
        if inspection.plan.by_values:
            return findings
    _alike[key] = findings
    while len(_alike) > MAX_ALIKE:
        _alike.popitem(last=False)
    return findings


def read_with_settings(path: str) -> tuple[Header, Mapping[str, Any] | None]:
    """The header of a file, and PEFT's settings beside it. Raises LoraFileError."""
    return read_header(path), adapter_config_beside(path)


_alike: OrderedDict[tuple[object, ...], Findings] = OrderedDict()


def _summary(inspection: Inspection) -> Findings:
    report = inspection.report
    if inspection.other:
        return Findings(trainer=UNTOLD, losses=(inspection.other,))
    return Findings(
        family=inspection.family.name,
        made_for=inspection.family.title,
        trainer=report.trainer,
        kinds=joined(kind for kind, _ in inspection.kinds.most_common()),
        rank=spread(inspection.ranks),
        placed=report.modules["placed"],
        total=report.modules["total"],
        stock=inspection.report.stock_modules,
        gains=tuple(inspection.gains),
        losses=(*([report.remedy] if report.guess.is_absent else []), *report.losses),
        cautions=report.cautions,
        contradiction=report.contradiction,
        trainer_guessed=report.writer.is_guess,
    )


def knowledge_version(own: UserMaps = NO_USER_MAPS) -> str:
    """Changes when the pack's knowledge or code changes: an index made with another version is not
    used.
    """
    here = Path(__file__).parents[1]
    folders = (
        folder
        for room in KNOWING
        for folder, _, _ in os.walk(here / room)
        if not folder.endswith("__pycache__")
    )
    files = [entry.stat() for folder in folders for entry in os.scandir(folder) if entry.is_file()]
    return (
        f"{len(files)} {sum(about.st_size for about in files)}"
        f" {max(about.st_mtime_ns for about in files)} {own.families.keys()}"
    )


def _read_index(index: Path, version: str) -> dict[str, LibraryRow]:
    """The rows an index keeps; none where it is missing, damaged or of another version."""
    try:
        content = json.loads(index.read_bytes())
        if content["version"] != version:
            return {}
        return {file: _row(file, *kept) for file, kept in content["rows"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return {}


def _row(file: str, stamp: list[Any], findings: list[Any]) -> LibraryRow:
    fields: Iterator[Any] = (
        tuple(map(unpacked, field)) if isinstance(field, list) else unpacked(field)
        for field in findings
    )
    return LibraryRow(file, Stamp(*stamp), Findings(*fields))


def _kept(findings: Findings) -> list[Any]:
    """Findings as plain JSON, which `_row` reads."""
    return [
        list(map(packed, field)) if isinstance(field, tuple) else packed(field)
        for field in findings
    ]


def _write_index(index: Path, version: str, rows: Mapping[str, LibraryRow]) -> None:
    """Keep the rows; an index that cannot be written costs time, nothing else."""
    content = {
        "version": version,
        "rows": {
            file: [row.stamp, _kept(row.findings)]
            for file, row in rows.items()
            if not isinstance(row.findings, Passing)
        },
    }
    with suppress(OSError):
        index.parent.mkdir(parents=True, exist_ok=True)
        write_whole(index, json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode())
