"""What goes to the host's own adapters is proven to be computed there, and equals the adapter's
definition on every sort of layer.
"""

from __future__ import annotations

import logging
import threading

import pytest
import torch
import toy_layers
from safetensors.torch import save_file

STRENGTHS = (1.0, 0.5, -0.7, 2.0)
SHAPES = {
    name.removesuffix(".weight"): tuple(weight.shape)
    for name, weight in toy_layers.Layers().state_dict().items()
    if name.endswith("weight")
}
CASES = {
    f"{kind} on {layer}": (layer, kind)
    for layer, shape in SHAPES.items()
    for kind, _ in toy_layers.adapters(shape)
}


def close(one, other, tolerance=1e-5):
    return (one - other).norm() <= tolerance * other.norm()


@pytest.fixture(scope="module")
def patcher(comfy):
    return toy_layers.patcher()


@pytest.fixture
def case(request, tmp_path):
    """(layer, adapter, path of its file)."""
    layer, kind = CASES[request.param]
    adapter = dict(toy_layers.adapters(SHAPES[layer]))[kind]
    if layer == "embedding" and adapter.of == "bias":
        pytest.skip("an embedding has no bias")
    save_file(
        {f"diffusion_model.{layer}.{role}": tensor for role, tensor in adapter.tensors.items()},
        tmp_path / "x.safetensors",
    )
    return layer, adapter, tmp_path / "x.safetensors"


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_every_adapter_on_every_layer_is_what_it_is_by_definition(
    host, patched, patcher, caplog, case
):
    layer, adapter, path = case
    name = f"diffusion_model.{layer}.{adapter.of}"
    before = patcher.model.state_dict()[name]
    with caplog.at_level(logging.WARNING):
        for strength in STRENGTHS:
            loaded, _, report = host.load_and_fix(patcher, None, path, strength)
            assert report.unplaced() == []
            assert close(patched(loaded)[name] - before, strength * adapter.change), strength
    assert not caplog.records


@pytest.mark.parametrize(
    "case", [name for name in CASES if CASES[name][0] in toy_layers.INPUTS], indirect=True
)
def test_the_same_beside_the_layer(host, patcher, case):
    layer, adapter, path = case
    module = patcher.model.get_submodule(f"diffusion_model.{layer}")
    inputs = torch.randn(toy_layers.INPUTS[layer], generator=torch.Generator().manual_seed(1))
    bare = module(inputs)
    changed = {adapter.of: adapter.change} | {
        "weight" if adapter.of == "bias" else "bias": torch.zeros(1)
    }
    for strength in STRENGTHS:
        weights = {
            name: getattr(module, name) + strength * change for name, change in changed.items()
        }
        wanted = torch.func.functional_call(module, weights, inputs) - bare
        beside, _, report = host.load_and_fix(patcher, None, path, strength, bypass=True)
        beside.patch_model(toy_layers.CPU)
        try:
            assert report.unplaced() == [] and close(module(inputs) - bare, wanted, 1e-4), strength
        finally:
            beside.unpatch_model(toy_layers.CPU)


def test_plain_adapters_are_still_the_hosts_own(host, patcher, tmp_path):
    """Which is what adds up with other loaders' to the bit."""
    for kind in ("lora", "loha", "lokr", "diff"):
        adapter = dict(toy_layers.adapters(SHAPES["conv2"]))[kind]
        save_file(
            {f"diffusion_model.conv2.{role}": tensor for role, tensor in adapter.tensors.items()},
            tmp_path / "x.safetensors",
        )
        patch = host.load_and_fix(patcher, None, tmp_path / "x.safetensors")[0].patches[
            "diffusion_model.conv2.weight"
        ][0][1]
        assert isinstance(patch, tuple) or patch.name == kind


def test_what_nobody_can_compute_is_refused_while_loading(host, patched, patcher, tmp_path):
    good = dict(toy_layers.adapters(SHAPES["linear"]))["lora"].tensors
    tensors = {f"diffusion_model.linear.{role}": tensor for role, tensor in good.items()}
    # Only one half of this LoHa has a core; this residual lies outside of the weight.
    broken = {
        "hada_w1_a": (2, 24),
        "hada_w1_b": (2, 24),
        "hada_w2_a": (24, 2),
        "hada_w2_b": (2, 24),
        "hada_t1": (2, 2, 1, 1),
    }
    tensors |= {
        f"diffusion_model.square.{role}": torch.ones(shape) for role, shape in broken.items()
    }
    residual = {"lora_up.weight": torch.ones(8, 2, 1), "lora_down.weight": torch.ones(2, 12, 1)}
    residual |= {"bias_indices": torch.tensor([[0, 8], [0, 0]]), "bias_values": torch.ones(2)}
    tensors |= {f"diffusion_model.point1.{role}": tensor for role, tensor in residual.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    loaded, _, report = host.load_and_fix(patcher, None, tmp_path / "x.safetensors")
    assert patched(loaded).keys() == {"diffusion_model.linear.weight"}
    told = {entry["key"]: (entry["category"], entry["reason"]) for entry in report.unplaced()}
    assert told.keys() == tensors.keys() - {f"diffusion_model.linear.{role}" for role in good}
    assert all(category == "unsupported adapter" and reason for category, reason in told.values())
    assert (
        "hada_w2_b" in told["diffusion_model.square.hada_w1_a"][1]
        and "outside" in told["diffusion_model.point1.bias_values"][1]
    )


def test_a_proof_leaves_the_hosts_log_alone(host, caplog):
    from lora_locksmith.nodes.patches import _proven

    plain = ((torch.Size((8, 3)), torch.float32), None)
    with caplog.at_level(logging.WARNING):
        assert not _proven.__wrapped__("diff", plain[:1], (8, 4), False)
        logging.warning("told by another")
    assert [record.getMessage() for record in caplog.records] == ["told by another"]
    assert not _proven.__wrapped__("diff", ((torch.Size((7, 3)), torch.float32),), (7, 3), True), (
        "seven rows have no halves"
    )
    assert _proven.__wrapped__("diff", plain[:1], (8, 3), False)


def test_what_another_thread_logs_during_a_proof_is_logged(host, caplog):
    from lora_locksmith.nodes.patches import _complaints

    with caplog.at_level(logging.WARNING), _complaints() as complaints:
        other = threading.Thread(target=logging.warning, args=("of another thread",))
        other.start()
        other.join()
        logging.warning("of the proof")
    assert complaints == ["of the proof"] and [
        record.getMessage() for record in caplog.records
    ] == ["of another thread"]


def test_adapters_of_different_weights_go_to_the_host_in_one_layer(host, patcher):
    from lora_locksmith.nodes.patches import build_patches
    from lora_locksmith.planning.plan import make_plan

    tensors = {
        f"diffusion_model.{layer}.{role}": tensor
        for layer in ("linear", "square", "conv2")
        for role, tensor in dict(toy_layers.adapters(SHAPES[layer]))["lora"].tensors.items()
    }
    plan = make_plan(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {},
        host.target_model_of(patcher, None),
    )
    (layer,) = build_patches(plan, tensors).layers
    assert len(layer) == 3
