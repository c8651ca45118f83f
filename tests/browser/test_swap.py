"""LoRA loaders of the host and of other packs are replaced by this pack's, and back, in the real
front end.
"""

import itertools
import json

import pytest
from front_end import FrontEnd
from node_menu import choose_in_menu, open_node_menu
from playwright.sync_api import expect
from safetensors.torch import save
from swapping import (
    ALL,
    ALL_BACK,
    APPLY,
    BOXES,
    CHOSEN,
    CHOSEN_BACK,
    LOADER_INPUTS,
    LOADER_OUTPUTS,
    OURS,
    REPORT_OUTPUTS,
    STACK,
    STACK_INPUT,
    STRING,
    TITLE,
    Link,
    by_id,
    differences,
    expect_left,
    expect_told,
    foreign_workflow,
    forget_messages,
    look_for_changes,
    opened,
    overlaps,
    prompt,
    rows_of,
    types,
    undo_steps,
    workflow_of,
)
from tiny_models import BROKEN_LORA, CLIP_L, DIFFUSERS_LORA, FLUX, KOHYA_LORA, kohya_lora

MODEL, CLIP, STRENGTH, STYLE, MODEL_ONLY, INSPECT, PREVIEW = range(
    1, 8
)  # the nodes of stock_workflow()
MUTED, BYPASSED = 2, 4


STRENGTHS = itertools.count(1)  # the server runs again only what is new


def stock_workflow(lora: str = BROKEN_LORA) -> dict:
    """Two stock loaders in a row: one with title, colour, a group and a strength that another node
    sets; one model-only, bypassed, behind a reroute.
    """
    nodes = [
        (MODEL, "UNETLoader", [], [("MODEL", "MODEL")], [FLUX, "default"], {}),
        (CLIP, "CLIPLoader", [], [("CLIP", "CLIP")], [CLIP_L, "stable_diffusion", "default"], {}),
        (STRENGTH, "PrimitiveFloat", [], [("FLOAT", "FLOAT")], [next(STRENGTHS) / 100], {}),
        (
            STYLE,
            "LoraLoader",
            LOADER_INPUTS,
            LOADER_OUTPUTS,
            [lora, 0.5, 0.25],
            {
                "title": "My style",
                "color": "#322",
                "bgcolor": "#533",
                "flags": {"pinned": True},
                "properties": {"note": "mine"},
            },
        ),
        (
            MODEL_ONLY,
            "LoraLoaderModelOnly",
            LOADER_INPUTS[:1],
            LOADER_OUTPUTS[:1],
            [KOHYA_LORA, -0.5],
            {"mode": BYPASSED},
        ),
        (
            INSPECT,
            "LocksmithInspectLoRAKeys",
            LOADER_INPUTS,
            REPORT_OUTPUTS,
            [lora, "modules", "off"],
            {},
        ),
        (PREVIEW, "PreviewAny", [("source", "*")], [("STRING", "STRING")], [], {}),
    ]
    links = [
        Link(MODEL, 0, STYLE, "model", "MODEL"),
        Link(CLIP, 0, STYLE, "clip", "CLIP"),
        Link(STRENGTH, 0, STYLE, "strength_model", "FLOAT"),
        Link(STYLE, 0, MODEL_ONLY, "model", "MODEL"),
        Link(MODEL_ONLY, 0, INSPECT, "model", "MODEL"),
        Link(STYLE, 1, PREVIEW, "source", "CLIP"),
    ]
    reroute = {"id": 1, "pos": [350, 300], "linkIds": [4]}
    groups = [
        {
            "id": 1,
            "title": "Styles",
            "bounding": [1030, 20, 380, 600],
            "color": "#3f789e",
            "font_size": 24,
            "flags": {},
        }
    ]
    return workflow_of(
        nodes,
        links,
        groups=groups,
        extra={"reroutes": [reroute], "linkExtensions": [{"id": 4, "parentId": 1}]},
    )


@pytest.fixture
def before(front_end: FrontEnd, mode: str) -> dict:
    """The open workflow of stock loaders, as it is saved."""
    return opened(front_end, stock_workflow())


def choose(front_end: FrontEnd, *nodes: int) -> None:
    front_end.page.evaluate(
        "nodes => app.canvas.selectItems(nodes.map((node) => app.canvas.graph.getNodeById(node)))",
        list(nodes),
    )


