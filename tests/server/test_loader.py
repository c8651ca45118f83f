"""Load and Fix LoRA on the real server: the stock loader's own result where stock reads the file,
clear errors where nobody can.
"""

import copy
import json

import comfy_server
import demo
import pytest
import torch
from safetensors.torch import load_file, save
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, KOHYA_LORA, simpletuner_broken_lora


@pytest.mark.parametrize("lora_name", [DIFFUSERS_LORA, KOHYA_LORA])
@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
def test_file_that_stock_reads_gives_the_stock_latent(bench, lora_name, strength):
    stock = bench.stock(lora_name, strength_model=strength)
    result = bench.ours(lora_name, strength_model=strength)
    assert torch.equal(result.latent, stock)
    assert not torch.equal(stock, bench.bare())
    assert (
        result.report["keys"]["placed"]
        == result.report["stock"]["placed"]
        == len(load_file(bench.loras / lora_name))
    )


def test_broken_keys_give_the_latent_of_the_same_adapter_with_sound_keys(bench):
    """The two files hold the same seeded tensors under different names, so the stock loader's
    reading of the sound one is the truth.
    """
    assert torch.equal(bench.ours(BROKEN_LORA).latent, bench.stock(DIFFUSERS_LORA))


def test_zero_strength_is_no_lora(bench):
    assert torch.equal(
        bench.ours(BROKEN_LORA, strength_model=0.0, strength_clip=0.0).latent, bench.bare()
    )


def test_loader_works_without_a_text_encoder(bench):
    prompt = copy.deepcopy(bench.prompt)
    loader = prompt[demo.loader_id(prompt)]["inputs"]
    encoder = next(spec for spec in prompt.values() if spec["class_type"] == "CLIPTextEncode")
    encoder["inputs"]["clip"] = loader.pop("clip")
    del loader["on_unmatched"]
    entry = bench.server.run(demo.with_report(prompt))
    assert demo.report_of(entry)["keys"] == {"placed": 44, "total": 44}


def test_workflow_saved_for_the_stock_loader_runs_with_only_the_node_type_changed(bench):
    prompt = demo.with_stock_loader(bench.prompt)
    prompt[demo.loader_id(prompt)]["class_type"] = demo.OUR_LOADER
    assert bench.server.run(prompt)["status"]["status_str"] == "success"


def test_readable_report_is_a_node_message_and_an_output(bench):
    entry = bench.ours(BROKEN_LORA).entry
    text = demo.report_text_of(entry)
    assert "44" in text
    assert entry["outputs"][demo.loader_id(bench.prompt)]["text"] == [text]


def _broken_files(bench) -> dict[str, bytes]:
    sound = (bench.loras / DIFFUSERS_LORA).read_bytes()
    header = json.dumps(
        {"x.lora_A.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 10**9]}}
    ).encode()
    return {
        "empty.safetensors": b"",
        "garbage.safetensors": bytes(range(256)) * 40,
        "web_page.safetensors": (
            b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>" * 20
        ),
        "truncated.safetensors": sound[: len(sound) // 2],
        "cut_in_the_header.safetensors": sound[:100],
        "lying_header.safetensors": len(header).to_bytes(8, "little") + header + b"\0" * 64,
        "garbage.pt": b"not a pickle at all" * 30,
    }


@pytest.mark.parametrize(
    "name",
    ["empty.safetensors", "garbage.safetensors", "web_page.safetensors", "truncated.safetensors",
     "cut_in_the_header.safetensors", "lying_header.safetensors", "garbage.pt"],
)  # fmt: skip
def test_broken_file_gives_an_error_that_names_it(bench, lora_file, name):
    lora_file(name, _broken_files(bench)[name])
    with pytest.raises(comfy_server.PromptError) as caught:
        bench.ours(name)
    message = str(caught.value)
    assert name in message
    assert "Traceback" not in message
    assert len(message) > len(name) + 40, "the message should say what is wrong and what to do"


def test_missing_file_gives_an_error_that_names_it(bench):
    with pytest.raises(comfy_server.PromptError, match=r"no_such_file\.safetensors"):
        bench.ours("no_such_file.safetensors")


def test_unmatched_keys_are_reported_or_refused_as_asked(bench, lora_file):
    stranger = "transformer.transformer_blocks.0.attn.to_nowhere.lora_A.weight"
    tensors = load_file(bench.loras / DIFFUSERS_LORA) | {stranger: torch.zeros(4, 128)}
    lora_file("stranger.safetensors", save(tensors))
    report = bench.ours("stranger.safetensors").report
    assert [item["key"] for item in report["unplaced"]] == [stranger]
    assert report["keys"] == {"placed": 44, "total": 45}
    with pytest.raises(comfy_server.PromptError, match=r"to_nowhere"):
        bench.ours("stranger.safetensors", on_unmatched="error")


def test_changed_file_runs_the_loader_again_and_an_unchanged_one_does_not(bench, lora_file):
    lora_file("changing.safetensors", save(simpletuner_broken_lora()))
    loader = demo.loader_id(bench.prompt)
    first = bench.ours("changing.safetensors")
    again = bench.server.run(first.entry["prompt"][2])
    assert loader not in comfy_server.executed_nodes(again)
    lora_file("changing.safetensors", save(simpletuner_broken_lora(seed=12)))
    changed = bench.ours("changing.safetensors")
    assert loader in comfy_server.executed_nodes(changed.entry)
    assert not torch.equal(changed.latent, first.latent)


NAMES = [
    "styles/line work/v2.safetensors",
    "\u753b\u98ce/\u6c34\u5f69.safetensors",
    "drawn\\by hand.safetensors",
]


@pytest.mark.parametrize("name", NAMES, ids=["nested", "unicode", "windows"])
def test_report_names_the_file_as_the_host_lists_it(bench, lora_file, name):
    (bench.loras / name).parent.mkdir(parents=True, exist_ok=True)
    lora_file(name, (bench.loras / BROKEN_LORA).read_bytes())
    (listed,) = [
        each for each in names_listed(bench) if each.replace("\\", "/") == name.replace("\\", "/")
    ]
    for spelling in {listed, listed.replace("/", "\\")}:
        result = bench.ours(spelling, strength_model=0.5)
        assert result.report["file"] == listed
        assert (
            f"File      {listed}"
            in result.entry["outputs"][demo.loader_id(bench.prompt)]["text"][0]
        )


def names_listed(bench) -> list[str]:
    kind, *rest = bench.server.get(f"/object_info/{demo.OUR_LOADER}")[demo.OUR_LOADER]["input"][
        "required"
    ]["lora_name"]
    return kind if isinstance(kind, list) else rest[0]["options"]


def test_a_base_name_alone_stands_for_no_file_in_a_folder(bench, lora_file):
    (bench.loras / "inner").mkdir(exist_ok=True)
    lora_file("inner/only here.safetensors", (bench.loras / BROKEN_LORA).read_bytes())
    with pytest.raises(comfy_server.PromptError, match="not in the loras folders"):
        bench.ours("only here.safetensors")
