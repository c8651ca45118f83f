"""ComfyUI's real front end in a browser, with what a person does in it."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Callable

import comfy_server
from playwright.sync_api import ConsoleMessage, Locator, Page, expect
from tiny_models import BROKEN_LORA, FLUX

LOADER, PREVIEW, INSPECT = 2, 3, 4  # the nodes of workflow_of_both_nodes()
# What the host tells the console of itself: at its start, when a workflow is left whose subgraph is
# open, and, from 1.58 on, when it lays out its panels and reads a saved node; and when it looks up
# whose a missing node is.
HOST_SAYINGS = (
    "Failed to load resource",
    "legacy queue/history menu",
    "[MaskEditor]",
    "graph accessed before initialization",
    "[subgraphNavigation]",
    "Invalid layout total size",
    "input.link is deprecated",
    "api.comfy.org/comfy-nodes",
)
# The spinner goes when the front end has opened the workflow it begins with; one that a test loads
# before is put away by it.
READY = (
    "window.app?.vueAppReady && window.app.extensionManager &&"
    " document.querySelector('#graph-canvas') && !window.app.extensionManager.spinner"
)
FIND_WIDGET = (
    "([node, name]) => app.rootGraph.getNodeById(node).widgets.find((widget) => widget.name ==="
    " name)"
)
PATIENCE = (
    1000 * comfy_server.PATIENCE
)  # milliseconds, of everything that is waited for in the browser
expect.set_options(timeout=PATIENCE)
# Resolves when the saved form of the workflow has stayed the same for some frames: nodes grow when
# they are drawn first.
SETTLED = """async () => {
    let [last, same] = ["", 0];
    while (same < 12) {
        await new Promise(requestAnimationFrame);
        const now = JSON.stringify(app.rootGraph.serialize());
        [last, same] = [now, now === last ? same + 1 : 0];
    }
}"""
RUN = """async () => {
    const ended = new Promise((done) => ["execution_success", "execution_error"].forEach(
        (name) => app.api.addEventListener(name, ({ detail }) => done(detail.prompt_id), { once: true })));
    await app.queuePrompt(0);
    const run = await ended;
    // The server notes a run in its history after it has told of its end.
    while (!(await (await app.api.fetchApi(`/history/${run}`)).json())[run]) await new Promise((done) => setTimeout(done, 50));
}"""
# Chooses a language, and resolves when the front end has asked for all nodes anew and loaded the open
# workflow again, as it does then.
SPEAK = """async (language) => {
    const { setting } = app.extensionManager;
    if (setting.get("Comfy.Locale") === language) return;
    const loaded = new Promise((done) => {
        const load = app.loadGraphData;
        app.loadGraphData = async function (...graph) {
            app.loadGraphData = load;
            await load.apply(this, graph);
            done();
        };
    });
    await setting.set("Comfy.Locale", language);
    await loaded;
}"""


class FrontEnd:
    """The front end in a browser, with what a person does in it; `said` is what the console was
    told that is not the host's own.
    """

    def __init__(self, page: Page, url: str):
        self.page, self.url = page, url
        self.said: list[str] = []
        self.requests: list[str] = []
        self._strengths = itertools.count(1)
        page.set_default_timeout(PATIENCE)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.said.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))
        for name, value in {
            "Comfy.TutorialCompleted": True,
            "Comfy.Locale": "en",
            "Comfy.Graph.CanvasInfo": False,
        }.items():
            page.request.post(f"{url}/api/settings/{name}", data=json.dumps(value))

    def _hear(self, message: ConsoleMessage) -> None:
        line = f"{message.type}: {message.text} ({message.location.get('url', '')})"
        if message.type in ("warning", "error") and (
            "locksmith" in line or not any(saying in line for saying in HOST_SAYINGS)
        ):
            self.said.append(line)

    def open(self) -> None:
        """Open the page, or load it anew."""
        self.page.goto(self.url)
        self.page.wait_for_function(READY)

    def set(self, name: str, value) -> None:
        self.page.evaluate(
            "([name, value]) => app.extensionManager.setting.set(name, value)", [name, value]
        )

    def speak(self, language: str) -> None:
        """Choose the language, "en" or "zh"."""
        self.page.evaluate(SPEAK, language)

    def setting(self, name: str):
        return self.page.evaluate("name => app.extensionManager.setting.get(name)", name)

    def load(self, workflow: dict) -> None:
        """Open a workflow in a tab of its own."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_function("id => app.rootGraph.id === id", arg=workflow["id"])

    def load_new(self, lora: str = BROKEN_LORA) -> None:
        """Open a fresh workflow whose loader the server has not cached."""
        self.load(workflow_of_both_nodes(lora, strength=next(self._strengths) / 100))

    def run(self) -> None:
        """Run the workflow as the Run button does, and wait until the server's history has it."""
        self.page.evaluate(RUN)

    def settle(self) -> None:
        """Return when the open workflow stays as it is."""
        self.page.evaluate(SETTLED)

    def workflow(self) -> dict:
        """The open workflow, as it would be saved."""
        return self.page.evaluate("app.rootGraph.serialize()")

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Return when something holds; AssertionError if it does not come to."""
        deadline = time.monotonic() + comfy_server.PATIENCE
        while not holds():
            assert time.monotonic() < deadline, f"not so within {comfy_server.PATIENCE:.0f} s"
            self.page.wait_for_timeout(50)

    def run_command(self, name: str) -> None:
        """Run a command of the front end, as its menus do."""
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)

    def value(self, node: int, widget: str):
        return self.page.evaluate(f"{FIND_WIDGET}.value", [node, widget])

    def change(self, node: int, widget: str, value) -> None:
        """Set a widget's value, as one step that can be undone."""
        self.page.evaluate(
            f"""(arguments) => {{
                app.canvas.emitBeforeChange();
                ({FIND_WIDGET})(arguments).value = arguments[2];
                app.canvas.emitAfterChange();
            }}""",
            [node, widget, value],
        )

    def size_of(self, node: int) -> list[float]:
        """Width and height of a node, in the graph's units."""
        return self.page.evaluate("node => [...app.rootGraph.getNodeById(node).size]", node)

    def resize(self, node: int, width: float, height: float) -> None:
        """Give a node another size, as dragging its corner does."""
        self.page.evaluate(
            "([node, ...size]) => { app.rootGraph.getNodeById(node).setSize(size);"
            " app.canvas.setDirty(true, true); }",
            [node, width, height],
        )

    def node_box(self, node: int) -> dict:
        """Where a node is on the page: {x, y, width, height} in pixels; its title is not part of it
        on the classic canvas.
        """
        drawn = self.page.locator(f'[data-node-id="{node}"]')
        if drawn.count():
            return drawn.bounding_box()
        return self.page.evaluate(
            """(id) => {
                const { pos, size } = app.rootGraph.getNodeById(id), { scale, offset } = app.canvas.ds;
                const canvas = app.canvas.canvas.getBoundingClientRect();
                const [x, y] = [0, 1].map((axis) => (pos[axis] + offset[axis]) * scale);
                return { x: canvas.x + x, y: canvas.y + y, width: size[0] * scale, height: size[1] * scale };
            }""",
            node,
        )

    def contrast(self, part: Locator) -> float:
        """The contrast of a text with what is behind it, 1 to 21 (WCAG 2.2)."""
        return part.evaluate("""(part) => {
                const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
                const luminance = () => {
                    const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
                        .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
                    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
                };
                const layers = [];
                for (let at = part; at; at = at.parentElement) layers.unshift(getComputedStyle(at).backgroundColor);
                const fill = (colour) => { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); };
                layers.forEach(fill);
                const behind = luminance();
                fill(getComputedStyle(part).color);
                const [low, high] = [behind, luminance()].sort((a, b) => a - b);
                return (high + 0.05) / (low + 0.05);
            }""")

    def put_into_subgraph(self, node: int) -> None:
        self.page.evaluate(
            "node => { app.canvas.graph.convertToSubgraph(new"
            " Set([app.rootGraph.getNodeById(node)])); }",
            node,
        )

    def open_subgraph(self) -> None:
        self.page.evaluate(
            "() => { const host = app.rootGraph.nodes.find((node) => node.subgraph);"
            " app.canvas.openSubgraph(host.subgraph, host); }"
        )

    def wait_until_kept(self) -> None:
        """Return when the browser holds the open workflow for the time after a reload."""
        identifier = self.page.evaluate("app.rootGraph.id")
        self.page.wait_for_function(
            "id => Object.values(localStorage).some((value) => value.includes(id))", arg=identifier
        )

    def report(self, title: str) -> Locator:
        """The report on the node with this title, as a reader of the page's accessible names finds
        it.
        """
        return self.page.get_by_role("region", name=f"Report of {title}")

    @property
    def reports(self) -> Locator:
        return self.page.locator(".locksmith-report")


