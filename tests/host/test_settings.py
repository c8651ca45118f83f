"""Settings and alphas that make no sense, in the real ComfyUI: no exception, no NaN in a weight,
and a word on each.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

MODULE = "diffusion_model.final_layer.linear"
WEIGHT = MODULE + ".weight"


def factors(kind):
    """An adapter of this kind for a weight of 64 x 128, and what it adds at a scale of 1 (None:
    what depends on the weight).
    """
    torch.manual_seed(4)
    shapes = {
        "lora": {"lora_down.weight": (4, 128), "lora_up.weight": (64, 4)},
        "loha": {
            "hada_w1_a": (64, 4),
            "hada_w1_b": (4, 128),
            "hada_w2_a": (64, 4),
            "hada_w2_b": (4, 128),
        },
        "lokr": {"lokr_w1": (8, 8), "lokr_w2_a": (8, 4), "lokr_w2_b": (4, 16)},
        "full lokr": {"lokr_w1": (8, 8), "lokr_w2": (8, 16)},
        "oft": {"oft_blocks": (8, 8, 8)},
    }[kind]
    tensors = {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    if kind == "full lokr":
        return tensors, torch.kron(tensors["lokr_w1"], tensors["lokr_w2"])
    return tensors, None


ALPHAS = {
    "NaN": torch.tensor(math.nan),
    "infinite": torch.tensor(math.inf),
    "infinite in fp16": torch.tensor(1e10).half(),
    "1e308": torch.tensor(1e308, dtype=torch.float64),
    "1e38": torch.tensor(1e38),
    "two": torch.tensor([4.0, 4.0]),
    "none": torch.zeros(0),
    "complex": torch.tensor(4 + 1j),
    "bool": torch.tensor(True),
}


def loaded(host, patched, base, tmp_path, tensors, ending=".safetensors", metadata=None):
    path = tmp_path / f"x{ending}"
    named = {f"{MODULE}.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    if ending == ".safetensors":
        save_file(named, path, metadata)
    else:
        torch.save(named, path)
    patcher, _, report = host.load_and_fix(base, None, path)
    return patched(patcher), report


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ALPHAS)
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_an_adapter_whose_alpha_says_nothing_is_refused_and_told(
    host, patched, tiny_flux, tmp_path, kind, name, ending
):
    weights, report = loaded(
        host, patched, tiny_flux(), tmp_path, factors(kind)[0] | {"alpha": ALPHAS[name]}, ending
    )
    assert not weights
    told = json.dumps(report.unplaced())
    assert "alpha" in told and ("gives no strength" in told or "should be one number" in told)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ALPHAS)
def test_alpha_does_not_count_where_both_factors_are_whole(
    host, patched, tiny_flux, tmp_path, name, ending
):
    base = tiny_flux()
    tensors, change = factors("full lokr")
    weights, _ = loaded(host, patched, base, tmp_path, tensors | {"alpha": ALPHAS[name]}, ending)
    before = base.model.state_dict()[WEIGHT].float()
    torch.testing.assert_close(weights[WEIGHT] - before, change, rtol=1e-3, atol=1e-4)


def test_an_infinite_limit_is_none(host, patched, tiny_flux, tmp_path):
    base, (tensors, _) = tiny_flux(), factors("oft")
    free, _ = loaded(host, patched, base, tmp_path, tensors)
    unlimited, _ = loaded(host, patched, base, tmp_path, tensors | {"alpha": ALPHAS["infinite"]})
    assert torch.equal(free[WEIGHT], unlimited[WEIGHT]) and free[WEIGHT].isfinite().all()
    refused, report = loaded(host, patched, base, tmp_path, tensors | {"alpha": ALPHAS["NaN"]})
    assert not refused and "gives no strength" in json.dumps(report.unplaced())


SETTINGS = {
    "num_cayley_neumann_terms": [5.5, 10**400, -7, True, 10_000_000, math.nan, 0, "5,5", []],
    "eps": [math.nan, 10**400, -1, True, 1e308, {}],
    "coft": ["yes", 7, math.nan],
    "use_cayley_neumann": ["no", 2, []],
}


@pytest.mark.parametrize(
    "name, value",
    [(name, value) for name, values in SETTINGS.items() for value in values],
    ids=lambda one: str(one)[:20],
)
def test_a_setting_out_of_its_range_is_the_default_and_told(
    host, patched, tiny_flux, tmp_path, name, value
):
    base, tensors = (
        tiny_flux(),
        {"oft_R.weight": torch.randn(16, 28, generator=torch.Generator().manual_seed(2)) * 0.01},
    )
    told = {"peft_type": "OFT", "coft": True} | {name: value}
    usual = {key: setting for key, setting in told.items() if key != name}
    weights, report = loaded(
        host, patched, base, tmp_path, tensors, metadata={"lora_adapter_metadata": json.dumps(told)}
    )
    expected, plain = loaded(
        host,
        patched,
        base,
        tmp_path,
        tensors,
        metadata={"lora_adapter_metadata": json.dumps(usual)},
    )
    assert torch.equal(weights[WEIGHT], expected[WEIGHT]) and weights[WEIGHT].isfinite().all()
    assert name in report.as_dict()["cautions"][0] and not plain.as_dict()["cautions"]
