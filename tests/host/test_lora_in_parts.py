"""LoRAs whose fused layers lie in the file in parts, in the real ComfyUI, against what musubi-tuner
computes with them (networks/lora.py LoRAModule.forward with split_dims): x is given to each part's
down and up, the outputs are laid one behind another, and the one alpha is divided by a part's rank.
"""

from __future__ import annotations

import re

import pytest
import torch
from lora_locksmith.commands import parser
from lora_locksmith.lora.io.writer import write_as
from lora_locksmith.lora.rewrite.rename import writable
from lora_locksmith.report.inspection import inspect_file
from safetensors.torch import load_file, save_file
from test_bases import sampled
from tiny_models import flux_state_dict

H, RANK, ALPHA = 128, 4, 6.0
LAYERS = {
    "double_blocks.0.img_attn.qkv": (H, H, H),
    "double_blocks.0.img_mlp.0": (3 * H, H),
    "single_blocks.0.linear1": (H, H, H, 4 * H),
}
QKV = next(iter(LAYERS))


def key(layer, ending=""):
    return f"lora_unet_{layer.replace('.', '_')}{ending}"


def in_parts(layer=QKV, sizes=None, rank=RANK):
    """The tensors of a layer, as its trainer saves them."""
    generator = torch.Generator().manual_seed(len(layer))
    made = {}
    for part, rows in enumerate(sizes or LAYERS[layer]):
        for side, shape in (("down", (rank, H)), ("up", (rows, rank))):
            values = torch.randn(shape, generator=generator) * 0.1
            made[key(layer, f".lora_{side}.{part}.weight")] = values
    return made | {key(layer, ".alpha"): torch.tensor(ALPHA)}


def added(tensors, layer, x, parts=None):
    """What the trainer adds to the layer's outputs for these inputs."""
    outputs = [
        x
        @ tensors[key(layer, f".lora_down.{part}.weight")].T
        @ tensors[key(layer, f".lora_up.{part}.weight")].T
        for part in range(parts or len(LAYERS[layer]))
    ]
    rank = tensors[key(layer, ".lora_down.0.weight")].shape[0]
    return torch.cat(outputs, -1) * (tensors[key(layer, ".alpha")].item() / rank)


@pytest.fixture
def trained(tmp_path):
    """A file as its trainer saves it, and its tensors."""
    tensors = {name: tensor for layer in LAYERS for name, tensor in in_parts(layer).items()}
    path = tmp_path / "in parts \u00e9.safetensors"
    save_file(tensors, path)
    return path, tensors


@pytest.fixture
def target_model(host, tiny_flux):
    return host.target_model_of(tiny_flux(), None)


@pytest.fixture
def changes(host, tiny_flux, patched):
    """changes(path, strength) -> {layer: what was added to its weight}."""

    def by_layer(path, strength=1.0):
        model = tiny_flux()
        before = model.model.state_dict()
        after = patched(host.load_and_fix(model, None, path, strength)[0])
        begins, ends = "diffusion_model.", ".weight"
        return {
            name[len(begins) : -len(ends)]: weight - before[name].float()
            for name, weight in after.items()
        }

    return by_layer


def check(found, tensors, strength=1.0, tolerance=1e-4):
    x = torch.randn(5, H, generator=torch.Generator().manual_seed(3))
    assert set(found) == set(LAYERS)
    for layer, change in found.items():
        expected = strength * added(tensors, layer, x)
        torch.testing.assert_close(x @ change.T, expected, atol=tolerance, rtol=1e-3)


@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_every_part_lands_on_its_rows(changes, trained, strength):
    path, tensors = trained
    check(changes(path, strength), tensors, strength)


