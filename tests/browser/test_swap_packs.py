"""Loaders of packs that are not installed, as their own front ends save them, are replaced or left with
the reason.
"""

import json

import pytest
from swapping import (
    ALL,
    APPLY,
    LOADER_INPUTS,
    LOADER_OUTPUTS,
    OURS,
    STACK,
    STACK_INPUT,
    STRING,
    Link,
    by_id,
    expect_left,
    expect_told,
    foreign_workflow,
    opened,
    prompt,
    rows_of,
    types,
)
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, FLUX, KOHYA_LORA

HOOK_STACK = "LocksmithCreateHookLoRAStack"
LISTS = [("LORA_STACK", "LORA_STACK")]
TAGS = [("civitai_tags_list", "LIST"), ("meta_tags_list", "LIST")]
TAKER = ("PreviewAny", [("source", "*")], [("STRING", "STRING")], [], {})
SHOWN = {"content": BROKEN_LORA, "image": "loras/one.png", "type": "loras"}
SINGLES = [
    ("Load Lora", LOADER_INPUTS, [*LOADER_OUTPUTS, *STRING], [BROKEN_LORA, 0.5, 0.25], {}),
    (
        "LoraLoaderVanilla",
        LOADER_INPUTS,
        [*LOADER_OUTPUTS, *TAGS],
        [BROKEN_LORA, 0.5, 0.25, True, True],
        {},
    ),
    (
        "LoraLoaderAdvanced",
        LOADER_INPUTS,
        [*LOADER_OUTPUTS, *TAGS],
        [SHOWN, 0.5, 0.25, False, True, False],
        {},
    ),
    (
        "LoraLoaderTagsQuery",
        LOADER_INPUTS,
        [*LOADER_OUTPUTS, *STRING],
        [BROKEN_LORA, 0.5, 0.25, True, True, False, False, False],
        {},
    ),
    ("SDLoraLoader", LOADER_INPUTS, LOADER_OUTPUTS, [BROKEN_LORA, 0.5, 0.25], {}),
    ("Lora Loader (JPS)", LOADER_INPUTS, LOADER_OUTPUTS, ["On", BROKEN_LORA, 0.5, 0.25], {}),
    (
        "HunyuanVideoLoraLoader",
        LOADER_INPUTS[:1],
        [("model", "MODEL")],
        [BROKEN_LORA, 0.5, "all"],
        {},
    ),
]


def test_loaders_of_one_lora_become_ours(front_end, picture):
    opened(front_end, foreign_workflow(SINGLES))
    front_end.run_command(ALL)
    after = by_id(front_end.workflow())
    for identifier, (kind, _inputs, outputs, *_) in enumerate(SINGLES, 2):
        clip = 0.25 if ("CLIP", "CLIP") in outputs else 1
        assert after[identifier]["type"] == OURS, kind
        assert after[identifier]["widgets_values"][:3] == [BROKEN_LORA, 0.5, clip], kind
    models = [spec["inputs"].get("model") for spec in prompt(front_end).values()]
    assert [link for link in models if link] == [[str(at), 0] for at in range(1, len(SINGLES) + 2)]


def test_what_is_off_becomes_a_row_that_is_off(front_end):
    tags = (*SINGLES[3][:3], [BROKEN_LORA, 0.5, 0.25, True, True, False, True, False], {})
    jps = (*SINGLES[5][:3], ["Off", BROKEN_LORA, 0.5, 0.25], {})
    opened(front_end, foreign_workflow([tags, jps]))
    front_end.run_command(ALL)
    after = front_end.workflow()
    row = {"on": False, "name": BROKEN_LORA, "strength": 0.5, "strength_clip": 0.25}
    assert [types(after)[at] for at in (2, 3)] == [STACK, STACK]
    assert [rows_of(after, at) for at in (2, 3)] == [[row], [row]]


def test_a_strength_of_another_name_goes_on_being_set(front_end):
    number = ("PrimitiveFloat", [], [("FLOAT", "FLOAT")], [0.75], {})
    opened(
        front_end,
        foreign_workflow([number, SINGLES[-1]], [Link(2, 0, 3, "strength", "FLOAT")]),
    )
    front_end.run_command(ALL)
    spec = prompt(front_end)["3"]
    assert spec["class_type"] == OURS and spec["inputs"]["strength_model"] == ["2", 0]