def expect_replaced(front_end: FrontEnd, before: dict, kinds: dict[int, str]) -> None:
    """Wait until these nodes, and no others, are of these types, and all of that is done, which the
    message says.
    """
    front_end.wait_until(lambda: types(front_end.workflow()) == types(before) | kinds)
    expect_told(front_end, "LoRA loaders replaced")
    forget_messages(front_end)


def test_all_are_replaced_and_keep_what_they_had(front_end, before, picture):
    front_end.run_command(ALL)
    after = front_end.workflow()
    assert types(after) == types(before) | {STYLE: OURS, MODEL_ONLY: OURS}
    assert after["links"] == before["links"]
    assert (
        after["groups"] == before["groups"]
        and after["extra"]["reroutes"] == before["extra"]["reroutes"]
    )
    old, new = by_id(before), by_id(after)
    for loader in (STYLE, MODEL_ONLY):
        changed = differences(old[loader], new[loader])
        assert changed <= {
            "type",
            "inputs",
            "outputs",
            "widgets_values",
            "size",
            "properties",
            "showAdvanced",
            "widgets_values_named",
        }, changed
    assert [new[STYLE]["title"], new[STYLE]["flags"], new[STYLE]["color"]] == [
        "My style",
        {"pinned": True},
        "#322",
    ]
    assert new[STYLE]["widgets_values"] == [BROKEN_LORA, 0.5, 0.25, "report", "patch", ""]
    assert new[MODEL_ONLY]["widgets_values"] == [KOHYA_LORA, -0.5, 1, "report", "patch", ""]
    assert new[STYLE]["properties"]["note"] == "mine"
    assert [each["id"] for each in after["nodes"]] == [each["id"] for each in before["nodes"]]


def test_undo_and_redo_take_one_step(front_end, before):
    steps = undo_steps(front_end)
    front_end.run_command(ALL)
    after = front_end.workflow()
    assert undo_steps(front_end) == steps + 1
    front_end.settle()
    look_for_changes(front_end)
    assert undo_steps(front_end) == steps + 1
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: types(front_end.workflow()) == types(before))
    assert json.dumps(front_end.workflow(), sort_keys=True) == json.dumps(before, sort_keys=True)
    front_end.run_command("Comfy.Redo")
    front_end.wait_until(lambda: types(front_end.workflow()) == types(after))
    assert json.dumps(front_end.workflow(), sort_keys=True) == json.dumps(after, sort_keys=True)


def test_there_and_back_changes_nothing(front_end, before):
    front_end.run_command(ALL)
    front_end.settle()
    front_end.run_command(ALL_BACK)

    def off() -> list[float]:
        pairs = zip(before["nodes"], front_end.workflow()["nodes"], strict=True)
        return [abs(old["size"][1] - new["size"][1]) for old, new in pairs]

    front_end.wait_until(lambda: max(off()) < 10)  # Vue nodes are measured when drawn
    after = front_end.workflow()
    for old, new in zip(before["nodes"], after["nodes"], strict=True):
        new["size"] = old["size"]
    assert json.dumps(after, sort_keys=True) == json.dumps(before, sort_keys=True)


@pytest.mark.parametrize(
    ("flags", "node_mode"),
    [
        ({"collapsed": True}, 0),
        ({"pinned": True}, MUTED),
        ({"collapsed": True, "pinned": True}, BYPASSED),
    ],
    ids=["collapsed", "muted", "bypassed"],
)
def test_state_of_a_node_is_kept(front_end, mode, flags, node_mode):
    workflow = stock_workflow()
    by_id(workflow)[STYLE] |= {"flags": flags, "mode": node_mode}
    opened(front_end, workflow)
    for command, kind in ((ALL, OURS), (ALL_BACK, "LoraLoader")):
        front_end.run_command(command)
        loader = by_id(front_end.workflow())[STYLE]
        assert [loader["type"], loader["flags"], loader["mode"]] == [kind, flags, node_mode]


def test_prompt_differs_only_in_the_type_and_what_is_added(front_end, before):
    old = prompt(front_end)
    front_end.run_command(ALL)
    new = prompt(front_end)
    assert set(new) == set(old)
    for name, spec in new.items():
        if old[name]["class_type"] not in ("LoraLoader", "LoraLoaderModelOnly"):
            assert spec == old[name]
            continue
        assert spec["class_type"] == OURS
        added = {"on_unmatched": "report", "mode": "patch", "layer_weights": ""} | (
            {"strength_clip": 1} if name == str(MODEL_ONLY) else {}
        )
        assert spec["inputs"] == old[name]["inputs"] | added


