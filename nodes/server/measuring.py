"""Measures the weights of listed files, one file or two beside each other, in a thread of its own:
an answer tells how far it is, later what was found, which is remembered until a file changes.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
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
Measure = Callable[[Progress], dict[str, Any]]


class _Stopped(Exception):
    """Nobody waits for a measurement any longer."""


class Measurement:
    """One run over the weights; `done` of `total` model weights are measured."""

    def __init__(self, measure: Measure, turn: threading.Lock):
        self.done = self.total = 0
        self.running = True
        self.found: dict[str, Any] | None = None
        self.fault = ""
        self._measure, self._turn = measure, turn
        self._stopping = False

    def start(self) -> None:
        """Begin, as soon as it is its turn: one at a time reads from the disk."""
        name = "lora_locksmith measuring"
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def stop(self) -> None:
        """Have it end behind the weight it is at."""
        self._stopping = True

    @property
    def is_worth_keeping(self) -> bool:
        """Whether it comes, or has come, to a result."""
        return not self._stopping and not self.fault

    def answer(self) -> dict[str, Any]:
        """What the route tells."""
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

    def _tell(self, done: int, total: int) -> None:
        if self._stopping:
            raise _Stopped
        self.done, self.total = done, total


class Measurements:
    """The newest measurements by what they are of."""

    def __init__(self) -> None:
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[tuple, Measurement] = OrderedDict()

    def of(self, name: str, other: str = "") -> Measurement:
        """The measurement of a listed file, or of it and another; begun where there is none.

        Raises Unknown, LoraFileError.
        """
        key = _key(name, other)
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or not kept.is_worth_keeping:
                kept = self._kept[key] = Measurement(_measure_of(name, other), self._turn)
                kept.start()
            self._kept.move_to_end(key)
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)[1].stop()
            return kept

    def stop(self, name: str, other: str = "") -> dict[str, Any]:
        """End a measurement that runs, and tell of it; nothing of one that there is not.

        Raises Unknown.
        """
        with self._lock:
            kept = self._kept.get(_key(name, other))
            if kept is not None and kept.running:
                kept.stop()
            return kept.answer() if kept else {}


def compared(name: str, other: str) -> dict[str, Any]:
    """What the headers of two listed files tell side by side. Raises Unknown, LoraFileError."""
    return _comparison(name, other).as_dict()


def _key(name: str, other: str) -> tuple:
    return (own_stamp(), *(_stamped(file) for file in (name, other) if file))


def _stamped(name: str) -> tuple:
    name, path = listed("loras", name)
    return path, stamp_of(path), beside_stamp(path)


def _measure_of(name: str, other: str) -> Measure:
    if other:
        files = _comparison(name, other)
        return lambda progress: compared_weights(files, progress=progress)
    _, file = inspection_of(name)
    return lambda progress: measured_weights(file, progress=progress)


def _comparison(name: str, other: str) -> FileComparison:
    paths = (listed("loras", name)[1], listed("loras", other)[1])
    return _compared(*paths, _key(name, other))


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
