"""The page of what is covered, docs/coverage.md: of each model, in whose spelling its layers are
found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import every_name
from every_name import Result
from lora_locksmith.key_maps.dialect import Dialect, dialects
from lora_locksmith.key_maps.lines import lines_of
from lora_locksmith.key_maps.table import ABSENT, Family, families

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"
TRAINED = Path(__file__).with_name("trained.txt")
RIGHT, PART, NONE, UNKNOWN = "right", "right, refused in part", "-", "?"
ONE_NAMING = "one_naming"
FEW = 5  # models: a naming of fewer has no column
HEAD = """# What is covered

Of each model that ComfyUI has, in whose spelling the layers of its LoRAs are found. This page is written by
`tests/key_maps/test_coverage.py` and compared with each run: it spells every name that the model's table in `key_maps/families` has
as each tool does, and plans the file on a model drawn from the table. The same is tried with ComfyUI's own models in
`tests/key_maps/test_round_trip.py`, and what the names then do to the weights in `tests/host`.

- *right*: every name is placed, on the rows it belongs to. *refused in part*: some layers are not, for the reason that stands below.
- *-*: does not exist. The tool cannot train this model, as its own sources say, which stand below.
- *?*: not known. Nothing that was read says what the tool calls these layers, or whether it can train them. A file is read all the
  same: with a model connected, whatever has the model's own names is placed.
"""


class Trained(NamedTuple):
    """What a trainer trains, as its own sources say: families, and those that were not looked
    for.
    """

    families: frozenset[str]
    unread: frozenset[str]
    source: str


@cache
def trained(path: Path = TRAINED) -> Mapping[str, Trained]:
    """By the name of a dialect's record: `record record ... : family ?unread ... : source`."""
    found: dict[str, Trained] = {}
    for _, line in lines_of(path.read_text("utf-8")):
        names, models, source = (part.strip() for part in line.split(" : "))
        asked = frozenset(word[1:] for word in models.split() if word.startswith("?"))
        told = frozenset(word for word in models.split() if not word.startswith("?"))
        found |= dict.fromkeys(names.split(), Trained(told, asked, source))
    return found


class Row(NamedTuple):
    """A model, and what becomes of its names in each dialect, with the reasons of what is
    refused.
    """

    family: Family
    cells: Mapping[str, str]
    refused: Sequence[tuple[str, str, str]]  # dialect, module, reason


def existing(family: Family, dialect: Dialect) -> str:
    """RIGHT if the tool may train the family, NONE if it cannot, UNKNOWN if that was not looked
    for.
    """
    told = trained().get(dialect.name)
    if dialect.families and family.name not in dialect.families:
        return NONE
    if told and family.name not in told.families:
        return UNKNOWN if family.name in told.unread else NONE
    return RIGHT


def results(family: Family, dialect: Dialect) -> Iterator[Result]:
    """What becomes of the family's names in the dialect: one result for each variant, and for each
    naming that is known.
    """
    same = trained()[ONE_NAMING].families
    for variant in every_name.variants(family):
        target_model = drawn(family.name, variant)
        for names in every_name.namings(dialect):
            if every_name.states(family, names) or family.name in same:
                written = every_name.written(target_model, dialect, names)
                yield every_name.landed(target_model, *written)


@cache
def drawn(family: str, variant: str):
    return every_name.drawn(families()[family], variant)


def row_of(family: Family) -> Row:
    """A row of the page; AssertionError where a name is lost or misplaced."""
    cells: dict[str, str] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for dialect in dialects().values():
        cells[dialect.name] = existing(family, dialect)
        if cells[dialect.name] != RIGHT:
            continue
        found = list(results(family, dialect))
        wrong = [name for result in found for name in result.wrong]
        assert not wrong, f"{family.name} as {dialect.name} writes it: {wrong[:5]}"
        reasons = [pair for result in found for pair in result.refused.items()]
        cells[dialect.name] = PART if reasons else RIGHT if found else UNKNOWN
        for module, reason in reasons:
            refused.setdefault((dialect.title, reason), []).append(module)
    told = [(tool, modules[0], reason) for (tool, reason), modules in refused.items()]
    return Row(family, cells, told)


