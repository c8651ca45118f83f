"""The stack's node in the real front end: a workflow with it, and what a person does with its
rows.
"""

from __future__ import annotations

import json
import re
import uuid

from front_end import FrontEnd, node
from playwright.sync_api import Locator, expect
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, FLUX, KOHYA_LORA

STACK, TEXT = 2, 3  # nodes of the workflow
TITLE = "Load and Fix LoRA (stack)"
FILES = [BROKEN_LORA, KOHYA_LORA, DIFFUSERS_LORA]


def row(name: str, strength: float = 1.0, **more) -> dict:
    return {"on": True, "name": name, "strength": strength, **more}


def workflow(rows: list | str) -> dict:
    """A tiny FLUX with a stack, and the stack's report as text; `rows` may be the node's text
    itself.
    """
    value = rows if isinstance(rows, str) else json.dumps(rows)
    links = [[1, 1, 0, STACK, 0, "MODEL"], [2, STACK, 2, TEXT, 0, "STRING"]]
    nodes = [
        node(1, "UNETLoader", (40, 60, 300, 90), [], [("MODEL", "MODEL", [1])], [FLUX, "default"]),
        node(
            STACK,
            "LocksmithLoRAStack",
            (380, 60, 480, 320),
            [("model", "MODEL", 1), ("clip", "CLIP", None)],
            [
                ("MODEL", "MODEL", []),
                ("CLIP", "CLIP", []),
                ("report", "STRING", [2]),
                ("report_json", "STRING", []),
            ],
            [value, "report", "patch"],
        ),
        node(
            TEXT,
            "PreviewAny",
            (900, 60, 320, 120),
            [("source", "*", 2)],
            [("STRING", "STRING", [])],
            [],
        ),
    ]
    graph = {
        "id": str(uuid.uuid4()),
        "last_node_id": 3,
        "last_link_id": 2,
        "version": 0.4,
        "groups": [],
        "config": {},
        "extra": {},
    }
    return {**graph, "nodes": nodes, "links": links}


class Stack:
    """The stack in the open workflow, by what a reader of the page's accessible names finds."""

    def __init__(self, front_end: FrontEnd):
        self.front_end, self.page = front_end, front_end.page
        self.box = front_end.page.get_by_role("region", name=f"LoRAs of {TITLE}")
        self.rows = self.box.get_by_role("listitem")
        self.add = self.box.get_by_role("button", name="Add LoRA")
        self.dialog = front_end.page.get_by_role("dialog")

    @property
    def value(self) -> list[dict]:
        return json.loads(self.front_end.value(STACK, "loras"))

    @property
    def names(self) -> list[str]:
        return [entry["name"] for entry in self.value]

    @property
    def place(self) -> list[float]:
        return next(
            item["pos"] for item in self.front_end.workflow()["nodes"] if item["id"] == STACK
        )

    def strength(self, index: int) -> Locator:
        return self.rows.nth(index).get_by_role("spinbutton").first

    def part(self, index: int, name: str) -> Locator:
        return self.rows.nth(index).get_by_role("button", name=re.compile(f"^{name}"))


def opened(front_end: FrontEnd, rows: list | str) -> Stack:
    front_end.load(workflow(rows))
    stack = Stack(front_end)
    expect(stack.box).to_be_visible()
    return stack


def type_into(field: Locator, text: str) -> None:
    field.fill(text)
    field.press("Enter")


def same_graph(one: dict, other: dict) -> bool:
    """Whether two workflows are the same; heights may come out a pixel otherwise, and nodes in
    another order.
    """
    shapes = [
        sorted(
            (item["id"], item["pos"], item["widgets_values"], round(item["size"][1] / 4))
            for item in graph["nodes"]
        )
        for graph in (one, other)
    ]
    return shapes[0] == shapes[1] and one["links"] == other["links"]
