"""A front end in Chinese shows what the server says in Chinese, drawn the classic way and the Vue
way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import torch
from front_end import LOADER, PREVIEW, FrontEnd
from hollow_files import write_hollow
from playwright.sync_api import expect
from reports.small_files import flux_lora
from safetensors.torch import save
from scenes import library, library_tab
from stacks import FILES, row, workflow
from tiny_models import HIDDEN

pytestmark = pytest.mark.usefixtures("mode")
PARTLY = "chinese_partly.safetensors"
CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module", autouse=True)
def in_chinese(front_end: FrontEnd):
    front_end.speak("zh")
    yield
    front_end.speak("en")


@pytest.fixture
def partly(front_end: FrontEnd, lora_file) -> str:
    """A LoRA of which one module has no place, and one has another shape."""
    tensors = {
        f"lora_unet_double_blocks_{block}_img_attn_proj.{role}.weight": torch.full(shape, 0.01)
        for block, inputs in ((0, HIDDEN), (1, 2 * HIDDEN), (7, HIDDEN))
        for role, shape in (("lora_down", (1, inputs)), ("lora_up", (HIDDEN, 1)))
    }
    lora_file(PARTLY, save(tensors))
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    return PARTLY


def test_reports_are_in_chinese(front_end, server, partly, picture):
    front_end.load_new(partly)
    front_end.run()
    expect(front_end.reports).to_have_count(2)
    outputs = next(iter(server.get("/history?max_items=1").values()))["outputs"]
    output = outputs[str(LOADER)]
    texts = json.loads(output["translations"][0])["zh"]
    report = json.loads(output["report_json"][0])
    report_of_loader = front_end.reports.filter(has_not=front_end.page.locator("h2")).first
    verdict = texts[output["text"][0]].split("\n")[0]
    assert CHINESE.search(verdict)
    expect(report_of_loader.locator(".locksmith-verdict p").first).to_have_text(verdict)

    (reason,) = {
        pattern["reason"]
        for pattern in report["patterns"]
        if pattern["category"] == "shape conflict"
    }
    assert not CHINESE.search(reason) and CHINESE.search(texts[reason])
    report_of_loader.get_by_role("button", name="\u8be6\u60c5").click()
    details = front_end.page.get_by_role("dialog")
    expect(details).to_contain_text(texts[reason])
    expect(details).not_to_contain_text(reason)
    front_end.page.keyboard.press("Escape")

    # What goes on to other nodes is English.
    assert not CHINESE.search(outputs[str(PREVIEW)]["text"][0])


def test_outputs_that_a_workflow_was_saved_with_are_in_chinese(front_end, picture):
    front_end.load_new()
    front_end.settle()
    nodes = front_end.workflow()["nodes"]
    (outputs,) = (node["outputs"] for node in nodes if node["id"] == LOADER)
    names = {output["name"]: output["localized_name"] for output in outputs}
    assert CHINESE.search(names["report"]) and CHINESE.search(names["report_json"])


def test_what_a_route_refuses_is_said_in_chinese(front_end, server):
    refused = front_end.page.evaluate(
        """async () => {
            const { ask } = await import("/extensions/lora-locksmith/shared/server.mjs");
            return ask("file", { name: "nowhere.safetensors" }).catch((fault) => fault.message);
        }"""
    )
    assert CHINESE.search(refused) and refused.endswith("\u3002") and "folders" not in refused
    assert all("404" in line for line in front_end.said)
    front_end.said.clear()


def test_a_file_that_fits_several_models_is_told_in_chinese_before_it_runs(front_end):
    """The names of the demo's file fit several models, and its size is nobody's."""
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    front_end.load_new()
    what = front_end.page.locator(".locksmith-facts").first
    expect(what).to_have_attribute("title", CHINESE)
    title = what.get_attribute("title")
    assert (
        "FLUX.1\uff08\u672a\u516c\u5f00\u7684\u5c3a\u5bf8\uff09\uff08\u5176\u952e\u540d\u4e5f\u7b26\u5408"
    ) in title
    assert "its keys also fit" not in title


@pytest.fixture
def several_ranks(front_end: FrontEnd, server) -> Iterator[str]:
    """A LoRA of FLUX.1 with the ranks 4 and 8."""
    tensors = {
        name: tuple(8 if size == 4 and "norm1" in name else size for size in shape)
        for name, shape in flux_lora(4).items()
    }
    path = server.base / "models" / "loras" / "chinese_ranks.safetensors"
    write_hollow(path, tensors)
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    yield path.name
    path.unlink()


def test_several_ranks_are_told_in_chinese_on_the_node_and_in_the_library(front_end, several_ranks):
    front_end.load_new(several_ranks)
    what = front_end.page.locator(".locksmith-facts").first
    expect(what).to_have_attribute("title", re.compile("4 \u5230 8"))
    shown = library(front_end).locator(".shelf-list-row", has_text="chinese_ranks")
    expect(shown.locator(".shelf-rank")).to_contain_text("4 \u5230 8")
    library_tab(front_end).click()


def test_menu_of_a_row_is_in_chinese(front_end):
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    front_end.load(workflow([row(FILES[0])]))
    front_end.page.locator(".locksmith-stack-more").click()
    items = front_end.page.get_by_role("menu").get_by_role("menuitem")
    expect(items.first).to_be_focused()
    assert all(CHINESE.search(text) for text in items.all_inner_texts())
    front_end.page.keyboard.press("Escape")


@pytest.fixture
def double_blocks(front_end: FrontEnd, server) -> Iterator[str]:
    """A LoRA of FLUX.1's double blocks."""
    path = server.base / "models" / "loras" / "chinese_presets.safetensors"
    write_hollow(path, flux_lora())
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    yield path.name
    path.unlink()


def test_presets_of_layer_weights_are_told_in_chinese(front_end, double_blocks, picture):
    front_end.load(workflow([row(double_blocks)]))
    only = front_end.page.locator(".locksmith-stack-row")
    only.locator(".locksmith-stack-more").click()
    item = front_end.page.get_by_role("menuitem")
    item.filter(has_text="\u5206\u5c42\u6743\u91cd\u9884\u8bbe").click()
    preset = item.filter(has_text="\u53cc\u6d41\u5c42 7-12")
    expect(preset).to_have_attribute("title", re.compile("57 \u5c42\u4e2d\u4fdd\u7559 18 \u5c42"))
    preset.click()
    text = "double_blocks=0, double_blocks.7-12=1"
    expect(only.locator(".locksmith-stack-blocks")).to_have_value(text)


def test_faults_on_nodes_are_in_chinese(front_end, server, partly, picture):
    """What a node stops with, and what the server refuses before a run; the host tells both in
    English.
    """
    front_end.load_new(partly)
    front_end.change(LOADER, "on_unmatched", "error")
    front_end.run()
    fault = front_end.page.locator(".locksmith-fault:not([hidden])")
    expect(fault).to_have_count(1)
    expect(fault).to_contain_text(CHINESE)
    expect(fault).to_contain_text(PARTLY)
    expect(fault).not_to_contain_text("no effect")
    front_end.load(workflow([row("gone.safetensors")]))
    front_end.page.evaluate("() => { void app.queuePrompt(0); }")
    expect(fault).to_have_count(1)
    expect(fault).to_contain_text(CHINESE)
    expect(fault).to_contain_text("gone.safetensors")
    expect(fault).not_to_contain_text("folders")
    front_end.said.clear()  # the host tells the console of failures
