"""Merge LoRAs in the real server: two AI-Toolkit files and one of kohya in one go are the three
loaders in a row.
"""

from __future__ import annotations

import copy
import dataclasses
import json

import demo
import pytest
import torch
from safetensors.torch import save, save_file

H = 128
PREFIX = "diffusion_model."
BASE = "merge_base.safetensors"
FILES = {
    "merge_one.safetensors": 0.8,
    "merge_two.safetensors": -0.5,
    "merge_three.safetensors": 1.3,
}


def factors(module, out, inner, rank, seed, names=("lora_A.weight", "lora_B.weight")):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{module}.{names[0]}": torch.randn(rank, inner, generator=generator) * 0.2,
        f"{module}.{names[1]}": torch.randn(out, rank, generator=generator) * 0.2,
    }


def ai_toolkit(seed, rank):
    tensors = {}
    for number, name in enumerate(("to_q", "to_k", "to_v", "to_out.0")):
        tensors |= factors(
            f"transformer.transformer_blocks.0.attn.{name}", H, H, rank, seed + number
        )
    return tensors | factors(
        "transformer.single_transformer_blocks.1.proj_mlp", 4 * H, H, rank, seed + 9
    )


def kohya(seed):
    names = ("lora_down.weight", "lora_up.weight")
    tensors = factors("lora_unet_double_blocks_0_img_attn_qkv", 3 * H, H, 5, seed, names)
    return tensors | factors("lora_unet_single_blocks_1_linear1", 7 * H, H, 2, seed + 1, names)


def latent(bench, model, nodes):
    """The latent of the bench's prompt with `nodes` added and its sampler on the model [node,
    output].
    """
    loader = demo.loader_id(bench.prompt)
    clip = bench.prompt[loader]["inputs"]["clip"]
    prompt = {node: copy.deepcopy(spec) for node, spec in bench.prompt.items() if node != loader}
    for spec in prompt.values():
        for name, value in spec["inputs"].items():
            if value in ([loader, 0], [loader, 1]):
                spec["inputs"][name] = model if value[1] == 0 else clip
    return bench.run(prompt | nodes)


@pytest.fixture(scope="module")
def exact(bench, both):
    """The bench on weights in fp32, in which orders of adding do not show."""
    weights = {
        name.removeprefix(PREFIX): weight
        for name, weight in both.native.model.state_dict().items()
        if name.startswith(PREFIX)
    }
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()},
        bench.server.base / "models" / "diffusion_models" / BASE,
    )
    prompt = copy.deepcopy(bench.prompt)
    next(spec for spec in prompt.values() if spec["class_type"] == "UNETLoader")["inputs"][
        "unet_name"
    ] = BASE
    return dataclasses.replace(bench, prompt=prompt)


def rows(strengths):
    return json.dumps(
        [{"name": name, "strength": strength} for name, strength in strengths.items()]
    )


def test_a_merge_is_the_loaders_in_a_row(exact, lora_file):
    for (name, _), tensors in zip(
        FILES.items(), (ai_toolkit(1, 4), ai_toolkit(40, 7), kohya(80)), strict=True
    ):
        lora_file(name, save(tensors))
    base, nodes = exact.prompt[demo.loader_id(exact.prompt)]["inputs"]["model"], {}
    model = base
    for number, (name, strength) in enumerate(FILES.items(), 1):
        inputs = {
            "model": model,
            "lora_name": name,
            "strength_model": strength,
            "strength_clip": 0.0,
        }
        nodes[f"stack{number}"] = {"class_type": demo.OUR_LOADER, "inputs": inputs}
        model = [f"stack{number}", 0]
    stacked = latent(exact, model, nodes).latent
    settings = {
        "method": "sum",
        "rank": 0,
        "energy": 1.0,
        "dtype": "as in the files",
        "seed": 0,
        "model": base,
    }
    merge = {
        "merge": {"class_type": "LocksmithMergeLoRAs", "inputs": {"loras": rows(FILES), **settings}}
    }
    apply = {
        "class_type": "LoraModelLoader",
        "inputs": {"model": base, "lora": ["merge", 0], "strength_model": 1.0, "bypass": False},
    }
    merged = latent(exact, ["stock", 0], {**merge, "stock": apply}).latent
    applied = latent(exact, ["ours", 0], {**merge, "ours": ours_on(base, "merge")}).latent
    plain = exact.bare()
    change = (stacked - plain).norm()
    assert change > 0.01 * plain.norm()
    for found in (merged, applied):
        assert (found - stacked).norm() < 1e-4 * change


def ours_on(base, merge):
    inputs = {"model": base, "lora": [merge, 0], "strength_model": 1.0, "strength_clip": 1.0}
    return {"class_type": "LocksmithApplyLoRA", "inputs": inputs}


def test_a_method_with_its_options_and_a_merge_of_merges(bench, lora_file):
    lora_file("merge_one.safetensors", save(ai_toolkit(1, 4)))
    base = bench.prompt[demo.loader_id(bench.prompt)]["inputs"]["model"]
    inputs = {
        "loras": rows({"merge_one.safetensors": 0.5}),
        "method": "ties",
        "method.density": 0.4,
        "method.scale": 1.0,
    }
    inputs |= {"rank": 3, "energy": 1.0, "dtype": "fp32", "seed": 1, "model": base}
    again = {
        **inputs,
        "loras": rows({"merge_one.safetensors": 1.0, "lora_1": 2.0}),
        "connected.lora_0": ["merge", 0],
    }
    again |= {"connected.lora_1": ["merge", 0]}
    nodes = {
        "merge": {"class_type": "LocksmithMergeLoRAs", "inputs": inputs},
        "again": {"class_type": "LocksmithMergeLoRAs", "inputs": again},
        "ours": ours_on(base, "again"),
    }
    entry = latent(bench, ["ours", 0], nodes).entry
    assert "3 LoRAs merged by TIES" in entry["outputs"]["again"]["text"][0]
    told = json.loads(entry["outputs"]["again"]["report_json"][0])
    assert [(source["name"], source["strength_model"]) for source in told["sources"]] == [
        ("merge_one.safetensors", 1.0), ("lora_1", 2.0), ("lora_0", 1.0),
    ]  # fmt: skip
