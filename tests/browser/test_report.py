"""The nodes show their report in place, in the real front end, drawn the classic way and the Vue
way.
"""

import re

import pytest
from front_end import INSPECT, LOADER, FrontEnd
from playwright.sync_api import expect
from tiny_models import BROKEN_LORA, KOHYA_LORA

LOADER_TITLE, INSPECT_TITLE = "Load and Fix LoRA", "Inspect LoRA Keys"
VERDICT, BODY, COPY, BADGE = (
    ".locksmith-verdict",
    ".locksmith-body",
    ".locksmith-copy",
    ".locksmith-badge",
)


@pytest.fixture(scope="module")
def before(front_end: FrontEnd, mode: str) -> dict:
    """A fresh workflow, as it was before it ran; it has run since, and shows both reports."""
    front_end.load_new()
    assert front_end.reports.count() == 0
    before = front_end.workflow()
    front_end.run()
    expect(front_end.reports).to_have_count(2)
    return before


def told(front_end: FrontEnd, server, node: int) -> dict:
    """What the server's newest run says of a node: {text, report_json}."""
    newest = next(iter(server.get("/history?max_items=1").values()))
    return newest["outputs"][str(node)]


def in_plain_words(markdown: str) -> str:
    return markdown.strip().strip("*")


@pytest.mark.parametrize(("title", "node"), [(LOADER_TITLE, LOADER), (INSPECT_TITLE, INSPECT)])
def test_verdict_is_shown_on_the_node(front_end, server, before, picture, title, node):
    report = front_end.report(title)
    verdict = told(front_end, server, node)["text"][0].split("\n")[0]
    if node == INSPECT:
        expect(report.locator(VERDICT)).to_have_text(in_plain_words(verdict))
    else:  # what is right is told by the badge, and in words where it is pointed at
        expect(report.locator(VERDICT)).to_be_hidden()
        assert verdict in report.locator(BADGE).get_attribute("title")
    expect(report.locator(BADGE)).to_have_accessible_name("22 of 22 layers load")
    assert "22 of 22" in verdict
    assert is_inside(report.bounding_box(), front_end.node_box(node))


def test_markdown_is_rendered(front_end, before):
    body = front_end.report(INSPECT_TITLE).locator(BODY)
    expect(body.get_by_role("heading", name="What it is")).to_be_visible()
    expect(body.get_by_role("cell", name=BROKEN_LORA).first).to_be_visible()


def test_workflow_is_saved_as_if_it_had_not_run(front_end, before):
    assert front_end.workflow() == before


def test_box_grows_with_the_node_and_the_text_scrolls(front_end, before):
    report = front_end.report(INSPECT_TITLE)
    height, wide = report.bounding_box()["height"], front_end.size_of(INSPECT)
    front_end.resize(INSPECT, wide[0], wide[1] + 100)
    scale = front_end.page.evaluate("app.canvas.ds.scale")
    front_end.wait_until(lambda: abs((report.bounding_box()["height"] - height) / scale - 100) < 8)
    front_end.resize(INSPECT, *wide)
    front_end.wait_until(lambda: abs(report.bounding_box()["height"] - height) < 8)
    body = report.locator(BODY)
    assert body.evaluate("body => body.scrollHeight > body.clientHeight * 1.5")


def test_text_can_be_reached_scrolled_and_selected_by_keyboard(front_end, before):
    report = front_end.report(INSPECT_TITLE)
    body = report.get_by_role("group", name=f"Report of {INSPECT_TITLE}")
    report.locator(VERDICT).focus()
    front_end.page.keyboard.press("Tab")
    expect(body).to_be_focused()
    front_end.page.keyboard.press("End")
    front_end.wait_until(lambda: body.evaluate("body => body.scrollTop > 100"))
    expect(report.locator(VERDICT)).to_be_visible()
    front_end.page.keyboard.press("Home")
    front_end.wait_until(lambda: body.evaluate("body => body.scrollTop === 0"))
    front_end.page.keyboard.press("Control+a")
    assert front_end.page.evaluate("getSelection().toString()").count(BROKEN_LORA) == 1


def test_wheel_scrolls_the_report_and_not_the_canvas(front_end, before):
    body = front_end.report(INSPECT_TITLE).locator(BODY)
    box, scale = body.bounding_box(), front_end.page.evaluate("app.canvas.ds.scale")
    body.click()
    front_end.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    front_end.page.mouse.wheel(0, 120)
    front_end.wait_until(lambda: body.evaluate("body => body.scrollTop > 20"))
    assert front_end.page.evaluate("app.canvas.ds.scale") == scale