def test_workflow_runs_after_the_swap(front_end, server, before):
    front_end.run_command(ALL)
    front_end.run()
    newest = next(iter(server.get("/history?max_items=1").values()))
    assert newest["status"]["status_str"] == "success"
    assert "22 of 22" in newest["outputs"][str(STYLE)]["text"][0]
    expect(front_end.report("My style")).to_be_visible()


def test_only_the_chosen_are_replaced(front_end, before):
    choose(front_end, MODEL_ONLY, PREVIEW)
    front_end.run_command(CHOSEN)
    assert types(front_end.workflow()) == types(before) | {MODEL_ONLY: OURS}
    assert front_end.page.evaluate(
        "[...app.canvas.selectedItems].map((node) => Number(node.id))"
    ) == [MODEL_ONLY]
    front_end.run_command(CHOSEN_BACK)
    assert types(front_end.workflow()) == types(before)


def test_key_replaces_all(front_end, before):
    front_end.page.keyboard.press("Control+Alt+f")
    expect_replaced(front_end, before, {STYLE: OURS, MODEL_ONLY: OURS})


def test_menu_of_a_node_replaces_it(front_end, before, picture):
    open_node_menu(front_end, MODEL_ONLY)
    choose_in_menu(front_end, "Replace with Load and Fix LoRA")
    expect_replaced(front_end, before, {MODEL_ONLY: OURS})
    open_node_menu(front_end, MODEL_ONLY)
    choose_in_menu(front_end, "Replace with Load LoRA")
    expect_replaced(front_end, before, {})


def test_menu_of_the_canvas_replaces_all(front_end, before, picture):
    front_end.page.mouse.click(700, 800, button="right")
    front_end.page.get_by_text("Replace all LoRA loaders with Load and Fix LoRA").click()
    expect_replaced(front_end, before, {STYLE: OURS, MODEL_ONLY: OURS})


def test_selected_loader_has_a_button(front_end, before, picture):
    choose(front_end, STYLE)
    front_end.page.get_by_role("button", name="Replace with Load and Fix LoRA").click()
    expect_replaced(front_end, before, {STYLE: OURS})


def test_loader_with_a_used_report_is_left_and_told(front_end, mode, picture):
    front_end.load_new()
    front_end.run_command(ALL_BACK)
    assert types(front_end.workflow())[2] == OURS
    expect_told(front_end, "uses an output")


def test_nothing_to_do_is_told(front_end):
    front_end.load_new()
    steps = undo_steps(front_end)
    front_end.run_command(ALL)
    expect_told(front_end, "no LoRA loader")
    assert undo_steps(front_end) == steps


@pytest.mark.parametrize("depth", [1, 2])
def test_loaders_in_subgraphs_keep_links_over_the_boundary(front_end, mode, picture, depth):
    opened(front_end, stock_workflow())
    old = prompt(front_end)
    for _ in range(depth):
        front_end.page.evaluate(
            """(nodes) => {
                const host = app.rootGraph.nodes.find((node) => node.subgraph);
                app.canvas.graph.convertToSubgraph(new Set(host ? [host] : nodes.map((node) => app.rootGraph.getNodeById(node))));
            }""",
            [STYLE, MODEL_ONLY],
        )
    look_for_changes(front_end)
    before, nested = front_end.workflow(), prompt(front_end)
    front_end.run_command(ALL)
    after, new = front_end.workflow(), prompt(front_end)
    assert sorted(spec["class_type"] for spec in nested.values()) == sorted(
        spec["class_type"] for spec in old.values()
    )
    for name, spec in new.items():
        assert nested[name]["inputs"].items() <= spec["inputs"].items()
        assert spec["class_type"] == (
            OURS
            if nested[name]["class_type"].startswith("LoraLoader")
            else nested[name]["class_type"]
        )
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: front_end.workflow() != after)
    assert prompt(front_end) == nested
    assert front_end.workflow()["definitions"] == before["definitions"]


def test_loader_in_an_open_subgraph_is_replaced_there(front_end, server, mode, picture):
    opened(front_end, stock_workflow())
    front_end.put_into_subgraph(STYLE)
    front_end.open_subgraph()
    subgraph = front_end.page.evaluate("app.canvas.graph.id")
    choose(front_end, STYLE)
    front_end.run_command(CHOSEN)
    assert front_end.page.evaluate("app.canvas.graph.id") == subgraph
    assert front_end.page.evaluate("app.canvas.graph.nodes.map((node) => node.type)") == [OURS]
    front_end.run()
    newest = next(iter(server.get("/history?max_items=1").values()))
    assert newest["status"]["status_str"] == "success"


