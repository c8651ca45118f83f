"""Every command on files of every kind, with and without their model: only our own errors leave it,
and what it writes is finite.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import seeds
import torch
from lora_locksmith.commands import parser
from lora_locksmith.errors import LocksmithError
from lora_locksmith.lora.rewrite.rename import writable
from lora_locksmith.messages import Speaker
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))
PEFT = {
    "lora": ("LoraConfig", {"r": 4, "lora_alpha": 2}),
    "bias": ("LoraConfig", {"r": 4, "lora_bias": True}),
    "dora": ("LoraConfig", {"r": 4, "use_dora": True}),
    "loha": ("LoHaConfig", {"r": 4, "alpha": 2}),
    "lokr": ("LoKrConfig", {"r": 4, "alpha": 2, "decompose_both": True}),
    "oft": ("OFTConfig", {"oft_block_size": 16}),
    "ia3": ("IA3Config", {}),
}
LYCORIS = {
    "loha": {"algo": "loha"},
    "lokr": {"algo": "lokr", "factor": 4},
    "whole": {"algo": "lokr", "full_matrix": True},
    "full": {"algo": "full"},
    "norms": {"algo": "lora", "train_norm": True},
    "dora": {"algo": "loha", "weight_decompose": True},
    "glora": {"algo": "glora"},
}
ODD = (
    "tensor: numbers",
    "tensor: alpha",
    "tensor: rank",
    "tensor: role",
    "tensor: shape [4",
    "metadata lora_adapter",
)


def commands(path, out, against):
    """The arguments of every command that makes sense for one file."""
    yield "inspect", path, "--weights", *against
    yield "compare", path, path, "--weights"
    yield "compare", path, path, "--weights", "--json"
    for dialect in writable():
        yield (
            "fix",
            path,
            "--to",
            dialect,
            "--output",
            out / "fixed",
            "--overwrite",
            "--drop",
            *against,
        )
    yield (
        "fix",
        path,
        "--to",
        "kohya",
        "--dtype",
        "fp16",
        "--output",
        out / "fixed",
        "--overwrite",
        *against,
    )
    yield "fix", path, "--dry-run", *against
    for more in (
        (),
        ("--exact",),
        ("--rank", "2"),
        ("--energy", "0.9", "--dtype", "fp16"),
        ("--method", "ties"),
        ("--method", "slerp"),
    ):
        yield (
            "merge",
            path,
            f"{path}=-0.5",
            "-o",
            out / "merged.safetensors",
            "--overwrite",
            *more,
            *against,
        )
        yield "merge", path, f"{path}=0.5:0", "--dry-run", *more, *against
    yield "merge", path, "-o", out / "merged.safetensors", "--overwrite", "--to", "kohya", *against
    yield "merge", path, "-o", out / "merged.safetensors", "--overwrite", "--to", "peft", *against
    yield "resize", path, "-o", out / "small.safetensors", "--overwrite", "--rank", "2", *against
    yield (
        "resize",
        path,
        "-o",
        out / "small.safetensors",
        "--overwrite",
        "--energy",
        "0.9",
        "--dora",
        *against,
    )


def call(arguments) -> None:
    """Run a command as the command line does, but let what it raises be seen; only our own errors
    may.
    """
    options = parser.parser(Speaker()).parse_args([str(word) for word in arguments])
    try:
        assert options.run(options) in (0, 1, 2)
    except LocksmithError as error:
        assert len(str(error)) > 8


def go_over(path, out, against=()):
    for arguments in commands(path, out, against):
        call(arguments)
        for made in out.rglob("*.safetensors"):
            assert all(
                tensor.isfinite().all()
                for tensor in load_file(made).values()
                if tensor.dtype.itemsize > 1
            ), arguments
            made.unlink()


@pytest.fixture(scope="module")
def model(comfy, tmp_path_factory):
    """The tiny FLUX as a file."""
    from tiny_models import flux_state_dict

    path = tmp_path_factory.mktemp("model") / "flux.safetensors"
    save_file(
        {name: weight.float().contiguous() for name, weight in flux_state_dict().items()}, path
    )
    return path


@pytest.mark.parametrize("kind", ["plain_kinds", "turning_kinds", "deriving_kinds", "other_kinds"])
def test_every_kind_of_adapter(model, tmp_path, capsys, kind):
    import many_kinds

    path = tmp_path / "x.safetensors"
    save_file(getattr(many_kinds, kind)(), path)
    go_over(path, tmp_path / "out", ("--against", model))
    go_over(path, tmp_path / "out")


@pytest.mark.parametrize("name", PEFT)
def test_files_that_peft_writes(model, both, tmp_path, capsys, name):
    import peft
    from trainers import ATTENTION, trained_by_peft

    config, settings = PEFT[name]
    settings |= {"feedforward_modules": []} if name == "ia3" else {}
    trained_by_peft(
        both.twin, getattr(peft, config)(target_modules=ATTENTION, **settings)
    ).save_pretrained(tmp_path / name)
    go_over(tmp_path / name / "adapter_model.safetensors", tmp_path / "out", ("--against", model))


@pytest.mark.parametrize("name", LYCORIS)
def test_files_that_lycoris_writes(model, both, tmp_path, capsys, name):
    import copy

    from trainers import FLUX_PRESET, trained_by_lycoris

    network = trained_by_lycoris(copy.deepcopy(both.twin), FLUX_PRESET, tmp_path, LYCORIS[name])
    network.save_weights(tmp_path / "x.safetensors", torch.float32, {})
    go_over(tmp_path / "x.safetensors", tmp_path / "out", ("--against", model))


def test_odd_files(tmp_path, capsys):
    """Those of the corpus whose tensors are odd; all of it goes through each command's usual form
    in test_seeds.
    """
    path = tmp_path / "x.safetensors"
    for place, name in enumerate(
        name for name in seeds.CORPUS if any(word in name for word in ODD)
    ):
        path.write_bytes(seeds.CORPUS[name])
        for arguments in list(commands(path, tmp_path / "out", ()))[place % 4 :: 4]:
            call(arguments)
