"""What the README and the pages of docs/ show must be so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lora_locksmith.adapters.registry import kinds
from lora_locksmith.commands.parser import COMMANDS
from lora_locksmith.key_maps.dialect import FOLDER, dialects
from lora_locksmith.key_maps.lines import lines_of
from lora_locksmith.key_maps.table import families, parse_table, slices
from lora_locksmith.lora.merge.methods import methods
from lora_locksmith.planning.not_computed import NOT_COMPUTED_TABLE
from lora_locksmith.report.presets import presets

ROOT = Path(__file__).resolve().parents[1]
README, CONTRIBUTING, CHANGELOG = (
    (ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
)
LOADING, ADDING, COMMAND_LINE = (
    (ROOT / "docs" / name).read_text("utf-8")
    for name in ("loading.md", "adding.md", "command_line.md")
)
# Titles of kinds that docs/loading.md tells in other words: (IA)^3, norms, biases, full differences.
DESCRIBED = {
    "",
    "(IA)3",
    "LoRA of an embedding",
    "norm difference",
    "bias difference",
    "replaced weight",
    "replaced bias",
    "full-rank difference",
}


def example(beginning: str) -> str:
    """The fenced block of docs/adding.md that begins so."""
    return next(
        block
        for block in re.findall(r"```\w*\n(.*?)```", ADDING, re.DOTALL)
        if block.startswith(beginning)
    )


def test_the_example_table_is_a_table():
    family = parse_table("example", example("@title Example Model"))
    match = family.find("transformer_blocks_3_attn_to_k")[0]
    assert match.native == ("blocks.3.qkv",)
    assert slices(match.row, match.alternative, match.part, ((12, 4),))[0].rows == (4, 4)
    assert family.sizes["large"] == {"h": 3072, "m": 12288}


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_commands_are_dev_py_commands(name):
    text = (ROOT / name).read_text("utf-8")
    assert re.findall(r"^python dev\.py (\w+)", text, re.MULTILINE) == ["demo", "test"]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_it_links_to_are_there(name):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / name).read_text("utf-8")):
        assert (ROOT / link).exists(), link


WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
RECORDS = [len(list(lines_of(path.read_text("utf-8")))) for path in FOLDER.glob("*.record")]
# What the texts count, and what is counted; a number may be a word.
COUNTED = {
    r"(\w+) families of models and text encoders": len(families()),
    r"(\w+) dialects as records": len(dialects()),
    r"(\w+) documented presets of": len(presets()),
    r"documented presets of (\w+) trainers": len({preset.trainer for preset in presets()}),
    r"(\w+) methods, across trainers": len(methods()),
}


def number(word):
    return WORDS.index(word) if word in WORDS else int(word)


@pytest.mark.parametrize("pattern", COUNTED)
def test_the_changelog_counts_what_there_is(pattern):
    newest = re.search(pattern, CHANGELOG)  # older releases had fewer
    assert number(newest[1]) == COUNTED[pattern]


@pytest.mark.parametrize("text", [ADDING, CONTRIBUTING], ids=["adding", "CONTRIBUTING"])
def test_a_record_is_as_long_as_it_is_called(text):
    least, most = re.search(r"(\w+) to (\w+) lines[;:]", text).groups()
    assert (number(least), number(most)) == (min(RECORDS), max(RECORDS))


def test_every_command_and_every_node_is_named():
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        assert re.search(rf"`(lora-locksmith )?{name}`", README), name
        assert re.search(rf"^\| `{name} ", COMMAND_LINE, re.MULTILINE), name
    for language, file in (("en", "README.md"), ("zh", "README.zh.md")):
        text = (ROOT / file).read_text("utf-8")
        nodes = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
        unnamed = [node for node in nodes.values() if f"**{node['display_name']}**" not in text]
        assert nodes and not unnamed


def row(title):
    """The row of the table of what loads."""
    return next(line for line in LOADING.splitlines() if line.startswith(f"| **{title}"))


def test_every_kind_of_adapter_is_named():
    computed = {kind.title for kind in kinds() if not kind.refusal}
    refused = {kind.title for kind in kinds()} - computed
    assert not {title for title in computed - DESCRIBED if title not in row("Adapters")}
    assert refused and not {title for title in refused if title not in row("Refused")}


def test_what_is_refused_is_named():
    titles = [
        line.split("|")[0].strip() for _, line in lines_of(NOT_COMPUTED_TABLE.read_text("utf-8"))
    ]
    assert titles and not [title for title in titles if title not in row("Refused")]
