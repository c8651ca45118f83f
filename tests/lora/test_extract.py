"""Extracted LoRAs on real ComfyUI models: the base under the LoRA is the tuned model, whatever
names and dtypes the two files have.
"""

import argparse
import copy
import json

import pytest
import torch
from lora_locksmith.adapters.spec import AdapterError
from lora_locksmith.commands import extract as command
from lora_locksmith.files.header import LoraFileError, read_header
from lora_locksmith.lora.io.model_file import ModelFile
from lora_locksmith.lora.rewrite.extract import ExtractOptions, RankTarget, extract, extract_file
from lora_locksmith.messages import Speaker
from safetensors.torch import load_file, save_file

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
PREFIX = "diffusion_model."
RANK = 4


@pytest.fixture(scope="module")
def base(tiny_flux):
    weights = tiny_flux().model.state_dict()
    return {
        name.removeprefix(PREFIX): weight.clone()
        for name, weight in weights.items()
        if name.startswith(PREFIX)
    }


def moved(weight, rank=RANK, size=0.3):
    """A weight after a training that changed it by a low rank; a vector after any."""
    if weight.dim() < 2:
        return weight + 0.1 * torch.randn_like(weight)
    flat = weight.flatten(1)
    change = torch.randn(flat.shape[0], rank) @ torch.randn(rank, flat.shape[1])
    return weight + size * weight.norm() / change.norm() * change.reshape(weight.shape)


@pytest.fixture(scope="module")
def tuned(base):
    torch.manual_seed(8)
    untouched = ("img_in", "final_layer", "txt_in")
    return {
        name: weight if name.startswith(untouched) else moved(weight)
        for name, weight in base.items()
    }


def saved(path, tensors, prefix="", dtype=None):
    save_file(
        {
            prefix + name: (tensor if dtype is None else tensor.to(dtype)).contiguous()
            for name, tensor in tensors.items()
        },
        path,
    )
    return path


def patched_by_stock(patcher, path):
    """name -> weight of the tiny FLUX under the LoRA, by stock ComfyUI; nothing of the file may be
    left over.
    """
    import comfy.lora

    tensors = load_file(path)
    patches = comfy.lora.load_lora(
        tensors, comfy.lora.model_lora_keys_unet(patcher.model, {}), log_missing=False
    )
    weights = patcher.model.state_dict()
    key_of = {key: key if isinstance(key, str) else key[0] for key in patches}
    return {
        key_of[key].removeprefix(PREFIX): comfy.lora.calculate_weight(
            [(1.0, patch, 1.0, None, None)], weights[key_of[key]].clone(), key
        )
        for key, patch in patches.items()
    }


def error(actual, base, tuned):
    """Relative to what changed."""
    return ((actual - tuned).norm() / (tuned - base).norm()).item()


@pytest.mark.parametrize(
    "prefixes", [("", ""), ("model.diffusion_model.", ""), ("", "model.diffusion_model.")]
)
def test_the_base_becomes_the_tuned_model(tmp_path, tiny_flux, base, tuned, prefixes):
    files = (
        saved(tmp_path / "base.safetensors", base, prefixes[0]),
        saved(tmp_path / "tuned.safetensors", tuned, prefixes[1]),
    )
    found = extract_file(
        *files, tmp_path / "lora.safetensors", ExtractOptions(RankTarget(RANK), extras=True)
    )
    patched = patched_by_stock(tiny_flux(), tmp_path / "lora.safetensors")
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert patched.keys() == changed == {row.weight.removeprefix(PREFIX) for row in found.rows}
    assert found.unchanged == len(base) - len(changed) and not found.left_out
    for name in changed:
        assert error(patched[name], base[name], tuned[name]) < 1e-5, name


