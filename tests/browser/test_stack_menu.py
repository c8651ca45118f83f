"""The menu of a stack's row in the real front end, drawn the classic way and the Vue way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from front_end import LOADER, FrontEnd
from hollow_files import write_hollow
from node_menu import choose_in_menu, open_node_menu
from playwright.sync_api import Locator, expect
from reports.small_files import flux_lora
from shelves import flux
from stacks import FILES, Stack, opened, row

WORDS = "row_words.safetensors"
GONE = "gone.safetensors"
DOUBLE, SINGLE = "presets_double.safetensors", "presets_single.safetensors"
SINGLE_LAYER = {
    "transformer.single_transformer_blocks.7.proj_out.lora_A.weight": (4, 15360),
    "transformer.single_transformer_blocks.7.proj_out.lora_B.weight": (3072, 4),
    "transformer.single_transformer_blocks.20.proj_out.lora_A.weight": (4, 15360),
    "transformer.single_transformer_blocks.20.proj_out.lora_B.weight": (3072, 4),
}
ITEMS = [
    "Details",
    "Copy trigger words",
    "Show in library",
    "Duplicate",
    "Move up",
    "Move down",
    "Layer weights",
    "Layer weight presets",
    "Remove",
]


@pytest.fixture
def stack(front_end: FrontEnd, mode: str) -> Stack:
    """A fresh workflow with two LoRAs and one that is gone."""
    return opened(front_end, [row(FILES[0], 0.8), row(FILES[1], -0.5), row(GONE)])


def menu_of(stack: Stack) -> Locator:
    return stack.page.get_by_role("menu", name="What to do with")


def item(stack: Stack, name: str) -> Locator:
    return menu_of(stack).get_by_role("menuitem", name=name, exact=True)


def open_menu(stack: Stack, index: int, by: str = "button") -> Locator:
    if by == "button":
        stack.part(index, "What to do with").click()
    else:
        stack.part(index, "File").click(button="right")
    expect(menu_of(stack)).to_be_visible()
    return menu_of(stack)


@pytest.mark.parametrize("by", ["button", "right-click"])
def test_menu_offers_what_can_be_done_with_a_row(front_end, stack, picture, by):
    more = stack.part(0, "What to do with")
    expect(more).to_have_attribute("aria-haspopup", "menu")
    expect(more).to_have_attribute("aria-expanded", "false")
    items = open_menu(stack, 0, by).get_by_role("menuitem")
    assert items.all_inner_texts() == ITEMS
    expect(more).to_have_attribute("aria-expanded", "true")
    expect(items.first).to_be_focused()
    others = ".litecontextmenu, [data-testid=node-context-menu], .p-contextmenu, .p-menu"
    assert not [each for each in stack.page.locator(others).all() if each.is_visible()]
    box, view = menu_of(stack).bounding_box(), stack.page.viewport_size
    assert box["x"] >= 0 and box["y"] + box["height"] <= view["height"]
    stack.page.mouse.click(5, 500)
    expect(menu_of(stack)).to_have_count(0)
    assert stack.place == [380, 60], "the node was dragged as well"


def test_menu_is_worked_by_keys(front_end, stack):
    more = stack.part(1, "What to do with")
    more.press("Enter")
    for key, name in (
        ("ArrowDown", "Copy trigger words"),
        ("ArrowUp", "Details"),
        ("ArrowUp", "Remove"),
        ("ArrowDown", "Details"),
        ("End", "Remove"),
        ("Home", "Details"),
        ("m", "Move up"),
        ("m", "Move down"),
    ):
        stack.page.keyboard.press(key)
        expect(item(stack, name)).to_be_focused()
    stack.page.keyboard.press("Delete")
    assert len(stack.value) == 3 and len(front_end.workflow()["nodes"]) == 3
    stack.page.keyboard.press("Escape")
    expect(menu_of(stack)).to_have_count(0)
    expect(more).to_be_focused()
    stack.part(1, "File").focus()
    stack.page.keyboard.press("Shift+F10")
    expect(item(stack, "Details")).to_be_focused()
    stack.page.keyboard.press("Tab")
    expect(more).to_be_focused()


def test_each_change_is_one_step_to_undo(front_end, stack):
    states = [stack.value]
    for index, name in (
        (0, "Duplicate"),
        (1, "Move down"),
        (2, "Move up"),
        (1, "Move up"),
        (3, "Remove"),
    ):
        open_menu(stack, index)
        item(stack, name).click()
        expect(menu_of(stack)).to_have_count(0)
        states.append(stack.value)
    twice, other, gone = row(FILES[0], 0.8), row(FILES[1], -0.5), row(GONE)
    assert states == [
        [twice, other, gone],
        [twice, twice, other, gone],
        [twice, other, twice, gone],
        [twice, twice, other, gone],
        [twice, twice, other, gone],
        [twice, twice, other],
    ]
    for state in [states[3], states[2], states[1], states[0]]:
        stack.page.evaluate("document.activeElement.blur()")
        front_end.run_command("Comfy.Undo")
        front_end.wait_until(lambda state=state: stack.value == state)


def test_what_moves_keeps_the_focus(front_end, stack):
    for index, name, to in ((0, "Move down", 1), (1, "Duplicate", 2), (2, "Move up", 1)):
        stack.part(index, "What to do with").press("Enter")
        item(stack, name).press("Enter")
        expect(stack.part(to, "What to do with")).to_be_focused()
    assert stack.names == [FILES[1], FILES[0], FILES[0], GONE]
    open_menu(stack, 0)
    expect(item(stack, "Move up")).to_have_attribute("aria-disabled", "true")
    item(stack, "Move up").click(force=True)
    expect(menu_of(stack)).to_be_visible()
    assert stack.names[0] == FILES[1]
    stack.page.keyboard.press("Escape")


def test_layer_weights_are_ready_to_be_typed(stack):
    open_menu(stack, 1)
    item(stack, "Layer weights").click()
    field = stack.rows.nth(1).get_by_role("textbox", name="Weights for parts of")
    expect(field).to_be_focused()
    stack.page.keyboard.type("te=0")
    stack.page.keyboard.press("Enter")
    stack.front_end.wait_until(lambda: stack.value[1].get("blocks") == "te=0")


def test_a_row_whose_file_is_gone_can_be_moved_and_removed(stack):
    menu = open_menu(stack, 2, "right-click")
    for name in ITEMS[:3]:
        expect(item(stack, name)).to_have_attribute("aria-disabled", "true")
        expect(item(stack, name)).to_have_attribute("title", re.compile("not in the loras folders"))
    item(stack, "Details").click(force=True)
    expect(menu).to_be_visible()
    item(stack, "Move up").click()
    assert stack.names == [FILES[0], GONE, FILES[1]]
    open_menu(stack, 1)
    item(stack, "Remove").click()
    assert stack.names == FILES[:2]


@pytest.fixture
def with_flux(front_end: FrontEnd, server, mode: str) -> Iterator[Stack]:
    """A stack with a LoRA of FLUX.1's double blocks, and one of a layer in a single block."""
    folder = server.base / "models" / "loras"
    files = {DOUBLE: flux_lora(), SINGLE: SINGLE_LAYER}
    for name, shapes in files.items():
        write_hollow(folder / name, shapes)
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    yield opened(front_end, [row(DOUBLE), row(SINGLE)])
    for name in files:
        (folder / name).unlink()


