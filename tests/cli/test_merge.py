"""The command merge on real files, as it is run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

CLI = Path(__file__).resolve().parents[2] / "cli.py"
WIDTH = 3072


@pytest.fixture
def files(tmp_path):
    """Two FLUX.1 LoRAs of rank 1 and 2, of diffusers' and of ComfyUI's names, on the same layer."""
    one = {"transformer.transformer_blocks.0.ff.net.0.proj": 1}
    two = {"diffusion_model.double_blocks.0.img_mlp.0": 2}
    for name, modules in (("one", one), ("two", two)):
        tensors = {}
        for module, rank in modules.items():
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, WIDTH)
            tensors[f"{module}.lora_B.weight"] = torch.randn(4 * WIDTH, rank)
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata={"ss_tag": "x", "ss_network_dim": str(rank), "author": name})
    return tmp_path


def run(folder, *arguments):
    """(exit code, standard output, standard error)."""
    done = subprocess.run([sys.executable, CLI, "merge", *arguments], capture_output=True, text=True, cwd=folder)
    return done.returncode, done.stdout, done.stderr


def test_merge_writes_tells_and_does_not_overwrite(files):
    arguments = ("one.safetensors=0.5", "two.safetensors=-2:0.1", "-o", "out.safetensors", "--blocks", "2", "double_blocks=0.5")
    code, text, _ = run(files, *arguments)
    assert code == 0 and "2 LoRAs merged by weighted sum: 1 weight of rank 3" in text
    with safe_open(files / "out.safetensors", "pt") as made:
        name = "diffusion_model.double_blocks.0.img_mlp.0"
        change = made.get_tensor(f"{name}.lora_up.weight").double() @ made.get_tensor(f"{name}.lora_down.weight").double()
        told = made.metadata()
    expected = 0.0
    for file, module, factor in (("one", "transformer.transformer_blocks.0.ff.net.0.proj", 0.5), ("two", name, -1.0)):
        with safe_open(files / f"{file}.safetensors", "pt") as source:
            up, down = (source.get_tensor(f"{module}.lora_{side}.weight").double() for side in "BA")
            expected = expected + factor * up @ down
    assert (change - expected).norm() < 1e-6 * expected.norm()
    assert told["ss_tag"] == "x" and "ss_network_dim" not in told and "author" not in told
    made_of = json.loads(told["locksmith.merge"])["sources"]
    assert [entry["name"] for entry in made_of] == ["one.safetensors", "two.safetensors"] and len(made_of[0]["sha256"]) == 64
    code, _, fault = run(files, *arguments)
    assert code == 2 and "out.safetensors" in fault and "Nothing was written" in fault


def test_dry_run_writes_nothing_and_speaks_json(files):
    code, text, _ = run(files, "one.safetensors", "two.safetensors=1", "--dry-run", "--rank", "2", "--json")
    told = json.loads(text)
    assert code == 0 and told["forecast"] and sorted(path.name for path in files.iterdir()) == ["one.safetensors", "two.safetensors"]
    assert told["weights"][0]["rank"] == 2 and 0 < told["kept"] < 1 and abs(told["weights"][0]["meetings"][0]["cosine"]) < 0.1


@pytest.mark.parametrize(
    "arguments, fault",
    [
        (["one.safetensors=1", "-o", "x", "--method", "best"], "no method 'best'"),
        (["one.safetensors=1", "-o", "x", "--method", "ties", "--set", "density=7"], "density"),
        (["one.safetensors=1"], "-o"),
        (["none.safetensors=1", "-o", "x"], "no such file"),
        (["one.safetensors=1", "-o", "x", "--blocks", "2", "te=0"], "from 1 to 1"),
        (["one.safetensors=1", "-o", "x", "--blocks", "1", "single_blocks=0"], "matches no module"),
    ],
)
def test_what_is_wrong_is_one_line(files, arguments, fault):
    code, _, text = run(files, *arguments)
    assert code == 2 and fault in text and "Traceback" not in text and not (files / "x").exists()