def test_from_diffusers_names_onto_native_ones(tmp_path, tiny_flux, both):
    """q, k, v of the one file are rows of one weight of the other; the last layer's halves are
    swapped.
    """
    torch.manual_seed(9)
    twin = copy.deepcopy(both.twin)
    native = {
        name.removeprefix(PREFIX): weight.clone()
        for name, weight in both.native.model.state_dict().items()
        if name.startswith(PREFIX)
    }
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(moved(parameter, 1))
    base_file, tuned_file = (
        saved(tmp_path / "base.safetensors", native),
        saved(tmp_path / "tuned.safetensors", twin.state_dict()),
    )
    found = extract_file(
        base_file,
        tuned_file,
        tmp_path / "lora.safetensors",
        ExtractOptions(RankTarget(8), extras=True),
    )
    patched = patched_by_stock(both.native, tmp_path / "lora.safetensors")
    assert patched.keys() == native.keys() and not found.left_out
    again = ModelFile(tuned_file)
    for name, weight in native.items():
        meant = again.read(PREFIX + name)
        assert error(patched[name], weight, meant) < 1e-5, name
    swapped = twin.state_dict()["norm_out.linear.weight"].roll(128, 0)
    assert torch.equal(again.read(PREFIX + "final_layer.adaLN_modulation.1.weight"), swapped)
    assert torch.equal(
        again.read(PREFIX + "double_blocks.1.img_attn.qkv.weight")[128:256],
        twin.state_dict()["transformer_blocks.1.attn.to_k.weight"],
    )


def test_energy_chooses_each_rank(tmp_path, base):
    torch.manual_seed(10)
    tuned = {name: weight + 0.01 * torch.randn_like(weight) for name, weight in base.items()}
    first, second = (
        ModelFile(saved(tmp_path / "a.safetensors", base)),
        ModelFile(saved(tmp_path / "b.safetensors", tuned)),
    )
    for item in extract(first, second, ExtractOptions(RankTarget(energy=0.5))):
        name = item.weight.removeprefix(PREFIX)
        change = (tuned[name] - base[name]).double().flatten(1)
        squares = torch.linalg.svdvals(change).square()
        rank = int((squares.cumsum(0) / squares.sum() < 0.5).sum()) + 1
        best = (squares[rank:].sum() / squares.sum()).sqrt().item()
        assert item.delta.down.shape[0] == rank
        assert (
            (change - item.delta.dense().double()).norm() / change.norm()
        ).item() == pytest.approx(best, rel=1e-5)


def test_rounding_is_no_training(tmp_path, base, tuned):
    """The tuned model in bf16: what it did not train is only rounded, and is left out."""
    files = (
        saved(tmp_path / "base.safetensors", base),
        saved(tmp_path / "tuned.safetensors", tuned, dtype=torch.bfloat16),
    )
    found = extract_file(*files, tmp_path / "lora.safetensors", ExtractOptions(RankTarget(RANK)))
    assert {row.weight.removeprefix(PREFIX).split(".")[0] for row in found.rows}.isdisjoint(
        ("img_in", "final_layer", "txt_in")
    )
    assert {tensor.dtype for tensor in load_file(tmp_path / "lora.safetensors").values()} == {
        torch.bfloat16
    }
    assert all(row.error < 0.05 for row in found.rows)
    assert all(reason.startswith("norms, biases") for reason in found.left_out.values())


def test_scaled_fp8(tmp_path, base, tuned):
    """The base as scaled fp8 of ComfyUI: its values are multiplied before they are compared."""
    name = "double_blocks.0.img_mlp.0.weight"
    scale = base[name].abs().max() / 448
    quantised = base | {
        name: (base[name] / scale).to(torch.float8_e4m3fn),
        name.replace("weight", "scale_weight"): scale.reshape(1),
    }
    first = ModelFile(
        saved(
            tmp_path / "a.safetensors",
            quantised | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)},
        )
    )
    second = ModelFile(saved(tmp_path / "b.safetensors", tuned))
    assert torch.equal(first.read(PREFIX + name), quantised[name].float() * scale)
    item = next(
        item
        for item in extract(first, second, ExtractOptions(RankTarget(64)))
        if item.weight == PREFIX + name
    )
    change = tuned[name] - quantised[name].float() * scale
    assert ((item.delta.dense() - change).norm() / change.norm()).item() < 0.05


def test_packed_weights_are_left_out_by_name(tmp_path, base, tuned):
    name = "double_blocks.0.img_mlp.0.weight"
    packed = base | {name: base[name].to(torch.int8)}
    found = extract_file(
        saved(tmp_path / "a.safetensors", packed),
        saved(tmp_path / "b.safetensors", tuned),
        tmp_path / "l.safetensors",
        ExtractOptions(RankTarget(2)),
    )
    assert "packed (I8)" in found.left_out[PREFIX + name]


CONVOLUTIONS = {
    "input_blocks.0.0": (24, 16, 3, 3),
    "temporal": (24, 16, 3, 3, 3),
    "proj_in": (16, 24, 1, 1),
    "to_q": (32, 16),
}


