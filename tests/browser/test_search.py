"""What a person types into the front end's search for nodes finds ours first, among all nodes of
the host.
"""

from __future__ import annotations

import pytest
from front_end import FrontEnd
from playwright.sync_api import expect

FIRST = {
    "fix lora": "Load and Fix LoRA",
    "lora block weight": "Load and Fix LoRA",
    "trigger words": "Load and Fix LoRA",
    "lora stack": "Load and Fix LoRA (stack)",
    "power lora loader": "Load and Fix LoRA (stack)",
    "merge lora": "Merge LoRAs",
    "inspect lora": "Inspect LoRA Keys",
    "lora not working": "Inspect LoRA Keys",
    "extract lora": "Extract LoRA",
    "save lora": "Save LoRA",
    "apply lora": "Apply LoRA",
    "nunchaku lora": "Repaired LoRA Path",
}


@pytest.fixture(scope="module", autouse=True)
def search(front_end: FrontEnd) -> None:
    front_end.run_command("Workspace.SearchBox.Toggle")


@pytest.mark.parametrize("typed", FIRST)
def test_first_of_what_is_found(front_end, typed, picture):
    """Words that the host's own loaders begin with find these first: it ranks by how much they are
    used.
    """
    dialog = front_end.page.get_by_role("dialog")
    dialog.locator("input[role=combobox]").fill(typed)
    first = front_end.page.get_by_test_id("result-item").first
    expect(first).to_contain_text(FIRST[typed])
    title = first.inner_text().split("\n")[0]
    assert title == FIRST[typed]
