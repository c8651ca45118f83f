"""Measures the weights of listed files, one file or two beside each other, in a thread of its own:
an answer tells how far it is, later what was found, which is remembered until a file changes. Where
nobody asks any longer, as after a tab was closed, it ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from ...errors import LocksmithError, exhausted, fault_and_remedy
from ...files.header import LoraFileError
from ...lora.by_layer import compared_weights, measured_weights
from ...lora.statistics import Progress
from ...messages import message, text_of
from ...report.beside import beside_stamp
from ...report.compare import FileComparison, compare_files
from ...report.listing import stamp_of
from ..files import own_maps, own_stamp
from .about_file import inspection_of, listed

MOST = 8  # measurements that are remembered
# Seconds after which one that was not asked for ends. A tab in the background asks once a minute.
PATIENCE = 150.0
Measure = Callable[[Progress], dict[str, Any]]


class _Stopped(Exception):
    """Nobody waits for a measurement any longer."""


class Measurement:
    """One run over the weights; `done` of `total` model weights are measured. now: what changes
    with the files that it is of.
    """

    def __init__(
        self, measure: Measure, turn: threading.Lock, now: tuple = (), *, patience: float = PATIENCE
    ):
        self.now = now
        self.done = self.total = 0
        self.running = True
        self.found: dict[str, Any] | None = None
        self.fault = ""
        self._measure, self._turn, self._patience = measure, turn, patience
        self._stopping = self._told = False
        self.ask()

    def start(self) -> None:
        """Begin, as soon as it is its turn: one at a time reads from the disk."""
        name = "lora_locksmith measuring"
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def stop(self) -> None:
        """Have it end behind the weight it is at."""
        self._stopping = True

    def ask(self) -> None:
        """Somebody waits for it."""
        self._asked = time.monotonic()

    @property
    def is_worth_keeping(self) -> bool:
        """Whether it comes, or has come, to a result; a fault is one for who still waits for it."""
        is_old = self.fault and (self._told or self._is_forgotten)
        return not self._stopping and not is_old

    @property
    def _is_forgotten(self) -> bool:
        return time.monotonic() - self._asked > self._patience

    def answer(self) -> dict[str, Any]:
        """What the route tells."""
        self._told = bool(self.fault)
        return {
            "running": self.running,
            "done": self.done,
            "total": self.total,
            "stopped": self._stopping and self.found is None,
            "error": self.fault,
            "weights": self.found,
        }

    def _work(self) -> None:
        try:
            with self._turn:
                self._tell(0, 0)
                self.found = self._measure(self._tell)
        except _Stopped:
            pass
        except Exception as error:
            self.fault = _fault(error)
        finally:
            self.running = False
            del self._measure  # which holds all that is in the headers

    def _tell(self, done: int, total: int) -> None:
        self._stopping |= self._is_forgotten
        if self._stopping:
            raise _Stopped
        self.done, self.total = done, total


class Measurements:
    """The newest measurements by the paths of the files that they are of."""

    def __init__(self) -> None:
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[tuple, Measurement] = OrderedDict()

    def of(self, name: str, other: str = "") -> Measurement:
        """The measurement of a listed file, or of it and another; begun where there is none.

        Raises Unknown, LoraFileError.
        """
        paths = _paths(name, other)
        now = _now(paths)
        with self._lock:
            kept = self._kept.get(paths)
            if kept is None or kept.now != now or not kept.is_worth_keeping:
                if kept is not None:
                    kept.stop()
                kept = self._kept[paths] = Measurement(_measure_of(name, other), self._turn, now)
                kept.start()
            kept.ask()
            self._kept.move_to_end(paths)
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)[1].stop()
            return kept

    def stop(self, name: str, other: str = "") -> dict[str, Any]:
        """End a measurement that runs, and tell of it; nothing of one that there is not.

        Raises Unknown.
        """
        with self._lock:
            kept = self._kept.get(_paths(name, other))
            if kept is not None and kept.running:
                kept.stop()
            return kept.answer() if kept else {}


def compared(name: str, other: str) -> dict[str, Any]:
    """What the headers of two listed files tell side by side. Raises Unknown, LoraFileError."""
    return _comparison(_paths(name, other)).as_dict()


def _paths(name: str, other: str) -> tuple[str, ...]:
    return tuple(listed("loras", file)[1] for file in (name, other) if file)


def _now(paths: Iterable[str]) -> tuple:
    """What changes with the files."""
    return (own_stamp(), *((stamp_of(path), beside_stamp(path)) for path in paths))


def _measure_of(name: str, other: str) -> Measure:
    if other:
        files = _comparison(_paths(name, other))
        return lambda progress: compared_weights(files, progress=progress)
    _, file = inspection_of(name)
    return lambda progress: measured_weights(file, progress=progress)


def _comparison(paths: tuple[str, ...]) -> FileComparison:
    first, second = paths
    return _compared(first, second, _now(paths))


@lru_cache(maxsize=4)
def _compared(first: str, second: str, now: tuple) -> FileComparison:
    """now: what changes with the files."""
    return compare_files(first, second, own_maps())


def _fault(error: Exception) -> str:
    """What to say of what a measurement raised."""
    if short := exhausted(error):
        return short
    if isinstance(error, LoraFileError):
        return fault_and_remedy(error.fault, error.remedy)
    if isinstance(error, LocksmithError):
        return text_of(error)
    logging.getLogger("lora_locksmith").exception(message("nodes.log_question_failed"))
    return message("nodes.server_failed", type=type(error).__name__, error=error)
