"""A user's own family tables and dialect records: read by the same strict readers, never able to
break the loader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..errors import about_file
from ..messages import message, text_of
from .dialect import Dialect, DialectError, read_dialect
from .table import Family, TableError, read_table


class UserMaps(NamedTuple):
    """Tables and records by name, and what was wrong with those that could not be read."""

    families: Mapping[str, Family]
    dialects: Mapping[str, Dialect]
    errors: tuple[str, ...] = ()


NO_USER_MAPS = UserMaps({}, {})
Map = TypeVar("Map")  # a table or a record


def read_own_maps(folder: Path) -> UserMaps:
    """Read `folder`/families/*.table and `folder`/dialects/*.record; a name that the pack also has
    replaces the pack's.

    A file that breaks the rules is left out and named in `errors` with line, fault and remedy.
    """
    errors: list[str] = []
    tables = _read(folder / "families", "*.table", read_table, TableError, errors)
    records = _read(folder / "dialects", "*.record", read_dialect, DialectError, errors)
    return UserMaps(tables, records, tuple(errors))


def _read(
    folder: Path,
    pattern: str,
    read: Callable[[Path], Map],
    fault: type[Exception],
    errors: list[str],
) -> dict[str, Map]:
    maps = {}
    for path in _paths(folder, pattern):
        try:
            maps[path.stem] = read(path)
        except fault as error:
            errors.append(message("key_maps.left_out", reason=text_of(error)))
    for path in _paths(
        folder, f"{pattern}.txt"
    ):  # what editors make of the name where endings are hidden
        remedy = message("key_maps.rename_to", name=path.stem)
        reason = about_file(path, message("key_maps.hidden_ending"), remedy)
        errors.append(message("key_maps.left_out", reason=reason))
    return maps


def own_maps_stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when a file of the folder changes, comes or goes. Never raises: a link may lead
    nowhere, a file may just be gone.
    """
    files = [*_paths(folder / "families", "*.table*"), *_paths(folder / "dialects", "*.record*")]
    return tuple((str(path), *_changed(path)) for path in files)


def _paths(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _changed(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size
