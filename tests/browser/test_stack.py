"""The rows of Load and Fix LoRA (stack) in the real front end, drawn the classic way and the Vue
way.
"""

import itertools
import json
import random
import re

import pytest
import torch
from front_end import FrontEnd
from playwright.sync_api import expect
from safetensors.torch import save
from stacks import FILES, STACK, Stack, opened, row, same_graph, type_into, workflow
from tiny_models import BROKEN_LORA, KOHYA_LORA


@pytest.fixture
def stack(front_end: FrontEnd, mode: str) -> Stack:
    """A fresh workflow with three LoRAs in its stack."""
    return opened(
        front_end,
        [
            row(FILES[0], 0.8),
            row(FILES[1], -0.5, strength_clip=0.25),
            row(FILES[2]) | {"on": False},
        ],
    )


def test_rows_show_what_the_workflow_says(front_end, stack, picture):
    expect(stack.rows).to_have_count(3)
    assert [stack.strength(index).input_value() for index in range(3)] == ["0.80", "-0.50", "1.00"]
    switches = [
        stack.rows.nth(index).get_by_role("switch").get_attribute("aria-checked")
        for index in range(3)
    ]
    assert switches == ["true", "true", "false"]
    expect(stack.rows.first.get_by_role("button", name=f"File: {BROKEN_LORA}")).to_have_text(
        BROKEN_LORA.removesuffix(".safetensors")
    )
    expect(stack.rows.first.get_by_role("img")).to_have_text(re.compile(r"22"))
    box, outer = stack.box.bounding_box(), front_end.node_box(STACK)
    assert outer["x"] <= box["x"] and box["y"] + box["height"] <= outer["y"] + outer["height"] + 1


def test_every_change_is_one_step_to_undo(front_end, stack):
    before = front_end.workflow()
    changes = [
        lambda: stack.rows.nth(0).get_by_role("switch").click(),
        lambda: stack.part(1, "Remove").click(),
        lambda: stack.box.get_by_role("checkbox").click(),
        lambda: type_into(stack.strength(0), "0.35"),
        lambda: stack.strength(0).press("ArrowUp"),
        lambda: stack.part(0, "Move").press("Alt+ArrowDown"),
    ]
    states = [stack.value]
    for change in changes:
        change()
        states.append(stack.value)
    assert all(now != last for last, now in itertools.pairwise(states))
    assert states[-1] == [row(FILES[2]), row(FILES[0], 0.4)]
    for state in reversed(states[:-1]):
        stack.page.evaluate("document.activeElement.blur()")
        front_end.run_command("Comfy.Undo")
        front_end.wait_until(lambda state=state: stack.value == state)
    assert same_graph(front_end.workflow(), before)
    front_end.run_command("Comfy.Redo")
    front_end.wait_until(lambda: stack.value == states[1])
    expect(stack.rows.first.get_by_role("switch")).to_have_attribute("aria-checked", "false")


def test_strength_is_typed_stepped_and_dragged(front_end, stack):
    field = stack.strength(0)
    for text, value in (
        ("1,25", 1.25),
        ("-2", -2),
        ("500", 100),
        ("strong", 100),
        ("", 100),
        ("0.333", 0.333),
    ):
        type_into(field, text)
        assert stack.value[0]["strength"] == value
    expect(field).to_have_value("0.333")
    type_into(field, "0.5")
    stack.page.keyboard.down("ArrowUp")
    for _ in range(3):
        stack.page.keyboard.down("ArrowUp")  # as a key held down
    stack.page.keyboard.up("ArrowUp")
    assert stack.value[0]["strength"] == 0.7
    stack.page.evaluate("document.activeElement.blur()")
    front_end.run_command("Comfy.Undo")
    expect(field).to_have_value("0.50")
    box = field.bounding_box()
    stack.page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    stack.page.mouse.down()
    stack.page.mouse.move(box["x"] + 40, box["y"] + box["height"] / 2, steps=4)
    stack.page.mouse.up()
    assert stack.value[0]["strength"] == 0.75
    assert stack.place == [380, 60], "the node was dragged as well"
    field.click()
    expect(field).to_be_focused()
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: stack.value[0]["strength"] == 0.5)


