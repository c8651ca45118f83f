"""What happens to a LoRA's file on disk after it was loaded, and numbers in it that are none: seen
in the log and in the report.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil

import pytest
import torch
from lora_locksmith.files.header import LoraFileError
from lora_locksmith.lora import soundness
from lora_locksmith.lora.io import watch
from safetensors.torch import load_file, save_file

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows overwrites no file that is mapped")
NAME = "diffusion_model.double_blocks.0.img_attn.proj"


def lora(rank: int = 4) -> dict[str, torch.Tensor]:
    return {
        f"{NAME}.lora_A.weight": torch.randn(rank, 128),
        f"{NAME}.lora_B.weight": torch.randn(128, rank),
    }


@pytest.fixture
def file(tmp_path, monkeypatch, host):
    monkeypatch.setattr(watch, "SECONDS", 0.0)
    host.forget()
    path = tmp_path / "x.safetensors"
    save_file(lora(), path)
    return path


def overwrite(path, keep: int | None = None) -> None:
    """As a program that saves into the file it saved into before."""
    about = path.stat()
    with open(path, "r+b") as opened:
        opened.seek(about.st_size - 256)
        opened.write(b"\0" * 256)
        if keep is not None:
            opened.truncate(keep)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))


def forward(patcher):
    """What goes through the layer under its hooks."""
    layer = patcher.model.get_submodule(NAME)
    patcher.inject_model()
    try:
        return layer(torch.ones(1, 128))
    finally:
        patcher.eject_model()


def using(patched, bypass: bool):
    return forward if bypass else patched


@POSIX
@pytest.mark.parametrize("bypass", [False, True], ids=["patch", "bypass"])
def test_a_file_that_is_overwritten_before_it_is_used_is_named(
    host, tiny_flux, patched, file, caplog, bypass
):
    patcher, _, report = host.load_and_fix(tiny_flux(), None, file, bypass=bypass)
    assert not report.cautions
    overwrite(file)
    with caplog.at_level(logging.WARNING):
        using(patched, bypass)(patcher)
    assert "x.safetensors was overwritten on disk after it was loaded" in caplog.text
    _, _, report = host.load_and_fix(tiny_flux(), None, file)
    assert [caution for caution in report.as_dict()["cautions"] if "was overwritten" in caution]
    assert "was overwritten" in str(report)


@POSIX
@pytest.mark.parametrize("bypass", [False, True], ids=["patch", "bypass"])
def test_a_file_that_is_cut_short_before_it_is_used_does_not_end_the_process(
    host, tiny_flux, patched, file, bypass
):
    patcher, _, _ = host.load_and_fix(tiny_flux(), None, file, bypass=bypass)
    overwrite(file, 100)
    with pytest.raises(
        LoraFileError,
        match=r"x\.safetensors: it was cut short on disk while it was in use.*Run again",
    ):
        using(patched, bypass)(patcher)


def test_our_own_adapters_look_too(host, tiny_flux, patched, file):
    save_file(lora() | {f"{NAME}.dora_scale": torch.rand(128, 1)}, file)
    patcher, _, _ = host.load_and_fix(tiny_flux(), None, file)
    overwrite(file, 100)
    with pytest.raises(LoraFileError, match="cut short"):
        patched(patcher)


def test_a_copy_of_the_model_looks_too(host, tiny_flux, patched, file):
    """The host copies adapters by their keys and weights."""
    import comfy.weight_adapter

    patcher, _, _ = host.load_and_fix(tiny_flux(), None, file)
    ((entry,),) = patcher.patches.values()
    adapter = entry[1]
    assert isinstance(adapter, comfy.weight_adapter.LoRAAdapter) and adapter.loaded_keys == set(
        lora()
    )
    patcher.patches = {
        key: [(1.0, copied, 1.0, None, None)]
        for key in patcher.patches
        for copied in [copy.deepcopy(adapter)]
    }
    again = type(adapter)(adapter.loaded_keys, adapter.weights)
    overwrite(file, 100)
    for one in (again, patcher.patches[f"{NAME}.weight"][0][1]):
        with pytest.raises(LoraFileError, match="cut short"):
            one.calculate_weight(torch.zeros(128, 128), "", 1.0, 1.0, None, lambda change: change)


@POSIX
def test_another_file_of_the_same_size_and_time_is_read_anew(host, file, tmp_path):
    host._files.read(file)
    other, about = tmp_path / "other.safetensors", file.stat()
    save_file(lora(), other)
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    os.replace(other, file)
    read, there = host._files.read(file).tensors, load_file(file)
    assert all(torch.equal(read[key], there[key]) for key in there)


@pytest.mark.parametrize(
    "value, word", [(torch.nan, "NaN"), (torch.inf, "infinite values")], ids=["nan", "inf"]
)
def test_one_number_that_is_none_is_a_caution(host, tiny_flux, file, value, word):
    tensors = lora()
    tensors[f"{NAME}.lora_B.weight"][77, 3] = value
    save_file(tensors, file)
    _, _, report = host.load_and_fix(tiny_flux(), None, file)
    told = json.loads(report.as_json())
    assert told["modules"] == {"placed": 1, "total": 1} and told["checked"] == "all"
    assert any(
        f"1 tensor holds {word} ({NAME}.lora_B.weight)" in caution for caution in told["cautions"]
    )
    assert told["notes"][0] == told["cautions"][0]


def test_a_file_from_before_training_is_a_caution(host, tiny_flux, file):
    tensors = lora()
    tensors[f"{NAME}.lora_B.weight"].zero_()
    save_file(tensors, file)
    (caution,) = host.load_and_fix(tiny_flux(), None, file)[2].cautions
    assert "changes nothing" in caution and "before anything was trained" in caution


def test_a_lora_in_memory_is_looked_at_as_well(host, tiny_flux):
    from lora_locksmith.nodes.merge import ApplyLoRA

    tensors = lora()
    tensors[f"{NAME}.lora_A.weight"][1, 1] = torch.nan
    told = json.loads(ApplyLoRA.execute(tiny_flux(), tensors, 1.0, 1.0).ui["report_json"][0])
    assert "NaN" in told["cautions"][0]


def test_nan_that_no_sample_holds_is_found_when_it_is_used(
    host, tiny_flux, patched, file, monkeypatch, caplog
):
    monkeypatch.setattr(soundness, "WHOLE_BYTES", 100)
    monkeypatch.setattr(soundness, "READS", 4)
    tensors = lora()
    tensors[f"{NAME}.lora_A.weight"][2, 67] = torch.nan
    save_file(tensors, file)
    patcher, _, report = host.load_and_fix(tiny_flux(), None, file)
    assert not report.cautions and report.as_dict()["checked"] == "a sample"
    with caplog.at_level(logging.WARNING):
        patched(patcher)
    assert f"NaN or infinite values at {NAME}.lora_A.weight" in caplog.text
    (caution,) = host.load_and_fix(tiny_flux(), None, file)[2].cautions
    assert "reached the model" in caution


@POSIX
def test_a_merge_of_a_file_that_is_overwritten_meanwhile_is_refused(host, file):
    content = host.read_lora(file)
    tensors = content.to_be_written()
    assert tensors[f"{NAME}.lora_A.weight"].shape == (4, 128)
    overwrite(file)
    with pytest.raises(LoraFileError, match="overwritten while it was read"):
        tensors[f"{NAME}.lora_B.weight"]


def test_the_stack_says_it_of_its_row(host, tiny_flux, file, comfy):
    import folder_paths
    from lora_locksmith.nodes.stack import LoadAndFixStack

    tensors = lora()
    tensors[f"{NAME}.lora_B.weight"][0, 0] = torch.nan
    folder = folder_paths.get_folder_paths("loras")[0]
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "locksmith_nan.safetensors")
    save_file(tensors, file)
    shutil.copy(file, path)
    folder_paths.filename_list_cache.pop("loras", None)
    try:
        rows = json.dumps([{"name": "locksmith_nan.safetensors", "on": True, "strength": 1.0}])
        told = json.loads(LoadAndFixStack.execute(rows, model=tiny_flux()).args[3])
    finally:
        os.unlink(path)
        folder_paths.filename_list_cache.pop("loras", None)
    assert "NaN" in told["rows"][0]["cautions"][0]
