"""The routes that mend many files of the library: told first, then done, never over another file,
and never outside of the loras folders.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

import comfy_server
import pytest
from hollow_files import write_hollow
from lora_locksmith.report.inspection import inspect_file
from reports.small_files import flux_lora
from shelves import SHARED

BROKEN = "transformer.base_model.model."
PLACE = "mend"  # of this module's files in the loras folder


class Mending:
    """Asks as the page does; an answer is (HTTP's number, what was told)."""

    def __init__(self, server):
        self.url = f"{server.url}/lora_locksmith/"

    def post(self, route: str, wish: object, **headers: str) -> tuple[int, dict]:
        headers = {"Content-Type": "application/json", **headers}
        body = json.dumps(wish).encode()
        return self.send(urllib.request.Request(self.url + route, body, headers))

    def get(self, route: str) -> tuple[int, dict]:
        return self.send(urllib.request.Request(self.url + route))

    @staticmethod
    def send(request: urllib.request.Request) -> tuple[int, dict]:
        try:
            with urllib.request.urlopen(request, timeout=comfy_server.PATIENCE) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.loads(refusal.read() or b"{}")

    def ended(self) -> dict:
        deadline = time.monotonic() + comfy_server.PATIENCE
        while time.monotonic() < deadline:
            _, told = self.get("repair")
            if not told["running"]:
                return told
            time.sleep(0.05)
        pytest.fail("the run does not end")

    def run(self, *names: str, **wish: object) -> dict[str, dict]:
        """The results by file, of one run that was let end."""
        status, told = self.post("repair", {"names": names, **wish})
        assert status == 200, told
        ended = self.ended()
        assert ended["run"] == told["run"] and ended["done"] == ended["total"] == len(names)
        return {result["file"]: result for result in ended["results"]}


@pytest.fixture(scope="module")
def mending(server) -> Mending:
    return Mending(server)


@pytest.fixture
def folder(server):
    place = server.base / "models" / "loras" / PLACE
    place.mkdir()
    write_hollow(place / "broken.safetensors", flux_lora(blocks=2, start=BROKEN))
    write_hollow(place / "good.safetensors", flux_lora(blocks=2, start="transformer."))
    (place / "damaged.safetensors").write_bytes(b"no LoRA at all")
    odd = {"transformer.no_such_layer.7.lora_A.weight": (4, 8)}
    odd |= {"transformer.no_such_layer.7.lora_B.weight": (8, 4)}
    write_hollow(place / "partly.safetensors", flux_lora(blocks=2) | odd)
    yield place
    shutil.rmtree(place)
    shutil.rmtree(place.parent / "repaired", ignore_errors=True)


def named(*names: str) -> list[str]:
    return [os.path.join(PLACE, f"{name}.safetensors") for name in names]


ALL = ("broken", "good", "damaged", "partly")


def whole(path: Path) -> bool:
    found = inspect_file(path)
    return not found.gains and found.report.modules["placed"] == found.report.modules["total"] > 0


def test_a_dry_run_tells_what_each_file_would_become_and_writes_nothing(mending, folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    results = mending.run(*named(*ALL))
    ends = [results[name]["end"] for name in named(*ALL)]
    assert ends == ["repaired", "sound", "refused", "refused"]
    assert results[named("broken")[0]]["new"] == named("broken.comfyui")[0]
    assert "no LoRA" not in results[named("good")[0]]["told"]
    assert len(results[named("damaged")[0]]["told"]) > 10
    assert "Leave out" in results[named("partly")[0]]["told"]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert mending.get("repair")[1]["dry_run"] is True


def test_new_files_lie_beside_and_a_second_run_says_that_they_are_there(mending, folder):
    source = (folder / "broken.safetensors").read_bytes()
    results = mending.run(*named(*ALL), dry_run=False, drop=True)
    assert [results[name]["end"] for name in named(*ALL)] == [
        "repaired",
        "sound",
        "refused",
        "in_part",
    ]
    for name in ("broken", "partly"):
        assert whole(folder / f"{name}.comfyui.safetensors")
    assert (folder / "broken.safetensors").read_bytes() == source
    written = (folder / "broken.comfyui.safetensors").stat().st_mtime_ns
    again = mending.run(*named("broken", "good"), dry_run=False)
    assert [result["end"] for result in again.values()] == ["exists", "sound"]
    assert "is there already" in again[named("broken")[0]]["told"]
    assert (folder / "broken.comfyui.safetensors").stat().st_mtime_ns == written
    assert not list(folder.rglob("*.part"))


def test_new_files_go_under_the_same_names_into_a_folder_of_their_own(mending, folder):
    results = mending.run(*named("broken"), place="folder", dialect="kohya", dry_run=False)
    new = results[named("broken")[0]]["new"]
    assert new == os.path.join("repaired", *Path(named("broken")[0]).parts)
    header = inspect_file(folder.parent / new).header
    assert all(name.startswith("lora_unet_") for name in header.tensors)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{name}.safetensors" for name in ALL
    )


def test_a_file_that_does_not_tell_its_model_is_written_for_the_one_that_is_chosen(mending, folder):
    write_hollow(folder / "shared.safetensors", SHARED)
    (name,) = named("shared")
    refused = mending.run(name, dialect="kohya")[name]
    assert refused["end"] == "refused" and refused["needs_model"]
    assert {"qwen_image", "mage_flow"} <= set(refused["families"])
    keys = {}
    chosen = refused["families"][0], "qwen_image"
    for family in chosen:
        wish = {"dialect": "kohya", "models": {name: family}, "dry_run": False}
        made = mending.run(name, **wish)[name]
        assert made["end"] == "repaired", made
        path = folder.parent / made["new"]
        keys[family] = set(inspect_file(path).header.tensors)
        path.unlink()
    assert keys[chosen[0]] != keys[chosen[1]]


def test_a_repaired_copy_is_saved_for_the_model_that_is_chosen(mending, folder):
    write_hollow(folder / "shared.safetensors", SHARED)
    (name,) = named("shared")
    wish = {"name": name, "dialect": "kohya", "filename": f"{PLACE}/one"}
    status, told = mending.post("save", wish)
    assert status == 409 and {"qwen_image", "mage_flow"} <= set(told["models"])
    assert told["models"]["qwen_image"] == "Qwen-Image" and told["remedy"]
    assert not (folder / "one.safetensors").exists()
    status, told = mending.post("save", wish | {"model": "qwen_image"})
    assert status == 200 and (folder / "one.safetensors").exists(), told


def test_the_choices_are_told(mending):
    status, told = mending.get("repair_choices")
    assert status == 200 and told["native"] in told["dialects"]
    assert told["models"]["flux1"] == "FLUX.1" and "t5xxl" not in told["models"]


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "none.safetensors", "", "a\0b", f"./{PLACE}/broken"],
)
def test_only_listed_files_are_mended(mending, folder, name):
    before = set(folder.parent.parent.parent.rglob("*.safetensors"))
    assert mending.run(name, dry_run=False)[name]["end"] == "refused"
    assert set(folder.parent.parent.parent.rglob("*.safetensors")) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows allows links only in developer mode")
