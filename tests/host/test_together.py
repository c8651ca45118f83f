"""Several adapters on one weight, from one file or many, in any order: the sum of what each does to
the model's own weight.
"""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from safetensors.torch import save_file

STRENGTHS = {"lora": 0.5, "dora": -0.7, "oft": 2.0, "set": 1.0}
MODULE = "final_layer.linear"
WEIGHT = f"diffusion_model.{MODULE}.weight"
QKV = "diffusion_model.double_blocks.0.img_attn.qkv.weight"


def kinds(seed: int, module: str, out: int, columns: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.1

    pairs = [
        {"lora_A.weight": random(4, columns), "lora_B.weight": random(out, 4)} for _ in range(2)
    ]
    made = {
        "lora": pairs[0],
        "dora": {**pairs[1], "lora_magnitude_vector": random(out).abs() * 10 + 0.5},
        "oft": {"oft_blocks": random(8, out // 8, out // 8), "alpha": torch.tensor(0.01)},
        "set": {"set_weight": random(out, columns)},
    }
    return {
        kind: {f"{module}.{name}": tensor for name, tensor in tensors.items()}
        for kind, tensors in made.items()
    }


@pytest.fixture
def files(tmp_path):
    """kind -> path of a file with such an adapter of the final layer."""
    paths = {}
    for kind, tensors in kinds(3, f"diffusion_model.{MODULE}", 64, 128).items():
        paths[kind] = tmp_path / f"{kind}.safetensors"
        save_file(tensors, paths[kind])
    return paths


@pytest.fixture
def alone(host, patched, tiny_flux, files):
    """(base, kind -> the change it makes alone at its strength)."""
    base = tiny_flux()
    before = base.model.state_dict()[WEIGHT].float()
    loads = {
        kind: host.load_and_fix(base, None, path, STRENGTHS[kind])[0]
        for kind, path in files.items()
    }
    return base, {kind: patched(loaded)[WEIGHT] - before for kind, loaded in loads.items()}


def near(got, want):
    return (got - want).norm() <= 2e-4 * want.norm()


@pytest.mark.parametrize(
    "order",
    [
        *permutations(("lora", "dora", "oft")),
        ("oft", "set", "lora"),
        ("dora", "dora"),
        ("lora", "set"),
    ],
)
def test_they_add_up_in_any_order(host, patched, files, alone, order):
    base, changes = alone
    model = base
    for kind in order:
        model, _, report = host.load_and_fix(model, None, files[kind], STRENGTHS[kind])
    change = patched(model)[WEIGHT] - base.model.state_dict()[WEIGHT].float()
    assert near(change, sum(changes[kind] for kind in order))
    assert any("On one weight" in note and "add up" in note for note in report.notes())


@pytest.mark.parametrize("first", [True, False])
def test_with_a_lora_of_the_stock_loader(host, patched, files, alone, first):
    import comfy.sd
    from safetensors.torch import load_file

    base, changes = alone

    def stock(model):
        return comfy.sd.load_lora_for_models(
            model, None, load_file(files["lora"]), STRENGTHS["lora"], 0.0
        )[0]

    model = stock(base) if first else base
    model = host.load_and_fix(model, None, files["dora"], STRENGTHS["dora"])[0]
    model = model if first else stock(model)
    change = patched(model)[WEIGHT] - base.model.state_dict()[WEIGHT].float()
    assert near(change, changes["lora"] + changes["dora"])


def test_plain_loras_are_one_patch_in_the_order_they_were_loaded_in_and_nothing_is_said(
    host, files, alone
):
    base, _ = alone
    once, _, first = host.load_and_fix(base, None, files["lora"], 1.0)
    twice, _, second = host.load_and_fix(once, None, files["lora"], 0.5)
    ((strength, patch, *_),) = twice.patches[WEIGHT]
    assert (strength, [member[0] for member in patch.weights]) == (1.0, [1.0, 0.5])
    assert first.notes() == second.notes() == []
    assert len(once.patches[WEIGHT]) == 1


def test_parts_of_a_fused_weight_each_see_their_own_rows(host, patched, tiny_flux, tmp_path):
    base = tiny_flux()
    before = base.model.state_dict()[QKV].float()
    model, wanted = base, torch.zeros_like(before)
    for seed, part in enumerate(("q", "k", "q")):
        path = tmp_path / f"{seed}.safetensors"
        save_file(
            kinds(seed, f"transformer.transformer_blocks.0.attn.to_{part}", 128, 128)["dora"], path
        )
        wanted += patched(host.load_and_fix(base, None, path, 0.5)[0])[QKV] - before
        model = host.load_and_fix(model, None, path, 0.5)[0]
    assert near(patched(model)[QKV] - before, wanted)
    assert len(model.patches[QKV]) == 2


def test_the_host_patches_the_weight_with_them_and_takes_them_off_again(
    host, patched, files, alone
):
    base, changes = alone
    model = base
    for kind in ("dora", "lora", "oft"):
        model = host.load_and_fix(model, None, files[kind], STRENGTHS[kind])[0]
    before = base.model.state_dict()[WEIGHT].clone()
    model.patch_model(torch.device("cpu"))
    after = model.model.state_dict()[WEIGHT].clone()
    model.unpatch_model(torch.device("cpu"))
    assert near(after - before, changes["dora"] + changes["lora"] + changes["oft"])
    assert torch.equal(base.model.state_dict()[WEIGHT], before)


def test_the_hosts_copy_of_joined_adapters_computes_the_same(host, patched, files, alone):
    """What is offloaded the host copies, tensor by tensor, into a buffer of its own."""
    import comfy.lora

    base, _ = alone
    model = base
    for kind in ("dora", "oft"):
        model = host.load_and_fix(model, None, files[kind], STRENGTHS[kind])[0]
    (entry,) = model.patches[WEIGHT]
    counter = [0]
    comfy.lora.prefetch_prepared_value(entry[1], counter, None, None, False)
    buffer = torch.zeros(counter[0], dtype=torch.uint8)
    copied = comfy.lora.prefetch_prepared_value(entry[1], [0], buffer, None, True)
    weight = base.model.state_dict()[WEIGHT].float()
    again = comfy.lora.calculate_weight([(entry[0], copied, *entry[2:])], weight.clone(), WEIGHT)
    assert counter[0] > 0 and torch.equal(again, patched(model)[WEIGHT])
