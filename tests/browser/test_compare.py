"""Two files are compared in the page: chosen in the library or in Details, told in pictures whose
numbers are the server's; and the map of one file is shaded by energy.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from front_end import FrontEnd
from hollow_files import write_hollow
from pairs import write_pair
from playwright.sync_api import Locator, expect
from reports.small_files import flux_lora
from routes import Routes
from safetensors.torch import load_file, save_file
from scenes import library
from shelves import wan

PLACE = "compared"
A, B, LARGE, OTHER = (f"{PLACE}/{name}.safetensors" for name in ("one", "two", "large", "other"))
BLOCKS, DEPTH = 4, 19  # that are trained, of those that FLUX.1 has
QKV, MOD = "img_attn.qkv", "img_mod.lin"


@pytest.fixture(scope="module", autouse=True)
def files(front_end: FrontEnd, server) -> Iterator[None]:
    folder = server.base / "models" / "loras" / PLACE
    folder.mkdir()
    write_pair(folder / "one.safetensors", folder / "two.safetensors", double=BLOCKS, single=BLOCKS)
    write_turned(folder / "one.safetensors", folder / "turned.safetensors")
    write_hollow(folder / "large.safetensors", flux_lora(256))
    write_hollow(folder / "other.safetensors", wan(4))
    front_end.run_command("Comfy.RefreshNodeDefinitions")
    yield
    shutil.rmtree(folder)


def write_turned(source: Path, target: Path) -> None:
    """The file with a DoRA for each layer of its first block, which needs the model's weight."""
    tensors = load_file(source)
    for name in [name for name in tensors if "double_blocks_0_" in name and "lora_up" in name]:
        scale = torch.ones(tensors[name].shape[0], 1)
        tensors[name.replace("lora_up.weight", "dora_scale")] = scale
    save_file(tensors, target)


@pytest.fixture(scope="module")
def routes(server) -> Routes:
    return Routes(server)


@pytest.fixture
def shelf(front_end: FrontEnd, mode: str) -> Iterator[Locator]:
    found = library(front_end)
    found.get_by_role("searchbox").fill(PLACE)
    expect(found.locator(".shelf-list-row")).to_have_count(5)
    yield found
    for _ in range(3):
        front_end.page.keyboard.press("Escape")


@pytest.fixture
def details(front_end: FrontEnd, mode: str) -> Iterator[Locator]:
    """Those of A, before a run."""
    front_end.load_new(A)
    front_end.page.locator(".locksmith-status").get_by_role("button", name="Details").first.click()
    found = front_end.page.get_by_role("dialog", name="Details of")
    expect(table_of(found)).to_be_visible()
    yield found
    for _ in range(3):
        front_end.page.keyboard.press("Escape")


def row(shelf: Locator, name: str) -> Locator:
    return shelf.locator(".shelf-list-row").filter(has_text=name)


def compare(shelf: Locator, first: str, second: str) -> Locator:
    row(shelf, first).click()
    row(shelf, second).click(modifiers=["Control"])
    shelf.get_by_role("button", name="Compare", exact=True).click()
    return shelf.page.get_by_role("dialog", name="Comparison of")


def table_of(dialog: Locator, blocks: str = "double_blocks") -> Locator:
    return dialog.get_by_role("table", name=blocks)


def cells(dialog: Locator, kind: str) -> Locator:
    """Those of the blocks that the files train."""
    cells = table_of(dialog).get_by_role("row", name=kind).locator("td[aria-label]")
    return cells.and_(dialog.locator(f"td:nth-last-child(n + {DEPTH - BLOCKS + 1})"))


def measured(routes: Routes, **question: str) -> dict:
    while (told := routes.ask("weights", **question)[1])["running"]:
        pass
    return told["weights"]


def layers_of(weights: dict, kind: str) -> list[dict]:
    return [
        each
        for each in weights["layers"]
        if (each["blocks"], each["kind"]) == ("double_blocks", kind)
    ]


def choose(front_end: FrontEnd, name: str) -> None:
    front_end.page.locator(".locksmith-chooser-field").fill(name)
    expect(front_end.page.locator(".locksmith-chooser-entry")).to_have_count(1)
    front_end.page.keyboard.press("Enter")


def test_two_rows_are_compared(front_end, shelf, routes, picture):
    dialog = compare(shelf, "one", "two")
    expect(dialog).to_contain_text("Both change 5 layer types; 3 only A, 1 only B.")
    facts = dialog.locator(".locksmith-facts-of-two")
    expect(facts.get_by_role("row", name="file").get_by_role("cell")).to_have_text(
        ["one.safetensors", "two.safetensors"]
    )
    expect(dialog).to_contain_text("Cosine of all changes together:")
    weights = measured(routes, name=A, other=B)
    cosines = [str(round(100 * layer["cosine"])) for layer in layers_of(weights, QKV)]
    assert cosines[0] == "100" and int(cosines[3]) < 0
    expect(cells(dialog, QKV)).to_have_text(cosines)
    expect(cells(dialog, "img_mlp.0")).to_have_text(["A"] * 4)
    expect(cells(dialog, MOD)).to_have_text(["\u00b7", "B", "B", "\u00b7"])
    assert cells(dialog, QKV).first.evaluate(
        "cell => getComputedStyle(cell).backgroundColor"
    ) != cells(dialog, QKV).last.evaluate("cell => getComputedStyle(cell).backgroundColor")


