"""Several plain pairs on one weight are one patch, which adds what they added one by one; one alone
stays the host's own.
"""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from lora_locksmith.files.header import LoraFileError
from safetensors.torch import save_file

QKV = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
ADALN = "diffusion_model.final_layer.adaLN_modulation.1.weight"
LINEAR = "diffusion_model.final_layer.linear.weight"
STRENGTHS = (0.8, -1.3, 0.05)
# Each file has a rank, a spelling and an alpha of its own; together they reach whole weights,
# slices of rows, and swapped halves.
FILES = (
    (
        4,
        "diffusion_model.{}.lora_A.weight",
        "diffusion_model.{}.lora_B.weight",
        None,
        {"double_blocks.0.img_attn.qkv": (384, 128)},
    ),
    (
        16,
        "lora_unet_{}.lora_down.weight",
        "lora_unet_{}.lora_up.weight",
        3.0,
        {"double_blocks_0_img_attn_qkv": (384, 128)},
    ),
    (
        8,
        "transformer.{}.lora_A.weight",
        "transformer.{}.lora_B.weight",
        None,
        {"transformer_blocks.0.attn.to_q": (128, 128)},
    ),
)
BOTH = (
    {"final_layer.linear": (64, 128)},
    {"final_layer_linear": (64, 128)},
    {"proj_out": (64, 128), "norm_out.linear": (256, 128)},
)


def write(folder, index: int, size: float = 0.1):
    """Write the file of this index. Returns its path."""
    rank, down, up, alpha, modules = FILES[index]
    generator = torch.Generator().manual_seed(index)
    tensors = {}
    for module, (out, columns) in {**modules, **BOTH[index]}.items():
        tensors[down.format(module)] = torch.randn(rank, columns, generator=generator) * size
        tensors[up.format(module)] = torch.randn(out, rank, generator=generator) * size
        if alpha is not None:
            tensors[down.format(module).replace("lora_down.weight", "alpha")] = torch.tensor(alpha)
    path = folder / f"{index}.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def chained(host, tiny_flux, tmp_path):
    """(a model with all files, loaded by one call each; the same files each on a model of its own;
    the base).
    """
    base = tiny_flux()
    model, alone = base, []
    for index, strength in enumerate((*STRENGTHS, 0.4)):
        path = write(tmp_path, index % len(FILES))
        model = host.load_and_fix(model, None, path, strength)[0]
        alone.append(host.load_and_fix(base, None, path, strength)[0])
    return model, alone, base


def computed(entries, shape, key, dtype=torch.float32, intermediate=torch.float32):
    """What the host makes of zeros."""
    import comfy.lora

    return comfy.lora.calculate_weight(
        entries, torch.zeros(shape, dtype=dtype), key, intermediate_dtype=intermediate
    )


def one_by_one(alone, key):
    return list(chain.from_iterable(patcher.patches.get(key, ()) for patcher in alone))


def shape_of(base, key):
    return tuple(base.model.state_dict()[key].shape)


def test_they_add_what_they_added_one_by_one(chained):
    model, alone, base = chained
    assert model.patches.keys() == {key for patcher in alone for key in patcher.patches}
    for key, entries in model.patches.items():
        before = one_by_one(alone, key)
        offsets = {entry[3] for entry in before}
        assert len(entries) == len(offsets), key
        shape = shape_of(base, key)
        wanted = computed(before, shape, key).double()
        assert (computed(entries, shape, key).double() - wanted).norm() <= 4e-7 * wanted.norm(), key


def test_every_number_of_them(host, tiny_flux, tmp_path):
    """One is the host's own adapter, and its bits; from two on there is one patch."""
    import comfy.weight_adapter
    from lora_locksmith.nodes.fused import Fused

    base, path = tiny_flux(), write(tmp_path, 0)
    model, entries = base, host.load_and_fix(base, None, path, 0.3)[0].patches[LINEAR]
    for count in range(1, 6):
        model = host.load_and_fix(model, None, path, 0.3)[0]
        ((strength, patch, *_),) = model.patches[LINEAR]
        assert isinstance(patch, comfy.weight_adapter.LoRAAdapter if count == 1 else Fused)
        wanted, got = (
            computed(one, (64, 128), LINEAR) for one in (entries * count, model.patches[LINEAR])
        )
        assert (
            torch.equal(got, wanted)
            if count == 1
            else (got - wanted).norm() <= 4e-7 * wanted.norm()
        )
        assert strength == (0.3 if count == 1 else 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.1, 0.003])
def test_rounded_less_than_one_by_one(chained, tmp_path, host, dtype, size):
    """As for an offloaded model: the host computes in the weight's dtype. Factors as small as a
    trained LoRA's are no worse.
    """
    _, _, base = chained
    model, alone = base, []
    for index, strength in enumerate(STRENGTHS):
        path = write(tmp_path, index, size)
        model = host.load_and_fix(model, None, path, strength)[0]
        alone.append(host.load_and_fix(base, None, path, strength)[0])
    for key in (LINEAR, QKV):
        shape = shape_of(base, key)
        truth = computed(one_by_one(alone, key), shape, key, torch.float64)
        errors = [
            (computed(entries, shape, key, dtype, dtype).double() - truth).norm()
            for entries in (model.patches[key], one_by_one(alone, key))
        ]
        assert errors[0] <= 1.1 * errors[1], key


