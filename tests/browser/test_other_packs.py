"""Other packs' loaders beside this pack, in the real front end: what they load, what ours load once
they are swapped, and what Load and Fix LoRA loads are the same.

LOCKSMITH_PACKS names a folder with the packs; the loaders of those that are not in it are left out.
LOCKSMITH_PACKS_PYTHON names a Python in which what they require is installed beside what ComfyUI
requires; without it the tests' own is taken. CI, which gets packages only, leaves this out.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import comfy_server
import pytest
import torch
from swapping import (
    ALL,
    LOADER_INPUTS,
    LOADER_OUTPUTS,
    OURS,
    STACK,
    Link,
    expect_left,
    latent_of,
    opened,
    prompt,
    sampled,
    types,
)
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, KOHYA_LORA

ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.environ.get("LOCKSMITH_PACKS", "")
PYTHON = Path(os.environ.get("LOCKSMITH_PACKS_PYTHON") or sys.executable)
FIRST, CLOSE = 20, 1e-5
LORA_STACK = [("lora_stack", "LORA_STACK")]
MADE = [("LORA_STACK", "LORA_STACK")]
MODEL_ONLY = ([("model", "MODEL")], [("MODEL", "MODEL")])
ONE, TWO = (DIFFUSERS_LORA, 0.8), (KOHYA_LORA, -0.5)

pytestmark = pytest.mark.skipif(not FOLDER, reason="LOCKSMITH_PACKS names no folder of packs")


class Door(NamedTuple):
    """Nodes that follow one another, each giving the next its LORA_STACK; the last one loads."""

    nodes: list[tuple]
    rows: list[tuple[str, float]]

    @property
    def kinds(self) -> list[str]:
        return [node[0] for node in self.nodes]


def loader(kind: str, values: list, sockets=(LOADER_INPUTS, LOADER_OUTPUTS), **extra) -> tuple:
    return (kind, list(sockets[0]), list(sockets[1]), values, extra)


def maker(kind: str, values: list, outputs=MADE, takes: str = "lora_stack") -> tuple:
    return (kind, [(takes, "LORA_STACK")], list(outputs), values, {})


def managed(*rows: tuple[str, float]) -> list:
    """What LoRA Manager keeps; it leaves out endings."""
    entries = [
        {"name": name.split(".")[0], "strength": at, "clipStrength": at, "active": True}
        for name, at in rows
    ]
    text = " ".join(f"<lora:{each['name']}:{each['strength']}>" for each in entries)
    return [text, entries]


def power(*rows: tuple[str, float]) -> list:
    kept = [{"on": True, "lora": name, "strength": at, "strengthTwo": None} for name, at in rows]
    return [{}, {"type": "PowerLoraLoaderHeaderWidget"}, *kept, {}, ""]


def padded(values: list, filler: list, count: int) -> list:
    return [*values, *filler * (count - len(values) // len(filler))]


COMFYROLL = ["On", *ONE, ONE[1], "On", *TWO, TWO[1], "Off", "None", 1, 1]
EFFICIENT = [
    "simple",
    2,
    *padded([*ONE, 1, 1, *TWO, 1, 1], ["None", 1, 1, 1], 50),
]  # name, weight, model, clip
EASY = [True, "simple", 2, *padded([*ONE, 1, 1, *TWO, 1, 1], ["None", 1, 1, 1], 10)]
APPLY = loader("CR Apply LoRA Stack", [], ([*LOADER_INPUTS, *LORA_STACK], LOADER_OUTPUTS))
EASY_APPLY = loader(
    "easy loraStackApply",
    [],
    (
        [*LORA_STACK, ("model", "MODEL"), ("optional_clip", "CLIP")],
        [("model", "MODEL"), ("clip", "CLIP")],
    ),
)
CONTENT = {"content": ONE[0], "image": None, "type": "loras"}
AUTO_TRIGGER = [("civitai_tags_list", "LIST"), ("meta_tags_list", "LIST"), *MADE]
GALLERY = [
    {"on": True, "lora": name, "strength": at, "strength_clip": at, "use_trigger": True}
    for name, at in (ONE, TWO)
]
CHOSEN = ["lora-gallery-1", json.dumps(GALLERY)]
GALLERY_PARTS = {"properties": {"selection_data": CHOSEN[1]}}
GALLERY_APPLY = loader(
    "LocalLoraGalleryStackApply", [], ([*LORA_STACK, *LOADER_INPUTS], LOADER_OUTPUTS)
)
TINY_TERRA = [True, "simple", 2, *padded([*ONE, 1, 1, *TWO, 1, 1], ["None", 1, 1, 1], 20)]
ALL_BLOCKS = ",".join(["1"] * 58)
INSPIRE = ["All", *ONE, ONE[1], False, 0, "fixed", 4.0, 1.0, "Preset", ALL_BLOCKS, False]
DOORS = {
    "rgthree power": Door([loader("Power Lora Loader (rgthree)", power(ONE, TWO))], [ONE, TWO]),
    "rgthree stack": Door(
        [loader("Lora Loader Stack (rgthree)", [*ONE, *TWO, "None", 1, "None", 1])], [ONE, TWO]
    ),
    "comfyroll": Door([loader("CR Load LoRA", ["On", *ONE, ONE[1]])], [ONE]),
    "comfyroll stack": Door([maker("CR LoRA Stack", COMFYROLL), APPLY], [ONE, TWO]),
    "efficient into comfyroll": Door([maker("LoRA Stacker", EFFICIENT), APPLY], [ONE, TWO]),
    "easy": Door(
        [
            maker("easy loraStack", EASY, LORA_STACK, "optional_lora_stack"),
            EASY_APPLY,
        ],
        [ONE, TWO],
    ),
    "manager": Door(
        [
            loader(
                "Lora Loader (LoraManager)",
                managed(ONE, TWO),
                ([*LOADER_INPUTS, *LORA_STACK], LOADER_OUTPUTS),
            )
        ],
        [ONE, TWO],
    ),
    "manager into comfyroll": Door(
        [maker("Lora Stacker (LoraManager)", managed(ONE, TWO)), APPLY], [ONE, TWO]
    ),
    "inspire": Door([loader("LoraLoaderBlockWeight //Inspire", INSPIRE)], [ONE]),
    "custom scripts": Door([loader("LoraLoader|pysssss", [*ONE, ONE[1]])], [ONE]),
    "auto trigger": Door([loader("LoraLoaderVanilla", [*ONE, ONE[1], False, False])], [ONE]),
    "auto trigger, advanced": Door(
        [loader("LoraLoaderAdvanced", [CONTENT, ONE[1], ONE[1], False, False, False])], [ONE]
    ),
    "auto trigger into comfyroll": Door(
        [
            maker("LoraLoaderStackedVanilla", [*TWO, False, False], AUTO_TRIGGER),
            maker("LoraLoaderStackedVanilla", [*ONE, False, False], AUTO_TRIGGER),
            APPLY,
        ],
        [ONE, TWO],
    ),
    "tags query": Door(
        [loader("LoraLoaderTagsQuery", [*ONE, ONE[1], False, True, False, False, False])], [ONE]
    ),
    "jps": Door([loader("Lora Loader (JPS)", ["On", *ONE, ONE[1]])], [ONE]),
    "hunyuan": Door([loader("HunyuanVideoLoraLoader", [*ONE, "all"], MODEL_ONLY)], [ONE]),
    "gallery": Door([loader("LocalLoraGallery", CHOSEN, **GALLERY_PARTS)], [ONE, TWO]),
    "gallery, model only": Door(
        [
            loader(
                "LocalLoraGalleryModelOnly",
                CHOSEN,
                (MODEL_ONLY[0], [*MODEL_ONLY[1], ("trigger_words", "STRING")]),
                **GALLERY_PARTS,
            )
        ],
        [ONE, TWO],
    ),
    "gallery's stack": Door(
        [("LocalLoraGalleryStacker", [], MADE, CHOSEN, GALLERY_PARTS), GALLERY_APPLY],
        [ONE, TWO],
    ),
    "tinyterra into comfyroll": Door(
        [
            ("ttN pipeLoraStack", [], [("optional_pipe", "PIPE_LINE"), *MADE], TINY_TERRA, {}),
            APPLY,
        ],
        [ONE, TWO],
    ),
    "manager's combiner into comfyroll": Door(
        [
            maker("Lora Stacker (LoraManager)", managed(ONE, TWO)),
            maker("Lora Stack Combiner (LoraManager)", [], takes="lora_stack1"),
            APPLY,
        ],
        [ONE, TWO],
    ),
    "kj": Door([loader("DiTBlockLoraLoader", [ONE[1], ONE[0]], MODEL_ONLY)], [ONE]),
}


@pytest.fixture(scope="module")
def server(comfyui_path, tiny_models_folder, tmp_path_factory) -> Iterator[comfy_server.Server]:
    """A server with all the packs beside this one. LoRA Manager keeps its list of files among the
    user's settings: that of another run would be of files that are gone.
    """
    base = comfy_server.prepare_base(tmp_path_factory.mktemp("packs"), ROOT)
    shutil.copytree(tiny_models_folder, base / "models", dirs_exist_ok=True)
    for pack in sorted(path for path in Path(FOLDER).iterdir() if path.is_dir()):
        shutil.copytree(pack, base / "custom_nodes" / pack.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(base / "settings"))
        with comfy_server.Server(PYTHON, comfyui_path, base, base / "server.log") as running:
            yield running
    assert not comfy_server.complaints_about_the_pack(running.log_text())


@pytest.fixture(autouse=True)
def nothing_to_complain_of(front_end) -> Iterator[None]:
    """What the console is told by others is theirs."""
    yield
    said, front_end.said = front_end.said, []
    assert not [line for line in said if "locksmith" in line]


def workflow_through(door: Door, after: Sequence[Link] = ()) -> dict:
    """A workflow in which what the door loads is sampled; without nodes the bare model."""
    nodes = [(FIRST + at, *node) for at, node in enumerate(door.nodes)]
    last = FIRST + len(door.nodes) - 1
    sockets = [name for name, _ in door.nodes[-1][1]]
    clip = next((name for name in sockets if name.endswith("clip")), "")
    links = [
        Link(1, 0, last, "model", "MODEL"),
        *([Link(2, 0, last, clip, "CLIP")] if clip else []),
        *(
            Link(FIRST + at, list_of(node), FIRST + at + 1, stack_of(taker), "LORA_STACK")
            for at, (node, taker) in enumerate(itertools.pairwise(door.nodes))
        ),
        Link(last, 1, 5, "clip", "CLIP") if clip else Link(2, 0, 5, "clip", "CLIP"),
        Link(last, 0, 8, "model", "MODEL"),
        *after,
    ]
    return sampled(nodes, links, "packs")


def list_of(node: tuple) -> int:
    """The slot of the output in which a node gives its LORA_STACK."""
    return [kind for _, kind in node[2]].index("LORA_STACK")


def stack_of(node: tuple) -> str:
    return next(name for name, kind in node[1] if kind == "LORA_STACK")


def ours(spec: dict, rows: list[tuple[str, float]], clip: bool) -> dict:
    """The prompt with a Load and Fix LoRA for each row in the place of all loaders."""
    kept = {name: part for name, part in spec.items() if int(name) < FIRST}
    model, text = ["1", 0], ["2", 0]
    for number, (name, strength) in enumerate(rows):
        inputs = {"model": model, "lora_name": name, "strength_model": strength}
        inputs |= {"strength_clip": strength} | ({"clip": text} if clip else {})
        kept[f"{100 + number}"] = {"class_type": OURS, "inputs": inputs}
        model = [f"{100 + number}", 0]
        text = [f"{100 + number}", 1] if clip else text
    kept["5"] = {**kept["5"], "inputs": kept["5"]["inputs"] | {"clip": text}}
    kept["8"] = {**kept["8"], "inputs": kept["8"]["inputs"] | {"model": model}}
    return kept


def takes_clip(spec: dict, door: Door) -> bool:
    inputs = spec[str(FIRST + len(door.nodes) - 1)]["inputs"].values()
    return ["2", 0] in inputs


def same(found: torch.Tensor, expected: torch.Tensor, bare: torch.Tensor) -> None:
    """The changes are the same, in parts of the change."""
    change = (expected - bare).norm()
    assert change > 1e-4 * bare.norm(), "the LoRAs change nothing"
    assert (found - expected).norm() <= CLOSE * change


@pytest.fixture
def door(request, server) -> Door:
    """A door all of whose nodes are there."""
    found = DOORS[request.param]
    missing = set(found.kinds) - server.object_info().keys()
    if missing:
        pytest.skip(f"{', '.join(sorted(missing))}: not among the packs of LOCKSMITH_PACKS")
    return found


@pytest.mark.parametrize("door", DOORS, indirect=True)
def test_a_loader_gives_the_same_before_and_after_it_is_swapped(
    front_end, server, mode, door, picture
):
    before = opened(front_end, workflow_through(door))
    spec = prompt(front_end)
    clip = takes_clip(spec, door)
    assert set(door.kinds) <= {part["class_type"] for part in spec.values()}
    bare, expected = (latent_of(server, ours(spec, rows, clip)) for rows in ([], door.rows))
    same(latent_of(server, spec), expected, bare)
    front_end.run_command(ALL)
    after = types(front_end.workflow())
    assert not set(door.kinds) & set(after.values()), after
    assert {OURS, STACK} & set(after.values()) and len(after) <= len(types(before))
    same(latent_of(server, prompt(front_end)), expected, bare)


MAKERS = {name: found for name, found in DOORS.items() if len(found.nodes) > 1}


@pytest.mark.parametrize("door", MAKERS, indirect=True)
def test_other_packs_lists_feed_our_stack_and_ours_feeds_theirs(
    front_end, server, mode, door, picture
):
    """Ours gives what it applied: a loader of theirs on the bare model does the same."""
    sockets = ([*LOADER_INPUTS, *LORA_STACK], [*LOADER_OUTPUTS, *REPORTS])
    stack = loader(STACK, ["[]", "report", "patch"], sockets)
    theirs = (FIRST + 9, *door.nodes[-1])
    opened(front_end, workflow_through(Door([*door.nodes[:-1], stack], door.rows)))
    spec = prompt(front_end)
    bare, expected = (latent_of(server, ours(spec, rows, True)) for rows in ([], door.rows))
    same(latent_of(server, spec), expected, bare)
    place = str(FIRST + len(door.nodes) - 1)
    spec[str(theirs[0])] = {
        "class_type": theirs[1],
        "inputs": {
            "model": ["1", 0],
            stack_of(theirs[1:]): [place, list_slot(server)],
            **{name: ["2", 0] for name, kind in theirs[2] if kind == "CLIP"},
        },
    }
    spec["8"]["inputs"]["model"] = [str(theirs[0]), 0]
    spec["5"]["inputs"]["clip"] = [str(theirs[0]), 1]
    same(latent_of(server, spec), expected, bare)


REPORTS = [("report", "STRING"), ("report_json", "STRING")]


def list_slot(server) -> int:
    return server.object_info()[STACK]["output"].index("LORA_STACK")


@pytest.fixture
def every_loader(server) -> Iterator[None]:
    """Fix LoRAs in every loader, on."""
    turn(server, True)
    yield
    turn(server, False)


def turn(server, on: bool) -> None:
    request = urllib.request.Request(
        f"{server.url}/lora_locksmith/every_loader",
        json.dumps({"on": on}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=comfy_server.PATIENCE) as answer:
        assert json.load(answer) == {"on": on}


@pytest.mark.parametrize("door", DOORS, indirect=True)
def test_the_setting_mends_a_loader_as_it_is(front_end, server, mode, door, every_loader):
    """With a file that the stock loader reads nothing of in the first one's place."""
    opened(front_end, workflow_through(door))
    text = json.dumps(prompt(front_end)).replace(Path(ONE[0]).stem, Path(BROKEN_LORA).stem)
    spec = json.loads(text)
    rows = [(BROKEN_LORA, ONE[1]), *door.rows[1:]]
    bare, expected = (
        latent_of(server, ours(spec, rows, takes_clip(spec, door))) for rows in ([], rows)
    )
    same(latent_of(server, spec), expected, bare)


