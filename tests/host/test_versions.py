"""What the same tensors mean by the version that wrote them: each weight by that version's own
formula, at every strength.
"""

from __future__ import annotations

import json

import pytest
import torch
import toy_layers
from safetensors.torch import save_file

STRENGTHS = (1.0, 0.5, -0.7, 2.0)


def blocks(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.4


def rotation(pieces):
    """PEFT's Cayley of the halved skew part, all blocks on one diagonal."""
    skew = 0.5 * (pieces - pieces.transpose(1, 2))
    identity = torch.eye(pieces.shape[-1])
    return torch.block_diag(*torch.bmm(identity - skew, torch.linalg.inv(identity + skew)))


def limited(pieces, eps):
    eps = eps / len(pieces) ** 0.5
    norm = pieces.norm(dim=(1, 2), keepdim=True)
    return torch.where(norm <= eps, pieces, eps * pieces / norm)


def old_boft(weight):
    """PEFT 0.11 to 0.13: view(in * k * k, out) of what lies in memory as [out, in * k * k]."""
    columns, scale = weight[0].numel(), torch.linspace(0.5, 2, len(weight))[None]
    pieces = blocks(1, columns // 4, 4, 4)
    turned = rotation(pieces[0]) @ weight.reshape(columns, len(weight)) * scale
    return {"boft_R": pieces, "boft_s": scale}, {"peft_type": "BOFT"}, turned.reshape(weight.shape)


def boft(weight):
    """PEFT from 0.14 on, whose settings name exclude_modules."""
    columns, scale = weight[0].numel(), torch.linspace(0.5, 2, len(weight))[None]
    pieces = blocks(1, columns // 4, 4, 4)
    turned = (rotation(pieces[0]) @ weight.flatten(1).T * scale).T
    return (
        {"boft_R": pieces, "boft_s": scale},
        {"peft_type": "BOFT", "exclude_modules": None},
        turned.reshape(weight.shape),
    )


def output_oft(weight, shared=False, coft=False):
    """PEFT 0.11 to 0.13: y R, where three blocks may be cut at the last row."""
    size, out = -(-len(weight) // 3), len(weight)
    pieces = blocks(1 if shared else 3, size, size)
    turning = rotation((limited(pieces, 0.01 * size**2) if coft else pieces).expand(3, size, size))[
        :out, :out
    ]
    settings = {"peft_type": "OFT", "coft": coft, "eps": 0.01}
    return {"oft_r": pieces}, settings, (turning.T @ weight.flatten(1)).reshape(weight.shape)


def input_oft(weight, shared=False, coft=False):
    """PEFT 0.14 and 0.15: four blocks on the inputs, and a scale per output."""
    columns, out = weight[0].numel(), len(weight)
    pieces, scale = (
        blocks(1 if shared else 4, columns // 4, columns // 4),
        torch.linspace(0.5, 2, out)[:, None],
    )
    turning = rotation(
        (limited(pieces, 0.01 * (-(-out // 4)) ** 2) if coft else pieces).expand(
            4, columns // 4, columns // 4
        )
    )
    settings = {"peft_type": "OFT", "coft": coft, "eps": 0.01, "exclude_modules": None}
    return (
        {"oft_r": pieces, "oft_s": scale},
        settings,
        ((turning @ weight.flatten(1).T).T * scale).reshape(weight.shape),
    )


CASES = {
    "BOFT of PEFT 0.13": old_boft,
    "BOFT of PEFT 0.14": boft,
    "OFT of PEFT 0.13": output_oft,
    "OFT of PEFT 0.13, shared": lambda weight: output_oft(weight, shared=True),
    "OFT of PEFT 0.13, constrained": lambda weight: output_oft(weight, coft=True),
    "OFT of PEFT 0.15": input_oft,
    "OFT of PEFT 0.15, shared": lambda weight: input_oft(weight, shared=True),
    "OFT of PEFT 0.15, constrained": lambda weight: input_oft(weight, coft=True),
}


@pytest.fixture(scope="module")
def patcher(comfy):
    return toy_layers.patcher()


@pytest.mark.parametrize("layer", ["conv2", "point2", "square2"])
@pytest.mark.parametrize("name", CASES)
def test_a_convolution_is_what_that_version_made_of_it(
    host, patched, patcher, tmp_path, name, layer
):
    module = patcher.model.get_submodule(f"diffusion_model.{layer}")
    weight, inputs = module.weight.detach(), torch.randn(toy_layers.INPUTS[layer])
    tensors, settings, truth = CASES[name](weight)
    save_file(
        {
            f"base_model.model.{layer}.{role}": tensor.contiguous()
            for role, tensor in tensors.items()
        },
        tmp_path / "x.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    bare = module(inputs)
    for strength in STRENGTHS:
        loaded, _, report = host.load_and_fix(patcher, None, tmp_path / "x.safetensors", strength)
        assert report.unplaced() == []
        change = patched(loaded)[f"diffusion_model.{layer}.weight"] - weight
        torch.testing.assert_close(change, strength * (truth - weight), rtol=2e-4, atol=2e-5)
        beside = host.load_and_fix(
            patcher, None, tmp_path / "x.safetensors", strength, bypass=True
        )[0]
        wanted = torch.func.functional_call(
            module, {"weight": weight + strength * (truth - weight)}, inputs
        )
        beside.patch_model(toy_layers.CPU)
        try:
            assert (module(inputs) - wanted).norm() < 2e-4 * (wanted - bare).norm()
        finally:
            beside.unpatch_model(toy_layers.CPU)


def test_each_version_means_something_else(patcher):
    """Otherwise the test above could not fail."""
    weight = patcher.model.diffusion_model.square2.weight.detach()
    made = {name: case(weight)[2] for name, case in CASES.items()}
    names = list(made)
    assert all(
        (made[one] - made[other]).norm() > 0.05 * weight.norm()
        for one in names
        for other in names
        if one != other
    )


# Stable Audio: torch's parametrizations, a formula for each adapter_type


def audio(weight, kind, two_dimensions=False):
    """(tensors, what the trainer makes of the weight) at alpha 8 and rank 4."""
    generator = torch.Generator().manual_seed(6)
    matrix = weight.flatten(1)
    out, columns = matrix.shape
    tensors = {
        "lora_A": torch.randn(4, columns, generator=generator) * 0.3,
        "lora_B": torch.randn(out, 4, generator=generator) * 0.3,
    }
    turned = matrix + 2 * tensors["lora_B"] @ tensors["lora_A"]
    rows, across = (
        torch.rand(out, generator=generator) + 0.5,
        torch.rand(columns, generator=generator) + 0.5,
    )
    if kind in ("dora-rows", "bora"):
        tensors["magnitude" if kind == "dora-rows" else "magnitude_r"] = rows
        turned = turned / turned.norm(dim=1, keepdim=True) * rows[:, None]
    if kind in ("dora-cols", "bora"):
        tensors["magnitude" if kind == "dora-cols" else "magnitude_c"] = (
            across[None] if two_dimensions else across
        )
        turned = turned / turned.norm(dim=0) * across
    return tensors, turned.reshape(weight.shape)


@pytest.fixture
def audio_file(tmp_path):
    """audio_file(layer, tensors, adapter_type) -> the path of a file as Stable Audio's trainer
    saves it, but in fp32.
    """

    def write(layer, tensors, kind):
        named = {
            f"model.{layer}.parametrizations.weight.0.{role}": tensor
            for role, tensor in tensors.items()
        }
        metadata = {"lora_config": json.dumps({"rank": 4, "alpha": 8, "adapter_type": kind})}
        save_file(named, tmp_path / "x.safetensors", metadata)
        return tmp_path / "x.safetensors"

    return write


@pytest.mark.parametrize("layer", ["linear", "square", "conv1", "conv2"])
@pytest.mark.parametrize("kind", ["lora", "dora-rows", "dora-cols", "dora-cols, older", "bora"])
def test_a_file_of_stable_audios_trainer(host, patched, patcher, audio_file, kind, layer):
    older, kind = kind.endswith("older"), kind.partition(",")[0]
    weight = patcher.model.get_submodule(f"diffusion_model.{layer}").weight.detach()
    tensors, truth = audio(weight, kind, older)
    path = audio_file(layer, tensors, "dora" if older else kind)
    for strength in STRENGTHS:
        loaded, _, report = host.load_and_fix(patcher, None, path, strength)
        assert report.unplaced() == [] and "Stable Audio" in str(report)
        change = patched(loaded)[f"diffusion_model.{layer}.weight"] - weight
        torch.testing.assert_close(change, strength * (truth - weight), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("companions", [(), ("magnitude",), ("magnitude_r", "magnitude_c")])
def test_a_core_without_its_bases_is_refused(host, patched, patcher, audio_file, companions):
    tensors = {"M_xs": torch.ones(4, 4), **{role: torch.ones(24) for role in companions}}
    loaded, _, report = host.load_and_fix(patcher, None, audio_file("square", tensors, "lora-xs"))
    assert not patched(loaded) and "its bases are not in the file" in str(report)


def test_magnitudes_that_only_the_header_explains_are_not_given_other_names(
    host, patcher, audio_file, tmp_path
):
    from lora_locksmith.lora.io.mapped import map_tensors
    from lora_locksmith.lora.io.writer import write_as
    from lora_locksmith.lora.rewrite.rename import Refused
    from lora_locksmith.report.inspection import inspect_file

    weight = patcher.model.diffusion_model.square.weight.detach()
    path = audio_file("square", audio(weight, "dora-cols")[0], "dora-cols")
    found = inspect_file(path, host.target_model_of(patcher, None), whole=True)
    with pytest.raises(Refused, match="DoRA magnitudes"):
        write_as(
            found.plan, map_tensors(path, found.header), tmp_path / "new.safetensors", "comfyui"
        )
    assert not (tmp_path / "new.safetensors").exists()


def test_a_mean_in_place_of_a_length(host, patched, patcher, tmp_path):
    """LyCORIS 2.2.0: half of its dora_scale [1, in] is negative."""
    generator = torch.Generator().manual_seed(6)
    for layer in ("linear", "conv2"):
        weight = patcher.model.get_submodule(f"diffusion_model.{layer}").weight.detach()
        ones = [1] * (weight.dim() - 2)
        up, down = (
            torch.randn(len(weight), 4, *ones, generator=generator),
            torch.randn(4, *weight.shape[1:], generator=generator) * 0.01,
        )
        along = [axis for axis in range(weight.dim()) if axis != 1]
        scale = weight.mean(along, keepdim=True) * (
            1 + 0.1 * torch.randn(1, weight.shape[1], *ones, generator=generator)
        )
        tensors = {
            "lora_up.weight": up,
            "lora_down.weight": down,
            "alpha": torch.tensor(4.0),
            "dora_scale": scale,
        }
        save_file(
            {f"lycoris_{layer}.{role}": tensor for role, tensor in tensors.items()},
            tmp_path / "x.safetensors",
        )
        whole = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        change = (
            patched(host.load_and_fix(patcher, None, tmp_path / "x.safetensors")[0])[
                f"diffusion_model.{layer}.weight"
            ]
            - weight
        )
        wanted = whole * scale / whole.mean(along, keepdim=True) - weight
        assert (change - wanted).norm() < 2e-4 * wanted.norm()


@pytest.mark.parametrize("layer", ["linear", "square", "conv1", "conv2"])
@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora"])
def test_a_file_of_stable_audios_trainer_under_comfyuis_names(
    host, patched, patcher, audio_file, tmp_path, kind, layer
):
    from lora_locksmith.errors import LocksmithError
    from lora_locksmith.lora.io.mapped import map_tensors
    from lora_locksmith.lora.io.writer import write_as
    from lora_locksmith.report.inspection import inspect_file

    weight = patcher.model.get_submodule(f"diffusion_model.{layer}").weight.detach()
    tensors, truth = audio(weight, kind)
    path, new = audio_file(layer, tensors, kind), tmp_path / "new.safetensors"
    found = inspect_file(path, host.target_model_of(patcher, None), whole=True)
    if kind == "bora":
        with pytest.raises(LocksmithError, match="BoRA"):
            write_as(found.plan, map_tensors(path, found.header), new, "comfyui")
        return
    write_as(found.plan, map_tensors(path, found.header), new, "comfyui")
    change = (
        patched(host.load_and_fix(patcher, None, new)[0])[f"diffusion_model.{layer}.weight"]
        - weight
    )
    torch.testing.assert_close(change, truth - weight, rtol=2e-4, atol=2e-5)
