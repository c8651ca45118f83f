"""What must hold for any file at all: a clear error or a whole report, alike to what safetensors
makes of it, and nothing left behind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_locksmith.files.header import Header, LoraFileError, read_header
from lora_locksmith.planning.plan import (
    BOOKKEEPING,
    DUPLICATE_TARGET,
    INCOMPLETE,
    NOT_WIRED,
    PLACED,
    SHAPE_CONFLICT,
    UNKNOWN_MODULE,
    UNKNOWN_ROLE,
    UNSUPPORTED,
)
from lora_locksmith.report.findings import findings_of
from lora_locksmith.report.inspection import Inspection, inspect_file
from lora_locksmith.report.markdown import DETAILS, markdown
from safetensors import SafetensorError, safe_open

CATEGORIES = {
    BOOKKEEPING,
    DUPLICATE_TARGET,
    INCOMPLETE,
    NOT_WIRED,
    PLACED,
    SHAPE_CONFLICT,
    UNKNOWN_MODULE,
    UNKNOWN_ROLE,
    UNSUPPORTED,
}
# Why we refuse what safetensors reads: its specification forbids names that stand twice, and
# describes a tensor as an object.
STRICTER = (
    "is in it twice",
    "describes the tensor",
    "which torch does not have",
    "larger than torch can count",
)


def judge(path: Path) -> str:
    """What became of the file: "read", or why it was refused. Fails where anything but a report or
    a clear error came of it.
    """
    try:
        header = read_header(path)
    except LoraFileError as error:
        check_refusal(error, path)
        assert findings_of(path).error
        stricter = any(reason in error.fault for reason in STRICTER)
        assert stricter or _as_safetensors(path) is None, (
            f"safetensors reads what we refuse: {error.fault}"
        )
        return error.fault
    check_alike(path, header)
    check_report(inspect_file(path), header)
    assert not findings_of(path).error
    return "read"


def check_refusal(error: LoraFileError, path: Path) -> None:
    """It names the file, the fault and a remedy, in a line that can be shown."""
    told = str(error)
    assert (
        os.fspath(path) == error.path
        and error.path in told
        and len(error.fault) > 8
        and len(error.remedy) > 8
    )
    assert len(told) < 1000 + len(error.path) and "Traceback" not in told
    told.encode()


def check_alike(path: Path, header: Header) -> None:
    """Where safetensors reads the file, it finds the same tensors there."""
    theirs = _as_safetensors(path)
    if theirs is not None:
        assert theirs == {name: (info.dtype, info.shape) for name, info in header.tensors.items()}


def _as_safetensors(path: Path) -> dict | None:
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {
                name: (piece.get_dtype(), tuple(piece.get_shape()))
                for name, piece in slices.items()
            }
    except (SafetensorError, OSError, RuntimeError):
        return None


def check_report(found: Inspection, header: Header) -> None:
    """Every key of the file has just one outcome, and all of the report can be shown and sent."""
    plan = found.plan
    assert list(plan.outcomes) == list(header.tensors)
    for key, outcome in plan.outcomes.items():
        assert outcome.category in CATEGORIES and outcome.reason
        assert (outcome.category == PLACED) == (outcome.adapter is not None)
        assert outcome.adapter is None or key in plan.adapters[outcome.adapter].roles.values()
    told = found.as_dict()
    assert told["tensors"] == len(header.tensors) == sum(told["loads"]["categories"].values())
    json.dumps(told, allow_nan=False)
    json.dumps(found.report.as_dict(), allow_nan=False)
    for text in (str(found.report), *(markdown(found, detail) for detail in DETAILS)):
        text.encode("utf-8", "backslashreplace")  # as it is shown


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Fails where a block changes the folder, or leaves a file open."""
    before, opened = listing(folder), open_files()
    yield
    assert listing(folder) == before
    assert open_files() <= opened


def listing(folder: Path) -> dict[str, tuple]:
    """Everything in a folder and below: path -> (size, time of change, inode) of a file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        found[path.relative_to(folder).as_posix()] = (
            () if path.is_dir() else (about.st_size, about.st_mtime_ns, about.st_ino)
        )
    return found


def open_files() -> set[str]:
    """The files this process has open, where the system tells."""
    places = Path("/proc/self/fd")
    if not places.exists():
        return set()
    found = set()
    for place in places.iterdir():
        try:
            found.add(os.readlink(place))
        except OSError:
            continue
    return {
        name for name in found if name.startswith("/") and not name.startswith(("/dev/", "/proc/"))
    }
