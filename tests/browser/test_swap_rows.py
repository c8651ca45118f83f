"""The newer host's own loaders of many LoRAs, whose rows are widgets, become stacks and come back."""

import itertools
import uuid

import pytest
import torch
from safetensors.torch import save
from swapping import (
    ALL,
    ALL_BACK,
    LOADER_INPUTS,
    OURS,
    STACK,
    Link,
    by_id,
    differences,
    expect_told,
    latent_of,
    opened,
    prompt,
    rows_of,
    sampled,
    types,
    workflow_of,
)
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, FLUX, KOHYA_LORA, encoder_lora

ENCODER_LORA = "swap_with_text_encoder.safetensors"
HOSTS_ROWS = {
    "LoadLoraModel": [
        [DIFFUSERS_LORA, 0.5, True],
        [KOHYA_LORA, 1, False],
        [ENCODER_LORA, -0.25, True],
        [KOHYA_LORA, 0, True],
    ],
    "LoadLoraTextEncoder": [[ENCODER_LORA, 0, True], [ENCODER_LORA, 0.75, True]],
}
ON_MODEL, ON_CLIP = 3, 4
ROUNDED = 1e-4  # what several LoRAs on one weight add up to is rounded in another order by stock


def hosts_loader(kind: str) -> tuple:
    """One of the newer ComfyUI's own loaders of many LoRAs, as its front end saves it. Where the
    ComfyUI under test has no such node, it is a missing one, as it is to a person who opens a
    newer workflow there.
    """
    socket = LOADER_INPUTS[0 if kind == "LoadLoraModel" else 1]
    rows = HOSTS_ROWS[kind]
    values = [len(rows), *itertools.chain.from_iterable(rows)]
    parts = {"properties": {"Node name for S&R": kind}, "title": f"My {kind}"}
    return (kind, [socket], [(socket[1], socket[1])], values, parts)


def hosts_workflow() -> dict:
    """Rows on a model and on a text encoder, and what both give, sampled."""
    nodes = [
        (ON_MODEL, *hosts_loader("LoadLoraModel")),
        (ON_CLIP, *hosts_loader("LoadLoraTextEncoder")),
    ]
    links = [
        Link(1, 0, ON_MODEL, "model", "MODEL"),
        Link(2, 0, ON_CLIP, "clip", "CLIP"),
        Link(ON_CLIP, 0, 5, "clip", "CLIP"),
        Link(ON_MODEL, 0, 8, "model", "MODEL"),
    ]
    return sampled(nodes, links, "swapped")


def with_stock_loaders(spec: dict) -> dict:
    """The prompt with a stock loader for each row of the host's loaders, those that are off without
    strength.
    """
    model, clip, chain = ["1", 0], ["2", 0], {}
    for kind, rows in HOSTS_ROWS.items():
        for number, (name, strength, on) in enumerate(rows):
            strengths = (strength * on, 0) if kind == "LoadLoraModel" else (0, strength * on)
            values = dict(zip(("strength_model", "strength_clip"), strengths, strict=True))
            chain[f"{kind} {number}"] = {
                "class_type": "LoraLoader",
                "inputs": {"model": model, "clip": clip, "lora_name": name, **values},
            }
            model, clip = [f"{kind} {number}", 0], [f"{kind} {number}", 1]
    return rewired(spec, model, clip) | chain


def rewired(spec: dict, model: list, clip: list) -> dict:
    """The prompt without the loaders, with these in their outputs' place."""
    rest = {name: part for name, part in spec.items() if name not in (str(ON_MODEL), str(ON_CLIP))}
    return rest | {
        "5": spec["5"] | {"inputs": spec["5"]["inputs"] | {"clip": clip}},
        "8": spec["8"] | {"inputs": spec["8"]["inputs"] | {"model": model}},
    }


@pytest.fixture
def hosts_before(front_end, mode, lora_file) -> dict:
    """The open workflow of the host's loaders, as it is saved."""
    lora_file(ENCODER_LORA, save(encoder_lora()))
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    return opened(front_end, hosts_workflow())


