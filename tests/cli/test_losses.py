"""What merge, fix, resize and extract lose, or must refuse, is told first: text encoders, full
matrices, NaN, what the machine lacks.
"""

from __future__ import annotations

import json

import pytest
import torch
from comfy_models import shapes
from hollow_files import write_hollow
from lora_locksmith.commands import parser
from safetensors.torch import load_file, save_file

FOLDER = "my loras/\u6a21\u578b f\u00fcr alle"
FLUX = {"ss_base_model_version": "flux1"}
SD15 = {"ss_base_model_version": "sd_v1"}
SQUARE = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
CLIP_L, CLIP_G = (
    ("text_model_encoder_layers_{}_self_attn_q_proj", width, width) for width in (768, 1280)
)
T5 = ("encoder_block_{}_layer_0_SelfAttention_q", 4096, 4096)
# model, its denoiser's module, text encoders by the number kohya gives them
MODELS = {
    "sd3_medium": (("joint_blocks_0_x_block_mlp_fc1", 6144, 1536), {1: CLIP_L, 2: CLIP_G, 3: T5}),
    "sdxl": (
        ("output_blocks_1_1_transformer_blocks_0_attn1_to_q", 1280, 1280),
        {1: CLIP_L, 2: CLIP_G},
    ),
    "flux1_dev": (("double_blocks_0_img_mlp_0", 12288, 3072), {1: CLIP_L, 3: T5}),
}


@pytest.fixture(autouse=True)
def threads():
    """fix chooses how many threads there are, for its own process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys):
    """run("merge", ...) -> (exit code, first line of the output, all of it and of the errors)."""

    def call(*arguments):
        code = parser.run(list(map(str, arguments)))
        told = capsys.readouterr()
        return code, told.out.partition("\n")[0], told.out + told.err

    return call


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / FOLDER
    place.mkdir(parents=True)
    return place


def pair(module, out, inner, seed, rank=2):
    generator = torch.Generator().manual_seed(seed)
    down, up = (
        torch.randn(rank, inner, generator=generator),
        torch.randn(out, rank, generator=generator),
    )
    return {
        f"{module}.lora_down.weight": down,
        f"{module}.lora_up.weight": up,
        f"{module}.alpha": torch.tensor(1.0),
    }


def with_encoders(kind, blocks, seed=5):
    """A LoRA as kohya writes it, on one module of the model and these blocks of
    its text encoders.
    """
    module, encoders = MODELS[kind]
    tensors = pair(f"lora_unet_{module[0]}", *module[1:], seed)
    for number, (name, out, inner) in encoders.items():
        for block in blocks:
            tensors |= pair(f"lora_te{number}_{name.format(block)}", out, inner, seed + block)
    return tensors


def model_file(folder, kind):
    """The diffusion model alone, as it is published: no text encoder is in it."""
    names = {
        name.removeprefix("diffusion_model."): shape
        for name, shape in shapes(kind).items()
        if name.startswith("diffusion_model.")
    }
    return write_hollow(folder / "the model.safetensors", names)


def change(tensors, module):
    return (
        (tensors[f"{module}.lora_up.weight"] @ tensors[f"{module}.lora_down.weight"])
        * tensors[f"{module}.alpha"]
        / 2
    )


@pytest.mark.parametrize("kind", MODELS)
def test_text_encoders_stay_where_the_model_s_file_has_none(comfy, run, folder, kind):
    """Files that train other blocks of them, merged and fixed against the diffusion model alone."""
    model = model_file(folder, kind)
    plain = pair(f"lora_unet_{MODELS[kind][0][0]}", *MODELS[kind][0][1:], 9)
    files = {
        "one": with_encoders(kind, (0, 2)),
        "two": with_encoders(kind, (1,), 6),
        "three": plain,
    }
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    paths = [folder / f"{name}.safetensors" for name in files]
    for dialect in ("comfyui", "kohya"):
        out = folder / f"{dialect}.safetensors"
        code, first, told = run(
            "merge", f"{paths[0]}=0.5", *paths[1:], "-o", out, "--to", dialect, "--against", model
        )
        assert code == 0 and first.startswith("**3 LoRAs merged") and "Nothing was lost" in told
    made = load_file(folder / "kohya.safetensors")
    modules = {key.partition(".")[0] for tensors in files.values() for key in tensors}
    assert {key.partition(".")[0] for key in made} == modules and len(modules) == 1 + 3 * len(
        MODELS[kind][1]
    )
    for module in modules:
        rank = made[f"{module}.lora_down.weight"].shape[0]
        got = change(made, module) * 2 / rank
        want = sum(
            (0.5 if name == "one" else 1) * change(file, module)
            for name, file in files.items()
            if f"{module}.alpha" in file
        )
        assert (got - want).norm() < 1e-5 * want.norm(), module
    code, _, told = run("fix", paths[0], "--to", "comfyui", "--against", model)
    fixed = load_file(folder / "one.comfyui.safetensors")
    assert code == 0 and "verified" in told and len(fixed) == len(files["one"])
    code, _, told = run(
        "resize", paths[0], "-o", folder / "small.safetensors", "--rank", "1", "--against", model
    )
    assert code == 0 and load_file(folder / "small.safetensors").keys() == files["one"].keys()


def test_a_lora_of_text_encoders_alone_is_merged_with_the_model_s(comfy, run, folder):
    tensors = with_encoders("sd3_medium", (0,))
    save_file(
        {key: value for key, value in tensors.items() if "_te" in key}, folder / "only.safetensors"
    )
    out = folder / "out.safetensors"
    assert (
        run(
            "merge",
            folder / "only.safetensors",
            "-o",
            out,
            "--against",
            model_file(folder, "sd3_medium"),
        )[0]
        == 0
    )
    assert len(load_file(out)) == 2 * 3


def test_what_has_no_place_is_told_first_and_the_code_is_1(comfy, run, folder):
    known = pair("lora_unet_img_in", 3072, 64, 1) | pair("lora_unet_time_in_in_layer", 3072, 256, 2)
    tensors = known | with_encoders("flux1_dev", ()) | pair("lora_unet_nowhere_at_all", 8, 8, 1)
    save_file(tensors, folder / "odd.safetensors", FLUX)
    out = folder / "out.safetensors"
    code, first, told = run("merge", folder / "odd.safetensors", "-o", out)
    assert (
        code == 1
        and first.startswith("**Not whole: 3 keys of odd.safetensors are left out")
        and "nowhere" in first
    )
    assert "Nothing was lost" not in told
    code, first, _ = run("merge", folder / "odd.safetensors", "--dry-run")
    assert code == 1 and first.startswith("**Not whole: 3 keys")
    assert (
        run(
            "merge",
            f"{folder / 'odd.safetensors'}=0",
            folder / "odd.safetensors",
            "-o",
            out,
            "--overwrite",
            "--json",
        )[0]
        == 1
    )
    code, first, _ = run("fix", folder / "odd.safetensors", "--to", "diffusers", "--drop")
    assert code == 1 and ": 3 keys are left out (" in first and "the rest is verified" in first


def lokr(seed, alpha=float("inf")):
    """As AI-Toolkit's full rank: both factors whole, and an alpha that does not count."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(16, 16, generator=generator),
        torch.randn(20, 20, generator=generator),
    )
    return {
        f"{SQUARE}.lokr_w1": first,
        f"{SQUARE}.lokr_w2": second,
        f"{SQUARE}.alpha": torch.tensor(alpha),
    }


