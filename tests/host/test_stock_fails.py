"""Files the stock loader raises on are loaded all the same, and every report says that it would
raise.
"""

from __future__ import annotations

import json

import pytest
import torch
from lora_locksmith.report.findings import findings_of
from lora_locksmith.report.inspection import inspect_file
from lora_locksmith.report.markdown import markdown
from safetensors.torch import save_file

SOUND = "diffusion_model.final_layer.linear"
BROKEN = "diffusion_model.img_in"


def lora(module: str, out: int, inner: int) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_down.weight": torch.randn(2, inner),
        f"{module}.lora_up.weight": torch.randn(out, 2),
    }


def parts(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {f"{BROKEN}.{role}": torch.ones(shape) for role, shape in shapes.items()}


# What the stock loader says of each: the words that are in its reason.
FAULTS = {
    "an orphan lora_up": (
        parts({"lora_up.weight": (128, 2)}),
        f"{BROKEN}.lora_down.weight is missing",
    ),
    "an orphan lora_B": (parts({"lora_B.weight": (128, 2)}), f"{BROKEN}.lora_A.weight is missing"),
    "a lone hada_w1_a": (parts({"hada_w1_a": (128, 2)}), "is missing"),
    "a LoHa without hada_w2_b": (
        parts({"hada_w1_a": (128, 2), "hada_w1_b": (2, 64), "hada_w2_a": (128, 2)}),
        f"{BROKEN}.hada_w2_b is missing",
    ),
    "a LoHa with one core": (
        parts(
            {
                "hada_w1_a": (2, 128),
                "hada_w1_b": (2, 64),
                "hada_w2_a": (2, 128),
                "hada_w2_b": (2, 64),
                "hada_t1": (2, 2, 1, 1),
            }
        ),
        f"{BROKEN}.hada_t2 is missing",
    ),
    "a GLoRA without b2": (
        parts({"a1.weight": (64, 2), "a2.weight": (2, 64), "b1.weight": (128, 2)}),
        f"{BROKEN}.b2.weight is missing",
    ),
    "an alpha of two numbers": (lora(BROKEN, 128, 64) | parts({"alpha": (2,)}), ""),
    "an alpha of none": (lora(BROKEN, 128, 64) | parts({"alpha": (0,)}), ""),
}


@pytest.fixture(params=FAULTS)
def broken(request, tmp_path):
    """(a file with a sound module and a broken one, words of why the stock loader raises on it)."""
    tensors, reason = FAULTS[request.param]
    telling = lora("diffusion_model.double_blocks.0.img_attn.qkv", 384, 128) | lora(
        "diffusion_model.single_blocks.0.linear1", 896, 128
    )
    save_file({**telling, **lora(SOUND, 64, 128), **tensors}, tmp_path / "broken.safetensors")
    return tmp_path / "broken.safetensors", reason


def test_the_load_stands_and_the_report_says_that_stock_fails(host, patched, tiny_flux, broken):
    path, reason = broken
    patcher, _, report = host.load_and_fix(tiny_flux(), None, path)
    assert f"{SOUND}.weight" in patched(patcher)
    text, told = str(report), json.loads(report.as_json())
    assert f"the stock loader fails on this file: {told['stock']['fails']}" in text
    assert reason in told["stock"]["fails"] and told["stock"]["placed"] == 0
    assert told["keys"]["placed"] >= 6


def test_the_stock_loader_does_raise(comfy, tiny_flux, broken):
    import comfy.sd
    import comfy.utils

    with pytest.raises((KeyError, RuntimeError)):
        comfy.sd.load_lora_for_models(
            tiny_flux(), None, comfy.utils.load_torch_file(str(broken[0]), safe_load=True), 1.0, 1.0
        )


def test_inspection_says_so(host, tiny_flux, broken):
    path, reason = broken
    for found in (
        host.inspect(tiny_flux(), None, path),
        inspect_file(path, host.target_model_of(tiny_flux(), None)),
    ):
        check(found, reason)


def check(found, reason):
    told = found.as_dict()["loads"]
    assert reason in told["stock"]["fails"] and told["stock"]["keys"] == 0
    assert (
        told["stock"]["fails"] in markdown(found).replace("\\", "")
        and "fails on this file" in found.verdict
    )
    assert "it loads, where the stock loader fails" in told["gains"]


def test_a_file_without_its_model(tmp_path):
    tensors = {}
    for name in ("attn.to_q", "attn.to_k", "attn.add_q_proj"):
        tensors |= lora(f"transformer.transformer_blocks.0.{name}", 3072, 3072)
    save_file(
        tensors | {"transformer.proj_out.lora_B.weight": torch.ones(64, 2)},
        tmp_path / "a.safetensors",
    )
    check(inspect_file(tmp_path / "a.safetensors"), "transformer.proj_out.lora_A.weight is missing")
    row = findings_of(tmp_path / "a.safetensors")
    assert (
        row.stock == 0
        and row.placed == 3
        and list(row.gains) == ["it loads, where the stock loader fails"]
    )


def test_a_file_that_stock_loads_is_not_said_to_fail(host, tiny_flux, tmp_path):
    save_file(lora(SOUND, 64, 128), tmp_path / "sound.safetensors")
    told = host.load_and_fix(tiny_flux(), None, tmp_path / "sound.safetensors")[2]
    assert told.as_dict()["stock"] == {"placed": 2, "modules": 1} and "fails" not in str(told)
