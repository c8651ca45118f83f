"""Every scene works with files in folders, with names of any letters, and with the separators of
another system.
"""

from __future__ import annotations

import json
import re

import pytest
from front_end import INSPECT, LOADER, FrontEnd
from playwright.sync_api import Locator, expect
from shelves import write_kind
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, FLUX, KOHYA_LORA

LOADER_TITLE, INSPECT_TITLE, STACK_TITLE = (
    "Load and Fix LoRA",
    "Inspect LoRA Keys",
    "Load and Fix LoRA (stack)",
)
BADGE = ".locksmith-badge"
NAMES = {
    "nested": "styles/line work/v2.safetensors",
    "unicode": "\u753b\u98ce/\u6c34\u5f69 \u00f1 \U0001f58c.safetensors",
    "signs": "a+b & 100% #1/it's [x].safetensors",
    "windows": (
        "drawn\\by hand.safetensors"
    ),  # as Windows lists a file in a folder; elsewhere a file of this very name
}
WITHIN, FOREIGN = "styles/line work/v2.safetensors", "styles\\line work\\v2.safetensors"
SAME = {
    "same.safetensors": (DIFFUSERS_LORA, 22),
    "one/same.safetensors": (BROKEN_LORA, 22),
    "two/same.safetensors": (KOHYA_LORA, 10),
}


@pytest.fixture
def folders(front_end: FrontEnd, server, lora_file, mode: str) -> None:
    """LoRAs in folders, and the front end's lists of files with them."""
    loras = server.base / "models" / "loras"
    for name in NAMES.values():
        lora_file(name, (loras / BROKEN_LORA).read_bytes())
    for name, (like, _) in SAME.items():
        lora_file(name, (loras / like).read_bytes())
    front_end.run_command("Comfy.RefreshNodeDefinitions")


def preview_of(front_end: FrontEnd, title: str) -> Locator:
    return front_end.page.get_by_role("status", name=f"File of {title}")


def expect_details(front_end: FrontEnd, title: str, name: str) -> None:
    """Open the details of a report: they tell what is in the very file."""
    front_end.report(title).get_by_role("button", name="Details").click()
    dialog = front_end.page.get_by_role("dialog", name="Details of")
    expect(dialog.locator(".locksmith-names")).to_contain_text(name)
    expect(dialog.get_by_role("heading", name="The file")).to_be_visible()
    front_end.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


@pytest.mark.parametrize("kind", NAMES)
def test_preview_report_badge_and_details(front_end, folders, picture, kind):
    name = NAMES[kind]
    front_end.load_new(name)
    for title in (LOADER_TITLE, INSPECT_TITLE):
        expect(preview_of(front_end, title).locator(BADGE)).to_have_text("\u2713 22/22")
    front_end.run()
    for title in (LOADER_TITLE, INSPECT_TITLE):
        expect(front_end.report(title).locator(BADGE)).to_have_text("\u2713 22/22")
        expect_details(front_end, title, name)
    front_end.wait_until_kept()
    front_end.open()
    expect(front_end.reports).to_have_count(2)


def test_workflow_from_a_system_with_other_separators(front_end, server, folders, picture):
    front_end.load_new(FOREIGN)
    assert front_end.value(LOADER, "lora_name") == FOREIGN
    for title in (LOADER_TITLE, INSPECT_TITLE):
        expect(preview_of(front_end, title).locator(BADGE)).to_have_text("\u2713 22/22")
    front_end.run()
    for title in (LOADER_TITLE, INSPECT_TITLE):
        expect(front_end.report(title).locator(BADGE)).to_have_text("\u2713 22/22")
        expect_details(front_end, title, WITHIN)
    assert json.loads(newest(server)[str(LOADER)]["report_json"][0])["file"] == WITHIN


def test_files_of_one_name_in_several_folders_are_told_apart(front_end, server, folders):
    outputs = {}
    for name, (_, modules) in SAME.items():
        front_end.load_new(name)
        expect(preview_of(front_end, LOADER_TITLE).locator(BADGE)).to_have_text(
            f"\u2713 {modules}/{modules}"
        )
        front_end.run()
        expect(front_end.report(LOADER_TITLE).locator(BADGE)).to_have_text(
            f"\u2713 {modules}/{modules}"
        )
        expect_details(front_end, INSPECT_TITLE, name)
        outputs[name] = newest(server)
    front_end.load_new("same.safetensors")
    for name in ("one/same.safetensors", "two/same.safetensors"):
        front_end.page.evaluate("outputs => { app.nodeOutputs = outputs }", outputs[name])
        assert front_end.reports.count() == 0, f"the report of {name} is shown for another file"
    front_end.page.evaluate("outputs => { app.nodeOutputs = outputs }", outputs["same.safetensors"])
    expect(front_end.reports).to_have_count(2)
    front_end.change(INSPECT, "lora_name", "two/same.safetensors")
    expect(front_end.report(INSPECT_TITLE)).to_have_count(0)
    expect(preview_of(front_end, INSPECT_TITLE).locator(BADGE)).to_have_text("\u2713 10/10")