def test_full_matrices_are_cut_only_with_a_word_and_exact_when_asked(run, folder):
    files = [lokr(1), lokr(2)]
    for number, tensors in enumerate(files):
        save_file(tensors, folder / f"{number}.safetensors", SD15)
    paths, out = [folder / "0.safetensors", folder / "1.safetensors"], folder / "out.safetensors"
    want = sum(
        torch.kron(tensors[f"{SQUARE}.lokr_w1"], tensors[f"{SQUARE}.lokr_w2"]) for tensors in files
    )
    code, first, _ = run("merge", *paths, "--dry-run")
    assert (
        code == 1 and first.startswith("**Not exact: 1 weight would be cut") and "0.4 MB" in first
    )
    code, first, told = run("merge", *paths, "-o", out)
    made = load_file(out)
    error = (
        want - made[f"{SQUARE}.lora_up.weight"] @ made[f"{SQUARE}.lora_down.weight"]
    ).norm() / want.norm()
    assert code == 1 and first.startswith(
        "**Not exact: 1 weight cut to rank 128, the largest error "
    )
    assert f"{100 * error:.2g} %" in first and error > 0.3 and "Nothing was lost" not in told
    code, first, told = run("merge", *paths, "--exact", "--dry-run")
    assert code == 0 and "1 weight, 0.4 MB" in first
    code, first, told = run("merge", *paths, "-o", out, "--overwrite", "--exact")
    assert code == 0 and "up to 0.4 MB" in told and "Nothing was lost" in told
    assert (load_file(out)[f"{SQUARE}.diff"] - want).norm() < 1e-6 * want.norm()
    assert run("merge", *paths, "-o", out, "--exact", "--rank", "4")[0] == 2
    # One alone is a Kronecker product, which is written as it is.
    code, first, _ = run("merge", paths[0], "--dry-run")
    assert code == 0 and run("merge", f"{paths[0]}=0.5", "-o", folder / "one.safetensors")[0] == 0
    assert "lokr_w1" in " ".join(load_file(folder / "one.safetensors"))


