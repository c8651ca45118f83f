"""A LoRA that was loaded with layer weights and saved: its file has them, once and exactly, and stock
loads it as it was loaded.
"""

from __future__ import annotations

import json

import pytest
import torch
from many_kinds import HIDDEN, factors
from safetensors.torch import save_file

Q, TXT, SINGLE = "double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.0", "single_blocks.0"
FLAT = "lora_unet_double_blocks_{}_txt_mlp_0"
WEIGHTS = "double_blocks.0=0.5, double_blocks.1=-0.25, single_blocks=0"


def in_layers(make) -> dict[str, torch.Tensor]:
    """An adapter on one layer of three blocks; none of single blocks but a plain LoRA."""
    generator = torch.Generator().manual_seed(5)
    tensors = factors(
        generator, "transformer.single_transformer_blocks.0.attn.to_v", HIDDEN, HIDDEN
    )
    for block in (0, 1):
        tensors |= make(generator, FLAT.format(block))
    return tensors | make(generator, "lora_unet_double_blocks_0_img_mlp_0")


def plain(generator, module):
    tensors = factors(
        generator, module, 4 * HIDDEN, HIDDEN, 4, (".lora_down.weight", ".lora_up.weight")
    )
    return tensors | {f"{module}.alpha": torch.tensor(2.0)}


def lokr(generator, module):
    down_up = factors(generator, module, 64, 32, 4, (".lokr_w2_b", ".lokr_w2_a"), 0.3)
    return down_up | {
        f"{module}.lokr_w1": torch.randn(8, 4, generator=generator) * 0.3,
        f"{module}.alpha": torch.tensor(2.0),
    }


def loha(generator, module):
    halves = {}
    for half in "12":
        names = (f".hada_w{half}_b", f".hada_w{half}_a")
        halves |= factors(generator, module, 4 * HIDDEN, HIDDEN, 3, names, 0.3)
    return halves | {f"{module}.alpha": torch.tensor(1.5)}


def dora(generator, module):
    magnitudes = torch.rand(4 * HIDDEN, 1, generator=generator) + 0.5
    return plain(generator, module) | {f"{module}.dora_scale": magnitudes}


KINDS = {"LoRA": plain, "LoKr": lokr, "LoHa": loha, "DoRA": dora}


@pytest.fixture(params=KINDS)
def name(request, loras) -> str:
    name = f"{request.param}.safetensors"
    save_file(in_layers(KINDS[request.param]), loras / name)
    return name


@pytest.fixture
def by_stock(by_stock_nodes, loras, tiny_flux, patched):
    """by_stock(path, strength) -> the weights of a model with that file, by the stock loader."""
    return lambda path, strength=1.0: patched(by_stock_nodes(tiny_flux(), path, strength))


@pytest.fixture
def saved(comfy):
    """saved(LORA_MODEL, dialect) -> the path that Save LoRA wrote it to."""
    from lora_locksmith.nodes.save import SaveLoRA

    def save(lora, model, dialect="comfyui"):
        wish = ("the connected lora", "weighted", dialect)
        return SaveLoRA.execute(*wish, lora=lora, model=model, overwrite=True).args[0]

    return save


def assert_same(found, expected):
    """0 in the file is no change; a weight that is not changed need not be named."""
    assert found and set(found) <= set(expected)
    for name, weight in expected.items():
        if name in found:
            torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-5)
    assert set(expected) == set(found)


@pytest.mark.parametrize("dialect", ["comfyui", "kohya"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_the_loaders_layer_weights(
    comfy, name, saved, by_stock, tiny_flux, patched, strength, dialect
):
    """The strength of the loader is not in the file: stock gives it."""
    from lora_locksmith.nodes.load_and_fix import LoadAndFixLoRA

    given = LoadAndFixLoRA.execute(tiny_flux(), name, strength, 1.0, layer_weights=WEIGHTS).result
    path = saved(given[5], tiny_flux(), dialect)
    assert_same(by_stock(path, strength), patched(given[0]))


def test_a_stacks_layer_weights_and_strengths(comfy, name, saved, by_stock, tiny_flux, patched):
    from lora_locksmith.nodes.stack import LoadAndFixStack

    rows = json.dumps([{"name": name, "strength": 0.4, "blocks": WEIGHTS}])
    given = LoadAndFixStack.execute(rows, model=tiny_flux()).result
    assert_same(by_stock(saved(given[7], tiny_flux())), patched(given[0]))


def test_a_merges_layer_weights_and_strengths(comfy, name, saved, by_stock, tiny_flux, patched):
    from lora_locksmith.nodes.load_and_fix import LoadAndFixLoRA
    from lora_locksmith.nodes.merge import MergeLoRAs

    rows = json.dumps([{"name": name, "strength": 0.4, "blocks": WEIGHTS}])
    merged = MergeLoRAs.execute(rows, {"method": "sum"}, model=tiny_flux()).result[0]
    loaded = LoadAndFixLoRA.execute(tiny_flux(), name, 0.4, 0.4, layer_weights=WEIGHTS).result[0]
    assert_same(by_stock(saved(merged, tiny_flux())), patched(loaded))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_keep_their_strength_stay_as_they_are(comfy, loras, tiny_flux, kind):
    """A DoRA too, though one of another strength is none any more."""
    from lora_locksmith.nodes.load_and_fix import LoadAndFixLoRA

    save_file(in_layers(KINDS[kind]), loras / "x.safetensors")
    whole, weighted = (
        LoadAndFixLoRA.execute(tiny_flux(), "x.safetensors", 1.0, 1.0, layer_weights=text).result[5]
        for text in ("", "double_blocks.0.txt_mlp=0.5, single_blocks=0")
    )
    kept = {name for name in whole if ".double_blocks.1." in name or ".img_mlp." in name}
    assert kept and all(torch.equal(weighted[name], whole[name]) for name in kept)
    assert not [name for name in weighted if ".single_blocks." in name]
    changed = {name for name in weighted if ".double_blocks.0.txt_mlp." in name}
    assert changed and weighted.keys() == kept | changed


@pytest.mark.parametrize("text", ["double_blocks", "nothing_here=0.5"])
def test_weights_that_are_none_are_told_where_it_is_taken(comfy, loras, tiny_flux, text):
    """At strength 0 the loader itself has no use for them."""
    from lora_locksmith.nodes.load_and_fix import LoadAndFixLoRA

    save_file(in_layers(plain), loras / "x.safetensors")
    given = LoadAndFixLoRA.execute(tiny_flux(), "x.safetensors", 0.0, 0.0, layer_weights=text)
    with pytest.raises(RuntimeError, match=f"no LORA_MODEL to give.*{text}"):
        given.result[5].make()
