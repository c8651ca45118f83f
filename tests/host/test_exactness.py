"""Beside a layer every kind of adapter is exact on every base: no further off than the layer's own
output is (test_bases.py: patched).
"""

from __future__ import annotations

import pytest
import torch
from many_kinds import (
    SCALED_FP8,
    dense,
    deriving_kinds,
    plain_kinds,
    turning_kinds,
)
from safetensors.torch import save_file

CPU = torch.device("cpu")
KINDS = {
    "additive": plain_kinds,
    "turning the outputs": turning_kinds,
    "of the whole weight": deriving_kinds,
}
# base -> what the layers compute with
BASES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float32,
    SCALED_FP8: torch.float32,
    "float8_e4m3fn": torch.float32,
    "nvfp4": torch.float32,
    "mxfp8": torch.float32,
    "int8_tensorwise": torch.float32,
}


def parameters(model, name):
    """The weight and the bias (or zero) of a layer, dense and in fp32."""
    layer = model.model.get_submodule(name)
    return dense(layer.weight), torch.zeros(()) if layer.bias is None else dense(layer.bias)


def under(patcher, name, weight, bias):
    """The same under the patches, by the host's mathematics in fp32."""
    import comfy.lora

    changed = []
    for part, value in (("weight", weight), ("bias", bias)):
        entries = patcher.patches.get(f"{name}.{part}", [])
        changed.append(
            comfy.lora.calculate_weight(entries, value.clone(), name) if entries else value
        )
    return changed


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("adapters", KINDS)
def test_beside_a_layer(host, base, tmp_path, record_property, adapters, kind):
    """At most 1e-5 of the change and 3 times what the bare layer is off, against fp32 weights under
    the same adapters.
    """
    from lora_locksmith.nodes.bypass import Hung

    save_file(KINDS[adapters](), tmp_path / "x.safetensors")
    model = base(kind)
    patched = host.load_and_fix(model, None, tmp_path / "x.safetensors", 0.8)[0]
    loaded = host.load_and_fix(model, None, tmp_path / "x.safetensors", 0.8, bypass=True)[0]
    hung, worst = sorted(Hung.on(loaded).parts), 0.0
    assert {f"{name}.weight" for name in hung} == {
        name for name in patched.patches if name.endswith(".weight")
    }
    for name in hung:
        weight, bias = parameters(model, name)
        after_weight, after_bias = under(patched, name, weight, bias)
        x = torch.randn(7, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(
            BASES[kind]
        )
        layer = model.model.get_submodule(name)
        with torch.no_grad():
            before = layer(x).float()
            loaded.patch_model(CPU)
            after = layer(x).float()
            loaded.unpatch_model(CPU)
        bare, wanted = x.float() @ weight.T + bias, x.float() @ after_weight.T + after_bias
        change, own, error = (wanted - bare).norm(), (before - bare).norm(), (after - wanted).norm()
        # Where numbers have few bits, the new output is rounded as the old one is, and may be
        # larger.
        rounding = own * max(1.0, float(wanted.norm() / bare.norm()))
        assert change > 0 and error <= 1e-5 * change + 3 * rounding, name
        worst = max(worst, float(error / change))
    record_property(
        "measured", f"{adapters} beside {kind}: off by {worst:.1e} of the change at most"
    )
