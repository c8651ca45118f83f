"""Four LoRAs on a quantised model, on the real server: the picture changes as it does on the dense
weights that the quantised ones stand for.
"""

from __future__ import annotations

import json

import demo
import pytest
from many_kinds import dense, load_base, plain_kinds, write_base
from safetensors.torch import save, save_file

# Off by what of the change at most: an int8 layer rounds its inputs as well.
FORMS = {"int8_tensorwise": 5e-2, "float8_e4m3fn": 1e-5, "nvfp4": 1e-5}


@pytest.fixture(scope="module", params=FORMS)
def benches(request, comfy, bench):
    """The bench on a quantised model and on the dense one that it stands for, and the bound."""
    folder = bench.server.base / "models" / "diffusion_models"
    stored = write_base(folder / f"{request.param}.safetensors", request.param)
    model = load_base(stored, request.param).model.diffusion_model
    stands_for = {name: dense(weight).contiguous() for name, weight in model.named_parameters()}
    twin = folder / f"{request.param}_dense.safetensors"
    save_file(stands_for, twin)
    yield bench.on_model(stored.name), bench.on_model(twin.name), FORMS[request.param]
    stored.unlink()
    twin.unlink()


@pytest.fixture
def rows(lora_file):
    for number in range(4):
        lora_file(f"quantised {number}.safetensors", save(plain_kinds(number)))
    return [
        {"on": True, "name": f"quantised {number}.safetensors", "strength": 0.3}
        for number in range(4)
    ]


def test_the_change_is_that_of_the_dense_weights(benches, rows):
    quantised, twin, bound = benches
    truth = twin.stack(rows, mode="patch").latent - twin.bare()
    alone = quantised.bare()

    def off(mode):
        result = quantised.stack(rows, mode=mode)
        told = result.entry["outputs"][demo.loader_id(quantised.prompt)]
        document = json.loads(told["report_json"][0])
        assert document["placed"] == document["total"] > 0
        return float((result.latent - alone - truth).norm() / truth.norm()), document

    beside, document = off("auto")
    patched, _ = off("patch")
    print(f"off by {beside:.1e} of the change beside the layers, {patched:.1e} patched")
    assert all("quantized" in one["acts"] for one in document["rows"])
    assert beside < bound and beside < 0.7 * patched