def test_convolutions(tmp_path, comfy):
    import comfy.lora

    torch.manual_seed(11)
    before = {
        f"model.diffusion_model.{name}.weight": torch.randn(shape)
        for name, shape in CONVOLUTIONS.items()
    }
    after = {name: moved(weight, 3) for name, weight in before.items()}
    save_file(before, tmp_path / "a.safetensors")
    save_file(after, tmp_path / "b.safetensors")
    extract_file(
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        tmp_path / "l.safetensors",
        ExtractOptions(RankTarget(3)),
    )
    tensors = load_file(tmp_path / "l.safetensors")
    for name, shape in CONVOLUTIONS.items():
        assert tensors[f"{PREFIX}{name}.lora_down.weight"].shape == (3, *shape[1:])
        patch = comfy.lora.load_lora(tensors, {PREFIX + name: name}, log_missing=False)[name]
        weight, meant = (
            tensors[f"model.diffusion_model.{name}.weight"] for tensors in (before, after)
        )
        assert (
            error(
                comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.clone(), name),
                weight,
                meant,
            )
            < 1e-5
        )


def test_clamping_as_sd_scripts_has_it_only_when_asked(tmp_path, base, tuned):
    first, second = (
        ModelFile(saved(tmp_path / "a.safetensors", base)),
        ModelFile(saved(tmp_path / "b.safetensors", tuned)),
    )
    free, clamped = (
        {
            item.weight: item.delta
            for item in extract(first, second, ExtractOptions(RankTarget(RANK), clamp=clamp))
        }
        for clamp in (None, 0.9)
    )
    name = next(iter(free))
    change = (second.read(name) - first.read(name)).double()
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    # The quantile is of values with their signs, which a decomposition may choose.
    signs = (left[:, :RANK] * free[name].up).sum(0).sign()
    up, down = left[:, :RANK] * values[:RANK] * signs, right[:RANK] * signs[:, None]
    most = torch.cat((up.flatten(), down.flatten())).quantile(0.9)
    meant = up.clamp(-most, most) @ down.clamp(-most, most)
    assert (clamped[name].dense() - meant).norm() / meant.norm() < 1e-4
    assert (free[name].dense() - change).norm() / change.norm() < 1e-5


def test_metadata_and_refusals(tmp_path, base, tuned):
    files = saved(tmp_path / "base.safetensors", base), saved(tmp_path / "tuned.safetensors", tuned)
    target = tmp_path / "lora.safetensors"
    with pytest.raises(LoraFileError, match="changes nothing"):
        extract_file(files[0], files[0], target, ExtractOptions(RankTarget(2)))
    with pytest.raises(ValueError, match="specify a rank"):
        extract_file(*files, target, ExtractOptions(RankTarget()))
    broken = saved(
        tmp_path / "broken.safetensors",
        tuned | {"img_in.weight": torch.full_like(base["img_in.weight"], float("nan"))},
    )
    with pytest.raises(
        AdapterError,
        match=r"broken\.safetensors: diffusion_model\.img_in\.weight holds NaN or infinite numbers",
    ):
        extract_file(files[0], broken, target, ExtractOptions(RankTarget(2)))
    assert not target.exists()
    extract_file(*files, target, ExtractOptions(RankTarget(2)))
    metadata = read_header(target).metadata
    assert (
        metadata["ss_network_dim"],
        metadata["locksmith.source"],
        metadata["locksmith.base"],
    ) == (
        "2",
        "tuned.safetensors",
        "base.safetensors",
    )
    with pytest.raises(FileExistsError):
        extract_file(*files, target, ExtractOptions(RankTarget(2)))


def test_any_dialect(tmp_path, tiny_flux, base, tuned):
    files = saved(tmp_path / "base.safetensors", base), saved(tmp_path / "tuned.safetensors", tuned)
    how = ExtractOptions(RankTarget(RANK))
    extract_file(*files, tmp_path / "kohya.safetensors", how, dialect="kohya")
    patched = patched_by_stock(tiny_flux(), tmp_path / "kohya.safetensors")
    changed = [
        name for name in base if base[name].dim() > 1 and not torch.equal(base[name], tuned[name])
    ]
    assert all(error(patched[name], base[name], tuned[name]) < 1e-5 for name in changed)


def run(*arguments):
    """The command with these arguments; its exit code."""
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(), Speaker())
    options = parser.parse_args(["extract", *map(str, arguments)])
    return options.run(options)


