"""What an index keeps of the files of one scan, as findings."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from .findings import Findings, Passing, Unpacker, packed_findings
from .index import Index, Kept
from .listing import Listed

# Rooms whose code and tables decide what a row says.
KNOWING = ("files", "adapters", "key_maps", "planning", "identify", "report", "locales")
# Seconds of reading whose result is kept at once, so that a scan that is cut off need not begin
# anew.
KEEP_AFTER = 2.0
BETWEEN = b"\0"  # a file's key and marks


class Shelf:
    """What an index keeps of the files of one scan, whose keys all begin with one of the `roots`.
    marks: tell apart what is found with other maps of users.
    """

    def __init__(self, index: Index | None, marks: str, roots: Sequence[str]):
        self._index, self._marks = index, _digest(marks) if marks else b""
        self._version = knowledge_version() if index else ""
        self._unpack = Unpacker()
        self._kept: dict[bytes, Kept] = {}
        for root in map(os.fsencode, roots):
            if index:
                self._kept |= index.read(root, root[:-1] + bytes([root[-1] + 1]))
        self._new: dict[bytes, Kept] = {}
        self._written_at = time.monotonic()

    def known(self, listed: Listed) -> Findings | None:
        """What is kept of a file, if it is now as it was."""
        row = self._kept.get(self._key(listed))
        if row and (row.version, row.stamp) == (self._version, _stamp(listed)):
            return self._unpack(row.found, row.own)
        return None

    def put(self, listed: Listed, findings: Findings) -> None:
        """Keep what was found in a file, soon."""
        if self._index is None or isinstance(findings, Passing):
            return
        found, own = packed_findings(findings)
        self._new[self._key(listed)] = Kept(self._version, _stamp(listed), found, own)
        if time.monotonic() - self._written_at > KEEP_AFTER:
            self.write()

    def write(self) -> None:
        """Write what is not written yet."""
        new, self._new = self._new, {}
        if self._index is not None and new:
            self._index.keep(new)
        self._written_at = time.monotonic()

    def forget_others(self, files: Mapping[str, Listed]) -> None:
        """Keep nothing more of files that are gone, nor what was found with maps that changed."""
        if self._index is None:
            return
        self.write()
        here = {listed.key for listed in files.values()}
        gone = []
        for key in self._kept:
            file, _, marks = key.partition(BETWEEN)
            if file not in here or marks not in (b"", self._marks):
                gone.append(key)
        self._index.forget(gone)

    def _key(self, listed: Listed) -> bytes:
        return listed.key + BETWEEN + self._marks if self._marks else listed.key


def _stamp(listed: Listed) -> str:
    size, changed, config_changed = listed.stamp
    return f"{size} {changed} {config_changed}\n{listed.beside}"


def knowledge_version() -> str:
    """Changes when the pack's knowledge or code changes: what was found with another version is not
    used. The same for all copies of one version.
    """
    here = Path(__file__).parents[1]
    folders = (
        folder
        for room in KNOWING
        for folder, _, _ in os.walk(here / room)
        if not folder.endswith("__pycache__")
    )
    files = {
        entry.path: entry.stat()
        for folder in folders
        for entry in os.scandir(folder)
        if entry.is_file()
    }
    return _version_of(
        tuple(sorted((path, about.st_size, about.st_mtime_ns) for path, about in files.items()))
    )


@lru_cache(maxsize=1)  # of the pack's own files
def _version_of(files: tuple[tuple[str, int, int], ...]) -> str:
    here = Path(__file__).parents[1]
    content = [(Path(path).relative_to(here).as_posix(), path) for path, *_ in files]
    hashed = blake2b(digest_size=16)
    for name, path in sorted(content):
        hashed.update(name.encode() + b"\0" + _digest_of_file(path))
    return hashed.hexdigest()


def _digest_of_file(path: str) -> bytes:
    return blake2b(Path(path).read_bytes(), digest_size=16).digest()


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest().encode()
