"""Inspect LoRA Keys on the real server: it runs by itself, shows its report, and gives it to other
nodes.
"""

from __future__ import annotations

import json

import comfy_server
import pytest
from reports.small_files import flux_lora, write_file
from tiny_models import BROKEN_LORA, FLUX, KOHYA_LORA

NODE = "LocksmithInspectLoRAKeys"
PREVIEWS = {
    "text": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    "json": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
}
MODEL = {
    "model": {"class_type": "UNETLoader", "inputs": {"unet_name": FLUX, "weight_dtype": "default"}}
}


def node(lora_name: str, **inputs) -> dict:
    return {"1": {"class_type": NODE, "inputs": {"lora_name": lora_name, **inputs}}}


def test_it_is_declared_as_an_output_node_with_one_required_input(object_info):
    info = object_info[NODE]
    assert info["output_node"] is True and info["output"] == ["STRING", "STRING"]
    assert info["input_order"]["required"] == ["lora_name"]
    assert set(info["input_order"]["optional"]) == {"model", "clip", "detail", "weights"}


def test_it_runs_alone_and_shows_its_report(bench, lora_file, tmp_path):
    shapes = flux_lora(rank=1, start="transformer.base_model.model.")
    lora_file("full_size.safetensors", write_file(tmp_path / "x.safetensors", shapes).read_bytes())
    outputs = bench.server.run(node("full_size.safetensors"))["outputs"]["1"]
    (text,), (told,) = outputs["text"], outputs["report_json"]
    assert (
        text.startswith("**")
        and "SimpleTuner (PEFT wrapper bug)" in text
        and "## What was never trained" in text
    )
    told = json.loads(told)
    assert (
        told["loads"]["exact"] is False
        and told["tensors"] == 114
        and told["loads"]["stock"]["keys"] == 0
    )


def test_with_a_model_the_answer_is_exact_and_goes_to_other_nodes(bench):
    prompt = {**node(BROKEN_LORA, model=["model", 0], detail="every key"), **PREVIEWS, **MODEL}
    outputs = bench.server.run(prompt)["outputs"]
    assert outputs["text"]["text"] == outputs["1"]["text"]
    told = json.loads(outputs["json"]["text"][0])
    assert told == json.loads(outputs["1"]["report_json"][0])
    assert told["loads"]["exact"] is True and told["loads"]["keys"] == {"placed": 44, "total": 44}
    assert outputs["1"]["text"][0].count("base_model.model.") >= 44


def test_weights(bench):
    told = json.loads(
        bench.server.run(node(KOHYA_LORA, weights="on"))["outputs"]["1"]["report_json"][0]
    )
    assert (
        len(told["weights"]["modules"]) == told["loads"]["modules"]["placed"]
        and len(told["hashes"]) > 1
    )


def test_it_runs_again_only_when_the_file_changed(bench, lora_file):
    name = "changing.safetensors"
    lora_file(name, (bench.loras / KOHYA_LORA).read_bytes())
    assert "1" in comfy_server.executed_nodes(bench.server.run(node(name)))
    assert "1" not in comfy_server.executed_nodes(bench.server.run(node(name)))
    lora_file(name, (bench.loras / BROKEN_LORA).read_bytes())
    changed = bench.server.run(node(name))
    assert (
        "1" in comfy_server.executed_nodes(changed)
        and "SimpleTuner" in changed["outputs"]["1"]["text"][0]
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.safetensors", b""),
        ("page.safetensors", b"<!DOCTYPE html><html></html>" * 20),
        ("no.pt", b"no pickle" * 9),
    ],
)
def test_a_bad_file_gives_one_clear_error(bench, lora_file, name, content):
    lora_file(name, content)
    with pytest.raises(comfy_server.PromptError) as caught:
        bench.server.run(node(name))
    message = str(caught.value)
    assert name in message and "Traceback" not in message and len(message) > len(name) + 40


def test_a_file_that_is_not_there_is_refused_before_anything_runs(bench):
    with pytest.raises(comfy_server.PromptError, match=r"not_there\.safetensors") as caught:
        bench.server.run(node("not_there.safetensors"))
    assert caught.value.node_errors
