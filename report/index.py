"""The index of LoRA files: what was found in each, in one SQLite file that servers and commands use
at the same time.

It keeps a rollback journal, SQLite's default, and no write-ahead log: a log needs memory that all
its users share, which no network drive gives, and ComfyUI's folders often lie on one. For the same
reason nothing is mapped into memory. Whatever a drive, a killed process or another program makes
of the file is noticed when it is read: each row has a checksum, what files share is called by its
own, and the file says what it is. A file that is not in order is set aside and made anew, as all
that it holds can be read again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..messages import message

if TYPE_CHECKING:
    import sqlite3

NAME = "library.sqlite"
ASIDE = ".damaged"  # behind the name of a file that is set aside
COMPANIONS = ("-journal", "-wal", "-shm")  # SQLite's own, which belong to the very file
APPLICATION, FORMAT = 0x4C6F4C6B, 1  # SQLite's application_id and user_version
PATIENCE = 10.0  # seconds to wait while others write
SCHEMA = (
    "CREATE TABLE found (mark BLOB PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE files (file BLOB PRIMARY KEY, version TEXT NOT NULL, stamp TEXT NOT NULL,"
    " mark BLOB NOT NULL, own TEXT NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID",
)
# Nothing that stands in a stranger's file is run, and no size in it is believed.
SETTINGS = ("mmap_size = 0", "trusted_schema = OFF", "cell_size_check = ON")
ALL_FILES = (
    "SELECT file, version, stamp, files.mark, own, checksum, text FROM files"
    " LEFT JOIN found ON found.mark = files.mark WHERE file >= ? AND file < ?"
)
NEW_FILE = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)"
NEW_FOUND = "INSERT OR IGNORE INTO found VALUES (?, ?)"
UNUSED = "DELETE FROM found WHERE mark NOT IN (SELECT mark FROM files)"


class Kept(NamedTuple):
    """What an index keeps of a file: which version of the pack found it, the file's stamp, what it
    shares with files that are alike, and what is its own; all of it text.
    """

    version: str
    stamp: str
    found: str
    own: str


class Damaged(Exception):
    """The file is none of this pack's indexes, or not as it was written."""


