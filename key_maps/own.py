"""A user's own family tables and dialect records: read by the same strict readers, never able to break the loader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .dialect import Dialect, DialectError, read_dialect
from .table import Family, TableError, read_table


class OwnMaps(NamedTuple):
    """Tables and records by name, and what was wrong with those that could not be read."""

    families: Mapping[str, Family]
    dialects: Mapping[str, Dialect]
    errors: tuple[str, ...] = ()


NONE = OwnMaps({}, {})


def read_own_maps(folder: Path) -> OwnMaps:
    """Read `folder`/families/*.table and `folder`/dialects/*.record; a name that the pack also has replaces the pack's.

    A file that breaks the rules is left out and named in `errors` with line, fault and remedy.
    """
    errors: list[str] = []
    tables = _read(folder / "families", "*.table", read_table, TableError, errors)
    records = _read(folder / "dialects", "*.record", read_dialect, DialectError, errors)
    return OwnMaps(tables, records, tuple(errors))


def _read(folder: Path, pattern: str, read, fault: type[Exception], errors: list[str]) -> dict:
    found = {}
    for path in sorted(folder.glob(pattern)):
        try:
            found[path.stem] = read(path)
        except fault as error:
            errors.append(f"Your own map was left out: {error}")
    for path in sorted(folder.glob(f"{pattern}.txt")):  # what editors make of the name where endings are hidden
        errors.append(f"Your own map was left out: {path}: its name must not end with .txt. Rename it to {path.stem}")
    return found


def own_maps_stamp(folder: Path) -> tuple:
    """Changes when a file of the folder changes."""
    files = sorted([*folder.glob("families/*.table*"), *folder.glob("dialects/*.record*")])
    return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
