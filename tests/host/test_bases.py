"""Base models of every kind: their weights are patched right to their own rounding, come back to
the bit, and work while offloaded.
"""

from __future__ import annotations

import json

import comfy_models
import pytest
import torch
from lora_locksmith.identify.trainer import model_title
from lora_locksmith.planning.target_model import TargetModel, denoiser_network
from many_kinds import (
    BASES,
    PLAIN_BASES,
    QUANTISED_BASES,
    SCALED_FP8,
    dense,
    plain_kinds,
    storage,
    write_all_kinds,
)
from safetensors.torch import save_file

CPU = torch.device("cpu")
# What one rounding costs, as a share of the weight's norm: of stochastic rounding, twice that to
# the nearest.
ROUNDING = {
    "fp32": 1e-6,
    "bf16": 4e-3,
    "fp16": 6e-4,
    "fp8": 0.06,
    "fp8_e5m2": 0.12,
    "fp8_scaled": 0.06,
    "float8_e4m3fn": 0.06,
    "float8_e5m2": 0.12,
    "nvfp4": 0.2,
    "mxfp8": 0.06,
    "int8_tensorwise": 0.03,
}


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return write_all_kinds(tmp_path_factory.mktemp("lora") / "all_kinds.safetensors")


def weights(patcher, names):
    import comfy.utils

    return {name: comfy.utils.get_attr(patcher.model, name) for name in names}


def expected(patcher, base):
    """The weights under the patches, from the base as it stands, in fp32: the mathematics without
    any storage.
    """
    import comfy.lora

    return {
        name: comfy.lora.calculate_weight(patcher.patches[name], weight.clone(), name)
        for name, weight in base.items()
    }


def flux_inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    make = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    return {
        "x": make(1, 16, 4, 4),
        "timestep": torch.tensor([0.5]),
        "context": make(1, 5, 768),
        "y": make(1, 768),
        "guidance": torch.tensor([3.5]),
    }


def sampled(patcher):
    """One step of the model as it is now."""
    with torch.no_grad():
        return patcher.model.diffusion_model(**flux_inputs()).float()


@pytest.mark.parametrize("kind", BASES)
def test_every_base_is_patched_to_its_own_rounding_and_restored_to_the_bit(host, base, lora, kind):
    model = base(kind)
    fixed, _, report = host.load_and_fix(model, None, lora, 0.8)
    assert report.unplaced() == []
    bits = {name: storage(weight) for name, weight in weights(model, fixed.patches).items()}
    before = {name: dense(weight) for name, weight in weights(model, fixed.patches).items()}
    truth = expected(fixed, before)
    fixed.patch_model(CPU)
    after = weights(fixed, fixed.patches)
    for name, wanted in truth.items():
        change = wanted - before[name]
        got = dense(after[name])
        assert (got - wanted).norm() <= ROUNDING[kind] * wanted.norm(), name
        along = ((got - before[name]) * change).sum() / (change * change).sum()
        assert along == pytest.approx(1, abs=0.05), name
    fixed.unpatch_model(CPU)
    for name, weight in weights(model, fixed.patches).items():
        assert all(map(torch.equal, bits[name], storage(weight))), name


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_in_place_updates_are_restored_to_the_bit(host, base, lora, kind):
    model = base(kind).clone()
    model.weight_inplace_update = True
    fixed = host.load_and_fix(model, None, lora)[0]
    assert fixed.weight_inplace_update
    found = weights(model, fixed.patches)
    bits, places = (
        {name: storage(weight) for name, weight in found.items()},
        {name: weight.data_ptr() for name, weight in found.items()},
    )
    truth = expected(fixed, {name: dense(weight) for name, weight in found.items()})
    fixed.patch_model(CPU)
    for name, weight in weights(fixed, fixed.patches).items():
        assert weight.data_ptr() == places[name]
        assert (dense(weight) - truth[name]).norm() <= ROUNDING[kind] * truth[name].norm()
    fixed.unpatch_model(CPU)
    for name, weight in weights(model, fixed.patches).items():
        assert all(map(torch.equal, bits[name], storage(weight))), name


@pytest.mark.parametrize("kind", BASES)
def test_shapes_are_the_logical_ones(host, base, kind):
    for weight, outputs in (
        ("double_blocks.0.img_attn.qkv", 384),
        ("single_blocks.0.linear1", 896),
    ):
        stored = base(kind).model.diffusion_model.get_submodule(weight).weight
        assert host.logical_shape(stored) == (outputs, 128)


