"""The library page in the real front end: search, sort, filter, details, onto the canvas, repaired
copies, thousands of files.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from front_end import FrontEnd
from PIL import Image
from playwright.sync_api import Locator, expect
from shelves import HOSTILE_NAME, HOSTILE_WORD, write_kind, write_shelf

LOADER = "LocksmithLoadAndFixLoRA"
FOLDER = "library"  # of this module's files in the loras folder
COUNT = 120
THOUSANDS = 3000
MAX_ROWS = 80  # in the document
# One screen a frame, from top to bottom.
SCROLL = """async (list) => {
    for (let top = 0; top < list.scrollHeight; top += list.clientHeight) {
        list.scrollTop = top;
        await new Promise(requestAnimationFrame);
    }
}"""


class Library:
    """The page, with what a person does on it."""

    def __init__(self, front_end: FrontEnd):
        self.front_end, self.page = front_end, front_end.page
        self.element = self.page.get_by_role("region", name="LoRA library")
        self.list = self.element.locator(".shelf-list")
        self.rows = self.list.locator(".shelf-list-row")
        self.folders = self.list.locator(".shelf-list-folder")
        self.grouping = self.element.get_by_role("button", name="Group by folder")
        self.legend = self.element.get_by_role("group", name="Verdicts")
        self.status = self.element.locator(".locksmith-library-status > [role=status]")
        self.search_field = self.element.get_by_role("searchbox")
        self.details = self.element.get_by_role("region", name="Details of")

    def open(self) -> None:
        if not self.element.count():
            self.page.get_by_role("button", name="LoRA library", exact=True).click()
        expect(self.status).to_have_text(re.compile(r"LoRAs$"))  # the scan is at its end

    def read_again(self, status: str) -> None:
        self.element.get_by_role("button", name="Read the folders again").click()
        expect(self.status).to_have_text(re.compile(f"^{status}$"))

    def close(self) -> None:
        self.page.get_by_role("button", name="LoRA library", exact=True).click()
        expect(self.element).to_have_count(0)

    def reset(self) -> None:
        """Nothing searched, all kinds, by name, no folders, no details."""
        if self.details.count():
            self.details.get_by_role("button", name="Close the details").click()
        clear = self.element.get_by_role("button", name="Clear", exact=True)
        if clear.is_visible():
            clear.click()
        self.choose("Sort by", "name")
        self.group(False)
        turn = self.element.get_by_role("button", name="Descending")
        if turn.count():
            turn.click()

    def group(self, wanted: bool) -> None:
        if self.grouping.get_attribute("aria-pressed") != str(wanted).lower():
            self.grouping.click()

    def verdict(self, name: str) -> Locator:
        """The part of the legend for one verdict, which filters."""
        return self.legend.get_by_role("button", name=re.compile(rf"\b{name} [\d,]+$"))

    def verdict_count(self, name: str) -> int:
        return int(self.verdict(name).locator("b").inner_text().replace(",", ""))

    def search(self, words: str) -> None:
        self.search_field.fill(words)

    def choose(self, field: str, value: str) -> None:
        self.element.get_by_role("combobox", name=field).select_option(value)

    def names(self) -> list[str]:
        """Of the rows in the document, from top to bottom."""
        return self.rows.evaluate_all(
            """rows => rows.sort((a, b) => a.dataset.index - b.dataset.index)
                .map((row) => row.querySelector(".shelf-name").firstChild.textContent)"""
        )

    def row(self, name: str) -> Locator:
        return self.rows.filter(has=self.page.get_by_text(name, exact=True))

    def shown(self) -> int:
        return int(self.list.get_attribute("aria-rowcount")) - 1 if self.list.is_visible() else 0

    def options(self, field: str) -> dict[str, int]:
        """value -> the count beside it."""
        texts = (
            self.element.get_by_role("combobox", name=field)
            .locator("option")
            .evaluate_all("all => all.map((o) => [o.value, o.text])")
        )
        return {
            value: int(re.search(r"\((\d[\d,]*)\)$", text)[1].replace(",", ""))
            for value, text in texts
            if value
        }

    def widen(self, width: int) -> None:
        """Drag the edge of the sidebar."""
        edge = self.page.locator(".p-splitter-gutter").first.bounding_box()
        self.page.mouse.move(edge["x"] + edge["width"] / 2, 500)
        self.page.mouse.down()
        self.page.mouse.move(width, 500, steps=4)
        self.page.mouse.up()


@pytest.fixture(scope="module")
def loras(server) -> Iterator[Path]:
    """The loras folder, with files of every kind in a folder of their own."""
    folder = server.base / "models" / "loras"
    write_shelf(folder / FOLDER, COUNT)
    write_kind(
        folder / FOLDER / HOSTILE_NAME,
        "flux",
        8,
        {"modelspec.trigger_phrase": HOSTILE_WORD, "modelspec.title": "<h1>big</h1>"},
    )
    for name in ("broken number 2", "dora number 7"):
        Image.new("RGB", (300, 200), "teal").save(folder / FOLDER / "set 0" / f"{name}.png")
    (folder / FOLDER / "set 0" / "flux number 6.txt").write_text("ohwx person, soft light")
    yield folder
    shutil.rmtree(folder / FOLDER)


@pytest.fixture(scope="module")
def opened(front_end: FrontEnd, loras: Path, mode: str) -> Library:
    library = Library(front_end)
    library.open()
    return library


@pytest.fixture
def library(opened: Library) -> Library:
    opened.open()
    opened.reset()
    return opened


@pytest.fixture
def told(server) -> list[dict]:
    """Every row, as the server tells it."""
    while (answer := server.get("/lora_locksmith/library"))["running"]:
        time.sleep(0.1)
    return answer["rows"]


def names_of(rows: list[dict]) -> list[str]:
    return [re.split(r"[/\\]", row["file"])[-1].removesuffix(".safetensors") for row in rows]


def test_every_file_is_shown_and_counted(library, told, picture):
    expect(library.status).to_have_text(f"{len(told)} LoRAs")
    assert library.shown() == len(told) >= COUNT
    assert set(library.names()) <= set(names_of(told))
    cells = library.row("broken number 2").get_by_role("gridcell").all_text_contents()
    assert cells[2:5] == ["FLUX.1", "LoRA", "16"]
    assert "57 of 57 load, 0 with stock" in cells[6]


@pytest.mark.parametrize(
    ("words", "column"),
    [
        ("number 11", "file"),
        ("stable diff", "made_for"),
        ("SIMPLETUNER bug", "trainer"),
        ("Ohwx LIGHT", "trigger_words"),
    ],
)
def test_search_finds_names_models_trainers_and_trigger_words(library, told, words, column):
    library.search(words)
    wanted = [
        row
        for row in told
        if all(word in str(row[column]).lower() for word in words.lower().split())
    ]
    expect(library.status).to_have_text(f"{len(wanted)} of {len(told)} LoRAs")
    assert set(library.names()) <= set(names_of(wanted)) and wanted


def test_search_without_a_match_says_so_and_can_be_cleared(library, told):
    library.search("there is no such LoRA")
    expect(library.element.get_by_text("No LoRA is like that.")).to_be_visible()
    library.element.get_by_role("button", name="Clear", exact=True).click()
    expect(library.status).to_have_text(f"{len(told)} LoRAs")
    expect(library.search_field).to_be_focused()


@pytest.mark.parametrize(
    ("sort", "key"),
    [("size", "bytes"), ("changed", "changed"), ("model", "made_for"), ("trainer", "trainer")],
)
def test_sorted_by_any_column_both_ways(library, told, sort, key):
    library.search("number")
    known = dict(zip(names_of(told), told, strict=True))
    library.choose("Sort by", sort)
    for turned in (False, True):
        values = [known[name][key] for name in library.names() if known[name][key]]
        assert values == sorted(
            values,
            reverse=turned,
            key=lambda value: value.lower() if isinstance(value, str) else value,
        )
        if not turned:
            library.element.get_by_role("button", name="Ascending").click()


def test_numbers_in_names_are_sorted_as_numbers(library):
    library.search("sd15 number")
    assert library.names()[:3] == ["sd15 number 3", "sd15 number 9", "sd15 number 15"]


def test_filters_tell_what_they_leave_and_leave_it(library, told):
    for field, filters in (
        ("All models", {"made_for": "FLUX.1"}),
        ("All kinds", {"kinds": "DoRA"}),
        ("All trainers", {"trainer": "diffusers"}),
    ):
        key, value = next(iter(filters.items()))
        count = library.options(field)[value]
        library.choose(field, value)
        assert library.shown() == count == sum(row[key] == value for row in told)
        library.reset()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("Problems", lambda row: row["problem"]),
        ("Loads", lambda row: row["state"] == "good"),
        ("With fixes", lambda row: row["state"] == "mended"),
        ("In part", lambda row: row["state"] == "partly"),
        ("Unreadable", lambda row: row["state"] == "unreadable"),
    ],
)
def test_the_legend_tells_the_marks_counts_them_and_shows_those_alone(library, told, name, counts):
    verdict, count = library.verdict(name), library.verdict_count(name)
    assert len(verdict.get_attribute("title")) > 10
    verdict.click()
    expect(verdict).to_have_attribute("aria-pressed", "true")
    assert library.shown() == count == sum(bool(counts(row)) for row in told) > 0
    if name != "Problems":
        mark = verdict.locator(".shelf-mark").inner_text()
        assert set(library.rows.locator(".shelf-mark").all_inner_texts()) == {mark}
    verdict.click()
    expect(library.status).to_have_text(f"{len(told)} LoRAs")


def test_each_verdict_has_a_sign_of_its_own(library):
    marks = library.legend.locator(".shelf-mark").all_inner_texts()
    assert len(set(marks)) == len(marks) >= 4


def test_problems_stand_first(library, told):
    library.choose("Sort by", "loads")
    order = ("unreadable", "bad", "partly", "doubtful", "untold", "pickled", "mended", "good")
    states = library.rows.evaluate_all(
        """rows => rows.sort((a, b) => a.dataset.index - b.dataset.index)
            .map((row) => row.querySelector(".shelf-mark").dataset.state)"""
    )
    places = [order.index(state) for state in states]
    assert places == sorted(places) and states[0] == "unreadable"


def test_rows_are_grouped_by_folder_and_folders_are_closed_and_opened(library, told, picture):
    library.group(True)
    folders = {
        re.split(r"[/\\][^/\\]*$", row["file"])[0] if "/" in row["file"] else "" for row in told
    }
    assert len(folders) > 2
    expect(library.list).to_have_attribute("role", "treegrid")
    first = library.folders.first
    count = int(re.search(r"(\d+)(?:,|$)", first.locator(".shelf-faint").inner_text())[1])
    before = library.shown()
    assert before == len(told) + len(folders)
    first.click()
    expect(first).to_have_attribute("aria-expanded", "false")
    assert library.shown() == before - count
    library.page.keyboard.press("ArrowRight")
    expect(library.folders.first).to_have_attribute("aria-expanded", "true")
    assert library.shown() == before
    library.page.keyboard.press("ArrowDown")
    chosen = library.list.locator("[aria-selected=true]")
    expect(chosen).to_have_attribute("aria-level", "2")
    library.page.keyboard.press("ArrowLeft")
    expect(chosen).to_have_attribute("aria-level", "1")
    library.page.keyboard.press("Enter")
    assert library.shown() == before - count
    library.page.keyboard.press("Enter")
    assert library.shown() == before


# What has no name or is in no place that its role may be in.
LACKING = """(page) => {
    const named = (one) => one.getAttribute("aria-label") || one.labels?.length || one.textContent.trim();
    const role = (one) => one?.getAttribute("role");
    const controls = page.querySelectorAll("button, input, select, progress, [role=grid], [role=treegrid], [role=group]");
    const rows = [...page.querySelectorAll("[role=row]")];
    const cells = [...page.querySelectorAll("[role=gridcell], [role=columnheader]")];
    const list = page.querySelector(".shelf-list");
    return [
        ...[...controls].filter((one) => !named(one)),
        ...rows.filter((row) => role(row.parentElement) !== "rowgroup" && row.parentElement !== list),
        ...cells.filter((cell) => role(cell.parentElement) !== "row" || !cell.ariaColIndex && !cell.ariaColSpan),
        ...rows.filter((row) => row.ariaExpanded !== null && role(list) !== "treegrid"),
        ...[list].filter((one) => !document.getElementById(one.getAttribute("aria-activedescendant"))),
    ].map((one) => one.outerHTML.slice(0, 200));
}"""


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("width", [380, 1200])
def test_everything_has_a_name_and_a_place_for_people_who_hear_the_page(library, width, grouped):
    library.widen(width)
    library.group(grouped)
    library.list.focus()
    library.page.keyboard.press("Home")
    library.page.keyboard.press("ArrowDown")
    assert library.element.evaluate(LACKING) == []
    library.widen(380)


def test_nothing_stands_where_nothing_is_known(library):
    library.verdict("Unreadable").click()
    cells = library.rows.first.get_by_role("gridcell")
    texts = cells.all_text_contents()
    assert [text for index, text in enumerate(texts) if index not in (1, 5, 6)] == [""] * 4
    assert library.rows.first.locator("img").count() == 0


def test_columns_are_chosen_and_kept(library, front_end, picture):
    library.widen(1200)
    titles = library.list.get_by_role("columnheader")
    shown = ["", "Name", "Model", "Kind", "Rank", "Size", "Trigger words", "Verdict"]
    expect(titles).to_have_text(shown)
    choice = library.element.get_by_role("button", name="Columns")
    choice.click()
    panel = library.element.get_by_role("group", name="Columns")
    expect(panel.get_by_role("checkbox").first).to_be_focused()
    panel.get_by_role("checkbox", name="Size").uncheck()
    panel.get_by_role("checkbox", name="Trainer").check()
    front_end.page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(choice).to_be_focused()
    changed = ["", "Name", "Model", "Trainer", "Kind", "Rank", "Trigger words", "Verdict"]
    expect(titles).to_have_text(changed)
    assert library.rows.first.get_by_role("gridcell").count() == len(changed)
    library.close()
    library.open()
    expect(titles).to_have_text(changed)
    choice.click()
    library.status.click()
    expect(panel).to_be_hidden()
    choice.click()
    panel.get_by_role("checkbox", name="Size").check()
    panel.get_by_role("checkbox", name="Trainer").uncheck()
    front_end.page.keyboard.press("Escape")
    expect(titles).to_have_text(shown)
    library.widen(380)


@pytest.mark.parametrize("width", [380, 1200])
def test_cells_of_all_rows_stand_under_each_other(library, width, picture):
    library.widen(width)
    names = ["model", "kind", "rank", "size", "loads"] + ["words"] * (width > 1000)
    for name in names:
        cells = library.rows.locator(f".shelf-{name}")
        lefts = cells.evaluate_all(
            "cells => cells.map((cell) => cell.getBoundingClientRect().left)"
        )
        assert len(lefts) > 5 and max(lefts) - min(lefts) < 1, name
    if width > 1000:
        for name in names:
            head = library.list.locator(f".shelf-list-head .shelf-{name}").bounding_box()
            cell = library.rows.first.locator(f".shelf-{name}").bounding_box()
            assert abs(head["x"] - cell["x"]) < 1 and abs(head["width"] - cell["width"]) < 1, name
    library.widen(380)


def test_a_picture_comes_into_a_box_that_was_there_before(library, front_end):
    library.search("broken number 2")
    row = library.row("broken number 2")
    box = row.locator(".shelf-picture").bounding_box()
    expect(row.locator(".shelf-picture img")).to_be_visible()
    assert row.locator(".shelf-picture").bounding_box() == box
    assert row.locator("img").get_attribute("alt") == ""
    bare = library.row("broken number 20")
    assert bare.locator(".shelf-picture").bounding_box()["width"] == box["width"]
    asked = {url for url in front_end.requests if "/picture?" in url}
    pictured = ("broken+number+2.", "dora+number+7.")
    assert all(any(name in url for name in pictured) for url in asked), "others are not asked for"
    row.click()
    preview = library.details.locator(".shelf-preview")
    assert preview.bounding_box()["height"] == 160
    expect(preview.locator("img")).to_be_visible()


def test_filters_count_within_each_other(library, told):
    library.choose("All models", "FLUX.1")
    assert library.options("All kinds") == {
        "LoRA": sum(row["made_for"] == "FLUX.1" and row["kinds"] == "LoRA" for row in told),
        "DoRA": sum(row["kinds"] == "DoRA" for row in told),
    }
    assert library.options("All models").keys() > {"FLUX.1", "Wan 2.1 1.3B"}


def test_choice_is_remembered_in_this_browser(library, front_end):
    library.search("number 1")
    library.choose("All kinds", "DoRA")
    library.choose("Sort by", "size")
    names = library.names()
    library.close()
    library.open()
    front_end.wait_until(lambda: library.names() == names)
    assert library.search_field.input_value() == "number 1"
    front_end.page.evaluate(
        "localStorage.setItem('loralocksmith.library', '[1, {')"
    )  # written by something else
    library.close()
    library.open()
    assert library.search_field.input_value() == ""


def test_list_is_driven_by_the_keyboard(library, told, picture):
    keyboard = library.page.keyboard
    library.search_field.focus()
    keyboard.press("ArrowDown")
    expect(library.list).to_be_focused()
    chosen = library.list.locator("[aria-selected=true]")
    for key, index in (
        ("ArrowDown", 1),
        ("End", len(told) - 1),
        ("ArrowDown", len(told) - 1),
        ("Home", 0),
        ("ArrowUp", 0),
        ("ArrowDown", 1),
    ):
        keyboard.press(key)
        expect(chosen).to_have_attribute("aria-rowindex", str(index + 2))
        assert library.list.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
        assert is_inside(chosen.bounding_box(), library.list.bounding_box())
    assert float(chosen.evaluate("row => parseFloat(getComputedStyle(row).outlineWidth)")) >= 2
    keyboard.press("Enter")
    expect(
        library.details.get_by_role("heading", name=library.names()[1], exact=True)
    ).to_be_focused()
    keyboard.press("Escape")
    expect(library.details).to_have_count(0)
    expect(library.list).to_be_focused()


def test_keys_of_the_list_are_not_the_canvas_s(library, front_end):
    front_end.load_new()
    front_end.page.evaluate("app.canvas.selectItems([app.rootGraph.nodes[0]])")
    before = front_end.workflow()
    library.row("broken number 2").click()
    library.list.focus()
    for key in ("Delete", "Backspace", "m", "b"):
        front_end.page.keyboard.press(key)
    assert front_end.workflow() == before


def test_details_tell_the_report(library, server, told, picture):
    file = next(row["file"] for row in told if "broken number 8." in row["file"])
    library.search("broken number 8")
    library.row("broken number 8").click()
    report = library.details.get_by_role("group", name="Report")
    expect(report.get_by_role("heading", name="What it is")).to_be_visible()
    markdown = server.get(
        f"/lora_locksmith/file?full=1&name={file.replace(' ', '%20').replace('/', '%2F')}"
    )["markdown"]
    expect(report.locator("p").first).to_have_text(markdown.split("\n")[0].strip("*"))
    library.details.get_by_role("button", name="word8").click()
    expect(library.details.get_by_role("button", name="Copied")).to_be_visible()
    assert library.page.evaluate("navigator.clipboard.readText()") == "word8"
    library.details.get_by_role("button", name="Copy name").click()
    assert library.page.evaluate("navigator.clipboard.readText()") == file


def test_details_follow_the_chosen_row(library):
    library.search("wan number")
    library.row("wan number 4").click()
    library.list.focus()
    library.page.keyboard.press("ArrowDown")
    expect(library.details.get_by_role("heading", name="wan number 10")).to_be_visible()
    expect(library.details.get_by_role("button", name="word10")).to_be_visible()
    expect(library.list).to_be_focused()


def test_details_of_an_unreadable_file_say_why(library, told):
    library.verdict("Unreadable").click()
    library.rows.first.click()
    error = next(row["error"] for row in told if row["error"])
    expect(library.details.get_by_text(error[:30])).to_be_visible()
    expect(library.details.get_by_role("button", name="Save repaired copy")).to_have_count(0)


def test_names_and_metadata_of_strangers_are_text(library, front_end):
    title = front_end.page.title()
    library.search("onerror")
    row = library.row(HOSTILE_NAME.removesuffix(".safetensors"))
    row.click()
    expect(library.details.get_by_role("button", name=HOSTILE_WORD)).to_be_visible()
    expect(library.details.get_by_text("<h1>big</h1>").first).to_be_visible()
    assert library.element.locator("img, script, iframe, h1").count() == 0
    assert front_end.page.title() == title


def test_added_to_the_middle_of_the_view_as_one_step(library, front_end, picture):
    before = fresh_workflow(front_end)
    library.search("dora number 7")
    library.row("dora number 7").click()
    library.details.get_by_role("button", name="Add to graph").click()
    front_end.wait_until(lambda: len(front_end.workflow()["nodes"]) == len(before["nodes"]) + 1)
    added = newest(front_end)
    assert added["type"] == LOADER and added["widgets_values"][0].endswith(
        "dora number 7.safetensors"
    )
    box, free = (
        front_end.node_box(added["id"]),
        front_end.page.locator(".graph-canvas-panel").bounding_box(),
    )
    for side, length in (("x", "width"), ("y", "height")):
        assert abs(box[side] + box[length] / 2 - free[side] - free[length] / 2) < 40
    front_end.run_command("Comfy.Undo")
    assert content(front_end.workflow()) == before
    for _ in range(2):
        library.details.get_by_role("button", name="Add to graph").click()
    front_end.wait_until(lambda: len(front_end.workflow()["nodes"]) == len(before["nodes"]) + 2)
    assert (
        len({tuple(node["pos"]) for node in front_end.workflow()["nodes"]})
        == len(before["nodes"]) + 2
    )


def test_dragged_onto_the_canvas(library, front_end):
    before = fresh_workflow(front_end)
    library.search("sd15 number 9")
    library.row("sd15 number 9").drag_to(
        front_end.page.locator("#graph-canvas"), target_position={"x": 900, "y": 780}
    )
    front_end.wait_until(lambda: len(front_end.workflow()["nodes"]) == len(before["nodes"]) + 1)
    box = front_end.node_box(newest(front_end)["id"])
    assert abs(box["x"] - 900) < 40 and abs(box["y"] - 780) < 80
    front_end.run_command("Comfy.Undo")
    assert content(front_end.workflow()) == before


def test_dragged_onto_a_node_that_names_a_lora(library, front_end):
    before = fresh_workflow(front_end)
    library.search("sd15 number 9")
    row, box = library.row("sd15 number 9"), front_end.node_box(2)
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] - 6}
    row.hover()
    front_end.page.mouse.down()
    front_end.page.mouse.move(place["x"], place["y"], steps=5)
    front_end.page.mouse.up()
    front_end.wait_until(
        lambda: front_end.value(2, "lora_name").endswith("sd15 number 9.safetensors")
    )
    assert len(front_end.workflow()["nodes"]) == len(before["nodes"])
    front_end.run_command("Comfy.Undo")
    assert content(front_end.workflow()) == before


def test_dragged_onto_a_stack(library, front_end, picture):
    fresh_workflow(front_end)
    stack = front_end.page.evaluate("""() => {
            const node = LiteGraph.createNode("LocksmithLoRAStack");
            app.rootGraph.add(node);
            const area = document.querySelector(".graph-canvas-panel").getBoundingClientRect();
            node.pos = app.clientPosToCanvasPos([area.right - 560, area.bottom - 400]);
            app.canvas.setDirty(true, true);
            return node.id;
        }""")
    library.search("sd15 number 9")
    front_end.settle()  # the node is drawn
    box = front_end.node_box(stack)
    library.row("sd15 number 9").hover()
    front_end.page.mouse.down()
    front_end.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    front_end.page.mouse.up()
    front_end.wait_until(lambda: "sd15 number 9.safetensors" in front_end.value(stack, "loras"))


def test_repaired_copy_is_saved_shown_and_never_overwritten(
    library, loras, front_end, mode, picture
):
    library.search("broken number 20")
    library.row("broken number 20").click()
    library.details.get_by_role("button", name="Save repaired copy").click()
    form = library.details.locator("form")
    form.get_by_role("combobox", name="Format").select_option("kohya")
    field = form.get_by_role("textbox", name="File name in the loras folder")
    expect(field).to_have_value(f"{FOLDER}/set 0/broken number 20_kohya")
    field.fill(f"{FOLDER}/mended {mode}")
    form.get_by_role("button", name="Save", exact=True).click()
    expect(form.get_by_role("status")).to_contain_text("read it back and compared it")
    path = loras / FOLDER / f"mended {mode}.safetensors"
    written = path.stat()
    library.search(f"mended {mode}")
    expect(library.row(f"mended {mode}")).to_be_visible()
    front_end.load_new()
    options = (
        "app.rootGraph.getNodeById(2).widgets.find((widget) => widget.name ==="
        " 'lora_name').options.values"
    )
    front_end.wait_until(
        lambda: any(
            name.endswith(f"mended {mode}.safetensors") for name in front_end.page.evaluate(options)
        )
    )
    form.get_by_role("button", name="Save", exact=True).click()
    expect(form.get_by_role("status")).to_contain_text("is there already")
    assert path.stat().st_mtime_ns == written.st_mtime_ns
    front_end.said = [
        line for line in front_end.said if "409" not in line
    ]  # the browser's own line about the refusal


def test_name_that_leads_out_of_the_folder_is_refused(library, front_end):
    library.search("broken number 20")
    library.row("broken number 20").click()
    library.details.get_by_role("button", name="Save repaired copy").click()
    form = library.details.locator("form")
    form.get_by_role("textbox").fill("../outside")
    form.get_by_role("button", name="Save", exact=True).click()
    expect(form.get_by_role("status")).to_contain_text("loras folder")
    front_end.said = [line for line in front_end.said if "400" not in line]


def test_new_and_removed_files_are_seen_after_a_refresh(library, loras, told):
    path = loras / FOLDER / "fresh one.safetensors"
    write_kind(path, "wan", 4)
    for count in (len(told) + 1, len(told)):
        library.read_again(f"{count} LoRAs")
        path.unlink(missing_ok=True)


def test_rows_that_are_as_they_were_are_not_sent_again(library, front_end, loras, told):
    """Nor are they sorted anew: thousands would make the page stutter at every refresh."""
    files, answers = [row["file"] for row in told], []
    path = loras / files[len(files) // 2]
    before = path.stat().st_mtime

    def hear(response):
        """Keep the answers from the newest refresh on."""
        if "refresh=1" in response.url:
            answers[:] = [response]
        elif "/library?" in response.url and answers:
            answers.append(response)

    front_end.page.on("response", hear)
    try:
        for sent in (None, 0, len(files) - len(files) // 2):
            answers.clear()
            library.element.get_by_role("button", name="Read the folders again").click()
            front_end.wait_until(lambda: bool(answers) and not answers[-1].json()["running"])
            rows = [row["file"] for answer in answers for row in answer.json()["rows"]]
            # The first time the page may still be following the scan it was opened with.
            assert sent is None or rows == files[len(files) - sent :]
            expect(library.status).to_have_text(f"{len(files)} LoRAs")
            assert library.shown() == len(files)
            if sent is not None:
                os.utime(path, (before + 100, before + 100))
    finally:
        front_end.page.remove_listener("response", hear)
        os.utime(path, (before, before))


def test_server_that_is_away_is_told(library, front_end, told):
    context = front_end.page.context
    context.set_offline(True)
    library.element.get_by_role("button", name="Read the folders again").click()
    expect(library.element.get_by_role("alert")).to_contain_text("The server did not answer")
    expect(library.status).to_have_text(f"{len(told)} LoRAs")
    context.set_offline(False)
    library.element.get_by_role("button", name="Read the folders again").click()
    expect(library.element.get_by_role("alert")).to_have_count(0)
    front_end.said = [line for line in front_end.said if "ERR_INTERNET_DISCONNECTED" not in line]


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_text_stands_out_in_every_theme(library, front_end, picture, palette):
    front_end.set("Comfy.ColorPalette", palette)
    library.row("broken number 2").click()
    parts = [
        "h2",
        ".locksmith-library-status span",
        ".shelf-name > bdi",
        ".shelf-model",
        ".shelf-mark",
        "select",
        ".shelf-first",
        ".shelf-details h3",
        ".shelf-details .shelf-faint",
        "[aria-selected=true] .shelf-model",
        ".shelf-chip",
    ]
    for part in parts:
        assert front_end.contrast(library.element.locator(part).first) > 4.5, part


def test_wide_page_has_columns_and_details_beside(library, told, picture):
    library.widen(1200)
    titles = library.list.get_by_role("columnheader")
    titles.filter(has_text="Size").get_by_role("button").click()
    expect(titles.filter(has_text="Size")).to_have_attribute("aria-sort", "ascending")
    sizes = dict(zip(names_of(told), [row["bytes"] for row in told], strict=True))
    shown = [sizes[name] for name in library.names()]
    assert shown == sorted(shown)
    boxes = [cell.bounding_box() for cell in library.rows.first.get_by_role("gridcell").all()]
    assert (
        max(box["y"] + box["height"] / 2 for box in boxes)
        - min(box["y"] + box["height"] / 2 for box in boxes)
        < 3
    )
    library.rows.first.click()
    library.front_end.wait_until(
        lambda: library.details.bounding_box()["x"] > library.list.bounding_box()["x"] + 300
    )
    library.widen(380)


def test_thousands_of_files_are_listed_searched_and_scrolled_through(front_end, loras):
    """The document holds no more rows than are seen, so that none of it takes longer than with a
    few.
    """
    library = Library(front_end)
    library.open()
    library.reset()
    folder = loras / "thousands"
    write_shelf(folder, THOUSANDS)
    try:
        library.read_again(r"3,\d+ LoRAs")  # the first time each file is read
        assert library.rows.count() < MAX_ROWS
        library.list.evaluate(SCROLL)
        expect(library.list.locator(f"[aria-rowindex='{library.shown() + 1}']")).to_be_visible()
        assert library.rows.count() < MAX_ROWS
        library.search("flux number 12")
        library.choose("All kinds", "LoRA")
        library.choose("Sort by", "trainer")
        wanted = [
            number for number in range(0, THOUSANDS, 6) if "12" in str(number) and number % 50 != 49
        ]
        expect(library.status).to_have_text(re.compile(r"^\d+ of 3,\d+ LoRAs$"))
        assert library.shown() >= len(wanted)
        assert library.rows.count() < MAX_ROWS
    finally:
        shutil.rmtree(folder)
        library.reset()
        library.read_again(r"\d{3} LoRAs")


def newest(front_end: FrontEnd) -> dict:
    return max(front_end.workflow()["nodes"], key=lambda node: int(node["id"]))


def fresh_workflow(front_end: FrontEnd) -> dict:
    """What a new workflow holds, opened and taken note of by the undo history; nodes drawn by Vue
    get their sizes late.
    """
    front_end.load_new()
    front_end.settle()
    front_end.page.evaluate(
        "app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"
    )
    return content(front_end.workflow())


def content(workflow: dict) -> dict:
    """Nodes without their sizes, and links."""
    nodes = [
        {key: value for key, value in node.items() if key != "size"} for node in workflow["nodes"]
    ]
    return {"nodes": sorted(nodes, key=lambda node: int(node["id"])), "links": workflow["links"]}


def is_inside(box: dict, outer: dict) -> bool:
    return (
        box["y"] >= outer["y"] - 1 and box["y"] + box["height"] <= outer["y"] + outer["height"] + 1
    )
