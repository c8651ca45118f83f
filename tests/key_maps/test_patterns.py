"""Patterns in adapter settings: the same answer as PEFT's own rule, always, and in a time that
nothing in them can stretch.
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lora_locksmith.key_maps.pattern_syntax import Allowance
from lora_locksmith.key_maps.patterns import LONGEST_NAME, MAX_CUTS, Patterns
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("a", "b", "to_q", "to-k", "lin", "0", "1", "10", "x9")
LETTERS = [
    ".",
    r"\.",
    r"\_",
    r"\-",
    r"\d",
    r"\w",
    r"\s",
    r"\D",
    r"\W",
    "[0-9]",
    "[ab]",
    "[^.]",
    "[^ab.]",
    "[a-c1]",
    "[]a]",
    "{",
    "}",
    "_",
]
PIECES = st.sampled_from([*WORDS, *LETTERS])
REPEATED = st.builds(
    lambda piece, times: (
        (piece if len(piece.lstrip("\\")) == 1 or piece.startswith("[") else f"(?:{piece})") + times
    ),
    PIECES,
    st.sampled_from(["+", "*", "?", "*?", "+?", "{2}", "{1,2}", "{0,1}", "{,2}", "{1,}"]),
)
PLAIN_ROW = st.lists(st.one_of(PIECES, REPEATED), max_size=4).map("".join)
GROUP = st.builds(
    lambda rows, opening, ending: opening + "|".join(rows) + ")" + ending,
    st.lists(PLAIN_ROW, min_size=1, max_size=3),
    st.sampled_from(["(", "(?:", "(?P<name>"]),
    st.sampled_from(["", "", "?"]),
)
# Each by itself, because a group's name may stand once.
ROW = st.builds(
    lambda before, group, after: before + group + after,
    PLAIN_ROW,
    st.one_of(st.just(""), GROUP),
    PLAIN_ROW,
)
ANCHORED = st.builds(
    lambda start, row, end: start + row + end,
    st.sampled_from(["", "", "^", r"\A", ".*", r".*\.", r"^.*\.", r"(.*\.)?"]),
    ROW,
    st.sampled_from(["", "", "$", r"\Z", ".*"]),
)
NAMES = st.lists(
    st.sampled_from(
        ["a", "b", "to_q", "to-k", "lin", "0", "1", "10", "x9", ".", ".", ".", "_", "{", "c"]
    ),
    min_size=1,
    max_size=7,
)
NAME = st.one_of(
    NAMES.map("".join), st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(".".join)
)
PATTERN = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(".".join),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(".".join).map(re.escape),
    st.lists(ANCHORED, min_size=1, max_size=2).map("|".join),
)


def peft_says(patterns, name):
    """The first pattern that fits by PEFT's own function, None for none, and for patterns that `re`
    does not take.
    """
    from peft.utils.other import get_pattern_key

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, pattern in enumerate(patterns):
            # A name that no pattern fits is given back as it is.
            if get_pattern_key([pattern], name) is pattern:
                return place
    return None


def is_taken(pattern):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except re.error:
            return False
    return True


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.lists(PATTERN, min_size=1, max_size=4), st.lists(NAME, min_size=1, max_size=6))
def test_the_same_answer_as_pefts_own_rule(patterns, names):
    assume(all(map(is_taken, patterns)))
    ours = Patterns(patterns)
    assert not ours.unread
    for name in names:
        assert ours.first(name) == (peft_says(patterns, name), 0), (patterns, name)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.text("()[]{}|*+?^$.\\dwsDAZbB0129,-:P<>=!ax#", max_size=14), NAME)
def test_any_text_is_read_as_python_reads_it_or_not_at_all(pattern, name):
    ours = Patterns([pattern])
    place, unread = ours.first(name)
    if not is_taken(pattern):
        assert (place, unread) == (None, 1)
    elif not unread:
        assert place == peft_says([pattern], name), (pattern, name)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)a",
        "(?!b)a",
        r"a\b",
        r"(a)\1",
        "(?i)A",
        "a{2}{3}",
        "a**",
        "(",
        ")",
        "[",
        "*",
        "a++",
        "(?#x)a",
        "[b-a]",
    ],
)
def test_what_is_richer_or_none_at_all_is_not_read(pattern):
    assert Patterns(["x", pattern, "a"]).first("m.a") == (2, 1)
    assert Patterns(["a", pattern]).first("m.a") == (0, 0)


def test_the_first_pattern_counts():
    assert Patterns(["to_q", r".*\d.*", "blocks.1.to_q"]).first("blocks.1.to_q") == (0, 0)
    assert Patterns(["blocks.2.to_q", r".*\d.*", "blocks.1.to_q"]).first("blocks.1.to_q") == (1, 0)
    # A bare dot is any character, as PEFT has it.
    assert Patterns(["to.q", "to_q"]).first("blocks.1.to_q") == (0, 0)
    assert Patterns([r"to\.q", "to_q"]).first("blocks.1.to_q") == (1, 0)


def test_plain_names_that_are_cut_in_very_many_ways():
    names = [
        "".join("." if i >> bit & 1 else "x" for bit in range(10)) for i in range(4 * MAX_CUTS)
    ]
    ours = Patterns(names)
    for name in ("a." + "x" * 10, "x" * 10, "x.x.x.x.x.", "a.xxxxxxxxx", "a." + "x" * 9 + "_"):
        assert ours.first(name) == (peft_says(names, name), 0)


def test_names_that_no_model_has():
    assert Patterns(["a", "b"]).first("x" * LONGEST_NAME + ".a") == (None, 0)
    assert Patterns(["a" * LONGEST_NAME * 9, "a"]).first("x.a") == (1, 0)


HOSTILE = {
    "choice of all": ["(.|.)*!"],
    "optional all": ["(.?.?)*!"],
    "twenty of all": [".*" * 20 + "!"],
    "36 optional": [".?" * 36],
    "nested": ["((a*)*)*b", "(a+)+b", "(a|aa)+b", "(.*)*" * 15 + "!"],
    "many": [f"(.|.)*{i}!" for i in range(3000)],
    "counted": ["(((((a{1000}){1000}){1000}){1000}){1000})"] * 3000,
    "counted nothing": ["(((((){1000}){1000}){1000}){1000})"] * 3000,
    "number of many digits": ["a{" + "9" * 5000 + "}"],
    "deep": ["(" * 100_000 + "a" + ")" * 100_000],
    "long": ["a" * 5_000_000, "(a)" * 300_000, r"\." * 1_000_000, "|" * 500_000, "(a|b)" * 20_000],
    "subsets": [".*a" + "." * i for i in range(200)],
    "cuts": ["".join("." if i >> bit & 1 else "x" for bit in range(14)) for i in range(1 << 14)],
}
PROGRAM = """
import sys, importlib.util
spec = importlib.util.spec_from_file_location("lora_locksmith", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]])
pack = sys.modules["lora_locksmith"] = importlib.util.module_from_spec(spec); spec.loader.exec_module(pack)
sys.path[:0] = [sys.argv[1] + "/tests/key_maps", sys.argv[1] + "/tests/support"]
from test_patterns import HOSTILE, hostile_run
for name, patterns in HOSTILE.items():
    print(name, flush=True)
    hostile_run(patterns)