def presets(stack: Stack) -> Locator:
    return stack.page.get_by_role("menu", name="Layer weights for")


def open_presets(stack: Stack, index: int) -> Locator:
    open_menu(stack, index)
    item(stack, "Layer weight presets").click()
    expect(presets(stack)).to_be_visible()
    return presets(stack)


def preset(stack: Stack, name: str) -> Locator:
    return presets(stack).get_by_role("menuitem", name=name, exact=True)


def test_a_preset_fills_the_rows_layer_weights(front_end, with_flux, picture):
    menu = open_presets(with_flux, 0)
    expect(menu.get_by_role("menuitem").nth(1)).to_be_visible()
    assert menu.locator(".locksmith-menu-title").all_inner_texts() == ["Blocks"]
    expect(preset(with_flux, "Double blocks 7 to 12")).to_have_attribute(
        "title", re.compile(r"FLUX-DBL-MID6\n.*=1\n18 of 57 layers")
    )
    preset(with_flux, "Double blocks 7 to 12").click()
    field = with_flux.rows.nth(0).get_by_role("textbox", name="Weights for parts of")
    expect(field).to_have_value("double_blocks=0, double_blocks.7-12=1")
    expect(field).to_be_focused()
    assert "blocks" not in with_flux.value[1]
    with_flux.page.evaluate("document.activeElement.blur()")
    open_menu(with_flux, 0)
    item(with_flux, "Details").click()
    table = with_flux.page.get_by_role("dialog").get_by_role("table", name="double_blocks")
    cells = table.locator("tbody tr").filter(has_text="image modulation").locator("td")
    weights = ["0"] * 7 + [""] * 6 + ["0"] * 6
    expect(cells).to_have_text(["4", "all", *weights])
    cells.nth(2).hover()
    line = with_flux.page.locator(".locksmith-heat-line").first
    expect(line).to_have_text(re.compile("img_mod.lin: trained, rank 4, times 0"))
    with_flux.page.keyboard.press("Escape")
    with_flux.page.evaluate("document.activeElement.blur()")
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: "blocks" not in with_flux.value[0])