HOOK = "Create Hook LoRA (LoraManager)"


def test_hooks_of_lora_manager_do_the_same_as_a_stack_of_hooks(front_end, server, mode, picture):
    """On the model alone, by the conditioning that a CLIP with these hooks makes."""
    if HOOK not in server.object_info():
        pytest.skip(f"{HOOK}: not among the packs of LOCKSMITH_PACKS")
    hooks, clip = ("hooks", "HOOKS"), ("CLIP", "CLIP")
    nodes = [
        (FIRST, HOOK, [("prev_hooks", "HOOKS")], [("HOOKS", "HOOKS")], managed(ONE, TWO), {}),
        (FIRST + 1, "SetClipHooks", [("clip", "CLIP"), hooks], [clip], [True, False], {}),
    ]
    links = [
        Link(2, 0, FIRST + 1, "clip", "CLIP"),
        Link(FIRST, 0, FIRST + 1, *hooks),
        Link(FIRST + 1, 0, 5, "clip", "CLIP"),
        Link(1, 0, 8, "model", "MODEL"),
    ]
    opened(front_end, sampled(nodes, links, "hooks"))
    theirs = prompt(front_end)
    front_end.run_command(ALL)
    assert types(front_end.workflow())[FIRST] == "LocksmithCreateHookLoRAStack"
    bare = {name: part for name, part in theirs.items() if int(name) < FIRST}
    bare["5"] = {**bare["5"], "inputs": bare["5"]["inputs"] | {"clip": ["2", 0]}}
    expected, unhooked = latent_of(server, theirs), latent_of(server, bare)
    same(latent_of(server, prompt(front_end)), expected, unhooked)


