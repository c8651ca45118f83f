"""Says which faults in the core no test notices: python dev.py mutate [MODULE ..] [--most N]
[--minutes M] [--seed S] [--function NAME].
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .mutants import Mutant
from .trials import KILLED, NOT_RUN, OUTCOMES, ROOT, SURVIVED, Bounds, Trial, mutants_in, try_module

EQUIVALENT = Path(__file__).parent / "equivalent.txt"
KEY_MAPS, LORA, HOST = "tests/key_maps/test_{}.py", "tests/lora/test_{}.py", "tests/host/test_{}.py"
PLANNING = [
    KEY_MAPS.format(name) for name in ("plan", "plan_bounds", "strength_bounds", "inspection")
]

PATCHING = ("host_adapters", "as_stock", "stock_rules", "meanings", "peft_truth", "lycoris_truth")

# The modules whose mutants are tried, and the tests that answer for each: few enough to be run
# hundreds of times.
TESTS = {
    "planning/keys.py": [KEY_MAPS.format(name) for name in ("grammar", "plan")],
    "planning/resolve.py": [KEY_MAPS.format(name) for name in ("locate", "plan")],
    "files/header.py": [KEY_MAPS.format("header"), KEY_MAPS.format("header_bounds")],
    "planning/plan.py": PLANNING,
    "planning/scale.py": PLANNING,
    "lora/io/writer.py": [LORA.format("writer_bounds")],
    "lora/rewrite/verify.py": [LORA.format("verify")],
    "nodes/patches.py": [
        HOST.format(name)
        for name in (
            "host_adapters",
            "as_stock",
            "stock_rules",
            "meanings",
            "peft_truth",
            "lycoris_truth",
        )
    ],
}


class Known(NamedTuple):
    """A mutant as a person knows it: where, the lines it changes, and why no test can notice it (""
    where that is not told).
    """

    place: str
    before: str
    after: str
    reason: str = ""

    @classmethod
    def of(cls, path: str, mutant: Mutant, text: str) -> Known:
        return cls(f"{path} {mutant.function}".rstrip(), *mutant.difference(text))


def equivalents(text: str) -> dict[Known, str]:
    """What equivalent.txt holds: mutant -> reason. Raises ValueError naming a
    block that is none.
    """
    found = {}
    for block in "\n".join(line for line in text.splitlines() if not line.startswith("#")).split(
        "\n\n"
    ):
        lines = [line.strip() for line in block.strip().splitlines()]
        if not lines:
            continue
        place, *changes, reason = lines
        if (
            not reason.startswith("= ")
            or len(changes) < 2
            or [line[:2] for line in changes] != ["- ", "+ "] * (len(changes) // 2)
        ):
            raise ValueError(
                f"{EQUIVALENT.name}: {place!r} wants pairs of lines with '- ' and '+ ', then one"
                " with '= ' and the reason"
            )
        for before, after in zip(changes[::2], changes[1::2], strict=True):
            found[Known(place, before[2:], after[2:])] = reason[2:]
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py mutate", description=__doc__.partition(":")[0] + "."
    )
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)} (default: all)"
    )
    parser.add_argument(
        "--most",
        type=int,
        default=sys.maxsize,
        metavar="N",
        help="mutants of each module, drawn (default: all)",
    )
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="for each module (default: %(default)g)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="of the order in which they are tried (default: %(default)s)",
    )
    parser.add_argument(
        "--left",
        action="store_true",
        help="without those that a test noticed when they were last tried",
    )
    parser.add_argument(
        "--noticed",
        type=Path,
        default=ROOT / ".dev" / "noticed.json",
        metavar="FILE",
        help="where --left is kept",
    )
    parser.add_argument(
        "--function", help="only mutants in functions and classes whose qualified name begins so"
    )
    options = parser.parse_args(arguments)
    options.modules = [
        Path(module).as_posix().removeprefix("./") for module in options.modules
    ] or list(TESTS)
    unknown = [module for module in options.modules if module not in TESTS]
    if unknown:
        parser.error(
            f"{unknown[0]} is none of {', '.join(TESTS)}. A module is added with its tests in"
            " tests/mutation/__main__.py"
        )
    if not hasattr(os, "fork"):
        parser.error(
            "mutants are forks of one process, which this system has not. Use Linux, macOS or WSL"
        )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    os.nice(10)
    known = equivalents(EQUIVALENT.read_text("utf-8"))
    rows = [try_one(path, options, known) for path in options.modules]
    print("\n" + "\n".join(table(rows)))
    return 1 if any(row.count(SURVIVED) + row.count(NOT_RUN) for row in rows) else 0


class Row(NamedTuple):
    """What became of a module's mutants."""

    path: str
    equivalent: int
    trials: list[Trial]
    seconds: float

    def count(self, outcome: str) -> int:
        return sum(trial.outcome == outcome for trial in self.trials)