def test_a_preset_that_is_no_use_says_why_and_weights_can_be_taken_back(front_end, with_flux):
    open_presets(with_flux, 1)
    expect(preset(with_flux, "All layers as they are")).to_have_attribute("aria-disabled", "true")
    off = preset(with_flux, "Double blocks 0 to 6")
    expect(off).to_have_attribute("aria-disabled", "true")
    expect(off).to_have_attribute("title", re.compile("leaves nothing"))
    off.click(force=True)
    expect(presets(with_flux)).to_be_visible()
    preset(with_flux, "Single blocks 0 to 9").press("Escape")
    field = with_flux.rows.nth(1).get_by_role("textbox", name="Weights for parts of")
    open_menu(with_flux, 1)
    item(with_flux, "Layer weights").click()
    field.fill("te=0")
    field.press("Enter")
    open_presets(with_flux, 1)
    preset(with_flux, "All layers as they are").click()
    front_end.wait_until(lambda: "blocks" not in with_flux.value[1])


def test_presets_are_in_the_menu_of_the_loader(front_end, with_flux, mode, picture):
    front_end.load_new(DOUBLE)
    open_node_menu(front_end, LOADER)
    choose_in_menu(front_end, "Layer weight presets")
    expect(presets(with_flux)).to_be_visible()
    preset(with_flux, "Double blocks 7 to 12").click()
    text = "double_blocks=0, double_blocks.7-12=1"
    front_end.wait_until(lambda: front_end.value(LOADER, "layer_weights") == text)
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: front_end.value(LOADER, "layer_weights") == "")


@pytest.fixture
def with_words(front_end: FrontEnd, server, mode: str) -> Iterator[Stack]:
    """A stack with a file that has trigger words in its header, and others beside it."""
    path = server.base / "models" / "loras" / WORDS
    write_hollow(path, flux(), {"modelspec.trigger_phrase": "ohwx man"}, "F16")
    beside = path.with_suffix(".metadata.json")
    beside.write_text(json.dumps({"civitai": {"trainedWords": ["ohwx man", "zzz"]}}), "utf-8")
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    stack = opened(front_end, [row(WORDS), row(FILES[0])])
    yield stack
    path.unlink()
    beside.unlink()


def test_trigger_words_are_copied(front_end, with_words):
    open_menu(with_words, 0)
    item(with_words, "Copy trigger words").click()
    toast = with_words.page.get_by_role("alert").filter(has_text="Copied")
    expect(toast).to_contain_text("ohwx man, zzz")
    assert with_words.page.evaluate("navigator.clipboard.readText()") == "ohwx man, zzz"
    open_menu(with_words, 1)
    item(with_words, "Copy trigger words").click()
    expect(with_words.page.get_by_role("alert").filter(has_text="No trigger words")).to_be_visible()


def test_details_tell_the_file_before_anything_ran(front_end, with_words, picture):
    open_menu(with_words, 0)
    item(with_words, "Details").click()
    dialog = with_words.page.get_by_role("dialog", name=f"Details of {WORDS}")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("button", name="ohwx man")).to_be_visible()
    expect(dialog.locator(".locksmith-badge")).to_have_text(re.compile(r"0/57"))
    expect(dialog).to_contain_text("FLUX.1")
    expect(dialog.get_by_role("table").filter(has_text="double_blocks").first).to_be_attached()
    with_words.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_a_file_is_shown_in_the_library(front_end, with_words, picture):
    page = with_words.page
    open_menu(with_words, 0)
    item(with_words, "Show in library").click()
    library = page.get_by_role("region", name="LoRA library")
    details = library.get_by_role("region", name="Details of row_words")
    expect(details).to_be_visible()
    chosen = library.locator(".shelf-list-row[aria-selected=true]")
    expect(chosen).to_contain_text("row_words")
    library.get_by_role("searchbox").fill("nothing is called so")
    expect(chosen).to_have_count(0)
    open_menu(with_words, 1)
    item(with_words, "Show in library").click()
    expect(chosen).to_contain_text(FILES[0].removesuffix(".safetensors"))
    expect(library.get_by_role("searchbox")).to_have_value("")
    page.get_by_role("button", name="LoRA library", exact=True).click()
    expect(library).to_have_count(0)


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_text_of_the_menu_stands_out(front_end, stack, picture, palette):
    front_end.set("Comfy.ColorPalette", palette)
    for each in open_menu(stack, 0).get_by_role("menuitem").all():
        off = each.get_attribute("aria-disabled") == "true"
        assert front_end.contrast(each) > (3 if off else 4.5)
    stack.page.keyboard.press("Escape")
