"""Files that are alike share a plan, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from lora_locksmith.files.header import Header, TensorInfo
from lora_locksmith.key_maps.user_maps import UserMaps
from lora_locksmith.report.inspection import inspect_file, inspect_header
from lora_locksmith.report.markdown import markdown
from safetensors.torch import save_file

NAMES = [
    f"transformer.single_transformer_blocks.{block}.attn.to_{part}"
    for block in range(38)
    for part in "qkv"
]


def header(rank: int = 8, **metadata: str) -> Header:
    shapes = {}
    for name in NAMES:
        shapes |= {f"{name}.lora_A.weight": (rank, 3072), f"{name}.lora_B.weight": (3072, rank)}
    return Header({name: TensorInfo("BF16", shape) for name, shape in shapes.items()}, metadata)


def test_alike_files_keep_their_own_names_and_metadata():
    first = inspect_header("first.safetensors", header(ss_output_name="one"), None)
    second = inspect_header("second.safetensors", header(ss_output_name="two"), None)
    assert second.plan.adapters is first.plan.adapters
    assert (first.path, second.path) == ("first.safetensors", "second.safetensors")
    assert [found.plan.metadata["ss_output_name"] for found in (first, second)] == ["one", "two"]
    assert [found.report.path for found in (first, second)] == [
        "first.safetensors",
        "second.safetensors",
    ]


def test_metadata_that_tell_the_model_or_the_strength_make_files_differ():
    plain = inspect_header("a", header(), None)
    chroma = inspect_header("b", header(ss_base_model_version="chroma"), None)
    assert len(plain.family.ties) > 1
    assert chroma.family.name == "chroma"
    scaled = inspect_header("c", header(), {"peft_type": "LORA", "r": 8, "lora_alpha": 4})
    assert scaled.plan.adapters[0].strength.scale == 0.5
    assert plain.plan.adapters[0].strength.scale is None


def test_another_rank_is_another_file():
    assert inspect_header("a", header(8), None).ranks == {8: len(NAMES)}
    assert inspect_header("b", header(16), None).ranks == {16: len(NAMES)}


def test_nothing_is_remembered_with_maps_of_the_users_own():
    own = UserMaps({}, {}, ("Your own map was left out: a fault",))
    found = inspect_header("a", header(), None, own=own)
    assert found.report.notes() == ["Your own map was left out: a fault"]
    assert found.plan.adapters is not inspect_header("a", header(), None).plan.adapters


OTHER_FILES = {
    "checkpoints": (
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.conv_in.weight",
    ),
    "diffusion_models": ("model.diffusion_model.out.2.weight", "model.diffusion_model.out.2.bias"),
    "controlnet": ("input_blocks.0.0.up", "input_blocks.0.0.down", "lora_controlnet"),
    "embeddings": ("emb_params",),
    "text_encoders": ("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"),
    "clip_vision": ("vision_model.post_layernorm.weight",),
    "another folder": ("backbone.stage1.weight", "backbone.stage1.bias"),
    "none of its tensors": ("query", "value"),
}


def of(*names: str):
    return inspect_header(
        "a", Header({name: TensorInfo("BF16", (8, 8)) for name in names}, {}), None
    )


@pytest.mark.parametrize("place", OTHER_FILES)
def test_a_file_that_is_no_lora_is_called_what_it_is_and_where_it_belongs(place):
    found = of(*OTHER_FILES[place])
    assert place in found.verdict and place in found.report.verdict and found.report.mismatch == ""
    assert found.verdict == found.verdict.rstrip(".") + "." and "cannot be told" not in str(
        found.health
    )


def test_a_lora_that_also_holds_a_models_own_tensors_stays_one():
    lora = "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"
    assert not of(lora, lora.replace("_A", "_B"), *OTHER_FILES["checkpoints"]).other
    assert not of("some.layer.set_weight").other


def test_alphas_that_are_no_numbers_are_counted_and_told(tmp_path):
    file = tmp_path / "broken.safetensors"
    shapes = {key: info.shape for key, info in header().tensors.items()}
    alphas = {f"{name}.alpha": torch.tensor(math.nan) for name in NAMES}
    save_file(
        {key: torch.zeros(1).expand(shape).contiguous() for key, shape in [*shapes.items()][:6]}
        | dict([*alphas.items()][:3]),
        file,
    )
    found = inspect_file(file)
    assert found.as_dict()["alphas"] == {"nan": 3}
    assert "alpha nan" in found.verdict and "is not a number in 3 adapters" in markdown(found)


def test_a_block_far_beyond_the_last_is_unknown_and_costs_nothing():
    block = "transformer.transformer_blocks.{}.norm1_context.linear"
    shapes = {}
    for number in (*range(24), 10**12):
        shapes |= {f"{block.format(number)}.lora_A.weight": (1, 1536)}
        shapes |= {f"{block.format(number)}.lora_B.weight": ((2 if number == 23 else 6) * 1536, 1)}
    found = inspect_header(
        "a", Header({name: TensorInfo("BF16", shape) for name, shape in shapes.items()}, {}), None
    )
    assert found.report.modules == {"placed": 24, "total": 25}
    assert max(blocks.count for blocks in found.report.trained[0].blocks) == 24
