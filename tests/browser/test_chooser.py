"""The list a stack's file is chosen from, in the real front end: the best first, folder by folder,
and what fits the model.
"""

from __future__ import annotations

import re
import shutil

import pytest
from front_end import FrontEnd
from hollow_files import write_hollow
from playwright.sync_api import Locator, expect
from shelves import flux, wan
from stacks import STACK, Stack, opened, row
from tiny_models import BROKEN_LORA

FOLDER = "chosen"
FILES = {
    "flux_600.safetensors": flux,
    "anime/big_flux_60.safetensors": flux,
    "anime/flux60x.safetensors": flux,
    "old/flux 160.safetensors": flux,
    "old/for_wan flux.safetensors": wan,
}


@pytest.fixture(scope="module")
def shelf(front_end: FrontEnd, server):
    """Files in folders; some are for another model than the tiny FLUX."""
    loras = server.base / "models" / "loras"
    for name, shapes in FILES.items():
        path = loras / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_hollow(path, shapes(4), {}, "F16")
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    yield
    shutil.rmtree(loras / FOLDER)


@pytest.fixture
def stack(front_end: FrontEnd, shelf: None, mode: str) -> Stack:
    return opened(front_end, [row(BROKEN_LORA)])


def options(stack: Stack) -> list[str]:
    """The files in the list, without the folder they all are in."""
    listed = stack.dialog.get_by_role("option").all()
    return [entry.get_attribute("title").removeprefix(f"{FOLDER}/") for entry in listed]


def fits(stack: Stack) -> Locator:
    return stack.dialog.get_by_role("button", name="Fits the model")


def test_whole_words_stand_first(stack):
    stack.add.click()
    expect(stack.dialog.get_by_role("combobox")).to_be_focused()
    stack.page.keyboard.type("flux 60")
    assert options(stack) == [
        "anime/big_flux_60.safetensors",
        "anime/flux60x.safetensors",
        "flux_600.safetensors",
        "old/flux 160.safetensors",
    ]
    stack.page.keyboard.press("Enter")
    assert stack.names[1] == f"{FOLDER}/anime/big_flux_60.safetensors"


def test_files_stand_under_their_folders(stack, picture):
    stack.add.click()
    expect(stack.dialog.get_by_role("combobox")).to_be_focused()
    groups = stack.dialog.get_by_role("group")
    names = [group.get_attribute("aria-label") for group in groups.all()]
    assert names == ["In no folder", *sorted(names[1:], key=str.casefold)]
    here = [name for name in names if name.startswith(f"{FOLDER}/")]
    assert here == [f"{FOLDER}/", f"{FOLDER}/anime/", f"{FOLDER}/old/"]
    inside = groups.nth(names.index(here[1])).get_by_role("option").all_inner_texts()
    assert inside == ["big_flux_60", "flux60x"]
    assert len(options(stack)) == len(set(options(stack)))
    stack.dialog.get_by_text(f"{FOLDER}/anime/", exact=True).click()
    expect(stack.dialog).to_be_visible()
    assert len(stack.value) == 1, "a heading was chosen"
    stack.dialog.get_by_role("combobox").focus()
    files = options(stack)
    for _ in files:
        stack.page.keyboard.press("ArrowDown")
    last = stack.dialog.get_by_role("option", selected=True)
    expect(last).to_have_attribute("title", re.compile(re.escape(files[-1])))
    expect(last).to_be_in_viewport()
    for _ in files:
        stack.page.keyboard.press("ArrowUp")
    expect(stack.dialog.get_by_text("In no folder")).to_be_in_viewport()
    stack.page.keyboard.press("Escape")


def test_what_is_for_another_model_can_be_left_out(front_end, stack, picture):
    expect(stack.rows.first.get_by_role("img")).to_have_text(re.compile("22"))
    front_end.requests.clear()
    stack.add.click()
    expect(stack.dialog.get_by_role("combobox")).to_be_focused()
    everything = set(options(stack))
    assert "old/for_wan flux.safetensors" in everything
    stack.page.keyboard.press("Tab")
    expect(fits(stack)).to_be_focused()
    stack.page.keyboard.press(" ")
    expect(fits(stack)).to_have_attribute("aria-pressed", "true")
    gone = stack.dialog.get_by_role("option", name="for_wan flux")
    expect(gone).to_have_count(0)
    left = set(options(stack))
    assert BROKEN_LORA in left and {"flux_600.safetensors", "old/flux 160.safetensors"} <= left
    untold = stack.dialog.get_by_role("option").filter(has_text="not known")
    expect(untold.filter(has_text="flux_600")).to_have_count(1)
    expect(untold.filter(has_text=BROKEN_LORA.split(".")[0])).to_have_count(0)
    expect(stack.dialog.get_by_role("status")).to_have_text(
        re.compile(r"^\d+ of \d+\. Whether \d+ of these fit is not known\. Hold Shift")
    )
    asked = [address for address in front_end.requests if "/lora_locksmith/file" in address]
    assert not asked, "files were asked for one by one"
    stack.page.keyboard.press("Shift+Tab")
    stack.page.keyboard.type("for_wan")
    expect(stack.dialog.get_by_role("status")).to_contain_text("No LoRA that fits the model")
    stack.page.keyboard.press("Escape")

    stack.add.click()
    expect(fits(stack)).to_have_attribute("aria-pressed", "true")
    expect(gone).to_have_count(0)
    fits(stack).click()
    expect(gone).to_have_count(1)
    assert set(options(stack)) == everything
    stack.page.keyboard.press("Escape")
    expect(stack.dialog).to_have_count(0)


def test_without_a_model_nothing_is_said_of_fitting(front_end, stack):
    front_end.page.evaluate(
        "node => { app.rootGraph.getNodeById(node).disconnectInput(0); }", STACK
    )
    stack.add.click()
    expect(stack.dialog.get_by_role("option").first).to_be_visible()
    expect(fits(stack)).to_have_count(0)
    stack.page.keyboard.press("Escape")
