"""Tries the mutants of one module inside pytest: each in a fork of a process in which everything is
imported and set up already.

No library does: mutmut changes functions alone (no limit or tolerance that stands at a module's
head) and needs the name that a module is imported by to be its path, but ours are imported as
`lora_locksmith`, as ComfyUI imports them by path. cosmic-ray and mutatest start Python anew for
each mutant, and torch with ComfyUI takes ten seconds to import. A fork takes a twentieth of one.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol

from .mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[2]
PACK = "lora_locksmith"

OUTCOMES = KILLED, SURVIVED, NOT_RUN, NOT_TRIED = "killed", "survived", "not run", "not tried"

MIN_SECONDS = (
    2.0  # of processor time that a mutant may take for a test; more where the test takes more
)
SLOWER = 5.0  # times as long as without a mutant, before it counts as endless
MAX_WAIT = 20.0  # times as long on the clock, for a busy machine
MAX_MEMORY = 4 << 30  # bytes that a mutant may take besides what is there


class Trial(NamedTuple):
    """What became of a mutant, and how many tests ran its lines."""

    mutant: Mutant
    outcome: str
    tests: int


class Bounds(NamedTuple):
    """How much to try: `most` mutants, drawn with `seed`, for `minutes`."""

    most: int
    minutes: float
    seed: int


class Trials:
    """A pytest plugin: runs the collected tests once to see which lines each runs, then those that
    meet a mutant, for each mutant.
    """

    def __init__(
        self, path: str, mutants: Sequence[Mutant], bounds: Bounds, tell: Callable[[Trial], object]
    ):
        self.path, self.text = path, (ROOT / path).read_text("ascii")
        self.mutants, self.bounds, self.tell = mutants, bounds, tell
        self.failed: list[str] = []
        self.seconds: dict[pytest.Item, float] = {}
        self.items_of: dict[int, list[pytest.Item]] = {}
        self.killers: list[pytest.Item] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        name = f"{PACK}.{self.path.removesuffix('.py').replace('/', '.')}"
        if name not in sys.modules:  # a fixture of the first test imports it, beside ComfyUI
            runtestprotocol(session.items[0], log=False, nextitem=session.items[1])
        self.module = sys.modules[name]
        self._look(session)
        self.functions = functions_of(self.module, self.text)
        gc.disable()  # it would touch, and so copy, all memory that a fork shares
        self._try_all()
        return True

    def _look(self, session: pytest.Session) -> None:
        """Run every test once, in this process, so that what tests share is set up for all forks;
        note the lines each runs.
        """
        for item, following in zip(
            session.items, [*session.items[1:], session.items[-1]], strict=True
        ):
            clear_caches(self.module)
            started = time.process_time()
            with lines_run(self.module) as lines:
                reports = runtestprotocol(item, log=False, nextitem=following)
            self.seconds[item] = time.process_time() - started
            if any(report.failed for report in reports):
                self.failed.append(item.nodeid)
            elif all(report.passed for report in reports):
                for line in lines:
                    self.items_of.setdefault(line, []).append(item)

    def _try_all(self) -> None:
        order = list(self.mutants)
        random.Random(self.bounds.seed).shuffle(order)
        ends = time.monotonic() + self.bounds.minutes * 60
        for number, mutant in enumerate(order):
            in_time = number < self.bounds.most and time.monotonic() < ends
            items = self._items(mutant)
            outcome = (
                NOT_TRIED if not in_time else self._outcome(mutant, items) if items else NOT_RUN
            )
            self.tell(Trial(mutant, outcome, len(items)))

    def _items(self, mutant: Mutant) -> list[pytest.Item]:
        """The tests that run the mutant's lines, those that noticed another mutant lately first,
        then the fast ones.
        """
        lines = self.items_of if mutant.at_import else mutant.lines
        met = {item for line in lines for item in self.items_of.get(line, ())}
        late = [item for item in reversed(self.killers[-50:]) if item in met]
        return list(
            dict.fromkeys([*late, *sorted(met, key=lambda item: (self.seconds[item], item.nodeid))])
        )

    def _outcome(self, mutant: Mutant, items: Sequence[pytest.Item]) -> str:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            self._be_mutant(mutant, items, writing)
        os.close(writing)
        with open(reading, "rb") as told:
            noticed = told.read()
        _, status = os.waitpid(child, 0)
        if noticed:
            self.killers.append(items[int(noticed)])
        return SURVIVED if status == 0 else KILLED

    def _be_mutant(self, mutant: Mutant, items: Sequence[pytest.Item], told: int) -> None:
        """In a fork: become the mutant, run the tests, end with 0 if none fails."""
        status = 1
        try:
            limit_this_process()
            plant(self.module, self.text, mutant, self.functions)
            number = first_that_fails(items, self.seconds)
            if number is None:
                status = 0
            else:
                os.write(told, str(number).encode())
        finally:
            os._exit(status)


def end_after(seconds: float) -> None:
    """End this process after so much processor time from now on; on the clock much later."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, MAX_WAIT * seconds)


def limit_this_process() -> None:
    """Let this process die of its timers, take only so much memory, and write nothing that anyone
    sees.
    """
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError, ValueError):
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MAX_MEMORY, resource.RLIM_INFINITY))
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def first_that_fails(
    items: Sequence[pytest.Item], seconds: Mapping[pytest.Item, float]
) -> int | None:
    end_after(MIN_SECONDS)
    items[0].session._setupstate.teardown_exact(items[0])
    for number, (item, following) in enumerate(zip(items, [*items[1:], items[-1]], strict=True)):
        end_after(MIN_SECONDS + SLOWER * seconds[item])
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            return number
    return None


