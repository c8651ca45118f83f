"""Adapters of another size than the weight, in the real ComfyUI: what grows, what reaches the first
inputs only, what is refused.
"""

from __future__ import annotations

import copy

import pytest
import torch
from lora_locksmith.lora.copies import compared
from lora_locksmith.lora.io.mapped import map_tensors
from lora_locksmith.lora.io.writer import write_as
from lora_locksmith.report.inspection import inspect_file
from safetensors.torch import save_file

STRENGTHS = (1.0, 0.5, -0.7, 2.0)
IMG_IN = "diffusion_model.img_in.weight"
OTHER = "double_blocks.0.img_mlp.0"


def pair(module: str, out: int, columns: int, rank: int = 4) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A.weight": torch.randn(rank, columns) * 0.1,
        f"{module}.lora_B.weight": torch.randn(out, rank) * 0.1,
    }


@pytest.fixture
def model_of(tiny_flux):
    """model_of(inputs) -> the tiny FLUX with an img_in of so many inputs."""

    def make(inputs):
        patcher = tiny_flux()
        old = patcher.model.diffusion_model.img_in
        new = copy.deepcopy(old)
        new.in_features = inputs
        new.weight = torch.nn.Parameter(
            torch.randn(old.weight.shape[0], inputs) * 0.1, requires_grad=False
        )
        patcher.model.diffusion_model.img_in = new
        return patcher

    return make


@pytest.fixture
def load(host, patched, model_of, tmp_path):
    """load(inputs, tensors, strength) -> (img_in before, img_in after or None, report)."""

    def run(inputs, tensors, strength=1.0, bypass=False):
        torch.manual_seed(5)
        patcher = model_of(inputs)
        save_file(tensors, tmp_path / "x.safetensors")
        loaded, _, report = host.load_and_fix(
            patcher, None, tmp_path / "x.safetensors", strength, bypass=bypass
        )
        host.forget()
        return patcher.model.state_dict()[IMG_IN].float(), patched(loaded).get(IMG_IN), report

    return run


def product(tensors, module):
    return tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]


def near(got, want, base):
    return (got - want).norm() <= 2e-4 * (want - base).norm()


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("bypass", [False, True])
def test_a_lora_of_dev_reaches_the_first_inputs_of_fill(load, strength, bypass):
    tensors = pair("transformer.x_embedder", 128, 64)
    before, after, report = load(384, tensors, strength, bypass)
    change = torch.nn.functional.pad(product(tensors, "transformer.x_embedder"), (0, 320))
    assert near(after, before + strength * change, before)
    assert torch.equal(after[:, 64:], before[:, 64:])
    assert "64 inputs" in str(report) and report.unplaced() == []


@pytest.mark.parametrize("strength", STRENGTHS)
def test_kinds_that_need_the_weight_do_so_too(load, strength):
    scale = torch.linspace(0.5, 2, 128)
    tensors = pair("transformer.x_embedder", 128, 64) | {
        "transformer.x_embedder.lora_magnitude_vector": scale
    }
    before, after, _ = load(384, tensors, strength)
    known = before[:, :64]
    direction = known + product(tensors, "transformer.x_embedder")
    want = known + strength * (
        scale[:, None] * direction / direction.norm(dim=1, keepdim=True) - known
    )
    assert near(after[:, :64], want, known) and torch.equal(after[:, 64:], before[:, 64:])


def test_a_lora_of_fill_makes_no_fill_of_dev(load):
    tensors = pair("transformer.x_embedder", 128, 384)
    before, after, report = load(64, tensors)
    assert after is None and before.shape == (128, 64)
    assert report.outcomes["transformer.x_embedder.lora_A.weight"].category == "shape conflict"


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_control_lora_makes_the_input_wider_and_the_report_says_so(load, strength):
    tensors = pair("transformer.x_embedder", 128, 128)
    before, after, report = load(64, tensors, strength)
    wide = torch.nn.functional.pad(before, (0, 64))
    assert near(after, wide + strength * product(tensors, "transformer.x_embedder"), wide)
    assert any("[128, 64] to [128, 128]" in note and "control" in note for note in report.notes())


@pytest.mark.parametrize("shape", [(128, 200), (160, 64)])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_weight_grows_to_what_the_file_says_as_in_stock(
    host, patched, model_of, tmp_path, shape, strength
):
    import comfy.sd

    tensors = pair("diffusion_model.img_in", *shape) | {
        "diffusion_model.img_in.reshape_weight": torch.tensor(shape)
    }
    save_file(tensors, tmp_path / "x.safetensors")
    base = model_of(64)
    loaded, _, report = host.load_and_fix(base, None, tmp_path / "x.safetensors", strength)
    stock, _ = comfy.sd.load_lora_for_models(base, None, tensors, strength, 0.0)
    got, wanted = patched(loaded)[IMG_IN], patched(stock)[IMG_IN]
    assert got.shape == wanted.shape == shape and near(got, wanted, torch.zeros(()))
    assert report.unplaced() == [] and f"to {list(shape)}" in str(report)


FUSED, SPLIT = "double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn"
QKV = f"diffusion_model.{FUSED}.weight"


