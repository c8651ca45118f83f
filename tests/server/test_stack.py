"""Load and Fix LoRA (stack) on the real server: the loaders in a row, one report, and errors that
name the row.
"""

import copy
import json
import math

import comfy_server
import demo
import pytest
import torch
from safetensors.torch import load_file, save
from tiny_models import (
    BROKEN_LORA,
    DIFFUSERS_LORA,
    KOHYA_LORA,
    encoder_lora,
    simpletuner_broken_lora,
)

STACK = "LocksmithLoRAStack"


def row(name, strength=1.0, **more):
    return {"on": True, "name": name, "strength": strength, **more}


def of_bench(bench, loras, **inputs):
    """(the bench's prompt with a stack in the loader's place, the stack's id)."""
    return bench.with_stack(loras, **inputs), demo.loader_id(bench.prompt)


def run(bench, loras, **inputs):
    """(the latent, what the stack's report_json says, its report)."""
    prompt, stack = of_bench(bench, loras, **inputs)
    found = bench.run(prompt)
    told = found.entry["outputs"][stack]
    return found.latent, json.loads(told["report_json"][0]), told["text"][0]


def in_a_row(bench, rows, mode):
    """The latent of the same LoRAs, each with a Load and Fix LoRA of its own."""
    prompt, last = of_bench(bench, "[]")
    model, clip = prompt[last]["inputs"]["model"], prompt[last]["inputs"]["clip"]
    for number, entry in enumerate(rows):
        inputs = {
            "model": model,
            "clip": clip,
            "lora_name": entry["name"],
            "strength_model": entry["strength"],
        }
        inputs["strength_clip"] = entry.get("strength_clip", entry["strength"])
        inputs["mode"] = mode
        prompt[f"loader{number}"] = {"class_type": demo.OUR_LOADER, "inputs": inputs}
        model, clip = [f"loader{number}", 0], [f"loader{number}", 1]
    prompt[last]["inputs"] |= {"model": model, "clip": clip}
    return bench.run(prompt).latent


@pytest.mark.parametrize("mode", ["patch", "bypass"])
def test_a_stack_is_the_loaders_in_a_row(bench, mode):
    rows = [
        row(BROKEN_LORA, 0.8),
        row(KOHYA_LORA, -0.5, strength_clip=0.3),
        row(DIFFUSERS_LORA, 0.25),
    ]
    latent, told, text = run(bench, rows, mode=mode)
    assert not torch.equal(latent, bench.bare())
    assert torch.equal(latent, in_a_row(bench, rows, mode))
    assert [report["name"] for report in told["rows"]] == [entry["name"] for entry in rows]
    assert (
        told["placed"]
        == told["total"]
        == sum(report["modules"]["total"] for report in told["rows"])
        > 40
    )
    assert text.startswith(f"3 LoRAs: {told['total']} of {told['total']} layers load.")
    assert f"2. {KOHYA_LORA} at -0.5 (CLIP 0.3): " in text


def test_rows_that_are_off_or_have_no_strength_are_not_read(bench, lora_file):
    lora_file("no_lora.safetensors", b"no LoRA at all")
    rows = [
        row("no_lora.safetensors") | {"on": False},
        row("gone.safetensors") | {"on": False},
        row("no_lora.safetensors", 0.0),
    ]
    latent, told, text = run(bench, [*rows, row(DIFFUSERS_LORA)])
    assert torch.equal(latent, bench.stock(DIFFUSERS_LORA))
    assert text.startswith("1 LoRA: ")
    assert text.count("off, not read") == 2
    assert text.count("strength 0, not loaded") == 1
    assert [report["on"] for report in told["rows"]] == [False, False, True, True]


@pytest.mark.parametrize("loras", ["[]", "", " "])
def test_an_empty_stack_changes_nothing(bench, loras):
    latent, told, text = run(bench, loras)
    assert torch.equal(latent, bench.bare())
    assert (told["total"], text) == (0, "The stack is empty.")


def test_only_the_name_is_needed(bench):
    latent, told, _ = run(bench, [{"name": DIFFUSERS_LORA}])
    assert torch.equal(latent, bench.stock(DIFFUSERS_LORA))
    assert told["rows"][0]["strength_clip"] == 1.0


