"""The strength that another tool keeps beside a file, offered in the real front end, drawn the
classic way and the Vue way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from front_end import FrontEnd
from hollow_files import write_hollow
from playwright.sync_api import expect
from shelves import flux
from stacks import FILES, Stack, opened, row

ADVISED = "advised.safetensors"


@pytest.fixture
def stack(front_end: FrontEnd, server, mode: str) -> Iterator[Stack]:
    """A stack with a file for which LoRA Manager's usage tips say 0.8, and one without."""
    path = server.base / "models" / "loras" / ADVISED
    write_hollow(path, flux(), {}, "F16")
    beside = path.with_suffix(".metadata.json")
    beside.write_text(json.dumps({"usage_tips": json.dumps({"strength": 0.8})}), "utf-8")
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    yield opened(front_end, [row(ADVISED), row(FILES[0])])
    path.unlink()
    beside.unlink()


def test_a_strength_is_offered_and_taken_by_one_click(front_end, stack, picture):
    offer = stack.part(0, "Take 0.8 as strength")
    expect(offer).to_have_text("0.8?")
    expect(offer).to_have_attribute("title", re.compile("advised.metadata.json"))
    assert front_end.contrast(offer) > 4.5
    assert stack.value == [row(ADVISED), row(FILES[0])], "it was taken unasked"
    expect(stack.part(1, "Take")).to_have_count(0)
    offer.click()
    assert stack.value[0]["strength"] == 0.8
    expect(offer).to_be_hidden()
    stack.page.evaluate("document.activeElement.blur()")
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: stack.value[0]["strength"] == 1)
    expect(offer).to_be_visible()


def test_the_offer_goes_with_its_file(stack):
    expect(stack.part(0, "Take 0.8")).to_be_visible()
    stack.part(0, "Move").press("Alt+ArrowDown")
    expect(stack.part(1, "Take 0.8")).to_be_visible()
    expect(stack.part(0, "Take 0.8")).to_have_count(0)
    stack.part(1, "Remove").click()
    expect(stack.part(0, "Take 0.8")).to_have_count(0)


def test_details_tell_it_too(stack, picture):
    expect(stack.part(0, "Take 0.8")).to_be_visible()
    stack.part(0, "What to do with").click()
    stack.page.get_by_role("menuitem", name="Details").click()
    dialog = stack.page.get_by_role("dialog", name=f"Details of {ADVISED}")
    told = dialog.get_by_role("row").filter(has_text="Recommended strength")
    expect(told).to_contain_text("0.8, says advised.metadata.json")
    stack.page.keyboard.press("Escape")
