"""What the README shows must be so."""

from __future__ import annotations

import re
from pathlib import Path

from lora_locksmith.key_maps.table import parse_table, slices

README = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")


def example(beginning: str) -> str:
    """The fenced block of the README that begins so."""
    return next(
        block
        for block in re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
        if block.startswith(beginning)
    )


def test_the_example_table_is_a_table():
    family = parse_table("example", example("@title Example Model"))
    match = family.find("transformer_blocks_3_attn_to_k")[0]
    assert match.native == ("blocks.3.qkv",)
    assert slices(match.row, match.alternative, match.part, ((12, 4),))[0].rows == (4, 4)
    assert family.sizes["large"] == {"h": 3072, "m": 12288}


def test_the_commands_are_dev_py_commands():
    commands = re.findall(r"^python dev\.py (\w+)", README, re.MULTILINE)
    assert commands == ["demo", "test"]


def test_files_it_links_to_are_there():
    root = Path(__file__).resolve().parents[1]
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / link).exists(), link
