"""ComfyUI's own templates: their LoRA loaders are replaced and come back, and nothing else changes.

A few of every kind; LOCKSMITH_TEMPLATES=all takes every template that has a loader (81 of 509, 166
loaders, half an hour for both renderers), a folder's path the templates there, such as those of a
newer package. How many loaders were replaced is told at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

import pytest
from front_end import FrontEnd
from swapping import ALL, ALL_BACK, BOXES, OURS, overlaps, prompt
from tiny_models import BROKEN_LORA

KINDS = {
    "plain and bypassed, of model and text encoder": "video_wan_vace_14B_ref2v",
    "of the model alone": "basic_switch_node",
    "bypassed, of the model alone": "image_qwen_image_controlnet_patch",
    "in a subgraph, set outside": "03_video_wan2_2_14B_i2v_subgraphed",
    "in a subgraph, file and strength set outside": "template_ltx2_3_ic_lora_ingredients",
    "bypassed in a subgraph": "video_ltx2_depth_to_video",
    "in a subgraph of a subgraph": "gsl_starter_1_2",
    "in a subgraph of a subgraph, set outside": "templates-1_click_multiple_character_angles-v1.0",
}
MOST_STEPS = 3
MOST_TOLD = 120  # characters of what differs
STOCK = ["LoraLoader", "LoraLoaderModelOnly"]
# Every graph of the open workflow, and the nodes that stand for subgraphs in it.
GRAPHS = """() => {
    const seen = new Map([[app.rootGraph.id, { graph: app.rootGraph }]]);
    for (const { graph } of seen.values()) {
        for (const host of graph.nodes) if (host.subgraph && !seen.has(host.subgraph.id)) seen.set(host.subgraph.id, { graph: host.subgraph, host });
    }
    return [...seen.values()];
}"""
HOSTS = f"({GRAPHS})().flatMap(({{ graph }}) => graph.nodes.filter((node) => node.subgraph))"
OUTSIDE = f"""() => {HOSTS}.map((host) => [`${{host.graph.id}} ${{host.id}}`,
    (host.widgets ?? []).map(({{ name, value }}) => [name, typeof value === "object" ? "" : value])])"""
# What of the loaders changes in the prompt when a widget outside is set to something else.
DRIVEN = f"""async (kinds) => {{
    const read = async () => Object.entries((await app.graphToPrompt()).output)
        .filter(([, {{ class_type }}]) => kinds.includes(class_type))
        .map(([id, {{ inputs }}]) => JSON.stringify([id, inputs.lora_name, inputs.strength_model]));
    const usual = await read(), driven = {{}};
    for (const host of {HOSTS}) for (const widget of host.widgets ?? []) {{
        const before = widget.value;
        const isName = typeof before === "string" && before.endsWith(".safetensors");
        if (!isName && typeof before !== "number") continue;
        widget.value = isName ? "another.safetensors" : before + 0.125;
        const changed = (await read()).filter((line) => !usual.includes(line));
        widget.value = before;
        if (changed.length) driven[`${{host.graph.id}} ${{host.id}} ${{widget.name}}`] = changed;
    }}
    return driven;
}}"""
OPEN = f"""(id) => {{
    const {{ graph, host }} = ({GRAPHS})().find(({{ graph }}) => String(graph.id) === id);
    if (host) app.canvas.openSubgraph(graph, host);
    else app.canvas.setGraph(graph);
}}"""
PREVIEWED = """(kind) => app.canvas.graph.nodes.filter(({ type }) => type === kind)
    .every(({ widgets }) => widgets.some(({ name }) => name === "locksmith_report"))"""


def templates() -> dict[str, Path]:
    """The templates to try, by what they are called in the test's name."""
    wanted = os.environ.get("LOCKSMITH_TEMPLATES", "")
    shipped = Path(str(files("comfyui_workflow_templates_json"))) / "templates"
    if not wanted:
        return {kind: shipped / f"{name}.json" for kind, name in KINDS.items()}
    folder = shipped if wanted == "all" else Path(wanted)
    assert folder.is_dir(), f"LOCKSMITH_TEMPLATES is {wanted}, but that is no folder"
    return {
        file.stem: file
        for file in sorted(folder.glob("*.json"))
        if '"LoraLoader' in file.read_text("utf-8")
    }


def graphs_of(workflow: dict) -> list[dict]:
    return [workflow, *(workflow.get("definitions") or {}).get("subgraphs", [])]


def nodes_of(workflow: dict) -> dict[tuple, dict]:
    return {
        (graph["id"], node["id"]): node for graph in graphs_of(workflow) for node in graph["nodes"]
    }


def loaders_in(workflow: dict) -> dict[tuple, dict]:
    return {
        at: node for at, node in nodes_of(workflow).items() if node["type"].startswith("LoraLoader")
    }


def without_looks(workflow: dict) -> dict:
    """The workflow but for what the front end measures as it draws."""
    drawn = ("pos", "size", "order")
    copy = json.loads(json.dumps(workflow))
    for graph in graphs_of(copy):
        graph["links"] = sorted(graph["links"], key=str)
        for part in ("groups", "inputNode", "outputNode"):
            graph.pop(part, None)
        for slot in (*graph.get("inputs", []), *graph.get("outputs", [])):
            slot.pop("pos", None)
        for slot in (slot for node in graph["nodes"] for slot in node.get("outputs", [])):
            slot.pop("slot_index", None)  # which the front end writes of some, and of others not
        graph.get("extra", {}).pop("ds", None)
        graph["nodes"] = [
            {part: value for part, value in node.items() if part not in drawn}
            for node in graph["nodes"]
        ]
    return copy


