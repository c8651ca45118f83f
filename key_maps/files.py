"""Writes a file whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

MOST_OF_NAME = 40  # characters that a temporary name takes from its file's, which may be as long as the system allows
NOT_IN_NAMES = frozenset('<>:"|?*/\\')  # what Windows does not allow, or takes for something else
CONTROL = ("Cc", "Cs")  # Unicode's control characters, and halves of one
# Windows takes these for devices, with any ending (learn.microsoft.com, "Naming Files, Paths, and Namespaces").
PORTS = tuple(f"{port}{number}" for port in ("COM", "LPT") for number in "123456789\xb9\xb2\xb3")
DEVICES = frozenset({"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *PORTS})
IN_USE = "it may not be replaced, or a program has it open (on Windows also a ComfyUI that loaded it)"


@contextmanager
def replacing(
    path: str | os.PathLike[str], overwrite: bool = True, at_last: Callable[[], Any] | None = None
) -> Iterator[tuple[BinaryIO, Path]]:
    """(a new file beside `path`, open for reading and writing, its name); it takes the place of `path` when the block ends.

    In one step: whoever reads `path` sees the old file or the new one. What is raised leaves `path` as it was and nothing behind.
    The new file has the permissions of the one it replaces, else those of any new file. `at_last()` is called when all is ready,
    right before the new file takes its place. Raises OSError, and FileExistsError for a file at `path` unless `overwrite`, before
    the block and after it.
    """
    path = Path(path)
    check_free(path, overwrite)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:MOST_OF_NAME]}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file, temporary
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(path))
        if at_last is not None:
            at_last()
        _put(temporary, path, overwrite)
    except BaseException:
        with suppress(OSError):
            os.chmod(temporary, 0o600)  # Windows removes no file that may not be written.
        _remove(temporary)
        raise
    _sync_folder(path.parent)


def _put(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give the new file its name. A link, unlike a rename, cannot take the place of a file that another process has put there."""
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
        raise PermissionError(error.errno, IN_USE, os.fspath(path)) from None


def _remove(temporary: Path) -> None:
    """Windows removes no file that is mapped, but what was raised, or written, counts for more than a temporary file left behind."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def is_file_name(name: str) -> bool:
    """Whether a file or a folder can be called so on every system, and is then called so: Windows drops dots and spaces at the end."""
    if not name.strip(" .") or name != name.rstrip(" .") or NOT_IN_NAMES.intersection(name):
        return False
    if any(unicodedata.category(character) in CONTROL for character in name):
        return False
    return name.split(".")[0].rstrip(" ").upper() not in DEVICES


@contextmanager
def making_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and those it is in for a block that writes into it; what is raised takes away those that are empty."""
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
    return FileExistsError(errno.EEXIST, "there is a file already; it is only overwritten when that is asked for", os.fspath(path))


def _mode(path: Path) -> int:
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


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
