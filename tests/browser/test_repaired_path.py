"""Repaired LoRA Path in the graph: its name is wired into another loader's list of files, and the
panel tells what was given, in both renderers.
"""

from __future__ import annotations

from front_end import PREVIEW
from playwright.sync_api import expect
from tiny_models import BROKEN_LORA

VERDICT = ".locksmith-verdict"

WIRED = """([preview, name]) => {
    const [repaired, stock] = ["LocksmithRepairedLoRAPath", "LoraLoaderModelOnly"].map((type) => LiteGraph.createNode(type));
    for (const node of [repaired, stock]) app.rootGraph.add(node);
    repaired.pos = [40, 440];
    stock.pos = [560, 560];
    const set = (name, value) => { repaired.widgets.find((widget) => widget.name === name).value = value; };
    set("lora_name", name);
    set("reader", "Nunchaku FLUX.1");
    app.rootGraph.getNodeById(1).connect(0, stock, stock.findInputSlot("model"));
    const link = repaired.connect(1, stock, stock.findInputSlot("lora_name"));
    repaired.connect(3, app.rootGraph.getNodeById(preview), 0);
    return Boolean(link);
}"""


def test_its_name_goes_into_a_list_of_files_and_the_panel_tells_the_file(
    front_end, server, mode, picture
):
    front_end.load_new()
    assert front_end.page.evaluate(WIRED, [PREVIEW, BROKEN_LORA])
    front_end.run()
    report = front_end.report("Repaired LoRA Path")
    expect(report.locator(VERDICT)).to_contain_text("Written for Nunchaku FLUX.1")
    expect(report.locator(".locksmith-body")).to_contain_text("layers only renamed")
