"""Files that are no LoRA, or not whole: one clear error with the file, the fault and the remedy."""

from __future__ import annotations

import pickle

import pytest
import torch
from lora_locksmith.files.header import LoraFileError
from safetensors.torch import save_file

LORA = {
    "diffusion_model.final_layer.linear.lora_A.weight": torch.ones(2, 128),
    "diffusion_model.final_layer.linear.lora_B.weight": torch.ones(64, 2),
}


class Evil:
    def __reduce__(self):
        return (print, ("code from a pickle ran",))


def written(path, kind):
    if kind == "pickle":
        torch.save(LORA, path)
    elif kind == "nested pickle":
        torch.save({"state_dict": LORA}, path)
    elif kind == "evil pickle":
        path.write_bytes(pickle.dumps({"a": Evil()}))
    elif kind == "pickle without tensors":
        torch.save({"a": 1, "b": "text"}, path)
    elif kind == "text":
        path.write_text("not a LoRA")
    return path


@pytest.mark.parametrize("kind", ["pickle", "nested pickle"])
@pytest.mark.parametrize("ending", [".pt", ".ckpt", ".pt2", ".pkl"])
def test_tensors_in_a_pickle_load_through_the_safe_loader(host, tiny_flux, tmp_path, kind, ending):
    patcher, _, report = host.load_and_fix(
        tiny_flux(), None, written(tmp_path / f"x{ending}", kind)
    )
    assert len(patcher.patches) == 1
    assert report.unplaced() == []


@pytest.mark.parametrize("kind", ["evil pickle", "pickle without tensors", "text"])
def test_other_pickles_are_refused_and_run_nothing(host, tmp_path, capsys, kind):
    with pytest.raises(LoraFileError) as raised:
        host.read_lora(written(tmp_path / "x.pt", kind))
    assert "x.pt" in str(raised.value)
    assert raised.value.remedy
    assert "code from a pickle" not in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_missing_file(host, tmp_path, ending):
    with pytest.raises(LoraFileError, match="Check the name, or refresh the file list"):
        host.read_lora(tmp_path / f"nothing{ending}")


def test_a_header_that_safetensors_refuses_loads_and_stock_is_said_to_fail(
    host, tiny_flux, tmp_path
):
    import comfy.utils

    path = tmp_path / "numbers.safetensors"
    save_file(LORA, path, {"steps": "8"})
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b'"steps":"8"', b'"steps": 8 '))
    assert path.read_bytes() != sound
    with pytest.raises(Exception, match="expected a string"):
        comfy.utils.load_torch_file(str(path), safe_load=True)
    patcher, _, report = host.load_and_fix(tiny_flux(), None, path)
    assert len(patcher.patches) == 1 and report.unplaced() == []
    told = report.as_dict()
    assert told["stock"] == {
        "placed": 0,
        "modules": 0,
        "fails": "safetensors does not read it, because 'steps' in its metadata is not text",
    }
    assert f"the stock loader fails on this file: {told['stock']['fails']}" in str(report)


def test_what_stock_would_place_and_fail_on_while_sampling_is_said(host, tiny_flux, tmp_path):
    """The host logs an error for each, and its weights stay as they were."""
    import comfy.lora
    import comfy.utils

    fitting, wide = "double_blocks.0.img_attn.proj", "double_blocks.1.img_attn.proj"
    (hidden, _) = tiny_flux().model.state_dict()[f"diffusion_model.{fitting}.weight"].shape
    tensors = {}
    for module, size in ((fitting, hidden), (wide, hidden + 8)):
        tensors[f"diffusion_model.{module}.lora_A.weight"] = torch.randn(2, size)
        tensors[f"diffusion_model.{module}.lora_B.weight"] = torch.randn(size, 2)
    tensors["diffusion_model.single_blocks.0.linear2.diff"] = torch.randn(3, 5)
    tensors["diffusion_model.single_blocks.0.linear2.diff_b"] = torch.randn(hidden)
    path = tmp_path / "wide.safetensors"
    save_file(tensors, path)
    stock = comfy.lora.load_lora(
        comfy.utils.load_torch_file(str(path)),
        comfy.lora.model_lora_keys_unet(tiny_flux().model, {}),
    )
    assert len(stock) == 4
    report = host.load_and_fix(tiny_flux(), None, path)[2]
    assert report.as_dict()["stock"] == {"placed": 3, "modules": 2, "failing": 3}
    assert "the stock loader would place 3" in str(report)
    assert "3 more would fail in it while sampling" in str(report)


def test_an_unknown_ending(host, tmp_path):
    save_file(LORA, tmp_path / "x.lora")
    with pytest.raises(LoraFileError, match=r"\.lora"):
        host.read_lora(tmp_path / "x.lora")


def test_tensors_of_every_dtype_come_out_as_safetensors_reads_them(host, tmp_path):
    from safetensors.torch import load_file

    dtypes = (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int8,
        torch.int64,
        torch.bool,
    )
    tensors = {str(dtype): torch.ones(3, 5).to(dtype) for dtype in dtypes} | {
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
    }
    tensors |= {"odd": torch.ones(3, dtype=torch.int8), "four": torch.randn(2, 3, 4, 5)}
    save_file(tensors, tmp_path / "x.safetensors")
    ours, theirs = (
        host.read_lora(tmp_path / "x.safetensors").tensors,
        load_file(tmp_path / "x.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape
        assert torch.equal(
            ours[name].view(-1).view(torch.uint8) if tensor.numel() else ours[name],
            tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor,
        )
