"""The compact panel on a node, and the dialog with everything it opens, drawn the classic way and
the Vue way.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from front_end import LOADER, PREVIEW, FrontEnd
from hollow_files import write_hollow
from playwright.sync_api import expect
from safetensors.torch import save_file
from tiny_models import BROKEN_LORA, HIDDEN, KOHYA_LORA

LOADER_TITLE, INSPECT_TITLE = "Load and Fix LoRA", "Inspect LoRA Keys"
BADGE, VERDICT = ".locksmith-badge", ".locksmith-verdict"
PARTLY, OTHER_BASE, MANY_KEYS = (
    "panel_partly.safetensors",
    "panel_other_base.safetensors",
    "panel_many_keys.safetensors",
)
MAX_HEIGHT = 80  # the loader stays near the stock loader's height
HOSTILE = "<img src=/stolen.png onerror=alert(1)>"
MAX_ELEMENTS = 500  # of a dialog, however long its report is


def low_rank(modules: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    return {
        name + role: shape
        for name, (outputs, inputs) in modules.items()
        for role, shape in ((".lora_down.weight", (1, inputs)), (".lora_up.weight", (outputs, 1)))
    }


@pytest.fixture(scope="module")
def files(front_end: FrontEnd, server) -> None:
    """A LoRA some of which has no place, one for another model, and one with 2,000 keys that fit
    nowhere.
    """
    folder = server.base / "models" / "loras"
    partly = {
        f"lora_unet_double_blocks_{block}_img_attn_proj": (HIDDEN, HIDDEN) for block in (0, 1, 7)
    }
    words = {
        "modelspec.trigger_phrase": "ohwx",
        "ss_output_name": HOSTILE,
        "ss_network_module": "networks.lora_flux",
        HOSTILE: "odd",
    }
    # Not hollow: a file of zeros is said to change nothing.
    save_file(
        {name: torch.full(shape, 0.01).half() for name, shape in low_rank(partly).items()},
        folder / PARTLY,
        words,
    )
    places = [
        f"lora_unet_input_blocks_{block}_1_transformer_blocks_{depth}_"
        for block in (4, 5, 7, 8)
        for depth in (0, 1)
    ]
    other = {
        place + layer: (1280, 1280)
        for place in places
        for layer in ("attn1_to_q", "attn1_to_k", "attn2_to_q")
    }
    write_hollow(
        folder / OTHER_BASE, low_rank(other), {"ss_network_module": "networks.lora"}, "F16"
    )
    many = {
        f"some_layer_{letter}{digit}.{block}.odd": (8, 8)
        for letter in "abcdefghij"
        for digit in "qrstuvwxyz"
        for block in range(10)
    }
    write_hollow(folder / MANY_KEYS, low_rank(many), {}, "F16")
    front_end.run_command("Comfy.RefreshNodeDefinitions")


@pytest.fixture
def ran(front_end: FrontEnd, mode: str, files):
    """run(name) -> the loader's report after a run with that file."""

    def run(name: str):
        front_end.load_new(name)
        front_end.run()
        report = front_end.report(LOADER_TITLE)
        expect(report).to_be_visible()
        return report

    return run


@pytest.fixture
def details(front_end: FrontEnd):
    """open(report) -> the dialog its button opens, which is closed after the test."""

    def open_details(report):
        report.get_by_role("button", name="Details").click()
        return front_end.page.get_by_role("dialog", name="Details of")

    yield open_details
    front_end.page.keyboard.press("Escape")
    expect(front_end.page.get_by_role("dialog")).to_have_count(0)


def told(server, node: int) -> dict:
    """What the server's newest run says of a node, for programs and as text."""
    output = next(iter(server.get("/history?max_items=1").values()))["outputs"][str(node)]
    return json.loads(output["report_json"][0]) | {"text": output["text"][0]}


