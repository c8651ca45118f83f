"""The rows of Merge LoRAs in the real front end: connected LoRAs among the files, weights for
parts, and the report of a run.
"""

import json

import pytest
from front_end import FrontEnd
from playwright.sync_api import Locator, expect
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, FLUX

TITLE = "Merge LoRAs"
# A tiny FLUX, a merge of it that goes into another, and what that says as text.
BUILD = """async ([flux, file]) => {
    await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        node.pos = [x, y];
        return node;
    };
    const model = add("UNETLoader", 40, 60);
    model.widgets[0].value = flux;
    const [first, second] = [add("LocksmithMergeLoRAs", 40, 220), add("LocksmithMergeLoRAs", 720, 60)];
    const text = add("PreviewAny", 40, 700);
    for (const merge of [first, second]) model.connect(0, merge, merge.findInputSlot("model"));
    first.title = "First merge";
    first.widgets.find((widget) => widget.name === "loras").value = JSON.stringify([{ on: true, name: file, strength: 1 }]);
    const slot = () => second.inputs.findIndex((input) => /lora_\\d+$/.test(input.name) && input.link == null);
    first.connect(0, second, slot());
    second.connect(1, text, 0);
    return [second.id, second.inputs.map((input) => input.name)];
}"""


class Merge:
    """The second merge of the open workflow."""

    def __init__(self, front_end: FrontEnd):
        self.front_end = front_end
        self.id, self.sockets = front_end.page.evaluate(BUILD, [FLUX, BROKEN_LORA])
        self.box = front_end.page.get_by_role("region", name=f"LoRAs of {TITLE}", exact=True)
        self.rows = self.box.get_by_role("listitem")
        expect(self.box).to_be_visible()

    @property
    def value(self) -> list[dict]:
        return json.loads(self.front_end.value(self.id, "loras"))

    def add(self, name: str) -> None:
        """Add a row by the list of names, as a person does."""
        self.box.get_by_role("button", name="Add LoRA").click()
        dialog = self.front_end.page.get_by_role("dialog")
        dialog.get_by_role("combobox").fill(name.removesuffix(".safetensors"))
        dialog.get_by_role("option").first.click()
        self.front_end.wait_until(lambda: any(row["name"] == name for row in self.value))

    def blocks(self, index: int) -> Locator:
        return self.rows.nth(index).get_by_label("Weights for parts of")


@pytest.fixture
def merge(front_end: FrontEnd, mode: str) -> Merge:
    return Merge(front_end)


def test_rows_name_files_and_what_is_connected(front_end, merge, picture):
    assert "connected.lora_0" in merge.sockets
    merge.add(DIFFUSERS_LORA)
    merge.add("lora_0")
    assert [row["name"] for row in merge.value] == [DIFFUSERS_LORA, "lora_0"]
    merge.blocks(0).fill("double_blocks.0=0.5")
    merge.blocks(0).press("Enter")
    front_end.wait_until(lambda: merge.value[0].get("blocks") == "double_blocks.0=0.5")
    front_end.run()
    report = front_end.report(TITLE)
    expect(report).to_contain_text("2 LoRAs merged by weighted sum")
    expect(report).to_contain_text("double_blocks.0=0.5")


def test_a_connected_one_can_be_taken_away(front_end, merge):
    merge.add("lora_0")
    expect(merge.rows.first.get_by_role("img")).to_have_count(0)
    front_end.page.evaluate(
        """(id) => {
            app.canvas.emitBeforeChange();
            const node = app.rootGraph.getNodeById(id);
            node.disconnectInput(node.findInputSlot("connected.lora_0"));
            app.canvas.emitAfterChange();
        }""",
        merge.id,
    )
    expect(merge.rows.first.get_by_role("img")).to_contain_text("missing")


def test_the_seed_stays(front_end, merge):
    before = front_end.value(merge.id, "seed")
    merge.add(DIFFUSERS_LORA)
    front_end.run()
    assert front_end.value(merge.id, "seed") == before