def test_hosts_loaders_with_rows_become_stacks(front_end, hosts_before, picture):
    front_end.run_command(ALL)
    after, new = front_end.workflow(), prompt(front_end)
    assert types(after) == types(hosts_before) | {ON_MODEL: STACK, ON_CLIP: STACK}
    for place, rows in zip((ON_MODEL, ON_CLIP), HOSTS_ROWS.values(), strict=True):
        assert rows_of(after, place) == [
            {"on": on, "name": name, "strength": strength} for name, strength, on in rows
        ]
    assert by_id(after)[ON_MODEL]["title"] == "My LoadLoraModel"
    inputs = [new[name]["inputs"] for name in ("3", "4", "5", "8")]
    assert [each.get("model") for each in inputs] == [["1", 0], None, None, ["3", 0]]
    assert [each.get("clip") for each in inputs] == [None, ["2", 0], ["4", 1], None]


def test_hosts_loaders_with_rows_give_the_same_as_stacks(front_end, server, hosts_before):
    """The same as stock loaders in a row; and as they give themselves, where this ComfyUI has
    them.
    """
    original = prompt(front_end)
    front_end.run_command(ALL)
    swapped = prompt(front_end)
    found = latent_of(server, swapped)
    in_a_row = latent_of(server, with_stock_loaders(swapped))
    torch.testing.assert_close(found, in_a_row, rtol=0, atol=ROUNDED)
    for without in (rewired(swapped, ["1", 0], ["4", 1]), rewired(swapped, ["3", 0], ["2", 0])):
        kept = {name: swapped[name] for name in ("3", "4")}
        assert not torch.equal(found, latent_of(server, kept | without)), "a LoRA changes nothing"
    if "LoadLoraModel" in server.object_info():
        as_they_are = latent_of(server, original)
        torch.testing.assert_close(found, as_they_are, rtol=0, atol=ROUNDED)


def test_hosts_loaders_with_rows_come_back(front_end, hosts_before):
    old = prompt(front_end)
    front_end.run_command(ALL)
    front_end.run_command(ALL_BACK)
    back = front_end.workflow()
    assert prompt(front_end) == old
    assert sorted(back["links"]) == sorted(hosts_before["links"])
    for place in (ON_MODEL, ON_CLIP):
        was, is_now = by_id(hosts_before)[place], by_id(back)[place]
        assert differences(was, is_now) <= {"order"}
    for _ in range(2):
        front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: types(front_end.workflow()) == types(hosts_before))
    undone = front_end.workflow()
    assert undone | {"links": sorted(undone["links"])} == hosts_before | {
        "links": sorted(hosts_before["links"])
    }


LOADER, FOLLOWER = 13, 14  # in the subgraph of promoted_workflow()
FIRST_LINK = 11  # in a subgraph, unlike those outside
SET_OUTSIDE = [KOHYA_LORA, 0.75, 0.125]  # which the loader itself does not say


