"""One training, stored fused and again split: compared by its numbers, magnitudes included."""

from __future__ import annotations

import pytest
import torch
from lora_locksmith.lora.copies import same_change
from lora_locksmith.lora.from_plan import spec_of
from lora_locksmith.messages import message
from lora_locksmith.planning.plan import DIFFERENT_TWINS, make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network

H, RANK = 16, 4
FUSED, SPLIT = "double_blocks.0.img_attn.qkv", ("to_q", "to_k", "to_v")
WEIGHTS = {
    "img_in": (H, 64),
    "double_blocks.0.img_attn.qkv": (3 * H, H),
    "double_blocks.0.img_attn.proj": (H, H),
    "double_blocks.0.txt_attn.qkv": (3 * H, H),
    "single_blocks.0.linear1": (7 * H, H),
    "single_blocks.0.linear2": (H, 5 * H),
    "final_layer.linear": (64, H),
}


@pytest.fixture
def target_model():
    return TargetModel(
        [
            denoiser_network(
                {f"diffusion_model.{name}.weight": shape for name, shape in WEIGHTS.items()}
            )
        ]
    )


def twins(role, magnitudes, of_parts=None):
    """A DoRA of the fused module, and its split copies with the same factors; magnitudes: [3 * H],
    or one for each input.
    """
    up, down = torch.randn(3 * H, RANK), torch.randn(RANK, H)
    tensors = {
        f"{FUSED}.lora_A.weight": down,
        f"{FUSED}.lora_B.weight": up,
        f"{FUSED}.{role}": magnitudes,
    }
    of_parts = magnitudes.chunk(3) if of_parts is None else of_parts
    for name, rows, part in zip(SPLIT, up.chunk(3), of_parts, strict=True):
        module = f"transformer_blocks.0.attn.{name}"
        tensors |= {
            f"{module}.lora_A.weight": down.clone(),
            f"{module}.lora_B.weight": rows.clone(),
            f"{module}.{role}": part.clone(),
        }
    return tensors


def planned(tensors, target_model):
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return make_plan(
        shapes, {}, target_model, same=lambda fused, split: same_change(tensors, fused, split)
    )


@pytest.mark.parametrize("role", ["lora_magnitude_vector", "dora_scale"])
def test_a_dora_that_stands_there_twice_is_applied_once(target_model, role):
    magnitudes = torch.rand(3 * H, 1) + 1 if role == "dora_scale" else torch.rand(3 * H) + 1
    plan = planned(twins(role, magnitudes), target_model)
    assert len(plan.adapters) == 3 and not any(
        message(DIFFERENT_TWINS) in caution for caution in plan.cautions
    )
    assert all(spec_of(adapter, {}).kind == "lora" for adapter in plan.adapters)


def test_other_magnitudes_are_another_change(target_model):
    magnitudes = torch.rand(3 * H) + 1
    other = magnitudes.clone()
    other[H + 3] *= 1.01
    plan = planned(twins("lora_magnitude_vector", magnitudes, other.chunk(3)), target_model)
    assert len(plan.adapters) == 4 and any(
        message(DIFFERENT_TWINS) in caution for caution in plan.cautions
    )


def test_magnitudes_for_each_input_are_of_all_rows_and_no_copies(target_model):
    whole = torch.rand(1, H) + 1
    plan = planned(twins("dora_scale", whole, [whole] * 3), target_model)
    assert len(plan.adapters) == 4 and any(
        message(DIFFERENT_TWINS) in caution for caution in plan.cautions
    )


def test_magnitudes_of_columns_are_of_all_rows_and_no_copies(target_model):
    """Stable Audio's: nothing but an option tells that a vector is not one number
    for each output.
    """
    tensors = twins("lora_magnitude_vector", torch.rand(3 * H) + 1)
    columns = (("dora_axis", "columns"),)
    asked = []

    def same(fused, split):
        of_columns = [adapter._replace(options=columns) for adapter in (fused, *split)]
        asked.append(
            (
                same_change(tensors, fused, split),
                same_change(tensors, of_columns[0], of_columns[1:]),
            )
        )
        return asked[-1][0]

    make_plan(
        {key: tuple(tensor.shape) for key, tensor in tensors.items()}, {}, target_model, same=same
    )
    assert asked == [(True, False)]


def test_a_dora_and_a_lora_are_no_copies(target_model):
    tensors = twins("lora_magnitude_vector", torch.rand(3 * H) + 1)
    del tensors[f"{FUSED}.lora_magnitude_vector"]
    assert len(planned(tensors, target_model).adapters) == 4