class Index:
    """An index at a path, for one thread; nothing of it ever raises: one that cannot be read or
    written costs time and nothing else, and `tell` is given one sentence that says so.
    """

    def __init__(self, path: str | os.PathLike[str], tell: Callable[[str], Any]):
        self.path, self._tell = Path(path), tell
        self._database: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._told = False

    @contextmanager
    def opened(self) -> Iterator[Index]:
        """The index, ready to be used within the block."""
        self._told = False
        self._try(lambda: None)
        try:
            yield self
        finally:
            self._close()

    def read(self, start: bytes, end: bytes) -> dict[bytes, Kept]:
        """What is kept of the files from `start` to before `end`."""
        return self._try(lambda: dict(self._rows(start, end))) or {}

    def keep(self, files: Mapping[bytes, Kept]) -> None:
        """Keep these files, in one step."""
        rows = [_row(file, kept) for file, kept in files.items()]
        texts = {row[3]: kept.found for row, kept in zip(rows, files.values(), strict=True)}

        def write() -> None:
            with self._writing() as database:
                database.executemany(NEW_FOUND, texts.items())
                database.executemany(NEW_FILE, rows)

        if files:
            self._try(write)

    def forget(self, files: Iterable[bytes]) -> None:
        """Keep nothing of these files any more, and nothing that only they had."""
        gone = [(file,) for file in files]

        def write() -> None:
            with self._writing() as database:
                database.executemany("DELETE FROM files WHERE file = ?", gone)
                database.execute(UNUSED)

        if gone:
            self._try(write)

    def _rows(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, Kept]]:
        """Raises Damaged, sqlite3.Error."""
        whole: dict[bytes, str] = {}  # what was compared with its mark
        for *row, found in self._connected().execute(ALL_FILES, (start, end)):
            file, version, stamp, mark, own, checksum = row
            if _checksum(row[:-1]) != checksum or type(found) is not str:
                raise Damaged
            if mark not in whole:
                if _mark(found) != mark:
                    raise Damaged
                whole[mark] = found
            yield file, Kept(version, stamp, whole[mark], own)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        database = self._connected()
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            with suppress(Exception):
                database.execute("ROLLBACK")
            raise

    def _connected(self) -> sqlite3.Connection:
        assert self._database is not None, "opened before it is used"
        return self._database

    def _try(self, act: Callable[[], Any]) -> Any:
        """What `act` gives with the index open; a damaged one is made anew first. None where it
        cannot be used.
        """
        try:
            import sqlite3
        except ImportError as error:  # a Python that was built without it
            return self._say(error)
        for last in (False, True):
            try:
                if self._database is None:
                    if self._told:
                        return None
                    self._open()
                return act()
            except (Damaged, sqlite3.DatabaseError, UnicodeError) as error:
                # Its subclasses are of faults of use: locked, full, read-only, not to be opened.
                is_damaged = type(error) in (Damaged, sqlite3.DatabaseError) or isinstance(
                    error, UnicodeError
                )
                if not is_damaged or last or not self._set_aside():
                    return self._give_up(error)
            except OSError as error:
                return self._give_up(error)
        return None

    def _open(self) -> None:
        """Raises Damaged, OSError, sqlite3.Error."""
        import sqlite3

        if self.path.exists() and not stat.S_ISREG(self.path.stat().st_mode):
            raise OSError(message("library.index_no_file"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._identity = _identity_of(self.path)
        database = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        self._database = database
        for setting in SETTINGS:
            database.execute(f"PRAGMA {setting}")
        database.execute("BEGIN")  # what it says of itself is read at one moment
        is_ours = _is_ours(database)
        database.execute("COMMIT")
        if not is_ours:
            self._make()
        self._identity = _identity_of(self.path)

    def _make(self) -> None:
        """Raises Damaged, sqlite3.Error."""
        with self._writing() as database:
            if not _is_ours(database):  # another one may have made it meanwhile
                for statement in SCHEMA:
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {APPLICATION}")
                database.execute(f"PRAGMA user_version = {FORMAT}")

    def _set_aside(self) -> bool:
        """Whether the file is out of the way: renamed, by us or by another one meanwhile."""
        self._close()
        try:
            if _identity_of(self.path) == self._identity:
                # First what SQLite would take for the new file's.
                for ending in (*COMPANIONS, ""):
                    place = Path(f"{self.path}{ending}")
                    if place.exists():
                        os.replace(place, f"{self.path}{ASIDE}{ending}")
                self._tell(message("library.index_set_aside", path=str(self.path) + ASIDE))
        except OSError:
            return False
        return True

    def _give_up(self, error: Exception) -> None:
        self._close()
        self._say(error)

    def _say(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            fault = error.strerror if isinstance(error, OSError) and error.strerror else error
            self._tell(message("library.index_unusable", path=str(self.path), fault=fault))

    def _close(self) -> None:
        if self._database is not None:
            with suppress(Exception):
                self._database.close()
            self._database = None


def _identity_of(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of its name; None where there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_dev, about.st_ino


def _is_ours(database: sqlite3.Connection) -> bool:
    """Whether the file is an index as this version writes it; False for an empty one. Raises
    Damaged for anything else.
    """
    told = [
        database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version", "journal_mode")
    ]
    tables = {sql for (sql,) in database.execute("SELECT sql FROM sqlite_master")}
    if told == [APPLICATION, FORMAT, "delete"] and tables == set(SCHEMA):
        # A broken tree can lose rows in silence; this takes milliseconds.
        if database.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise Damaged
        return True
    if told[:2] == [0, 0] and not tables:
        return False
    raise Damaged


def _row(file: bytes, kept: Kept) -> tuple[Any, ...]:
    row = (file, kept.version, kept.stamp, _mark(kept.found), kept.own)
    return (*row, _checksum(row))


def _mark(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def _checksum(row: Iterable[Any]) -> bytes:
    return blake2b(repr(tuple(row)).encode(), digest_size=8).digest()