def title_of(family: Family) -> str:
    """What people call the model, with its published variants."""
    named = [name for name in every_name.variants(family) if name]
    whole = [name for name in named if name.startswith(family.title)]
    others = [name for name in named if name not in whole]
    title = " and ".join(whole) or family.title
    return f"{title}: {', '.join(others)}" if others else title


def tool_of(dialect: Dialect) -> str:
    """The tool whose naming a record is: several are of one."""
    return dialect.title.partition(" (")[0]


def is_of_few(dialect: Dialect) -> bool:
    told = trained().get(dialect.name)
    return 0 < len(dialect.families or (told.families if told else ())) < FEW


def page(rows: Sequence[Row]) -> str:
    """The whole page in markdown."""
    parts = (HEAD, _many(rows), _few(rows), _refused(rows), _absent(), _sources())
    return "\n".join(parts)


def _many(rows: Sequence[Row]) -> str:
    columns: dict[str, list[str]] = {}
    for dialect in dialects().values():
        if not is_of_few(dialect):
            columns.setdefault(tool_of(dialect), []).append(dialect.name)
    tools = sorted(columns, key=str.lower)
    lines = [_line(["model", *tools]), _line(["---"] * (len(tools) + 1))]
    for row in sorted(rows, key=lambda row: row.family.title.lower()):
        cells = [_together({row.cells[name] for name in columns[tool]}) for tool in tools]
        lines.append(_line([title_of(row.family), *cells]))
    return "\n".join(lines) + "\n"


def _together(cells: set[str]) -> str:
    """What is said of several formats of one tool: the worst that holds for any that exists."""
    return next(cell for cell in (UNKNOWN, PART, RIGHT, NONE) if cell in cells)


def _few(rows: Sequence[Row]) -> str:
    lines = ["## Namings of a few models", "", _line(["naming", "right for"]), _line(["---"] * 2)]
    right: dict[str, set[str]] = {}
    for dialect in filter(is_of_few, dialects().values()):
        titles = {row.family.title for row in rows if row.cells[dialect.name] == RIGHT}
        right.setdefault(dialect.title, set()).update(titles)
    for title in sorted(right, key=str.lower):
        lines.append(_line([title, ", ".join(sorted(right[title], key=str.lower))]))
    return "\n".join(lines) + "\n"


def _refused(rows: Sequence[Row]) -> str:
    lines = ["## Refused, with the reason", ""]
    lines += [
        f"- {row.family.title}, {tool}: layers such as `{module}`. {reason}"
        for row in rows
        for tool, module, reason in row.refused
    ]
    return "\n".join(lines) + "\n"


def _absent() -> str:
    titles = ", ".join(family.title for family in families(ABSENT).values())
    return f"""## Models that ComfyUI does not have

{titles}: a file is told as such, so that it is not taken for another model's; nothing is loaded from it.
Where layers are called, sized and counted as another model's (attention of the smallest Sana and PixArt, of Qwen3-1.7B and YuE2, of
FIBO and Flex.1), both are named, and only metadata tell them apart. Of a model that stands nowhere on this page no names are known; where a node pack runs it, connect the model:
files in its own names load.
"""


def _sources() -> str:
    lines = ["## Which models a trainer trains", ""]
    named: dict[str, list[str]] = {}
    for name, told in trained().items():
        if name != ONE_NAMING:
            tools = named.setdefault(told.source, [])
            tool = tool_of(dialects()[name])
            tools += [tool] if tool not in tools else []
    lines += [f"- {', '.join(tools)}: {source}" for source, tools in named.items()]
    lines.append(
        "- The others of which not every model is told: `families` in `key_maps/dialects`, with their"
        " sources."
    )
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