CHOSEN = [
    {"on": True, "lora": KOHYA_LORA, "strength": 0.5, "strength_clip": 0.25, "use_trigger": True},
    {"on": False, "lora": DIFFUSERS_LORA, "strength": 1, "strength_clip": 1},
]


def gallery(kind: str, inputs: list, outputs: list) -> tuple:
    """One of Local Lora Gallery's, which keeps what is chosen twice."""
    chosen = json.dumps(CHOSEN)
    values = ["lora-gallery-1", chosen, ""]
    return (kind, inputs, outputs, values, {"properties": {"selection_data": chosen}})


def test_galleries_become_stacks_of_what_is_chosen(front_end, mode, picture):
    words = [("trigger_words", "STRING")]
    loaders = [
        gallery("LocalLoraGallery", LOADER_INPUTS, [*LOADER_OUTPUTS, *words]),
        gallery("LocalLoraGalleryModelOnly", LOADER_INPUTS[:1], [*LOADER_OUTPUTS[:1], *words]),
        gallery("LocalLoraGalleryStacker", [], [("lora_stack", "LORA_STACK"), *words]),
        ("LocalLoraGalleryStackApply", [*STACK_INPUT, *LOADER_INPUTS], LOADER_OUTPUTS, [], {}),
    ]
    opened(front_end, foreign_workflow(loaders, [Link(4, 0, 5, "lora_stack", "LORA_STACK")]))
    front_end.run_command(ALL)
    after = front_end.workflow()
    assert {at: types(after).get(at) for at in (2, 3, 4, 5)} == {
        2: STACK,
        3: STACK,
        4: None,
        5: STACK,
    }
    on = {"on": True, "name": KOHYA_LORA, "strength": 0.5}
    off = {"on": False, "name": DIFFUSERS_LORA, "strength": 1}
    assert rows_of(after, 2) == [on | {"strength_clip": 0.25}, off]
    assert rows_of(after, 3) == rows_of(after, 5) == [on, off]


def test_lists_of_auto_trigger_words_and_of_tiny_terra_become_rows(front_end, picture):
    """What the first takes comes behind its own; the last takes no list."""
    pipe = [("optional_pipe", "PIPE_LINE"), ("lora_stack", "LORA_STACK")]
    values = [True, "advanced", 2, BROKEN_LORA, 9, 0.5, 0.25, "None", 9, 9, 9]
    loaders = [
        ("ttN pipeLoraStack", [], pipe, values + ["None", 1, 1, 1] * 18, {}),
        (
            "LoraLoaderStackedVanilla",
            STACK_INPUT,
            [*TAGS, *LISTS],
            [DIFFUSERS_LORA, 0.75, False, False],
            {},
        ),
        (
            "LoraLoaderStackedAdvanced",
            STACK_INPUT,
            [*TAGS, *LISTS],
            [SHOWN | {"content": KOHYA_LORA}, -1, False, False, False],
            {},
        ),
        APPLY,
    ]
    links = [
        Link(at, slot, at + 1, "lora_stack", "LORA_STACK") for at, slot in ((2, 1), (3, 2), (4, 2))
    ]
    opened(front_end, foreign_workflow(loaders, links))
    front_end.run_command(ALL)
    after = front_end.workflow()
    assert types(after) == {1: "UNETLoader", 5: STACK, 6: "LocksmithInspectLoRAKeys"}
    assert rows_of(after, 5) == [
        {"on": True, "name": KOHYA_LORA, "strength": -1},
        {"on": True, "name": DIFFUSERS_LORA, "strength": 0.75},
        {"on": True, "name": BROKEN_LORA, "strength": 0.5, "strength_clip": 0.25},
    ]


def managed(kind: str, *rows: tuple[str, float, bool], **parts) -> tuple:
    """One of LoRA Manager's; it leaves out endings."""
    entries = [
        {"name": name.split(".")[0], "strength": at, "clipStrength": at, "active": on}
        for name, at, on in rows
    ]
    return (kind, parts["inputs"], parts["outputs"], ["", entries], {})


