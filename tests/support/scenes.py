"""Everything this pack draws in the front end, one scene after another, in any language: for what
looks at all of it, such as the tests of accessibility and pictures of each.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from front_end import INSPECT, LOADER, FrontEnd, node, workflow_of_both_nodes
from hollow_files import write_hollow
from pairs import write_pair
from playwright.sync_api import Browser, Locator, expect
from safetensors.torch import save
from shelves import SHARED, flux, wan, write_kind
from stacks import row, workflow
from tiny_models import BROKEN_LORA, FLUX, KOHYA_LORA, kohya_lora

PALETTES, LANGUAGES = ("dark", "light"), ("en", "zh")
SIZES = ((1024, 700), (1920, 1080))  # of the page, in pixels
FOLDER = "scenes"  # of the files here in the loras folder
PARTLY, OTHER, DAMAGED, EMPTY, LONG = (
    f"{FOLDER}/{name}.safetensors"
    for name in (
        "in part",
        "wan_of_another_model",
        "damaged",
        "no lora in it",
        "a_rather_long_name_of_a_file-with_dashes_and_000002500_steps_v2",
    )
)
PAIRED = f"{FOLDER}/\u6c34\u5f69 & #1"  # a folder as users name them; its files have text encoders
PAIR = f"{PAIRED}/first of two.safetensors", f"{PAIRED}/second of two.safetensors"
GONE = f"{FOLDER}/gone.safetensors"
WORDS = {"modelspec.trigger_phrase": "ohwx woman, watercolor", "ss_output_name": "scene"}


@dataclass(frozen=True)
class Scene:
    """`show` makes the page show it; `parts` are the CSS selectors of what of it is ours."""

    name: str
    show: Callable[[FrontEnd], None]
    parts: str


def write_files(loras: Path) -> None:
    """The LoRA files that the scenes show."""
    place = loras / FOLDER
    place.mkdir(exist_ok=True)
    tensors = kohya_lora()
    odd = {key.replace("_0_", "_77_", 1): value.clone() for key, value in list(tensors.items())[:6]}
    (loras / PARTLY).write_bytes(save({**tensors, **odd}, WORDS))
    write_hollow(loras / OTHER, wan(8), {"modelspec.trigger_phrase": "slow motion"})
    (loras / DAMAGED).write_bytes(b"no LoRA at all")
    write_hollow(loras / EMPTY, {"some.other.weight": (4, 4)}, {})
    shutil.copy(loras / BROKEN_LORA, loras / LONG)
    for number in range(3):
        write_kind(place / "styles" / f"style number {number}.safetensors", "broken", 4, WORDS)
    write_kind(place / "styles" / "sound.safetensors", "flux", 16, WORDS)
    write_kind(place / "styles" / "partly.safetensors", "partly", 4, WORDS)
    write_kind(place / "people" / "sd15 person.safetensors", "sd15", 32)
    write_hollow(place / "people" / "shared.safetensors", SHARED)
    write_hollow(place / "people" / "flux.safetensors", flux(8), WORDS)
    (loras / PAIRED).mkdir(exist_ok=True)
    write_pair(*(loras / name for name in PAIR))


@contextmanager
def files_of_scenes(front_end: FrontEnd, loras: Path) -> Iterator[None]:
    write_files(loras)
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    yield
    shutil.rmtree(loras / FOLDER, ignore_errors=True)
    shutil.rmtree(loras / "repaired", ignore_errors=True)


def shown(front_end: FrontEnd, parts: str, text: str = "") -> Locator:
    found = front_end.page.locator(parts).first
    expect(found).to_be_visible()
    if text:
        expect(found).to_contain_text(text)
    return found


def before_a_run(front_end: FrontEnd) -> None:
    front_end.load_new(KOHYA_LORA)
    shown(front_end, ".locksmith-status .locksmith-badge", "10")


def of(name: str) -> Callable[[FrontEnd], None]:
    """A loader with a file, before a run."""

    def show(front_end: FrontEnd) -> None:
        front_end.load_new(name)
        expect(front_end.page.locator(".locksmith-status .locksmith-top")).to_have_count(2)

    return show


def after_a_run(front_end: FrontEnd) -> None:
    front_end.load_new(BROKEN_LORA)
    front_end.run()
    expect(front_end.reports).to_have_count(2)


def after_a_run_in_part(front_end: FrontEnd) -> None:
    front_end.load_new(PARTLY)
    front_end.run()
    expect(front_end.reports).to_have_count(2)


def failed(front_end: FrontEnd) -> None:
    front_end.load_new(PARTLY)
    front_end.change(LOADER, "on_unmatched", "error")
    front_end.run()
    shown(front_end, ".locksmith-fault:not([hidden])")
    front_end.said.clear()  # the host tells the console of the failure


def details(front_end: FrontEnd) -> None:
    after_a_run_in_part(front_end)
    front_end.reports.first.locator(
        ".locksmith-status .locksmith-icon, .locksmith-icon"
    ).last.click()
    shown(front_end, ".locksmith-details")
    expect(front_end.page.locator(".locksmith-details table").first).to_be_visible()


def details_by_energy(front_end: FrontEnd) -> None:
    of(PAIR[0])(front_end)
    front_end.page.locator(".locksmith-status .pi-info-circle").first.click()
    found = shown(front_end, ".locksmith-details").locator(".locksmith-choice button")
    found.nth(1).click()
    expect(found.nth(1)).to_have_attribute("aria-pressed", "true")


ROWS = [
    row(BROKEN_LORA, 0.8),
    row(PARTLY, 0.5, strength_clip=0.25),
    row(OTHER),
    {**row(LONG, 1.25), "on": False},
    row(GONE),
    row(DAMAGED),
    {**row(KOHYA_LORA), "blocks": "double_blocks.0=0.5"},
]


def stack(rows: list | str) -> Callable[[FrontEnd], None]:
    def show(front_end: FrontEnd) -> None:
        front_end.load(workflow(rows))
        shown(front_end, ".locksmith-stack")
        signs = front_end.page.locator(".locksmith-stack-fit:not([hidden])")
        expect(signs).to_have_count(len(rows) if isinstance(rows, list) else 0)

    return show


def stack_after_a_run(front_end: FrontEnd) -> None:
    stack([row(BROKEN_LORA, 0.8), row(PARTLY, 0.5)])(front_end)
    front_end.run()
    expect(front_end.reports).to_have_count(1)


def stack_failed(front_end: FrontEnd) -> None:
    stack([row(BROKEN_LORA, 0.8), row(DAMAGED, 0.5)])(front_end)
    front_end.run()
    shown(front_end, ".locksmith-fault:not([hidden])")
    front_end.said.clear()


def row_menu(front_end: FrontEnd) -> None:
    stack(ROWS)(front_end)
    front_end.page.locator(".locksmith-stack-more").nth(1).click()
    shown(front_end, ".locksmith-menu")


def chooser(words: str) -> Callable[[FrontEnd], None]:
    def show(front_end: FrontEnd) -> None:
        stack(ROWS[:2])(front_end)
        front_end.page.locator(".locksmith-stack-add").click()
        shown(front_end, ".locksmith-chooser-field").fill(words)

    return show


def chooser_of_what_fits(front_end: FrontEnd) -> None:
    chooser("")(front_end)
    button = shown(front_end, ".locksmith-chooser-fits")
    if button.get_attribute("aria-pressed") != "true":
        button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(front_end.page.locator(".locksmith-chooser-entry", has_text="wan_of")).to_have_count(0)


def merge(front_end: FrontEnd) -> None:
    front_end.page.evaluate(
        """([flux, rows]) => {
            const [model, merge] = ["UNETLoader", "LocksmithMergeLoRAs"].map((type) => LiteGraph.createNode(type));
            [model, merge].forEach((node, index) => { app.rootGraph.add(node); node.pos = [40 + 360 * index, 60]; });
            model.widgets[0].value = flux;
            model.connect(0, merge, merge.findInputSlot("model"));
            merge.widgets.find((widget) => widget.name === "loras").value = rows;
        }""",
        [FLUX, json.dumps([row(BROKEN_LORA, 0.8), row(KOHYA_LORA, 0.5)])],
    )
    expect(front_end.page.locator(".locksmith-stack-fit:not([hidden])")).to_have_count(2)


def blank(show: Callable[[FrontEnd], None]) -> Callable[[FrontEnd], None]:
    def from_blank(front_end: FrontEnd) -> None:
        front_end.run_command("Comfy.NewBlankWorkflow")
        show(front_end)

    return from_blank


def library_tab(front_end: FrontEnd) -> Locator:
    return front_end.page.locator("[class*='loralocksmith.library']").first


def library(front_end: FrontEnd) -> Locator:
    if not front_end.page.locator(".locksmith-library").count():
        library_tab(front_end).click()
    found = shown(front_end, ".locksmith-library")
    expect(found.locator("progress").first).to_be_hidden()
    if found.locator(".shelf-repair").count():
        front_end.page.keyboard.press("Escape")
    if found.locator(".shelf-details:not([hidden])").count():
        found.locator(".shelf-details-head .shelf-icon").click()
    found.get_by_role("searchbox").fill("")
    expect(found.locator(".shelf-list-row").first).to_be_visible()
    return found


def library_grouped(front_end: FrontEnd) -> None:
    group = library(front_end).locator(".shelf-order > .shelf-icon").nth(1)
    if group.get_attribute("aria-pressed") != "true":
        group.click()
    shown(front_end, ".shelf-list-folder")


def library_columns(front_end: FrontEnd) -> None:
    library(front_end).locator(".shelf-columns-place > button").click()
    shown(front_end, ".shelf-columns")


def library_details(front_end: FrontEnd) -> None:
    found = library(front_end)
    found.get_by_role("searchbox").fill("partly")
    found.locator(".shelf-list-row").first.click()
    shown(front_end, ".shelf-details .shelf-text table, .shelf-details .shelf-text h2")


def comparison(front_end: FrontEnd) -> None:
    found = library(front_end)
    found.get_by_role("searchbox").fill("of two")
    rows = found.locator(".shelf-list-row")
    expect(rows).to_have_count(2)
    rows.nth(0).click()
    rows.nth(1).click(modifiers=["Control"])
    found.locator(".shelf-compare").click()
    dialog = shown(front_end, ".locksmith-compare")
    expect(dialog.locator(".locksmith-chart").first).to_be_attached()


def comparison_of_two_models(front_end: FrontEnd) -> None:
    found = library(front_end)
    found.get_by_role("searchbox").fill(FOLDER)
    found.locator(".shelf-list-row", has_text="first of two").click()
    found.locator(".shelf-list-row", has_text="wan_of").click(modifiers=["Control"])
    found.locator(".shelf-compare").click()
    expect(shown(front_end, ".locksmith-compare").locator("table")).to_be_visible()


def library_copy(front_end: FrontEnd) -> None:
    library_details(front_end)
    front_end.page.locator(".shelf-details .shelf-actions .shelf-button").nth(1).click()
    shown(front_end, ".shelf-copy-form")


def library_without_a_match(front_end: FrontEnd) -> None:
    library(front_end).get_by_role("searchbox").fill("nothing is called so")
    shown(front_end, ".shelf-empty")


def repair_page(front_end: FrontEnd) -> None:
    found = library(front_end)
    found.get_by_role("searchbox").fill(FOLDER)
    found.locator(".locksmith-library-title > .shelf-button").click()
    shown(front_end, ".shelf-results > li")
    expect(found.locator(".shelf-repair progress")).to_be_hidden()


def repaired(front_end: FrontEnd) -> None:
    repair_page(front_end)
    front_end.page.locator(".shelf-repair .shelf-first").click()
    expect(front_end.page.locator(".shelf-repair .shelf-first")).to_be_hidden()
    expect(front_end.page.locator(".shelf-repair progress")).to_be_hidden()


def offer(front_end: FrontEnd) -> None:
    power = [
        *({}, {"type": "PowerLoraLoaderHeaderWidget"}),
        {"on": True, "lora": BROKEN_LORA, "strength": 0.5, "strengthTwo": None},
    ]
    graph = workflow_of_both_nodes(BROKEN_LORA, 1.0)
    missing = node(
        9,
        "Power Lora Loader (rgthree)",
        (380, 60, 320, 200),
        [("model", "MODEL", None)],
        [("MODEL", "MODEL", [])],
        power,
    )
    graph["nodes"] = [item for item in graph["nodes"] if item["id"] not in (LOADER, INSPECT, 3)]
    graph["nodes"].append(missing)
    graph["nodes"][0]["outputs"][0]["links"] = []
    front_end.load({**graph, "links": [], "last_node_id": 9})
    shown(front_end, ".locksmith-offer")


def swapped(front_end: FrontEnd) -> None:
    """Replace all, of which one is left: its output is used."""
    loader = node(
        LOADER,
        "LoraLoaderModelOnly",
        (380, 60, 320, 100),
        [("model", "MODEL", 1)],
        [("MODEL", "MODEL", [])],
        [KOHYA_LORA, 1.0],
    )
    graph = workflow_of_both_nodes(BROKEN_LORA, 1.0)
    graph["nodes"] = [graph["nodes"][0], loader]
    graph["nodes"][0]["outputs"][0]["links"] = [1]
    graph["links"] = graph["links"][:1]
    front_end.load(graph)
    front_end.run_command("loralocksmith.swap.all")
    shown(front_end, ".p-toast-message")


STATUS, STACK = ".locksmith-panel", ".locksmith-stack"
ON_NODES = (
    Scene("node before a run", before_a_run, STATUS),
    Scene("node with a file in part", of(PARTLY), STATUS),
    Scene("node with a file of another model", of(OTHER), STATUS),
    Scene("node with a damaged file", of(DAMAGED), STATUS),
    Scene("node with no LoRA", of(EMPTY), STATUS),
    Scene("node after a run", after_a_run, STATUS),
    Scene("node after a run in part", after_a_run_in_part, STATUS),
    Scene("node that failed", failed, STATUS),
    Scene("details", details, ".locksmith-details"),
    Scene("details by energy", details_by_energy, ".locksmith-details"),
    Scene("stack", stack(ROWS), STACK),
    Scene("stack without rows", stack([]), STACK),
    Scene("stack with an odd text", stack("no list"), STACK),
    Scene("stack after a run", stack_after_a_run, f"{STACK}, {STATUS}"),
    Scene("stack that failed", stack_failed, f"{STACK}, {STATUS}"),
    Scene("row menu", row_menu, ".locksmith-menu"),
    Scene("chooser", chooser(""), ".locksmith-chooser"),
    Scene("chooser without a match", chooser("nothing is called so"), ".locksmith-chooser"),
    Scene("chooser of what fits", chooser_of_what_fits, ".locksmith-chooser"),
    Scene("merge", blank(merge), STACK),
    Scene("offer", offer, ".locksmith-offer"),
    Scene("swapped", swapped, STATUS),
)
LIBRARY = ".locksmith-library"
ON_THE_SIDE = (
    Scene("library", blank(library), LIBRARY),
    Scene("library in folders", library_grouped, LIBRARY),
    Scene("library columns", library_columns, LIBRARY),
    Scene("library details", library_details, LIBRARY),
    Scene("comparison", comparison, ".locksmith-compare"),
    Scene("comparison of two models", comparison_of_two_models, ".locksmith-compare"),
    Scene("library copy", library_copy, LIBRARY),
    Scene("library without a match", library_without_a_match, LIBRARY),
    Scene("repair", repair_page, LIBRARY),
    Scene("repaired", repaired, LIBRARY),
)
SCENES = (*ON_NODES, *ON_THE_SIDE)


@contextmanager
def small_or_large(
    browser: Browser, url: str, *, size: tuple[int, int], palette: str, language: str
) -> Iterator[FrontEnd]:
    """A front end of its own, without what earlier scenes have left open."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    fresh = FrontEnd(context.new_page(), url)
    fresh.open()
    fresh.set("Comfy.ColorPalette", palette)
    fresh.set("Comfy.Locale", language)
    fresh.open()
    yield fresh
    context.close()


def shown_one_after_another(front_end: FrontEnd, scenes: Sequence[Scene]) -> Iterator[Scene]:
    for scene in scenes:
        scene.show(front_end)
        yield scene
        for _ in range(2):
            front_end.page.keyboard.press("Escape")