def test_no_link_leads_out_of_the_loras_folders(mending, folder, tmp_path):
    write_hollow(tmp_path / "far.safetensors", flux_lora(blocks=2, start=BROKEN))
    (folder / "away").symlink_to(tmp_path)
    name = os.path.join(PLACE, "away", "far.safetensors")
    refused = mending.run(name, dry_run=False)[name]
    assert refused["end"] == "refused" and "leads out" in refused["told"]
    assert [path.name for path in tmp_path.iterdir()] == ["far.safetensors"]
    made = mending.run(name, dry_run=False, place="folder")[name]
    assert made["end"] == "repaired" and (folder.parent / made["new"]).exists()


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"names": "all"},
        {"names": [3]},
        {"names": [], "dialect": "none"},
        {"names": [], "place": "../x"},
        {"names": [], "models": {"a": "none"}},
        {"names": [], "models": {"a": 3}},
        {"names": [], "dry_run": "no"},
        {"names": [], "drop": 1},
    ],
    ids=range(9),
)
def test_a_wish_that_is_none_is_refused(mending, wish):
    status, told = mending.post("repair", wish)
    assert status == 400 and told["error"] and told["remedy"]


def test_no_other_site_can_mend(mending, folder):
    wish = {"names": named("broken"), "dry_run": False}
    for headers in ({"Origin": "http://other.example"}, {"Content-Type": "text/plain"}):
        assert mending.post("repair", wish, **headers)[0] in (400, 403)
    assert not (folder / "broken.comfyui.safetensors").exists()


def test_a_run_is_stopped_and_goes_on_when_it_is_started_again(mending, folder):
    names = [f"crowd {number}" for number in range(60)]
    for name in names:
        write_hollow(folder / f"{name}.safetensors", flux_lora(blocks=19, start=BROKEN))
    status, begun = mending.post("repair", {"names": named(*names), "dry_run": False})
    assert status == 200 and begun["running"]
    busy, told = mending.post("repair", {"names": [], "dry_run": False})
    assert busy == 409 and "running" in told["error"]
    mending.post("repair_stop", {})
    ended = mending.ended()
    assert ended["stopped"] and ended["done"] < len(names)
    made = {path.name for path in folder.glob("*.comfyui.safetensors")}
    assert len(made) == ended["done"]
    rest = mending.run(*named(*names), dry_run=False)
    assert sum(result["end"] == "exists" for result in rest.values()) == len(made)
    assert sum(result["end"] == "repaired" for result in rest.values()) == len(names) - len(made)
    assert mending.get("repair?since=58")[1]["results"] == list(rest.values())[58:]


def test_reasons_come_in_the_language_that_is_asked_for(mending, folder):
    mending.run(*named("good"))
    told = mending.get("repair?language=zh")[1]
    (result,) = told["results"]
    assert told["translations"]["zh"][result["told"]] != result["told"]


def test_the_host_lists_its_folders_once_a_run(comfy, tmp_path):
    """Each new file changes them, and to list thousands of files for each takes longer than to mend
    it.
    """
    import folder_paths
    from lora_locksmith.nodes.server.repairing import Repairs, RepairWish

    names = [f"{number}.safetensors" for number in range(3)]
    for name in names:
        write_hollow(tmp_path / name, flux_lora(blocks=1, start=BROKEN))
    before, repairs = folder_paths.folder_names_and_paths["loras"], Repairs()
    folder_paths.folder_names_and_paths["loras"] = ([str(tmp_path)], before[1])
    folder_paths.filename_list_cache.pop("loras", None)
    try:
        repairs.start(RepairWish(names, dry_run=False))
        deadline = time.monotonic() + comfy_server.PATIENCE
        while (told := json.loads(repairs.answer(0)))["running"]:
            assert time.monotonic() < deadline, "the run does not end"
            time.sleep(0.02)
        listed = folder_paths.filename_list_cache["loras"][0]
    finally:
        folder_paths.folder_names_and_paths["loras"] = before
        folder_paths.filename_list_cache.pop("loras", None)
    assert [result["end"] for result in told["results"]] == ["repaired"] * 3
    assert len(list(tmp_path.iterdir())) == 6 and listed == names