def test_promoted_widget_stays_promoted(front_end, mode, picture):
    opened(front_end, stock_workflow())
    front_end.put_into_subgraph(STYLE)
    host = front_end.page.evaluate("""() => {
            const host = app.rootGraph.nodes.find((node) => node.subgraph), [inner] = host.subgraph.nodes;
            const slot = inner.inputs.findIndex((input) => input.name === "strength_clip");
            host.subgraph.inputNode.emptySlot.connect(inner.inputs[slot], inner);
            return Number(host.id);
        }""")
    front_end.change(host, "strength_clip", 0.3)
    (inner,) = (name for name in prompt(front_end) if ":" in name)
    front_end.run_command(ALL)
    assert front_end.value(host, "strength_clip") == 0.3
    front_end.change(host, "strength_clip", 0.4)
    assert prompt(front_end)[inner]["class_type"] == OURS
    assert prompt(front_end)[inner]["inputs"]["strength_clip"] == 0.4


POWER_ROWS = [
    {"on": True, "lora": BROKEN_LORA, "strength": 0.5, "strengthTwo": None},
    {"on": False, "lora": "kohya_plain", "strength": 1, "strengthTwo": None},
]
POWER = (
    "Power Lora Loader (rgthree)",
    LOADER_INPUTS,
    LOADER_OUTPUTS,
    [{}, {"type": "PowerLoraLoaderHeaderWidget"}, *POWER_ROWS, {}, ""],
    {},
)


def test_power_lora_loader_that_is_not_installed_becomes_a_working_stack(
    front_end, server, mode, picture
):
    workflow = foreign_workflow([POWER])
    by_id(workflow)[2] |= {
        "title": "My LoRAs",
        "properties": {"cnr_id": "rgthree-comfy", "ver": "1.0"},
    }
    opened(front_end, workflow)
    offer = front_end.page.get_by_role("status", name="Missing LoRA loaders: 1")
    expect(offer).to_contain_text("there is nothing to install")
    offer.get_by_role("button", name="Replace").click()
    front_end.wait_until(lambda: types(front_end.workflow())[2] == STACK)
    expect(offer).to_have_count(0)
    after = front_end.workflow()
    assert [by_id(after)[2]["type"], by_id(after)[2]["title"]] == [STACK, "My LoRAs"]
    assert "cnr_id" not in by_id(after)[2]["properties"]
    assert rows_of(after, 2) == [
        {"on": True, "name": BROKEN_LORA, "strength": 0.5},
        {"on": False, "name": KOHYA_LORA, "strength": 1},
    ]
    front_end.run()
    newest = next(iter(server.get("/history?max_items=1").values()))
    assert newest["status"]["status_str"] == "success"
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: types(front_end.workflow())[2] == POWER[0])


def test_offer_goes_with_its_workflow_and_comes_once(front_end, mode):
    opened(front_end, foreign_workflow([POWER]))
    offer = front_end.page.get_by_role("status", name="Missing LoRA loaders: 1")
    expect(offer).to_be_visible()
    front_end.run_command("Comfy.NewBlankWorkflow")
    expect(offer).to_have_count(0)
    opened(front_end, foreign_workflow([POWER]))
    offer.get_by_role("button", name="Not now").click()
    front_end.run_command("Comfy.NewBlankWorkflow")
    front_end.run_command("Workspace.PreviousOpenedWorkflow")
    front_end.settle()
    expect(offer).to_have_count(0)


def test_power_lora_loader_with_two_strengths(front_end):
    both = [{**POWER_ROWS[0], "strengthTwo": 0.25}, {**POWER_ROWS[0], "strength": 2}]
    opened(
        front_end,
        foreign_workflow(
            [(*POWER[:3], both, {"properties": {"Show Strengths": "Separate Model & Clip"}})]
        ),
    )
    front_end.run_command(ALL)
    assert rows_of(front_end.workflow(), 2) == [
        {"on": True, "name": BROKEN_LORA, "strength": 0.5, "strength_clip": 0.25},
        {"on": True, "name": BROKEN_LORA, "strength": 2, "strength_clip": 1},
    ]