@pytest.mark.parametrize(
    ("name", "badge", "says"),
    [
        (BROKEN_LORA, "\u2713 22/22", "22 of 22 layers load"),
        (PARTLY, "! 2/3", "2 of 3 layers load"),
        (OTHER_BASE, "\u2717 0/24: wrong base", "0 of 24 layers load, wrong base"),
    ],
)
def test_badge_tells_the_outcome_in_colour_sign_and_words(
    front_end, ran, picture, name, badge, says
):
    shown = ran(name).locator(BADGE)
    expect(shown).to_have_text(badge)
    expect(shown).to_have_accessible_name(says)
    for palette in ("light", "dark"):
        front_end.set("Comfy.ColorPalette", palette)
        assert front_end.contrast(shown) > 4.5
        assert front_end.contrast(front_end.report(LOADER_TITLE).locator(VERDICT)) > 4.5


def test_panel_says_what_to_do_where_a_part_has_no_effect(server, ran, details):
    report = ran(PARTLY)
    verdict, remedy = told(server, LOADER)["text"].splitlines()[:2]
    assert remedy
    expect(report.locator(f"{VERDICT} p")).to_have_text([verdict, remedy])
    expect(details(report).get_by_text(remedy, exact=True)).to_be_visible()


def test_loader_stays_low_and_keeps_the_height_a_person_gave_it(front_end, ran):
    front_end.load_new()
    before = front_end.size_of(LOADER)[1]
    saved = height_saved(front_end)
    front_end.run()
    expect(front_end.report(LOADER_TITLE)).to_be_visible()
    width, height = front_end.size_of(LOADER)
    assert height - before <= MAX_HEIGHT
    assert height_saved(front_end) == saved
    front_end.resize(LOADER, width, height + 60)
    front_end.wait_until(lambda: abs(height_saved(front_end) - saved - 60) < 2)


def height_saved(front_end: FrontEnd) -> float:
    return next(node["size"][1] for node in front_end.workflow()["nodes"] if node["id"] == LOADER)


def test_details_tell_every_pattern_with_its_reason(server, ran, details, picture):
    dialog = details(ran(PARTLY))
    (lost,) = told(server, LOADER)["patterns"]
    row = dialog.get_by_role("row", name=lost["name"])
    expect(row).to_contain_text(lost["reason"])
    expect(row.get_by_role("cell").first).to_have_text(str(lost["keys"]))
    assert dialog.locator("pre").text_content() == told(server, LOADER)["text"]


def test_heat_map_shows_what_was_trained_block_by_block(server, ran, details, picture):
    dialog = details(ran(KOHYA_LORA))
    groups = {group["name"]: group for group in told(server, LOADER)["trained"][0]["blocks"]}
    expect(dialog.get_by_role("table", name="single_blocks")).to_have_count(
        0
    )  # nothing of it was trained
    table = dialog.get_by_role("table", name="double_blocks")
    for kind in groups["double_blocks"]["kinds"]:
        row = table.get_by_role("row", name=kind["name"])
        marks = row.locator("td:nth-child(n+4)").evaluate_all(
            "cells => cells.map((cell) => cell.ariaLabel)"
        )
        assert marks == [["none", "in part", "all"][int(mark)] for mark in kind["trained"]]
    expect(
        table.get_by_role("rowheader", name="image attention: query, key, value img_attn.qkv")
    ).to_be_visible()
    expect(dialog.get_by_role("listitem").filter(has_text="in single_blocks")).to_contain_text(
        "modulation"
    )


def test_heat_map_tells_of_the_cell_under_the_pointer_and_in_focus(server, ran, details, picture):
    dialog = details(ran(KOHYA_LORA))
    (kinds,) = (
        group["kinds"]
        for group in told(server, LOADER)["trained"][0]["blocks"]
        if group["name"] == "double_blocks"
    )
    table = dialog.get_by_role("table", name="double_blocks")
    line = dialog.locator("output").first

    def said(row: int, block: int) -> str:
        kind = kinds[row]
        state = ["not trained", "in part", "trained"][int(kind["trained"][block])]
        rank = f", rank {kind['ranks'][0]}" if kind["trained"][block] != "0" else ""
        return f"double_blocks.{block}.{kind['name']}: {state}{rank}"

    table.locator("tbody tr").nth(2).locator("td").nth(2).hover()
    expect(line).to_have_text(said(2, 0))
    table.locator("tbody td[tabindex='0']").focus()
    expect(line).to_have_text(said(0, 0))
    for key, place in (("ArrowDown", (1, 0)), ("ArrowRight", (1, 1)), ("ArrowUp", (0, 1))):
        dialog.page.keyboard.press(key)
        expect(line).to_have_text(said(*place))