def test_a_cut_that_was_asked_for_is_no_fault(run, folder):
    save_file(lokr(1), folder / "a.safetensors", SD15)
    code, first, told = run(
        "merge", folder / "a.safetensors", "-o", folder / "o.safetensors", "--rank", "4"
    )
    assert code == 0 and first.startswith("**1 LoRA merged") and "What was cut" in told


@pytest.mark.parametrize(
    "number, word", [(float("nan"), "holds NaN"), (float("inf"), "holds infinite numbers")]
)
def test_numbers_that_are_none_are_refused_by_name(run, folder, number, word):
    odd = pair("lora_unet_img_in", 3072, 64, 1) | pair("lora_unet_time_in_in_layer", 3072, 256, 2)
    good = dict(odd)
    key = "lora_unet_time_in_in_layer.lora_up.weight"
    odd[key] = odd[key].index_fill(0, torch.tensor([77]), number)
    save_file(odd, folder / "odd.safetensors", FLUX)
    save_file(good, folder / "good.safetensors", FLUX)
    before, out = sorted(folder.iterdir()), folder / "out.safetensors"
    for arguments in (
        ("merge", folder / "good.safetensors", folder / "odd.safetensors", "-o", out),
        ("merge", folder / "odd.safetensors", "--dry-run"),
        ("merge", folder / "odd.safetensors", "-o", out, "--method", "ties"),
        ("fix", folder / "odd.safetensors"),
        ("fix", folder / "odd.safetensors", "--to", "diffusers"),
        ("resize", folder / "odd.safetensors", "-o", out, "--rank", "1"),
    ):
        code, _, told = run(*arguments)
        assert (
            code in (1, 2)
            and f"odd.safetensors: {key} {word}" in told.replace("not written: ", "")
            and "again" in told
        ), arguments
        assert "verified" not in told and sorted(folder.iterdir()) == before
    blocks = ("--blocks", "2", "time_in.in_layer=0")
    assert (
        run("merge", folder / "good.safetensors", folder / "odd.safetensors", "-o", out, *blocks)[0]
        == 0
    )
    assert all(tensor.isfinite().all() for tensor in load_file(out).values())
    code, first, _ = run("fix", folder / "odd.safetensors", "--to", "comfyui", "--drop")
    assert (
        code == 1
        and "3 keys are left out" in first
        and len(load_file(folder / "odd.comfyui.safetensors")) == 3
    )


def test_an_infinite_alpha_that_does_not_count_is_lawful(run, folder):
    save_file(lokr(1), folder / "a.safetensors", SD15)
    code, _, told = run("fix", folder / "a.safetensors", "--to", "kohya")
    assert code == 0 and "verified" in told
    tensors = pair("lora_unet_img_in", 3072, 64, 1)
    save_file(
        tensors | {"lora_unet_img_in.alpha": torch.tensor(float("inf"))},
        folder / "b.safetensors",
        FLUX,
    )
    code, _, told = run("fix", folder / "b.safetensors", "--to", "diffusers")
    assert code == 1 and "alpha holds infinite numbers" in told


def test_a_result_that_is_too_large_is_not_written(run, folder):
    tensors = {key: value * 1e4 for key, value in pair("lora_unet_img_in", 3072, 64, 1).items()}
    save_file(tensors, folder / "a.safetensors", FLUX)
    for arguments in (("merge", "--dtype", "fp16"), ("resize", "--rank", "1", "--dtype", "fp16")):
        code, _, told = run(
            arguments[0],
            f"{folder / 'a.safetensors'}",
            "-o",
            folder / "o.safetensors",
            *arguments[1:],
        )
        assert code == 2 and "too large for fp16" in told, arguments
    assert not (folder / "o.safetensors").exists()


NO_MEMORY, NO_THREADS = (
    (MemoryError(), "not enough memory"),
    (
        RuntimeError("can't start new thread"),
        "no more threads",
    ),
)


