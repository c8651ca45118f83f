"""LoRAs that MLX saved, whose factors lie the other way round, against what MLX computes with them:
y + scale * (x @ lora_a @ lora_b).
"""

from __future__ import annotations

import every_name
import pytest
import torch
from lora_locksmith.key_maps.table import families
from lora_locksmith.lora.from_plan import adapter_of
from lora_locksmith.lora.math.apply import patched_weight
from lora_locksmith.lora.rewrite.convert import convert
from lora_locksmith.planning.plan import PLACED, SHAPE_CONFLICT, make_plan

RANK, WIDTH = 4, 3072
QKV = "double_blocks.0.img_attn.qkv"
OF_FLUX = {"lora_rank": "4", "lora_blocks": "-1"}  # mlx-examples' header
OF_MLX_LM = {"lora_parameters": {"rank": RANK, "scale": 20.0, "dropout": 0.0}}


def factors(outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    return (
        torch.randn(WIDTH, RANK, generator=generator) / WIDTH**0.5,
        torch.randn(RANK, outputs, generator=generator),
    )


def planned(tensors, metadata=None, config=None):
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return make_plan(
        shapes, metadata or {}, every_name.drawn(families()["flux1"], ""), config_beside=config
    )


@pytest.mark.parametrize(
    ("metadata", "config", "scale"),
    [(OF_FLUX, None, 1.0), ({}, OF_MLX_LM, 20.0), ({}, None, 1.0)],
    ids=["mlx-examples", "mlx-lm", "untold"],
)
def test_it_does_what_mlx_does(metadata, config, scale):
    a, b = factors(3 * WIDTH)
    plan = planned({f"{QKV}.lora_a": a, f"{QKV}.lora_b": b}, metadata, config)
    (adapter,) = plan.adapters
    told = [caution for caution in plan.cautions if "MLX" in caution]
    assert bool(told) == (not metadata and config is None)
    tensors = {"transposed_a": a, "transposed_b": b}
    spec, roles = adapter_of(adapter, tensors, None)
    weight, x = torch.randn(3 * WIDTH, WIDTH) / WIDTH**0.5, torch.randn(2, WIDTH)
    changed = patched_weight(spec, roles, weight, 1.0)
    torch.testing.assert_close(
        x @ changed.T, x @ weight.T + scale * (x @ a @ b), atol=2e-3, rtol=1e-4
    )


def test_a_sequence_of_mlx_is_found_and_factors_of_the_usual_kind_are_not_taken_for_it():
    a, b = factors(4 * WIDTH)
    name = "double_blocks.0.img_mlp.layers.0"
    right = planned({f"{name}.lora_a": a, f"{name}.lora_b": b}, OF_FLUX)
    assert {outcome.category for outcome in right.outcomes.values()} == {PLACED}
    wrong = planned({f"{name}.lora_a": a.T, f"{name}.lora_b": b.T}, OF_FLUX)
    assert {outcome.category for outcome in wrong.outcomes.values()} == {SHAPE_CONFLICT}


def test_it_is_written_as_a_pair_as_others_have_it():
    a, b = factors(3 * WIDTH)
    tensors = {f"{QKV}.lora_a": a, f"{QKV}.lora_b": b}
    plan = planned(tensors, config=OF_MLX_LM)
    written = dict(convert(plan, tensors, "comfyui").items())
    module = f"diffusion_model.{QKV}"
    product = written[f"{module}.lora_up.weight"] @ written[f"{module}.lora_down.weight"]
    alpha = written.get(f"{module}.alpha", torch.tensor(float(RANK)))
    torch.testing.assert_close(product * (alpha / RANK), 20 * (a @ b).T, atol=1e-3, rtol=1e-3)
