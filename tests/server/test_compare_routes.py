"""The routes that compare two files and measure weights: told at once from headers, measured in a
thread while others are answered, and ended when nobody wants them.
"""

from __future__ import annotations

import json
import shutil
import urllib.request

import pytest
from hollow_files import write_hollow
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.lora.by_layer import compared_weights
from lora_locksmith.report.compare import compare_files
from pairs import write_pair
from reports.small_files import flux_lora
from routes import Routes
from shelves import wan

PLACE = "compared/\u6c34\u5f69 & #1"
A, B, LARGE, DAMAGED, OTHER = (
    f"{PLACE}/{name}.safetensors" for name in ("a", "b", "large", "damaged", "other")
)


class Comparing(Routes):
    def measured(self, **question) -> dict:
        """The answer once all is measured."""
        while True:
            status, told = self.ask("weights", **question)
            assert status == 200, told
            if not told["running"]:
                return told

    def stop(self, **wish) -> tuple[int, dict]:
        url = f"{self.server.url}/lora_locksmith/weights_stop"
        headers = {"Content-Type": "application/json"}
        return self.send(urllib.request.Request(url, json.dumps(wish).encode(), headers))


@pytest.fixture(scope="module")
def comparing(server) -> Comparing:
    return Comparing(server)


@pytest.fixture(scope="module", autouse=True)
def folder(server):
    place = server.base / "models" / "loras" / PLACE
    place.mkdir(parents=True)
    write_pair(place / "a.safetensors", place / "b.safetensors", double=2, single=2)
    write_hollow(place / "large.safetensors", flux_lora(256))
    write_hollow(place / "other.safetensors", wan(4))
    (place / "damaged.safetensors").write_bytes(b"no LoRA at all")
    yield place
    shutil.rmtree(place.parent)


def test_headers_are_compared(comparing, folder):
    status, told = comparing.ask("compare", name=A, other=B)
    assert status == 200
    assert told == compare_files(folder / "a.safetensors", folder / "b.safetensors").as_dict()
    assert told["facts"]["file"] == ["a.safetensors", "b.safetensors"]
    (flux, encoder) = told["networks"]
    assert (flux["component"], encoder["component"]) == (DENOISER, "clip_l")


def test_a_comparison_is_told_in_chinese(comparing):
    told = comparing.ask("compare", name=A, other=B, language="zh")[1]
    texts = told["translations"]["zh"]
    assert texts[told["verdict"]] != told["verdict"] and texts["rank"] != "rank"
    words = told["networks"][0]["blocks"][0]["kinds"][0]["words"]
    assert texts[words] != words


def test_weights_are_those_of_the_command_line(comparing, folder):
    told = comparing.measured(name=A, other=B)
    paths = folder / "a.safetensors", folder / "b.safetensors"
    assert told["weights"] == json.loads(json.dumps(compared_weights(compare_files(*paths))))
    assert (told["error"], told["stopped"]) == ("", False)


def test_one_file_is_measured(comparing):
    weights = comparing.measured(name=A)["weights"]
    assert weights["norm_a"] > 0 and weights["norm_b"] == 0
    assert {row["component"] for row in weights["blocks"]} == {DENOISER, "clip_l"}


def test_a_changed_file_is_measured_anew(comparing, folder):
    before = comparing.measured(name=B)["weights"]["norm_a"]
    write_pair(folder / "a.safetensors", folder / "b.safetensors", double=3, single=1)
    assert comparing.measured(name=B)["weights"]["norm_a"] != pytest.approx(before)


def test_a_measurement_is_followed_and_stopped_while_others_are_answered(comparing):
    status, told = comparing.ask("weights", name=LARGE, other=A)
    assert status == 200 and told["running"] and told["weights"] is None
    while not told["total"]:
        told = comparing.ask("weights", name=LARGE, other=A)[1]
    assert comparing.ask("file", name=A)[0] == 200
    assert comparing.ask("compare", name=A, other=B)[0] == 200
    status, told = comparing.stop(name=LARGE, other=A)
    assert status == 200 and told["stopped"] and told["weights"] is None
    # Another does not wait for it, and what was stopped begins anew.
    assert comparing.measured(name=A)["weights"]
    again = comparing.ask("weights", name=LARGE, other=A)[1]
    assert again["running"] and not again["stopped"] and again["done"] < told["total"]
    assert comparing.stop(name=LARGE, other=A)[1]["stopped"]


def test_what_was_not_begun_is_not_stopped(comparing):
    assert comparing.stop(name=OTHER) == (200, {})


def test_files_for_different_models_are_told_apart(comparing):
    told = comparing.ask("compare", name=A, other=OTHER)[1]
    assert told["one_model"] is False and told["networks"] == []
    assert "different models" in told["verdict"]


@pytest.mark.parametrize("other", ["none.safetensors", "../a.safetensors", "/etc/passwd", "a\0b"])
@pytest.mark.parametrize("route", ["compare", "weights"])
def test_only_listed_files_are_read(comparing, route, other):
    status, told = comparing.ask(route, name=A, other=other)
    assert status == 404 and told.keys() == {"error", "remedy"}
    assert comparing.ask(route, name=other, other=A)[0] == 404
    assert comparing.stop(name=other)[0] == 404


@pytest.mark.parametrize("route", ["compare", "weights"])
def test_a_damaged_file_is_refused_in_words(comparing, route):
    status, told = comparing.ask(route, name=A, other=DAMAGED)
    assert status == 400 and "damaged.safetensors" in told["error"] and told["remedy"]


def test_a_comparison_needs_two_names(comparing):
    status, told = comparing.ask("compare", name=A)
    assert status == 400 and told["remedy"]
    assert comparing.ask("weights")[0] == 400
    assert comparing.stop()[0] == 400