def test_what_a_cell_is_is_told_by_pointer_and_arrow_keys(front_end, shelf, routes):
    dialog = compare(shelf, "one", "two")
    expect(dialog.locator(".locksmith-chart").first).to_be_attached()
    first = layers_of(measured(routes, name=A, other=B), QKV)[0]
    line = dialog.locator("output").first
    cells(dialog, QKV).first.hover()
    expect(line).to_contain_text(f"double_blocks.0.{QKV}: cosine {first['cosine']:.3f}; A: rank 4")
    expect(line).to_contain_text(f"norm {first['energy_b'] ** 0.5:.3g}")
    table_of(dialog).locator("td[tabindex='0']").focus()
    expect(line).to_have_text(f"double_blocks.0.{MOD}: not trained")
    front_end.page.keyboard.press("ArrowRight")
    expect(line).to_contain_text(f"double_blocks.1.{MOD}: only B trains it; B: rank 1, norm")


def test_energy_is_drawn_and_told_in_numbers(front_end, shelf, routes):
    dialog = compare(shelf, "one", "two")
    chart = dialog.get_by_role("img", name="Energy of A and B in double_blocks")
    expect(chart).to_be_visible()
    weights = measured(routes, name=A, other=B)
    shares = {
        side: [
            100 * block[f"energy_{side}"] / weights[f"norm_{side}"] ** 2
            for block in weights["blocks"]
            if block["blocks"] == "double_blocks"
        ]
        for side in "ab"
    }
    heights = {
        side: chart.locator(f".locksmith-fill-{side}").evaluate_all(
            "bars => bars.map((bar) => bar.height.baseVal.value)"
        )
        for side in "ab"
    }
    scale = heights["a"][0] / shares["a"][0]
    for side in "ab":
        assert heights[side] == pytest.approx([scale * share for share in shares[side]], rel=1e-3)
    dialog.get_by_text("In numbers").click()
    numbers = dialog.get_by_role("row", name="double_blocks.0").get_by_role("cell")
    expect(numbers).to_have_text([f"{shares[side][0]:.2g} %" for side in "ab"])


def test_what_cannot_be_measured_is_not_known_and_said(front_end, shelf, picture):
    dialog = compare(shelf, "turned", "two")
    expect(cells(dialog, QKV).first).to_have_text("?")
    expect(cells(dialog, QKV).nth(1)).not_to_have_text("?")
    cells(dialog, QKV).first.hover()
    line = dialog.locator("output").first
    expect(line).to_have_text(re.compile(r"A: rank 4; B: rank 4, norm [\d.]+, "))
    dialog.get_by_text("In numbers").click()
    numbers = dialog.get_by_role("row", name="double_blocks.0").get_by_role("cell")
    expect(numbers).to_have_text(["not known", re.compile(r"^[\d.]+ %$")])
    left = dialog.get_by_text("Not measured: 5")
    left.click()
    reasons = dialog.get_by_role("listitem").filter(has_text="needs the model's weight")
    expect(reasons).to_have_count(5)
    left.scroll_into_view_if_needed()


def test_two_rows_are_chosen_by_keys(front_end, shelf):
    row(shelf, "one").click()
    button = shelf.get_by_role("button", name="Compare", exact=True)
    chosen = shelf.locator(".shelf-list-row[aria-selected='true']")
    expect(chosen).to_have_count(1)
    expect(button).to_be_hidden()
    start, end = (int(row(shelf, name).get_attribute("data-index")) for name in ("one", "two"))
    for _ in range(abs(end - start)):
        front_end.page.keyboard.press("Control+ArrowDown" if end > start else "Control+ArrowUp")
    expect(chosen).to_have_count(1)
    front_end.page.keyboard.press("Control+Space")
    expect(chosen).to_have_count(2)
    expect(button).to_have_attribute("title", f"Compare {A} with {B}")
    front_end.page.keyboard.press("Control+Space")
    expect(button).to_be_hidden()
    front_end.page.keyboard.press("Control+Space")
    expect(button).to_be_visible()
    front_end.page.keyboard.press("Home")
    expect(button).to_be_hidden()