def test_copy_takes_the_whole_report(front_end, server, before):
    for title, node in ((LOADER_TITLE, LOADER), (INSPECT_TITLE, INSPECT)):
        report = front_end.report(title)
        if node == LOADER:
            report.get_by_role("button", name="Details").click()
            report = front_end.page.get_by_role("dialog")
        copy = report.locator(COPY).filter(has_text=re.compile("^Cop(y|ied)$"))
        copy.click()
        expect(copy).to_have_text("Copied")
        assert (
            front_end.page.evaluate("navigator.clipboard.readText()")
            == told(front_end, server, node)["text"][0]
        )
        front_end.page.keyboard.press("Escape")


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_text_stands_out_in_every_theme(front_end, before, picture, palette):
    front_end.set("Comfy.ColorPalette", palette)
    for part in (VERDICT, BODY, COPY, f"{BODY} code"):
        assert front_end.contrast(front_end.report(INSPECT_TITLE).locator(part).first) > 4.5


def test_report_is_back_after_a_change_of_tab(front_end, before, picture):
    verdicts = front_end.reports.locator(VERDICT).all_text_contents()
    front_end.run_command("Comfy.NewBlankWorkflow")
    expect(front_end.reports).to_have_count(0)
    front_end.run_command("Workspace.PreviousOpenedWorkflow")
    expect(front_end.reports).to_have_count(2)
    assert sorted(front_end.reports.locator(VERDICT).all_text_contents()) == sorted(verdicts)
    styles = front_end.reports.evaluate_all(
        "reports => reports.map((report) => getComputedStyle(report.parentElement).contain)"
    )
    assert styles == ["size", "size"], "a report stood there without its style"


def test_report_is_back_after_an_undo(front_end, before):
    front_end.change(INSPECT, "detail", "summary")
    front_end.run_command("Comfy.Undo")
    front_end.wait_until(lambda: front_end.value(INSPECT, "detail") == "modules")
    expect(front_end.reports).to_have_count(2)


def test_report_is_back_after_a_reload(front_end, before, picture):
    verdicts = front_end.reports.locator(VERDICT).all_text_contents()
    front_end.wait_until_kept()
    front_end.open()
    expect(front_end.reports).to_have_count(2)
    assert sorted(front_end.reports.locator(VERDICT).all_text_contents()) == sorted(verdicts)
    assert [node["size"] for node in front_end.workflow()["nodes"]] == [
        node["size"] for node in before["nodes"]
    ]


def test_report_of_another_file_is_not_shown(front_end, server, mode):
    """A run may end while another workflow is open whose nodes have the same ids."""
    other = told(front_end, server, INSPECT)
    front_end.load_new(KOHYA_LORA)
    front_end.page.evaluate("outputs => { app.nodeOutputs = outputs }", {str(INSPECT): other})
    front_end.change(INSPECT, "lora_name", BROKEN_LORA)
    assert front_end.reports.count() == 0
    front_end.page.evaluate("outputs => { app.nodeOutputs = outputs }", {str(INSPECT): other})
    expect(front_end.reports).to_have_count(1)


def test_report_is_shown_in_a_subgraph(front_end, mode, picture):
    front_end.load_new()
    front_end.put_into_subgraph(INSPECT)
    front_end.run()
    front_end.open_subgraph()
    expect(front_end.report(INSPECT_TITLE).locator(VERDICT)).to_be_visible()
    front_end.run_command("Comfy.NewBlankWorkflow")
    front_end.run_command("Workspace.PreviousOpenedWorkflow")
    expect(front_end.report(INSPECT_TITLE).locator(VERDICT)).to_be_visible()


HOSTILE = {
    "picture": "a ![b](/stolen.png) c <img src=/stolen.png onerror=alert(1)>",
    "style": (
        "<style>* { display: none }</style> <p style='position:fixed;inset:0' class='modal'"
        " id='app'>over</p>"
    ),
    "form": (
        "<form action=/stolen><input autofocus><button>Sign in</button></form><video"
        " src=/stolen.mp4 autoplay></video>"
    ),
    "link": "[a](javascript:alert(1)) [b](data:text/html,x) [c](/api/free)",
    "deep": "> " * 30_000 + "x",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_words_of_strangers_can_only_be_read(front_end, text):
    front_end.requests.clear()
    tags, attributes = front_end.page.evaluate(
        """async (text) => {
            const { fromMarkdown } = await import("/extensions/lora-locksmith/shared/markup.mjs");
            const box = document.createElement("div");
            document.body.append(box);
            box.append(fromMarkdown(text));
            box.getBoundingClientRect();
            for (let frame = 0; frame < 5; frame += 1) await new Promise(requestAnimationFrame);
            box.remove();
            const all = [...box.querySelectorAll("*")];
            return [all.map((element) => element.tagName), all.flatMap((element) => element.getAttributeNames())];
        }""",
        text,
    )
    front_end.page.wait_for_load_state("networkidle")
    assert set(tags) <= {"P", "A", "BLOCKQUOTE", "PRE"}
    assert attributes == []
    assert not [address for address in front_end.requests if "stolen" in address]


def is_inside(box: dict, outer: dict) -> bool:
    right, bottom = box["x"] + box["width"], box["y"] + box["height"]
    return (
        box["x"] >= outer["x"]
        and box["y"] >= outer["y"]
        and right <= outer["x"] + outer["width"]
        and bottom <= outer["y"] + outer["height"]
    )