EQUAL_BLOCKS = [
    "All",
    BROKEN_LORA,
    0.5,
    0.25,
    False,
    7,
    "fixed",
    4.0,
    1.0,
    "Preset",
    "1,1,1,1,1,1,1,1,1,1,1,1",
    False,
]
SINGLES = [
    (
        "LoraLoader|pysssss",
        LOADER_INPUTS,
        LOADER_OUTPUTS + STRING,
        [{"content": BROKEN_LORA, "image": None}, 0.5, 0.25],
        {},
    ),
    ("Lora Loader", LOADER_INPUTS, LOADER_OUTPUTS + STRING, [BROKEN_LORA, 0.5, 0.25], {}),
    ("CR Load LoRA", LOADER_INPUTS, LOADER_OUTPUTS + STRING, ["On", BROKEN_LORA, 0.5, 0.25], {}),
    ("LoraLoaderBlockWeight //Inspire", LOADER_INPUTS, LOADER_OUTPUTS + STRING, EQUAL_BLOCKS, {}),
    (
        "DiTBlockLoraLoader",
        LOADER_INPUTS[:1],
        [("model", "MODEL"), ("rank", "STRING")],
        [0.5, BROKEN_LORA],
        {},
    ),
    (
        "LTX2LoraLoaderAdvanced",
        LOADER_INPUTS[:1],
        [("model", "MODEL"), ("rank", "STRING"), ("loaded_keys_info", "STRING")],
        [BROKEN_LORA, 0.5, 1, 1, 1, 1, 1],
        {},
    ),
    (
        "MusubiTunerLoRALoaderModelOnly",
        LOADER_INPUTS[:1],
        LOADER_OUTPUTS[:1],
        [BROKEN_LORA, 0.5],
        {},
    ),
    (
        "ZImageTurboLoraLoader",
        LOADER_INPUTS[:1],
        LOADER_OUTPUTS[:1],
        [BROKEN_LORA, 0.5, True, "{}"],
        {},
    ),
]


def test_loaders_of_one_lora_of_other_packs_become_ours(front_end, picture):
    opened(front_end, foreign_workflow(SINGLES))
    front_end.run_command(ALL)
    after = by_id(front_end.workflow())
    for identifier, (kind, _inputs, outputs, *_) in enumerate(SINGLES, 2):
        assert after[identifier]["type"] == OURS, kind
        strength_clip = 0.25 if ("CLIP", "CLIP") in outputs else 1
        assert after[identifier]["widgets_values"] == [
            BROKEN_LORA,
            0.5,
            strength_clip,
            "report",
            "patch",
            "",
        ], kind
    models = [
        spec["inputs"]["model"]
        for name, spec in sorted(prompt(front_end).items(), key=lambda item: int(item[0]))
        if name != "1"
    ]
    assert models == [[str(identifier), 0] for identifier in range(1, len(SINGLES) + 2)]


STACKER = ["advanced", 2, BROKEN_LORA, 9, 0.5, 0.25, "None", 9, 1, 1] + ["None", 1, 1, 1] * 48
EASY = [True, "simple", 1, KOHYA_LORA, 0.7, 9, 9] + ["None", 1, 1, 1] * 9
SWITCHER_OUTPUTS = [("lora_stack", "LORA_STACK"), ("lora_name", "*")]


def switcher(*values) -> tuple:
    """easy loraSwitcher with these values, and what takes its list."""
    padded = [*values, *["None"] * (54 - len(values))]
    stack = [("optional_lora_stack", "LORA_STACK")]
    return ("easy loraSwitcher", stack, SWITCHER_OUTPUTS, padded, {}), APPLY


@pytest.mark.parametrize(
    ("values", "on"),
    [
        ([True, 2, 1, 0.5, BROKEN_LORA, KOHYA_LORA], [False, True]),
        ([True, 1, 3, 0.5, BROKEN_LORA, KOHYA_LORA], [True, False]),
        ([False, 1, 2, 0.5, BROKEN_LORA, KOHYA_LORA], [False, False]),
    ],
)
def test_a_switcher_becomes_rows_of_which_one_is_on(front_end, values, on):
    links = [Link(2, 0, 3, "lora_stack", "LORA_STACK")]
    opened(front_end, foreign_workflow(list(switcher(*values)), links))
    front_end.run_command(ALL)
    after = front_end.workflow()
    assert types(after) == {1: "UNETLoader", 3: STACK, 4: "LocksmithInspectLoRAKeys"}
    assert rows_of(after, 3) == [
        {"on": is_on, "name": name, "strength": 0.5}
        for is_on, name in zip(on, (BROKEN_LORA, KOHYA_LORA), strict=True)
    ]


