"""No six lines of the pack stand in it twice."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINES = 6
LEAST = 3  # letters of a line that says something
COMMENT = ("#", "//", "/*", "*")
HOST_CALLS = {"calculate_weight"}  # the signature is ComfyUI's
FILES = [
    path
    for ending in ("*.py", "*.mjs", "*.js")
    for path in sorted((*ROOT.glob(ending), *ROOT.glob(f"[a-z]*/**/{ending}")))
    if path.relative_to(ROOT).parts[0] != "tests"
]


def lines_of(text, is_python):
    """(number, line) of what says something: no comments, imports, brackets and blank lines."""
    skipped = set(numbers_skipped(ast.parse(text))) if is_python else set()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        says = len(re.sub(r"\W", "", line)) >= LEAST and not line.startswith((*COMMENT, "import "))
        if says and number not in skipped:
            yield number, line


def numbers_skipped(tree):
    """The lines of imports and of signatures that are not ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from range(node.lineno, node.end_lineno + 1)
        elif isinstance(node, ast.FunctionDef) and node.name in HOST_CALLS:
            yield from range(node.lineno, node.body[0].lineno)


def repeated(texts):
    """Places of the same lines, for each first line that is one; texts: name -> (text, is it
    Python).
    """
    places = defaultdict(list)
    for name, (text, is_python) in texts.items():
        lines = list(lines_of(text, is_python))
        for at in range(len(lines) - LINES + 1):
            window = tuple(line for _, line in lines[at : at + LINES])
            places[window].append(f"{name}:{lines[at][0]}")
    return [where for where in places.values() if len(where) > 1]


def test_repeated_lines_are_found():
    body = "\n".join(f"value_{number} = {number}" for number in range(LINES))
    one = f"import this\n\n# a comment\n{body}"
    assert repeated({"a": (one, True), "b": (f"x = (\n)\n{body}", True)}) == [["a:4", "b:3"]]
    assert repeated({"a": (one, True), "b": (body.replace("3", "7"), True)}) == []


def test_no_six_lines_stand_twice():
    texts = {
        path.relative_to(ROOT).as_posix(): (path.read_text("utf-8"), path.suffix == ".py")
        for path in FILES
    }
    assert {"api.py", "web/index.js", "web/report/outcome.mjs"} <= texts.keys()
    assert not repeated(texts)
