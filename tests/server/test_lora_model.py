"""The output LORA_MODEL on the real server: taken at once, taken later, and in trouble."""

from __future__ import annotations

import copy

import comfy_server
import demo
import pytest
import torch
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, KOHYA_LORA

TAKER = "taker"


def taken(prompt, loader, slot, strength=1.0):
    """The prompt in which the sampler's model comes from stock's Load LoRA Model, which takes the
    loader's output.
    """
    prompt = copy.deepcopy(prompt)
    for spec in prompt.values():
        for name, value in spec["inputs"].items():
            if value == [loader, 0]:
                spec["inputs"][name] = [TAKER, 0]
    inputs = {
        "model": prompt[loader]["inputs"]["model"],
        "lora": [loader, slot],
        "strength_model": strength,
    }
    return prompt | {TAKER: {"class_type": "LoraModelLoader", "inputs": inputs | {"bypass": False}}}


def of_loader(bench, name, strength):
    prompt = copy.deepcopy(bench.prompt)
    loader = demo.loader_id(prompt)
    prompt[loader]["inputs"] |= {"lora_name": name, "strength_model": strength}
    prompt[loader]["inputs"]["mode"] = "patch"
    return prompt, loader


def test_a_node_that_is_connected_later_gets_it_and_the_loader_is_not_run_again(bench):
    prompt, loader = of_loader(bench, BROKEN_LORA, 0.75)
    first = bench.run(prompt)
    second = bench.run(taken(prompt, loader, 5, 0.75))
    executed = comfy_server.executed_nodes(second.entry)
    assert TAKER in executed and loader not in executed
    assert torch.allclose(second.latent, first.latent, atol=1e-2)
    assert not torch.allclose(second.latent, bench.bare(), atol=1e-2)


def test_a_stack_gives_its_rows_as_one(bench):
    rows = [{"name": BROKEN_LORA, "strength": 0.75}, {"name": KOHYA_LORA, "strength": -0.5}]
    prompt, stack = bench.with_stack(rows, mode="patch"), demo.loader_id(bench.prompt)
    found = bench.run(taken(prompt, stack, 7))
    assert torch.allclose(found.latent, bench.run(prompt).latent, atol=1e-2)
    assert not torch.allclose(found.latent, bench.bare(), atol=1e-2)


def test_a_stack_that_cannot_give_it_says_so_itself_and_runs_where_nothing_takes_it(
    bench, lora_file
):
    from safetensors.torch import save

    lora_file("strange.safetensors", save({"some.key.lora_up.weight": torch.zeros(2, 2)}))
    rows = [{"name": DIFFUSERS_LORA}, {"name": "strange.safetensors"}]
    prompt, stack = bench.with_stack(rows), demo.loader_id(bench.prompt)
    with pytest.raises(comfy_server.PromptError, match="no LORA_MODEL to give") as raised:
        bench.server.run(taken(prompt, stack, 7))
    assert "LoadAndFixStack" in str(raised.value) or "LocksmithLoRAStack" in str(raised.value)
    assert torch.equal(bench.run(prompt).latent, bench.stock(DIFFUSERS_LORA))
