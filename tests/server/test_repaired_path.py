"""Repaired LoRA Path on the real server: other loaders take its name, no list shows its files, and
a second run is answered from the cache.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import demo
import pytest
import torch
from safetensors.torch import load_file, save
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, diffusers_lora, simpletuner_broken_lora

NODE = "LocksmithRepairedLoRAPath"
FLUX, ANY = "Nunchaku FLUX.1", "any (native names)"


def node(lora_name: str, reader: str = FLUX, **inputs) -> dict:
    return {
        "class_type": NODE,
        "inputs": {"lora_name": lora_name, "reader": reader, "strength": 1.0, **inputs},
    }


def shown(slot: int) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": ["repaired", slot]}}


def told(bench, lora_name: str, reader: str = FLUX, **inputs) -> list[str]:
    """path, name, lora and report."""
    prompt = {"repaired": node(lora_name, reader, **inputs)}
    prompt |= {str(slot): shown(slot) for slot in range(4)}
    outputs = bench.server.run(prompt)["outputs"]
    return [outputs[str(slot)]["text"][0] for slot in range(4)]


def kept(bench) -> list[Path]:
    folder = bench.server.base / "user" / "lora-locksmith" / "repaired"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_it_is_declared_with_the_types_that_others_take(object_info):
    info = object_info[NODE]
    assert info["output"] == ["STRING", "*", "WANVIDLORA", "STRING"]
    assert info["input_order"]["required"] == ["lora_name", "reader", "strength"]
    assert info["input"]["optional"]["prev_lora"][0] == "WANVIDLORA"
    assert info["input"]["required"]["reader"][1]["default"] == ANY
    assert info["output_node"] is False


def test_stocks_loader_takes_the_name_and_loads_all_of_it(bench):
    """As Nunchaku's loaders take it: a link into lora_name."""
    prompt = demo.with_stock_loader(copy.deepcopy(bench.prompt))
    loader = next(spec for spec in prompt.values() if spec["class_type"] == "LoraLoader")
    loader["inputs"]["lora_name"] = ["repaired", 1]
    result = bench.run({**prompt, "repaired": node(BROKEN_LORA)})
    ours = bench.ours(BROKEN_LORA)
    off = (result.latent - ours.latent).norm() / (ours.latent - bench.bare()).norm()
    assert off < 1e-4
    assert not torch.equal(result.latent, bench.bare())


def test_names_of_every_kind_are_given_and_no_list_shows_a_file(bench):
    folder = bench.loras / "a b" / "\u98ce\u683c (2)"
    folder.mkdir(parents=True)
    (folder / "n\u00e9o 1.5.safetensors").write_bytes(save(simpletuner_broken_lora(seed=21)))
    name = os.path.join("a b", "\u98ce\u683c (2)", "n\u00e9o 1.5.safetensors")
    path, given, _, report = told(bench, name)
    assert len(load_file(path)) == 44 and "n\u00e9o 1.5" in given
    assert "read back and compared" in report
    names = bench.server.object_info()["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert name in names and not any("repaired" in one or ".git" in one for one in names)


def test_a_second_run_writes_nothing(bench):
    path = told(bench, BROKEN_LORA)[0]
    before = [(file, file.stat().st_ino, file.stat().st_mtime_ns) for file in kept(bench)]
    assert told(bench, BROKEN_LORA)[0] == path
    assert [(file, file.stat().st_ino, file.stat().st_mtime_ns) for file in kept(bench)] == before
    os.unlink(path)
    assert told(bench, BROKEN_LORA)[0] == path and os.path.exists(path)


def test_a_file_changed_in_place_is_written_anew(bench, lora_file):
    lora_file("changing.safetensors", save(simpletuner_broken_lora(seed=22)))
    first = told(bench, "changing.safetensors")[0]
    lora_file("changing.safetensors", save(simpletuner_broken_lora(seed=23)))
    assert told(bench, "changing.safetensors")[0] != first


def test_a_file_that_is_read_as_it_is_is_given_itself(bench):
    path, name, _, report = told(bench, DIFFUSERS_LORA)
    assert path == str(bench.loras / DIFFUSERS_LORA) and name == DIFFUSERS_LORA
    assert "as it is" in report


@pytest.mark.parametrize("content", [b"", b"no safetensors", save(diffusers_lora())[:-100]])
def test_a_broken_file_stops_the_run_with_its_name(bench, lora_file, content):
    lora_file("broken file.safetensors", content)
    with pytest.raises(Exception, match=r"broken file\.safetensors"):
        told(bench, "broken file.safetensors")


def test_another_models_file_is_refused_with_what_to_do(bench):
    with pytest.raises(Exception, match=r"reads LoRAs for Wan only.*Load and Fix LoRA"):
        told(bench, BROKEN_LORA, "WanVideoWrapper")