@contextlib.contextmanager
def lines_run(module: ModuleType) -> Iterator[set[int]]:
    """The numbers of the module's lines that run inside of the block."""
    lines: set[int] = set()

    def in_module(frame, event, argument):
        lines.add(frame.f_lineno)
        return in_module

    def anywhere(frame, event, argument):
        return (
            in_module(frame, event, argument)
            if frame.f_code.co_filename == module.__file__
            else None
        )

    before = sys.gettrace()
    sys.settrace(anywhere)
    try:
        yield lines
    finally:
        sys.settrace(before)


# --------------------------------------------------------------------------------------------------
# becoming a mutant


def functions_of(module: ModuleType, text: str) -> dict[FunctionType, tuple]:
    """All functions that the module's text made, those of classes and those that others returned
    too, with the way to their code.
    """
    ways = {
        (code.co_name, code.co_firstlineno): way
        for way, code in codes(compile(text, module.__file__, "exec")).items()
    }
    made = [
        found
        for found in gc.get_objects()
        if type(found) is FunctionType and found.__globals__ is vars(module)
    ]
    here = [function for function in made if function.__code__.co_filename == module.__file__]
    return {
        function: ways[function.__code__.co_name, function.__code__.co_firstlineno]
        for function in here
    }


def plant(
    module: ModuleType, text: str, mutant: Mutant, functions: Mapping[FunctionType, tuple]
) -> None:
    """Make a module that is imported already what it would be if its text held the mutant; in this
    process, for good.

    functions: what `functions_of` found.
    """
    changed = mutant.put_into(text)
    after = codes(compile(changed, module.__file__, "exec"))
    for function, way in functions.items():
        function.__code__ = after[way]
    if mutant.at_import:
        for statement in ast.parse(changed).body[mutant.statement :]:
            set_again(module, statement)
    clear_caches(module)


def codes(code: CodeType, way: tuple = ()) -> dict[tuple, CodeType]:
    """Every code object inside of another, by the way to it."""
    found, seen = {way: code}, {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            seen[constant.co_name] = number = seen.get(constant.co_name, 0) + 1
            found |= codes(constant, (*way, (constant.co_name, number)))
    return found


def set_again(module: ModuleType, statement: ast.stmt) -> None:
    """Give what stands at the module's own level its value anew: names, here and where they were
    imported, and defaults.
    """
    values = vars(module)
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        old = dict(values)
        exec(compile(ast.Module([statement], []), module.__file__, "exec"), values)
        for name in [name for name in values if values[name] is not old.get(name)]:
            for other in list(sys.modules.values()):
                if name in old and vars(other).get(name) is old[name]:
                    vars(other)[name] = values[name]
    elif isinstance(statement, ast.FunctionDef):
        _set_defaults(
            getattr(values[statement.name], "__wrapped__", values[statement.name]),
            statement,
            values,
        )
    elif isinstance(statement, ast.ClassDef):
        _set_in_class(values[statement.name], statement, values)


def _set_defaults(
    function: FunctionType, statement: ast.FunctionDef, values: dict[str, Any]
) -> None:
    if statement.args.defaults:
        function.__defaults__ = tuple(
            _value(default, values) for default in statement.args.defaults
        )


def _set_in_class(kind: type, statement: ast.ClassDef, values: dict[str, Any]) -> None:
    fields = [
        inner
        for inner in statement.body
        if isinstance(inner, (ast.Assign, ast.AnnAssign)) and inner.value is not None
    ]
    if issubclass(kind, tuple):
        kind.__new__.__defaults__ = tuple(_value(inner.value, values) for inner in fields) or None
    else:
        for inner in fields:
            target = inner.targets[0] if isinstance(inner, ast.Assign) else inner.target
            setattr(kind, target.id, _value(inner.value, values))
    for inner in statement.body:
        if isinstance(inner, ast.FunctionDef) and isinstance(vars(kind)[inner.name], FunctionType):
            _set_defaults(vars(kind)[inner.name], inner, values)


def _value(expression: ast.expr, values: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(expression), "default", "eval"), values)


def clear_caches(module: ModuleType) -> None:
    """Forget what the module's functions answered before."""
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) == module.__name__ and hasattr(value, "cache_clear"):
            value.cache_clear()


# --------------------------------------------------------------------------------------------------
# one module


def try_module(
    path: str,
    tests: Iterable[str],
    mutants: Sequence[Mutant],
    bounds: Bounds,
    tell: Callable[[Trial], object],
) -> None:
    """Try the mutants of the module at `path` against these tests; each one's outcome is told at
    once.

    Raises RuntimeError where a test fails without a mutant.
    """
    set_up_for_forks()
    trials = Trials(path, mutants, bounds, tell)
    quiet = [
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-qq",
        "--no-summary",
        "--capture=sys",
        "-o",
        "tmp_path_retention_policy=none",
    ]
    status = pytest.main(
        [*quiet, f"--rootdir={ROOT}", *(str(ROOT / test) for test in tests)], plugins=[trials]
    )
    if trials.failed or (status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)):
        raise RuntimeError(
            f"Tests fail without any mutant; mend them first: {', '.join(trials.failed) or status}"
        )


def set_up_for_forks() -> None:
    """What a fork of this process must find: one thread, and the same examples in each."""
    import hypothesis
    import torch

    torch.set_num_threads(1)
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile(
        "mutation", derandomize=True, database=None, deadline=None, phases=phases
    )
    hypothesis.settings.load_profile("mutation")


def mutants_in(path: str) -> list[Mutant]:
    return mutants_of((ROOT / path).read_text("ascii"))
