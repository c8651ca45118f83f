"""The example workflows in the real front end: they are what tests/support/examples.py says, open
without a complaint, and run. With LOCKSMITH_ACCEPT_EXAMPLES=1 they are built and drawn anew.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from pathlib import Path

import pytest
from demo import TINY_NODES
from examples import EXAMPLES, TINY, swap
from front_end import FrontEnd
from PIL import Image
from playwright.sync_api import expect

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
SAVED = "locksmith-examples"  # the namespace of their ids
WIDEST = 1080  # pixels of a picture
BUILD = """async ([parts, links, id]) => {
    await app.loadGraphData({ id, last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4 });
    const made = new Map();
    for (const [number, type, [x, y, width, height], values] of parts) {
        const node = LiteGraph.createNode(type);
        node.id = number;
        app.rootGraph.add(node);
        node.pos = [x, y];
        for (const [name, value] of Object.entries(values)) {
            const widget = node.widgets.find((one) => !name || one.name === name);
            widget.value = value;
            widget.callback?.(value, app.canvas, node);
        }
        node.setSize([width, height || node.computeSize()[1]]);
        made.set(number, node);
    }
    for (const [from, output, to, input] of links) {
        const [origin, target] = [made.get(from), made.get(to)];
        const slot = origin.findOutputSlot(output);
        if (!origin.connect(slot, target, target.inputs.findIndex((one) => one.name === input))) throw new Error(`${from}.${output} -> ${to}.${input}`);
    }
}"""
BOX = """() => {
    const { scale, offset } = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
    const boxes = app.rootGraph.nodes.map((node) => node.getBounding());
    const [left, top] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])));
    const [right, bottom] = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])));
    return { x: canvas.x + (left + offset[0]) * scale - 8, y: canvas.y + (top + offset[1]) * scale - 8,
             width: (right - left) * scale + 16, height: (bottom - top) * scale + 16 };
}"""
# Resolves when the view has stayed where it is for some frames.
RESTS = """async () => {
    let [last, same] = ["", 0];
    while (same < 20) {
        await new Promise(requestAnimationFrame);
        const now = JSON.stringify([app.canvas.ds.scale, [...app.canvas.ds.offset]]);
        [last, same] = [now, now === last ? same + 1 : 0];
    }
}"""
FILM, MOST = Path(__file__).resolve().parents[2] / "docs" / "swap.webp", 2_000_000
VOLATILE = {"ds", "frontendVersion", "VHS_latentpreview", "workflowRendererVersion"}


def built(front_end: FrontEnd, name: str) -> dict:
    """An example as the front end saves it, open."""
    example = EXAMPLES.get(name) or swap()
    identifier = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{SAVED}/{name}"))
    front_end.page.evaluate(BUILD, [list(example.parts), list(example.links), identifier])
    front_end.settle()
    workflow = front_end.workflow()
    workflow["extra"] = {k: v for k, v in workflow["extra"].items() if k not in VOLATILE}
    return workflow


def tiny(workflow: dict) -> dict:
    """The same workflow for the tiny models."""
    text = json.dumps(workflow)
    for yours, ours in TINY.items():
        text = text.replace(yours, ours)
    workflow = json.loads(text)
    for node in workflow["nodes"]:
        if node["type"] in TINY_NODES and not node["type"].startswith("Locksmith"):
            node["type"], node["widgets_values"] = TINY_NODES[node["type"]]
            node["properties"]["Node name for S&R"] = node["type"]
    return workflow


def essence(workflow: dict) -> dict:
    """What of a saved workflow its maker said: nodes with their values, and links by their ends."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    return {
        "nodes": {
            number: (node["type"], node["pos"], node.get("widgets_values"))
            for number, node in nodes.items()
        },
        "links": sorted(
            (
                origin,
                nodes[origin]["outputs"][output]["name"],
                target,
                nodes[target]["inputs"][slot]["name"],
            )
            for _, origin, output, target, slot, _ in workflow["links"]
        ),
    }


def draw(front_end: FrontEnd, path: Path) -> None:
    """Save a picture of the open workflow, as wide as its nodes."""
    page, size = front_end.page, front_end.page.viewport_size
    front_end.set("Comfy.Minimap.Visible", False)
    page.set_viewport_size({"width": 3200, "height": 1700})  # small text is not drawn from afar
    front_end.run_command("Comfy.Canvas.FitView")
    page.evaluate(RESTS)
    picture = page.screenshot(clip=page.evaluate(BOX))
    page.set_viewport_size(size)
    front_end.set("Comfy.Minimap.Visible", True)
    drawn = Image.open(io.BytesIO(picture)).convert("RGB")
    drawn.thumbnail((WIDEST, WIDEST))
    drawn.save(path, quality=72, optimize=True)