def test_trigger_words_are_copied_and_metadata_are_only_text(front_end, ran, details):
    front_end.requests.clear()
    dialog = details(ran(PARTLY))
    dialog.get_by_role("button", name="ohwx").click()
    expect(dialog.get_by_role("button", name="Copied")).to_be_visible()
    assert front_end.page.evaluate("navigator.clipboard.readText()") == "ohwx"
    expect(dialog.get_by_role("row", name="Output name")).to_contain_text(HOSTILE)
    dialog.get_by_text("Other metadata").click()
    expect(dialog.get_by_role("rowheader", name=HOSTILE)).to_be_visible()
    assert dialog.locator("img").count() == 0
    assert not [address for address in front_end.requests if "stolen" in address]


def test_details_of_inspect_tell_the_file_too(front_end, ran, details):
    ran(PARTLY)
    dialog = details(front_end.report(INSPECT_TITLE))
    expect(dialog.get_by_role("button", name="ohwx")).to_be_visible()
    expect(dialog.get_by_role("table", name="double_blocks")).to_be_visible()


def test_details_are_for_the_keyboard_and_not_for_the_canvas(front_end, ran):
    button = ran(BROKEN_LORA).get_by_role("button", name="Details")
    button.focus()
    front_end.page.keyboard.press("Enter")
    dialog = front_end.page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Close")).to_be_focused()
    front_end.page.evaluate(
        "node => app.canvas.selectNode(app.rootGraph.getNodeById(node))", LOADER
    )
    for key in ("Delete", "Control+b", "Control+a"):
        front_end.page.keyboard.press(key)
    assert len(front_end.workflow()["nodes"]) == 4
    assert all(node["mode"] == 0 for node in front_end.workflow()["nodes"])
    front_end.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()


@pytest.mark.parametrize("where", ["collapsed", "far"])
def test_outcome_shows_where_the_panel_cannot(front_end, ran, mode, picture, where):
    report = ran(BROKEN_LORA)
    if mode == "vue":
        if where == "collapsed":
            pytest.skip(
                "a collapsed Vue node is its title, in which the front end gives packs no place"
            )
        front_end.page.evaluate("app.canvas.ds.scale = 0.2")
        expect(report.locator(BADGE)).to_be_visible()
    elif where == "collapsed":
        front_end.page.evaluate(
            "node => { app.rootGraph.getNodeById(node).collapse(); app.canvas.setDirty(true,"
            " true); }",
            LOADER,
        )
        front_end.wait_until(lambda: is_green(colour_at(front_end, 4, 20)))
    else:
        front_end.page.evaluate(
            "() => { app.canvas.ds.scale = 0.2; app.canvas.setDirty(true, true); }"
        )
        front_end.wait_until(lambda: is_green(colour_at(front_end, 250, -8)))
    front_end.page.evaluate("app.canvas.ds.scale = 1")


def colour_at(front_end: FrontEnd, x: float, y: float) -> list[int]:
    """The colour the canvas has at a place relative to the loader's corner, in
    the graph's units.
    """
    return front_end.page.evaluate(
        """([node, x, y]) => {
            const { pos } = app.rootGraph.getNodeById(node), { scale, offset } = app.canvas.ds, { canvas } = app.canvas;
            const ratio = canvas.width / canvas.clientWidth;
            const [left, top] = [(pos[0] + x + offset[0]) * scale * ratio, (pos[1] + y + offset[1]) * scale * ratio];
            const copy = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
            const paint = copy.getContext("2d", { willReadFrequently: true });
            paint.drawImage(canvas, left, top, 1, 1, 0, 0, 1, 1);
            return [...paint.getImageData(0, 0, 1, 1).data];
        }""",
        [LOADER, x, y],
    )