@pytest.mark.parametrize("kind", BASES)
def test_every_base_is_recognised(host, base, kind):
    """Whatever its storage keeps beside its weights."""
    target_model = host.target_model_of(base(kind), None)
    assert target_model.family is not None and target_model.family.name == "flux1"


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("wan21_t2v_14b", "Wan 14B"),
        ("flux2_klein_4b", "FLUX.2 klein 4B"),
        ("sd35_large", "Stable Diffusion 3 / 3.5 large"),
        ("flux1_fill", "FLUX.1 Fill"),
    ],
)
def test_packed_weights_that_tell_their_shape_name_the_size(host, name, title):
    """As GGUF's do, whose storage is rows of bytes: city96/ComfyUI-GGUF ops.py GGMLTensor."""
    model = torch.nn.Module()
    for weight, shape in comfy_models.shapes(name).items():
        *path, last = weight.split(".")
        owner = model
        for word in path:
            if word not in owner._modules:
                owner.add_module(word, torch.nn.Module())
            owner = owner._modules[word]
        packed = torch.nn.Parameter(torch.empty(7, dtype=torch.uint8), requires_grad=False)
        packed.tensor_shape = torch.Size(shape)
        owner.register_parameter(last, packed)
    network = denoiser_network(host._shapes(model, "diffusion_model."))
    assert model_title(TargetModel([network])) == title


@pytest.mark.parametrize(
    "kind", ["fp32", "bf16", "fp8", SCALED_FP8, "float8_e4m3fn", "nvfp4", "int8_tensorwise"]
)
def test_weights_patched_on_the_fly(host, base, lora, kind):
    """Low VRAM: the weights stay as they are, and each layer computes with the patched one."""
    model = base(kind)
    fixed = host.load_and_fix(model, None, lora)[0]
    names = [name for name in fixed.patches if name.endswith(".weight")]
    bits = {name: storage(weight) for name, weight in weights(model, names).items()}
    truth = expected(
        fixed, {name: dense(weight) for name, weight in weights(model, fixed.patches).items()}
    )
    fixed.patch_model(CPU, lowvram_model_memory=1)
    try:
        for name in names:
            module = fixed.model.get_submodule(name.removesuffix(".weight"))
            assert all(map(torch.equal, bits[name], storage(module.weight)))
            x = torch.randn(3, truth[name].shape[1])
            bias = truth.get(name.replace(".weight", ".bias"), module.bias)
            wanted = torch.nn.functional.linear(
                x, truth[name], None if bias is None else bias.float()
            )
            assert torch.allclose(module(x), wanted, rtol=1e-4, atol=1e-4), name
    finally:
        fixed.unpatch_model(CPU)


