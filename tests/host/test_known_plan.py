"""A file that is loaded again onto the same model is not planned again, and comes out the same to
the bit; for another reading, model or map it is.
"""

from __future__ import annotations

import os

import pytest
import torch
from many_kinds import plain_kinds
from safetensors.torch import save_file


@pytest.fixture
def path(tmp_path):
    save_file(plain_kinds(), tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


@pytest.fixture
def plan_of(host):
    """plan_of(patcher, path, ...) -> the plan by which the file was loaded."""
    return lambda patcher, path, *rest, **how: (
        host.load_and_fix(patcher, None, path, *rest, **how)[2].plan
    )


def patched(patcher):
    return {
        name: patcher.patch_weight_to_device(name, patcher.load_device, return_weight=True)
        for name in patcher.patches
    }


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_another_strength_plans_nothing_and_gives_the_same_to_the_bit(
    host, base, path, plan_of, strength
):
    model = base("bf16")
    first = plan_of(model, path, 0.7)
    known, _, report = host.load_and_fix(model, None, path, strength)
    assert report.plan is first
    host.forget()
    fresh, _, told = host.load_and_fix(model, None, path, strength)
    assert told.plan is not first and str(told) == str(report)
    weights = patched(known)
    assert weights and all(
        torch.equal(weight, weights[name]) for name, weight in patched(fresh).items()
    )


def test_a_file_that_changed_is_planned_anew(base, path, plan_of):
    """Its values count too: here an alpha, at the same size and time of change."""
    model, tensors = base(), plain_kinds()
    first, about = plan_of(model, path), path.stat()
    alpha = next(key for key in tensors if key.endswith(".alpha"))
    tensors[alpha] = tensors[alpha] * 2
    save_file(tensors, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == about.st_size
    assert plan_of(model, path) is not first


def test_for_another_model_or_other_maps_it_is_planned_anew(base, path, plan_of):
    from lora_locksmith.key_maps.user_maps import NO_USER_MAPS

    first = plan_of(base(), path)
    assert plan_of(base("bf16"), path) is not first
    assert plan_of(base().clone(), path) is first
    assert plan_of(base(), path, own=NO_USER_MAPS._replace()) is not first