def test_lists_of_loras_become_one_stack_with_what_applies_them(front_end, mode, picture):
    loaders = [
        (
            "easy loraStack",
            [("optional_lora_stack", "LORA_STACK")],
            [("lora_stack", "LORA_STACK")],
            EASY,
            {},
        ),
        ("LoRA Stacker", STACK_INPUT, [("LORA_STACK", "LORA_STACK")], STACKER, {}),
        (
            "CR LoRA Stack",
            STACK_INPUT,
            [("LORA_STACK", "LORA_STACK"), *STRING],
            ["Off", KOHYA_LORA, 1, 1, "On", DIFFUSERS_LORA, 1, 1, "On", "None", 1, 1],
            {},
        ),
        ("CR Apply LoRA Stack", [*LOADER_INPUTS, *STACK_INPUT], LOADER_OUTPUTS + STRING, [], {}),
    ]
    links = [Link(at, 0, at + 1, "lora_stack", "LORA_STACK") for at in (2, 3, 4)]
    opened(front_end, foreign_workflow(loaders, links))
    front_end.run_command(ALL)
    after = front_end.workflow()
    assert types(after) == {1: "UNETLoader", 5: STACK, 6: "LocksmithInspectLoRAKeys"}
    assert rows_of(after, 5) == [
        {"on": True, "name": BROKEN_LORA, "strength": 0.5, "strength_clip": 0.25},
        {"on": True, "name": KOHYA_LORA, "strength": 0.7},
        {"on": False, "name": KOHYA_LORA, "strength": 1},
        {"on": True, "name": DIFFUSERS_LORA, "strength": 1},
    ]
    assert {name: spec["inputs"].get("model") for name, spec in prompt(front_end).items()} == {
        "1": None,
        "5": ["1", 0],
        "6": ["5", 0],
    }


MANAGED = [{"name": "kohya_plain", "strength": "0.5", "clipStrength": 0.25, "active": True}]


MANAGER_OUTPUTS = [*LOADER_OUTPUTS, ("trigger_words", "STRING"), ("loaded_loras", "STRING")]
MANAGER = (
    "Lora Loader (LoraManager)",
    [LOADER_INPUTS[0], LOADER_INPUTS[1], *STACK_INPUT],
    MANAGER_OUTPUTS,
    ["<lora:kohya_plain:0.5>", MANAGED],
    {},
)
TAKER = ("PreviewAny", [("source", "*")], [("STRING", "STRING")], [], {})


def test_trigger_words_of_lora_manager_go_where_they_went(front_end, server):
    opened(front_end, foreign_workflow([MANAGER, TAKER], [Link(2, 2, 3, "source", "STRING")]))
    front_end.run_command(ALL)
    assert types(front_end.workflow())[2] == STACK
    (slot,) = {tuple(spec["inputs"]["source"]) for spec in takers(front_end)}
    assert slot[0] == "2"
    names = server.object_info()[STACK]["output_name"]
    assert names[slot[1]] == "trigger_words"


def takers(front_end) -> list[dict]:
    return [spec for spec in prompt(front_end).values() if spec["class_type"] == "PreviewAny"]


def test_other_loaders_of_many_become_stacks(front_end, picture):
    loaders = [
        MANAGER,
        (
            "Lora Loader Stack (rgthree)",
            LOADER_INPUTS,
            LOADER_OUTPUTS,
            [KOHYA_LORA, 0.5, "None", 1, "None", 1, BROKEN_LORA, 2],
            {},
        ),
        ("CR Load LoRA", LOADER_INPUTS, LOADER_OUTPUTS, ["Off", BROKEN_LORA, 0.5, 0.25], {}),
    ]
    opened(front_end, foreign_workflow(loaders))
    front_end.run_command(ALL)
    after = front_end.workflow()
    assert [types(after)[identifier] for identifier in (2, 3, 4)] == [STACK] * 3
    assert rows_of(after, 2) == [
        {"on": True, "name": KOHYA_LORA, "strength": 0.5, "strength_clip": 0.25}
    ]
    assert rows_of(after, 3) == [
        {"on": True, "name": KOHYA_LORA, "strength": 0.5},
        {"on": True, "name": BROKEN_LORA, "strength": 2},
    ]
    assert rows_of(after, 4) == [
        {"on": False, "name": BROKEN_LORA, "strength": 0.5, "strength_clip": 0.25}
    ]