def test_text_encoder_strength_is_shown_when_wished_or_needed(front_end, mode, picture):
    front_end.set("loralocksmith.stack.clip", False)
    stack = opened(front_end, [row(FILES[0], 0.8)])
    expect(stack.rows.first.get_by_role("spinbutton")).to_have_count(1)
    stack.box.get_by_role("button", name="CLIP").click()
    clip = stack.rows.first.get_by_role("spinbutton").nth(1)
    expect(clip).to_have_value("0.80")
    type_into(clip, "0.2")
    assert stack.value == [row(FILES[0], 0.8, strength_clip=0.2)]
    stack.box.get_by_role("button", name="CLIP").click()
    expect(clip).to_be_visible()
    type_into(clip, "0.8")
    assert stack.value == [row(FILES[0], 0.8)]
    expect(clip).to_be_hidden()


def test_weights_for_layers_are_shown_when_asked_for(stack):
    layers = stack.box.get_by_role("button", name="Layers")
    fields = stack.box.get_by_role("textbox", name="Weights for parts of")
    expect(fields.first).to_be_hidden()
    layers.click()
    expect(fields).to_have_count(len(stack.value))
    fields.nth(0).fill("double_blocks.0=0.5")
    fields.nth(0).press("Enter")
    stack.front_end.wait_until(lambda: stack.value[0].get("blocks") == "double_blocks.0=0.5")
    layers.click()  # what is set stays in view
    expect(fields.nth(0)).to_have_value("double_blocks.0=0.5")
    fields.nth(0).fill("")
    fields.nth(0).press("Enter")
    expect(fields.first).to_be_hidden()
    assert "blocks" not in stack.value[0]


def test_files_are_found_by_typing(front_end, mode, picture):
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    stack = opened(front_end, [])
    stack.add.click()
    expect(stack.dialog.get_by_role("combobox")).to_be_focused()
    assert stack.dialog.get_by_role("option").count() >= 3
    stack.page.keyboard.type("PLAIN koh")
    expect(stack.dialog.get_by_role("option")).to_have_count(1)
    stack.page.keyboard.press("Enter")
    expect(stack.dialog).to_have_count(0)
    expect(stack.add).to_be_focused()
    assert stack.value == [row(KOHYA_LORA)]
    stack.add.press("Enter")
    listed = stack.dialog.get_by_role("option")
    first_two = [listed.nth(index).get_attribute("title") for index in range(2)]
    stack.page.keyboard.press("Shift+Enter")
    stack.page.keyboard.press("ArrowDown")
    stack.page.keyboard.press("Enter")
    assert stack.names == [KOHYA_LORA, *first_two]
    stack.part(0, "File").click()
    expect(stack.dialog.get_by_role("option", selected=True)).to_have_attribute("title", KOHYA_LORA)
    stack.page.keyboard.type("no such file")
    expect(stack.dialog.get_by_role("status")).to_contain_text("No LoRA")
    stack.page.keyboard.press("Escape")
    expect(stack.dialog).to_have_count(0)
    stack.part(0, "File").click()
    stack.dialog.get_by_role("option").filter(has_text="simpletuner").click()
    assert stack.names[0] == BROKEN_LORA
    stack.add.click()
    stack.page.mouse.click(5, 500)
    expect(stack.dialog).to_have_count(0)
    assert len(stack.value) == 3


def test_many_files_are_chosen_from(front_end, server, lora_file, mode):
    for number in range(1500):
        lora_file(f"style_{number:04}.safetensors", b"")
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    stack = opened(front_end, [])
    stack.add.click()
    expect(stack.dialog.get_by_role("combobox")).to_have_attribute(
        "placeholder", re.compile("15[0-9][0-9]")
    )
    assert stack.dialog.get_by_role("option").count() <= 200
    stack.dialog.get_by_role("combobox").fill("style 14")
    expect(stack.dialog.get_by_role("status")).to_contain_text(
        f"{sum('14' in f'{number:04}' for number in range(1500))} of"
    )
    stack.page.keyboard.press("ArrowDown")
    for _ in range(16):
        stack.page.keyboard.press("PageDown")
    expect(stack.dialog.get_by_role("option", selected=True)).to_be_in_viewport()
    stack.page.keyboard.press("Escape")


def test_rows_move_by_dragging(front_end, stack, picture):
    start, end = (stack.part(index, "Move").bounding_box() for index in (0, 2))
    stack.page.mouse.move(start["x"] + 5, start["y"] + 5)
    stack.page.mouse.down()
    stack.page.mouse.move(end["x"] + 5, end["y"] + end["height"] - 2, steps=6)
    stack.page.mouse.up()
    assert stack.names == [FILES[1], FILES[2], FILES[0]]
    assert [entry["strength"] for entry in stack.value] == [-0.5, 1, 0.8]
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: stack.names == FILES)
    assert stack.place == [380, 60], "the node was dragged as well"


