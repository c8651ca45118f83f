"""Prompts with a missing loader of another pack run on the real server, and odd ones are refused in
plain words.
"""

import comfy_server
import demo
import pytest
from tiny_models import BROKEN_LORA, FLUX

OLD = "MusubiTunerLoRALoaderModelOnly"
INSPECTED = "3"


def prompt_with(inputs: dict, **parts) -> dict:
    """A prompt that inspects the model that loader gives."""
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": FLUX, "weight_dtype": "default"}},
        "2": {"class_type": OLD, "inputs": inputs, **parts},
        INSPECTED: {
            "class_type": "LocksmithInspectLoRAKeys",
            "inputs": {"model": ["2", 0], "lora_name": BROKEN_LORA, "detail": "summary"},
        },
    }


def test_server_lists_the_replacement(server):
    (entry,) = server.get("/node_replacements")[OLD]
    assert entry["new_node_id"] == demo.OUR_LOADER
    assert [each["old_id"] for each in entry["input_mapping"] if "old_id" in each] == [
        "model",
        "lora_name",
        "strength_model",
    ]


@pytest.mark.parametrize(
    "parts", [{"_meta": {"title": "mine"}}, {}], ids=["with a title", "without"]
)
def test_prompt_of_a_missing_loader_runs(server, parts):
    strength = 0.61 if parts else 0.62  # the server runs again only what is new
    entry = server.run(
        prompt_with(
            {"model": ["1", 0], "lora_name": BROKEN_LORA, "strength_model": strength}, **parts
        )
    )
    assert "22 of 22" in entry["outputs"]["2"]["text"][0]


@pytest.mark.parametrize("lacking", ["lora_name", "strength_model", "model"])
def test_prompt_without_an_input_is_refused_in_plain_words(server, lacking):
    inputs = {"model": ["1", 0], "lora_name": BROKEN_LORA, "strength_model": 1.0}
    del inputs[lacking]
    with pytest.raises(comfy_server.PromptError) as refusal:
        server.run(prompt_with(inputs))
    (error,) = refusal.value.node_errors["2"]["errors"]
    assert lacking in error["details"]
