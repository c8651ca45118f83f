"""The site of docs/ builds, and each of its pages and links leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `python dev.py docs` builds it: a link that leads nowhere is a fault."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_page_is_in_the_site(site, page):
    name, _, language = page.stem.partition(".")
    folder = site / language / ("" if name == "index" else name)
    written = (folder / "index.html").read_text("utf-8")
    title = re.match(r"# (.+)", page.read_text("utf-8"))[1]
    assert title.split("{")[0].strip().replace("&", "&amp;") in written


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem.endswith(".zh")], ids=lambda p: p.name)
def test_a_chinese_page_has_the_parts_of_the_english_one(page):
    english = page.with_name(page.name.replace(".zh.md", ".md"))
    headings = [
        [
            line.split(" ")[0]
            for line in file.read_text("utf-8").splitlines()
            if line.startswith("#")
        ]
        for file in (page, english)
    ]
    assert headings[0] == headings[1]


def test_a_link_that_leads_nowhere_is_found(site, tmp_path):
    (tmp_path / "index.md").write_text("[gone](gone.md), [here](index.md#nowhere)")
    settings = (ROOT / "mkdocs.yml").read_text("utf-8").split("nav:")[0]
    (tmp_path / "mkdocs.yml").write_text(
        settings.replace("docs_dir: docs", "docs_dir: pages").replace("icon.svg", "index.md"),
        "utf-8",
    )
    (tmp_path / "pages").mkdir()
    (tmp_path / "index.md").rename(tmp_path / "pages" / "index.md")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"], cwd=tmp_path, capture_output=True, text=True
    )
    assert built.returncode and "gone.md" in built.stderr and "nowhere" in built.stderr
