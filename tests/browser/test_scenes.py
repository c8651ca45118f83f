"""All that this pack draws: axe-core finds no serious fault in it, in both ways to draw nodes and
both themes, and nothing is cut off on a small screen, in both languages.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from devtools.front_end import AXE, axe_at_hand
from front_end import FrontEnd
from scenes import (
    ON_NODES,
    ON_THE_SIDE,
    PALETTES,
    SIZES,
    STACK,
    Scene,
    files_of_scenes,
    shown_one_after_another,
    small_or_large,
)

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
# Which parts are cut off, where nobody can scroll to the rest and no dots tell of it; buttons whose
# middle is out of sight; and parts of a stack's rows that do not stand below each other.
CUT = """(parts) => {
    const shown = (part) => part.checkVisibility({ visibilityProperty: true }) && part.getClientRects().length;
    const name = (part) => `${part.tagName} ${part.className} ${part.textContent.slice(0, 60)}`;
    const told = [];
    const clipOf = (part) => {
        for (let at = part.parentElement; at; at = at.parentElement) {
            const { overflowX } = getComputedStyle(at);
            if (overflowX === "auto" || overflowX === "scroll") return null;
            if (overflowX !== "visible") return at.getBoundingClientRect();
        }
        return null;
    };
    for (const root of document.querySelectorAll(parts)) for (const part of root.querySelectorAll("*")) {
        if (!shown(part) || getComputedStyle(part).clipPath !== "none") continue;
        if (!part.textContent.trim() && !part.matches("button, input, select")) continue;
        const style = getComputedStyle(part), box = part.getBoundingClientRect(), clip = clipOf(part);
        const isCut = style.overflowX === "hidden" && style.textOverflow !== "ellipsis" && part.scrollWidth > part.clientWidth + 1;
        if (isCut && style.display !== "inline") told.push(`cut off inside: ${name(part)}`);
        if (clip && (box.right > clip.right + 1 || box.left < clip.left - 1)) told.push(`over the edge: ${name(part)}`);
        const isOut = box.right > innerWidth + 1 || box.left < -1;
        if (part.tagName === "BUTTON" && root.matches("dialog, [popover], .locksmith-library, .locksmith-offer") && isOut) told.push(`out of sight: ${name(part)}`);
    }
    for (const list of document.querySelectorAll(".locksmith-stack-list")) {
        for (const kind of ["name", "model", "clip", "blocks", "more", "remove"]) {
            const columns = [...list.querySelectorAll(`.locksmith-stack-${kind}`)].filter(shown).map((part) => part.getBoundingClientRect().left);
            if (Math.max(...columns) - Math.min(...columns) > 1) told.push(`not below each other: ${kind} ${columns}`);
        }
    }
    return told;
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


def test_nothing_is_cut_off_on_a_small_screen(browser, server, front_end, files, mode):
    """Each language in one of the ways to draw nodes, as all scenes take their time."""
    shown = {"size": SIZES[0], "palette": "dark", "language": "zh" if mode == "classic" else "en"}
    cut = []
    with small_or_large(browser, server.url, **shown) as fresh:
        for scene in shown_one_after_another(fresh, ON_NODES):
            fresh.settle()
            cut += [f"{scene.name}: {part}" for part in fresh.page.evaluate(CUT, scene.parts)]
    assert not cut, "\n".join(cut)


def test_what_is_cut_off_would_be_found(front_end, files, mode):
    next(scene for scene in ON_NODES if scene.name == "stack").show(front_end)
    front_end.page.add_style_tag(
        content=".locksmith-stack-row { grid-template-columns: auto !important; width: 150% }"
    )
    told = front_end.page.evaluate(CUT, STACK)
    front_end.page.evaluate("document.head.querySelector('style:last-of-type').remove()")
    assert {line.split(":")[0] for line in told} >= {"over the edge", "not below each other"}
