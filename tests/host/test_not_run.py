"""Layers beside which something hangs and that do not run in a whole sampling are told as that, in
the log and in the next report; a run that was stopped accuses none.
"""

from __future__ import annotations

import pytest
import torch
from many_kinds import plain_kinds
from safetensors.torch import save_file
from test_factors import factors

TOLD = "did not run"
BLOCK = "diffusion_model.double_blocks.0"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("loras") / "plain.safetensors"
    save_file(plain_kinds(), path)
    return path


@pytest.fixture
def load(host, file):
    """load(patcher, mode) -> (a clone with the file, its report)."""

    def with_file(patcher, mode="bypass", strength=0.5):
        loaded, _, report = host.load_and_fix(patcher, None, file, strength, mode=mode)
        return loaded, [note for note in report.notes() if TOLD in note]

    return with_file


@pytest.fixture
def sample(comfy, caplog):
    """sample(patcher) -> what the log told of layers that did not run; two steps by the host's own
    sampler, the two prompts of a length of their own, so that each is a run of the model by itself.
    """
    import comfy.model_management
    import comfy.sample

    def run(patcher, hooks=None):
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(1, 16, 4, 4, generator=generator)
        prompts = [
            [
                torch.randn(1, length, 768, generator=generator),
                {"pooled_output": torch.randn(1, 768, generator=generator)},
            ]
            for length in (5, 9)
        ]
        if hooks is not None:
            prompts[0][1]["hooks"] = hooks
        caplog.clear()
        with caplog.at_level("INFO"):
            comfy.sample.sample(
                patcher, noise, 2, 3.0, "euler", "simple", [prompts[0]], [prompts[1]], noise * 0
            )
        return told()

    def told():
        return [text for text in caplog.messages if TOLD in text]

    run.told = told
    yield run
    comfy.model_management.unload_all_models()


def skipping(patcher):
    """A clone whose first double block does nothing, as other nodes skip blocks."""
    clone = patcher.clone()
    clone.set_model_patch_replace(
        lambda args, _: {"img": args["img"], "txt": args["txt"]}, "dit", "double_block", 0
    )
    return clone


def test_nothing_is_told_where_all_ran(base, load, sample):
    loaded, notes = load(base())
    assert sample(loaded) == [] and notes == []
    assert load(base())[1] == []


def test_layers_that_did_not_run_are_told_once_and_in_the_next_report(base, load, sample):
    model = base("bf16")
    loaded, _ = load(model)
    (told,) = sample(skipping(loaded))
    assert f"{BLOCK}.img_attn.qkv" in told and "set mode to patch" in told
    assert "single_blocks" not in told
    assert sample(skipping(loaded)) == [], "told twice"
    for mode, count in (("bypass", 1), ("patch", 0)):
        assert len(load(model, mode, 0.7)[1]) == count, mode
    assert sample(skipping(load(model, strength=0.7)[0])) == [], "the same layers of the same model"
    assert sample(load(model)[0]) == []
    assert load(model)[1] == [], "since then all have run"


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_is_stopped_accuses_no_layer(base, load, sample, step):
    import comfy.model_management as management

    loaded, calls = load(base("fp16"))[0], []

    def stop(*_):
        calls.append(1)
        if len(calls) == 2 * step - 1:
            management.interrupt_current_processing()

    layer = loaded.model.get_submodule(f"{BLOCK}.img_mlp.0")
    handle = layer.register_forward_pre_hook(stop)
    with pytest.raises(management.InterruptProcessingException):
        sample(loaded)
    handle.remove()
    assert len(calls) == 2 * step - 1, "it was not stopped there"
    assert sample.told() == []
    assert load(base("fp16"))[1] == []
    assert sample(loaded) == []


def test_hooks_of_a_prompt_take_us_off_and_on_within_a_run(base, load, sample):
    """The host does so wherever another prompt has its turn: all layers count as having run, and
    the factors are not made anew.
    """
    import comfy.hooks

    loaded, _ = load(base())
    name = "diffusion_model.single_blocks.0.linear1"
    shape = loaded.model.get_submodule(name).weight.shape
    tensors = {f"{name}.lora_up.weight": torch.randn(shape[0], 2)}
    tensors[f"{name}.lora_down.weight"] = torch.randn(2, shape[1])
    hooks = comfy.hooks.create_hook_lora(tensors, 1.0, 0.0)
    store, injected = factors(loaded), []
    loaded.add_callback("on_inject_model", lambda _: injected.append(dict(store.steps)))
    assert sample(loaded, hooks) == []
    assert len(injected) > 2 and all(
        steps[name] is injected[0][name] for steps in injected for name in store.parts
    )


def test_of_a_compiled_model_nothing_is_said(base, load, sample):
    """A compiled layer does not tell that it ran; the block is compiled as other packs do it."""
    model = base("fp8")
    loaded, _ = load(model)
    block = loaded.model.get_submodule(f"{BLOCK}")
    loaded.add_object_patch(BLOCK, torch.compile(block, backend="eager"))
    assert sample(skipping(loaded)) == []
