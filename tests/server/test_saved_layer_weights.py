"""On the real server: what Save LoRA writes of a loader, a stack and a merge with layer weights is,
by the stock loader at strength 1, what was sampled with them.
"""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import BROKEN_LORA

WEIGHTS = "double_blocks.0=0.5, double_blocks.1=-0.25, single_blocks=2"
SAVED, STRENGTH, CLOSE = "weighted.safetensors", 0.4, 1e-5


def saving(source: list) -> dict:
    """Nodes that save this LORA_MODEL."""
    names = {"lora_name": "the connected lora", "filename": SAVED, "dialect": "comfyui"}
    inputs = {**names, "lora": source, "dtype": "as it is", "overwrite": True}
    return {"save": {"class_type": "LocksmithSaveLoRA", "inputs": inputs}}


def slot(object_info: dict, node: str) -> int:
    return object_info[node]["output"].index("LORA_MODEL")


def by_loader(bench, object_info: dict) -> tuple[torch.Tensor, dict]:
    """(the latent at strength 1, the prompt that saves)."""
    result = bench.ours(BROKEN_LORA, layer_weights=WEIGHTS, strength_model=1.0)
    prompt = result.entry["prompt"][2]
    place = next(name for name, spec in prompt.items() if "layer_weights" in spec["inputs"])
    return result.latent, prompt | saving([place, slot(object_info, "LocksmithLoadAndFixLoRA")])


def by_stack(bench, object_info: dict) -> tuple[torch.Tensor, dict]:
    rows = [{"on": True, "name": BROKEN_LORA, "strength": STRENGTH, "blocks": WEIGHTS}]
    prompt = bench.with_stack(rows)
    place = next(name for name, spec in prompt.items() if "loras" in spec["inputs"])
    saved = prompt | saving([place, slot(object_info, "LocksmithLoRAStack")])
    return bench.run(prompt).latent, saved


def by_merge(bench, object_info: dict) -> tuple[torch.Tensor, dict]:
    latent, prompt = by_stack(bench, object_info)
    merge = next(spec for spec in prompt.values() if "loras" in spec["inputs"])["inputs"]
    inputs = {"model": merge["model"], "loras": merge["loras"], "method": "sum"}
    nodes = {"merge": {"class_type": "LocksmithMergeLoRAs", "inputs": inputs}}
    return latent, prompt | nodes | saving(["merge", slot(object_info, "LocksmithMergeLoRAs")])


@pytest.mark.parametrize("way", [by_loader, by_stack, by_merge])
def test_stock_loads_from_the_file_what_was_sampled(bench, object_info, way):
    latent, prompt = way(bench, object_info)
    run = bench.run(prompt)
    assert json.dumps(run.entry["status"]).count("execution_success")
    found, bare = bench.stock(SAVED, strength_model=1.0, strength_clip=1.0), bench.bare()
    change = (latent - bare).norm()
    assert change > 1e-3 * bare.norm()
    assert (found - latent).norm() <= CLOSE * change