def test_a_list_in_another_nodes_text_works(bench):
    prompt, stack = of_bench(bench, "[]")
    prompt["text"] = {
        "class_type": "PrimitiveString",
        "inputs": {"value": json.dumps([row(DIFFUSERS_LORA)])},
    }
    prompt[stack]["inputs"]["loras"] = ["text", 0]
    assert torch.equal(bench.run(prompt).latent, bench.stock(DIFFUSERS_LORA))


def test_folders_may_be_separated_as_windows_does(bench):
    folder = bench.loras / "styles"
    folder.mkdir(exist_ok=True)
    path = folder / "plain.safetensors"
    path.write_bytes((bench.loras / DIFFUSERS_LORA).read_bytes())
    try:
        latent, _, _ = run(bench, [row("styles\\plain.safetensors")])
    finally:
        path.unlink()
    assert torch.equal(latent, bench.stock(DIFFUSERS_LORA))


ENCODER_LORA = "with_text_encoder.safetensors"


def without_model(bench, loras):
    """(a prompt in which the stack is connected to the text encoder alone, the stack)."""
    prompt, stack = of_bench(bench, loras)
    model = prompt[stack]["inputs"].pop("model")
    for spec in prompt.values():
        spec["inputs"] |= {
            name: model for name, value in spec["inputs"].items() if value == [stack, 0]
        }
    return prompt, stack


def test_a_stack_on_the_text_encoder_alone_does_what_stock_does_there(bench, lora_file):
    lora_file(ENCODER_LORA, save(encoder_lora()))
    rows = [row(ENCODER_LORA, 0.0), row(ENCODER_LORA, 0.75), row(ENCODER_LORA) | {"on": False}]
    prompt, stack = without_model(bench, rows)
    found = bench.run(prompt)
    assert torch.equal(
        found.latent, bench.stock(ENCODER_LORA, strength_model=0.0, strength_clip=0.75)
    )
    assert not torch.equal(found.latent, bench.bare())
    told = json.loads(found.entry["outputs"][stack]["report_json"][0])
    assert [report.get("modules", {}).get("placed") for report in told["rows"]] == [None, 2, None]


def test_a_stack_without_a_model_says_so_where_its_model_is_used(bench):
    prompt, stack = of_bench(bench, [row(DIFFUSERS_LORA)])
    del prompt[stack]["inputs"]["model"]
    with pytest.raises(comfy_server.PromptError, match="nothing is connected to the stack's input"):
        bench.server.run(prompt)


def test_a_stack_that_is_connected_to_nothing_says_what_to_connect(bench):
    prompt, stack = without_model(bench, [row(DIFFUSERS_LORA)])
    clip = prompt[stack]["inputs"].pop("clip")
    for spec in prompt.values():
        spec["inputs"] |= {
            key: clip for key, value in spec["inputs"].items() if value == [stack, 1]
        }
    prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": [stack, 2]}}
    with pytest.raises(comfy_server.PromptError, match="neither a model nor a text encoder"):
        bench.server.run(prompt)


def test_what_is_worth_knowing_is_told(bench, lora_file):
    stranger = "transformer.transformer_blocks.0.attn.to_nowhere.lora_A.weight"
    lora_file(
        "stranger.safetensors",
        save(load_file(bench.loras / DIFFUSERS_LORA) | {stranger: torch.zeros(4, 128)}),
    )
    rows = [
        row("stranger.safetensors", 0.5),
        row(DIFFUSERS_LORA),
        row("stranger.safetensors", 0.25),
    ]
    _, told, text = run(bench, rows)
    first = text.split("\n")[0]
    assert first.endswith("; rows 1, 3 load only in part.")
    assert (
        "stranger.safetensors is on 2 times (rows 1, 3): the strengths add up to 0.75."
        in told["notes"][0]
    )
    assert text.count("--- 1. stranger.safetensors at 0.5\n") == 1
    assert "to_nowhere" in text
    assert "--- 3." not in text
    assert text.count(f"--- 2. {DIFFUSERS_LORA}") == 0


