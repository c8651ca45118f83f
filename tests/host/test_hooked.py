"""Hooks on base models of every kind: the weights that Load and Fix LoRA makes, switched on, off and
weighed, and the base back to the bit.
"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from many_kinds import (
    PLAIN_BASES,
    QUANTISED_BASES,
    SCALED_FP8,
    dense,
    plain_kinds,
    storage,
    write_all_kinds,
)
from safetensors.torch import save_file
from test_bases import ROUNDING, expected, weights


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return write_all_kinds(tmp_path_factory.mktemp("lora") / "all_kinds.safetensors")


@pytest.fixture
def hooked(host):
    """hooked(patcher, path, strength) -> (a clone that has met the hook of a file, its group)."""
    import comfy.hooks
    from lora_locksmith.nodes.hooked import HookedFile, hooks_of

    def meet(patcher, path, strength=0.8, strength_clip=0.0):
        group = hooks_of(HookedFile(host.read(path), path.name), strength, strength_clip)
        return register(patcher.clone(), group), group

    def register(clone, group):
        target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
        assert clone.register_all_hook_patches(group, target).hooks == group.hooks
        return clone

    meet.register = register
    return meet


def near(weight, wanted, kind="fp32"):
    return (dense(weight) - wanted).norm() <= ROUNDING[kind] * wanted.norm()


@pytest.mark.parametrize("kind", PLAIN_BASES)
def test_every_kind_of_adapter_on_every_base(host, base, lora, hooked, kind):
    """First computed, then from the host's cache."""
    fixed = host.load_and_fix(base(kind), None, lora, 0.8)[0]
    model, group = hooked(base(kind), lora)
    found = weights(model, fixed.patches)
    bits = {name: storage(weight) for name, weight in found.items()}
    truth = expected(fixed, {name: dense(weight) for name, weight in found.items()})
    for _ in range(2):
        model.apply_hooks(group)
        assert model.hook_backup.keys() == fixed.patches.keys()
        for name, weight in weights(model, truth).items():
            assert near(weight, truth[name], kind), name
        model.apply_hooks(None)
        for name, weight in weights(model, truth).items():
            assert all(map(torch.equal, bits[name], storage(weight))), name


@pytest.mark.parametrize("strength", [0.0, 0.5, -1.0])
def test_a_keyframe_multiplies_the_strength(host, base, lora, hooked, strength):
    import comfy.hooks

    fixed = host.load_and_fix(base(), None, lora, 0.8 * strength)[0]
    model, group = hooked(base(), lora)
    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(strength))
    group.set_keyframes_on_hooks(frames)
    names = model.hook_patches[group.hooks[0].hook_ref]
    before = {name: dense(weight) for name, weight in weights(model, names).items()}
    truth = before | expected(fixed, {name: before[name] for name in fixed.patches})
    model.apply_hooks(group)
    for name, weight in weights(model, truth).items():
        assert near(weight, truth[name]), name
    model.apply_hooks(None)


def test_changes_of_model_and_hooks_are_all_of_the_models_own_weight(host, base, lora, hooked):
    """Beside a patch of the model's and another hook, each with adapters that need the weight."""
    patched = loaded = host.load_and_fix(base(), None, lora, 0.8)[0]
    for strength in (0.5, -0.3):
        loaded = host.load_and_fix(loaded, None, lora, strength)[0]
    found = weights(base(), loaded.patches)
    truth = expected(loaded, {name: dense(weight) for name, weight in found.items()})
    model, first = hooked(patched, lora, 0.5)
    group = first.clone_and_combine(hooked(base(), lora, -0.3)[1])
    hooked.register(model, group)
    model.patch_model(torch.device("cpu"))
    model.apply_hooks(group)
    for name, weight in weights(model, truth).items():
        assert near(weight, truth[name]), name
    model.apply_hooks(None)
    model.unpatch_model(torch.device("cpu"))


@pytest.mark.parametrize("kind", [SCALED_FP8, *QUANTISED_BASES])
def test_a_quantised_model_is_refused_by_name(base, lora, hooked, kind):
    """Where the host's own hooks fail on it too."""
    import comfy.hooks
    from lora_locksmith.nodes.faults import NodeError

    stocks = comfy.hooks.create_hook_lora(plain_kinds(), 1.0, 0.0)
    model = hooked.register(base(kind).clone(), stocks)
    with pytest.raises(AttributeError):
        model.apply_hooks(stocks)
    with pytest.raises(NodeError, match=r"all_kinds.safetensors: ComfyUI's hooks cannot"):
        hooked(base(kind), lora)


def test_a_hook_without_strength_for_a_model_is_known_to_it_and_changes_nothing(base, lora, hooked):
    model, group = hooked(base(), lora, 0.0, 1.0)
    assert model.hook_patches == {group.hooks[0].hook_ref: {}}


def test_a_file_is_planned_once_for_a_model_and_let_go_with_it(base, lora, hooked, host):
    model, group = hooked(base(), lora)
    shared = group.hooks[0].shared
    first = shared.layers_for(model, encoder=False)
    assert shared.layers_for(model.clone(), encoder=False) is first
    assert group.clone().hooks[0].shared is shared
    gone = weakref.ref(shared)
    del model, group, shared, first
    gc.collect()
    assert gone() is None


def test_values_that_are_not_finite_are_told(base, hooked, tmp_path, caplog):
    tensors = plain_kinds()
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, tmp_path / "broken.safetensors")
    hooked(base(), tmp_path / "broken.safetensors")
    (record,) = [one for one in caplog.records if "as a hook on" in one.getMessage()]
    assert record.levelname == "WARNING" and "NaN" in record.getMessage()