def newest(server) -> dict:
    return next(iter(server.get("/history?max_items=1").values()))["outputs"]


# A tiny FLUX with one node that has rows, and what that says as text.
BUILD = """async ([flux, type, rows]) => {
    await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        node.pos = [x, y];
        return node;
    };
    const [model, node, text] = [add("UNETLoader", 40, 60), add(type, 400, 60), add("PreviewAny", 1040, 60)];
    model.widgets[0].value = flux;
    model.connect(0, node, node.findInputSlot("model"));
    node.widgets.find((widget) => widget.name === "loras").value = JSON.stringify(rows);
    node.connect(node.findOutputSlot("report"), text, 0);
    return node.id;
}"""


@pytest.mark.parametrize(
    ("kind", "title"), [("LocksmithLoRAStack", STACK_TITLE), ("LocksmithMergeLoRAs", "Merge LoRAs")]
)
def test_rows(front_end, folders, picture, kind, title):
    names = [*NAMES.values(), FOREIGN, "two/same.safetensors"]
    rows = [
        {"on": True, "name": name, "strength": (index + 1) / 10} for index, name in enumerate(names)
    ]
    node = front_end.page.evaluate(BUILD, [FLUX, kind, rows])
    badges = (
        front_end.page.get_by_role("region", name=f"LoRAs of {title}")
        .get_by_role("listitem")
        .get_by_role("img")
    )
    expect(badges).to_have_text([re.compile("22")] * 5 + [re.compile("10")])
    front_end.run()
    report = front_end.report(title)
    if title == STACK_TITLE:  # the line counts them, and Details names them
        expect(report).to_contain_text(f"LoRAs: {len(names)}")
        report.get_by_role("button", name="Details").click()
        report = front_end.page.get_by_role("dialog", name="Details of")
    for name in [*NAMES.values(), "two/same.safetensors"]:
        expect(report).to_contain_text(name)
    front_end.page.keyboard.press("Escape")
    assert [row["name"] for row in json.loads(front_end.value(node, "loras"))] == names


def test_library_to_canvas_and_repaired_copy(front_end, server, folders, picture):
    front_end.load_new()  # which asks for none of the files that are written now
    front_end.settle()
    for name in NAMES.values():
        write_kind(
            server.base / "models" / "loras" / name, "broken", 4
        )  # of a model that can be told by its size
    page = front_end.page
    page.get_by_role("button", name="LoRA library", exact=True).click()
    library = page.get_by_role("region", name="LoRA library", exact=True)
    library.get_by_role("button", name="Read the folders again").click()
    for name in NAMES.values():
        title = re.split(r"[/\\]", name)[-1].removesuffix(".safetensors")
        front_end.load_new()
        library.get_by_role("searchbox").fill(name)
        row = library.locator(".shelf-list-row").filter(has=page.get_by_text(title, exact=True))
        row.drag_to(page.locator("#graph-canvas"), target_position={"x": 900, "y": 780})
        front_end.wait_until(lambda name=name: name in loaded(front_end))
        row.click()
        details = library.get_by_role("region", name="Details of")
        expect(details.get_by_role("heading", name="What it is")).to_be_visible()
        details.get_by_role("button", name="Save repaired copy").click()
        details.get_by_role("button", name="Save", exact=True).click()
        expect(details.locator("form").get_by_role("status")).to_contain_text(
            "read it back and compared it"
        )
    copies = list((server.base / "models" / "loras").rglob("*_comfyui.safetensors"))
    assert len(copies) == len(NAMES)
    for path in copies:
        path.unlink()
    page.get_by_role("button", name="LoRA library", exact=True).click()
    expect(library).to_have_count(0)
    front_end.run_command("Comfy.RefreshNodeDefinitions")


def loaded(front_end: FrontEnd) -> list[str]:
    return [
        node["widgets_values"][0]
        for node in front_end.workflow()["nodes"]
        if node["type"] == "LocksmithLoadAndFixLoRA"
    ]


def test_swapped_loader(front_end, folders):
    for name in NAMES.values():
        front_end.load_new(name)
        front_end.page.evaluate(
            """(loader) => {
                const graph = app.rootGraph, old = graph.getNodeById(loader), stock = LiteGraph.createNode("LoraLoaderModelOnly");
                graph.add(stock);
                stock.widgets[0].value = old.widgets[0].value;
                stock.widgets[1].value = old.widgets[1].value;
                graph.getNodeById(1).connect(0, stock, 0);
                const inspect = graph.nodes.find((node) => node.comfyClass === "LocksmithInspectLoRAKeys");
                stock.connect(0, inspect, inspect.findInputSlot("model"));
                graph.remove(old);
            }""",
            LOADER,
        )
        front_end.run_command("loralocksmith.swap.all")
        front_end.run()
        expect(front_end.report(LOADER_TITLE).locator(BADGE)).to_have_text("\u2713 22/22")