def test_what_a_stack_shows_is_there_in_chinese_too(bench):
    rows = [row(DIFFUSERS_LORA, 0.5), row(KOHYA_LORA, 0), {**row(BROKEN_LORA), "on": False}]
    prompt, stack = of_bench(bench, rows)
    output = bench.run(prompt).entry["outputs"][stack]
    english, report = output["text"][0], json.loads(output["report_json"][0])
    texts = json.loads(output["translations"][0])["zh"]
    first, *lines = texts[english].split("\n")
    assert first == texts[report["verdict"]] != report["verdict"]
    assert "\u5f3a\u5ea6\u4e3a 0\uff0c\u672a\u52a0\u8f7d" in texts[english]
    assert len(lines) == len(english.split("\n")) - 1
    assert english.startswith("1 LoRA: 22 of 22 layers load.")


def test_unmatched_keys_stop_the_run_if_asked_and_the_row_is_named(bench, lora_file):
    stranger = "transformer.transformer_blocks.0.attn.to_nowhere.lora_A.weight"
    lora_file("stranger.safetensors", save({stranger: torch.zeros(4, 128)}))
    with pytest.raises(comfy_server.PromptError, match=r"Row 2: stranger.*to_nowhere"):
        run(bench, [row(DIFFUSERS_LORA), row("stranger.safetensors")], on_unmatched="error")


def test_a_file_that_cannot_be_read_is_named_with_its_row(bench, lora_file):
    lora_file("web_page.safetensors", b"<!DOCTYPE html><html></html>" * 20)
    with pytest.raises(comfy_server.PromptError, match=r"Row 2: web_page\.safetensors: .*\."):
        run(bench, [row(DIFFUSERS_LORA), row("web_page.safetensors")])


FAULTS = {
    "text": ("style.safetensors", "is not JSON"),
    "no list": ('{"name": "a"}', "is not a list"),
    "no row": (["a.safetensors"], r"Row 1: .*is not a row"),
    "missing file": (
        [row(DIFFUSERS_LORA), row("gone.safetensors")],
        r"Row 2: LoRA 'gone.safetensors' is not in the loras folders",
    ),
    "outside": ([row("../../secret.safetensors")], r"Row 1: .*not in the loras folders"),
    "no name": ([row("")], "Row 1: it names no file"),
    "strength": ([row(DIFFUSERS_LORA, "strong")], 'Row 1: strength is "strong"'),
    "truth as strength": ([row(DIFFUSERS_LORA, True)], "Row 1: strength is true"),
    "too strong": ([row(DIFFUSERS_LORA, 101)], "from -100 to 100"),
    "not a number": ([row(DIFFUSERS_LORA, math.nan)], "Row 1: strength is NaN"),
    "clip": ([row(DIFFUSERS_LORA, 1.0, strength_clip="x")], "Row 1: strength_clip is"),
    "on": ([row(DIFFUSERS_LORA) | {"on": "yes"}], 'Row 1: on is "yes"'),
    "typing error": ([row(DIFFUSERS_LORA, strenght=0.5)], 'Row 1: "strenght" means nothing here'),
}


@pytest.mark.parametrize(("loras", "complaint"), FAULTS.values(), ids=FAULTS)
def test_a_list_that_cannot_be_read_is_refused_before_the_run(bench, loras, complaint):
    prompt, stack = of_bench(bench, loras)
    with pytest.raises(comfy_server.PromptError, match=complaint) as caught:
        bench.server.run(prompt)
    assert [fault["type"] for fault in caught.value.node_errors[stack]["errors"]] == [
        "custom_validation_failed"
    ]


def test_another_file_on_disk_runs_the_stack_again_and_the_same_one_does_not(bench, lora_file):
    lora_file("changing.safetensors", save(simpletuner_broken_lora()))
    prompt, stack = of_bench(
        bench, [row("changing.safetensors"), row("gone.safetensors") | {"on": False}]
    )
    bench.server.run(prompt)
    assert stack not in comfy_server.executed_nodes(bench.server.run(prompt))
    lora_file("changing.safetensors", save(simpletuner_broken_lora(seed=12)))
    assert stack in comfy_server.executed_nodes(bench.server.run(prompt))


