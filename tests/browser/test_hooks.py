"""Create Hook LoRA (fixed) in the front end: in the place of stock's and back, what its file is, and
why a run failed.
"""

from __future__ import annotations

import json

import pytest
from browser.test_swap import (
    ALL,
    ALL_BACK,
    Link,
    by_id,
    choose,
    choose_in_menu,
    open_node_menu,
    opened,
    prompt,
    types,
    workflow_of,
)
from front_end import FrontEnd
from playwright.sync_api import expect
from tiny_models import BROKEN_LORA, KOHYA_LORA

OURS, OURS_STACKED = "LocksmithCreateHookLoRA", "LocksmithCreateHookLoRAStack"
STOCK, STOCK_MODEL_ONLY = "CreateHookLora", "CreateHookLoraModelOnly"
TITLE = "Create Hook LoRA (fixed)"
FIRST, MODEL_ONLY, FRAMES, STRENGTH = range(1, 5)
HOOKS_IN, HOOKS_OUT = [("prev_hooks", "HOOKS")], [("HOOKS", "HOOKS")]


def hook_workflow() -> dict:
    """Two hooks of stock's in a row that keyframes follow; the first one's strength is set by
    another node, the second is for the model only.
    """
    nodes = [
        (FIRST, STOCK, HOOKS_IN, HOOKS_OUT, [BROKEN_LORA, 0.5, 0.25], {"title": "My hook"}),
        (MODEL_ONLY, STOCK_MODEL_ONLY, HOOKS_IN, HOOKS_OUT, [KOHYA_LORA, -0.5], {}),
        (
            FRAMES,
            "SetHookKeyframes",
            [("hooks", "HOOKS"), ("hook_kf", "HOOK_KEYFRAMES")],
            HOOKS_OUT,
            [],
            {},
        ),
        (STRENGTH, "PrimitiveFloat", [], [("FLOAT", "FLOAT")], [0.75], {}),
    ]
    links = [
        Link(FIRST, 0, MODEL_ONLY, "prev_hooks", "HOOKS"),
        Link(MODEL_ONLY, 0, FRAMES, "hooks", "HOOKS"),
        Link(STRENGTH, 0, FIRST, "strength_model", "FLOAT"),
    ]
    return workflow_of(nodes, links)


@pytest.fixture
def before(front_end: FrontEnd, mode: str) -> dict:
    return opened(front_end, hook_workflow())


def test_hooks_are_replaced_with_what_they_had_and_back(front_end, before, picture):
    front_end.run_command(ALL)
    after = front_end.workflow()
    assert types(after) == types(before) | {FIRST: OURS, MODEL_ONLY: OURS}
    assert after["links"] == before["links"]
    assert by_id(after)[FIRST]["widgets_values"] == [BROKEN_LORA, 0.5, 0.25]
    assert by_id(after)[MODEL_ONLY]["widgets_values"] == [KOHYA_LORA, -0.5, 0]
    assert by_id(after)[FIRST]["title"] == "My hook"
    ours = prompt(front_end)
    assert ours[str(MODEL_ONLY)]["inputs"]["prev_hooks"] == [str(FIRST), 0]
    front_end.settle()
    front_end.run_command(ALL_BACK)
    back = front_end.workflow()
    for old, new in zip(before["nodes"], back["nodes"], strict=True):
        new["size"] = old["size"]
    assert json.dumps(back, sort_keys=True) == json.dumps(before, sort_keys=True)


def test_a_model_only_hook_that_got_a_strength_for_clip_becomes_the_other(front_end, before):
    front_end.run_command(ALL)
    front_end.page.evaluate(
        """id => { app.rootGraph.getNodeById(id).widgets.find((each) => each.name === "strength_clip").value = 0.5; }""",
        MODEL_ONLY,
    )
    front_end.run_command(ALL_BACK)
    node = by_id(front_end.workflow())[MODEL_ONLY]
    assert [node["type"], node["widgets_values"]] == [STOCK, [KOHYA_LORA, -0.5, 0.5]]


def test_menu_and_button_of_a_hook_name_what_it_becomes(front_end, before, picture):
    open_node_menu(front_end, MODEL_ONLY)
    choose_in_menu(front_end, f"Replace with {TITLE}")
    front_end.wait_until(lambda: types(front_end.workflow())[MODEL_ONLY] == OURS)
    choose(front_end, MODEL_ONLY)
    front_end.page.get_by_role("button", name="Replace with Create Hook LoRA", exact=True).click()
    front_end.wait_until(lambda: types(front_end.workflow())[MODEL_ONLY] == STOCK_MODEL_ONLY)


def test_the_node_says_what_its_file_is(front_end, before, picture):
    front_end.run_command(ALL)
    told = front_end.page.get_by_role("status", name="File of My hook")
    expect(told).to_contain_text("FLUX.1")


def test_the_stack_has_rows_with_badges(front_end, mode, picture):
    rows = json.dumps([{"on": True, "name": BROKEN_LORA, "strength": 1}])
    nodes = [(FIRST, OURS_STACKED, HOOKS_IN, HOOKS_OUT, [rows], {})]
    opened(front_end, workflow_of(nodes, []))
    rows = front_end.page.get_by_role("region", name="LoRAs of Create Hook LoRA (fixed, stack)")
    expect(rows.get_by_role("listitem").get_by_role("img")).to_contain_text("FLUX.1")


def test_why_a_run_failed_stays_on_the_node(front_end, mode, lora_file, picture):
    lora_file("web page.safetensors", b"<!DOCTYPE html><html></html>" * 20)
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    nodes = [
        (FIRST, OURS, HOOKS_IN, HOOKS_OUT, ["web page.safetensors", 1.0, 1.0], {}),
        (MODEL_ONLY, "PreviewAny", [("source", "*")], [("STRING", "STRING")], [], {}),
    ]
    opened(front_end, workflow_of(nodes, [Link(FIRST, 0, MODEL_ONLY, "source", "HOOKS")]))
    front_end.run()
    expect(front_end.page.locator(".locksmith-fault")).to_contain_text("web page.safetensors")
