"""What the front end says, and the help pages, are there in every language, and say the same."""

import json
import re
from pathlib import Path

import pytest
from lora_locksmith.commands.scan import _cells
from lora_locksmith.identify.trainer import UNTOLD
from lora_locksmith.messages import Speaker
from lora_locksmith.report.findings import Findings
from lora_locksmith.report.library import LibraryRow

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "web"
PAGES = sorted((WEB / "docs").glob("*.md"))


def words(language: str) -> dict[str, str]:
    """The texts of a language, by key: those loaded with the page, then the others."""
    page, later = words_in(f"{language}.mjs"), words_in(f"more_{language}.mjs")
    assert not page.keys() & later.keys()
    return page | later


def words_in(name: str) -> dict[str, str]:
    """The texts of a file, by key."""
    lines = (
        (WEB / "i18n" / name).read_text("utf-8").split("= {\n")[1].removesuffix("};\n").splitlines()
    )
    found = [
        re.fullmatch(r'  (\w+): "(.+)",', line)
        for line in lines
        if line and not line.startswith("  // ")
    ]
    assert all(found) and len({match[1] for match in found}) == len(found)
    return {match[1]: match[2] for match in found}


def outline(page: Path) -> list[str]:
    """How each line of a help page begins: as a heading, an item, a row of a table, and which input
    or output the row is about.
    """
    return [
        re.match(r"#*(\| \*\*[a-z_]+|[|\-])?", line)[0]
        for line in page.read_text("utf-8").splitlines()
    ]


def test_every_text_is_there_in_both_languages_with_the_same_gaps():
    english, chinese = words("en"), words("zh")
    assert list(english) == list(chinese)
    gaps = {
        key: (set(re.findall(r"\{\w+\}", english[key])), set(re.findall(r"\{\w+\}", chinese[key])))
        for key in english
    }
    assert not {key: pair for key, pair in gaps.items() if pair[0] != pair[1]}


def test_every_text_is_used_and_every_text_that_is_used_is_there():
    code = "".join(
        path.read_text("utf-8")
        for path in WEB.rglob("*.*js")
        if not re.search(r"\b(more_)?(en|zh)\.mjs$", path.name)
    )
    assert not [key for key in words("en") if f'"{key}"' not in code]
    assert not set(re.findall(r'\bsay\(\s*"(\w+)"', code)) - words("en").keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_help_is_the_same_in_every_language(page):
    english, chinese = (page.with_suffix("") / f"{language}.md" for language in ("en", "zh"))
    assert page.read_text("utf-8") == english.read_text("utf-8"), (
        "other languages get the page without a language: copy en.md to it"
    )
    assert outline(chinese) == outline(english)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_help_calls_what_became_of_keys_as_the_report_does(language):
    help_page = (WEB / "docs" / "LocksmithLoadAndFixLoRA" / f"{language}.md").read_text("utf-8")
    catalog = ROOT / "locales" / language / "messages" / "categories.json"
    categories = json.loads(catalog.read_text("utf-8"))
    told = set(re.findall(r"^- \*\*(.+?)\*\*", help_page, re.MULTILINE))
    assert told == set(categories.values()) - {categories["placed"]}


def test_the_chinese_table_of_scan_says_unknown_and_trainer_as_reports_do():
    """A trainer that nothing tells was English there."""
    row = LibraryRow("a.safetensors", (0, 0), Findings(trainer=UNTOLD))
    assert _cells(row, Speaker("zh"))[1:3] == (Speaker("zh")("report.unknown"),) * 2
    assert _cells(row, Speaker("en"))[1:3] == (UNTOLD, UNTOLD)
    assert Speaker("zh")("library.head_trainer") == Speaker("zh")("report.trainer")


def test_what_every_page_says_is_not_among_what_is_loaded_later():
    """A part that is loaded with the page would find no text for what it says."""
    index, later = (WEB / "index.js"), words_in("more_en.mjs").keys()
    said, to_read, read = set(), [index], set()
    while to_read:
        path = to_read.pop()
        read.add(path)
        text = path.read_text("utf-8")
        said |= {key for key in later if f'say("{key}"' in text}
        found = re.findall(r'^import\b.*"(\.{1,2}/[\w./]+\.mjs)"', text, re.MULTILINE)
        to_read += {(path.parent / name).resolve() for name in found} - read
    assert len(read) > 20 and not said
