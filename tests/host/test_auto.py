"""mode = auto: beside the layer where a weight is quantised or streamed, patched where the host
does that once; the report says which.
"""

from __future__ import annotations

import json

import pytest
import torch
from many_kinds import (
    QUANTISED_BASES,
    SCALED_FP8,
    plain_kinds,
    write_all_kinds,
)
from safetensors.torch import save_file

CPU = torch.device("cpu")
GPU = torch.device("cuda")  # named only: nothing is computed there
BLOCKS = "_blocks."


@pytest.fixture(scope="module")
def base(base):
    """The same, a clone each time."""
    return lambda kind: base(kind).clone()


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return write_all_kinds(tmp_path_factory.mktemp("lora") / "all_kinds.safetensors")


@pytest.fixture
def plain(tmp_path):
    save_file(plain_kinds(), tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


@pytest.fixture
def streaming(comfy):
    """streaming(patcher) -> the same for a GPU that keeps no weights, as ComfyUI's --novram sets
    it.
    """
    import comfy.model_management as management

    before = management.vram_state

    def told(patcher):
        patcher = patcher.clone()
        patcher.load_device, management.vram_state = GPU, management.VRAMState.NO_VRAM
        return patcher

    yield told
    management.vram_state = before


def hung(patcher):
    from lora_locksmith.nodes.bypass import Hung

    return set(Hung.on(patcher).parts)


def patched(patcher):
    return {name.removesuffix(".weight") for name in patcher.patches if name.endswith(".weight")}


def sampled(patcher):
    """One step of the model, loaded by the host and taken off again."""
    from test_bases import flux_inputs

    patcher.patch_model(CPU)
    try:
        with torch.no_grad():
            return patcher.model.diffusion_model(**flux_inputs()).float()
    finally:
        patcher.unpatch_model(CPU)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_dense_weights_that_stay_are_patched_as_without_auto(host, base, lora, kind):
    model, _, report = host.load_and_fix(base(kind), None, lora, 0.8, mode="auto")
    wanted = host.load_and_fix(base(kind), None, lora, 0.8, mode="patch")[0]
    assert not model.injections
    assert {
        name: [type(entry[1]) for entry in entries] for name, entries in model.patches.items()
    } == {name: [type(entry[1]) for entry in entries] for name, entries in wanted.patches.items()}
    assert "patched once" in report.acts and "beside" not in report.acts
    assert (
        f"\nActs      {report.acts}\n" in str(report)
        and json.loads(report.as_json())["acts"] == report.acts
    )


@pytest.mark.parametrize("kind", ["fp8", SCALED_FP8, *QUANTISED_BASES])
def test_quantised_weights_are_left_alone(host, base, plain, kind):
    model, _, report = host.load_and_fix(base(kind), None, plain, 0.8, mode="auto")
    weights = {
        name.removesuffix(".weight"): weight
        for name, weight in model.model.named_parameters()
        if name.endswith(".weight")
    }
    quantised = {name for name, weight in weights.items() if host.is_quantised(weight)}
    assert quantised and hung(model) and hung(model) <= quantised
    assert patched(model).isdisjoint(quantised)
    assert f"beside {len(hung(model))} layers, whose weights are quantized" in report.acts
    if patched(model):
        assert f"in {len(patched(model))} weight, which is dense" in report.acts


def test_packed_weights_say_that_they_are_patched_in_each_step(host, tiny_flux, plain):
    """As GGUF's, which tell the shape that they stand for; on ComfyUI-GGUF's own layers:
    tests/server/test_gguf.py.
    """
    model = tiny_flux()
    for weight in model.model.parameters():
        weight.tensor_shape = weight.shape
    loaded, _, report = host.load_and_fix(model, None, plain, 0.8, mode="auto")
    assert hung(loaded) and not patched(loaded)
    assert f"beside {len(hung(loaded))} layers, whose weights are packed (GGUF)" in report.acts
    assert "rounded anew" not in report.acts


def test_streamed_weights_have_few_ranks_beside_them(host, base, plain, streaming):
    """Of 128 wide layers 5 % is three ranks: rank 2 and 1 of each file. What is patched in each step
    is one product, also where it is alone.
    """
    from lora_locksmith.nodes.fused import Fused

    few = plain.with_name("few.safetensors")
    save_file(
        {
            "diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight": torch.randn(2, 128),
            "diffusion_model.double_blocks.0.img_attn.proj.lora_B.weight": torch.randn(128, 2),
            "diffusion_model.double_blocks.0.img_mlp.0.lora_A.weight": torch.randn(16, 128),
            "diffusion_model.double_blocks.0.img_mlp.0.lora_B.weight": torch.randn(512, 16),
        },
        few,
    )
    once, _, report = host.load_and_fix(streaming(base("fp32")), None, few, 0.5, mode="auto")
    proj, mlp = (
        "diffusion_model.double_blocks.0.img_attn.proj",
        "diffusion_model.double_blocks.0.img_mlp.0",
    )
    assert hung(once) == {proj} and patched(once) == {mlp}
    assert "beside 1 layer, whose weights are not all kept on the device" in report.acts
    assert "in 1 weight, which is dense and patched anew" in report.acts
    assert [type(entry[1]) for entry in once.patches[f"{mlp}.weight"]] == [Fused]
    twice, _, report = host.load_and_fix(once, None, few, 0.5, mode="auto")
    assert hung(twice) == {proj} and patched(twice) == {
        proj,
        mlp,
    }, "with what hangs there already it would be too much"
    for model in (once, twice):
        model.load_device = CPU
    want = base("fp32")
    for count, model in enumerate((once, twice), 1):
        want = host.load_and_fix(want, None, few, 0.5, mode="patch")[0]
        untouched, wanted = sampled(base("fp32")), sampled(want)
        assert (sampled(model) - wanted).norm() <= 1e-4 * (wanted - untouched).norm(), count


@pytest.mark.parametrize(
    "state, streams", [("NO_VRAM", True), ("HIGH_VRAM", False), ("SHARED", False)]
)
def test_what_the_host_says_of_memory(comfy, base, state, streams):
    import comfy.model_management as management
    from lora_locksmith.nodes.auto import streamed

    patcher, before = base("fp32"), management.vram_state
    management.vram_state = management.VRAMState[state]
    try:
        assert not streamed(patcher), "a CPU keeps everything"
        patcher.load_device = GPU
        assert streamed(patcher) == streams
    finally:
        management.vram_state = before


def test_kinds_that_cannot_act_beside_are_patched_and_told(host, base, lora):
    model, _, report = host.load_and_fix(base("float8_e4m3fn"), None, lora, 0.8, mode="auto")
    assert not report.unplaced() and hung(model)
    bypassed, _, told = host.load_and_fix(base("float8_e4m3fn"), None, lora, 0.8, mode="bypass")
    left = [note for note in told.notes() if note.startswith("Bypass:")]
    assert bool(left) and not any(note.startswith("Bypass:") for note in report.notes())
    assert hung(model) <= hung(bypassed)


def test_a_mode_that_is_said_counts_more_than_bypass(host, base, plain):
    for bypass in (False, True):
        assert not host.load_and_fix(base("fp8"), None, plain, bypass=bypass, mode="patch")[
            0
        ].injections
        assert not host.load_and_fix(base("fp8"), None, plain, bypass=bypass, mode="bypass")[
            0
        ].patches
    assert not host.load_and_fix(base("fp8"), None, plain)[2].acts
