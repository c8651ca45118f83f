"""The library that other programs call: what it promises, on real files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_locksmith import api
from reports.small_files import flux_lora, write_file
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def lora(tmp_path):
    folder = tmp_path / "some folder"
    folder.mkdir()
    return write_file(folder / "a \u00e9.safetensors", flux_lora(start="transformer."))


@pytest.fixture
def pair(tmp_path):
    """Two LoRAs of one FLUX.1 module, under the names of different tools."""
    generator = torch.Generator().manual_seed(3)
    paths = []
    for name, down, up in (
        ("lora_unet_single_blocks_0_linear2", "lora_down.weight", "lora_up.weight"),
        ("transformer.single_transformer_blocks.0.proj_out", "lora_A.weight", "lora_B.weight"),
    ):
        tensors = {
            f"{name}.{down}": torch.randn(4, 15360, generator=generator),
            f"{name}.{up}": torch.randn(3072, 4, generator=generator),
        }
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def test_everything_it_names_is_there():
    for name in api.__all__:
        assert getattr(api, name).__doc__, name


def test_a_file_is_inspected_and_planned(lora):
    inspection = api.inspect_file(lora)
    assert inspection.family.name == "flux1"
    assert api.make_plan(lora).adapters == inspection.plan.adapters
    (row,) = api.scan(lora.parent)
    assert row.findings.family == inspection.family.name


def test_a_file_is_converted_and_its_source_stays(pair, tmp_path):
    before = pair[0].read_bytes()
    written = api.convert(pair[0], tmp_path / "new.safetensors", "diffusers")
    assert all(key.startswith("transformer.") for key in load_file(written.path))
    assert pair[0].read_bytes() == before
    with pytest.raises(FileExistsError):
        api.convert(pair[0], tmp_path / "new.safetensors", "diffusers")
    with pytest.raises(api.LocksmithError, match="nowhere"):
        api.convert(pair[0], tmp_path / "other.safetensors", "nowhere")


def test_files_of_two_tools_are_merged_exactly(pair, tmp_path):
    report = api.merge({pair[0]: 0.5, pair[1]: -1.0}, tmp_path / "sum.safetensors")
    assert report.is_whole
    made = load_file(tmp_path / "sum.safetensors")
    up, down = (
        next(value for key, value in made.items() if part in key) for part in ("up", "down")
    )
    first, second = (change(load_file(path)) for path in pair)
    torch.testing.assert_close(up @ down, 0.5 * first - second, rtol=1e-4, atol=1e-3)


def change(factors):
    up, down = sorted(factors.values(), key=lambda tensor: tensor.shape[1])
    return up @ down


def test_a_file_is_resized(pair, tmp_path):
    made = api.resize(pair[0], tmp_path / "small.safetensors", rank=2)
    assert {tensor.shape[0] for name, tensor in made.tensors.items() if "down" in name} == {2}
    with pytest.raises(ValueError, match="rank"):
        api.resize(pair[0], tmp_path / "none.safetensors")


def test_headers_are_read_without_torch(lora):
    code = (
        "import sys; from lora_locksmith import api; api.inspect_file(sys.argv[1]);"
        " list(api.scan(sys.argv[2])); assert not {'torch', 'comfy'} & set(sys.modules)"
    )
    place = lora.parent / "package"
    place.mkdir()
    (place / "lora_locksmith").symlink_to(ROOT, target_is_directory=True)
    command = [sys.executable, "-c", code, lora, lora.parent]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(place)})