def try_one(path: str, options: argparse.Namespace, known: dict[Known, str]) -> Row:
    """Try a module's mutants and print those that no test notices."""
    started, text = time.monotonic(), (ROOT / path).read_text("ascii")
    every = mutants_in(path)
    wanted = [mutant for mutant in every if mutant.function.startswith(options.function or "")]
    before = noticed_before(options.noticed, path)
    noticed = before if options.left else set()
    open_ones, done = [], []
    for mutant in wanted:
        one = Known.of(path, mutant, text)
        if one[:3] in noticed:
            done.append(Trial(mutant, KILLED, 0))
        elif one not in known:
            open_ones.append(mutant)
    print(f"{path}: {len(open_ones)} of {len(wanted)} mutants to try", flush=True)
    say_stale(path, every, text, known)
    trials = (
        in_a_process(path, open_ones, Bounds(options.most, options.minutes, options.seed))
        if open_ones
        else []
    )
    say_survivors(path, trials, text)
    trials = sorted([*trials, *done])
    remember(options.noticed, path, before, trials, text)
    return Row(path, len(wanted) - len(trials), trials, time.monotonic() - started)


def noticed_before(file: Path, path: str) -> set[tuple[str, ...]]:
    """The mutants of the module that were noticed when they were last tried."""
    try:
        return {tuple(one) for one in json.loads(file.read_text("utf-8")).get(path, ())}
    except FileNotFoundError:
        return set()


def remember(
    file: Path, path: str, before: set[tuple[str, ...]], trials: Sequence[Trial], text: str
) -> None:
    names = {
        outcome: {
            Known.of(path, trial.mutant, text)[:3] for trial in trials if trial.outcome == outcome
        }
        for outcome in OUTCOMES
    }
    content = json.loads(file.read_text("utf-8")) if file.exists() else {}
    content[path] = sorted((before | names[KILLED]) - names[SURVIVED] - names[NOT_RUN])
    file.write_text(json.dumps(content), encoding="utf-8")


def in_a_process(path: str, mutants: list[Mutant], bounds: Bounds) -> list[Trial]:
    """Try them in a process of their own, as tests leave things behind; Ctrl-C ends it with what is
    known by then.
    """
    mine, others = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_send, args=(others, path, mutants, bounds)
    )
    process.start()
    others.close()
    trials: list[Trial] = []
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            told = mine.recv()
            if isinstance(told, str):
                raise SystemExit(told)
            trials.append(told)
            if len(trials) % 50 == 0:
                print(f"  {len(trials)} of {len(mutants)} tried", flush=True)
    process.terminate()
    process.join()
    if not trials:
        raise SystemExit(
            f"{path}: its tests could not be run. Try: python dev.py test {' '.join(TESTS[path])}"
        )
    return trials


def _send(connection, path: str, mutants: list[Mutant], bounds: Bounds) -> None:
    try:
        try_module(path, TESTS[path], mutants, bounds, connection.send)
    except RuntimeError as error:
        connection.send(str(error))


def say_stale(path: str, mutants: Sequence[Mutant], text: str, known: dict[Known, str]) -> None:
    there = {Known.of(path, mutant, text) for mutant in mutants}
    for one in known:
        if one.place.split()[0] == path and one not in there:
            print(
                f"  {EQUIVALENT.name} names a mutant that is no more, delete it: {one.place}\n    -"
                f" {one.before}\n    + {one.after}"
            )


def say_survivors(path: str, trials: Sequence[Trial], text: str) -> None:
    """Print what no test noticed, as equivalent.txt would name it."""
    for mutant, outcome, tests in trials:
        if outcome in (SURVIVED, NOT_RUN):
            known = Known.of(path, mutant, text)
            line = text.count("\n", 0, mutant.start) + 1
            print(
                f"\n# line {line},"
                f" {f'noticed by none of {tests} tests that run it' if tests else 'run by no test'}"
            )
            print(f"{known.place}\n- {known.before}\n+ {known.after}", flush=True)


def table(rows: Sequence[Row]) -> list[str]:
    heads = ("mutants", *OUTCOMES, "equivalent", "seconds")
    lines = [f"{'module':22}" + "".join(f"{head:>12}" for head in heads)]
    for row in rows:
        numbers = (
            len(row.trials) + row.equivalent,
            *map(row.count, OUTCOMES),
            row.equivalent,
            round(row.seconds),
        )
        lines.append(f"{row.path:22}" + "".join(f"{number:12}" for number in numbers))
    return lines


if __name__ == "__main__":
    sys.exit(main())
