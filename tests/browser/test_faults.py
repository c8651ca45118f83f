"""What made a node fail stays on the node, in red, beside what its file is; and a run that needed
no work shows its reports.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from front_end import INSPECT, LOADER, FrontEnd, is_in_sight, workflow_of_both_nodes
from hollow_files import write_hollow
from playwright.sync_api import Locator, expect
from safetensors.torch import save
from tiny_models import BROKEN_LORA, FLUX, HIDDEN, KOHYA_LORA, kohya_lora

LOADER_TITLE, STACK_TITLE = "Load and Fix LoRA", "Load and Fix LoRA (stack)"
PARTLY = "faults_partly.safetensors"
FAULT, BADGE = ".locksmith-fault", ".locksmith-badge"
STACK = """async ([flux, rows]) => {
    await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
    const [model, stack, text] = ["UNETLoader", "LocksmithLoRAStack", "PreviewAny"].map((type) => LiteGraph.createNode(type));
    [model, stack, text].forEach((node, index) => { app.graph.add(node); node.pos = [40 + 360 * index + 120 * (index > 1), 60]; });
    model.widgets[0].value = flux;
    model.connect(0, stack, stack.findInputSlot("model"));
    stack.connect(stack.findOutputSlot("report"), text, 0);
    stack.widgets.find((widget) => widget.name === "loras").value = JSON.stringify(rows);
    stack.widgets.find((widget) => widget.name === "on_unmatched").value = "error";
}"""


@pytest.fixture
def partly(front_end: FrontEnd, server, mode: str) -> Iterator[str]:
    """A LoRA some of which has no place."""
    modules = {
        f"lora_unet_double_blocks_{block}_img_attn_proj": (HIDDEN, HIDDEN) for block in (0, 1, 7)
    }
    shapes = {
        name + role: (1, inputs)
        for name, (_, inputs) in modules.items()
        for role in [".lora_down.weight"]
    }
    shapes |= {name + ".lora_up.weight": (outputs, 1) for name, (outputs, _) in modules.items()}
    path = server.base / "models" / "loras" / PARTLY
    write_hollow(path, shapes, {}, "F16")
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    yield PARTLY
    path.unlink()


def shown(front_end: FrontEnd, title: str) -> Locator:
    return front_end.page.get_by_role("status", name=f"File of {title}")


def test_failed_loader_keeps_what_its_file_is_and_says_why(front_end, partly, picture):
    front_end.load_new(partly)
    front_end.change(LOADER, "on_unmatched", "error")
    expect(shown(front_end, LOADER_TITLE).locator(BADGE)).to_have_text("! 2/3")
    front_end.run()
    fault = shown(front_end, LOADER_TITLE).locator(FAULT)
    expect(fault).to_contain_text("2 of 6 keys have no effect")
    assert is_in_sight(fault, "Set on_unmatched to 'report' to load the rest.")
    expect(shown(front_end, LOADER_TITLE).locator(BADGE)).to_have_text("! 2/3")
    expect(shown(front_end, LOADER_TITLE).locator(".locksmith-wrong")).to_be_hidden()
    panel, what = (
        shown(front_end, LOADER_TITLE).locator(part).bounding_box() for part in ("..", BADGE)
    )
    assert what["y"] + what["height"] <= panel["y"] + panel["height"], (
        "what the file is cannot be seen beside the fault"
    )
    for palette in ("light", "dark"):
        front_end.set("Comfy.ColorPalette", palette)
        assert front_end.contrast(fault) > 4.5
    red, green, blue = fault.evaluate(
        "part => getComputedStyle(part).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert red > 150 > 80 > max(green, blue)
    front_end.run_command("Comfy.NewBlankWorkflow")
    front_end.run_command("Workspace.PreviousOpenedWorkflow")
    expect(fault).to_contain_text("have no effect")
    front_end.wait_until_kept()
    front_end.said.clear()  # the host tells the console of the failure
    front_end.open()
    expect(fault).to_contain_text("have no effect")
    front_end.change(LOADER, "on_unmatched", "report")
    expect(fault).to_be_hidden()
    expect(shown(front_end, LOADER_TITLE).locator(BADGE)).to_have_text("! 2/3")
    front_end.run()
    expect(front_end.report(LOADER_TITLE)).to_contain_text("2 of 3 layers load")
    front_end.said.clear()  # the host tells the console of the failure


def test_fault_takes_the_place_of_an_earlier_report(front_end, server, lora_file, mode):
    lora_file(
        "turns_bad.safetensors", (server.base / "models" / "loras" / BROKEN_LORA).read_bytes()
    )
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    front_end.load_new("turns_bad.safetensors")
    front_end.run()
    expect(front_end.reports).to_have_count(2)
    lora_file("turns_bad.safetensors", b"no LoRA at all")
    front_end.run()
    failed = front_end.page.locator(".locksmith-status").filter(
        has=front_end.page.locator(f"{FAULT}:not([hidden])")
    )
    expect(failed).to_have_count(1)
    expect(failed.locator(FAULT)).to_contain_text("turns_bad.safetensors")
    expect(front_end.reports).to_have_count(1)
    front_end.said.clear()


def test_stack_says_which_row_failed_until_its_rows_change(front_end, partly, picture):
    front_end.page.evaluate(
        STACK,
        [
            FLUX,
            [
                {"on": True, "name": BROKEN_LORA, "strength": 0.5},
                {"on": True, "name": partly, "strength": 1},
            ],
        ],
    )
    front_end.run()
    fault = shown(front_end, STACK_TITLE).locator(FAULT)
    expect(fault).to_contain_text("Row 2")
    front_end.run_command("Comfy.NewBlankWorkflow")
    front_end.run_command("Workspace.PreviousOpenedWorkflow")
    expect(fault).to_contain_text("Row 2")
    front_end.wait_until_kept()
    front_end.said.clear()
    front_end.open()
    expect(fault).to_contain_text("Row 2")
    rows = front_end.page.get_by_role("region", name=f"LoRAs of {STACK_TITLE}").get_by_role(
        "listitem"
    )
    rows.nth(1).get_by_role("switch").click()
    expect(fault).to_have_count(0)
    front_end.run()
    expect(front_end.report(STACK_TITLE)).to_contain_text("22/22")
    front_end.said.clear()


def test_what_the_server_refuses_is_said_on_the_node(front_end, mode, picture):
    front_end.page.evaluate(
        STACK, [FLUX, [{"on": True, "name": "gone.safetensors", "strength": 0.5}]]
    )
    front_end.page.evaluate("() => { void app.queuePrompt(0); }")
    fault = shown(front_end, STACK_TITLE).locator(FAULT)
    expect(fault).to_contain_text("gone.safetensors")
    assert " - " not in fault.text_content(), "the host's name of the input stands before it"
    assert fault.text_content().count("gone.safetensors") == 1
    front_end.said.clear()


def test_what_is_refused_of_a_workflow_that_runs_in_part_is_said_too(front_end, mode, picture):
    """The node that inspects runs; the loader lacks its model."""
    front_end.load_new()
    front_end.page.evaluate(
        "node => { app.rootGraph.getNodeById(node).disconnectInput(0); }", LOADER
    )
    front_end.page.evaluate("() => { void app.queuePrompt(0); }")
    fault = shown(front_end, LOADER_TITLE).locator(FAULT)
    expect(fault).to_have_text("Required input is missing: model")
    front_end.said.clear()


def test_answer_from_the_cache_is_shown_in_another_workflow_and_browser(
    front_end, server, browser, mode
):
    workflow = workflow_of_both_nodes(KOHYA_LORA, strength=0.4321 if mode == "vue" else 0.1234)
    front_end.load(workflow)
    front_end.run()
    expect(front_end.reports).to_have_count(2)
    front_end.page.evaluate("localStorage.removeItem('loralocksmith.runs')")
    front_end.load(workflow | {"id": workflow["id"][:-4] + "0000"})
    assert front_end.reports.count() == 0
    front_end.run()
    expect(front_end.reports).to_have_count(2)
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    other = FrontEnd(context.new_page(), server.url)
    other.open()
    other.load(workflow | {"id": workflow["id"][:-4] + "1111"})
    other.run()
    expect(other.reports).to_have_count(2)
    newest = next(iter(server.get("/history?max_items=1").values()))
    cached = [
        details["nodes"]
        for kind, details in newest["status"]["messages"]
        if kind == "execution_cached"
    ]
    assert {str(LOADER), str(INSPECT)} <= set(cached[0]), "the nodes ran anew, which proves nothing"
    assert other.said == []
    context.close()


CAUTION = "3 of 20 weights hold NaN, <b>which no picture survives</b>"


def test_doubt_turns_badge_and_rows_amber(front_end, server, mode, picture):
    """Of a report as a run gives it, with a caution added."""
    front_end.load_new()
    front_end.run()
    output = next(iter(server.get("/history?max_items=1").values()))["outputs"][str(LOADER)]
    report = json.loads(output["report_json"][0])
    report |= {"cautions": [CAUTION], "state": "part"}
    front_end.load_new()
    doubtful = {"text": [output["text"][0] + "\n"], "report_json": [json.dumps(report)]}
    front_end.page.evaluate("outputs => { app.nodeOutputs = outputs }", {str(LOADER): doubtful})
    badge = front_end.report(LOADER_TITLE).locator(".locksmith-badge")
    expect(badge).to_have_text("! 22/22")
    expect(badge).to_have_class("locksmith-badge locksmith-part")
    assert badge.get_attribute("title").startswith(CAUTION)
    expect(front_end.report(LOADER_TITLE).locator(".locksmith-caution")).to_have_text(CAUTION)
    front_end.report(LOADER_TITLE).get_by_role("button", name="Details").click()
    dialog = front_end.page.get_by_role("dialog", name="Details of")
    expect(dialog.locator(".locksmith-caution")).to_have_text(CAUTION)
    front_end.page.keyboard.press("Escape")


def test_doubt_turns_a_stack_amber(front_end, server, mode, picture):
    rows = [{"on": True, "name": name, "strength": 0.75} for name in (BROKEN_LORA, KOHYA_LORA)]
    front_end.page.evaluate(STACK, [FLUX, rows])
    node = front_end.page.evaluate(
        "app.rootGraph.nodes.find((node) => node.comfyClass === 'LocksmithLoRAStack').id"
    )
    front_end.run()
    output = next(iter(server.get("/history?max_items=1").values()))["outputs"][str(node)]
    report = json.loads(output["report_json"][0])
    report["rows"][1] |= {"cautions": [CAUTION], "state": "part"}
    report["state"] = "part"
    report["cautions"] = [f"2. {KOHYA_LORA} at 0.75: {CAUTION}"]
    doubtful = {"text": [output["text"][0] + "\n"], "report_json": [json.dumps(report)]}
    front_end.page.evaluate("outputs => { app.nodeOutputs = outputs }", {str(node): doubtful})
    expect(front_end.report(STACK_TITLE).locator(".locksmith-badge")).to_have_class(
        "locksmith-badge locksmith-part"
    )
    badges = (
        front_end.page.get_by_role("region", name=f"LoRAs of {STACK_TITLE}")
        .get_by_role("listitem")
        .get_by_role("img")
    )
    expect(badges.nth(1)).to_have_text("! 10")
    expect(badges.nth(1)).to_have_attribute(
        "title", CAUTION + badges.nth(1).get_attribute("title")[len(CAUTION) :]
    )
    expect(badges.nth(0)).to_have_text("\u2713 22")


def test_damaged_files_of_a_stack_are_told_row_by_row(front_end, lora_file, mode, picture):
    """In a folder: one that holds NaN, and one whose header the stock loader's reader refuses."""
    tensors = kohya_lora()
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    lora_file("in a folder/nan.safetensors", save(tensors))
    lora_file(
        "in a folder/number.safetensors",
        save(kohya_lora(), {"steps": "8"}).replace(b'"steps":"8"', b'"steps": 8 '),
    )
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    rows = [
        {"on": True, "name": f"in a folder/{name}.safetensors", "strength": 0.75}
        for name in ("nan", "number")
    ]
    front_end.page.evaluate(STACK, [FLUX, rows])
    front_end.run()
    report = front_end.report(STACK_TITLE)
    expect(report.locator(".locksmith-badge")).to_have_class("locksmith-badge locksmith-part")
    badges = (
        front_end.page.get_by_role("region", name=f"LoRAs of {STACK_TITLE}")
        .get_by_role("listitem")
        .get_by_role("img")
    )
    expect(badges.nth(0)).to_have_text("! 10")
    expect(badges.nth(1)).to_have_text("\u2713 10")
    report.get_by_role("button", name="Details").click()
    dialog = front_end.page.get_by_role("dialog", name="Details of")
    expect(dialog).to_contain_text(
        "The stock loader fails on this file: in a folder/number.safetensors: safetensors does not"
        " read it"
    )
    expect(dialog.locator(".locksmith-caution")).to_contain_text("nan.safetensors")
    front_end.page.keyboard.press("Escape")
    front_end.said.clear()
