"""The command merge on real files, as it is run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_locksmith.commands import parser
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import flux_state_dict

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
        about = {"ss_tag": "x", "ss_network_dim": str(rank)} | (
            {"ss_base_model_version": "flux1"} if name == "one" else {}
        )
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata=about | {"author": name})
    return tmp_path


def run(folder, *arguments):
    """(exit code, standard output, standard error)."""
    done = subprocess.run(
        [sys.executable, CLI, "merge", *arguments], capture_output=True, text=True, cwd=folder
    )
    return done.returncode, done.stdout, done.stderr


def test_merge_writes_tells_and_does_not_overwrite(files):
    arguments = (
        "one.safetensors=0.5",
        "two.safetensors=-2:0.1",
        "-o",
        "out.safetensors",
        "--blocks",
        "2",
        "double_blocks=0.5",
    )
    code, text, _ = run(files, *arguments)
    assert code == 0 and "2 LoRAs merged by weighted sum: 1 weight of rank 3" in text
    with safe_open(files / "out.safetensors", "pt") as made:
        name = "diffusion_model.double_blocks.0.img_mlp.0"
        change = (
            made.get_tensor(f"{name}.lora_up.weight").double()
            @ made.get_tensor(f"{name}.lora_down.weight").double()
        )
        told = made.metadata()
    expected = 0.0
    for file, module, factor in (
        ("one", "transformer.transformer_blocks.0.ff.net.0.proj", 0.5),
        ("two", name, -1.0),
    ):
        with safe_open(files / f"{file}.safetensors", "pt") as source:
            up, down = (source.get_tensor(f"{module}.lora_{side}.weight").double() for side in "BA")
            expected = expected + factor * up @ down
    assert (change - expected).norm() < 1e-6 * expected.norm()
    assert told["ss_tag"] == "x" and "ss_network_dim" not in told and "author" not in told
    assert told["locksmith.family"] == "flux1", "Chroma has these names too"
    made_of = json.loads(told["locksmith.merge"])["sources"]
    assert [entry["name"] for entry in made_of] == ["one.safetensors", "two.safetensors"] and len(
        made_of[0]["sha256"]
    ) == 64
    code, _, fault = run(files, *arguments)
    assert code == 2 and "out.safetensors" in fault and "Nothing was written" in fault


def split_attention(rank, seed):
    """A LoRA on q, k and v of one block, as trainers with diffusers' names have it."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name in ("to_q", "to_k", "to_v"):
        module = f"transformer.transformer_blocks.0.attn.{name}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, WIDTH, generator=generator)
        tensors[f"{module}.lora_B.weight"] = torch.randn(WIDTH, rank, generator=generator)
    return tensors


def test_in_split_names_a_merge_has_the_ranks_of_its_sources(tmp_path):
    sources = {"one": split_attention(2, 1), "two": split_attention(3, 2)}
    for name, tensors in sources.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    code, text, _ = run(
        tmp_path,
        "one.safetensors=0.5",
        "two.safetensors",
        "-o",
        "out.safetensors",
        "--to",
        "ai_toolkit",
        "--json",
    )
    assert code == 0 and json.loads(text)["written"] == "out.safetensors"
    made = load_file(tmp_path / "out.safetensors")
    assert made.keys() == sources["one"].keys() and {
        tensor.shape[0] for name, tensor in made.items() if "lora_A" in name
    } == {5}
    for name in [name for name in made if "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        expected = sum(
            factor * sources[file][other].double() @ sources[file][name].double()
            for file, factor in (("one", 0.5), ("two", 1))
        )
        assert (
            made[other].double() @ made[name].double() - expected
        ).norm() < 1e-6 * expected.norm()
    assert run(tmp_path, "one.safetensors", "-o", "out.safetensors", "--to", "ai_toolkit")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one.safetensors",
        "out.safetensors",
        "two.safetensors",
    ]


def test_dora_is_folded_into_the_weights_of_a_model_file(tmp_path, comfy):
    model = {name: weight.float() for name, weight in flux_state_dict().items()}
    save_file(model, tmp_path / "model.safetensors")
    name = "double_blocks.1.img_mlp.0"
    weight = model[f"{name}.weight"]
    down, up, magnitude = (
        torch.randn(2, weight.shape[1]),
        torch.randn(weight.shape[0], 2),
        torch.rand(weight.shape[0]) + 0.5,
    )
    roles = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": magnitude}
    save_file(
        {f"diffusion_model.{name}.{role}": tensor for role, tensor in roles.items()},
        tmp_path / "dora.safetensors",
    )
    arguments = (
        "dora.safetensors=0.5",
        "-o",
        "out.safetensors",
        "--rank",
        "128",
        "--against",
        "model.safetensors",
    )
    code, _, fault = run(tmp_path, *arguments)
    assert code == 0, fault
    direction = weight.double() + up.double() @ down.double()
    turned = (
        magnitude.double()[:, None]
        * direction
        / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    )
    change = load_file(tmp_path / "out.safetensors")[
        f"diffusion_model.{name}.diff"
    ].double()  # of full rank, so no factors
    assert (change - 0.5 * (turned - weight.double())).norm() < 1e-5 * change.norm()


def test_a_name_without_an_ending_gets_the_one_that_comfyui_lists(files):
    code, text, _ = run(files, "one.safetensors", "two.safetensors", "-o", "v1.5 mix", "--json")
    assert (
        code == 0
        and (files / "v1.5 mix.safetensors").is_file()
        and not (files / "v1.5 mix").exists()
    )
    assert json.loads(text)["written"].endswith("v1.5 mix.safetensors")
    assert run(files, "one.safetensors", "two.safetensors", "-o", "v1.5 mix")[0] == 2, (
        "it is there already"
    )


def test_dry_run_writes_nothing_and_speaks_json(files):
    code, text, _ = run(
        files, "one.safetensors", "two.safetensors=1", "--dry-run", "--rank", "2", "--json"
    )
    told = json.loads(text)
    assert (
        code == 0
        and told["forecast"]
        and sorted(path.name for path in files.iterdir()) == ["one.safetensors", "two.safetensors"]
    )
    assert (
        told["weights"][0]["rank"] == 2
        and 0 < told["kept"] < 1
        and abs(told["weights"][0]["meetings"][0]["cosine"]) < 0.1
    )


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


def test_a_fault_is_json_where_json_is_asked_and_else_does_nothing_to_the_terminal(
    files, monkeypatch, capsys
):
    monkeypatch.chdir(files)
    assert parser.run(["merge", "none.safetensors", "-o", "x", "--json"]) == 2
    assert "no such file" in json.loads(capsys.readouterr().out)["error"]
    assert parser.run(["merge", "one.safetensors", "-o", "gone\x1b[2J/x"]) == 2
    assert "gone\\x1b[2J" in capsys.readouterr().err
