"""A little of each part works in the front end this ComfyUI asks for and in the newest, and neither
has anything to complain of.
"""

import re
import shutil
import sys
import uuid
from pathlib import Path

import comfy_server
import pytest
from devtools import front_end as newest_front_end
from devtools import steps
from front_end import node
from playwright.sync_api import expect
from tiny_models import BROKEN_LORA, FLUX

PINNED, NEWEST = "pinned", "newest"
STOCK, OURS, STACK = "LoraLoaderModelOnly", "LocksmithLoadAndFixLoRA", "LocksmithLoRAStack"


@pytest.fixture(scope="module", params=[PINNED, NEWEST])
def which(request) -> str:
    """Which front end; not a parameter of `server`, because the server of all tests, of the same
    name, would start anew with each.
    """
    return request.param


@pytest.fixture(scope="module")
def server(which, server, comfyui_path, tmp_path_factory):
    """A server with the front end that ComfyUI's requirements name, then one with the newest."""
    if which == PINNED:
        yield server
        return
    folder = newest_front_end.front_end_at_hand()
    if folder is None:
        pytest.fail(
            f"There is no front end {newest_front_end.NEWEST_FRONT_END} in {steps.WORK}. 'python dev.py test'"
            " gets it.",
            pytrace=False,
        )
    base = comfy_server.prepare_base(tmp_path_factory.mktemp("newest"), steps.ROOT)
    shutil.copytree(server.base / "models", base / "models", dirs_exist_ok=True)
    extra = ("--front-end-root", str(folder))
    with comfy_server.Server(
        Path(sys.executable), comfyui_path, base, base / "server.log", extra
    ) as running:
        yield running


def workflow_of(kind: str, values: list) -> dict:
    """A tiny FLUX and one loader."""
    nodes = [
        node(1, "UNETLoader", (40, 60, 300, 90), [], [("MODEL", "MODEL", [1])], [FLUX, "default"]),
        node(
            2, kind, (380, 60, 480, 320), [("model", "MODEL", 1)], [("MODEL", "MODEL", [])], values
        ),
    ]
    graph = {
        "id": str(uuid.uuid4()),
        "last_node_id": 2,
        "last_link_id": 1,
        "version": 0.4,
        "groups": [],
        "config": {},
        "extra": {},
    }
    return {**graph, "nodes": nodes, "links": [[1, 1, 0, 2, 0, "MODEL"]]}


def types_of(workflow: dict) -> set[str]:
    return {node["type"] for node in workflow["nodes"]}


def test_nodes_show_their_report_after_a_run_and_after_a_reload(front_end, mode, picture):
    front_end.load_new()
    front_end.run()
    verdict = front_end.report("Inspect LoRA Keys").locator(".locksmith-verdict")
    expect(verdict).to_contain_text("22 of 22")
    badge = front_end.report("Load and Fix LoRA").locator(".locksmith-badge")
    expect(badge).to_have_text("\u2713 22/22")
    front_end.wait_until_kept()
    front_end.open()
    expect(front_end.reports).to_have_count(2)


def test_stock_loader_is_replaced_in_one_step(front_end, mode):
    front_end.load(workflow_of(STOCK, [BROKEN_LORA, 0.5]))
    before = front_end.workflow()
    front_end.run_command("loralocksmith.swap.all")
    swapped = front_end.workflow()
    assert types_of(swapped) == {"UNETLoader", OURS}
    assert [link[1:] for link in swapped["links"]] == [[1, 0, 2, 0, "MODEL"]]
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: types_of(front_end.workflow()) == types_of(before))


def test_replaced_loader_keeps_its_values_where_they_are_read_by_name(front_end, which, mode):
    """As the newest front end does it where a person has chosen that."""
    if which == NEWEST:
        front_end.set("Comfy.Workflow.NamedValuesRestore", True)
    front_end.load(workflow_of(STOCK, [BROKEN_LORA, 0.5]))
    front_end.run_command("loralocksmith.swap.all")
    assert front_end.value(2, "lora_name") == BROKEN_LORA
    assert front_end.value(2, "strength_model") == 0.5
    assert front_end.value(2, "mode") == "patch"
    if which == NEWEST:
        front_end.set("Comfy.Workflow.NamedValuesRestore", False)


def test_stack_shows_its_rows(front_end, mode, picture):
    front_end.load(
        workflow_of(
            STACK,
            [f'[{{"on": true, "name": "{BROKEN_LORA}", "strength": 0.5}}]', "report", "patch"],
        )
    )
    box = front_end.page.get_by_role("region", name="LoRAs of Load and Fix LoRA (stack)")
    expect(box.get_by_role("listitem")).to_have_count(1)
    expect(box.get_by_role("spinbutton").first).to_have_value(re.compile("0.5"))


def test_new_loader_folds_and_unfolds(front_end, mode):
    front_end.load(workflow_of(STOCK, [BROKEN_LORA, 0.5]))
    counts = front_end.page.evaluate(
        """(type) => {
            const node = LiteGraph.createNode(type), counts = [node.outputs.length];
            app.graph.add(node);
            for (const shown of [true, false]) {
                node.showAdvanced = shown;
                counts.push(node.outputs.length);
            }
            return counts;
        }""",
        OURS,
    )
    assert counts == [3, 6, 3]


def test_library_page_lists_the_files(front_end, server, mode, picture):
    front_end.page.get_by_role("button", name="LoRA library", exact=True).click()
    library = front_end.page.get_by_role("region", name="LoRA library")
    files = list((server.base / "models" / "loras").rglob("*.safetensors"))
    expect(library.get_by_role("status").first).to_have_text(f"{len(files)} LoRAs")
    front_end.page.get_by_role("button", name="LoRA library", exact=True).click()
    expect(library).to_have_count(0)
