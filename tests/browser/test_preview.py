"""What a file is and whether it fits is shown when it is chosen, before anything runs."""

from __future__ import annotations

import io

import pytest
import torch
from front_end import INSPECT, LOADER, FrontEnd
from hollow_files import write_hollow
from playwright.sync_api import expect
from reports.small_files import flux_lora
from safetensors.torch import load_file, save_file
from tiny_models import BROKEN_LORA, FLUX, HIDDEN, KOHYA_LORA

OTHER_BASE, DAMAGED, FULL, ENCODERS = (
    "preview_other_base.safetensors",
    "preview_damaged.safetensors",
    "preview_full.safetensors",
    "preview_encoders.safetensors",
)
BADGE, FACTS, WRONG = ".locksmith-badge", ".locksmith-facts", ".locksmith-wrong"
WIRED = {"folder": "diffusion_models", "name": FLUX}


@pytest.fixture(scope="module")
def files(front_end: FrontEnd, server) -> None:
    """A LoRA for another model, a full-size one for FLUX, and a file that cannot be read."""
    folder = server.base / "models" / "loras"
    places = [
        f"lora_unet_input_blocks_{block}_1_transformer_blocks_{depth}_attn1_to_q"
        for block in (4, 5, 7, 8)
        for depth in (0, 1)
    ]
    roles = ((".lora_down.weight", (1, 1280)), (".lora_up.weight", (1280, 1)))
    write_hollow(
        folder / OTHER_BASE,
        {place + role: shape for place in places for role, shape in roles},
        {},
        "F16",
    )
    write_hollow(folder / FULL, flux_lora(), {}, "F16")
    places = (
        "unet_double_blocks_0_img_attn_proj",
        *(f"te1_text_model_encoder_layers_{n}_mlp_fc1" for n in (0, 1)),
    )
    sizes = {"u": (HIDDEN, HIDDEN), "t": (3072, 768)}
    both = {
        f"lora_{place}.lora_{role}.weight": torch.full(shape, 0.01).half()
        for place in places
        for role, shape in (("down", (1, sizes[place[0]][1])), ("up", (sizes[place[0]][0], 1)))
    }
    save_file(both, folder / ENCODERS, {"ss_network_module": "networks.lora_flux"})
    (folder / DAMAGED).write_bytes(b"no LoRA at all")
    front_end.run_command("Comfy.RefreshNodeDefinitions")


@pytest.fixture
def opened(front_end: FrontEnd, mode: str, files) -> FrontEnd:
    """A fresh workflow that has not run."""
    front_end.load_new()
    return front_end


def shown(front_end: FrontEnd, node: int):
    """What a node shows of its file."""
    title = {LOADER: "Load and Fix LoRA", INSPECT: "Inspect LoRA Keys"}[node]
    return front_end.page.get_by_role("status", name=f"File of {title}")


def wired_to(front_end: FrontEnd, node: int) -> dict | None:
    return front_end.page.evaluate(
        """async (node) => {
            const { modelWiredTo } = await import("/extensions/lora-locksmith/preview/preview.mjs");
            const { nodeById, rootGraph } = await import("/extensions/lora-locksmith/shared/graph.mjs");
            return modelWiredTo(nodeById(app.canvas.graph, node) ?? nodeById(rootGraph(), node));
        }""",
        node,
    )


@pytest.mark.parametrize("node", [LOADER, INSPECT])
def test_file_is_told_before_anything_runs(opened, server, picture, node):
    opened.change(node, "lora_name", FULL)
    row = server.get(f"/lora_locksmith/file?name={FULL}")
    assert row["trainer_guessed"]
    facts = shown(opened, node).locator(FACTS)
    trainer = row["trainer"].partition(" (")[0]
    # Nothing of a full-size file loads into the tiny model.
    expect(facts).to_have_text(
        f"FLUX.1 \u00b7 {trainer}? \u00b7 stock loader: 0 \u00b7 LoRA rank 4"
    )
    assert f"looks like {row['trainer']}" in facts.get_attribute("title")


def test_choosing_in_the_list_is_heard(opened, mode):
    """As a person does it, by the list on the node."""
    if mode == "classic":
        opened.page.evaluate(
            "([node, name]) => { const found = app.rootGraph.getNodeById(node); const combo ="
            " found.widgets.find((widget) => widget.name === 'lora_name'); combo.setValue(name, {"
            " e: {}, node: found, canvas: app.canvas }); }",
            [LOADER, KOHYA_LORA],
        )
    else:
        node = opened.page.locator(f'[data-node-id="{LOADER}"]')
        node.get_by_text(BROKEN_LORA).first.click()
        opened.page.get_by_text(KOHYA_LORA).last.click()
    expect(shown(opened, LOADER).locator(BADGE)).to_have_text("\u2713 10/10")