def subgraph_of(nodes: list[dict], inputs: list[tuple], chain: list[tuple]) -> dict:
    """A subgraph as it is saved. inputs: (node, input, type) of what is set outside; chain: (node,
    output, node, input), -20 for the subgraph's own output.
    """
    ends = [(-10, slot, target, name, type_) for slot, (target, name, type_) in enumerate(inputs)]
    ends += [(origin, slot, target, name, "MODEL") for origin, slot, target, name in chain]
    made = {node["id"]: node for node in nodes}
    links = []
    for number, (origin, slot, target, name, type_) in enumerate(ends, FIRST_LINK):
        there = 0
        if target in made:
            slots = made[target]["inputs"]
            there = next(at for at, each in enumerate(slots) if each["name"] == name)
            slots[there]["link"] = number
        if origin in made:
            made[origin]["outputs"][slot]["links"].append(number)
        parts = (number, origin, slot, target, there, type_)
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        links.append(dict(zip(names, parts, strict=True)))
    last = {"lastGroupId": 0, "lastNodeId": max(made), "lastLinkId": links[-1]["id"]}
    return {
        "id": str(uuid.uuid4()),
        "version": 1,
        "state": last | {"lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": "Styles",
        "inputNode": {"id": -10, "bounding": [-200, 0, 128, 100]},
        "outputNode": {"id": -20, "bounding": [900, 0, 128, 60]},
        "inputs": [
            {
                "id": str(uuid.uuid4()),
                "name": f"{slot} {name}",
                "type": type_,
                "linkIds": [FIRST_LINK + slot],
            }
            for slot, (_, name, type_) in enumerate(inputs)
        ],
        "outputs": [
            {
                "id": str(uuid.uuid4()),
                "name": "MODEL",
                "type": "MODEL",
                "linkIds": [links[-1]["id"]],
            }
        ],
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {},
    }


def promoted_workflow(rows: list[list]) -> dict:
    """A subgraph in which one of the host's loaders stands before a stock one; the first row of the
    one and the strength of the other are set outside.
    """
    kind, sockets, outputs, _, parts = hosts_loader("LoadLoraModel")
    row = [("loras.0.lora_name", "COMBO"), ("loras.0.strength", "FLOAT")]
    strength = ("strength_model", "FLOAT")
    values = [len(rows), *itertools.chain.from_iterable(rows)]
    follower = (FOLLOWER, "LoraLoaderModelOnly", sockets, outputs, [DIFFUSERS_LORA, 1], {})
    inside = workflow_of([(LOADER, kind, sockets, outputs, values, parts), follower], [])["nodes"]
    for node, widgets in zip(inside, (row, [strength]), strict=True):
        node["inputs"] += [
            {"name": name, "type": type_, "widget": {"name": name}, "link": None}
            for name, type_ in widgets
        ]
    inputs = [(LOADER, *each) for each in (*sockets, *row)] + [(FOLLOWER, *strength)]
    chain = [(LOADER, 0, FOLLOWER, "model"), (FOLLOWER, 0, -20, "")]
    subgraph = subgraph_of(inside, inputs, chain)
    shown = [(each["name"], each["type"]) for each in subgraph["inputs"]]
    nodes = [
        (1, "UNETLoader", [], [("MODEL", "MODEL")], [FLUX, "default"], {}),
        (2, subgraph["id"], shown[:1], outputs, SET_OUTSIDE, {}),
        (3, "SaveLatent", [], [], ["unused"], {"mode": 2}),
    ]
    links = [Link(1, 0, 2, shown[0][0], "MODEL")]
    workflow = workflow_of(nodes, links, definitions={"subgraphs": [subgraph]})
    by_id(workflow)[2]["inputs"] += [
        {"name": name, "type": type_, "widget": {"name": name}, "link": None}
        for name, type_ in shown[1:]
    ]
    return workflow


def test_row_that_a_subgraph_sets_becomes_a_loader_that_it_sets(front_end, server, mode, picture):
    """Where the loader is missing, the front end has forgotten what was set, and given it to the
    next widget.
    """
    opened(front_end, promoted_workflow([[DIFFUSERS_LORA, 0.5, True]]))
    old = prompt(front_end)
    front_end.run_command(ALL)
    new = prompt(front_end)
    loader, follower = new[f"2:{LOADER}"], new[f"2:{FOLLOWER}"]
    assert [loader["class_type"], follower["class_type"]] == [OURS, OURS]
    found = [loader["inputs"][name] for name in ("lora_name", "strength_model")]
    assert [*found, follower["inputs"]["strength_model"]] == SET_OUTSIDE
    names = [each["name"] for each in by_id(front_end.workflow())[2]["inputs"][1:]]
    for name, value in zip(names, (BROKEN_LORA, 0.25, 0.375), strict=True):
        front_end.change(2, name, value)
    new = prompt(front_end)
    assert (
        new[f"2:{LOADER}"]["inputs"]
        | {
            "lora_name": BROKEN_LORA,
            "strength_model": 0.25,
        }
        == new[f"2:{LOADER}"]["inputs"]
    )
    assert new[f"2:{FOLLOWER}"]["inputs"]["strength_model"] == 0.375
    front_end.run_command(ALL_BACK)
    back = prompt(front_end)
    if "LoadLoraModel" in server.object_info():
        row = {"loras.0.lora_name": BROKEN_LORA, "loras.0.strength": 0.25, "loras.0.enabled": True}
        assert back[f"2:{LOADER}"]["inputs"].items() >= row.items()
        assert back.keys() == old.keys()
    else:  # back there, what was set would be forgotten
        expect_told(front_end, "has no node LoadLoraModel")
        assert back[f"2:{LOADER}"] == new[f"2:{LOADER}"]


def test_one_of_several_rows_that_is_set_elsewhere_is_told(front_end, mode):
    workflow = promoted_workflow([[DIFFUSERS_LORA, 0.5, True], [KOHYA_LORA, 1, True]])
    before = opened(front_end, workflow)
    front_end.run_command(ALL)
    expect_told(front_end, "sets loras.0.lora_name")
    inside = front_end.workflow()["definitions"]["subgraphs"][0]
    assert types(inside) == types(before["definitions"]["subgraphs"][0]) | {FOLLOWER: OURS}