def twins(dtype, how, alpha_on=""):
    """A fused LoRA and the same in three: with one down, or with downs of their own; or three
    others.
    """
    downs = [torch.randn(2, 128) * 0.1 for _ in range(3)]
    ups = [torch.randn(128, 2) * 0.1 for _ in range(3)]
    downs = [downs[0]] * 3 if how == "one down" else downs
    fused = {"lora_A.weight": downs[0], "lora_B.weight": torch.cat(ups)}
    if how != "one down":
        fused = {"lora_A.weight": torch.cat(downs), "lora_B.weight": torch.block_diag(*ups)}
    tensors = {f"{FUSED}.{name}": tensor for name, tensor in fused.items()}
    for name, up, down in zip("qkv", ups, downs, strict=True):
        other = 1 + 0.1 * (how == "different" and name == "v")
        tensors |= {
            f"{SPLIT}.to_{name}.lora_A.weight": down,
            f"{SPLIT}.to_{name}.lora_B.weight": up * other,
        }
    tensors = {key: tensor.to(dtype).clone() for key, tensor in tensors.items()}
    ranks = {
        FUSED: float(fused["lora_A.weight"].shape[0]),
        **{f"{SPLIT}.to_{name}": 2.0 for name in "qkv"},
    }
    told = {
        f"{module}.alpha": torch.tensor(rank)
        for module, rank in ranks.items()
        if alpha_on and module.startswith(alpha_on)
    }
    whole = fused["lora_B.weight"].to(dtype).float() @ fused["lora_A.weight"].to(dtype).float()
    parts = [
        tensors[f"{SPLIT}.to_{n}.lora_B.weight"].float()
        @ tensors[f"{SPLIT}.to_{n}.lora_A.weight"].float()
        for n in "qkv"
    ]
    return tensors | told, whole, torch.cat(parts)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("alpha_on", ["", FUSED, SPLIT])
@pytest.mark.parametrize("how", ["one down", "own downs", "different"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_that_stands_twice_is_made_once_and_two_are_both_made(
    host, patched, tiny_flux, tmp_path, dtype, how, alpha_on, strength
):
    torch.manual_seed(5)
    tensors, whole, parts = twins(dtype, how, alpha_on)
    save_file(tensors, tmp_path / "x.safetensors")
    base = tiny_flux()
    loaded, _, report = host.load_and_fix(base, None, tmp_path / "x.safetensors", strength)
    before = base.model.state_dict()[QKV].float()
    want = whole + parts if how == "different" else parts
    assert near(patched(loaded)[QKV], before + strength * want, before)
    categories = {report.outcomes[key].category for key in tensors if key.startswith(FUSED)}
    assert categories == {"placed" if how == "different" else "duplicate target"}
    assert any("both are applied" in caution for caution in report.cautions) == (how == "different")


@pytest.mark.parametrize("dialect", ["comfyui", "kohya", "diffusers"])
@pytest.mark.parametrize("how", ["one down", "own downs", "different"])
def test_what_is_written_of_it_changes_as_much(host, patched, tiny_flux, tmp_path, how, dialect):
    torch.manual_seed(5)
    tensors, whole, parts = twins(torch.float32, how)
    path, base = tmp_path / "x.safetensors", tiny_flux()
    save_file(tensors, path)
    inspection = inspect_file(path, host.target_model_of(base, None), whole=True)
    plan = compared(inspection, map_tensors(path, inspection.header))
    written = write_as(plan, tensors, tmp_path / "new.safetensors", dialect)
    loaded, _, _ = host.load_and_fix(base, None, written.path)
    before = base.model.state_dict()[QKV].float()
    want = whole + parts if how == "different" else parts
    assert near(patched(loaded)[QKV], before + want, before)


def test_values_of_another_shape_take_a_weights_place_only_where_the_host_does_it(
    host, patched, tiny_flux, tmp_path
):
    """As MiniMax-H3's banks of output heads; a ComfyUI that knows no larger weights would fail in
    the sampler.
    """
    import comfy.sd

    name = "diffusion_model.final_layer.linear"
    bank = {f"{name}.set_weight": torch.randn(256, 128), f"{name}.set_bias": torch.randn(256)}
    save_file(bank, tmp_path / "x.safetensors")
    base = tiny_flux()
    loaded, _, report = host.load_and_fix(base, None, tmp_path / "x.safetensors", 0.5)
    stock = comfy.sd.load_lora_for_models(base, None, bank, 0.5, 0.0)[0]
    try:
        wanted = patched(stock)
    except RuntimeError:
        assert not loaded.patches and "update ComfyUI" in str(report)
        return
    assert all(
        torch.equal(patched(loaded)[f"{name}.{one}"], wanted[f"{name}.{one}"])
        for one in ("weight", "bias")
    )
    assert wanted[f"{name}.bias"].shape == (256,) and any(
        "[64, 128] to [256, 128]" in note for note in report.notes()
    )


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_bias_that_a_file_sets_goes_toward_it(host, patched, tiny_flux, tmp_path, strength):
    name = "diffusion_model.final_layer.linear"
    bias = torch.randn(64)
    save_file({f"{name}.set_bias": bias}, tmp_path / "x.safetensors")
    base = tiny_flux()
    before = base.model.state_dict()[f"{name}.bias"].float()
    after = patched(host.load_and_fix(base, None, tmp_path / "x.safetensors", strength)[0])[
        f"{name}.bias"
    ]
    assert near(after, before + strength * (bias - before), before)
