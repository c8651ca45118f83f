"""The registry of measurements, and how they are taken: in turns, so that a busy moment of the
machine meets all that is compared.
"""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SUBJECTS = (
    "loading",
    "sampling",
    "steps",
    "planning",
    "inspecting",
    "weighing",
    "truncating",
    "merging",
    "writing",
)
SECONDS, BYTES, ERROR = "s", "B", ""
# run -> what every round took, in the measurement's unit.
Figures = Mapping[str, Sequence[float]]


class Cell(NamedTuple):
    """Where a row stands in the table of steps: what is stored how, and what acts on it."""

    base: str
    tokens: int
    count: int
    way: str


class Row(NamedTuple):
    """One line of the table: what the run `ours` takes in multiples of what the run `other` takes.

    measured: the ratio of the short form on an idle machine; most: what it must stay below, by a
    margin that no machine explains. cell: of the table of steps, which it stands in instead.
    """

    name: str
    what: str
    against: str
    ours: str
    other: str
    measured: float
    most: float
    told_in_readme: bool = False
    cell: Cell | None = None


class Bench(NamedTuple):
    """What a measurement gets: an empty folder, the short form or the whole, and
    how many rounds.
    """

    folder: Path
    short: bool
    rounds: int

    def take_turns(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of every round of every run."""
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(self.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        return seconds

    def peaks(self, subject: str, runs: Mapping[str, Sequence[object]]) -> dict[str, list[float]]:
        """Bytes by which each run raises the peak of a process of its own; a run is a function of
        this subject and its arguments.
        """
        return {
            name: [peak(subject, *map(str, run)) for _ in range(self.rounds)]
            for name, run in runs.items()
        }


class Measurement(NamedTuple):
    """One function and the rows it fills. Its unit is that of its figures."""

    name: str
    take: Callable[[Bench], Figures]
    rows: tuple[Row, ...]
    rounds: int
    short_rounds: int
    unit: str

    def results(self, folder: Path, short: bool) -> list[Result]:
        """The rows, filled."""
        figures = self.take(Bench(folder, short, self.short_rounds if short else self.rounds))
        return [
            Result.of(row, figures[row.ours], figures[row.other], self.unit) for row in self.rows
        ]


class Result(NamedTuple):
    """A filled row: medians of both sides, and of the rounds' ratios with their middle half."""

    row: Row
    ours: float
    other: float
    unit: str
    ratio: float
    spread: tuple[float, float]
    rounds: int

    @classmethod
    def of(cls, row: Row, ours: Sequence[float], other: Sequence[float], unit: str) -> Result:
        ratios = sorted(one / two for one, two in zip(ours, other, strict=True))
        middle = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        return cls(
            row,
            statistics.median(ours),
            statistics.median(other),
            unit,
            statistics.median(ratios),
            middle,
            len(ratios),
        )


REGISTRY: dict[str, Measurement] = {}


def measurement(*rows: Row, rounds: int, short_rounds: int, unit: str = SECONDS):
    """Register the decorated function as the measurement that fills these rows."""

    def register(take: Callable[[Bench], Figures]) -> Callable[[Bench], Figures]:
        REGISTRY[take.__name__] = Measurement(take.__name__, take, rows, rounds, short_rounds, unit)
        return take

    return register


def measurements() -> Mapping[str, Measurement]:
    """All of them by name."""
    for subject in SUBJECTS:
        importlib.import_module(f"{__package__}.{subject}")
    return REGISTRY


def peak(*command: str) -> float:
    """Bytes by which a call in a process of its own raises that process's peak of memory; see
    peak.py.
    """
    program = [sys.executable, "-m", f"{__package__}.peak", *command]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    finished = subprocess.run(
        program, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True
    )
    if finished.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed in a process of its own:\n{finished.stderr}"
        )
    return float(finished.stdout.split()[-1])