def test_the_second_row_may_be_found_by_another_search(front_end, shelf):
    row(shelf, "one").click()
    shelf.get_by_role("searchbox").fill(f"{PLACE} two")
    expect(shelf.locator(".shelf-list-row")).to_have_count(1)
    row(shelf, "two").click(modifiers=["Control"])
    button = shelf.get_by_role("button", name="Compare", exact=True)
    expect(button).to_have_attribute("title", f"Compare {A} with {B}")
    shelf.get_by_role("searchbox").fill(PLACE)
    expect(shelf.locator(".shelf-list-row[aria-selected='true']")).to_have_count(2)
    expect(shelf.get_by_role("button", name="Repair all")).to_be_visible()


def test_a_file_of_the_library_is_compared_with_another(front_end, shelf):
    row(shelf, "one").click()
    shelf.get_by_role("button", name="Compare with").click()
    choose(front_end, "compared two")
    dialog = front_end.page.get_by_role("dialog", name=f"Comparison of {A} and {B}")
    expect(cells(dialog, QKV)).to_have_count(4)


def test_files_for_different_models_are_told_so_without_pictures(front_end, shelf):
    dialog = compare(shelf, "one", "other")
    expect(dialog).to_contain_text("for different models")
    expect(dialog.locator(".locksmith-facts-of-two")).to_be_visible()
    expect(dialog.locator(".locksmith-heat, .locksmith-chart")).to_have_count(0)


def test_details_lead_to_a_comparison_and_stay_open(front_end, details):
    details.get_by_role("button", name="Compare with").click()
    choose(front_end, "compared two")
    dialog = front_end.page.get_by_role("dialog", name="Comparison of")
    expect(cells(dialog, QKV).first).to_have_text("100")
    front_end.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(details.get_by_role("button", name="Compare with")).to_be_focused()
    front_end.page.keyboard.press("Escape")
    expect(details).to_have_count(0)


def test_measuring_is_stopped_and_begun_again(front_end, shelf, routes):
    dialog = compare(shelf, "one", "large")
    expect(cells(dialog, "txt_mlp.0").first).to_have_text("B")
    dialog.get_by_role("button", name="Stop").click()
    begin = dialog.get_by_role("button", name="Measure the weights")
    expect(begin).to_be_visible()
    expect(dialog.get_by_role("progressbar")).to_be_hidden()
    expect(cells(dialog, "img_mlp.0").first).to_have_text("AB")
    begin.click()
    expect(dialog.get_by_role("progressbar")).to_be_visible()
    front_end.requests.clear()
    front_end.page.keyboard.press("Escape")
    front_end.wait_until(lambda: any("weights_stop" in url for url in front_end.requests))


def test_a_layer_whose_energy_is_not_known_is_told_so(front_end, mode):
    front_end.load_new(f"{PLACE}/turned.safetensors")
    front_end.page.locator(".locksmith-status").get_by_role("button", name="Details").first.click()
    details = front_end.page.get_by_role("dialog", name="Details of")
    details.get_by_role("button", name="Energy", exact=True).click()
    expect(cells(details, QKV)).to_have_text(["?", "", "", ""])
    expect(details.locator(".locksmith-measuring")).to_contain_text(
        "Not measured: 5. Its effect needs the model's weight."
    )
    cells(details, QKV).first.hover()
    line = details.locator("output").first
    expect(line).to_have_text(f"double_blocks.0.{QKV}: trained, rank 4, energy not known")
    front_end.page.keyboard.press("Escape")
    expect(details).to_have_count(0)


def test_the_map_of_a_file_is_shaded_by_rank_and_by_energy(front_end, details, routes, picture):
    by_rank, by_energy = (
        details.get_by_role("button", name=name, exact=True) for name in ("Rank", "Energy")
    )
    expect(by_rank).to_have_attribute("aria-pressed", "true")
    expect(cells(details, QKV)).to_have_text(["4", "4", "2", "2"])
    line = details.locator("output").first
    cells(details, QKV).nth(2).hover()
    expect(line).to_have_text(f"double_blocks.2.{QKV}: trained, rank 2")
    by_energy.click()
    expect(by_energy).to_have_attribute("aria-pressed", "true")
    weights = measured(routes, name=A)
    energies = [layer["energy_a"] for layer in layers_of(weights, QKV)]
    shades = cells(details, QKV).evaluate_all(
        "cells => cells.map((cell) => parseFloat(cell.style.getPropertyValue('--locksmith-shade')))"
    )
    most = max(layer["energy_a"] for layer in weights["layers"])
    assert shades == [round(100 * (energy / most) ** 0.5) for energy in energies]
    cells(details, QKV).nth(2).hover()
    share = 100 * energies[2] / weights["norm_a"] ** 2
    expect(details.locator("output").first).to_have_text(
        f"double_blocks.2.{QKV}: trained, rank 2, {share:.2g} % of the energy"
    )
    by_rank.click()
    expect(cells(details, QKV)).to_have_text(["4", "4", "2", "2"])
