"""Where the suite's time goes: what each file of tests took, as `python dev.py test --times` wrote
it into tests/times.txt, and the order that follows from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).resolve().parent.parent / "times.txt"
HEAD = """\
# What the tests take, file by file: seconds on the clock, seconds of the processor (this process
# and those it waited for), tests. Written by: python dev.py test --times
# The longest files run first, so that no core waits for one at the end; a file that is not named
# here runs before all others.
"""


class Time(NamedTuple):
    """What the tests of one file took, all phases with their fixtures, in seconds."""

    clock: float
    cpu: float
    tests: int

    def plus(self, clock: float, cpu: float, tests: int) -> Time:
        return Time(self.clock + clock, self.cpu + cpu, self.tests + tests)


def cpu_seconds() -> float:
    """Seconds of the processor that this process and its children took; a child's count from when
    it was waited for.
    """
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def summed(reports: Iterable) -> dict[str, Time]:
    """pytest's reports -> {file of tests: its time}. Each test has a report for setup, call and
    teardown, of which one, the setup, counts it.
    """
    times: dict[str, Time] = {}
    for report in reports:
        file, first = file_of(report.nodeid), report.when == "setup"
        known = times.get(file, Time(0.0, 0.0, 0))
        times[file] = known.plus(report.duration, getattr(report, "cpu", 0.0), first)
    return times


def read(table: Path = TABLE) -> dict[str, Time]:
    """The written table. ValueError names a line that is none of it."""
    times = {}
    for line in table.read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        try:
            clock, cpu, tests, file = line.split()
            times[file] = Time(float(clock), float(cpu), int(tests))
        except ValueError:
            raise ValueError(f"{table}: no line of times: {line!r}") from None
    return times


def lines(times: dict[str, Time]) -> list[str]:
    """The table's lines, the longest file first."""
    rows = sorted(times.items(), key=lambda row: (-row[1].clock, row[0]))
    return [f"{one.clock:7.1f} {one.cpu:7.1f} {one.tests:6d}  {file}" for file, one in rows]


def write(times: dict[str, Time], table: Path = TABLE) -> None:
    """Write the times of these files; those of files that did not run and still exist stay."""
    known = read(table) if table.exists() else {}
    root = table.parent.parent
    kept = {file: time for file, time in known.items() if (root / file).is_file()}
    text = HEAD + "\n".join(lines(kept | times)) + "\n"
    table.write_text(text, "utf-8", newline="\n")


def longest_first(files: Iterable[str], times: dict[str, Time]) -> list[str]:
    """The files by falling time; those without a time first, in the order they came."""
    return sorted(files, key=lambda file: -times[file].clock if file in times else float("-inf"))
