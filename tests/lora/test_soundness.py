"""NaN, infinity and all zeros are found in files of every dtype, wholly in small ones and by a
sample in large ones.
"""

from __future__ import annotations

import pytest
import torch
from lora_locksmith.files.header import LoraFileError, read_header
from lora_locksmith.lora import soundness
from lora_locksmith.lora.io.mapped import map_tensors
from lora_locksmith.lora.soundness import (
    SAMPLED,
    WHOLE,
    Look,
    cautions,
    look_at_file,
    look_at_tensors,
)
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network
from safetensors.torch import save_file

FLOATS = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
SITE = TargetModel(
    [
        denoiser_network(
            {
                f"diffusion_model.double_blocks.{block}.img_mlp.0.weight": (512, 128)
                for block in range(40)
            }
        )
    ]
)


def lora(
    count: int = 2, rank: int = 4, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    made = {}
    for block in range(count):
        name = f"diffusion_model.double_blocks.{block}.img_mlp.0"
        made |= {
            f"{name}.lora_A.weight": torch.randn(rank, 128).to(dtype),
            f"{name}.lora_B.weight": torch.randn(512, rank).to(dtype),
        }
    return made


def told(tensors: dict[str, torch.Tensor], path) -> tuple[Look, tuple[str, ...]]:
    """(how it was looked at, what is said), the same from the file and from memory."""
    save_file(tensors, path)
    header = read_header(path)
    plan, look = make_plan(header.tensors, header.metadata, SITE), look_at_file(path, header)
    assert look_at_tensors(tensors).finite == look.finite
    return look, cautions(plan, map_tensors(path, header), look)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_nan_anywhere_in_a_small_file(tmp_path, dtype):
    tensors = lora(dtype=dtype)
    assert told(tensors, tmp_path / "a.safetensors") == (Look(WHOLE, True), ())
    key = list(tensors)[3]
    tensors[key] = tensors[key].float()
    tensors[key][77, 2] = torch.nan
    tensors[key] = tensors[key].to(dtype)
    look, (sentence,) = told(tensors, tmp_path / "a.safetensors")
    assert not look.finite and sentence.startswith(f"1 tensor holds NaN ({key})")


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinite_values_and_how_many_tensors_hold_them(tmp_path, value):
    tensors = lora(5)
    for tensor in tensors.values():
        tensor[1, 1] = value
    look, (sentence,) = told(tensors, tmp_path / "a.safetensors")
    assert (
        not look.finite
        and sentence.startswith("10 tensors hold infinite values (")
        and " ...)" in sentence
    )


@pytest.mark.parametrize("count", [2, 40])
@pytest.mark.parametrize("ends", [(0, 0), (-1, -1)], ids=["first", "last"])
def test_a_large_file_is_sampled_and_called_sampled(tmp_path, monkeypatch, count, ends):
    """Every tensor NaN, as a failed training leaves it: but for one number of each."""
    monkeypatch.setattr(soundness, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(soundness, "READS", 50)
    tensors = lora(count)
    assert told(tensors, tmp_path / "a.safetensors") == (Look(SAMPLED, True), ())
    for tensor in tensors.values():
        tensor[ends] = torch.nan
    look, (sentence,) = told(tensors, tmp_path / "a.safetensors")
    assert look == (SAMPLED, False) and sentence.startswith(f"{2 * count} tensors hold NaN")


def test_small_tensors_of_a_large_file_are_looked_at_wholly(tmp_path, monkeypatch):
    monkeypatch.setattr(soundness, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(soundness, "READS", 50)
    for number in range(40):
        tensors = lora(40)
        tensors |= {
            f"diffusion_model.double_blocks.{block}.img_mlp.0.alpha": torch.tensor(1.0)
            for block in range(40)
        }
        key = f"diffusion_model.double_blocks.{number}.img_mlp.0.alpha"
        tensors[key] = torch.tensor(torch.nan)
        save_file(tensors, tmp_path / "a.safetensors")
        assert look_at_file(
            tmp_path / "a.safetensors", read_header(tmp_path / "a.safetensors")
        ) == (SAMPLED, False)
    assert key in told(tensors, tmp_path / "a.safetensors")[1][0]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_file_that_changes_nothing(tmp_path, dtype):
    tensors = lora(3, dtype=dtype)
    ups = [key for key in tensors if "lora_B" in key]
    for key in ups[:2]:
        tensors[key].zero_()
    assert (
        told(tensors, tmp_path / "a.safetensors")[1] == ()
    )  # parts that were not trained are nothing odd
    tensors[ups[2]].zero_()
    look, (sentence,) = told(tensors, tmp_path / "a.safetensors")
    assert (
        look.finite
        and sentence.startswith("This file changes nothing: all of its 3 adapters are zero")
        and ups[0] in sentence
    )
    tensors[f"{ups[0].removesuffix('.lora_B.weight')}.dora_scale"] = torch.ones(512, 1, dtype=dtype)
    assert (
        told(tensors, tmp_path / "a.safetensors")[1] == ()
    )  # magnitudes may have been trained alone


def test_an_infinite_alpha_that_does_not_count(tmp_path):
    """AI-Toolkit writes it for a LoKr of full factors."""
    name = "diffusion_model.double_blocks.0.img_mlp.0"
    lokr = {
        f"{name}.lokr_w1": torch.randn(4, 4),
        f"{name}.lokr_w2": torch.randn(128, 32),
        f"{name}.alpha": torch.tensor(torch.inf),
    }
    assert told(lokr, tmp_path / "a.safetensors")[1] == ()
    assert (
        "infinite"
        in told(lora() | {f"{name}.alpha": torch.tensor(torch.inf)}, tmp_path / "a.safetensors")[1][
            0
        ]
    )


def test_whole_numbers_and_nothing_at_all(tmp_path):
    assert (
        told(
            {"a": torch.zeros(3, dtype=torch.int32), "b": torch.zeros(0)},
            tmp_path / "a.safetensors",
        )[1]
        == ()
    )
    assert told({}, tmp_path / "b.safetensors") == (Look(WHOLE, True), ())


def test_another_file_under_the_name(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(lora(), path)
    header = read_header(path)
    save_file(lora(3), path)
    with pytest.raises(LoraFileError, match="another file"):
        look_at_file(path, header)
