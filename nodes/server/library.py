"""The library of all listed LoRA files: one scan at a time in a thread of its own, whose rows so
far anyone may ask for.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import folder_paths

from ...errors import exhausted
from ...lora.rewrite.rename import writable
from ...messages import message, translations
from ...report.apart import in_process
from ...report.findings import Findings
from ...report.index import NAME, Index
from ...report.library import LibraryRow, scan_files
from ...report.listing import Listed, find_files, key_root
from ..files import lora_names, own_folder, own_maps, own_stamp
from ..languages import answered

MAX_KNOWN = 4096  # kinds of files whose texts in other languages are remembered
OWN = ("file", "bytes", "trigger_words", "has_picture", "changed")  # what no other file shares


class Library:
    """The rows of the newest scan so far, each as JSON text, and the thread that adds to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: list[str] = []
        self._found: list[LibraryRow] = []
        self._translated = Translated()
        self._scan, self._total, self._error = "", 0, ""
        # The scan before, and how many of its first rows are those of this one.
        self._before, self._same = "", 0
        self._running = self._again = False

    def read(self, refresh: bool = False) -> None:
        """Start a scan if there was none yet or `refresh` asks for one; a scan that runs already is
        followed by another.
        """
        with self._lock:
            self._again = self._again or (refresh and self._running)
            if self._running or (self._scan and not refresh):
                return
            self._running = True
        try:
            threading.Thread(target=self._run, name="lora_locksmith library", daemon=True).start()
        except BaseException:
            with self._lock:
                self._running = self._again = False
            raise

    def waiting(self, since: int) -> bool:
        """Whether a row beyond the first `since` is still to come, and none is there."""
        return self._running and len(self._rows) <= since

    def found(self) -> tuple[list[LibraryRow], bool]:
        """The rows so far, and whether more are to come."""
        with self._lock:
            return list(self._found), self._running

    def answer(self, since: int, most: int, language: str = "") -> str:
        """What the route tells, as JSON text: the `most` rows from `since` on, and what to show
        instead in a language; of the first `same` rows, that the scan `before` had them as well.
        """
        with self._lock:
            rows, found = self._rows[since : since + most], self._found[since : since + most]
            state = answered(
                {
                    "done": len(self._rows),
                    "total": self._total,
                    "running": self._running,
                    "scan": self._scan,
                    "before": self._before,
                    "same": self._same,
                    "error": self._error,
                    "dialects": list(writable()),
                },
                language,
            )
        for language, table in state.get("translations", {}).items():
            self._translated.into(table, language, found)
        return f'{{"rows": [{", ".join(rows)}], {json.dumps(state)[1:]}'

    def _run(self) -> None:
        while True:
            error = ""
            try:
                self._read_all()
            except Exception as fault:
                short = exhausted(fault)
                error = short or message("nodes.library_not_read")
                logging.getLogger("lora_locksmith").error(
                    message("nodes.log_library_not_read", fault=error),
                    exc_info=None if short else fault,
                )
            with self._lock:
                self._scan, self._error = self._scan or uuid.uuid4().hex, error
                self._running, self._again = self._again, False
                if not self._running:
                    return

    def _read_all(self) -> None:
        tell = logging.getLogger("lora_locksmith").warning
        own, stamp, folder = own_maps(), own_stamp(), own_folder()
        names = lora_names()
        with self._lock:
            # Another list, because answers slice the old one.
            before, self._rows, self._found = self._rows, [], []
            self._before, self._same = self._scan, 0
            self._scan, self._total = uuid.uuid4().hex, len(names)
        text_of_row = Texts()
        for row in scan_files(
            listed_files(names),
            Index(folder / NAME, tell),
            own,
            marks=repr(stamp) if stamp else "",
            roots=[key_root(place) for place in folder_paths.get_folder_paths("loras")],
            engine=in_process(own, folder, tell),
        ):
            self._found.append(row)  # first, as `answer` counts the rows
            self._rows.append(text_of_row(row))
            done = len(self._rows)
            if self._same == done - 1 and before[done - 1 : done] == self._rows[-1:]:
                self._same = done
        self._total = len(self._rows)  # without those that are gone by now


def listed_files(names: Iterable[str]) -> Iterator[tuple[str, Listed]]:
    """The LoRA files by the names that the host lists them under."""
    return find_files(names, folder_paths.get_folder_paths("loras"))


class Texts:
    """Makes the JSON texts of rows; what files share is made once."""

    def __init__(self) -> None:
        self._shared: dict[tuple[Findings, bool], str] = {}

    def __call__(self, row: LibraryRow) -> str:
        key = row.findings.shared(), row.is_pickled
        shared = self._shared.get(key)
        if shared is None:
            document = row_as_dict(row)
            shared = json.dumps({name: document[name] for name in document if name not in OWN})
            self._shared[key] = shared
        own = {
            "file": row.file,
            "bytes": row.stamp.size,
            "trigger_words": row.findings.trigger_words,
            "has_picture": row.has_picture,
            "changed": row.stamp.changed / 1e9,
        }
        return f"{json.dumps(own)[:-1]}, {shared[1:]}"


class Translated:
    """What rows say in other languages; what files share is said once."""

    def __init__(self) -> None:
        self._known: OrderedDict[Findings, Mapping[str, Mapping[str, str]]] = OrderedDict()
        self._lock = threading.Lock()

    def into(self, table: dict[str, str], language: str, rows: Iterable[LibraryRow]) -> None:
        """Add what these rows say in a language: English -> it."""
        for findings, row in {row.findings.shared(): row for row in rows}.items():
            with self._lock:
                texts = self._known.get(findings)
                if texts is None:
                    texts = self._known[findings] = translations(row_as_dict(row))
                if len(self._known) > MAX_KNOWN:
                    self._known.popitem(last=False)
            table |= texts.get(language, {})


def row_as_dict(row: LibraryRow) -> dict[str, Any]:
    """A row as the routes give it."""
    return row.as_dict() | {
        "changed": row.stamp.changed / 1e9,
        "pickled": row.is_pickled,
    }
