"""Resized files against the optimum in fp64, their deltas computed by stock ComfyUI and by PEFT
themselves.
"""

import argparse
import copy
import json

import pytest
import torch
from lora_locksmith.adapters.spec import AdapterError
from lora_locksmith.commands import resize as command
from lora_locksmith.files.hashes import file_hashes
from lora_locksmith.files.header import read_header
from lora_locksmith.lora.rewrite.resize import RankTarget, resize_file
from lora_locksmith.messages import Speaker
from lora_locksmith.report.inspection import inspect_file
from safetensors.torch import load_file, save_file

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
H = 128
PREFIX = "diffusion_model."


@pytest.fixture(scope="module")
def by_stock(comfy):
    """(file, module, shape) -> the delta stock ComfyUI adds to the weight."""
    import comfy.lora

    def delta(path, module, shape):
        patches = comfy.lora.load_lora(load_file(path), {module: module}, log_missing=False)
        return comfy.lora.calculate_weight(
            [(1.0, patches[module], 1.0, None, None)], torch.zeros(shape), module
        ).double()

    return delta


def optimum(delta, rank):
    """The best approximation of a rank, by torch's own decomposition."""
    left, values, right = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(delta.shape)


def close(actual, expected, tolerance=1e-5):
    error = ((actual - expected).norm() / expected.norm()).item()
    assert error < tolerance, f"relative error {error:.2e}"


def lora(module, out, columns, rank, alpha=None, dtype=torch.float32, kernel=()):
    tensors = {
        f"{module}.lora_up.weight": torch.randn(out, rank, *(1 for _ in kernel)),
        f"{module}.lora_down.weight": torch.randn(rank, columns, *kernel),
    }
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return tensors | (
        {f"{module}.alpha": torch.tensor(alpha, dtype=dtype)} if alpha is not None else {}
    )


QKV = "lora_unet_double_blocks_0_img_attn_qkv"
PROJ = "lora_unet_double_blocks_0_img_attn_proj"
KOHYA = {
    "ss_network_dim": "12",
    "ss_network_alpha": "6",
    "ss_network_module": "networks.lora_flux",
    "sshs_legacy_hash": "12345678",
}


@pytest.fixture
def kohya(tmp_path):
    path = tmp_path / "kohya.safetensors"
    tensors = lora(QKV, 3 * H, H, 12, 6.0) | lora(PROJ, H, H, 4, 8.0)
    save_file(
        tensors | {"lora_unet_double_blocks_0_img_attn_norm_query_norm.diff": torch.ones(8)},
        path,
        KOHYA,
    )
    return path


def test_kohya_to_a_rank(kohya, tmp_path, by_stock):
    target = tmp_path / "small.safetensors"
    made = resize_file(kohya, target, RankTarget(5))
    before, after = load_file(kohya), load_file(target)
    assert after.keys() == before.keys()
    assert after[f"{QKV}.lora_down.weight"].shape == (5, H) and after[f"{QKV}.alpha"] == 2.5
    close(by_stock(target, QKV, (3 * H, H)), optimum(by_stock(kohya, QKV, (3 * H, H)), 5))
    # What has no more rank than asked stays as it is, to the bit.
    assert all(
        torch.equal(after[name], before[name]) for name in before if not name.startswith(QKV)
    )
    row = next(row for row in made.rows if row.module == QKV)
    whole = by_stock(kohya, QKV, (3 * H, H))
    assert (row.before, row.rank) == (12, 5)
    assert row.energy == pytest.approx(whole.norm().item() ** 2, rel=1e-5)
    assert row.error == pytest.approx(
        ((whole - optimum(whole, 5)).norm() / whole.norm()).item(), rel=1e-5
    )


def test_metadata_follow(kohya, tmp_path):
    target = tmp_path / "small.safetensors"
    resize_file(kohya, target, RankTarget(4))
    metadata = read_header(target).metadata
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2")
    assert metadata["ss_network_module"] == "networks.lora_flux"
    assert "sshs_legacy_hash" not in metadata
    assert metadata["sshs_model_hash"] == file_hashes(target).sshs_model_hash
    assert (
        metadata["locksmith.resized"] == "rank 4"
        and metadata["locksmith.source_sha256"] == file_hashes(kohya).sha256
    )
    resize_file(kohya, tmp_path / "energy.safetensors", RankTarget(energy=0.7))
    metadata = read_header(tmp_path / "energy.safetensors").metadata
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("Dynamic", "Dynamic")


