"""The tester of the tests: it makes the faults it says, becomes them, and tells
which are noticed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="mutants are forks, which this system has not")

from mutation import trials
from mutation.__main__ import EQUIVALENT, TESTS, Known, equivalents
from mutation.mutants import mutants_of

CORE = '''"""A module."""
from functools import lru_cache

LIMIT = 4
TWICE = LIMIT * 2


def small(number, least=LIMIT):
    return number < least and number != 0


@lru_cache
def double(number):
    return number + number


def maker(name):
    def told():
        return f"a text of {1 + 1}", name == "x"

    return told


class Thing:
    kind = "thing"

    def is_known(self, names):
        return self.kind in names


TOLD = maker("x")
'''
TESTING = """
from lora_locksmith.core import LIMIT, TOLD, TWICE, Thing, double, small

def test_small():
    assert small(1)
    assert not small(4)

def test_rest():
    assert double(3) == 6 and LIMIT == 4 and TWICE == 8 and TOLD()[1] and Thing().is_known(["thing"]) and not Thing().is_known(["a"])
"""
RUN = """
import sys
from pathlib import Path
from mutation import trials
trials.ROOT = Path(sys.argv[1])
told = []
trials.try_module("core.py", ["test_core.py"], trials.mutants_in("core.py"), trials.Bounds(1000, 60, 1), told.append)
for trial in told:
    print(trial.outcome, trial.mutant.function, "|".join(trial.mutant.difference((trials.ROOT / "core.py").read_text())))
"""


def test_what_no_test_notices_is_told(tmp_path):
    (tmp_path / "core.py").write_text(CORE)
    (tmp_path / "test_core.py").write_text(TESTING)
    (tmp_path / "conftest.py").write_text(
        "import importlib.util, sys, types\nsys.modules['lora_locksmith'] = pack ="
        f" types.ModuleType('lora_locksmith')\npack.__path__ = [{str(tmp_path)!r}]\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    outcomes = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
    survived = {rest for outcome, rest in outcomes if outcome == trials.SURVIVED}
    assert survived == {
        "small return number < least and number != 0|return number < least and True"
    }
    killed = "\n".join(rest for outcome, rest in outcomes if outcome == trials.KILLED)
    for fault in (
        "LIMIT = 5",
        "TWICE = LIMIT / 2",
        "number - number",
        'name != "x"',
        'kind = ""',
        "self.kind not in",
        "number <= least",
    ):
        assert fault in killed, fault


def test_faults_are_valid_and_leave_texts_for_people_alone():
    text = (
        'def told(path):\n    """Tells."""\n    if not path:\n        raise ValueError(f"{path} is'
        ' {1} of 2")\n    return path[:80]\n'
    )
    for mutant in mutants_of(text):
        compile(mutant.put_into(text), "mutant", "exec")
    assert [mutant.difference(text)[1] for mutant in mutants_of(text)] == [
        "if False:",
        "if True:",
        "if path:",
        "return path[:]",
        "return path[:79]",
        "return path[:81]",
    ]


def test_the_names_that_a_module_gives_are_left_to_ruff():
    assert [
        mutant.difference('__all__ = ["f"]\nX = "f"\n')[1]
        for mutant in mutants_of('__all__ = ["f"]\nX = "f"\n')
    ] == ['X = ""']


def test_what_is_known_to_be_the_same_is_named_by_its_lines():
    block = "# why\na.py f\n- x = 1\n+ x = 2\n- y = 1\n+ y = 3\n= it is not read\n\n"
    assert equivalents(block) == dict.fromkeys(
        [Known("a.py f", "x = 1", "x = 2"), Known("a.py f", "y = 1", "y = 3")], "it is not read"
    )
    with pytest.raises(ValueError, match="wants pairs of lines"):
        equivalents(block.replace("= it", "it"))


def test_every_module_has_its_tests_and_every_reason_its_module():
    root = EQUIVALENT.parents[2]
    for module, tests in TESTS.items():
        assert (root / module).is_file() and all((root / test).is_file() for test in tests), module
    assert {
        known.place.split()[0] for known in equivalents(EQUIVALENT.read_text("utf-8"))
    } <= TESTS.keys()
