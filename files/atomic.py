"""Writes a file whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..messages import message

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a name that is a module here and None there

# characters that a temporary name takes from its file's, which may be as long as the system allows
MAX_OF_NAME = 40
NOT_IN_NAMES = frozenset('<>:"|?*/\\')  # what Windows does not allow, or takes for something else
CONTROL = ("Cc", "Cs")  # Unicode's control characters, and halves of one
# Windows takes these for devices, with any ending (learn.microsoft.com, "Naming Files, Paths, and
# Namespaces").
PORTS = tuple(f"{port}{number}" for port in ("COM", "LPT") for number in "123456789\xb9\xb2\xb3")
DEVICES = frozenset({"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *PORTS})


class NewFile(NamedTuple):
    """A file that is written together with another one, in its folder, and is read together with
    it.
    """

    name: str
    content: bytes


@contextmanager
def replacing(
    path: str | os.PathLike[str],
    overwrite: bool = True,
    at_last: Callable[[], Any] | None = None,
    beside: NewFile | None = None,
) -> Iterator[tuple[BinaryIO, Path]]:
    """(a new file beside `path`, open for reading and writing, its name); it takes the place of
    `path` when the block ends.

    In one step: whoever reads `path` sees the old file or the new one. What is raised leaves `path`
    as it was and nothing behind. The new file has the permissions of the one it replaces, else
    those of any new file. `at_last()` is called when all is ready, right before the new file takes
    its place. beside: put in place together with it, so that no one ever sees one of them new and
    the other one old, see `_put_both`. Raises OSError, and FileExistsError for a file at `path` (or
    the one beside it) unless `overwrite`, before the block and after it. Also removes what killed
    processes left in the folder.
    """
    path = Path(path)
    check_free(path, overwrite)
    companion = path.with_name(beside.name) if beside else None
    if beside and companion:
        _check_companion(path, companion, beside.content, overwrite)
    sweep(path.parent)
    with ExitStack() as stack:
        new = stack.enter_context(_Part(path))
        settings = stack.enter_context(_Part(companion)) if companion else None
        if beside and settings:
            # On the disk before the other one is, so that a full disk leaves neither.
            settings.file.write(beside.content)
            settings.finish()
        yield new.file, new.name
        new.finish()
        if at_last is not None:
            at_last()
        with _only_writer(path.parent):
            _put_both(new, settings, overwrite) if settings else new.put(overwrite)
    _sync_folder(path.parent)


class _Part:
    """A file under a temporary name; on leaving its block it is gone, if it was not put in its
    place.
    """

    def __init__(self, path: Path):
        self.path = path
        self.mode = path.stat().st_mode & 0o777 if path.exists() else None

    def __enter__(self) -> _Part:
        # The system takes the umask off by itself; what replaces a private file is private from the
        # start.
        mode = 0o666 if self.mode is None else self.mode & 0o666 | 0o600
        self.name, descriptor = _claim(self.path, lambda name: os.open(name, CREATE, mode))
        self.file = os.fdopen(descriptor, "w+b")
        return self

    def finish(self) -> None:
        """On the disk, with its permissions; still open, and so locked."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.mode is not None:
            os.chmod(self.name, self.mode)

    def put(self, overwrite: bool = True) -> None:
        """Give it its name; a block of `_only_writer` keeps it from being swept meanwhile. Windows
        renames no file that is open.
        """
        self.file.close()
        _put(self.name, self.path, overwrite)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(OSError):
            self.file.close()
        if kind is not None:
            with suppress(OSError):
                os.chmod(self.name, 0o600)  # Windows removes no file that may not be written.
            _remove(self.name)


CREATE = (
    os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
)