def test_energy_chooses_each_rank(kohya, tmp_path, by_stock):
    target = tmp_path / "small.safetensors"
    made = resize_file(kohya, target, RankTarget(energy=0.9))
    for module, shape in ((QKV, (3 * H, H)), (PROJ, (H, H))):
        whole = by_stock(kohya, module, shape)
        squares = torch.linalg.svdvals(whole).square()
        rank = int((squares.cumsum(0) / squares.sum() < 0.9).sum()) + 1
        assert next(row.rank for row in made.rows if row.module == module) == rank
        close(by_stock(target, module, shape), optimum(whole, rank))
    assert 0.9 <= made.kept_energy < 1


@pytest.mark.parametrize("mid", [False, True])
@pytest.mark.parametrize("kernel", [(3, 3), (3, 3, 3), (1, 1)])
def test_convolutions(tmp_path, by_stock, kernel, mid):
    module, source, target = "lora_unet_x", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = lora(module, 24, 16, 8, 4.0, kernel=kernel)
    if mid:
        tensors[f"{module}.lora_down.weight"] = torch.randn(8, 16, *(1 for _ in kernel))
        tensors[f"{module}.lora_mid.weight"] = torch.randn(8, 8, *kernel)
    save_file(tensors, source)
    resize_file(source, target, RankTarget(3))
    after = load_file(target)
    assert after[f"{module}.lora_down.weight"].shape == (3, 16, *kernel)
    assert after[f"{module}.lora_up.weight"].shape == (24, 3, *(1 for _ in kernel))
    assert len(after) == 3
    shape = (24, 16, *kernel)
    whole = tucker(tensors, module) if mid else by_stock(source, module, shape)
    close(by_stock(target, module, shape), optimum(whole, 3))


def tucker(tensors, module):
    """Stock cannot read cores of three dimensions."""
    up, mid, down = (
        tensors[f"{module}.lora_{role}.weight"].double() for role in ("up", "mid", "down")
    )
    return torch.einsum("or,rq...,qi->oi...", up.flatten(1), mid, down.flatten(1)) * 4 / 8