"""


def hostile_run(patterns):
    """2,000 modules against patterns, three times over as three networks would."""
    names = [
        f"blocks.{i}." + "".join("ab"[i >> bit & 1] for bit in range(11)) * 9 for i in range(2000)
    ]
    allowance = Allowance()
    for _ in range(3):
        ours = Patterns(patterns, allowance)
        for name in names:
            ours.first(name)


def test_no_pattern_takes_for_ever():
    # In a process of its own, because a search without end could not be stopped here. The limit is
    # no measure, only an end.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(HOSTILE)


def test_the_work_grows_with_the_names_and_the_patterns_and_not_with_their_product():
    class Counted(str):
        looked_at = 0

        def __getitem__(self, key):
            Counted.looked_at += 1
            return str.__getitem__(self, key)

    def work(count):
        Counted.looked_at = 0
        ours = Patterns([f"blocks.{i}.to_q" for i in range(count)])
        for i in range(count):
            assert ours.first(Counted(f"blocks.{i}.to_q")) == (i, 0)
        return Counted.looked_at

    assert work(2000) <= 12 * work(200)


# The settings of a whole file


WEIGHTS = {f"diffusion_model.blocks.{i}.lin.weight": (8, 8) for i in range(4)}
KEYS = {
    f"base_model.model.blocks.{i}.lin.lora_{role}.weight": shape
    for i in range(4)
    for role, shape in (("A", (4, 8)), ("B", (8, 4)))
}


def planned(**config):
    return make_plan(
        KEYS,
        {},
        TargetModel([denoiser_network(WEIGHTS)]),
        config_beside={"peft_type": "LORA", "r": 4, "lora_alpha": 4, **config},
    )


@pytest.mark.parametrize(
    "pattern",
    [
        "|".join(f"blocks.{i}.lin" for i in range(16)),
        r"(blocks\.\d+)+\.lin",
        "lin",
        r"^blocks\.\d\.lin$",
        r".*\.lin",
        "blocks.[0-9]+.lin",
    ],
)
def test_a_pattern_that_is_read_gives_the_strength(pattern):
    plan = planned(alpha_pattern={pattern: 16})
    assert [adapter.strength.scale for adapter in plan.adapters] == [4.0] * 4
    assert not plan.cautions


def test_a_pattern_that_is_not_read_is_told():
    plan = planned(
        alpha_pattern={"blocks.0.lin": 8, r"(?=b)blocks\.\d\.lin": 16, "blocks.1.lin": 12}
    )
    assert [adapter.strength.scale for adapter in plan.adapters] == [2.0, 3.0, 1.0, 1.0]
    (caution,) = plan.cautions
    assert (
        "alpha_pattern" in caution
        and "(?=b)blocks" in caution
        and "sets 16" in caution
        and "3 layers" in caution
    )


def test_a_pattern_that_no_module_asks_for_is_no_caution():
    assert not planned(alpha_pattern={"lin": 8, "(?=b)": 16}).cautions


def test_a_name_that_is_no_pattern_of_itself_is_looked_up_as_peft_does():
    name = "blocks.0.a(b)"
    keys = {
        f"base_model.model.{name}.lora_{role}.weight": shape
        for role, shape in (("A", (4, 8)), ("B", (8, 4)))
    }
    target_model = TargetModel([denoiser_network({f"diffusion_model.{name}.weight": (8, 8)})])
    plan = make_plan(
        keys, {}, target_model, config_beside={"r": 4, "lora_alpha": 4, "alpha_pattern": {name: 8}}
    )
    assert [adapter.strength.scale for adapter in plan.adapters] == [2.0]