def test_offloading_a_loaded_model_half_way(host, base, lora):
    """What the host does when memory gets short: some layers go back and are patched on the fly
    from then on.
    """
    model = base("fp32")
    fixed = host.load_and_fix(model, None, lora)[0]
    untouched = sampled(model)
    fixed.patch_model(CPU)
    whole = sampled(fixed)
    assert fixed.partially_unload(CPU, fixed.model_size() // 2) > 0
    half = sampled(fixed)
    assert any(
        len(module.weight_function)
        for module in fixed.model.modules()
        if hasattr(module, "weight_function")
    )
    fixed.unpatch_model(CPU)
    assert torch.allclose(half, whole, atol=1e-4)
    assert not torch.allclose(whole, untouched, atol=1e-1)
    assert torch.equal(sampled(model), untouched)


def test_adapters_moved_into_a_buffer(host, base, lora):
    """Dynamic offload copies an adapter's tensors into one buffer and makes the adapter anew around
    them.
    """
    from comfy.model_patcher import LowVramPatch

    fixed = host.load_and_fix(base("fp32"), None, lora)[0]
    for name, weight in weights(fixed, fixed.patches).items():
        patch = LowVramPatch(name, fixed.patches)
        wanted = patch(dense(weight))
        buffer = torch.empty(patch.memory_required(), dtype=torch.uint8)
        patch.prepare(buffer, None)
        assert torch.equal(patch(dense(weight)), wanted), name
        buffer.zero_()
        assert not torch.equal(_or_none(patch, dense(weight)), wanted), (
            f"{name} does not use the buffer"
        )
        patch.clear_prepared()


def _or_none(patch, weight):
    # An adapter of zeros may be a valid one or none at all; either way it is not what it was.
    try:
        return patch(weight)
    except Exception:
        return torch.empty(0)


def test_a_copied_adapter_keeps_its_shape(host, comfy):
    """The host makes plain tuples of what it copies; the copy still knows what it is."""
    import comfy.lora
    from lora_locksmith.adapters.rows import Rows
    from lora_locksmith.adapters.spec import AdapterSpec
    from lora_locksmith.nodes.patches import LocksmithAdapter

    spec = AdapterSpec("lora", 2.0, None, Rows(0, 4), False, (("pad_to", (4, 6)),))
    tensors = (torch.randn(8, 2), torch.randn(2, 6))
    adapter = LocksmithAdapter({"a", "b"}, (spec, ("up", "down"), tensors))
    copy = comfy.lora.prefetch_prepared_value(adapter, [0], None, None, False)
    assert copy.calculate_shape("x") == (4, 6)
    weight = torch.zeros(4, 3)
    results = [
        one.calculate_weight(weight.clone(), "x", 1.0, 1.0, None, None) for one in (adapter, copy)
    ]
    assert torch.equal(*results) and results[0].shape == (4, 6)


def test_clones_share_nothing_that_changes(host, base, lora):
    model = base("fp32")
    one = host.load_and_fix(model, None, lora, 0.5)[0]
    before = {name: list(patches) for name, patches in one.patches.items()}
    two = host.load_and_fix(one, None, lora, 0.5)[0]
    assert not model.patches
    assert {name: list(patches) for name, patches in one.patches.items()} == before
    # Adapters that need the weight share one patch, and so do plain pairs; all others stand side by
    # side.
    assert all(
        len(patches) <= len(two.patches[name]) <= 2 * len(patches)
        for name, patches in before.items()
    )
    twin = two.clone()
    twin.patches["diffusion_model.img_in.weight"].clear()
    assert len(two.patches["diffusion_model.img_in.weight"]) >= 1


def test_a_lora_hook_on_top(host, base, lora, tmp_path):
    """ComfyUI's own LoRA hooks patch what our patches made, and take only their own part away."""
    import comfy.hooks
    import comfy.utils

    save_file(plain_kinds(seed=9), tmp_path / "hook.safetensors")
    content = comfy.utils.load_torch_file(str(tmp_path / "hook.safetensors"), safe_load=True)
    fixed = host.load_and_fix(base("fp32"), None, lora)[0]
    group = comfy.hooks.create_hook_lora(lora=content, strength_model=0.5, strength_clip=0.0)
    hooked = fixed.clone()
    hooked.register_all_hook_patches(
        group, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    )
    hooked.patch_model(CPU)
    ours = sampled(hooked)
    hooked.patch_hooks(group)
    both = sampled(hooked)
    hooked.patch_hooks(None)
    again = sampled(hooked)
    hooked.unpatch_model(CPU)
    stacked = comfy.sd.load_lora_for_models(fixed, None, content, 0.5, 0.0)[0]
    stacked.patch_model(CPU)
    wanted = sampled(stacked)
    stacked.unpatch_model(CPU)
    assert torch.equal(again, ours) and not torch.allclose(both, ours, atol=1e-2)
    assert torch.allclose(both, wanted, atol=1e-3)


STRAYS = {
    "quanto": (
        "{}.weight._data",
        "{}.weight._scale",
        "{}.weight._shift",
        "{}.input_scale",
        "{}.output_scale",
    ),
    "peft around quanto": (
        "{}.base_layer.weight._data",
        "{}.base_layer.weight._scale",
        "{}.base_layer.bias",
        "{}.base_layer.input_scale",
    ),
    "bitsandbytes": (
        "{}.base_layer.weight",
        "{}.base_layer.weight.absmax",
        "{}.base_layer.weight.quant_map",
        "{}.weight.nested_absmax",
        "{}.weight.nested_quant_map",
        "{}.base_layer.weight.quant_state.bitsandbytes__nf4",
        "{}.SCB",
    ),
    "fp8": (
        "{}.weight_scale",
        "{}.scale_weight",
        "{}.scale_input",
        "{}.comfy_quant",
        "{}.weight_scale_2",
        "{}.pre_quant_scale",
    ),
}


@pytest.mark.parametrize("kind", ["fp32", "float8_e4m3fn"])
@pytest.mark.parametrize("left_by", STRAYS)
def test_what_a_quantised_training_leaves_behind_is_bookkeeping(
    host, base, tmp_path, left_by, kind
):
    # A checkpoint's dots and PEFT's prefix, which the stock loader does not know.
    prefix = "transformer.base_model.model."
    plain = {
        key.replace("transformer.", prefix): tensor
        for key, tensor in plain_kinds().items()
        if key.startswith("transformer.")
    }
    modules = sorted({key.rsplit(".lora_", 1)[0] for key in plain if ".lora_" in key})
    strays = {
        spelling.format(module): torch.ones(4) for module in modules for spelling in STRAYS[left_by]
    }
    save_file(plain, tmp_path / "plain.safetensors")
    save_file({**plain, **strays}, tmp_path / "strays.safetensors")
    wanted = host.load_and_fix(base(kind), None, tmp_path / "plain.safetensors")[0]
    fixed, _, report = host.load_and_fix(base(kind), None, tmp_path / "strays.safetensors")
    fates = {key: outcome.category for key, outcome in report.outcomes.items()}
    assert {fates[key] for key in plain} == {"placed"}
    assert {key: fates[key] for key in strays if fates[key] != "bookkeeping"} == {}
    assert {name: len(patches) for name, patches in fixed.patches.items()} == {
        name: len(p) for name, p in wanted.patches.items()
    }
    assert {
        outcome.adapter for outcome in report.outcomes.values() if outcome.category == "placed"
    } - {None}


def test_every_kind_of_base_is_told_as_the_same_family(host, base, lora):
    titles = {
        host.load_and_fix(base(kind), None, lora)[2].model_title
        for kind in ("fp32", *QUANTISED_BASES, *list(PLAIN_BASES)[3:])
    }
    assert len(titles) == 1 and "FLUX" in titles.pop()


OF_ITS_BASE = {
    "PiSSA": {"lora_A.weight": (4, 128), "lora_B.weight": (384, 4)},
    "KaSA": {"lora_A.weight": (4, 128), "lora_B.weight": (384, 4), "lora_diag": (4,)},
    "T-LoRA": {"q_layer.weight": (4, 128), "p_layer.weight": (384, 4), "lambda_layer": (1, 4)},
}


def of_its_base(folder, title, weight):
    """A file with an adapter of double_blocks.0.img_attn.qkv that takes a part off this weight."""
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.02
        for name, shape in OF_ITS_BASE[title].items()
    }
    if "q_layer.weight" in tensors:
        tensors["q_layer.weight"] += torch.linalg.svd(weight, full_matrices=False).Vh[:4]
    settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": "pissa" if title == "PiSSA" else True}
    metadata = {
        "lora_adapter_metadata": json.dumps(
            {f"transformer.{name}": value for name, value in settings.items()}
        )
    }
    named = {
        f"diffusion_model.double_blocks.0.img_attn.qkv.{name}": tensor
        for name, tensor in tensors.items()
    }
    save_file(named, folder / "x.safetensors", metadata)
    return folder / "x.safetensors"


@pytest.mark.parametrize("title", OF_ITS_BASE)
@pytest.mark.parametrize("kind", ["bf16", "fp8", SCALED_FP8, "nvfp4"])
def test_a_quantised_base_is_told_where_a_part_of_it_is_taken_off(
    host, base, tmp_path, kind, title
):
    model = base(kind)
    weight = dense(
        weights(model, ["diffusion_model.double_blocks.0.img_attn.qkv.weight"]).popitem()[1]
    )
    fixed, _, report = host.load_and_fix(model, None, of_its_base(tmp_path, title, weight))
    assert len(fixed.patches) == 1 and not report.unplaced()
    assert [told for told in report.cautions if title in told and "quantized" in told] == list(
        report.cautions
    )
    assert bool(report.cautions) == (kind != "bf16")


def test_a_t_lora_of_another_base_is_refused_when_it_is_loaded(host, base, tmp_path):
    fixed, _, report = host.load_and_fix(
        base("bf16"), None, of_its_base(tmp_path, "T-LoRA", torch.randn(384, 128))
    )
    assert not fixed.patches
    assert {found["category"] for found in report.unplaced()} == {"unsupported adapter"}
    assert all("trained on another model" in found["reason"] for found in report.unplaced())
