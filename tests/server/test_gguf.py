"""Four LoRAs on a GGUF model, loaded by the real ComfyUI-GGUF on the real server: the picture
changes as it does on the dense weights that the packed ones stand for.

LOCKSMITH_GGUF names a folder with that pack (github.com/city96/ComfyUI-GGUF), and `gguf` of PyPI
must be installed; without it there is nothing to try. At 795e451 with ComfyUI 0.30.0 the change of
four LoRAs is off by 6e-7 of itself beside the layers and by nothing patched, on Q8_0 and on Q4_0.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import demo
import pytest
import torch
from many_kinds import plain_kinds
from safetensors.torch import save_file
from tiny_models import flux_state_dict

PACK = os.environ.get("LOCKSMITH_GGUF", "")
LORAS = [f"gguf {number}.safetensors" for number in range(4)]
ROWS = [{"on": True, "name": name, "strength": 0.3} for name in LORAS]

pytestmark = pytest.mark.skipif(not PACK, reason="LOCKSMITH_GGUF names no folder of ComfyUI-GGUF")


@pytest.fixture(scope="module")
def gguf_bench(own_bench):
    """The bench on a server that has ComfyUI-GGUF beside this pack."""
    assert (Path(PACK) / "ops.py").is_file(), f"LOCKSMITH_GGUF is {PACK}, but that is no such pack"
    with own_bench(Path(PACK)) as bench:
        for number, name in enumerate(LORAS):
            save_file(plain_kinds(number), bench.loras / name)
        yield bench


@pytest.fixture(scope="module", params=["Q8_0", "Q4_0"])
def packed(request, gguf_bench):
    """The bench on a GGUF model, its latent without a LoRA, and what four LoRAs change on the dense
    model that it stands for.
    """
    folder = gguf_bench.server.base / "models" / "diffusion_models"
    name = f"{request.param}.gguf"
    save_file(write_gguf(folder / name, request.param), folder / "twin.safetensors")
    bench, twin = gguf_bench.on_model(name), gguf_bench.on_model("twin.safetensors")
    loader = next(spec for spec in bench.prompt.values() if spec["class_type"] == "UNETLoader")
    loader["class_type"], loader["inputs"] = "UnetLoaderGGUF", {"unet_name": name}
    return bench, bench.bare(), twin.stack(ROWS, mode="patch").latent - twin.bare()


def write_gguf(path: Path, form: str) -> dict[str, torch.Tensor]:
    """A FLUX with one block of each sort, its blocks' matrices in this form; what they stand for."""
    import gguf

    kind, writer = gguf.GGMLQuantizationType[form], gguf.GGUFWriter(str(path), "flux")
    stands_for = {}
    for name, weight in flux_state_dict(double_blocks=1, single_blocks=1).items():
        values = weight.float().numpy()
        if weight.ndim == 2 and "_blocks." in name:
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            # The pack unpacks to fp16 unless told otherwise.
            values = gguf.quants.dequantize(packed, kind).astype("float16").astype("float32")
        else:
            writer.add_tensor(name, values)
        stands_for[name] = torch.from_numpy(values).contiguous()
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
    ):
        write()
    writer.close()
    return stands_for


@pytest.mark.parametrize("mode", ["auto", "bypass", "patch"])
def test_the_change_is_that_of_the_dense_weights(packed, mode, record_property):
    bench, alone, truth = packed
    result = bench.stack(ROWS, mode=mode)
    told = result.entry["outputs"][demo.loader_id(bench.prompt)]["report_json"][0]
    document = json.loads(told)
    assert document["placed"] == document["total"] > 0
    off = float((result.latent - alone - truth).norm() / truth.norm())
    record_property("measured", f"GGUF, {mode}: off by {off:.1e} of the change of four LoRAs")
    assert off < 1e-5
    told = ["weights are packed (GGUF)" in one.get("acts", "") for one in document["rows"]]
    assert told == [mode == "auto"] * 4


def test_nothing_is_left_on_the_model(packed):
    bench, alone, _ = packed
    bench.stack(ROWS, mode="auto")
    assert torch.equal(bench.bare(), alone)