@pytest.mark.parametrize(
    "names", [("lora_stack1", "lora_stack10"), ("lora_stack_a", "lora_stack_b")]
)
def test_combined_lists_keep_the_order_of_their_inputs(front_end, names, picture):
    first, second = names
    lists = {"inputs": STACK_INPUT, "outputs": LISTS}
    loaders = [
        managed("Lora Stacker (LoraManager)", (KOHYA_LORA, 0.5, True), **lists),
        managed("Lora Stacker (LoraManager)", (DIFFUSERS_LORA, 1, False), **lists),
        (
            "Lora Stack Combiner (LoraManager)",
            [(second, "LORA_STACK"), (first, "LORA_STACK"), ("lora_stack2", "LORA_STACK")],
            LISTS,
            [],
            {},
        ),
        APPLY,
    ]
    links = [
        Link(3, 0, 4, second, "LORA_STACK"),
        Link(2, 0, 4, first, "LORA_STACK"),
        Link(4, 0, 5, "lora_stack", "LORA_STACK"),
    ]
    opened(front_end, foreign_workflow(loaders, links))
    front_end.run_command(ALL)
    after = front_end.workflow()
    assert types(after) == {1: "UNETLoader", 5: STACK, 6: "LocksmithInspectLoRAKeys"}
    assert rows_of(after, 5) == [
        {"on": True, "name": KOHYA_LORA, "strength": 0.5},
        {"on": False, "name": DIFFUSERS_LORA, "strength": 1},
    ]


HOOKS = [("HOOKS", "HOOKS"), ("trigger_words", "STRING"), ("active_loras", "STRING")]
HOOK_INPUTS = [("prev_hooks", "HOOKS")]
STOCK_HOOK = ("CreateHookLora", HOOK_INPUTS, HOOKS[:1], [BROKEN_LORA, 1, 1], {})


def manager_hook() -> tuple:
    rows = [(KOHYA_LORA, 0.5, True), (DIFFUSERS_LORA, 1, False)]
    sockets = {"inputs": HOOK_INPUTS, "outputs": HOOKS}
    return managed("Create Hook LoRA (LoraManager)", *rows, **sockets)


def test_hooks_of_many_become_a_stack_of_hooks(front_end, mode, picture):
    links = [Link(2, 0, 3, "prev_hooks", "HOOKS"), Link(3, 0, 4, "prev_hooks", "HOOKS")]
    opened(front_end, foreign_workflow([STOCK_HOOK, manager_hook(), STOCK_HOOK], links))
    front_end.run_command(ALL)
    after = front_end.workflow()
    assert types(after)[3] == HOOK_STACK
    assert rows_of(after, 3) == [
        {"on": True, "name": KOHYA_LORA, "strength": 0.5},
        {"on": False, "name": DIFFUSERS_LORA, "strength": 1},
    ]
    ends = {link[1]: link[3] for link in after["links"] if link[5] == "HOOKS"}
    assert ends == {2: 3, 3: 4}


