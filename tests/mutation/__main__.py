"""Says which faults in the core no test notices: python dev.py mutate [MODULE ..] [--most N] [--minutes M] [--seed S] [--function NAME]."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .mutants import Mutant
from .trials import KILLED, NOT_RUN, NOT_TRIED, ROOT, SURVIVED, Bounds, Trial, mutants_in, try_module

EQUIVALENT = Path(__file__).parent / "equivalent.txt"
KEY_MAPS, LORA, HOST = "tests/key_maps/test_{}.py", "tests/lora/test_{}.py", "tests/host/test_{}.py"
PLANNING = [KEY_MAPS.format(name) for name in ("plan", "plan_bounds", "strength_bounds", "inspection")]

# The modules whose mutants are tried, and the tests that answer for each: few enough to be run hundreds of times.
TESTS = {
    "key_maps/grammar.py": [KEY_MAPS.format(name) for name in ("grammar", "plan")],
    "key_maps/locate.py": [KEY_MAPS.format(name) for name in ("locate", "plan")],
    "key_maps/header.py": [KEY_MAPS.format("header"), KEY_MAPS.format("header_bounds")],
    "key_maps/plan.py": PLANNING,
    "key_maps/strength.py": PLANNING,
    "lora/writer.py": [LORA.format("writer_bounds"), LORA.format("writer")],
    "lora/verify.py": [LORA.format("verify")],
    "nodes/patches.py": [HOST.format(name) for name in ("patches", "as_stock", "peft_truth", "lycoris_truth")],
}


class Known(NamedTuple):
    """A mutant as a person knows it: where, the lines it changes, and why no test can notice it ("" where that is not told)."""

    place: str
    before: str
    after: str
    reason: str = ""

    @classmethod
    def of(cls, path: str, mutant: Mutant, text: str) -> Known:
        return cls(f"{path} {mutant.function}".rstrip(), *mutant.difference(text))


def equivalents(text: str) -> dict[Known, str]:
    """What equivalent.txt holds: mutant -> reason. Raises ValueError naming a block that is none."""
    found = {}
    for block in "\n".join(line for line in text.splitlines() if not line.startswith("#")).split("\n\n"):
        lines = [line.strip() for line in block.strip().splitlines()]
        if not lines:
            continue
        place, *changes, reason = lines
        if not reason.startswith("= ") or len(changes) < 2 or [line[:2] for line in changes] != ["- ", "+ "] * (len(changes) // 2):
            raise ValueError(f"{EQUIVALENT.name}: {place!r} wants pairs of lines with '- ' and '+ ', then one with '= ' and the reason")
        for before, after in zip(changes[::2], changes[1::2], strict=True):
            found[Known(place, before[2:], after[2:])] = reason[2:]
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py mutate", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)} (default: all)")
    parser.add_argument("--most", type=int, default=sys.maxsize, metavar="N", help="mutants of each module, drawn (default: all)")
    parser.add_argument("--minutes", type=float, default=30.0, help="for each module (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="of the order in which they are tried (default: %(default)s)")
    parser.add_argument("--function", help="only mutants in functions and classes whose qualified name begins so")
    options = parser.parse_args(arguments)
    options.modules = [Path(module).as_posix().removeprefix("./") for module in options.modules] or list(TESTS)
    unknown = [module for module in options.modules if module not in TESTS]
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(TESTS)}. A module is added with its tests in tests/mutation/__main__.py")
    if not hasattr(os, "fork"):
        parser.error("mutants are forks of one process, which this system has not. Use Linux, macOS or WSL")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    os.nice(10)
    known = equivalents(EQUIVALENT.read_text("utf-8"))
    bounds, left, rows = Bounds(options.most, options.minutes, options.seed), 0, []
    for path in options.modules:
        started, text = time.monotonic(), (ROOT / path).read_text("ascii")
        every = mutants_in(path)
        wanted = [mutant for mutant in every if mutant.function.startswith(options.function or "")]
        open_ones = [mutant for mutant in wanted if Known.of(path, mutant, text) not in known]
        print(f"{path}: {len(wanted)} mutants", flush=True)
        trials = in_a_process(path, open_ones, bounds)
        say_stale(path, every, text, known)
        left += say_survivors(path, trials, text)
        rows.append((path, wanted, trials, time.monotonic() - started))
    print("\n" + "\n".join(table(rows)))
    return 1 if left else 0


def in_a_process(path: str, mutants: list[Mutant], bounds: Bounds) -> list[Trial]:
    """Try them in a process of their own, as tests leave things behind."""
    mine, others = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_send, args=(others, path, mutants, bounds))
    process.start()
    others.close()
    try:
        trials = mine.recv()
    except EOFError:
        raise SystemExit(f"{path}: its tests could not be run. Try: python dev.py test {' '.join(tests_of(path))}") from None
    finally:
        process.join()
    if isinstance(trials, str):
        raise SystemExit(trials)
    return trials


def _send(connection, path: str, mutants: list[Mutant], bounds: Bounds) -> None:
    try:
        connection.send(try_module(path, tests_of(path), mutants, bounds).trials)
    except RuntimeError as error:
        connection.send(str(error))


def tests_of(path: str) -> list[str]:
    return [test for test in TESTS[path] if (ROOT / test).exists()]


def say_stale(path: str, mutants: Sequence[Mutant], text: str, known: dict[Known, str]) -> None:
    there = {Known.of(path, mutant, text) for mutant in mutants}
    for one in known:
        if one.place.split()[0] == path and one not in there:
            print(f"  {EQUIVALENT.name} names a mutant that is no more, delete it: {one.place}\n    - {one.before}\n    + {one.after}")


def say_survivors(path: str, trials: Sequence[Trial], text: str) -> int:
    """Print what no test noticed, as equivalent.txt would name it; returns how many."""
    count = 0
    for mutant, outcome, tests in trials:
        if outcome in (SURVIVED, NOT_RUN):
            count += 1
            known = Known.of(path, mutant, text)
            line = text.count("\n", 0, mutant.start) + 1
            print(f"\n# line {line}, {f'noticed by none of {tests} tests that run it' if tests else 'run by no test'}")
            print(f"{known.place}\n- {known.before}\n+ {known.after}", flush=True)
    return count


def table(rows: Sequence[tuple[str, list[Mutant], list[Trial], float]]) -> list[str]:
    lines = [f"{'module':24}{'mutants':>9}{'killed':>9}{'survived':>10}{'not run':>9}{'equivalent':>12}{'not tried':>11}{'seconds':>9}"]
    for path, mutants, trials, seconds in rows:
        killed, survived, not_run, not_tried = (
            sum(trial.outcome == outcome for trial in trials) for outcome in (KILLED, SURVIVED, NOT_RUN, NOT_TRIED)
        )
        same = len(mutants) - len(trials)
        lines.append(f"{path:24}{len(mutants):9}{killed:9}{survived:10}{not_run:9}{same:12}{not_tried:11}{seconds:9.0f}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
