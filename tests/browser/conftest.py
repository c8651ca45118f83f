"""A headless browser with the server's real front end in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import comfy_server
import pytest
from devtools import steps
from devtools.browser import browser_at_hand
from front_end import FrontEnd
from playwright.sync_api import Browser, Error, sync_playwright

CLASSIC, VUE = "classic", "vue"
# Without these Chromium calls its makers' hosts at every start.
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running browser; only for a module, because asyncio.run() does not work
    beside playwright.
    """
    try:
        found = browser_at_hand()
    except steps.Fault as fault:
        pytest.fail(str(fault), pytrace=False)
    if found is None:
        pytest.fail(
            "There is no Chromium, Chrome or Edge here. Install one, or set CHROMIUM_PATH to one.",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        try:
            running = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        except Error as fault:
            pytest.fail(f"The browser {found} does not start: {fault.message}", pytrace=False)
        yield running
        running.close()


@pytest.fixture(scope="module", autouse=True)
def _shelves(shelves_put_back: None) -> None:
    """Every module here leaves the LoRA files as it found them."""


@pytest.fixture(scope="module")
def front_end(browser: Browser, server: comfy_server.Server) -> Iterator[FrontEnd]:
    """The front end, open."""
    context = browser.new_context(
        viewport={"width": 1400, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    front_end = FrontEnd(context.new_page(), server.url)
    front_end.open()
    yield front_end
    context.close()


@pytest.fixture(scope="module", params=[CLASSIC, VUE])
def mode(request: pytest.FixtureRequest, front_end: FrontEnd) -> str:
    """Which of the front end's two ways to draw nodes is on."""
    front_end.set("Comfy.VueNodes.Enabled", request.param == VUE)
    return request.param


@pytest.fixture(autouse=True)
def nothing_to_complain_of(front_end: FrontEnd) -> Iterator[None]:
    """Every test fails if the console was told a warning or an error meanwhile."""
    yield
    said, front_end.said = front_end.said, []
    assert not said


@pytest.fixture
def lora_file(server: comfy_server.Server) -> Iterator[Callable[[str, bytes], None]]:
    """Writes a file among the server's LoRA files, and removes it after the test."""
    written = set()

    def write(name: str, content: bytes) -> None:
        path = server.base / "models" / "loras" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.add(path)

    yield write
    for path in written:
        path.unlink()
        for folder in path.parents:
            if folder.name == "loras" or any(folder.iterdir()):
                break
            folder.rmdir()


@pytest.fixture
def picture(front_end: FrontEnd, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """A picture of the page as the test left it, among the test's temporary files."""
    yield
    front_end.page.screenshot(path=tmp_path / f"{request.node.name}.png")