NUNCHAKU = ("NunchakuPulidApply", LOADER_INPUTS[:1], LOADER_OUTPUTS[:1], [], {})
PATCH = ("Somebody's patch", LOADER_INPUTS[:1], LOADER_OUTPUTS[:1], [], {})
EFFICIENT = [FLUX, "Baked VAE", -1, KOHYA_LORA, 1, 1, "", "", "none", "comfy", 64, 64, 1]
MANAGER = managed(
    "Lora Loader (LoraManager)",
    (KOHYA_LORA, 0.5, True),
    inputs=[("model", "MODEL"), ("clip", "CLIP"), *STACK_INPUT],
    outputs=[*LOADER_OUTPUTS, *STRING],
)
LEFT = {
    "tags used": ([SINGLES[1], TAKER], [Link(2, 2, 3, "source", "LIST")], "uses an output"),
    "name overridden": (
        [
            ("PrimitiveString", [], [("STRING", "STRING")], [KOHYA_LORA], {}),
            (SINGLES[1][0], [*LOADER_INPUTS, ("override_lora_name", "STRING")], *SINGLES[1][2:]),
        ],
        [Link(2, 0, 3, "override_lora_name", "STRING")],
        "sets override_lora_name",
    ),
    "some blocks": (
        [(*SINGLES[-1][:3], [BROKEN_LORA, 0.5, "single_blocks"], {})],
        [],
        "weights of their own",
    ),
    "broken gallery": (
        [("LocalLoraGallery", LOADER_INPUTS, LOADER_OUTPUTS, ["id", "nothing"], {})],
        [],
        "not as expected",
    ),
    "gallery's words": (
        [
            gallery("LocalLoraGalleryModelOnly", LOADER_INPUTS[:1], [*LOADER_OUTPUTS[:1], *STRING]),
            TAKER,
        ],
        [Link(2, 1, 3, "source", "STRING")],
        "uses an output",
    ),
    "list into a stack that drops it": (
        [
            ("LoraLoaderStackedVanilla", STACK_INPUT, [*TAGS, *LISTS], [KOHYA_LORA, 1], {}),
            ("ttN pipeLoraStack", [("optional_lora_stack", "LORA_STACK")], LISTS * 2, [True], {}),
            APPLY,
        ],
        [
            Link(2, 2, 3, "optional_lora_stack", "LORA_STACK"),
            Link(3, 1, 4, "lora_stack", "LORA_STACK"),
        ],
        "cannot be taken over",
    ),
    "words of a hook": (
        [manager_hook(), TAKER],
        [Link(2, 1, 3, "source", "STRING")],
        "uses an output",
    ),
    "Nunchaku's model": ([NUNCHAKU, PATCH, MANAGER], [], "only its own loaders know"),
    "Nunchaku's loader": (
        [("NunchakuFluxLoraLoader", LOADER_INPUTS[:1], LOADER_OUTPUTS[:1], [KOHYA_LORA, 1], {})],
        [],
        "only its own loaders know",
    ),
    "WanVideoWrapper's": (
        [("WanVideoLoraSelect", [], [("lora", "WANVIDLORA")], [KOHYA_LORA, 1], {})],
        [],
        "only its own loaders know",
    ),
    "LoRA in a loader of models": (
        [("Efficient Loader", [], LOADER_OUTPUTS[:1], EFFICIENT, {})],
        [],
        "its LoRAs in one",
    ),
    "list in a loader of models": (
        [
            ("LoraLoaderStackedVanilla", STACK_INPUT, [*TAGS, *LISTS], [KOHYA_LORA, 1], {}),
            (
                "easy fullLoader",
                [("optional_lora_stack", "LORA_STACK")],
                LOADER_OUTPUTS,
                [FLUX],
                {},
            ),
        ],
        [Link(2, 2, 3, "optional_lora_stack", "LORA_STACK")],
        "its LoRAs in one",
    ),
    "text in a loader of models": (
        [("ttN pipeLoader_v2", [], LOADER_OUTPUTS[:1], [FLUX, "<lora:kohya_plain:1>"], {})],
        [],
        "its LoRAs in one",
    ),
    "text": (
        [("LoraTagLoader", LOADER_INPUTS, [*LOADER_OUTPUTS, *STRING], ["<lora:kohya:1>"], {})],
        [],
        "in a text in a way of its own",
    ),
}


@pytest.mark.parametrize(("loaders", "links", "reason"), LEFT.values(), ids=LEFT)
def test_what_cannot_be_replaced_without_loss_is_left_and_told(front_end, loaders, links, reason):
    expect_left(front_end, foreign_workflow(loaders, links), reason)


def test_the_types_that_open_with_the_page_are_those_whose_rows_are_known(front_end):
    """They stand apart, as what is known of their rows is loaded when it is first wanted."""
    apart = front_end.page.evaluate(
        """async () => {
            const swap = "/extensions/lora-locksmith/swap";
            const { canReplace, SINGLES } = await import(`${swap}/loaders.mjs`);
            const { MULTIPLES } = await import(`${swap}/many.mjs`);
            const { LISTS } = await import(`${swap}/makers.mjs`);
            const known = [...Object.keys(SINGLES), ...Object.keys(MULTIPLES)];
            const makers = Object.keys(LISTS).filter((type) => LISTS[type].makes);
            return [known.filter((type) => !canReplace({ type }, "ours")), makers.filter((type) => canReplace({ type }, "ours")), known.length];
        }"""
    )
    assert apart[:2] == [[], []] and apart[2] > 30


def test_a_loader_of_models_without_a_lora_is_no_loader_of_loras(front_end):
    values = [*EFFICIENT[:3], "None", *EFFICIENT[4:]]
    opened(front_end, foreign_workflow([("Efficient Loader", [], LOADER_OUTPUTS[:1], values, {})]))
    front_end.run_command(ALL)
    expect_told(front_end, "no LoRA loader to replace")