def is_in_sight(text: Locator, words: str) -> bool:
    """Whether these words of a text are neither cut off nor to be scrolled to."""
    return text.evaluate(
        """(text, words) => {
            const line = document.createTreeWalker(text, NodeFilter.SHOW_TEXT).nextNode();
            const at = line.data.indexOf(words), range = document.createRange();
            if (at < 0) throw new Error(`it does not say so: ${line.data}`);
            range.setStart(line, at);
            range.setEnd(line, at + words.length);
            const [part, whole] = [range, text].map((place) => place.getBoundingClientRect());
            return part.right <= whole.right && part.bottom <= whole.bottom;
        }""",
        words,
    )


def workflow_of_both_nodes(lora: str, strength: float) -> dict:
    """A workflow as the front end saves it: a tiny FLUX with our loader, its report as text, and
    Inspect.
    """
    links = [
        [1, 1, 0, LOADER, 0, "MODEL"],
        [2, LOADER, 2, PREVIEW, 0, "STRING"],
        [3, 1, 0, INSPECT, 0, "MODEL"],
    ]
    nodes = [
        node(
            1, "UNETLoader", (40, 60, 300, 90), [], [("MODEL", "MODEL", [1, 3])], [FLUX, "default"]
        ),
        node(
            LOADER,
            "LocksmithLoadAndFixLoRA",
            (380, 60, 320, 200),
            [("model", "MODEL", 1), ("clip", "CLIP", None)],
            [
                ("MODEL", "MODEL", []),
                ("CLIP", "CLIP", []),
                ("report", "STRING", [2]),
                ("report_json", "STRING", []),
            ],
            [lora, strength, 1.0, "report", "patch"],
        ),
        node(
            PREVIEW,
            "PreviewAny",
            (380, 560, 320, 120),
            [("source", "*", 2)],
            [("STRING", "STRING", [])],
            [],
        ),
        node(
            INSPECT,
            "LocksmithInspectLoRAKeys",
            (760, 60, 420, 170),
            [("model", "MODEL", 3), ("clip", "CLIP", None)],
            [("report", "STRING", []), ("report_json", "STRING", [])],
            [lora, "modules", "off"],
        ),
    ]
    graph = {
        "id": str(uuid.uuid4()),
        "last_node_id": 4,
        "last_link_id": 3,
        "version": 0.4,
        "groups": [],
        "config": {},
        "extra": {},
    }
    return {**graph, "nodes": nodes, "links": links}


def node(
    identifier: int, kind: str, place: tuple, inputs: list, outputs: list, values: list
) -> dict:
    return {
        "id": identifier,
        "type": kind,
        "pos": list(place[:2]),
        "size": list(place[2:]),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [{"name": name, "type": type_, "link": link} for name, type_, link in inputs],
        "outputs": [
            {"name": name, "type": type_, "links": links} for name, type_, links in outputs
        ],
        "properties": {},
        "widgets_values": values,
    }