def test_rows_are_worked_by_keyboard(front_end, stack):
    stack.part(0, "Move").focus()
    stack.page.keyboard.press("Alt+ArrowDown")
    assert stack.names == [FILES[1], FILES[0], FILES[2]]
    expect(stack.part(1, "Move")).to_be_focused()
    expect(stack.box.get_by_role("status")).to_have_text("Now row 2 of 3")
    stack.page.keyboard.press("ArrowDown")
    expect(stack.part(2, "Move")).to_be_focused()
    stack.page.keyboard.press("Tab")
    stack.page.keyboard.press(" ")
    assert stack.value[2]["on"] is True
    stack.page.keyboard.press("Delete")
    assert stack.names == [FILES[1], FILES[0]]
    assert len(front_end.workflow()["nodes"]) == 3, "the canvas heard the key as well"
    stack.page.keyboard.press("Alt+ArrowUp")
    assert stack.names == [FILES[0], FILES[1]]


def test_node_is_as_high_as_its_rows_until_they_are_many(front_end, mode, picture):
    stack = opened(front_end, [row(FILES[0])] * 3)
    heights = [front_end.size_of(STACK)[1]]
    for index in (2, 1):
        stack.part(index, "Remove").click()
        heights.append(front_end.size_of(STACK)[1])
    assert heights[0] - heights[1] == heights[1] - heights[2] == 30
    front_end.load(workflow([row(FILES[0])] * 40))
    front_end.wait_until(lambda: stack.rows.count() == 40)
    shown = stack.box.get_by_role("list")
    front_end.wait_until(lambda: abs(shown.evaluate("list => list.clientHeight") - 12 * 30) < 40)
    assert shown.evaluate("list => list.scrollHeight > 2 * list.clientHeight")
    stack.part(39, "Remove").focus()
    stack.page.keyboard.press("Alt+ArrowUp")
    expect(stack.part(38, "Remove")).to_be_focused()
    expect(stack.part(38, "Remove")).to_be_in_viewport()
    assert stack.page.evaluate("document.scrollingElement.scrollTop") == 0


def test_workflow_keeps_plain_text(front_end, server, stack):
    stack.rows.nth(2).get_by_role("switch").click()
    prompt = front_end.page.evaluate("app.graphToPrompt()")["output"][str(STACK)]
    assert json.loads(prompt["inputs"]["loras"]) == stack.value
    assert [
        item["widgets_values"] for item in front_end.workflow()["nodes"] if item["id"] == STACK
    ] == [[json.dumps(stack.value, separators=(",", ":")), "report", "patch"]]
    type_into(
        stack.strength(0), str(random.randint(100, 9000) / 1000)
    )  # one that the server has not cached
    front_end.run()
    told = next(iter(server.get("/history?max_items=1").values()))["outputs"][str(STACK)]
    assert told["text"][0].startswith("3 LoRAs: 54 of 54 layers load.")


def test_a_text_that_is_no_list_is_left_as_it_is(front_end, mode):
    stack = opened(front_end, "style.safetensors, 0.8")
    expect(stack.box.get_by_role("alert")).to_be_visible()
    assert front_end.value(STACK, "loras") == "style.safetensors, 0.8"
    stack.box.get_by_role("button", name="Start a new list").click()
    expect(stack.add).to_be_visible()
    assert stack.value == []


def test_copies_and_reloads_keep_their_rows(front_end, stack):
    before = stack.value
    front_end.page.evaluate(
        "node => { app.canvas.copyToClipboard([app.rootGraph.getNodeById(node)]);"
        " app.canvas.pasteFromClipboard(); }",
        STACK,
    )
    expect(stack.box).to_have_count(2)
    copy = stack.box.nth(1)
    copy.get_by_role("switch").first.click()
    assert stack.value == before, "the copy changed its model"
    front_end.run_command("Comfy.Undo")
    front_end.wait_until_kept()
    front_end.open()
    front_end.wait_until(lambda: stack.box.count() == 2)
    assert stack.value == before


def test_stack_works_in_a_subgraph(front_end, stack, picture):
    front_end.put_into_subgraph(STACK)
    front_end.open_subgraph()
    expect(stack.rows).to_have_count(3)
    stack.rows.first.get_by_role("switch").click()
    expect(stack.rows.first.get_by_role("img")).to_have_text(re.compile(r"22"))
    front_end.run_command("Comfy.NewBlankWorkflow")
    front_end.run_command("Workspace.PreviousOpenedWorkflow")
    expect(stack.rows.first.get_by_role("switch")).to_have_attribute("aria-checked", "false")
    prompt = front_end.page.evaluate("app.graphToPrompt()")["output"]
    inner = next(spec for spec in prompt.values() if spec["class_type"] == "LocksmithLoRAStack")
    assert [entry["on"] for entry in json.loads(inner["inputs"]["loras"])] == [False, True, False]