def unlike(one: object, other: object, at: str = "") -> Iterator[str]:
    """The places at which two saved workflows differ, with what stands there."""
    pairs: dict[object, tuple[object, object]] = {}
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = {key: (one.get(key), other.get(key)) for key in one | other}
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = dict(enumerate(zip(one, other, strict=True)))
    elif one != other:
        yield f"{at}: {str(one)[:MOST_TOLD]} != {str(other)[:MOST_TOLD]}"
    for key, both in pairs.items():
        yield from unlike(*both, f"{at}.{key}")


@pytest.fixture(scope="module")
def _loras(server, front_end: FrontEnd) -> Iterator[None]:
    """All files that the templates name, so that the nodes show what they are; their models are
    not there.
    """
    folder = server.base / "models" / "loras"
    content = (folder / BROKEN_LORA).read_bytes()
    names = {
        value
        for file in templates().values()
        for node in nodes_of(json.loads(file.read_text("utf-8"))).values()
        for value in node.get("widgets_values") or []
        if node["type"].startswith("LoraLoader") and str(value).endswith(".safetensors")
    }
    made = [folder / name for name in names if not (folder / name).exists()]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    yield
    for path in made:
        path.unlink()


@pytest.fixture(autouse=True)
def nothing_to_complain_of(front_end: FrontEnd) -> Iterator[None]:
    """The templates have the host complain of much; of ours nothing may be heard."""
    yield
    said, front_end.said = front_end.said, []
    assert not [line for line in said if "locksmith" in line]


def open_template(front_end: FrontEnd, file: Path) -> None:
    workflow = json.loads(file.read_text("utf-8"))
    front_end.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    front_end.settle()


def boxes_of(front_end: FrontEnd, graph: str) -> set[tuple[int, int]]:
    """The pairs of nodes of a graph that overlap when it is open; then the workflow is open again."""
    front_end.page.evaluate(OPEN, graph)
    front_end.wait_until(lambda: front_end.page.evaluate(PREVIEWED, OURS))
    front_end.settle()
    found = set(overlaps(front_end.page.evaluate(BOXES)))
    front_end.page.evaluate(OPEN, front_end.page.evaluate("String(app.rootGraph.id)"))
    return found


def undo_until(front_end: FrontEnd, wanted: Mapping[tuple, str]) -> None:
    """Undo a replacement, until the nodes are of these types; that the host measured nodes anew
    meanwhile is a step of its own.
    """
    for _ in range(MOST_STEPS):
        front_end.run_command("Comfy.Undo")
        if types_in(front_end.workflow()) == wanted:
            return
    assert types_in(front_end.workflow()) == wanted


def types_in(workflow: dict) -> dict[tuple, str]:
    return {at: node["type"] for at, node in nodes_of(workflow).items()}


def seen(front_end: FrontEnd, kinds: list[str]) -> dict:
    """What must be the same before and after: what runs, what is set outside of subgraphs, and what
    that changes.
    """
    return {
        "prompt": prompt(front_end),
        "outside": front_end.page.evaluate(OUTSIDE),
        "driven": front_end.page.evaluate(DRIVEN, kinds),
    }


def as_ours(spec: dict) -> dict:
    """A part of a prompt with our loader in the stock one's place."""
    added = {"strength_clip": 1, "on_unmatched": "report", "mode": "patch", "layer_weights": ""}
    return {"class_type": OURS, "inputs": added | spec["inputs"]}


@pytest.mark.parametrize("file", templates().values(), ids=templates())
def test_loaders_of_a_template(front_end, mode, _loras, file, record_property):
    open_template(front_end, file)
    graphs = {str(graph) for graph, _ in loaders_in(front_end.workflow())}
    covered = {graph: boxes_of(front_end, graph) for graph in sorted(graphs)}
    front_end.settle()
    old = seen(front_end, STOCK)  # first, because a painting is uploaded when it is asked for
    before = front_end.workflow()
    assert loaders_in(before)

    front_end.run_command(ALL)
    swapped, replaced, new = front_end.workflow(), prompt(front_end), seen(front_end, [OURS])
    assert not loaders_in(swapped)  # none is left
    if os.environ.get("LOCKSMITH_TEMPLATES"):
        record_property("measured", f"{file.stem}, {mode}: {len(loaders_in(before))} replaced")
    assert all(nodes_of(swapped)[at]["type"] == OURS for at in loaders_in(before))
    assert {at: node["mode"] for at, node in nodes_of(swapped).items()} == {
        at: node["mode"] for at, node in nodes_of(before).items()
    }
    loaders = {name for name, spec in old["prompt"].items() if spec["class_type"] in STOCK}
    expected = {name: as_ours(old["prompt"][name]) for name in loaders}
    for name in loaders:
        del new["prompt"][name]["_meta"]  # the title, which is the type's own where none was given
    assert new["prompt"] == old["prompt"] | expected
    assert [new["outside"], new["driven"]] == [old["outside"], old["driven"]]
    for graph, pairs in covered.items():
        assert boxes_of(front_end, graph) <= pairs, "nodes overlap that did not"

    front_end.run_command(ALL_BACK)
    assert seen(front_end, STOCK) == old
    assert not [*unlike(without_looks(front_end.workflow()), without_looks(before))]
    undo_until(front_end, types_in(swapped))
    assert prompt(front_end) == replaced
    undo_until(front_end, types_in(before))
    assert prompt(front_end) == old["prompt"]
    assert not [*unlike(without_looks(front_end.workflow()), without_looks(before))]