def other_kinds(module, kind):
    if kind == "loha":
        names = {"hada_w1_a": (H, 3), "hada_w1_b": (3, H), "hada_w2_a": (H, 3), "hada_w2_b": (3, H)}
    elif kind == "lokr":
        names = {"lokr_w1": (4, 4), "lokr_w2_a": (H // 4, 4), "lokr_w2_b": (4, H // 4)}
    else:
        names = {"lokr_w1": (4, 4), "lokr_w2": (H // 4, H // 4)}
    return {f"{module}.{name}": torch.randn(shape) for name, shape in names.items()} | {
        f"{module}.alpha": torch.tensor(2.0)
    }


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr of matrices"])
def test_other_kinds_become_lora(tmp_path, by_stock, target_model, kind):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(other_kinds(PROJ, kind) | lora(QKV, 3 * H, H, 4), source)
    resize_file(source, target, RankTarget(5), target_model=target_model)
    after = load_file(target)
    assert {name.removeprefix(PROJ) for name in after if name.startswith(PROJ)} == {
        ".lora_up.weight",
        ".lora_down.weight",
        ".alpha",
    }
    close(by_stock(target, PROJ, (H, H)), optimum(by_stock(source, PROJ, (H, H)), 5))


def test_a_loha_whose_kernel_nobody_knows_stands_as_it_was(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(other_kinds("lora_unet_nobody_knows", "loha") | lora(QKV, 3 * H, H, 8), source)
    made = resize_file(source, target, RankTarget(2))
    assert [row.module for row in made.rows if row.note] == ["lora_unet_nobody_knows"]
    assert all(
        torch.equal(load_file(source)[name], tensor)
        for name, tensor in load_file(target).items()
        if "hada" in name
    )


def test_dora_is_refused_unless_asked(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(lora(PROJ, H, H, 8, 4.0) | {f"{PROJ}.dora_scale": torch.rand(H, 1)}, source)
    with pytest.raises(AdapterError, match=f"1 layer is DoRA: {PROJ}.*magnitudes"):
        resize_file(source, target, RankTarget(2))
    assert not target.exists()
    resize_file(source, target, RankTarget(8))
    made = resize_file(source, tmp_path / "c.safetensors", RankTarget(2), dora=True)
    assert torch.equal(made.tensors[f"{PROJ}.dora_scale"], load_file(source)[f"{PROJ}.dora_scale"])
    assert made.tensors[f"{PROJ}.lora_down.weight"].shape == (2, H)


def test_split_qkv_is_corrected_once(tmp_path, by_stock, target_model):
    """sd-scripts' split_qkv files are 3 times too weak for every reader but this pack; the new file
    is right for all.
    """
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    metadata = {
        "ss_network_args": json.dumps({"split_qkv": "True"}),
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
    }
    save_file(lora(QKV, 3 * H, H, 12, 4.0) | lora(PROJ, H, H, 4, 4.0), source, metadata)
    resize_file(source, target, RankTarget(6), target_model=target_model)
    close(by_stock(target, QKV, (3 * H, H)), optimum(3 * by_stock(source, QKV, (3 * H, H)), 6))
    close(by_stock(target, PROJ, (H, H)), by_stock(source, PROJ, (H, H)))
    assert "split_qkv" not in read_header(target).metadata["ss_network_args"]
    assert {
        adapter.strength.factor for adapter in inspect_file(target, target_model).plan.adapters
    } == {1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_stay_or_are_chosen(tmp_path, by_stock, dtype):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(lora(QKV, 3 * H, H, 12, 5.0, dtype), source)
    resize_file(source, target, RankTarget(7))
    after = load_file(target)
    assert after[f"{QKV}.lora_up.weight"].dtype == dtype
    # 5 / 12 * 7 is no number of this dtype.
    assert after[f"{QKV}.alpha"].dtype == torch.float32
    close(by_stock(target, QKV, (3 * H, H)), optimum(by_stock(source, QKV, (3 * H, H)), 7), 5e-3)
    made = resize_file(source, tmp_path / "c.safetensors", RankTarget(7), dtype=torch.float32)
    assert {tensor.dtype for tensor in made.tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("rank", [7, 12, 16])
@pytest.mark.parametrize("alpha", [5.0, None])
def test_the_error_told_is_that_of_what_stands_in_the_file(
    tmp_path, by_stock, target_model, dtype, rank, alpha
):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(lora(QKV, 3 * H, H, 12, alpha), source, {} if alpha else {"lora_alpha": "5"})
    told = (
        resize_file(source, target, RankTarget(rank), dtype=dtype, target_model=target_model)
        .rows[0]
        .error
    )
    tensors = {name: tensor.float() for name, tensor in load_file(target).items()}
    save_file(tensors, target)
    before, after = (by_stock(path, QKV, (3 * H, H)) for path in (source, target))
    before = before if alpha else before * (5 / 12)
    error = ((after - before).norm() / before.norm()).item()
    assert told == pytest.approx(error, rel=0.05, abs=1e-6)
    assert rank == 7 or (told > 1e-4) == (dtype != torch.float32)


@pytest.mark.parametrize(
    "told",
    [
        {"lora_alpha": "5"},
        {"lora_adapter_metadata": json.dumps({"init_lora_weights": "pissa", "r": 12})},
    ],
)
def test_what_metadata_make_of_tensors_is_not_lost(tmp_path, told):
    source = tmp_path / "a.safetensors"
    save_file(lora(QKV, 3 * H, H, 12), source, told)
    with pytest.raises(AdapterError, match="--against"):
        resize_file(source, tmp_path / "b.safetensors", RankTarget(7))
    assert not (tmp_path / "b.safetensors").exists()


def test_a_pissa_is_not_cut(tmp_path, target_model):
    source = tmp_path / "a.safetensors"
    save_file(
        lora(PROJ, H, H, 12),
        source,
        {"lora_adapter_metadata": json.dumps({"init_lora_weights": "pissa", "r": 12})},
    )
    with pytest.raises(AdapterError, match="PiSSA"):
        resize_file(source, tmp_path / "b.safetensors", RankTarget(7), target_model=target_model)


def test_peft_goes_on_with_the_file(tmp_path, both):
    """rsLoRA, rank and alpha patterns in adapter_config.json: the new folder loads in PEFT and has
    the optimal deltas.
    """
    import peft
    from trainers import ATTENTION, trained_by_peft

    twin = copy.deepcopy(both.twin)
    config = peft.LoraConfig(
        r=8,
        lora_alpha=4,
        target_modules=ATTENTION,
        use_rslora=True,
        rank_pattern={"to_q": 3},
        alpha_pattern={"to_k": 1},
    )
    trained = trained_by_peft(twin, config)
    trained.save_pretrained(tmp_path / "source")
    (tmp_path / "target").mkdir()
    name = "adapter_model.safetensors"
    resize_file(tmp_path / "source" / name, tmp_path / "target" / name, RankTarget(energy=0.8))
    base = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    before = trained.merge_and_unload().state_dict()
    after = (
        peft.PeftModel.from_pretrained(twin, tmp_path / "target").merge_and_unload().state_dict()
    )
    changed = [name for name in base if not torch.equal(before[name], base[name])]
    assert len(changed) > 20
    ranks = set()
    for name in changed:
        delta = (before[name] - base[name]).double()
        squares = torch.linalg.svdvals(delta).square()
        rank = int((squares.cumsum(0) / squares.sum() < 0.8).sum()) + 1
        ranks.add(rank)
        close((after[name] - base[name]).double(), optimum(delta, rank), 1e-4)
    assert len(ranks) > 1


def test_the_settings_beside_a_file_of_peft_follow_it(tmp_path, both):
    import peft
    from trainers import ATTENTION, trained_by_peft

    twin, folder = copy.deepcopy(both.twin), tmp_path / "adapter"
    trained_by_peft(
        twin, peft.LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION)
    ).save_pretrained(folder)
    name = "adapter_model.safetensors"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter_config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="adapter_config"):
        resize_file(folder / name, tmp_path / "other" / name, RankTarget(2))
    assert not (tmp_path / "other" / name).exists()
    resize_file(folder / name, folder / name, RankTarget(2), overwrite=True)
    assert peft.PeftConfig.from_pretrained(folder).r == 2
    peft.PeftModel.from_pretrained(copy.deepcopy(both.twin), folder)


@pytest.mark.parametrize("alpha", [None, 4.0])
def test_two_adapters_of_a_layer_never_take_one_place(tmp_path, alpha):
    """Parts are saved as one LoRA, of which the layer has another already."""
    shapes = {"up.0": (H // 2, 4), "up.1": (H // 2, 4), "down.0": (4, H), "down.1": (4, H)}
    parts = {f"{PROJ}.lora_{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    source, target = tmp_path / "both.safetensors", tmp_path / "x.safetensors"
    save_file(lora(PROJ, H, H, 4, alpha) | parts, source)
    with pytest.raises(AdapterError, match=f"{PROJ} has two adapters.*lora_(up|down).weight"):
        resize_file(source, target, RankTarget(2))
    assert not target.exists()


def test_nothing_is_written_over_and_nonsense_is_refused(kohya, tmp_path):
    with pytest.raises(FileExistsError):
        resize_file(kohya, kohya, RankTarget(2))
    with pytest.raises(ValueError, match="specify a rank"):
        resize_file(kohya, tmp_path / "x.safetensors", RankTarget())
    bad = tmp_path / "bad.safetensors"
    save_file(lora(QKV, 3 * H, H, 8, float("nan")), bad)
    with pytest.raises(AdapterError, match=QKV):
        resize_file(bad, tmp_path / "x.safetensors", RankTarget(2))
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    "broken",
    [
        {"lora_up.weight": torch.randn(H, 3)},
        {"lora_down.weight": torch.randn(4)},
        {"alpha": torch.randn(2)},
        {"lora_down.weight": torch.tensor(1.0)},
        {"lora_mid.weight": torch.randn(2, 2, 3)},
        {"lora_up.weight": torch.zeros(H, 0), "lora_down.weight": torch.zeros(0, H)},
    ],
)
def test_broken_modules_are_refused_by_name(tmp_path, broken):
    source = tmp_path / "a.safetensors"
    save_file(
        lora(PROJ, H, H, 8, 4.0) | {f"{PROJ}.{role}": tensor for role, tensor in broken.items()},
        source,
    )
    with pytest.raises(AdapterError, match=PROJ):
        resize_file(source, tmp_path / "b.safetensors", RankTarget(2))


def test_broken_metadata_are_no_obstacle(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    metadata = {
        "ss_network_dim": "many",
        "ss_network_alpha": "nan",
        "ss_network_args": "[[",
        "lora_adapter_metadata": '{"x.r": ["',
    }
    save_file(lora(PROJ, H, H, 8), source, metadata)
    resize_file(source, target, RankTarget(2))
    assert (
        read_header(target).metadata["ss_network_dim"] == "2"
        and read_header(target).metadata["ss_network_alpha"] == "Dynamic"
    )


def run(*arguments):
    """The command with these arguments; its exit code."""
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(), Speaker())
    options = parser.parse_args(["resize", *map(str, arguments)])
    return options.run(options)


def test_the_command(kohya, tmp_path, capsys):
    target = tmp_path / "small.safetensors"
    assert run(kohya, "-o", target, "--rank", 5) == 0
    assert "2 layers, rank 4 to 12 -> 4 to 5" in capsys.readouterr().out
    assert load_file(target)[f"{QKV}.lora_down.weight"].shape[0] == 5
    assert run(kohya, "-o", target, "--rank", 5) == 2
    assert "there is a file already" in capsys.readouterr().err
    assert (
        run(kohya, "-o", target, "--energy", 0.5, "--dtype", "bf16", "--overwrite", "--json") == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert 0.5 <= told["kept_energy"] < 1 and len(told["modules"]) == 2
    assert load_file(target)[f"{QKV}.lora_down.weight"].dtype == torch.bfloat16
    with pytest.raises(SystemExit) as wrong:
        run(kohya, "-o", tmp_path / "x.safetensors", "--rank", 0)
    assert wrong.value.code == 2
    assert not (tmp_path / "x.safetensors").exists()
