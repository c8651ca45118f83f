"""api.load_and_fix does what the node does, in every mode."""

from __future__ import annotations

import pytest
import torch
from lora_locksmith import api
from safetensors.torch import save_file

MODULE, WEIGHT = "double_blocks.0.img_mlp.0", "diffusion_model.double_blocks.0.img_mlp.0.weight"


@pytest.mark.parametrize(
    ("how", "patches"), [({}, 1), ({"bypass": True}, 0), ({"mode": "auto"}, 1)]
)
def test_it_loads_as_the_node_does(patched, tiny_flux, tmp_path, how, patches):
    generator, base = torch.Generator().manual_seed(3), tiny_flux()
    weight = base.model.state_dict()[WEIGHT].float()
    down = torch.randn(4, weight.shape[1], generator=generator)
    up = torch.randn(weight.shape[0], 4, generator=generator)
    pair = {f"nowhere.{MODULE}": down.clone()}
    name = f"transformer.{MODULE}"
    pair |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_file(pair, tmp_path / "x.safetensors")
    loaded, clip, report = api.load_and_fix(base, None, tmp_path / "x.safetensors", 0.5, **how)
    assert clip is None and report.modules["placed"] == 1 and len(report.unplaced()) == 1
    assert len(loaded.patches) == patches and not base.patches
    if patches:
        torch.testing.assert_close(patched(loaded)[WEIGHT], weight + 0.5 * up @ down)
