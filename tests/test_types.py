"""mypy finds nothing in the pack, and would find a mistake."""

import sys
from importlib.util import find_spec

import pytest
from devtools.steps import ROOT
from devtools.type_check import check_types


@pytest.fixture
def needs_mypy():
    if find_spec("mypy") is None:
        pytest.fail(
            "This Python has no mypy. Run the tests with 'python dev.py test', which gets it.",
            pytrace=False,
        )


def test_mypy_finds_nothing(needs_mypy):
    outcome = check_types(sys.executable)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    modules = [
        path
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] not in (".dev", "tests", "docs", "web", "dev.py")
    ]
    assert f"in {len(modules)} source files" in outcome.stdout


def test_mypy_finds_a_mistake(needs_mypy, tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from lora_locksmith.adapters.spec import AdapterSpec\n"
        "from lora_locksmith.planning.plan import Plan\n"
        "def f(plan: Plan) -> int:\n"
        "    AdapterSpec(1)\n"
        "    return plan.nothing\n",
        encoding="utf-8",
    )
    outcome = check_types(sys.executable, str(wrong))
    assert outcome.returncode == 1
    assert 'incompatible type "int"' in outcome.stdout
    assert '"Plan" has no attribute "nothing"' in outcome.stdout