def test_the_host_computes_each_part(host, tiny_flux, trained):
    """Each is a plain pair on rows of its own, as the host has a LoRA of layers that are apart."""
    from lora_locksmith.nodes.patches import LocksmithAdapter

    patcher, _, report = host.load_and_fix(tiny_flux(), None, trained[0], 1.0)
    patches = patcher.patches[f"diffusion_model.{QKV}.weight"]
    assert [patch[3] for patch in patches] == [(0, start, H) for start in (0, H, 2 * H)]
    assert not any(isinstance(patch[1], LocksmithAdapter) for patch in patches)
    assert report.modules["placed"] == report.modules["total"] == len(LAYERS)
    assert not report.cautions


def test_beside_the_layers_it_does_the_same(comfy, host, tiny_flux, trained):
    import comfy.model_management

    made = []
    for bypass in (False, True):
        patcher = host.load_and_fix(tiny_flux(), None, trained[0], 1.0, bypass=bypass)[0]
        comfy.model_management.load_models_gpu([patcher])
        made.append(sampled(patcher))
        assert bool(patcher.patches) != bypass
        comfy.model_management.unload_all_models()
    torch.testing.assert_close(*made, atol=1e-4, rtol=1e-4)


def test_halves_that_stand_in_the_other_order_change_places(host, tiny_flux, patched, tmp_path):
    """diffusers has shift and scale of the last layer the other way round than ComfyUI."""
    tensors = in_parts("norm_out.linear", (H, H))
    start = key("norm_out.linear")
    named = {f"transformer.norm_out.linear{name[len(start) :]}": tensors[name] for name in tensors}
    save_file(named, tmp_path / "x.safetensors")
    model, layer = tiny_flux(), "diffusion_model.final_layer.adaLN_modulation.1.weight"
    after = patched(host.load_and_fix(model, None, tmp_path / "x.safetensors", 1.0)[0])
    x = torch.randn(5, H)
    expected = added(tensors, "norm_out.linear", x, 2).roll(H, -1)
    change = after[layer] - model.model.state_dict()[layer].float()
    torch.testing.assert_close(x @ change.T, expected, atol=1e-4, rtol=1e-3)


def test_the_file_is_told_and_stock_places_none_of_it(trained, target_model):
    found = inspect_file(trained[0], target_model)
    assert {adapter.kind for adapter in found.plan.adapters} == {"lora_parts"}
    assert "LoRA in parts rank 4, alpha 6" in found.verdict
    assert "the stock loader would load 0" in found.verdict


def test_stock_is_not_said_to_load_a_layer_of_which_it_reads_the_alpha_alone(
    host, tiny_flux, target_model, tmp_path
):
    """Which it does where the file has a LoRA that it knows elsewhere."""
    plain = in_parts("double_blocks.0.img_attn.proj", (H,))
    known = {name.replace(".0.weight", ".weight"): tensor for name, tensor in plain.items()}
    save_file(in_parts() | known, tmp_path / "x.safetensors")
    found = inspect_file(tmp_path / "x.safetensors", target_model).report
    report = host.load_and_fix(tiny_flux(), None, tmp_path / "x.safetensors", 1.0)[2]
    assert found.modules["placed"] == report.modules["placed"] == 2
    assert found.stock_modules == report.stock_modules == 1


@pytest.fixture
def in_dialect(trained, target_model, tmp_path):
    """in_dialect(dialect) -> the file in the names of another tool."""

    def write(dialect):
        path, tensors = trained
        target = tmp_path / dialect / "adapter_model.safetensors"
        target.parent.mkdir()
        plan = inspect_file(path, target_model, whole=True).plan
        return write_as(plan, tensors, target, dialect).path

    return write


@pytest.mark.parametrize("dialect", writable())
def test_in_other_tools_names_it_does_the_same(changes, trained, in_dialect, dialect):
    check(changes(in_dialect(dialect)), trained[1])


