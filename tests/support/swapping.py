"""What the tests of swapping share: workflows of loaders, and what the open one is."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Sequence
from typing import NamedTuple

import torch
from front_end import FrontEnd, node
from playwright.sync_api import expect
from safetensors.torch import load
from tiny_models import BROKEN_LORA, CLIP_L, FLUX

OURS, STACK = "LocksmithLoadAndFixLoRA", "LocksmithLoRAStack"
ALL, ALL_BACK = "loralocksmith.swap.all", "loralocksmith.swap.all_back"
CHOSEN, CHOSEN_BACK = "loralocksmith.swap.chosen", "loralocksmith.swap.chosen_back"
LOADER_INPUTS = [("model", "MODEL"), ("clip", "CLIP")]
LOADER_OUTPUTS = [("MODEL", "MODEL"), ("CLIP", "CLIP")]
REPORT_OUTPUTS = [("report", "STRING"), ("report_json", "STRING")]
STRING = [("text", "STRING")]
STACK_INPUT = [("lora_stack", "LORA_STACK")]
APPLY = ("CR Apply LoRA Stack", [*LOADER_INPUTS, *STACK_INPUT], LOADER_OUTPUTS + STRING, [], {})
LATENT = 9  # the node that saves what is sampled
PLACES = itertools.cycle(range(600, 800, 20))  # free ones, next to each other


class Link(NamedTuple):
    """From an output of one node to an input of another."""

    origin: int
    output: int
    target: int
    name: str
    type: str


def workflow_of(nodes: list[tuple], links: list[Link], **parts) -> dict:
    """A workflow as the front end saves it; a node is (id, type, inputs, outputs, widget values,
    other parts).
    """
    made = {}
    for place, (identifier, kind, inputs, outputs, values, extra) in enumerate(nodes):
        made[identifier] = (
            node(
                identifier,
                kind,
                (40 + 340 * (place % 4), 60 + 300 * (place // 4), 300, 130),
                [(name, type_, None) for name, type_ in inputs],
                [(name, type_, []) for name, type_ in outputs],
                values,
            )
            | extra
        )
    table = []
    for number, link in enumerate(links, 1):
        inputs = made[link.target]["inputs"]
        slot = next((slot for slot, each in enumerate(inputs) if each["name"] == link.name), None)
        if slot is None:  # a widget that another node sets
            slot = len(inputs)
            inputs.append(
                {"name": link.name, "type": link.type, "widget": {"name": link.name}, "link": None}
            )
        inputs[slot]["link"] = number
        made[link.origin]["outputs"][link.output]["links"].append(number)
        table.append([number, link.origin, link.output, link.target, slot, link.type])
    return {
        "id": str(uuid.uuid4()),
        "last_node_id": max(made),
        "last_link_id": len(links),
        "version": 0.4,
        "groups": [],
        "config": {},
        "extra": {},
        "nodes": list(made.values()),
        "links": table,
        **parts,
    }


def foreign_workflow(loaders: list[tuple], links: Sequence[Link] = ()) -> dict:
    """Loaders of packs that are not installed, as (type, inputs, outputs, values, other parts), in
    a row behind a model; the last one's model is inspected.
    """
    nodes, table, last = (
        [(1, "UNETLoader", [], [("MODEL", "MODEL")], [FLUX, "default"], {})],
        list(links),
        1,
    )
    for identifier, (kind, inputs, outputs, values, extra) in enumerate(loaders, 2):
        nodes.append((identifier, kind, inputs, outputs, values, extra))
        if ("model", "MODEL") in inputs:
            table.append(Link(last, 0, identifier, "model", "MODEL"))
            last = identifier
    inspect = len(nodes) + 1
    nodes.append(
        (
            inspect,
            "LocksmithInspectLoRAKeys",
            LOADER_INPUTS,
            REPORT_OUTPUTS,
            [BROKEN_LORA, "modules", "off"],
            {},
        )
    )
    return workflow_of(nodes, [*table, Link(last, 0, inspect, "model", "MODEL")])


def sampled(nodes: list[tuple], links: list[Link], name: str) -> dict:
    """A workflow in which what the nodes make of model 1 and text encoder 2 is sampled and saved
    under this name. links: to nodes 5 (`clip`) and 8 (`model`) among others.
    """
    conditioning = [("CONDITIONING", "CONDITIONING")]
    sampler = [("model", "MODEL"), ("latent_image", "LATENT")]
    sampler += [(side, "CONDITIONING") for side in ("positive", "negative")]
    latent = [("LATENT", "LATENT")]
    around = [
        (1, "UNETLoader", [], [("MODEL", "MODEL")], [FLUX, "default"], {}),
        (2, "CLIPLoader", [], [("CLIP", "CLIP")], [CLIP_L, "stable_diffusion", "default"], {}),
        *nodes,
        (5, "CLIPTextEncode", [("clip", "CLIP")], conditioning, ["an old lock"], {}),
        (6, "ConditioningZeroOut", [("conditioning", "CONDITIONING")], conditioning, [], {}),
        (7, "EmptySD3LatentImage", [], latent, [64, 64, 1], {}),
        (8, "KSampler", sampler, latent, [42, "fixed", 1, 1.0, "euler", "simple", 1.0], {}),
        (LATENT, "SaveLatent", [("samples", "LATENT")], [], [name], {}),
    ]
    links = [
        *links,
        Link(5, 0, 6, "conditioning", "CONDITIONING"),
        Link(5, 0, 8, "positive", "CONDITIONING"),
        Link(6, 0, 8, "negative", "CONDITIONING"),
        Link(7, 0, 8, "latent_image", "LATENT"),
        Link(8, 0, LATENT, "samples", "LATENT"),
    ]
    return workflow_of(around, links)


def latent_of(server, spec: dict) -> torch.Tensor:
    """What the server samples for the prompt of such a workflow."""
    entry = server.run(spec)
    return load(server.fetch(entry["outputs"][str(LATENT)]["latents"][0]))["latent_tensor"]


def opened(front_end: FrontEnd, workflow: dict) -> dict:
    """Open a workflow, and give it as it is saved; nodes grow when they are drawn first."""
    forget_messages(front_end)
    front_end.load(workflow)
    front_end.settle()
    look_for_changes(front_end)
    return front_end.workflow()


def look_for_changes(front_end: FrontEnd) -> None:
    """Have the front end look for changes, as it does at every click; never twice at one place,
    which would open its search.
    """
    front_end.page.mouse.click(next(PLACES), 850)


def prompt(front_end: FrontEnd) -> dict:
    """The open workflow in the form the server runs."""
    return front_end.page.evaluate("async () => (await app.graphToPrompt()).output")


def by_id(workflow: dict) -> dict:
    return {each["id"]: each for each in workflow["nodes"]}


def types(workflow: dict) -> dict:
    return {each["id"]: each["type"] for each in workflow["nodes"]}


def undo_steps(front_end: FrontEnd) -> int:
    return front_end.page.evaluate(
        "app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    )


def forget_messages(front_end: FrontEnd) -> None:
    front_end.page.evaluate(
        "() => { const { toast } = app.extensionManager; toast.removeAll?.(); toast.dismissAll?.(); }"
    )


def expect_told(front_end: FrontEnd, words: str) -> None:
    """Wait until a message with these words is shown."""
    expect(front_end.page.get_by_text(words).locator("visible=true").first).to_be_visible()


def expect_left(front_end: FrontEnd, workflow: dict, reason: str, command: str = ALL) -> None:
    """Open a workflow and have all loaders replaced: each stays what it is, and the reason is told."""
    before = opened(front_end, workflow)
    front_end.run_command(command)
    assert types(front_end.workflow()) == types(before)
    expect_told(front_end, reason)


def differences(before: dict, after: dict) -> set:
    """The parts in which two nodes of a workflow differ."""
    return {part for part in before | after if before.get(part) != after.get(part)}


def rows_of(workflow: dict, node: int) -> list[dict]:
    return json.loads(by_id(workflow)[node]["widgets_values"][0])


ROOM = 5  # units nodes may come nearer than they were
TITLE = 30
# Where nodes are on the open graph, with their titles; Vue nodes as they are drawn.
BOXES = """() => app.canvas.graph.nodes.map(({ id, pos, size, flags }) => {
    const shown = document.querySelector(`[data-node-id="${id}"]`);
    const [width, height] = shown ? [shown.offsetWidth, shown.offsetHeight - 30] : size;
    return { id: Number(id), x: pos[0], y: pos[1] - 30, width, bottom: pos[1] + (flags.collapsed ? 0 : height) };
})"""


def overlaps(boxes: list[dict]) -> list[tuple[int, int]]:
    return [
        (one["id"], other["id"])
        for one, other in itertools.combinations(boxes, 2)
        if min(one["bottom"], other["bottom"]) - max(one["y"], other["y"]) > ROOM
        and min(one["x"] + one["width"], other["x"] + other["width"]) - max(one["x"], other["x"])
        > ROOM
    ]