def test_the_loaded_model_and_back(chained):
    model, alone, base = chained
    before = {key: weight.clone() for key, weight in base.model.state_dict().items()}
    model.patch_model(torch.device("cpu"))
    after = {key: base.model.state_dict()[key].clone() for key in model.patches}
    model.unpatch_model(torch.device("cpu"))
    for key, weight in after.items():
        wanted = computed(one_by_one(alone, key), tuple(weight.shape), key)
        assert torch.allclose(weight - before[key], wanted, atol=1e-6), key
    assert all(torch.equal(weight, before[key]) for key, weight in base.model.state_dict().items())


def test_the_hosts_copy_of_an_offloaded_weights_patch_computes_the_same(chained):
    from comfy.model_patcher import LowVramPatch

    model, _, base = chained
    for key in (QKV, LINEAR, ADALN):
        patch, weight = LowVramPatch(key, model.patches), base.model.state_dict()[key]
        wanted = patch(weight.clone())
        buffer = torch.empty(patch.memory_required(), dtype=torch.uint8)
        patch.prepare(buffer, None)
        assert torch.equal(patch(weight.clone()), wanted)
        buffer.zero_()
        assert torch.equal(patch(weight.clone()), weight), "the copy is what is computed with"


def test_patches_of_the_stock_loader_stay_as_they_are(host, tiny_flux, tmp_path):
    import comfy.sd
    import comfy.utils
    from lora_locksmith.nodes.fused import Fused

    base = tiny_flux()
    ours, stock = (
        write(tmp_path, 0),
        comfy.utils.load_torch_file(str(write(tmp_path, 1)), safe_load=True),
    )
    model = host.load_and_fix(base, None, ours, 0.5)[0]
    model = comfy.sd.load_lora_for_models(model, None, stock, 0.7, 0.0)[0]
    theirs = model.patches[LINEAR][1]
    model = host.load_and_fix(model, None, ours, 0.25)[0]
    found = model.patches[LINEAR]
    assert [isinstance(entry[1], Fused) for entry in found] == [True, False] and found[1] is theirs
    alone = host.load_and_fix(base, None, ours, 0.75)[0].patches[LINEAR]
    wanted = computed([*alone, theirs], (64, 128), LINEAR)
    assert (computed(found, (64, 128), LINEAR) - wanted).norm() <= 4e-7 * wanted.norm()


def test_what_another_node_scales_is_left_alone(host, tiny_flux, tmp_path):
    """A patch that comes with a strength of the model is no sum."""
    base, path = tiny_flux(), write(tmp_path, 0)
    model = host.load_and_fix(base, None, path, 0.5)[0]
    merged = model.clone()
    merged.add_patches({LINEAR: model.patches[LINEAR][0][1]}, 0.5, 0.5)
    again = host.load_and_fix(merged, None, path, 0.5)[0]
    assert [entry[2] for entry in again.patches[LINEAR]] == [1.0, 0.5, 1.0]


def test_a_file_that_was_cut_short_is_named(host, tiny_flux, tmp_path):
    first, second = write(tmp_path, 0), write(tmp_path, 1)
    model = host.load_and_fix(host.load_and_fix(tiny_flux(), None, first)[0], None, second)[0]
    second.write_bytes(second.read_bytes()[:100])
    with pytest.raises(LoraFileError, match=r"1\.safetensors: it was cut short"):
        computed(model.patches[LINEAR], (64, 128), LINEAR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_convolutions(comfy, dtype, order):
    from comfy.weight_adapter import LoRAAdapter
    from lora_locksmith.nodes.together import settle
    from lora_locksmith.nodes.watched import watched

    generator = torch.Generator().manual_seed(0)
    entries = []
    for rank in (2, 5):
        up, down = (
            torch.randn(6, rank, 1, 1, generator=generator),
            torch.randn(rank, 4, 3, 3, generator=generator),
        )
        (layer,) = watched([{"conv": LoRAAdapter(set(), (up, down, 1.5, None, None, None))}], None)
        entries.append((0.5, layer["conv"], 1.0, None, None))
    patches = {"conv": list(entries)}
    assert settle(patches, ["conv"]) == 0 and len(patches["conv"]) == 1
    weight = torch.zeros(6, 4, 3, 3, dtype=dtype).to(memory_format=order)
    wanted = computed(entries, weight.shape, "conv")
    import comfy.lora

    got = comfy.lora.calculate_weight(patches["conv"], weight, "conv")
    assert (got.float() - wanted).norm() <= (
        4e-7 if dtype == torch.float32 else 4e-3
    ) * wanted.norm()


@pytest.mark.parametrize("strength", [1.0, 1e-3, 1e-6, 1e7])
def test_no_strength_is_lost_in_fp16(comfy, strength):
    """fp16 ends at 6e-8 and at 65,504: factors of any strength are within what their own bits cost,
    as those of strength 1 are.
    """
    from lora_locksmith.nodes.beside import in_dtype

    generator = torch.Generator().manual_seed(0)
    up, down = (
        torch.randn(64, 8, generator=generator) * 0.02 * strength,
        torch.randn(8, 128, generator=generator) * 0.1,
    )
    down[3], up[:, 5] = 0, 0
    made = in_dtype(up, down, torch.float16)
    product, wanted = made[0].double() @ made[1].double(), up.double() @ down.double()
    assert made[0].dtype == made[1].dtype == torch.float16
    assert (product - wanted).norm() <= 1e-3 * wanted.norm()
    same = in_dtype(up, down, torch.bfloat16)
    assert torch.equal(same[0], up.bfloat16()) and torch.equal(same[1], down.bfloat16())