def _claim(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """(a temporary name beside `path`, the locked descriptor of what `make` made there)."""
    while True:
        name = path.with_name(f".{path.name[:MAX_OF_NAME]}.locksmith-{secrets.token_hex(6)}.part")
        try:
            descriptor = make(name)
        except FileExistsError:
            continue
        # Another process that sweeps may have taken it for a dead one, before it was locked.
        if _lock(descriptor) is not False and name.exists():
            return name, descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether it is locked now; False where another process has it, None where
    there are no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def scratch_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder beside `path` for what is needed on the way to it; it is gone after the block, or
    swept if the process was killed.
    """
    path = Path(path)
    sweep(path.parent)

    def make(name: Path) -> int:
        name.mkdir()
        return os.open(name, os.O_RDONLY) if os.name != "nt" else -1

    name, descriptor = _claim(path, make)
    _scratch.add(name)
    try:
        yield name
    finally:
        _scratch.discard(name)
        # On Windows a file that a traceback keeps mapped cannot be removed; that must not hide what
        # was raised.
        shutil.rmtree(name, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


_scratch: set[Path] = set()  # scratch folders of this process, which holds their locks


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes of this pack left in a folder;
    those of living ones stay.

    A living one holds a lock on them, or on the folder. Windows, without such locks, removes no
    file that is open; there they must be old, too.
    """
    known, at = _swept.get(os.fspath(folder), (0, 0.0))
    if known > LARGE_FOLDER and time.monotonic() - at < SWEEP_AGAIN:
        return
    try:
        names = os.listdir(folder)
    except OSError:
        return
    _swept[os.fspath(folder)] = len(names), time.monotonic()
    left = [folder / name for name in names if name.endswith(".part") and PART.fullmatch(name)]
    if not left:
        return
    with _only_writer(folder, 0.0) as locked:
        for part in left if locked or fcntl is None else ():
            with suppress(OSError):
                _sweep_one(part)


def _sweep_one(part: Path) -> None:
    about = part.lstat()
    if fcntl is None:
        if time.time() - about.st_mtime > OLD:
            _take_away(part, about.st_mode)
        return
    access = os.O_RDONLY if stat.S_ISDIR(about.st_mode) else os.O_RDWR
    descriptor = os.open(part, access | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if _lock(descriptor):
            _take_away(part, about.st_mode)
    finally:
        os.close(descriptor)


def _take_away(part: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        shutil.rmtree(part, ignore_errors=True)
    elif stat.S_ISREG(mode):
        part.unlink()


_swept: dict[str, tuple[int, float]] = {}  # folder -> (entries, when)
PART = re.compile(r"\..*\.locksmith-[0-9a-f]{12}\.part", re.DOTALL)
LARGE_FOLDER = (
    2000  # entries; one of more is not listed again for every file that is written into it
)
SWEEP_AGAIN = 60.0  # seconds
OLD = 3600.0  # seconds


def _put(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give the new file its name. A link, unlike a rename, cannot take the place of a file that
    another process has put there.
    """
    if not overwrite:
        check_free(path, overwrite)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise _taken(path) from None
        except OSError:
            pass  # The file system has no links.
        else:
            return _remove(temporary)
    try:
        os.replace(temporary, path)
    except PermissionError as error:
        raise PermissionError(error.errno, message("files.in_use"), os.fspath(path)) from None


def _check_companion(path: Path, companion: Path, content: bytes, overwrite: bool) -> None:
    """FileExistsError for a companion that is there already; one of the same content, of a run that
    was killed, is taken over.
    """
    if overwrite or not os.path.lexists(companion):
        return
    if os.path.lexists(path) or not companion.is_file() or companion.read_bytes() != content:
        raise _taken(companion)


def _put_both(new: _Part, companion: _Part, overwrite: bool) -> None:
    """Give a file and its companion their names, so that a kill at any moment leaves no new one
    beside an old one.

    Where nothing is replaced the companion comes first. Else the old one is set aside
    (`OLD_ENDING`) before the new file takes its
    place: in between there is none, which its other readers refuse, and ours know where it is.
    """
    _check_companion(new.path, companion.path, companion.name.read_bytes(), overwrite)
    away = companion.path.with_name(companion.path.name + OLD_ENDING)
    there = os.path.lexists(companion.path)
    same = there and companion.path.read_bytes() == companion.name.read_bytes()
    undo = None
    try:
        if not there and not os.path.lexists(new.path):
            companion.put()
            undo = partial(os.unlink, companion.path)
        elif there and not same:
            os.replace(companion.path, away)
            undo = partial(os.replace, away, companion.path)
        _sync_folder(new.path.parent)
        new.put(overwrite)
    except BaseException:
        with suppress(OSError):
            undo and undo()
        raise
    _sync_folder(new.path.parent)
    if companion.name.exists():
        companion.put()
    _remove(away)


OLD_ENDING = ".old"  # of a companion that is set aside while its file is replaced


@contextmanager
def _only_writer(folder: Path, patience: float = 5.0) -> Iterator[bool]:
    """Locks a folder, so that one process at a time gives names or sweeps there; False where it
    cannot be locked in time, or at all.
    """
    if folder in _scratch:
        yield True
        return
    descriptor, locked, until = None, None, time.monotonic() + patience
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        while (
            descriptor is not None
            and (locked := _lock(descriptor)) is False
            and time.monotonic() < until
        ):
            time.sleep(0.01)
        yield bool(locked)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove(temporary: Path) -> None:
    """Windows removes no file that is mapped, but what was raised, or written, counts for more than
    a temporary file left behind.
    """
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def is_file_name(name: str) -> bool:
    """Whether a file or a folder can be called so on every system, and is then called so: Windows
    drops dots and spaces at the end.
    """
    if not name.strip(" .") or name != name.rstrip(" .") or NOT_IN_NAMES.intersection(name):
        return False
    if any(unicodedata.category(character) in CONTROL for character in name):
        return False
    return name.split(".")[0].rstrip(" ").upper() not in DEVICES


@contextmanager
def making_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and those it is in for a block that writes into it; what is raised takes away
    those that are empty.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for place in missing:
            with suppress(OSError):
                place.rmdir()
        raise


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Put `content` at `path`, as `replacing` does."""
    with replacing(path) as (file, _):
        file.write(content)


def check_free(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raises FileExistsError where there is a file at `path`, unless it may be overwritten."""
    if not overwrite and os.path.lexists(path):
        raise _taken(path)


def _taken(path: str | os.PathLike[str]) -> FileExistsError:
    return FileExistsError(
        errno.EEXIST,
        message("files.taken"),
        os.fspath(path),
    )


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself last; systems that cannot open folders do it by themselves."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
