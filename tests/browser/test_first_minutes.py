"""What somebody who knows nothing of the pack looks for first is few clicks away, by what is to be
seen: why a file did nothing, its trigger words, a folder that is repaired, two files merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import comfy_server
import pytest
from front_end import FrontEnd, is_in_sight
from node_menu import choose_in_menu, open_node_menu
from playwright.sync_api import Locator, Page, expect
from safetensors import safe_open
from shelves import write_kind
from swapping import LOADER_INPUTS, LOADER_OUTPUTS, Link, sampled
from tiny_models import BROKEN_LORA, KOHYA_LORA

LOADER = 3  # the stock loader of the workflow
WORDS = "ohwx woman"
NODE = "app.rootGraph.nodes.find((node) => node.type === '{}')"


class Hand:
    """Clicks on what is to be seen, and counts."""

    def __init__(self, page: Page):
        self.page, self.clicks = page, 0

    def on(self, part: Locator, **how) -> None:
        part.click(**how)
        self.clicks += 1

    def button(self, name: str, *, within: Locator | None = None, **how) -> None:
        self.on((within or self.page).get_by_role("button", name=name, exact=True).first, **how)


@pytest.fixture
def hand(front_end: FrontEnd, mode: str) -> Hand:
    """On a workflow with the stock loader, which loads nothing of the file."""
    nodes = [(LOADER, "LoraLoader", LOADER_INPUTS, LOADER_OUTPUTS, [BROKEN_LORA, 1.0, 1.0], {})]
    links = [
        Link(1, 0, LOADER, "model", "MODEL"),
        Link(2, 0, LOADER, "clip", "CLIP"),
        Link(LOADER, 1, 5, "clip", "CLIP"),
        Link(LOADER, 0, 8, "model", "MODEL"),
    ]
    front_end.load(sampled(nodes, links, "first minutes"))
    front_end.settle()
    return Hand(front_end.page)


@pytest.fixture
def folder(front_end: FrontEnd, server, mode: str) -> Iterator[Path]:
    """Two broken files in a folder of which the library knows no repaired copies from before."""
    place = server.base / "models" / "loras" / f"my {mode} downloads"
    for name in ("anna v2 (final)", "[2024] style!"):
        metadata = {"modelspec.trigger_phrase": WORDS}
        write_kind(place / f"{name}.safetensors", "broken", 4, metadata)
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    yield place
    for file in place.iterdir():
        file.unlink()
    place.rmdir()


def double_click(front_end: FrontEnd, x: float, y: float) -> None:
    """On the canvas, which tells a double click by the time between two clicks: more than none,
    as playwright's often is, less than the setting's 0.3 s, which a busy machine lets pass.
    """
    setting = "Comfy.Pointer.DoubleClickTime"
    usual = front_end.setting(setting)
    front_end.set(setting, 1000 * comfy_server.PATIENCE)
    front_end.page.mouse.dblclick(x, y, delay=20)
    front_end.set(setting, usual)


def replaced(front_end: FrontEnd, hand: Hand) -> Locator:
    """Two clicks: the loader's menu, and what it offers. What the new node tells then."""
    open_node_menu(front_end, LOADER)
    choose_in_menu(front_end, "Replace with Load and Fix LoRA")
    hand.clicks += 2
    return front_end.page.get_by_role("status", name="File of Load and Fix LoRA")


def test_why_a_file_did_nothing(front_end, hand, picture):
    told = replaced(front_end, hand)
    expect(told.locator(".locksmith-badge")).to_have_text("\u2713 22/22")
    assert is_in_sight(told.locator(".locksmith-facts"), "stock loader: 0")
    hand.button("Details", within=told)
    details = front_end.page.get_by_role("dialog", name="Details of")
    expect(details).to_contain_text("22 layers load that the stock loader leaves out")
    expect(details).to_contain_text("SimpleTuner (PEFT wrapper bug)")
    front_end.page.keyboard.press("Escape")
    assert hand.clicks <= 3


def test_which_words_trigger_it(front_end, folder, hand, picture):
    front_end.change(LOADER, "lora_name", f"{folder.name}/anna v2 (final).safetensors")
    told = replaced(front_end, hand)
    hand.button(f"Copy the trigger words: {WORDS}", within=told)
    front_end.wait_until(lambda: front_end.page.evaluate("navigator.clipboard.readText()") == WORDS)
    assert hand.clicks <= 3


def test_a_folder_is_repaired(front_end, folder, hand, picture):
    hand.button("LoRA library")
    library = front_end.page.get_by_role("region", name="LoRA library")
    hand.button(f"Repair the files in {folder.name}", within=library)
    repair = library.get_by_role("region", name="Repair LoRAs: 2")
    hand.button("Repair 2", within=repair)
    expect(repair.get_by_role("status")).to_have_text("2 of 2 are repaired.")
    for name in ("anna v2 (final)", "[2024] style!"):
        assert (folder / f"{name}.comfyui.safetensors").is_file()
    assert hand.clicks <= 3
    hand.button("Close the repair", within=library)
    hand.button("LoRA library")


def test_two_files_are_merged(front_end, server, hand, picture):
    page = front_end.page
    double_click(front_end, 300, 130)  # on the canvas, where nothing is
    hand.clicks += 2
    page.get_by_role("dialog").locator("input[role=combobox]").fill("merge lora")
    hand.on(page.get_by_test_id("result-item").first)
    page.wait_for_function(NODE.format("LocksmithMergeLoRAs"))
    front_end.settle()
    page.mouse.move(310, 140)
    page.mouse.click(300, 130)  # until then it follows the mouse
    hand.clicks += 1
    hand.button("Add LoRA")
    chooser = page.get_by_role("dialog", name="Add LoRA")
    expect(chooser).to_contain_text("Hold Shift to choose several.")
    hand.on(chooser.get_by_role("option", name=Path(BROKEN_LORA).stem), modifiers=["Shift"])
    hand.on(chooser.get_by_role("option", name=Path(KOHYA_LORA).stem))
    hand.button("Save as a file")
    front_end.run()
    hand.clicks += 1
    written = server.base / "models" / "loras" / "locksmith" / "merged.safetensors"
    with safe_open(written, "pt") as file:
        assert len(file.keys())
    assert hand.clicks <= 9
    hand.button("Save as a file")  # there is one already
    kinds = page.evaluate("app.rootGraph.nodes.map(({ type }) => type)")
    assert kinds.count("LocksmithSaveLoRA") == 1