GONE = "nowhere.safetensors"
MANAGER = "Lora Loader (LoraManager)"


def test_a_file_that_lora_manager_names_and_is_gone_is_told(front_end, server, mode):
    """It leaves out folder and ending, so that nobody knows which file was meant."""
    if MANAGER not in server.object_info():
        pytest.skip(f"{MANAGER}: not among the packs of LOCKSMITH_PACKS")
    gone = Door([loader(MANAGER, managed((GONE, 0.5)))], [])
    expect_left(front_end, workflow_through(gone), "nowhere")


GONE_IN = {
    "Power Lora Loader (rgthree)": power((GONE, 0.5)),
    "CR Load LoRA": ["On", GONE, 0.5, 0.5],
}


@pytest.mark.parametrize("kind", GONE_IN)
def test_the_name_of_a_file_that_is_gone_stays(front_end, server, mode, kind):
    if kind not in server.object_info():
        pytest.skip(f"{kind}: not among the packs of LOCKSMITH_PACKS")
    opened(front_end, workflow_through(Door([loader(kind, GONE_IN[kind])], [])))
    front_end.run_command(ALL)
    assert GONE in json.dumps(prompt(front_end)[str(FIRST)]["inputs"])


def test_what_others_lose_is_loaded_after_the_swap(front_end, server, mode):
    """A file that the stock loader reads nothing of."""
    found = Door([loader("CR Load LoRA", ["On", BROKEN_LORA, 1, 1])], [(BROKEN_LORA, 1)])
    if "CR Load LoRA" not in server.object_info():
        pytest.skip("CR Load LoRA: not among the packs of LOCKSMITH_PACKS")
    opened(front_end, workflow_through(found))
    spec = prompt(front_end)
    bare, expected = (latent_of(server, ours(spec, rows, True)) for rows in ([], found.rows))
    assert torch.equal(latent_of(server, spec), bare)
    front_end.run_command(ALL)
    same(latent_of(server, prompt(front_end)), expected, bare)


def test_no_pack_hinders_the_page(front_end, server, mode, picture):
    """Our nodes are drawn, listed and run among them."""
    front_end.load_new(BROKEN_LORA)
    front_end.run()
    (entry,) = server.get("/history?max_items=1").values()
    texts = [each["text"][0] for each in entry["outputs"].values() if "report_json" in each]
    assert entry["status"]["status_str"] == "success" and any("22 of 22" in text for text in texts)
    front_end.reports.first.wait_for()
