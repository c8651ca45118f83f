"""Extract LoRA on real models: what the command gives of the same two models in files, whatever is
patched onto them.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from lora_locksmith.lora.rewrite.extract import ExtractOptions, extract_file
from lora_locksmith.lora.rewrite.resize import RankTarget
from many_kinds import QUANTISED_BASES, SCALED_FP8
from safetensors.torch import load_file, save_file
from threads import one_thread
from tiny_models import kohya_lora, simpletuner_broken_lora

PREFIX = "diffusion_model."


@pytest.fixture(scope="module", autouse=True)
def in_one_thread():
    with one_thread():
        yield


@pytest.fixture
def extract(comfy):
    """extract(model, base, **settings) -> (LORA_MODEL, report, report as a dictionary)."""
    from lora_locksmith.nodes.extract import ExtractLoRA

    def run(model, base, **settings):
        lora, text, document = ExtractLoRA.execute(model, base, **settings).result
        return lora, text, json.loads(document)

    return run


@pytest.fixture
def applied(comfy, patched):
    """applied(model, LORA_MODEL) -> weight -> its value, by our Apply LoRA."""
    from lora_locksmith.nodes.merge import ApplyLoRA

    return lambda model, lora: patched(ApplyLoRA.execute(model, lora, 1.0, 1.0).result[0])


@pytest.fixture
def tuned(tiny_flux):
    """A tiny FLUX that was tuned: all but its first and last layers."""
    torch.manual_seed(8)
    model = tiny_flux()
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if ".double_blocks." not in name and ".single_blocks." not in name:
                continue
            change = torch.randn_like(weight)
            if weight.dim() == 2:
                change = torch.randn(weight.shape[0], 6) @ torch.randn(6, weight.shape[1])
            weight += 0.2 * change * weight.norm() / change.norm()
    return model


def written(path, model):
    """The file a model would come from."""
    weights = model.model.diffusion_model.state_dict()
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
    return path


ASKED = {
    "rank": ({"rank": 4}, ExtractOptions(RankTarget(4))),
    "energy": ({"rank": 0, "energy": 0.9}, ExtractOptions(RankTarget(None, 0.9))),
    "error": ({"rank": 0, "error": 0.3}, ExtractOptions(RankTarget(None, None, 0.3))),
    "both": ({"rank": 5, "energy": 0.99}, ExtractOptions(RankTarget(5, 0.99))),
    "extras": ({"rank": 4, "extras": True}, ExtractOptions(RankTarget(4), extras=True)),
    "clamp": ({"rank": 4, "clamp": 0.9}, ExtractOptions(RankTarget(4), clamp=0.9)),
}


@pytest.mark.parametrize(("settings", "how"), ASKED.values(), ids=ASKED)
def test_it_is_what_the_command_gives(tmp_path, extract, tiny_flux, tuned, settings, how):
    lora, text, told = extract(tuned, tiny_flux(), **settings)
    files = written(tmp_path / "base.safetensors", tiny_flux()), written(tmp_path / "t", tuned)
    found = extract_file(*files, tmp_path / "lora.safetensors", how)
    expected = load_file(tmp_path / "lora.safetensors")
    assert lora.keys() == expected.keys() and lora
    for name, tensor in expected.items():
        assert lora[name].dtype == tensor.dtype
        assert torch.equal(lora[name], tensor), name
    rows = {row.weight: row._asdict() | {"shape": list(row.shape)} for row in found.rows}
    assert {row["weight"]: row for row in told["weights"]} == rows
    assert told["kept_energy"] == pytest.approx(found.kept_energy)
    assert told["left_out"] == json.loads(json.dumps(found.left_out))
    assert text.startswith(f"{sum(bool(row.rank) for row in found.rows)} weights of rank ")


def test_a_lora_that_is_patched_onto_a_model_comes_out_again(
    tmp_path, extract, applied, host, tiny_flux, patched
):
    save_file(simpletuner_broken_lora(), tmp_path / "lora.safetensors")
    model = host.load_and_fix(tiny_flux(), None, tmp_path / "lora.safetensors", 0.7)[0]
    expected = patched(model)
    lora, _, told = extract(model, tiny_flux(), rank=12, dtype="fp32")
    found = applied(tiny_flux(), lora)
    assert found.keys() == expected.keys() and not told["left_out"]
    for name, weight in expected.items():
        assert (found[name] - weight).norm() <= 1e-5 * weight.norm(), name


def test_what_is_patched_onto_the_base_is_no_part_of_it(
    tmp_path, extract, applied, host, tiny_flux, patched
):
    """Both models over the same weights: one with two LoRAs, the other with the first of them."""
    save_file(simpletuner_broken_lora(), tmp_path / "one.safetensors")
    save_file(kohya_lora(), tmp_path / "two.safetensors")
    base = host.load_and_fix(tiny_flux(), None, tmp_path / "one.safetensors", 1.0)[0]
    model = host.load_and_fix(base, None, tmp_path / "two.safetensors", 0.5)[0]
    alone = patched(host.load_and_fix(tiny_flux(), None, tmp_path / "two.safetensors", 0.5)[0])
    lora, _, _ = extract(model, base, rank=4, dtype="fp32")
    found = applied(tiny_flux(), lora)
    assert found.keys() == alone.keys()
    for name, weight in alone.items():
        assert (found[name] - weight).norm() <= 1e-4 * weight.norm(), name


def test_the_models_stay_as_they_were(tmp_path, extract, host, tiny_flux):
    save_file(simpletuner_broken_lora(), tmp_path / "lora.safetensors")
    base = tiny_flux()
    model = host.load_and_fix(base, None, tmp_path / "lora.safetensors", 0.7)[0]
    before = copy.deepcopy(base.model.state_dict())
    patches = {name: list(patches) for name, patches in model.patches.items()}
    extract(model, base, rank=4)
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())
    assert {name: list(those) for name, those in model.patches.items()} == patches
    assert not base.patches


def test_what_acts_beside_the_layers_is_told(tmp_path, extract, host, tiny_flux, tuned):
    save_file(simpletuner_broken_lora(), tmp_path / "lora.safetensors")
    model = host.load_and_fix(tuned, None, tmp_path / "lora.safetensors", 0.7, mode="bypass")[0]
    lora, text, told = extract(model, tiny_flux(), rank=4)
    alone, _, _ = extract(tuned, tiny_flux(), rank=4)
    assert all(torch.equal(lora[name], tensor) for name, tensor in alone.items())
    [caution] = told["cautions"]
    assert "beside the layers" in caution and caution in text


@pytest.mark.parametrize("kind", [SCALED_FP8, *QUANTISED_BASES])
def test_of_a_quantised_model_the_values_it_stands_for_are_taken(
    tmp_path, extract, applied, host, base, kind
):
    """The same quantised weights on both sides: what is between them is the LoRA alone."""
    save_file(kohya_lora(), tmp_path / "lora.safetensors")
    model = host.load_and_fix(base(kind), None, tmp_path / "lora.safetensors", 1.0)[0]
    lora, _, told = extract(model, base(kind), rank=4, dtype="fp32")
    expected = host.patches_of(model, None)
    assert {row["weight"] for row in told["weights"]} == expected.keys() and not told["left_out"]
    assert all(row["error"] < 1e-3 for row in told["weights"])
    up, down = (
        lora[f"{PREFIX}double_blocks.0.img_attn.proj.lora_{side}.weight"] for side in ("up", "down")
    )
    name = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = kohya_lora()
    change = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
    assert (up @ down - change).norm() < 1e-3 * change.norm()


def test_values_that_only_their_loader_reads_are_left_out_and_told(extract, tiny_flux, tuned):
    """As NF4 and GGUF store them: bytes of another shape."""
    name = "double_blocks.0.img_attn.proj"
    layer = tuned.model.diffusion_model.get_submodule(name)
    packed = torch.nn.Parameter(torch.zeros(64, 128, dtype=torch.uint8), requires_grad=False)
    packed.tensor_shape = layer.weight.shape
    layer.weight = packed
    _, text, told = extract(tuned, tiny_flux(), rank=4)
    assert "packed" in told["left_out"][f"{PREFIX}{name}.weight"]
    assert text.startswith("Not whole: 1 change is left out.")


def test_the_bar_moves_and_a_run_that_is_stopped_ends_at_the_next_weight(
    extract, comfy, tiny_flux, tuned, monkeypatch
):
    import comfy.model_management as management
    import comfy.utils

    seen = []

    def hook(done, total, *_, **__):
        seen.append((done, total))
        management.interrupt_current_processing(len(seen) == 1)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(management.InterruptProcessingException):
        extract(tuned, tiny_flux(), rank=4)
    [(first, total)] = seen
    assert first == 1 and total > 50 and not management.processing_interrupted()
    extract(tuned, tiny_flux(), rank=4)
    assert seen[-1] == (total, total)


def test_bad_input_says_what_to_do(extract, tiny_flux, tuned):
    with pytest.raises(RuntimeError, match="give a rank, an energy below 1 or an error above 0"):
        extract(tuned, tiny_flux(), rank=0)
    with pytest.raises(RuntimeError, match="Connect both clip and base_clip, or neither"):
        extract(tuned, tiny_flux(), rank=4, clip=object())
    with pytest.raises(RuntimeError, match="do not differ in anything that can be extracted"):
        extract(tiny_flux(), tiny_flux(), rank=4)


def test_models_of_two_kinds_are_named(extract, comfy, tiny_flux):
    from comfy.model_patcher import ModelPatcher
    from comfy_models import network

    cpu = torch.device("cpu")
    other = ModelPatcher(network("sd3_medium"), cpu, cpu)
    with pytest.raises(RuntimeError, match=r"the base is FLUX.*the tuned model is .*: give two"):
        extract(other, tiny_flux(), rank=4)


def test_text_encoders_are_extracted_too(extract, comfy, tiny_flux, tuned):
    from lora_locksmith.nodes.merge import ApplyLoRA
    from test_bypass import tiny_clip

    clip, before = tiny_clip(), tiny_clip()
    layer = "clip_l.transformer.text_model.encoder.layers.1.mlp.fc1"
    weight = clip.cond_stage_model.get_submodule(layer).weight
    with torch.no_grad():
        weight += torch.randn(weight.shape[0], 3) @ torch.randn(3, weight.shape[1])
    lora, _, told = extract(tuned, tiny_flux(), clip=clip, base_clip=before, rank=6, dtype="fp32")
    assert f"{layer}.weight" in {row["weight"] for row in told["weights"]}
    _, applied, *_ = ApplyLoRA.execute(tiny_flux(), lora, 1.0, 1.0, clip=before).result
    [(_, patch, *_)] = applied.patcher.patches[f"{layer}.weight"]
    plain = before.cond_stage_model.get_submodule(layer).weight
    found = patch.calculate_weight(plain.detach().clone(), layer, 1.0, 1.0, None, lambda a: a)
    assert (found - weight).norm() <= 1e-3 * (weight - plain).norm()  # stored in fp16


def test_nan_is_refused_and_the_model_named(extract, tiny_flux, tuned):
    weight = tuned.model.diffusion_model.double_blocks[0].img_attn.proj.weight
    with torch.no_grad():
        weight[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match=r"Extract LoRA: .*tuned model.*img_attn\.proj"):
        extract(tuned, tiny_flux(), rank=4)
