"""What acts beside layers is counted by the host as a model of its own: room is made for it, it is
on the device before the first step, and it leaves with its model.
"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from many_kinds import deriving_kinds, plain_kinds, turning_kinds
from safetensors.torch import save_file
from test_bases import sampled
from test_bypass import hung_on

KEY = "lora_locksmith"
FILES = {"plain": plain_kinds, "turning": turning_kinds, "deriving": deriving_kinds}


@pytest.fixture
def beside(host, tmp_path):
    """beside(patcher, kind) -> a clone with these adapters beside its layers."""

    def load(patcher, kind="plain", strength=0.5):
        path = tmp_path / f"{kind}.safetensors"
        if not path.exists():
            save_file(FILES[kind](), path)
        return host.load_and_fix(patcher, None, path, strength, bypass=True)[0]

    return load


@pytest.fixture
def ready(comfy):
    """ready(patcher) has the host load what a sampling needs, as a sampler does before its first
    step; nothing stays loaded after the test.
    """
    import comfy.model_management
    import comfy.sampler_helpers

    yield lambda patcher: comfy.sampler_helpers.prepare_sampling(
        patcher, (1, 16, 4, 4), {}, patcher.model_options
    )
    comfy.model_management.unload_all_models()


def counted():
    """(bytes that the host reckons with for all it has loaded, bytes it says are on the device)."""
    from comfy.model_management import current_loaded_models

    return (
        sum(one.model_memory() for one in current_loaded_models),
        sum(one.model_loaded_memory() for one in current_loaded_models),
    )


def factors(patcher):
    (one,) = patcher.get_additional_models_with_key(KEY)
    return one.model


def on_layers(patcher):
    """Bytes of the tensors that layers use beside them."""
    from lora_locksmith.nodes.beside import beside_of, tensors_in

    found = (beside_of(module) for module in patcher.model.modules())
    return sum(tensor.nbytes for one in found if one for tensor in tensors_in(one.steps))


@pytest.mark.parametrize("storage", ["fp32", "bf16"])
def test_the_host_counts_them_with_their_model_and_no_longer(base, beside, ready, storage):
    import comfy.model_management

    model = base(storage)
    ready(model)
    alone = counted()
    assert alone[0] == alone[1] > 0
    loaded = beside(model)
    ready(loaded)
    size = on_layers(loaded)
    assert size and counted() == (alone[0] + size, alone[1] + size)
    comfy.model_management.unload_all_models()
    assert not hung_on(model) and not factors(loaded).steps
    ready(model)
    assert counted() == alone


def test_nothing_of_them_is_left_when_their_model_is_gone(base, beside, ready):
    from lora_locksmith.nodes.beside import BesideLayer
    from lora_locksmith.nodes.factors import LoraFactors

    model = base()
    ready(model)
    alone = counted()
    loaded = beside(beside(model), strength=0.2)
    ready(loaded)
    sampled(loaded)
    kept = weakref.ref(factors(loaded))
    del loaded
    gc.collect()
    assert kept() is None
    ready(model)
    assert counted() == alone and not hung_on(model)
    left = [one for one in gc.get_objects() if type(one) in (BesideLayer, LoraFactors)]
    assert left == []


@pytest.mark.parametrize("kind", FILES)
def test_results_are_the_same_to_the_bit(base, beside, ready, kind):
    model = base("bf16")
    loaded = beside(model, kind)
    uncounted = loaded.clone()
    uncounted.remove_additional_models(KEY)
    ready(loaded)
    counted_result = sampled(loaded)
    ready(uncounted)
    assert torch.equal(sampled(uncounted), counted_result)


def test_they_are_there_before_the_first_step_and_made_once(base, beside, ready):
    loaded = beside(base())
    ready(loaded)
    made = dict(factors(loaded).steps)
    size = on_layers(loaded)
    assert made and size == factors(loaded).size()
    # As the host does between prompts of a conditioning with hooks, and for a clone further on.
    loaded.eject_model()
    assert not hung_on(loaded)
    loaded.inject_model()
    clone = loaded.clone()
    ready(clone)
    assert factors(clone) is factors(loaded)
    assert all(factors(clone).steps[name] is steps for name, steps in made.items())
    assert on_layers(clone) == size


@pytest.mark.parametrize("kind", FILES)
def test_their_size_is_known_before_they_are_made(base, beside, kind):
    from lora_locksmith.nodes.beside import is_additive, tensors_in

    for compiled in (False, True):
        store = factors(beside(base("bf16"), kind))
        store.compiled = compiled
        told = store.size()
        assert not store.steps
        store.make(torch.device("cpu"))
        others = (
            part.adapter.weights
            for parts in store.parts.values()
            if not is_additive(parts)
            for part in parts
        )
        everything = (*store.steps.values(), *others)
        assert told == sum(tensor.nbytes for one in everything for tensor in tensors_in(one))
        assert store.model_loaded_weight_memory == told


def test_the_host_may_take_them_off_alone_and_partly_load_their_model(base, beside, ready):
    import comfy.model_management

    loaded = beside(base("bf16"))
    ready(loaded)
    whole = sampled(loaded)
    (patcher,) = loaded.get_additional_models_with_key(KEY)
    assert patcher.partially_unload(patcher.offload_device, 1) == 0
    comfy.model_management.unload_model_and_clones(patcher)
    assert not factors(loaded).steps and not on_layers(loaded) and hung_on(loaded)
    assert torch.equal(sampled(loaded), whole)
    loaded.unpatch_model(torch.device("cpu"))
    loaded.patch_model(torch.device("cpu"), lowvram_model_memory=1)
    assert torch.equal(sampled(loaded), whole)
    loaded.unpatch_model(torch.device("cpu"))
    assert not factors(loaded).steps, "the host had not loaded them, and would not take them off"


def test_a_copy_of_the_model_has_its_own(base, beside, ready):
    """As for another GPU."""
    import comfy.model_management

    loaded = beside(base())
    ready(loaded)
    wanted = sampled(loaded)
    twin = loaded.deepclone_multigpu(new_load_device=torch.device("cpu"))
    assert factors(twin) is not factors(loaded)
    comfy.model_management.unload_all_models()
    ready(twin)
    assert torch.equal(sampled(twin), wanted)
    assert factors(twin).steps and not factors(loaded).steps


def test_other_additional_models_stay(host, base, beside, ready):
    model = base().clone()
    other = base("bf16").clone()
    model.set_additional_models("theirs", [other])
    loaded = beside(beside(model))
    assert len(loaded.get_additional_models()) == 2
    assert loaded.get_additional_models_with_key("theirs")[0].model is other.model
