"""The server goes away while the page is open and comes back: whatever was asked for meanwhile
comes by itself.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import comfy_server
import pytest
from devtools import steps
from front_end import LOADER, FrontEnd
from playwright.sync_api import expect
from tiny_models import KOHYA_LORA

AWAY = "The server did not answer"


@pytest.fixture(scope="module")
def server(comfyui_path, tiny_models_folder, tmp_path_factory) -> Iterator[comfy_server.Server]:
    """A server of this module's own, that it stops and starts again."""
    base = comfy_server.prepare_base(tmp_path_factory.mktemp("away"), steps.ROOT)
    shutil.copytree(tiny_models_folder, base / "models", dirs_exist_ok=True)
    with comfy_server.Server(
        Path(sys.executable), comfyui_path, base, base / "server.log"
    ) as running:
        yield running


@pytest.fixture
def away(front_end: FrontEnd, server):
    """go(), which stops the server, and come_back()."""
    port = int(server.url.rpartition(":")[2])

    class Away:
        def go(self) -> None:
            gone = front_end.page.evaluate_handle("""() => {
                    const gone = {};
                    app.api.addEventListener("reconnecting", () => { gone.is = true; }, { once: true });
                    return gone;
                }""")
            server.stop()
            front_end.wait_until(lambda: gone.evaluate("gone => gone.is === true"))

        def come_back(self) -> None:
            server.start(port)

    yield Away()
    if server.process is None:
        server.start(port)
    front_end.said.clear()  # the host tells the console of every request that failed


def test_library_that_was_opened_meanwhile(front_end, server, away, picture):
    away.go()
    front_end.page.get_by_role("button", name="LoRA library", exact=True).click()
    library = front_end.page.get_by_role("region", name="LoRA library")
    expect(library.get_by_role("alert")).to_contain_text(AWAY)
    library.get_by_role("button", name="Try again").click()
    expect(library.get_by_role("alert")).to_contain_text(AWAY)
    away.come_back()
    count = len(list((server.base / "models" / "loras").rglob("*.safetensors")))
    expect(library.get_by_role("status").first).to_have_text(f"{count} LoRAs")
    expect(library.get_by_role("alert")).to_have_count(0)


def test_library_and_details_that_were_open(front_end, server, away):
    library = front_end.page.get_by_role("region", name="LoRA library", exact=True)
    rows = library.locator(".shelf-list-row")
    expect(rows.first).to_be_visible()
    away.go()
    library.get_by_role("button", name="Read the folders again").click()
    expect(library.locator(".shelf-fault")).to_contain_text(AWAY)
    rows.first.click()
    details = library.get_by_role("region", name="Details of")
    expect(details).to_contain_text(AWAY)
    away.come_back()
    expect(details.get_by_role("heading", name="What it is")).to_be_visible()
    expect(library.locator(".shelf-fault")).to_have_text("")
    front_end.page.get_by_role("button", name="LoRA library", exact=True).click()
    expect(library).to_have_count(0)


def test_preview_details_and_list_of_files(front_end, away, picture):
    front_end.load_new()
    front_end.run()
    expect(front_end.reports).to_have_count(2)
    front_end.page.evaluate(
        "() => { const stack = LiteGraph.createNode('LocksmithLoRAStack');"
        " app.rootGraph.add(stack); stack.pos = [40, 500]; }"
    )
    stack = front_end.page.get_by_role("region", name="LoRAs of Load and Fix LoRA (stack)")
    expect(stack).to_be_visible()
    away.go()
    front_end.report("Inspect LoRA Keys").get_by_role("button", name="Details").click()
    front_end.page.keyboard.press("Escape")
    front_end.report("Load and Fix LoRA").get_by_role("button", name="Details").click()
    dialog = front_end.page.get_by_role("dialog", name="Details of")
    expect(dialog).to_contain_text(AWAY)
    stack.get_by_role("button", name="Add LoRA").dispatch_event("click")
    expect(front_end.page.get_by_text(AWAY).locator("visible=true").first).to_be_visible()
    front_end.change(LOADER, "lora_name", KOHYA_LORA)
    preview = front_end.page.get_by_role("status", name="File of Load and Fix LoRA")
    expect(preview).to_contain_text(AWAY)
    away.come_back()
    expect(preview).to_contain_text("10/10")
    expect(dialog.get_by_role("heading", name="The file")).to_be_visible()
    front_end.page.keyboard.press("Escape")
    stack.get_by_role("button", name="Add LoRA").click()
    expect(front_end.page.get_by_role("dialog").get_by_role("combobox")).to_be_focused()
    front_end.page.keyboard.press("Escape")