LEFT = {
    "blocks": (
        [(*SINGLES[3][:3], [*EQUAL_BLOCKS[:10], "1,0,1", False], {})],
        [],
        "weights of their own",
    ),
    "layers of LTX-2": (
        [(*SINGLES[5][:3], [BROKEN_LORA, 0.5, 1, 1, 0.5, 1, 1], {})],
        [],
        "weights of their own",
    ),
    "nothing chosen": (
        list(switcher(True, 2, 2, 0.5, BROKEN_LORA)),
        [Link(2, 0, 3, "lora_stack", "LORA_STACK")],
        "names no LoRA",
    ),
    "by chance": (
        [("CR Random LoRA Stack", STACK_INPUT, [("LORA_STACK", "LORA_STACK")], [], {}), APPLY],
        [Link(2, 0, 3, "lora_stack", "LORA_STACK")],
        "by chance",
    ),
    "no LoRA": ([(*SINGLES[1][:3], ["None", 1, 1], {})], [], "names no LoRA"),
    "odd values": ([(*SINGLES[1][:3], [BROKEN_LORA, "strong", 1], {})], [], "not as expected"),
    "unknown file": (
        [("Lora Loader (LoraManager)", *POWER[1:3], ["", [MANAGED[0] | {"name": "nowhere"}]], {})],
        [],
        "nowhere",
    ),
    "set from outside": (
        [
            ("PrimitiveFloat", [], [("FLOAT", "FLOAT")], [1.0], {}),
            ("Lora Loader Stack (rgthree)", *POWER[1:3], [BROKEN_LORA, 1] * 4, {}),
        ],
        [Link(2, 0, 3, "strength_01", "FLOAT")],
        "sets strength_01",
    ),
    "output used": (
        [SINGLES[1], ("PreviewAny", [("source", "*")], [("STRING", "STRING")], [], {})],
        [Link(2, 2, 3, "source", "STRING")],
        "uses an output",
    ),
    "another output of LoRA Manager's used": (
        [MANAGER, TAKER],
        [Link(2, 3, 3, "source", "STRING")],
        "uses an output",
    ),
    "list from elsewhere": (
        [
            ("Somebody's list", [], [("LORA_STACK", "LORA_STACK")], [], {}),
            ("CR Apply LoRA Stack", [*LOADER_INPUTS, *STACK_INPUT], LOADER_OUTPUTS, [], {}),
        ],
        [Link(2, 0, 3, "lora_stack", "LORA_STACK")],
        "cannot be taken over",
    ),
}


@pytest.mark.parametrize(("loaders", "links", "reason"), LEFT.values(), ids=LEFT)
def test_what_cannot_be_replaced_without_loss_is_left_and_told(front_end, loaders, links, reason):
    expect_left(front_end, foreign_workflow(loaders, links), reason)


@pytest.mark.parametrize(("kind", "slot"), [(OURS, 5), (STACK, 7)])
def test_ours_whose_lora_model_is_used_is_left_and_told(front_end, kind, slot):
    outputs = [*LOADER_OUTPUTS, *[("text", "STRING")] * (slot - 2), ("LORA_MODEL", "LORA_MODEL")]
    values = [BROKEN_LORA, 0.5, 0.5] if kind == OURS else [json.dumps([{"name": BROKEN_LORA}])]
    was = {"properties": {"locksmith_from": "LoadLoraModel"}} if kind == STACK else {}
    taker = [*LOADER_INPUTS[:1], ("lora", "LORA_MODEL")]
    loaders = [
        (kind, LOADER_INPUTS, outputs, values, was),
        ("LoraModelLoader", taker, LOADER_OUTPUTS[:1], [1.0, False], {}),
    ]
    used = foreign_workflow(loaders, [Link(2, slot, 3, "lora", "LORA_MODEL")])
    expect_left(front_end, used, "uses an output", ALL_BACK)