@pytest.mark.parametrize(
    "command, fault, word",
    [(command, *what) for command in ("merge", "fix", "resize") for what in (NO_MEMORY, NO_THREADS)]
    + [("inspect", *NO_MEMORY), ("compare", *NO_MEMORY)],
)
def test_what_the_machine_lacks_is_one_line(run, folder, monkeypatch, command, fault, word):
    """The real limit is the system's; here the reader of tensors meets it."""
    from lora_locksmith.lora.io import mapped as reader
    from lora_locksmith.lora.io import stream
    from lora_locksmith.lora.rewrite import resize

    def fail(*_, **__):
        raise fault

    for module in (reader, resize):
        monkeypatch.setattr(module, "map_tensors", fail)
    monkeypatch.setattr(stream.TensorStream, "__getitem__", fail)
    path = folder / "a.safetensors"
    save_file(lokr(1), path, SD15)
    more = {
        "merge": ("-o", folder / "o"),
        "fix": ("--to", "kohya"),
        "resize": ("-o", folder / "o", "--rank", "1"),
        "inspect": ("--weights",),
        "compare": (path, "--weights"),
    }
    code, _, told = run(command, path, *more[command])
    assert (
        code == 2
        and word in told
        and "a.safetensors" in told
        and "Traceback" not in told
        and len(told.splitlines()) == 1
    )


def test_biases_of_a_drawn_model_are_compared(run, folder):
    tensors = pair("lora_unet_img_in", 3072, 64, 1) | {"lora_unet_img_in.diff_b": torch.ones(3072)}
    save_file(tensors, folder / "a.safetensors", FLUX)
    path = folder / "a.safetensors"
    code, _, told = run("compare", path, path, "--weights", "--json")
    overlaps = json.loads(told)["weights"]["meetings"]
    assert (
        code == 0
        and len(overlaps) == 2
        and all(meeting["cosine"] > 0.999999 for meeting in overlaps)
    )
    assert [meeting["weight"] for meeting in overlaps if meeting["weight"].endswith(".bias")]


def test_a_bias_on_one_of_two_modules_goes_into_every_dialect(run, folder):
    tensors = pair("lora_unet_img_in", 3072, 64, 1) | pair(
        "lora_unet_time_in_in_layer", 3072, 256, 2
    )
    tensors["lora_unet_img_in.lora_up.bias"] = torch.ones(3072)
    save_file(tensors, folder / "a.safetensors", FLUX)
    for dialect, count in (("comfyui", 1), ("kohya", 1), ("diffusers", 2)):
        code, _, told = run("fix", folder / "a.safetensors", "--to", dialect)
        made = load_file(folder / f"a.{dialect}.safetensors")
        biases = [tensor for name, tensor in made.items() if name.endswith(("diff_b", ".bias"))]
        assert code == 0 and "verified" in told and len(biases) == count, told
        assert (
            sorted(float(tensor.max()) > 0 for tensor in biases)[-1]
            and sum(float(tensor.max()) > 0 for tensor in biases) == 1
        )


def test_a_tucker_lokr_of_a_convolution_merges_and_converts(run, folder):
    generator = torch.Generator().manual_seed(3)
    name = "lora_unet_input_blocks_1_0_in_layers_2"
    shape = {"lokr_w1": (4, 4), "lokr_w2_a": (2, 80), "lokr_w2_b": (2, 80), "lokr_t2": (2, 2, 3, 3)}
    tensors = {
        f"{name}.{role}": torch.randn(sizes, generator=generator) for role, sizes in shape.items()
    }
    tensors |= {f"{name}.alpha": torch.tensor(2.0)} | with_encoders("sdxl", ())
    save_file(tensors, folder / "a.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    path, out = folder / "a.safetensors", folder / "o.safetensors"
    code, _, told = run("merge", path, f"{path}=0.5", "-o", out)
    assert code == 0, told
    left = tensors[f"{name}.lokr_w2_a"], tensors[f"{name}.lokr_w2_b"]
    core = torch.einsum("pqhw,po,qi->oihw", tensors[f"{name}.lokr_t2"], *left)
    want = 1.5 * torch.kron(tensors[f"{name}.lokr_w1"][..., None, None], core.contiguous())
    made = load_file(out)
    module = "diffusion_model.input_blocks.1.0.in_layers.2"
    got = made[f"{module}.lora_up.weight"].flatten(1) @ made[f"{module}.lora_down.weight"].flatten(
        1
    )
    assert (got - want.flatten(1)).norm() < 1e-5 * want.norm()
    code, _, told = run("fix", path, "--to", "peft")
    assert code == 0 and "verified" in told, told
