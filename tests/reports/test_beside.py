"""What other tools keep beside a LoRA file."""

from __future__ import annotations

import json

import pytest
from hollow_files import write_hollow
from lora_locksmith.report.beside import SOURCES, beside_stamp, preview_of, read_beside
from lora_locksmith.report.inspection import inspect_file

WORDS = {
    ".metadata.json": {
        "civitai": {"trainedWords": ["ink wash"]},
        "usage_tips": '{"strength": 0.7}',
    },
    ".civitai.info": {"trainedWords": ["ink wash"], "baseModel": "SDXL 1.0"},
    ".json": {"activation text": "ink wash", "preferred weight": 0.7},
    ".rgthree-info.json": {"trainedWords": [{"word": "ink wash", "civitai": True}]},
}


@pytest.fixture
def lora(tmp_path):
    keys = {"lora_unet_x.lora_down.weight": (4, 8), "lora_unet_x.lora_up.weight": (8, 4)}
    return write_hollow(tmp_path / "\u6c34\u58a8 v1.5.safetensors", keys)


def place(lora, ending):
    whole = next(source.of_whole_name for source in SOURCES if source.ending == ending)
    return lora.with_name((lora.name if whole else lora.stem) + ending)


@pytest.mark.parametrize("ending", WORDS)
def test_trigger_words_and_strength(lora, ending):
    assert read_beside(lora) == ((), None)
    before = beside_stamp(lora)
    place(lora, ending).write_text(json.dumps(WORDS[ending]), encoding="utf-8")
    beside = read_beside(lora)
    assert beside.words == (("ink wash", place(lora, ending).name),)
    assert (beside.strength is not None) == ("0.7" in json.dumps(WORDS[ending]))
    assert beside.strength is None or beside.strength.value == 0.7
    assert beside_stamp(lora) != before


def test_a_text(lora):
    lora.with_suffix(".txt").write_text("\ufeffink wash,\n masterpiece ", encoding="utf-8")
    assert read_beside(lora).words == (("ink wash, masterpiece", lora.stem + ".txt"),)


def test_each_word_once_and_the_best_source_first(lora):
    for ending, content in WORDS.items():
        place(lora, ending).write_text(json.dumps(content), encoding="utf-8")
    lora.with_suffix(".txt").write_text("Ink Wash", encoding="utf-8")
    assert read_beside(lora).words == (("ink wash", lora.stem + ".metadata.json"),)


@pytest.mark.parametrize("content", [
    "", "{", "[]", "null", "3", '{"trainedWords": 3}', '{"trainedWords": [null, 3, {}, ""]}',
    '{"trainedWords": {"word": {}}}', "[" * 100_000, "\x00\xff", '{"trainedWords": ["' + "x" * 5000 + '"]}',
])  # fmt: skip
def test_what_cannot_be_read_is_not_there(lora, content):
    place(lora, ".civitai.info").write_text(content, encoding="utf-8")
    assert read_beside(lora) == ((), None)


@pytest.mark.parametrize("weight", [0, -200, True, "0.8", None, 1e400])
def test_a_strength_that_is_none(lora, weight):
    text = json.dumps({"activation text": "", "preferred weight": weight})
    place(lora, ".json").write_text(text, encoding="utf-8")
    assert read_beside(lora).strength is None


def test_an_inspection_tells_them_first(lora):
    place(lora, ".json").write_text(json.dumps(WORDS[".json"]), encoding="utf-8")
    about = inspect_file(lora).as_dict()
    assert about["metadata"]["trigger_words"][0] == {
        "word": "ink wash",
        "evidence": [lora.stem + ".json"],
    }
    assert about["beside"] == {"strength": {"value": 0.7, "file": lora.stem + ".json"}}


def test_previews(lora):
    assert preview_of(lora) is None
    lora.with_suffix(".mp4").touch()
    assert preview_of(lora) == lora.with_suffix(".mp4")
    lora.with_name(lora.stem + ".preview.png").touch()
    assert preview_of(lora).name == lora.stem + ".preview.png"