def dense_workflow(lora: str = BROKEN_LORA) -> dict:
    """Two columns of stock loaders, one close below the other, and something below each; the second
    column is in a group.
    """
    nodes = [(1, "UNETLoader", [], [("MODEL", "MODEL")], [FLUX, "default"], {"pos": [40, 60]})]
    links, last = [], 1
    for identifier, place in enumerate(itertools.product((400, 760), (60, 230, 400)), 2):
        nodes.append(
            (
                identifier,
                "LoraLoaderModelOnly",
                LOADER_INPUTS[:1],
                LOADER_OUTPUTS[:1],
                [lora, 0.1],
                {"pos": list(place)},
            )
        )
        links.append(Link(last, 0, identifier, "model", "MODEL"))
        last = identifier
    inspect = (
        8,
        "LocksmithInspectLoRAKeys",
        LOADER_INPUTS,
        REPORT_OUTPUTS,
        [BROKEN_LORA, "modules", "off"],
        {"pos": [760, 620]},
    )
    note = (9, "PreviewAny", [("source", "*")], [("STRING", "STRING")], [], {"pos": [400, 570]})
    pinned = (
        10,
        "PreviewAny",
        [("source", "*")],
        [("STRING", "STRING")],
        [],
        {"pos": [40, 570], "flags": {"pinned": True}},
    )
    links.append(Link(last, 0, 8, "model", "MODEL"))
    for parts in nodes:
        parts[5]["size"] = [300, 110]
    group = {
        "id": 1,
        "title": "Second",
        "bounding": [750, 20, 320, 510],
        "color": "#3f789e",
        "font_size": 24,
        "flags": {},
    }
    return workflow_of([*nodes, inspect, note, pinned], links, groups=[group])


def test_swapped_loaders_have_room(front_end, mode, picture):
    before = opened(front_end, dense_workflow())
    assert overlaps(front_end.page.evaluate(BOXES)) == []
    steps = undo_steps(front_end)
    front_end.run_command(ALL)
    zoom = "(scale) => { app.canvas.ds.scale = scale; app.canvas.setDirty(true, true); }"
    scale = front_end.page.evaluate("app.canvas.ds.scale")
    front_end.page.evaluate(zoom, 0.7)  # all of them are drawn only where all are in view
    expect(front_end.page.get_by_role("status", name="File of Load and Fix LoRA")).to_have_count(6)
    front_end.page.evaluate(zoom, scale)
    front_end.settle()
    after = front_end.workflow()
    assert overlaps(front_end.page.evaluate(BOXES)) == []
    old, new = by_id(before), by_id(after)
    assert all(
        new[each]["pos"][0] == old[each]["pos"][0] and new[each]["pos"][1] >= old[each]["pos"][1]
        for each in old
    )
    assert [new[each]["pos"] for each in (1, 2, 5, 10)] == [
        old[each]["pos"] for each in (1, 2, 5, 10)
    ], "what nothing is above moved"
    (group,) = after["groups"]
    x, y, _, height = group["bounding"]
    inside = [box for box in front_end.page.evaluate(BOXES) if box["id"] in (5, 6, 7)]
    assert all(x <= box["x"] and y <= box["y"] and box["bottom"] <= y + height for box in inside)
    assert new[8]["pos"][1] - TITLE >= y + height, "the group covers what was below it"
    assert undo_steps(front_end) == steps + 1
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: types(front_end.workflow()) == types(before))
    assert json.dumps(front_end.workflow(), sort_keys=True) == json.dumps(before, sort_keys=True)


def test_swapped_loaders_have_room_for_what_is_wrong_with_their_files(
    front_end, lora_file, mode, picture
):
    tensors = {key.replace("_0_", "_7_"): value for key, value in kohya_lora().items()}
    lora_file("swap_partly.safetensors", save(tensors))
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    opened(front_end, dense_workflow("swap_partly.safetensors"))
    front_end.page.evaluate("(scale) => { app.canvas.ds.scale = scale; }", 0.5)
    front_end.run_command(ALL)
    expect(front_end.page.locator(".locksmith-wrong:not([hidden]) p")).not_to_have_count(0)
    expect(front_end.page.locator(".locksmith-wrong:not([hidden])")).to_have_count(6)
    front_end.settle()
    assert overlaps(front_end.page.evaluate(BOXES)) == []


def test_swapped_loaders_have_room_in_a_subgraph(front_end, mode, picture):
    opened(front_end, dense_workflow())
    front_end.page.evaluate(
        "() => { app.canvas.graph.convertToSubgraph(new Set(app.rootGraph.nodes.filter((node) =>"
        " node.id > 1 && node.id < 8))); }"
    )
    front_end.run_command(ALL)
    front_end.open_subgraph()
    files = front_end.page.get_by_role(
        "status", name="File of Load and Fix LoRA", include_hidden=True
    )
    expect(files).to_have_count(6)  # the classic canvas hides them where it is shown small
    front_end.settle()
    assert overlaps(front_end.page.evaluate(BOXES)) == []