@pytest.mark.parametrize(
    ("name", "badge"),
    [
        (BROKEN_LORA, "\u2713 22/22"),
        (OTHER_BASE, "\u2717 0/8: wrong base"),
        (ENCODERS, "! 1/3"),  # no CLIP is connected
    ],
)
def test_line_says_before_a_run_what_it_says_after(opened, picture, name, badge):
    """The same words and the same color: the second run of a file is no surprise."""
    opened.change(LOADER, "lora_name", name)
    expect(shown(opened, LOADER).locator(BADGE)).to_have_text(badge)
    before = line_of(shown(opened, LOADER))
    opened.run()
    assert line_of(opened.report("Load and Fix LoRA")) == before
    if name == ENCODERS:
        assert before[0] == "locksmith-badge locksmith-part" and "CLIP" in before[-1]


def line_of(line) -> list[str]:
    parts = [line.locator(part) for part in (BADGE, FACTS, WRONG)]
    return [parts[0].get_attribute("class"), *(part.text_content() for part in parts)]


def test_modules_of_text_encoders_count_once_a_clip_is_connected(opened):
    opened.change(LOADER, "lora_name", ENCODERS)
    expect(shown(opened, LOADER).locator(BADGE)).to_have_text("! 1/3")
    in_one_step(
        opened,
        f"""const clip = LiteGraph.createNode("CLIPLoader");
        app.rootGraph.add(clip);
        clip.connect(0, app.rootGraph.getNodeById({LOADER}), 1)""",
    )
    expect(shown(opened, LOADER).locator(BADGE)).to_have_text("\u2713 3/3")
    expect(shown(opened, LOADER).locator(WRONG)).to_be_hidden()


def test_fit_follows_the_connection(opened, picture):
    badge, wrong = (shown(opened, LOADER).locator(part) for part in (BADGE, WRONG))
    expect(badge).to_have_text("\u2713 22/22")
    opened.change(LOADER, "lora_name", OTHER_BASE)
    expect(badge).to_have_text("\u2717 0/8: wrong base")
    expect(wrong).to_contain_text("Made for SDXL; this is FLUX.1: nothing can load.")
    for palette in ("light", "dark"):
        opened.set("Comfy.ColorPalette", palette)
        assert opened.contrast(badge) > 4.5
        assert opened.contrast(wrong) > 4.5
    in_one_step(opened, f"app.rootGraph.getNodeById({LOADER}).disconnectInput(0)")
    expect(badge).to_have_text("8 layers")
    expect(wrong).to_be_hidden()
    in_one_step(
        opened, f"app.rootGraph.getNodeById(1).connect(0, app.rootGraph.getNodeById({LOADER}), 0)"
    )
    expect(badge).to_contain_text("wrong base")


def in_one_step(front_end: FrontEnd, change: str) -> None:
    front_end.page.evaluate(
        f"() => {{ app.canvas.emitBeforeChange(); {change}; app.canvas.emitAfterChange(); }}"
    )


def test_model_is_found_through_loaders_and_reroutes(opened):
    assert wired_to(opened, LOADER) == WIRED
    opened.page.evaluate(
        """([loader]) => {
            const graph = app.rootGraph, [stock, reroute] = ["LoraLoaderModelOnly", "Reroute"].map((type) => LiteGraph.createNode(type));
            for (const node of [stock, reroute]) graph.add(node);
            graph.getNodeById(1).connect(0, reroute, 0);
            reroute.connect(0, stock, 0);
            stock.connect(0, graph.getNodeById(loader), 0);
        }""",
        [LOADER],
    )
    assert wired_to(opened, LOADER) == WIRED
    opened.page.evaluate("() => { app.rootGraph.getNodeById(1).mode = 2; }")
    assert wired_to(opened, LOADER) is None


@pytest.mark.parametrize("inside", [LOADER, 1], ids=["loader", "model"])
def test_model_is_found_across_a_subgraph(opened, inside):
    opened.put_into_subgraph(inside)
    if inside == LOADER:
        opened.open_subgraph()
    assert wired_to(opened, LOADER) == WIRED
    assert opened.said == []


