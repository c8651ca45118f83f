"""Mending many files in the library's page: what each would become, then what became of it, a model
where a file does not tell it, and a run that is stopped and gone on with.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from front_end import FrontEnd
from hollow_files import write_hollow
from playwright.sync_api import Locator, expect
from shelves import SHARED, write_kind

FOLDER = "to mend"  # of this module's files in the loras folder


class Repair:
    """The page of the library, and what is mended in it."""

    def __init__(self, front_end: FrontEnd):
        self.front_end, self.page = front_end, front_end.page
        self.library = self.page.get_by_role("region", name="LoRA library")
        self.panel = self.library.get_by_role("region", name="Repair LoRAs")
        self.status = self.panel.get_by_role("status")
        self.results = self.panel.get_by_role("list", name="Results")

    def open(self, words: str, count: int) -> None:
        """Of the files with these words in their names, once that many are listed."""
        if not self.library.count():
            self.page.get_by_role("button", name="LoRA library", exact=True).click()
        self.library.get_by_role("button", name="Read the folders again").click()
        self.library.get_by_role("searchbox").fill(words)
        expect(self.library.get_by_role("status").first).to_have_text(
            re.compile(rf"^{count} of .*LoRAs$")
        )
        self.library.get_by_role("button", name="Repair all...", exact=True).click()
        expect(self.panel.get_by_role("heading")).to_be_focused()

    def looked(self) -> None:
        expect(self.status).to_contain_text("Nothing is written yet.")

    def close(self) -> None:
        if self.panel.count():
            self.panel.get_by_role("button", name="Close the repair").click()
        expect(self.panel).to_have_count(0)

    def counts(self) -> dict[str, int]:
        texts = self.panel.get_by_role("group", name="What became").get_by_role("button")
        found = [
            re.search(r"([a-z].*?)\s*(\d+)$", text, re.DOTALL) for text in texts.all_inner_texts()
        ]
        return {match[1].strip(): int(match[2]) for match in found}

    def result(self, name: str) -> Locator:
        return self.results.get_by_role("listitem").filter(has_text=f"{name}.safetensors")


@pytest.fixture
def loras(server) -> Iterator[Path]:
    place = server.base / "models" / "loras" / FOLDER
    place.mkdir(exist_ok=True)
    for number in range(3):
        write_kind(place / f"mend broken {number}.safetensors", "broken", 4)
    write_kind(place / "mend sound.safetensors", "flux", 4)
    write_kind(place / "mend partly.safetensors", "partly", 4)
    (place / "mend damaged.safetensors").write_bytes(b"no LoRA at all")
    yield place
    shutil.rmtree(place)
    shutil.rmtree(place.parent / "repaired", ignore_errors=True)


@pytest.fixture
def repair(front_end: FrontEnd, loras: Path, mode: str) -> Iterator[Repair]:
    repair = Repair(front_end)
    yield repair
    repair.close()
    repair.library.get_by_role("searchbox").fill("")


def test_a_dry_run_comes_first_then_the_files_are_written_with_their_reasons(
    repair, loras, picture
):
    before = sorted(path.name for path in loras.iterdir())
    repair.open("mend", 6)
    repair.looked()
    assert repair.counts() == {"to be repaired": 3, "cannot be repaired": 2, "nothing to do": 1}
    expect(repair.result("mend broken 1").first).to_contain_text(
        "mend broken 1.comfyui.safetensors"
    )
    expect(repair.result("mend damaged")).to_contain_text("not a safetensors file")
    assert sorted(path.name for path in loras.iterdir()) == before
    repair.panel.get_by_role(
        "checkbox", name="Leave out what no layer of the model can take"
    ).check()
    expect(repair.panel.get_by_role("button", name="Repair 4")).to_be_enabled()
    repair.looked()
    repair.panel.get_by_role("button", name="Repair 4").click()
    expect(repair.status).to_contain_text("4 of 6 are repaired.")
    assert repair.counts() == {
        "repaired": 3,
        "repaired, in part": 1,
        "cannot be repaired": 1,
        "nothing to do": 1,
    }
    new = {path.name for path in loras.iterdir()} - set(before)
    assert new == {
        f"mend {name}.comfyui.safetensors"
        for name in ("broken 0", "broken 1", "broken 2", "partly")
    }
    repair.panel.get_by_role("button", name="Look again").click()
    repair.looked()
    assert repair.counts()["is there already"] == 4
    expect(repair.result("mend broken 0")).to_contain_text("is there already")


def test_results_are_shown_by_what_became_of_them(repair):
    repair.open("mend", 6)
    repair.looked()
    refused = repair.panel.get_by_role("button", name=re.compile("cannot be repaired"))
    refused.click()
    expect(refused).to_have_attribute("aria-pressed", "true")
    assert repair.results.get_by_role("listitem").count() == 2
    refused.click()
    assert repair.results.get_by_role("listitem").count() == 6


def test_new_files_may_go_into_a_folder_of_their_own_in_other_names(repair, loras):
    repair.open("mend broken", 3)
    repair.looked()
    repair.panel.get_by_role("combobox", name="Format").select_option("kohya")
    repair.panel.get_by_role("combobox", name="New files").select_option("folder")
    expect(repair.result("mend broken 2").first).to_contain_text("\u2192 repaired/")
    repair.looked()
    repair.panel.get_by_role("button", name="Repair 3").click()
    expect(repair.status).to_contain_text("3 of 3 are repaired.")
    written = sorted((loras.parent / "repaired").rglob("*.safetensors"))
    assert [path.name for path in written] == [f"mend broken {n}.safetensors" for n in range(3)]
    assert b"lora_unet_" in written[0].read_bytes()[:2000]


def test_a_model_is_asked_for_where_the_file_does_not_tell_it(repair, loras, picture):
    write_hollow(loras / "mend shared.safetensors", SHARED)
    repair.open("mend shared", 1)
    repair.looked()
    repair.panel.get_by_role("combobox", name="Format").select_option("kohya")
    choice = repair.panel.get_by_role("combobox", name="Base model of")
    choice.select_option("qwen_image")
    repair.panel.get_by_role("button", name="Look again").click()
    act = repair.panel.get_by_role("button", name="Repair 1")
    expect(act).to_be_enabled()
    act.click()
    expect(repair.status).to_contain_text("1 of 1 are repaired.")
    assert (loras / "mend shared.kohya.safetensors").exists()


def test_a_repaired_copy_asks_for_the_model_where_it_needs_one(repair, loras, front_end):
    write_hollow(loras / "mend shared.safetensors", SHARED)
    repair.open("mend shared", 1)
    repair.close()
    repair.library.locator(".shelf-list-row").click()
    details = repair.library.get_by_role("region", name="Details of")
    details.get_by_role("button", name="Save repaired copy").click()
    form = details.locator("form")
    form.get_by_role("combobox", name="Format").select_option("kohya")
    model = form.get_by_role("combobox", name="Base model")
    expect(model).to_have_count(0)
    form.get_by_role("button", name="Save", exact=True).click()
    expect(model).to_be_focused()
    expect(form.get_by_role("status")).to_contain_text("Choose its base model")
    model.select_option(label="Qwen-Image")
    form.get_by_role("button", name="Save", exact=True).click()
    expect(form.get_by_role("status")).to_contain_text("read it back and compared it")
    front_end.said = [line for line in front_end.said if "409" not in line]
    details.get_by_role("button", name="Close the details").click()


def test_a_run_is_canceled_and_goes_on_when_it_is_started_again(repair, loras):
    count = 40
    for number in range(count):
        write_kind(loras / f"crowd {number}.safetensors", "broken", 1)
    repair.open("crowd", count)
    expect(repair.panel.get_by_role("button", name=f"Repair {count}")).to_be_enabled()
    repair.panel.get_by_role("button", name=f"Repair {count}").click()
    expect(repair.panel.get_by_role("progressbar")).to_be_visible()
    repair.panel.get_by_role("button", name="Cancel").click()
    expect(repair.status).to_contain_text("Canceled")
    made = len(list(loras.glob("crowd *.comfyui.safetensors")))
    assert made < count
    repair.panel.get_by_role("button", name="Look again").click()
    rest = repair.panel.get_by_role("button", name=f"Repair {count - made}")
    expect(rest).to_be_enabled()
    rest.click()
    expect(repair.status).to_contain_text(f"{count - made} of {count} are repaired.")
    assert len(list(loras.glob("crowd *.comfyui.safetensors"))) == count


def test_a_run_that_writes_goes_on_while_its_page_is_closed(repair, loras):
    count = 30
    for number in range(count):
        write_kind(loras / f"herd {number}.safetensors", "broken", 1)
    repair.open("herd", count)
    repair.panel.get_by_role("button", name=f"Repair {count}").click()
    expect(repair.status).to_contain_text("Repairing")
    repair.close()
    repair.library.get_by_role("button", name="Repair all...", exact=True).click()
    expect(repair.status).to_contain_text(f"{count} of {count} are repaired.")


ELSEWHERE = """async (names) => {
  const wish = {names, dialect: "comfyui", place: "beside", drop: false, models: {}, dry_run: false};
  const body = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(wish)};
  await fetch("/api/lora_locksmith/repair", body);
  document.querySelector(".shelf-repair select").dispatchEvent(new Event("change"));
}"""


def test_what_another_tab_writes_is_followed_and_not_stopped(repair, loras):
    count = 40
    for number in range(count):
        write_kind(loras / f"pack {number}.safetensors", "broken", 1)
    repair.open("pack", count)
    repair.looked()
    names = [f"{FOLDER}/pack {number}.safetensors" for number in range(count)]
    repair.page.evaluate(ELSEWHERE, names)
    expect(repair.status).to_contain_text(f"{count} of {count} are repaired.")
    assert len(list(loras.glob("pack *.comfyui.safetensors"))) == count


def test_all_of_it_is_worked_by_the_keyboard(repair):
    repair.open("mend broken", 3)
    repair.looked()
    keyboard, seen = repair.page.keyboard, []
    for _ in range(8):
        keyboard.press("Tab")
        focused = repair.panel.locator(":focus")
        if not focused.count():
            break
        seen.append(
            focused.evaluate(
                "one => one.getAttribute('aria-label') ?? one.labels?.[0]?.textContent ?? one.textContent"
            )
        )
        assert float(focused.evaluate("one => parseFloat(getComputedStyle(one).outlineWidth)")) > 0
    told = " | ".join(seen)
    for word in (
        "Close the repair",
        "Format",
        "New files",
        "Leave out",
        "Repair 3",
        "Look again",
    ):
        assert word in told
    repair.panel.get_by_role("heading").focus()
    keyboard.press("Escape")
    expect(repair.panel).to_have_count(0)
    expect(repair.library.get_by_role("button", name="Repair all...", exact=True)).to_be_focused()


def test_the_keys_stay_in_the_page_when_the_button_that_was_pressed_goes(repair):
    repair.open("mend broken", 3)
    repair.looked()
    repair.panel.get_by_role("button", name="Repair 3").press("Enter")
    expect(repair.status).to_contain_text("3 of 3 are repaired.")
    expect(repair.panel.get_by_role("heading")).to_be_focused()
    repair.page.keyboard.press("Escape")
    expect(repair.panel).to_have_count(0)