def test_rows_tell_what_does_not_fit(front_end, lora_file, mode, picture):
    names = [
        f"lora_unet_input_blocks_{block}_1_transformer_blocks_0_attn1_to_q"
        for block in (4, 5, 7, 8)
    ]
    tensors = {f"{name}.lora_down.weight": torch.zeros(4, 640) for name in names}
    lora_file(
        "for_sdxl.safetensors",
        save(tensors | {f"{name}.lora_up.weight": torch.zeros(640, 4) for name in names}),
    )
    lora_file("web_page.safetensors", b"<!DOCTYPE html>" * 20)
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    stack = opened(
        front_end,
        [row("for_sdxl.safetensors"), row("web_page.safetensors"), row("gone.safetensors")],
    )
    badges = [stack.rows.nth(index).get_by_role("img") for index in range(3)]
    expect(badges[0]).to_have_text("\u2717 0/4")
    expect(badges[0]).to_have_attribute(
        "title", re.compile("^Wrong base: Made for .*SDXL.*: nothing can load", re.DOTALL)
    )
    expect(badges[1]).to_have_text("\u2717 unreadable")
    expect(badges[2]).to_have_text("\u2717 missing")
    front_end.page.evaluate(
        "node => { app.rootGraph.getNodeById(node).disconnectInput(0); }", STACK
    )
    stack.rows.nth(2).get_by_role("switch").click()
    expect(badges[0]).to_have_text(re.compile("SDXL"))


def test_narrow_rows_keep_the_sign_and_cut_nothing(front_end, lora_file, mode, picture):
    names = [
        f"lora_unet_input_blocks_{block}_1_transformer_blocks_0_attn1_to_q"
        for block in (4, 5, 7, 8)
    ]
    tensors = {f"{name}.lora_down.weight": torch.zeros(4, 640) for name in names}
    lora_file(
        "for_sdxl.safetensors",
        save(tensors | {f"{name}.lora_up.weight": torch.zeros(640, 4) for name in names}),
    )
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    stack = opened(
        front_end, [row("for_sdxl.safetensors"), row(BROKEN_LORA, 0.5, strength_clip=0.25)]
    )
    badge = stack.rows.first.get_by_role("img")
    expect(badge).to_have_text("\u2717 0/4")
    height = front_end.size_of(STACK)[1]
    for width, words in (
        (600, "\u2717 0/4"),
        (440, "\u2717 0/4"),
        (400, "\u2717"),
        (360, "\u2717"),
    ):
        front_end.resize(STACK, width, height)
        front_end.wait_until(lambda words=words: badge.inner_text().strip() == words)
        for each in stack.rows.get_by_role("img").all():
            assert each.evaluate("part => part.scrollWidth <= part.clientWidth"), "the badge is cut"
    expect(badge).to_have_accessible_name(re.compile("nothing can load"))


def test_names_of_strangers_are_only_text(front_end, mode):
    name = "<img src=/stolen.png onerror=alert(1)><b>bold</b>.safetensors"
    front_end.requests.clear()
    stack = opened(front_end, [row(name)])
    expect(stack.part(0, "File")).to_have_text("b>")
    assert stack.box.locator("img, b").count() == 0
    assert not [address for address in front_end.requests if "stolen" in address]


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_text_stands_out_in_every_theme(front_end, mode, picture, palette):
    front_end.set("Comfy.ColorPalette", palette)
    stack = opened(
        front_end,
        [row(FILES[0]), row(FILES[1], strength_clip=0.5) | {"on": False}, row("gone.safetensors")],
    )
    expect(stack.rows.nth(2).get_by_role("img")).to_have_text("\u2717 missing")
    expect(stack.rows.nth(0).get_by_role("img")).to_have_text(re.compile("22"))
    for part in (
        ".locksmith-stack-count",
        ".locksmith-stack-name",
        ".locksmith-stack-fit",
        ".locksmith-strength",
        ".locksmith-stack-add",
    ):
        for place in stack.box.locator(part).all():
            assert front_end.contrast(place) > 4.5, part
    stack.add.click()
    for part in (".locksmith-chooser-title", ".locksmith-chooser-told"):
        assert front_end.contrast(stack.dialog.locator(part).first) > 4.5, part
    stack.page.keyboard.press("Escape")
