"""The swap makes room for nodes as high as the front end really draws them."""

from __future__ import annotations

import pytest
from front_end import FrontEnd

MEASURED = 10  # units that versions of the front end and styles of a page may differ by
# Which heights the swap reckons with: (of a new node drawn by Vue, of its panel) by type.
RECKONED = """async () => {
    const { HIGHER_IN_VUE } = await import("/extensions/lora-locksmith/swap/replace.mjs");
    const { PANEL } = await import("/extensions/lora-locksmith/swap/plan.mjs");
    return Object.fromEntries(Object.entries(HIGHER_IN_VUE).map(([type, higher]) => [type, [higher, PANEL[type] ?? 0]]));
}"""
# A new node of a type, alone on the canvas; what it says of its height before it is drawn. Cleared at
# once, a graph gives the numbers of its nodes anew, and the page leaves them the old ones' badges.
MAKE = """(type) => {
    for (const old of [...app.graph.nodes]) app.graph.remove(old);
    const node = LiteGraph.createNode(type), said = node.size[1];
    node.pos = [100, 100];
    app.graph.add(node);
    return [String(node.id), said];
}"""
SHOWS = (
    """([id, name]) => app.graph.getNodeById(id).widgets.some((widget) => widget.name === name)"""
)
HEIGHT = "(id) => (document.querySelector(`[data-node-id='${id}']`)?.offsetHeight ?? 0) - 30"
LOADER, HOOK = "LocksmithLoadAndFixLoRA", "LocksmithCreateHookLoRA"
WITH_PANEL = (LOADER, HOOK)  # at once, as the first file is chosen; a stack has one after a run
TYPES = (
    LOADER,
    HOOK,
    "LocksmithLoRAStack",
    "LocksmithCreateHookLoRAStack",
    "LoraLoader",
    "LoraLoaderModelOnly",
    "LoraLoaderBypass",
    "LoraLoaderBypassModelOnly",
    "CreateHookLora",
    "CreateHookLoraModelOnly",
)


@pytest.fixture(scope="module", autouse=True)
def vue(front_end: FrontEnd) -> None:
    front_end.set("Comfy.VueNodes.Enabled", True)


def test_every_type_that_is_reckoned_with_is_measured(front_end):
    assert sorted(front_end.page.evaluate(RECKONED)) == sorted(TYPES)


@pytest.mark.parametrize("kind", TYPES)
def test_a_vue_node_is_as_high_as_the_swap_reckons(front_end, kind, picture):
    higher, panel = front_end.page.evaluate(RECKONED)[kind]
    node, said = front_end.page.evaluate(MAKE, kind)
    if kind in WITH_PANEL:
        front_end.page.wait_for_function(SHOWS, arg=[node, "locksmith_report"])
    front_end.page.wait_for_selector(f"[data-node-id='{node}']")
    front_end.settle()
    drawn = front_end.page.evaluate(HEIGHT, node)
    reckoned = said + higher + (panel if kind in WITH_PANEL else 0)
    assert abs(drawn - reckoned) <= MEASURED, f"{kind} says {said} and is drawn {drawn} high"