def test_split_names_keep_each_part_as_it_is(trained, in_dialect):
    written, layer = load_file(in_dialect("diffusers")), "single_blocks.0.linear1"
    for part, name in enumerate(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")):
        for side, letter in (("down", "A"), ("up", "B")):
            own = trained[1][key(layer, f".lora_{side}.{part}.weight")]
            new = f"transformer.single_transformer_blocks.0.{name}.lora_{letter}.weight"
            assert torch.equal(written[new], own)


def test_fused_names_get_the_parts_as_blocks(trained, in_dialect):
    written, module = load_file(in_dialect("comfyui")), f"diffusion_model.{QKV}"
    ups, downs = (
        [trained[1][key(QKV, f".lora_{side}.{part}.weight")] for part in range(3)]
        for side in ("up", "down")
    )
    assert torch.equal(written[f"{module}.lora_up.weight"], torch.block_diag(*ups))
    assert torch.equal(written[f"{module}.lora_down.weight"], torch.cat(downs))
    assert written[f"{module}.alpha"].item() == 3 * ALPHA


@pytest.fixture
def command(tmp_path):
    """command(name, *arguments) -> the file that the command wrote, for the tiny FLUX."""
    base = tmp_path / "base.safetensors"
    save_file({name: weight.contiguous() for name, weight in flux_state_dict().items()}, base)

    def run(name, *arguments):
        made = tmp_path / f"{name}.safetensors"
        assert (
            parser.run([name, *map(str, arguments), "-o", str(made), "--against", str(base)]) == 0
        )
        return made

    return run


def test_merged_with_itself_it_is_as_strong_as_both(changes, trained, command):
    path, tensors = trained
    check(changes(command("merge", f"{path}=1.5", f"{path}=0.5")), tensors, 2.0, 1e-3)


def test_resized_to_no_less_it_is_the_same(changes, trained, command):
    path, tensors = trained
    resized = command("resize", path, "--rank", 5 * RANK)
    check(changes(resized), tensors, 1.0, 1e-3)
    assert not [name for name in load_file(resized) if ".lora_up.0." in name]


def lacking(*endings):
    tensors = in_parts()
    return {name: tensors[name] for name in tensors if not name.endswith(endings)}


NARROW = torch.randn(RANK, H // 2)
SPOILT = {
    "no up of a part": (lacking(".lora_up.1.weight"), "lora_up.1"),
    "no down of a part": (lacking(".lora_down.2.weight"), "lora_down.2"),
    "no part between": (lacking("_up.1.weight", "_down.1.weight"), "lora_down.1 and lora_up.1"),
    "no first part": (lacking("_up.0.weight", "_down.0.weight"), "lora_down.0"),
    "no last part": (lacking("_up.2.weight", "_down.2.weight"), "256 of the 384 outputs"),
    "too many rows": (in_parts(sizes=(H, H, 2 * H)), r"\[512, 128\].*\[384, 128\]"),
    "another rank": (
        in_parts()
        | {
            key(QKV, ".lora_down.1.weight"): torch.randn(2, H),
            key(QKV, ".lora_up.1.weight"): torch.randn(H, 2),
        },
        r"lora_down.0 \[4, 128\], lora_down.1 \[2, 128\]",
    ),
    "ranks that differ": (
        in_parts() | {key(QKV, ".lora_up.1.weight"): torch.randn(H, 2)},
        r"lora_up.1 \[128, 2\] has rank 2",
    ),
    "other inputs": (in_parts() | {key(QKV, ".lora_down.1.weight"): NARROW}, "lora_down.1"),
    "no matrix": (in_parts() | {key(QKV, ".lora_up.1.weight"): torch.randn(H)}, "lora_up.1"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_part_that_does_not_fit_is_named_and_the_layer_stays(
    host, tiny_flux, patched, tmp_path, name
):
    tensors, named = SPOILT[name]
    save_file(tensors, tmp_path / "x.safetensors")
    patcher, _, report = host.load_and_fix(tiny_flux(), None, tmp_path / "x.safetensors", 1.0)
    assert not patched(patcher) and report.modules["placed"] == 0
    reasons = {outcome.reason for outcome in report.outcomes.values()}
    assert any(re.search(named, reason) for reason in reasons), reasons