def is_green(colour: list[int]) -> bool:
    red, green, blue = colour[:3]
    return green > 90 and green > red + 60 and green > blue + 30


APPLY = """([preview, name]) => {
    const [merge, apply] = ["LocksmithMergeLoRAs", "LocksmithApplyLoRA"].map((type) => LiteGraph.createNode(type));
    for (const node of [merge, apply]) app.rootGraph.add(node);
    merge.pos = [40, 500];
    apply.pos = [760, 460];
    merge.widgets.find((widget) => widget.name === "loras").value = JSON.stringify([{ on: true, name, strength: 1 }]);
    for (const node of [merge, apply]) app.rootGraph.getNodeById(1).connect(0, node, node.findInputSlot("model"));
    merge.connect(0, apply, apply.findInputSlot("lora"));
    apply.connect(2, app.rootGraph.getNodeById(preview), 0);
}"""


EXTRACT = """([preview, name]) => {
    const [loader, extract] = ["LocksmithLoadAndFixLoRA", "LocksmithExtractLoRA"].map((type) => LiteGraph.createNode(type));
    for (const node of [loader, extract]) app.rootGraph.add(node);
    loader.pos = [40, 500];
    extract.pos = [500, 460];
    const set = (name, value) => { loader.widgets.find((widget) => widget.name === name).value = value; };
    set("lora_name", name);
    set("mode", "patch");
    const model = app.rootGraph.getNodeById(1);
    model.connect(0, loader, loader.findInputSlot("model"));
    model.connect(0, extract, extract.findInputSlot("base"));
    loader.connect(0, extract, extract.findInputSlot("model"));
    extract.connect(1, app.rootGraph.getNodeById(preview), 0);
}"""


SAVE = """(name) => {
    const save = LiteGraph.createNode("LocksmithSaveLoRA");
    app.rootGraph.add(save);
    save.pos = [40, 500];
    const set = (name, value) => { save.widgets.find((widget) => widget.name === name).value = value; };
    set("lora_name", name);
    set("dialect", "kohya");
    set("filename", "locksmith/a rather long name for a file, with what was done in it");
    set("overwrite", true);
    app.rootGraph.getNodeById(1).connect(0, save, save.findInputSlot("model"));
}"""


def test_save_shows_the_whole_of_its_verdict(front_end, server, mode, files, picture):
    front_end.load_new()
    front_end.page.evaluate(SAVE, KOHYA_LORA)
    front_end.run()
    report = front_end.report("Save LoRA")
    verdict = report.locator(VERDICT)
    expect(verdict).to_contain_text("read it back and compared it")
    front_end.wait_until(
        lambda: verdict.evaluate("part => part.scrollHeight <= part.clientHeight + 1")
    )
    expect(report.locator(".locksmith-body")).to_contain_text("layers only renamed")
    shutil.rmtree(server.base / "models" / "loras" / "locksmith")


def test_apply_shows_its_outcome_too(front_end, server, mode, files):
    front_end.load_new()
    front_end.page.evaluate(APPLY, [PREVIEW, BROKEN_LORA])
    front_end.run()
    report = front_end.report("Apply LoRA")
    expect(report.locator(BADGE)).to_have_text("\u2713 10/10")


def test_extract_shows_what_it_took(front_end, server, mode, files, picture):
    front_end.load_new()
    front_end.page.evaluate(EXTRACT, [PREVIEW, KOHYA_LORA])
    front_end.run()
    report = front_end.report("Extract LoRA")
    expect(report.locator(VERDICT)).to_contain_text("10 weights of rank ")
    expect(report.locator(VERDICT)).to_contain_text("kept energy 100.0000%")


def test_panel_of_a_report_of_thousands_of_keys_is_no_larger_than_others(server, ran, details):
    dialog = details(ran(MANY_KEYS))
    assert told(server, LOADER)["keys"]["total"] == 2000
    expect(dialog.locator(".locksmith-patterns")).to_contain_text("some_layer_aq.{}.odd")
    assert 20 < dialog.locator("*").count() < MAX_ELEMENTS