def test_loras_of_a_text_and_of_another_packs_stack(bench):
    """Rows, the list of another stack and a text's tags are one stack, which is passed on."""
    rows = [row(BROKEN_LORA, 0.8)]
    listed = [row(KOHYA_LORA, -0.5, strength_clip=0.3), {**row(DIFFUSERS_LORA), "on": False}]
    prompt, stack = of_bench(bench, rows)
    model, clip = prompt[stack]["inputs"]["model"], prompt[stack]["inputs"]["clip"]
    prompt["other"] = {
        "class_type": STACK,
        "inputs": {"model": model, "clip": clip, "loras": json.dumps(listed)},
    }
    prompt["text"] = {
        "class_type": "PrimitiveString",
        "inputs": {
            "value": f"a key, <lora:{DIFFUSERS_LORA.removesuffix('.safetensors')}:0.25>, lit"
        },
    }
    prompt[stack]["inputs"] |= {"lora_stack": ["other", 6], "text": ["text", 0]}
    for number, name in ((4, "words"), (5, "bare")):
        prompt[name] = {"class_type": "PreviewAny", "inputs": {"source": [stack, number]}}
    found = bench.run(prompt)
    told = json.loads(found.entry["outputs"][stack]["report_json"][0])
    assert [(one["name"], one["strength"], one["strength_clip"]) for one in told["rows"]] == [
        (BROKEN_LORA, 0.8, 0.8),
        (KOHYA_LORA, -0.5, 0.3),
        (DIFFUSERS_LORA, 0.25, 0.25),
    ]
    assert found.entry["outputs"]["bare"]["text"] == ["a key, lit"]
    assert found.entry["outputs"]["words"]["text"] == [", ".join(told["trigger_words"])]
    expected = [*rows, listed[0], row(DIFFUSERS_LORA, 0.25)]
    assert torch.equal(found.latent, run(bench, expected)[0])


def test_a_text_that_names_no_file_is_refused(bench):
    prompt, _ = of_bench(bench, [], text="<lora:no such file:1>")
    with pytest.raises(comfy_server.PromptError, match="no LoRA is called 'no such file'"):
        bench.run(prompt)


def test_trigger_words_of_metadata_and_of_a_file_beside(bench, lora_file):
    metadata = {"modelspec.trigger_phrase": "key in a lock"}
    lora_file("worded.safetensors", save(simpletuner_broken_lora(), metadata))
    lora_file("worded.civitai.info", json.dumps({"trainedWords": ["ink wash"]}).encode())
    prompt, stack = of_bench(bench, [row("worded.safetensors"), row(BROKEN_LORA)])
    prompt["words"] = {"class_type": "PreviewAny", "inputs": {"source": [stack, 4]}}
    entry = bench.run(prompt).entry
    assert entry["outputs"]["words"]["text"] == ["ink wash, key in a lock"]


@pytest.mark.parametrize("first", ["stock", "ours"])
def test_stocks_bypass_and_ours_act_beside_each_other(bench, first):
    """Whichever is on top, and again after a run with another strength. Stock's takes no slices of
    weights, and its second one in a chain takes the first one's place.
    """
    prompt, last = of_bench(bench, "[]")
    names = {"stock": KOHYA_LORA, "ours": BROKEN_LORA}
    order = [first, *(names.keys() - {first})]

    def chain(bypass, strength):
        made = copy.deepcopy(prompt)
        model, clip = made[last]["inputs"]["model"], made[last]["inputs"]["clip"]
        for number, whose in enumerate(order):
            kind = "LoraLoaderBypass" if bypass and whose == "stock" else demo.OUR_LOADER
            mode = {"mode": "bypass" if bypass else "patch"} if kind == demo.OUR_LOADER else {}
            strengths = {"strength_model": strength, "strength_clip": 0.0}
            made[f"chained{number}"] = {
                "class_type": kind,
                "inputs": {"model": model, "clip": clip, "lora_name": names[whose]}
                | strengths
                | mode,
            }
            model, clip = [f"chained{number}", 0], [f"chained{number}", 1]
        made[last]["inputs"] |= {"model": model, "clip": clip}
        return bench.run(made).latent

    for strength in (0.5, -0.3, 0.5):
        patched = chain(False, strength)
        change = (patched - bench.bare()).norm()
        assert float((chain(True, strength) - patched).norm() / change) < 1e-4