def test_nothing_is_told_of_what_the_graph_does_not_tell(opened):
    opened.page.evaluate(
        """([loader]) => {
            const graph = app.rootGraph, merge = LiteGraph.createNode("ModelMergeSimple");
            graph.add(merge);
            for (const slot of [0, 1]) graph.getNodeById(1).connect(0, merge, slot);
            merge.connect(0, graph.getNodeById(loader), 0);
        }""",
        [LOADER],
    )
    assert wired_to(opened, LOADER) is None


def test_newest_choice_wins(opened):
    expect(shown(opened, LOADER).locator(FACTS)).not_to_be_empty()
    opened.page.evaluate(
        "async () => (await"
        " import('/extensions/lora-locksmith/preview/preview.mjs')).forgetPreviews()"
    )
    opened.requests.clear()
    for name in (KOHYA_LORA, OTHER_BASE, DAMAGED, FULL):
        opened.change(LOADER, "lora_name", name)
        opened.wait_until(
            lambda name=name: any(
                f"/lora_locksmith/file?name={name}" in address for address in opened.requests
            )
        )
    expect(shown(opened, LOADER).locator(BADGE)).to_contain_text("/57")
    opened.page.wait_for_load_state("networkidle")
    expect(shown(opened, LOADER).locator(BADGE)).to_contain_text("/57")


def test_unreadable_file_is_called_one(opened, picture):
    opened.change(LOADER, "lora_name", DAMAGED)
    expect(shown(opened, LOADER).locator(WRONG)).to_contain_text("safetensors")
    expect(shown(opened, LOADER).locator(BADGE)).to_have_text("\u2717 unreadable")


@pytest.mark.parametrize("ending", ["pt", "ckpt"])
def test_pytorch_file_is_no_fault_and_loads(opened, server, lora_file, picture, ending):
    content = io.BytesIO()
    torch.save(load_file(server.base / "models" / "loras" / BROKEN_LORA), content)
    lora_file(f"preview_old.{ending}", content.getvalue())
    opened.run_command("Comfy.RefreshNodeDefinitions")
    opened.change(LOADER, "lora_name", f"preview_old.{ending}")
    expect(shown(opened, LOADER).locator(FACTS)).to_have_text("PyTorch file")
    for part in (BADGE, WRONG):
        expect(shown(opened, LOADER).locator(part)).to_be_hidden()
    opened.run()
    expect(opened.report("Load and Fix LoRA").locator(".locksmith-badge")).to_have_text(
        "\u2713 22/22"
    )


def test_model_that_is_not_there_is_no_fault(opened, mode):
    """As in a workflow that was just opened: the file is told, and the console says nothing."""
    model = f"not_downloaded_{mode}.safetensors"
    opened.change(1, "unet_name", model)
    opened.change(LOADER, "lora_name", KOHYA_LORA)
    expect(shown(opened, LOADER).locator(BADGE)).to_have_text("10 layers")
    expect(shown(opened, LOADER).locator(WRONG)).to_be_hidden()
    assert [address for address in opened.requests if model in address]
    assert opened.said == []


def test_file_that_is_gone_is_not_asked_for(opened):
    expect(shown(opened, LOADER).locator(FACTS)).not_to_be_empty()
    opened.requests.clear()
    opened.change(LOADER, "lora_name", "no_such_file.safetensors")
    expect(shown(opened, LOADER).locator(FACTS)).to_have_count(0)
    assert not [address for address in opened.requests if "no_such_file" in address]


def test_outcome_of_a_run_replaces_it_until_the_file_changes(opened):
    expect(shown(opened, LOADER)).to_be_visible()
    opened.run()
    expect(opened.report("Load and Fix LoRA")).to_be_visible()
    expect(shown(opened, LOADER)).to_have_count(0)
    opened.change(LOADER, "lora_name", KOHYA_LORA)
    expect(shown(opened, LOADER)).to_be_visible()
    expect(opened.report("Load and Fix LoRA")).to_have_count(0)


def test_workflow_is_not_changed_by_it(opened):
    graph = opened.workflow()
    opened.load(graph | {"id": graph["id"][:-4] + "0000"})
    before = opened.workflow()
    expect(shown(opened, LOADER).locator(BADGE)).to_have_text("\u2713 22/22")
    opened.settle()
    assert opened.workflow() == before
    opened.page.evaluate(
        "app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"
    )
    assert (
        opened.page.evaluate(
            "app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
        )
        == 0
    )
