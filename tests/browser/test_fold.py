"""What few people set, and outputs that few take, fold away on new nodes until they are asked for."""

from __future__ import annotations

import pytest
from front_end import LOADER, FrontEnd

SHOWN = ["MODEL", "CLIP", "report"]
NEW = """async (type) => {
    await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [300, 100];
    return node.id;
}"""
OUTPUTS = "id => app.rootGraph.getNodeById(id).outputs.map((output) => output.name)"
ALL_OUTPUTS = (
    "id => app.rootGraph.getNodeById(id).constructor.nodeData.outputs.map((output) => output.name)"
)
SHOW = "([id, shown]) => { app.rootGraph.getNodeById(id).showAdvanced = shown; }"
IS_SHOWN = "id => app.rootGraph.getNodeById(id).showAdvanced"
VISIBLE = """id => {
    const node = app.rootGraph.getNodeById(id);
    return node.widgets.filter((widget) => node.isWidgetVisible(widget)).map((widget) => widget.name);
}"""
HAS_PANEL = """id => app.rootGraph.getNodeById(id).widgets.some(
    (widget) => widget.name === "locksmith_report")"""
FOLDED = ("on_unmatched", "mode", "layer_weights")
API = {
    "1": {"class_type": "UNETLoader", "inputs": {}},
    "2": {"class_type": "LocksmithLoadAndFixLoRA", "inputs": {"model": ["1", 0]}},
    "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 4]}},
}


def added(front_end: FrontEnd, kind: str) -> int:
    return front_end.page.evaluate(NEW, kind)


def outputs(front_end: FrontEnd, node: int) -> list[str]:
    return front_end.page.evaluate(OUTPUTS, node)


def widgets(front_end: FrontEnd, mode: str, node: int) -> set[str]:
    """The names of the widgets that the page shows."""
    if mode == "classic":
        return set(front_end.page.evaluate(VISIBLE, node))
    box = front_end.page.locator(f'[data-node-id="{node}"]')
    return {name for name in FOLDED if box.get_by_text(name, exact=True).count()}


def steps_to_undo(front_end: FrontEnd) -> int:
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    front_end.page.evaluate(f"{tracker}.captureCanvasState()")
    return front_end.page.evaluate(f"{tracker}.undoQueue.length")


def show(front_end: FrontEnd, node: int, shown: bool) -> None:
    front_end.page.evaluate(SHOW, [node, shown])


@pytest.mark.parametrize("kind", ["LocksmithLoadAndFixLoRA", "LocksmithLoRAStack"])
def test_a_new_node_shows_what_stock_shows_and_one_text(front_end, mode, kind, picture):
    node = added(front_end, kind)
    assert outputs(front_end, node) == SHOWN
    if kind == "LocksmithLoadAndFixLoRA":  # it tells of the first file
        front_end.page.wait_for_function(HAS_PANEL, arg=node)
    front_end.settle()
    low = front_end.size_of(node)[1]
    show(front_end, node, True)
    front_end.settle()
    assert outputs(front_end, node) == front_end.page.evaluate(ALL_OUTPUTS, node)
    high = front_end.size_of(node)[1]
    show(front_end, node, False)
    front_end.settle()
    assert outputs(front_end, node) == SHOWN
    # Vue nodes come out some pixels higher once they were drawn anew; a row has twenty and more.
    assert front_end.size_of(node)[1] == pytest.approx(low, abs=14) and high > low + 60


def test_an_output_that_is_taken_stays(front_end, mode):
    node = added(front_end, "LocksmithLoadAndFixLoRA")
    front_end.page.evaluate(
        """id => {
            const text = LiteGraph.createNode("PreviewAny");
            app.graph.add(text);
            app.rootGraph.getNodeById(id).connect(4, text, 0);
        }""",
        node,
    )
    assert "trigger_words" in outputs(front_end, node)
    show(front_end, node, False)
    assert outputs(front_end, node)[-1] == "trigger_words"
    assert front_end.page.evaluate("() => [...app.rootGraph.links.values()][0].origin_slot") == 4


def test_a_type_that_is_folded_is_found(front_end, mode):
    node = added(front_end, "LocksmithLoRAStack")
    found = front_end.page.evaluate(
        "id => app.rootGraph.getNodeById(id).findOutputByType('LORA_STACK')?.slot?.name", node
    )
    assert found == "lora_stack"


def test_a_prompt_of_the_api_keeps_its_links(front_end, mode):
    slot = front_end.page.evaluate(
        """async (prompt) => {
            app.loadApiJson(prompt, "api");
            await new Promise((done) => setTimeout(done, 200));
            return [...app.rootGraph.links.values()].map((link) => link.origin_slot);
        }""",
        API,
    )
    assert 4 in slot


def test_an_older_workflow_shows_what_it_did(front_end, mode, picture):
    """Its nodes were saved by hosts that were told of no widget to fold, with four outputs."""
    front_end.load_new()
    front_end.settle()
    before = front_end.workflow()
    front_end.load(before | {"id": "again"})
    front_end.settle()
    assert not steps_to_undo(front_end)
    assert front_end.workflow()["nodes"] == before["nodes"]
    assert len(outputs(front_end, LOADER)) == 4
    assert "on_unmatched" in widgets(front_end, mode, LOADER)
    if mode == "classic":
        assert {"mode", "layer_weights"} <= widgets(front_end, mode, LOADER)


def test_a_new_workflow_stays_folded(front_end, mode, picture):
    folded = added(front_end, "LocksmithLoadAndFixLoRA")
    front_end.settle()
    assert not {"mode", "layer_weights", "on_unmatched"} & widgets(front_end, mode, folded)
    saved = front_end.workflow()
    front_end.load(saved | {"id": "folded"})
    front_end.settle()
    assert not steps_to_undo(front_end)
    assert front_end.workflow()["nodes"] == saved["nodes"]
    assert outputs(front_end, folded) == SHOWN
    assert not {"mode", "layer_weights", "on_unmatched"} & widgets(front_end, mode, folded)
    show(front_end, folded, True)
    assert outputs(front_end, folded) == front_end.page.evaluate(ALL_OUTPUTS, folded)
    assert {"mode", "layer_weights", "on_unmatched"} <= widgets(front_end, mode, folded)


@pytest.mark.parametrize("shown", [False, True])
def test_undo_keeps_what_is_folded(front_end, mode, shown):
    node = added(front_end, "LocksmithLoadAndFixLoRA")
    show(front_end, node, shown)
    front_end.settle()
    steps_to_undo(front_end)  # the node is one
    front_end.change(node, "strength_model", 0.5)
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: front_end.value(node, "strength_model") == 1)
    assert len(outputs(front_end, node)) == (6 if shown else 3)
    assert bool(front_end.page.evaluate(IS_SHOWN, node)) is shown


def test_a_value_of_its_own_is_shown(front_end, mode, picture):
    node = added(front_end, "LocksmithLoadAndFixLoRA")
    front_end.change(node, "layer_weights", "te=0")
    front_end.load(front_end.workflow() | {"id": "weighted"})
    front_end.settle()
    shown = widgets(front_end, mode, node)
    assert "layer_weights" in shown and "mode" not in shown


def test_nothing_folds_where_all_is_to_be_shown(front_end, mode):
    front_end.set("Comfy.Node.AlwaysShowAdvancedWidgets", True)
    node = added(front_end, "LocksmithLoadAndFixLoRA")
    front_end.settle()
    front_end.set("Comfy.Node.AlwaysShowAdvancedWidgets", False)
    assert outputs(front_end, node) == front_end.page.evaluate(ALL_OUTPUTS, node)