def test_the_command(tmp_path, base, tuned, capsys):
    files = saved(tmp_path / "base.safetensors", base), saved(tmp_path / "tuned.safetensors", tuned)
    target = tmp_path / "lora.safetensors"
    assert run(*files, "-o", target, "--rank", RANK) == 0
    assert (
        f"weights of rank {RANK}" in (told := capsys.readouterr().out)
        and "only taken when asked for" in told
    )
    assert run(*files, "-o", target, "--energy", 0.9, "--extras", "--overwrite", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["left_out"] == {} and 0.9 <= told["kept_energy"] <= 1
    less = saved(
        tmp_path / "less.safetensors",
        {name: weight for name, weight in base.items() if "double_blocks.0.img_mlp.0" not in name},
    )
    assert run(less, files[1], "-o", target, "--rank", 2, "--overwrite") == 1
    assert "the base does not have it" in capsys.readouterr().out
    assert (
        run(
            files[0],
            files[0],
            "-o",
            tmp_path / "x.safetensors",
            "--rank",
            2,
            "--to",
            "kohya",
            "--json",
        )
        == 2
    )


def encoder(width, layers=1):
    """CLIP's text encoder in OpenCLIP's names and in ComfyUI's: the same numbers, q, k, v fused in
    the one.
    """
    shapes = {
        "attn.out_proj": ("self_attn.out_proj", width, width),
        "mlp.c_fc": ("mlp.fc1", 2 * width, width),
        "mlp.c_proj": ("mlp.fc2", width, 2 * width),
    }
    fused, native = (
        {
            "ln_final.weight": torch.ones(width),
            "token_embedding.weight": torch.randn(10, width),
        },
        {},
    )
    native["text_model.final_layer_norm.weight"] = fused["ln_final.weight"]
    native["text_model.embeddings.token_embedding.weight"] = fused["token_embedding.weight"]
    for layer in range(layers):
        theirs, ours = f"transformer.resblocks.{layer}.", f"text_model.encoder.layers.{layer}."
        fused[f"{theirs}attn.in_proj_weight"] = torch.randn(3 * width, width)
        for part, name in zip(fused[f"{theirs}attn.in_proj_weight"].chunk(3), "qkv", strict=True):
            native[f"{ours}self_attn.{name}_proj.weight"] = part.clone()
        for name, (other, out, columns) in shapes.items():
            fused[f"{theirs}{name}.weight"] = native[f"{ours}{other}.weight"] = torch.randn(
                out, columns
            )
    return fused, native


def test_text_encoders_of_checkpoints(tmp_path, base):
    """CLIP-L in ComfyUI's names, CLIP-G in OpenCLIP's in the one file and in ComfyUI's in the
    other.
    """
    torch.manual_seed(12)
    (fused, native), (_, small) = encoder(1280), encoder(64)
    denoiser = {f"model.diffusion_model.{name}": weight for name, weight in base.items()}
    first = denoiser | {
        f"conditioner.embedders.1.model.{name}": weight for name, weight in fused.items()
    }
    first |= {
        f"conditioner.embedders.0.transformer.{name}": weight for name, weight in small.items()
    }
    changed = {
        name: moved(weight, 2) if weight.shape[0] > 10 and weight.dim() > 1 else weight
        for name, weight in native.items()
    }
    second = denoiser | {
        f"text_encoders.clip_g.transformer.{name}": weight for name, weight in changed.items()
    }
    second |= {
        f"text_encoders.clip_l.transformer.{name}": moved(weight, 2)
        for name, weight in small.items()
        if weight.dim() > 1
    }
    files = saved(tmp_path / "a.safetensors", first), saved(tmp_path / "b.safetensors", second)
    found = {
        item.weight: item.delta.dense()
        for item in extract(ModelFile(files[0]), ModelFile(files[1]), ExtractOptions(RankTarget(2)))
    }
    expected = {
        f"clip_g.transformer.{name}": changed[name] - weight
        for name, weight in native.items()
        if changed[name] is not weight
    }
    expected |= {
        f"clip_l.transformer.{name}": second[f"text_encoders.clip_l.transformer.{name}"] - weight
        for name, weight in small.items()
        if weight.dim() > 1
    }
    assert found.keys() == expected.keys() and len(found) == 13
    for name, change in expected.items():
        assert (found[name] - change).norm() / change.norm() < 1e-4, name
