"""Inspect LoRA Keys in the host: with a model the answer is what loading gives; without one it is
the same where sizes are published.
"""

from __future__ import annotations

import json

import comfy_models
import pytest
import torch
from lora_locksmith.files.header import LoraFileError
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.report.coverage import layers
from lora_locksmith.report.markdown import DETAILS, markdown
from reports.trained_files import MAKERS
from safetensors.torch import save_file
from tiny_models import diffusers_lora, kohya_lora, simpletuner_broken_lora

STRAY = "transformer.single_transformer_blocks.0.to_nowhere.lora_A.weight"
WIRED = {
    "kohya": kohya_lora,
    "diffusers": diffusers_lora,
    "wrapper bug": simpletuner_broken_lora,
    "stray key": lambda: diffusers_lora() | {STRAY: torch.zeros(4, 128)},
    "cut": lambda: dict(list(kohya_lora().items())[:-1]),
    "other size": lambda: {key: torch.zeros(8, 8) for key in diffusers_lora()},
}


@pytest.fixture(params=WIRED)
def wired_file(request, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(WIRED[request.param](), path)
    return path


def test_with_a_model_it_is_what_loading_says(host, tiny_flux, wired_file):
    model = tiny_flux()
    found = host.inspect(model, None, wired_file)
    loaded = host.load_and_fix(model, None, wired_file)[2].as_dict()
    told = found.report.as_dict()
    # Loading looks at the numbers as well, inspecting only where it is asked to.
    assert not found.is_reference and told | {"file": "x.safetensors", "checked": "all"} == loaded
    as_dict = json.loads(found.as_json())
    assert as_dict["loads"]["exact"] is True
    assert (
        as_dict["loads"]["stock"]["keys"] == loaded["stock"]["placed"]
        and as_dict["loads"]["unplaced"] == loaded["unplaced"]
    )


def meta_patcher(name: str):
    """ComfyUI's model at its published size, as a loader node gives it, without any memory."""
    import comfy.model_patcher

    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(
        comfy_models.network(name), load_device=cpu, offload_device=cpu
    )


DRAWN = [
    ("flux1_dev", "kohya_flux_split_qkv"),
    ("flux1_dev", "simpletuner_wrapper_bug"),
    ("flux1_dev", "ai_toolkit_flux"),
    ("flux1_dev", "xlabs_flux"),
    ("flux1_dev", "broken"),
    ("sdxl", "kohya_sdxl"),
    ("sdxl", "onetrainer_sdxl_dora"),
    ("sd15", "lycoris_loha"),
    ("wan21_t2v_14b", "ai_toolkit_wan"),
    ("wan21_t2v_1_3b", "diffusion_pipe_wan"),
    ("qwen_image", "musubi_qwen_image"),
    ("qwen_image", "diffsynth_qwen"),
]


@pytest.mark.parametrize(("model", "trainer"), DRAWN)
def test_the_drawn_model_tells_what_the_connected_one_does(host, tmp_path, model, trainer):
    path = MAKERS[trainer](tmp_path)
    reference, wired = (
        host.inspect(None, None, path),
        host.inspect(meta_patcher(model), None, path),
    )
    assert reference.is_reference and not wired.is_reference
    trained, exact = (
        {part.network: part for part in found.report.trained}.get(DENOISER)
        for found in (reference, wired)
    )
    assert trained.modules == exact.modules
    told, truth = layers_of(trained), layers_of(exact)
    assert {layer: truth.get(layer) for layer in told} == told
    # What only some variants of a model have, guidance for one, is not told as untrained where the
    # model is not known.
    assert all(
        truth[layer][0].strip("0") == "" and layer[::2] in optional_layers(reference)
        for layer in truth.keys() - told.keys()
    )
    ours, theirs = (
        {key for key in found.report.outcomes if is_of_denoiser(found, key)}
        for found in (reference, wired)
    )
    assert ours == theirs
    encoders = {
        key for key, outcome in reference.report.outcomes.items() if outcome.category == "placed"
    } - ours
    assert reference.report.stock_keys - encoders == wired.report.stock_keys


@pytest.mark.parametrize(("model", "trainer"), [case for case in DRAWN if case[1] != "broken"])
def test_the_drawn_model_tells_the_preset_that_the_connected_one_does(
    host, tmp_path, model, trainer
):
    path = MAKERS[trainer](tmp_path)
    assert (
        host.inspect(None, None, path).presets.as_dict()
        == host.inspect(meta_patcher(model), None, path).presets.as_dict()
    )


def layers_of(trained) -> dict[tuple, tuple]:
    """What is trained of every kind of layer, in whatever order the model has them."""
    return {
        (blocks.name, blocks.count, kind.name): (kind.trained, kind.ranks)
        for blocks in trained.blocks
        for kind in blocks.kinds
    }


def optional_layers(found) -> set[tuple[str, str]]:
    network = found.plan.target_model.networks[DENOISER]
    return {
        (layer.blocks, layer.kind)
        for weight, layer in layers(network).items()
        if weight in network.optional
    }


def is_of_denoiser(found, key: str) -> bool:
    outcome = found.report.outcomes[key]
    return (
        outcome.category == "placed"
        and found.plan.adapters[outcome.adapter].target.network == DENOISER
    )


def test_untrained_kinds_of_a_network_that_is_touched(host, tmp_path):
    path = MAKERS["ai_toolkit_flux"](tmp_path)
    reference, wired = (
        host.inspect(None, None, path),
        host.inspect(meta_patcher("flux1_dev"), None, path),
    )
    assert set(wired.report.untrained) - set(reference.report.untrained) == {
        "guidance_in.in_layer",
        "guidance_in.out_layer",
    }
    assert set(reference.report.untrained) < set(wired.report.untrained)
    assert "final_layer.linear" in reference.report.untrained and not any(
        "blocks" in name for name in reference.report.untrained
    )


def test_weights_are_measured(host, tiny_flux, tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = kohya_lora()
    dead, broken = (
        key for key in list(tensors) if key.endswith("lora_up.weight") and "_0_img_attn" in key
    )
    tensors[dead] = torch.zeros_like(tensors[dead])
    tensors[broken] = torch.full_like(tensors[broken], float("nan"))
    save_file(tensors, path)
    found = host.inspect(tiny_flux(), None, path)
    weights, hashes = host.measure(found)
    assert weights["dead"] == [dead.partition(".")[0]]
    (bad,) = (row for row in weights["modules"] if row["nans"])
    assert bad["module"] == broken.partition(".")[0]
    text = markdown(found, "summary", hashes, weights)
    assert "## Weights" in text and "Not a number" in text and dead.partition(".")[0] in text
    json.dumps({"weights": weights} | hashes.as_dict({}), allow_nan=False)


def test_pickle(host, tiny_flux, tmp_path):
    """Names, shapes and sizes are told of a .pt as of a safetensors file; its alphas as well."""
    tensors = kohya_lora()
    torch.save(tensors, tmp_path / "x.pt")
    save_file(tensors, tmp_path / "x.safetensors")
    pickled, plain = (
        host.inspect(tiny_flux(), None, tmp_path / name) for name in ("x.pt", "x.safetensors")
    )
    assert pickled.report.modules == plain.report.modules and pickled.ranks == plain.ranks
    assert pickled.size == (tmp_path / "x.pt").stat().st_size
    for detail in DETAILS:
        assert "x.pt" in markdown(pickled, detail)


def test_files_that_cannot_be_read(host, tmp_path):
    (tmp_path / "empty.safetensors").touch()
    for name in ("empty.safetensors", "none.safetensors", "none.pt"):
        with pytest.raises(LoraFileError, match=name):
            host.inspect(None, None, tmp_path / name)
