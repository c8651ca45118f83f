"""The library of all listed LoRA files: one scan at a time in a thread of its own, whose rows so
far anyone may ask for.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Mapping
from typing import Any

import folder_paths

from ...errors import exhausted
from ...lora.rewrite.rename import writable
from ...messages import message, translations
from ...report.beside import preview_of, read_beside
from ...report.library import LibraryRow, Stamp, scan_files, stamp_of
from ..files import lora_names, own_folder, own_maps, own_stamp
from ..languages import answered

INDEX = "library-index.json"


class Library:
    """The rows of the newest scan so far, each as JSON text, and the thread that adds to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: list[str] = []
        self._found: list[LibraryRow] = []
        self._texts: list[Mapping[str, Mapping[str, str]]] = []  # of each row, see `translations`
        self._scan, self._total, self._error = "", 0, ""
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

    def answer(self, since: int, language: str = "") -> str:
        """What the route tells, as JSON text, and what to show instead in a language."""
        with self._lock:
            rows, texts = self._rows[since:], self._texts[since:]
            state = answered(
                {
                    "done": len(self._rows),
                    "total": self._total,
                    "running": self._running,
                    "scan": self._scan,
                    "error": self._error,
                    "dialects": list(writable()),
                },
                language,
            )
        for language, table in state.get("translations", {}).items():
            for of_row in texts:
                table |= of_row.get(language, {})
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
        own = own_maps()
        files = listed_files()
        with self._lock:
            # Another list, because answers slice the old one.
            self._rows, self._texts, self._found = [], [], []
            self._scan, self._total = uuid.uuid4().hex, len(files)
        for row in scan_files(files, own_folder() / INDEX, own, marks=own_stamp()):
            document = row_as_dict(row) | told_beside(files[row.file][0])
            self._found.append(row)
            self._texts.append(translations(document))  # first, as `answer` counts the rows
            self._rows.append(json.dumps(document))


def told_beside(path: str) -> dict[str, Any]:
    """What lies beside a file, as its row shows it."""
    words = [noted.value for noted in read_beside(path).words]
    return {"has_picture": preview_of(path) is not None, "trigger_words": words}


def row_as_dict(row: LibraryRow) -> dict[str, Any]:
    """A row as the routes give it."""
    return row.as_dict() | {
        "changed": row.stamp.changed / 1e9,
        "pickled": row.is_pickled,
    }


def listed_files() -> dict[str, tuple[str, Stamp]]:
    """Every LoRA file by the name the host lists it under: name -> (path, stamp)."""
    files: dict[str, tuple[str, Stamp]] = {}
    configs: dict[str, int] = {}
    for name in lora_names():
        path = folder_paths.get_full_path("loras", name)
        if path is not None and (stamp := stamp_of(path, configs)) is not None:
            files[name] = path, stamp
    return files
