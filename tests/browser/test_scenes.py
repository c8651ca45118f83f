"""All that this pack draws: axe-core finds no serious fault in it, in both ways to draw nodes and
both themes. With LOCKSMITH_PICTURES=FOLDER each scene is also drawn into that folder, small and
large, in both languages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from devtools.front_end import AXE, axe_at_hand
from front_end import FrontEnd
from scenes import ON_NODES, ON_THE_SIDE, SCENES, Scene, files_of_scenes

PALETTES, LANGUAGES = ("dark", "light"), ("en", "zh")
SIZES = ((1024, 700), (1920, 1080))
PICTURES = os.environ.get("LOCKSMITH_PICTURES")
GRAVE = ("serious", "critical")
LEAST_CONTRAST = 4.5  # WCAG 2.2, AA
# What axe finds in the parts of the page that are named, as [impact, rule, element, why]; and texts
# whose contrast it cannot tell: on nodes, as these lie over a canvas.
JUDGE = """async (parts) => {
    const include = [...document.querySelectorAll(parts)];
    if (!include.length) throw new Error(`nothing is ${parts}`);
    const { violations, passes, incomplete } = await axe.run({ include }, { resultTypes: ["violations", "incomplete"] });
    const found = violations.flatMap(({ impact, id, nodes }) => nodes.map(({ html, failureSummary }) => [impact, id, html, failureSummary]));
    const untold = incomplete.filter(({ id }) => id === "color-contrast").flatMap(({ nodes }) => nodes);
    return { found, passed: passes.map(({ id }) => id), untold: untold.map(({ target, html }) => [target[0], html]) };
}"""


@pytest.fixture(scope="module")
def files(front_end: FrontEnd, server) -> Iterator[None]:
    with files_of_scenes(front_end, server.base / "models" / "loras"):
        yield


@pytest.fixture(scope="module")
def axe() -> str:
    script = axe_at_hand()
    if script is None:
        pytest.fail(
            f"There is no axe-core {AXE} here. 'python dev.py test' gets it.", pytrace=False
        )
    return script.read_text("utf-8")


@pytest.fixture(autouse=True)
def as_before(front_end: FrontEnd) -> Iterator[None]:
    """Closes what a scene opened, and goes back to the theme and the language of other tests."""
    yield
    for _ in range(2):
        front_end.page.keyboard.press("Escape")
    front_end.set("Comfy.ColorPalette", "dark")
    front_end.set("Comfy.Locale", "en")


def grave_faults(front_end: FrontEnd, axe: str, parts: str) -> list[str]:
    front_end.page.evaluate(axe)
    told = front_end.page.evaluate(JUDGE, parts)
    assert told["passed"], "axe judged nothing"
    faint = [
        ["serious", "color-contrast", html, str(contrast)]
        for place, html in told["untold"]
        if (contrast := front_end.contrast(front_end.page.locator(place).first)) < LEAST_CONTRAST
    ]
    return ["\n".join(fault) for fault in (*told["found"], *faint) if fault[0] in GRAVE]


def judge(front_end: FrontEnd, axe: str, scene: Scene) -> None:
    scene.show(front_end)
    for palette in PALETTES:
        front_end.set("Comfy.ColorPalette", palette)
        assert not grave_faults(front_end, axe, scene.parts), f"{scene.name}, {palette}"


@pytest.mark.parametrize("scene", ON_NODES, ids=lambda scene: scene.name)
def test_what_nodes_show_is_accessible(front_end, files, axe, mode, scene, picture):
    judge(front_end, axe, scene)


@pytest.mark.parametrize("scene", ON_THE_SIDE, ids=lambda scene: scene.name)
def test_the_library_is_accessible(front_end, files, axe, scene, picture):
    judge(front_end, axe, scene)


def test_a_fault_would_be_found(front_end, files, axe, mode):
    ON_NODES[0].show(front_end)
    front_end.page.evaluate(
        """() => {
            const [panel] = document.querySelectorAll(".locksmith-panel");
            panel.insertAdjacentHTML("afterbegin", "<button></button><p style='color: #777; background: #888'>Faint</p>");
        }"""
    )
    rules = {fault.split("\n")[1] for fault in grave_faults(front_end, axe, ".locksmith-panel")}
    assert {"button-name", "color-contrast"} <= rules


@pytest.mark.skipif(
    not PICTURES, reason="pictures are drawn where LOCKSMITH_PICTURES names a folder"
)
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_scenes_are_drawn(browser, server, front_end, mode, language, palette, size):
    """In a browser of its own each time, without what earlier scenes have left open."""
    folder = Path(PICTURES or "") / f"{mode} {palette} {language} {size[0]}"
    folder.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    fresh = FrontEnd(context.new_page(), server.url)
    fresh.open()
    fresh.set("Comfy.ColorPalette", palette)
    fresh.set("Comfy.Locale", language)
    fresh.open()
    with files_of_scenes(fresh, server.base / "models" / "loras"):
        for scene in SCENES:
            scene.show(fresh)
            fresh.page.screenshot(path=folder / f"{scene.name}.png")
            for _ in range(2):
                fresh.page.keyboard.press("Escape")
    context.close()