@pytest.fixture
def opened(front_end: FrontEnd):
    """Opens the saved example of a name, with the tiny models."""

    def open_(name: str) -> dict:
        workflow = tiny(json.loads((FOLDER / f"{name}.json").read_text("utf-8")))
        front_end.load(workflow)
        front_end.settle()
        return workflow

    return open_


def test_there_is_one_for_each_node_and_none_besides(object_info):
    used = {part.type for example in EXAMPLES.values() for part in example.parts}
    ours = {name for name in object_info if name.startswith("Locksmith")}
    assert not ours - used
    assert {path.stem for path in FOLDER.iterdir()} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_what_it_was_made_from(front_end, name, request):
    front_end.set("Comfy.VueNodes.Enabled", False)
    workflow = built(front_end, name)
    path = FOLDER / f"{name}.json"
    if os.environ.get("LOCKSMITH_ACCEPT_EXAMPLES"):
        path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", "utf-8")
    assert essence(json.loads(path.read_text("utf-8"))) == essence(workflow)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(front_end, server, opened, mode, name):
    for folder in ("merged", "converted", "extracted"):  # what it wrote the last time
        shutil.rmtree(server.base / "models" / "loras" / folder, ignore_errors=True)
    workflow = opened(name)
    before = set(server.get("/history"))
    front_end.page.evaluate("() => { void app.queuePrompt(0); }")
    assert not front_end.page.evaluate("app.lastNodeErrors")
    front_end.wait_until(lambda: set(server.get("/history")) - before)
    (run,) = (entry for key, entry in server.get("/history").items() if key not in before)
    assert run["status"]["status_str"] == "success", run["status"]
    assert {node["type"] for node in front_end.workflow()["nodes"]} == {
        node["type"] for node in workflow["nodes"]
    }
    if os.environ.get("LOCKSMITH_ACCEPT_EXAMPLES") and mode == "classic":
        draw(front_end, FOLDER / f"{name}.jpg")
    assert (FOLDER / f"{name}.jpg").stat().st_size < 150_000


def test_pictures_are_of_what_they_show(front_end):
    for name in EXAMPLES:
        with Image.open(FOLDER / f"{name}.jpg") as picture:
            assert 300 < picture.width <= WIDEST and picture.height > 100


def test_the_film_shows_what_happens(front_end, server):
    """Stock's loaders run, are replaced, run again; the film is what the README shows."""
    front_end.set("Comfy.VueNodes.Enabled", False)
    front_end.load(tiny(built(front_end, "swap")))
    page, size = front_end.page, front_end.page.viewport_size
    front_end.set("Comfy.Minimap.Visible", False)
    page.set_viewport_size({"width": 2300, "height": 860})
    try:
        front_end.run_command("Comfy.Canvas.FitView")
        page.evaluate(RESTS)
        frames = [page.screenshot()]
        front_end.run()
        frames.append(page.screenshot())
        page.keyboard.press("Control+Alt+f")
        loaders = (
            "app.rootGraph.nodes.filter((node) => node.comfyClass === 'LocksmithLoadAndFixLoRA')"
        )
        page.wait_for_function(f"{loaders}.length === 2")
        front_end.settle()
        frames.append(page.screenshot())
        front_end.run()
        expect(page.get_by_text("22/22")).to_have_count(2)
        frames.append(page.screenshot())
        page.get_by_role("button", name="Details").first.click()
        expect(page.get_by_role("dialog")).to_be_visible()
        frames.append(page.screenshot())
        page.keyboard.press("Escape")
    finally:
        page.set_viewport_size(size)
        front_end.set("Comfy.Minimap.Visible", True)
    if os.environ.get("LOCKSMITH_ACCEPT_EXAMPLES"):
        pictures = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
        for picture in pictures:
            picture.thumbnail((1280, 480))
        first, *others = pictures
        times = [1200, 2200, 1800, 3000, 4000]
        first.save(FILM, save_all=True, append_images=others, duration=times, loop=0, quality=70)
    with Image.open(FILM) as film:
        assert film.n_frames == len(frames) and FILM.stat().st_size < MOST
