"""How functions are called: at most five arguments by place, the rest by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST = 5
HOST_CALLS = {"calculate_weight"}  # by place: ComfyUI's adapters have this signature
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
FILES = sorted(
    path
    for path in (*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/**/*.py"))
    if path.relative_to(ROOT).parts[0] != "tests"
)


def by_place(function):
    """The arguments that a call may give without their names."""
    given = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    return given[1:] if given[:1] in (["self"], ["cls"]) else given


def test_arguments_by_place_are_counted():
    assert by_place(ast.parse("def f(self, a, /, b, *, c): ...").body[0]) == ["a", "b"]
    assert {"api.py", "plan.py", "host.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_function_takes_more_than_five_arguments_by_place(path):
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and node.name not in HOST_CALLS:
            assert len(by_place(node)) <= MOST, f"{node.name} in line {node.lineno}"
