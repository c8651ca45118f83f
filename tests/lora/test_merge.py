"""Merges of real files against dense fp64 deltas: PEFT's and LyCORIS' own, on the tiny FLUX of the
real ComfyUI.
"""

import copy
import math
from pathlib import Path

import peft
import pytest
import torch
from lora_locksmith.adapters.spec import AdapterError, AdapterSpec
from lora_locksmith.files.header import LoraFileError, read_header
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.key_maps.table import families
from lora_locksmith.key_maps.weight_presets import weight_presets
from lora_locksmith.lora.io.lora_model import native_tensors
from lora_locksmith.lora.io.stream import TensorStream
from lora_locksmith.lora.math.apply import patched_weight
from lora_locksmith.lora.math.low_rank import Kronecker
from lora_locksmith.lora.merge.block_weights import read_block_weights
from lora_locksmith.lora.merge.collect import unplaced
from lora_locksmith.lora.merge.dry_run import forecast
from lora_locksmith.lora.merge.merge import MergeConfig, Source, merge
from lora_locksmith.lora.merge.write import write_merged
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import Network, TargetModel
from safetensors.torch import load_file, save_file
from trainers import trained_by_lycoris, trained_by_peft

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

H = 128
PREFIX = "diffusion_model."
QKV = f"{PREFIX}double_blocks.0.img_attn.qkv.weight"
PROJECTION = f"{PREFIX}double_blocks.0.img_attn.proj.weight"
KOHYA = ("lora_down.weight", "lora_up.weight")
PEFT = ("lora_A.weight", "lora_B.weight")


@pytest.fixture(scope="module")
def weights(tiny_flux):
    return {
        name: weight
        for name, weight in tiny_flux().model.state_dict().items()
        if name.startswith(PREFIX)
    }


@pytest.fixture
def source(target_model):
    """source(tensors, strength, name) -> a Source planned on the tiny FLUX."""

    def make(tensors, strength=1.0, name="a", blocks="", metadata=None):
        plan = make_plan(
            {key: tuple(tensor.shape) for key, tensor in tensors.items()},
            metadata or {},
            target_model,
        )
        return Source(plan, tensors, strength, strength, read_block_weights(blocks), name)

    return make


def lora(module, out, inner, rank=4, alpha=None, names=PEFT, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{module}.{names[0]}": torch.randn(rank, inner, generator=generator).to(dtype),
        f"{module}.{names[1]}": torch.randn(out, rank, generator=generator).to(dtype),
    }
    return tensors | ({} if alpha is None else {f"{module}.alpha": torch.tensor(float(alpha))})


def product(tensors, module, names=PEFT):
    down, up = (tensors[f"{module}.{name}"].double() for name in names)
    scale = tensors[f"{module}.alpha"].item() / down.shape[0] if f"{module}.alpha" in tensors else 1
    return up.flatten(1) @ down.flatten(1) * scale


def fused(rank=4, alpha=2, seed=1, dtype=torch.float32):
    return lora("lora_unet_double_blocks_0_img_attn_qkv", 3 * H, H, rank, alpha, KOHYA, seed, dtype)


def split(rank=3, seed=2, alphas=(None, None, None), dtype=torch.float32, names="qkv"):
    tensors = {}
    for number, name in enumerate(names):
        module = f"transformer.transformer_blocks.0.attn.to_{name}"
        tensors |= lora(module, H, H, rank + number, alphas[number], PEFT, seed + number, dtype)
    return tensors


def fused_truth(tensors):
    return product(tensors, "lora_unet_double_blocks_0_img_attn_qkv", KOHYA)


def split_truth(tensors):
    return torch.cat(
        [product(tensors, f"transformer.transformer_blocks.0.attn.to_{name}") for name in "qkv"]
    )


def dense(delta):
    if isinstance(delta, torch.Tensor):
        return delta.double()
    if isinstance(delta, Kronecker):
        return torch.kron(dense(delta.first), dense(delta.second))
    return delta.down.double() if delta.up is None else delta.up.double() @ delta.down.double()


def only(merged):
    (found,) = merged
    return found[1]


def error_of(merged, truth):
    return ((dense(merged.native.delta) - truth).norm() / truth.norm()).item()


def test_a_fused_and_a_split_file_add_up_exactly(source):
    a, b, c = fused(), split(alphas=(1, None, 12)), fused(rank=7, alpha=None, seed=9)
    merged = only(merge([source(a, 0.8), source(b, -0.5, "b"), source(c, 1.7, "c")], overlaps=True))
    truth = 0.8 * fused_truth(a) - 0.5 * split_truth(b) + 1.7 * fused_truth(c)
    assert error_of(merged, truth) < 1e-6
    assert (merged.rank, merged.kept, merged.error, merged.sources) == (
        4 + (3 + 4 + 5) + 7,
        1,
        0,
        (0, 1, 2),
    )
    assert merged.native.weight == QKV and merged.native.delta.up.dtype == torch.float32
    cosines = {(meeting.first, meeting.second): meeting.cosine for meeting in merged.overlaps}
    parts = [0.8 * fused_truth(a), -0.5 * split_truth(b), 1.7 * fused_truth(c)]
    for (first, second), cosine in cosines.items():
        expected = (parts[first] * parts[second]).sum() / parts[first].norm() / parts[second].norm()
        assert cosine == pytest.approx(expected.item(), abs=1e-9)
    assert len(cosines) == 3 and merged.norm == pytest.approx(truth.norm().item())


def test_one_file_at_half_is_that_file_at_half(source):
    a = fused(dtype=torch.bfloat16)
    merged = only(merge([source(a, 0.5)]))
    factors = merged.native.delta
    assert torch.equal(
        factors.down, a["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"] * 0.25
    )
    assert torch.equal(factors.up, a["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"])
    assert factors.up.dtype == torch.bfloat16


def test_modules_that_only_one_file_has(source):
    a, b = fused(), lora("transformer.transformer_blocks.0.attn.to_out.0", H, H)
    merged = dict(merge([source(a), source(b, 0.3, "b")]))
    assert set(merged) == {QKV, PROJECTION}
    assert (
        error_of(
            merged[PROJECTION], 0.3 * product(b, "transformer.transformer_blocks.0.attn.to_out.0")
        )
        < 1e-6
    )
    assert [found.sources for found in merged.values()] == [(0,), (1,)]


def test_a_part_of_the_rows_leaves_the_others_alone(source):
    b = split(names="k", rank=5)
    merged = only(merge([source(b)]))
    change = dense(merged.native.delta)
    assert torch.count_nonzero(change[:H]) == torch.count_nonzero(change[2 * H :]) == 0
    assert (
        error_of(
            merged,
            torch.cat(
                (
                    torch.zeros(H, H),
                    product(b, "transformer.transformer_blocks.0.attn.to_k"),
                    torch.zeros(H, H),
                )
            ),
        )
        < 1e-6
    )


def test_swapped_halves_and_biases(source, target_model):
    a = lora("transformer.norm_out.linear", 2 * H, H, alpha=2) | {
        "transformer.norm_out.linear.lora_B.bias": torch.arange(2.0 * H)
    }
    b = {f"{PREFIX}final_layer.adaLN_modulation.1.diff_b": torch.ones(2 * H)}
    merged = dict(merge([source(a, 0.5), source(b, 3.0, "b")]))
    weight, bias = (f"{PREFIX}final_layer.adaLN_modulation.1.{end}" for end in ("weight", "bias"))
    assert (
        error_of(merged[weight], 0.5 * product(a, "transformer.norm_out.linear").roll(H, 0)) < 1e-6
    )
    assert torch.allclose(merged[bias].native.delta, 0.25 * torch.arange(2.0 * H).roll(H) + 3)
    assert (
        merged[bias].native.parameter == "bias"
        and merged[bias].native.weight == weight
        and merged[bias].rank is None
    )


def test_norms_and_full_differences_stay_whole(source):
    scale, change = torch.rand(H), torch.rand(H, H)
    a = {
        f"{PREFIX}double_blocks.0.img_attn.norm.query_norm.diff": scale,
        f"{PREFIX}double_blocks.0.img_attn.proj.diff": change,
    }
    b = lora("lora_unet_double_blocks_0_img_attn_proj", H, H, names=KOHYA)
    merged = dict(merge([source(a, 2.0), source(b, 1.0, "b")]))
    assert torch.equal(
        dense(merged[f"{PREFIX}double_blocks.0.img_attn.norm.query_norm.weight"].native.delta),
        2.0 * scale.double(),
    )
    assert (
        error_of(
            merged[PROJECTION],
            2 * change + product(b, "lora_unet_double_blocks_0_img_attn_proj", KOHYA),
        )
        < 1e-6
    )
    assert (merged[PROJECTION].rank, merged[PROJECTION].error) == (None, 0)
    cut = dict(merge([source(a, 2.0), source(b, 1.0, "b")], MergeConfig(rank=5)))[PROJECTION]
    assert cut.rank == 5 and cut.error > 0.1


@pytest.mark.parametrize("settings", [{"lora_alpha": 2}, {"lora_alpha": 8, "use_rslora": True}])
def test_pefts_own_deltas_with_the_strength_in_the_metadata(both, source, settings):
    import json

    config = peft.LoraConfig(
        r=4, target_modules=["to_q", "to_k", "to_v", "proj_mlp", "ff.net.2"], **settings
    )
    model = trained_by_peft(both.twin, config)
    tensors = {
        f"transformer.{n.removeprefix('base_model.model.')}": t
        for n, t in peft.get_peft_model_state_dict(model).items()
    }
    fields = {"r": 4, **settings}
    metadata = {
        "lora_adapter_metadata": json.dumps(
            {f"transformer.{name}": value for name, value in fields.items()}
        )
    }
    kohya = lora("lora_unet_double_blocks_1_txt_attn_qkv", 3 * H, H, 2, 1, KOHYA)
    merged = dict(merge([source(tensors, 0.7, metadata=metadata), source(kohya, 1.0, "b")]))
    layer = model.base_model.model.get_submodule
    deltas = [
        layer(f"transformer_blocks.0.attn.to_{name}").double().get_delta_weight("default").detach()
        for name in "qkv"
    ]
    assert error_of(merged[QKV], 0.7 * torch.cat(deltas)) < 1e-6
    assert (
        error_of(
            merged[QKV.replace("0.img", "1.txt")],
            product(kohya, "lora_unet_double_blocks_1_txt_attn_qkv", KOHYA),
        )
        < 1e-6
    )
    assert len(merged) == 7


@pytest.mark.parametrize(
    "settings",
    [{"algo": "loha"}, {"algo": "lokr", "factor": 4}, {"algo": "lokr", "full_matrix": True}],
)
def test_lycoris_own_deltas(both, source, settings, tmp_path):
    preset = {
        "target_module": ["FluxSingleTransformerBlock"],
        "exclude_name": ["transformer_blocks.1"],
    }
    network = trained_by_lycoris(copy.deepcopy(both.twin), preset, tmp_path, settings)
    tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    extra = lora("lora_unet_single_blocks_0_linear2", H, 5 * H, 2, None, KOHYA)
    merged = dict(
        merge([source(tensors, 0.6), source(extra, 1.0, "b")], MergeConfig(refactored_rank=4))
    )
    (adapter,) = (
        adapter.double()
        for adapter in network.loras
        if adapter.lora_name.endswith("single_transformer_blocks_0_proj_out")
    )
    truth = 0.6 * (adapter.get_weight(adapter.shape) * adapter.scalar).detach()
    truth = truth + product(extra, "lora_unet_single_blocks_0_linear2", KOHYA)
    found = merged[f"{PREFIX}single_blocks.0.linear2.weight"]
    if "full_matrix" in settings:
        assert found.error > 0.002 and found.rank == 4
        assert error_of(found, truth) == pytest.approx(found.error, abs=1e-4)
    else:
        assert error_of(found, truth) < 2e-6 and found.error == 0


def test_kronecker_products_expand_or_stay(source):
    module = "lycoris_double_blocks_0_img_attn_proj"
    a = {
        f"{module}.lokr_w1": torch.randn(4, 4),
        f"{module}.lokr_w2_a": torch.randn(32, 2),
        f"{module}.lokr_w2_b": torch.randn(2, 32),
    }
    a |= {f"{module}.alpha": torch.tensor(1.0)}
    truth = (
        0.8
        * torch.kron(
            a[f"{module}.lokr_w1"], a[f"{module}.lokr_w2_a"] @ a[f"{module}.lokr_w2_b"]
        ).double()
        / 2
    )
    low = only(merge([source(a, 0.8)]))
    assert low.rank == 8 and error_of(low, truth) < 1e-6
    b = {f"{module}.lokr_w1": torch.randn(16, 16), f"{module}.lokr_w2": torch.randn(8, 8)}
    alone = only(merge([source(b, 0.5)]))
    assert isinstance(alone.native.delta, Kronecker) and (alone.rank, alone.error) == (None, 0)
    assert (
        error_of(alone, 0.5 * torch.kron(b[f"{module}.lokr_w1"], b[f"{module}.lokr_w2"]).double())
        < 1e-6
    )
    both = only(merge([source(a, 0.8), source(b, 0.5, "b")], MergeConfig(refactored_rank=20)))
    truth = truth + 0.5 * torch.kron(b[f"{module}.lokr_w1"], b[f"{module}.lokr_w2"])
    assert both.rank == 20 and error_of(both, truth) == pytest.approx(both.error, abs=1e-4)
    values = torch.linalg.svdvals(truth)
    assert both.error == pytest.approx((values[20:].norm() / values.norm()).item(), rel=1e-4)


def optimum(truth, rank):
    values = torch.linalg.svdvals(truth)
    return (values[rank:].norm() / values.norm()).item()


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_a_rank_is_the_optimum(source, rank):
    a, b = fused(), split()
    merged = only(merge([source(a), source(b, 0.5, "b")], MergeConfig(rank=rank)))
    truth = fused_truth(a) + 0.5 * split_truth(b)
    assert merged.rank == rank
    assert error_of(merged, truth) == pytest.approx(optimum(truth, rank), rel=1e-5)
    assert merged.error == pytest.approx(
        optimum(truth, rank), rel=1e-5
    ) and merged.kept == pytest.approx(1 - merged.error**2)


def test_an_energy_and_an_error_choose_the_smallest_rank(source):
    a, b = fused(rank=8), split(rank=6)
    sources = [source(a), source(b, 0.5, "b")]
    truth = fused_truth(a) + 0.5 * split_truth(b)
    for recipe, allowed in (
        (MergeConfig(energy=0.9), math.sqrt(0.1)),
        (MergeConfig(error=0.2), 0.2),
    ):
        merged = only(merge(sources, recipe))
        assert optimum(truth, merged.rank) <= allowed < optimum(truth, merged.rank - 1)
    assert only(merge(sources, MergeConfig(energy=0.9, rank=3))).rank == 3


def test_identical_files_need_no_more_rank(source):
    a = fused()
    merged = only(
        merge([source(a), source(dict(a), 1.0, "b")], MergeConfig(error=1e-4), overlaps=True)
    )
    assert merged.rank == 4 and error_of(merged, 2 * fused_truth(a)) < 2e-6
    assert merged.overlaps[0].cosine == pytest.approx(1)
    gone = only(merge([source(a), source(dict(a), -1.0, "b")], MergeConfig(rank=2), overlaps=True))
    assert dense(gone.native.delta).norm() < 1e-4 * fused_truth(a).norm() and gone.overlaps[
        0
    ].cosine == pytest.approx(-1)


@pytest.mark.parametrize(
    "dtypes, expected",
    [
        (("bfloat16", "bfloat16"), "bfloat16"),
        (("bfloat16", "float16"), "float32"),
        (("float8_e4m3fn", "bfloat16"), "bfloat16"),
        (("float16", "float32"), "float32"),
        (("float64", "float16"), "float32"),
    ],
)
def test_dtypes_are_those_of_the_files(source, dtypes, expected):
    a, b = fused(dtype=getattr(torch, dtypes[0])), fused(seed=5, dtype=getattr(torch, dtypes[1]))
    merged = only(merge([source(a, 0.3), source(b, 0.9, "b")]))
    assert (
        merged.native.delta.up.dtype == merged.native.delta.down.dtype == getattr(torch, expected)
    )
    rounding = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 4e-3}[expected]
    assert error_of(merged, 0.3 * fused_truth(a) + 0.9 * fused_truth(b)) < rounding
    assert (
        only(
            merge([source(a, 0.3), source(b, 0.9, "b")], MergeConfig(dtype="fp32"))
        ).native.delta.up.dtype
        == torch.float32
    )


def test_half_precision_keeps_small_scales_and_refuses_what_it_cannot_hold(source):
    a = {
        key: tensor if tensor.dim() == 0 else (tensor * 0.03).half()
        for key, tensor in fused(rank=64, alpha=0.1).items()
    }
    merged = only(merge([source(a, 0.01)]))
    assert (
        merged.native.delta.up.dtype == torch.float16
        and error_of(merged, 0.01 * fused_truth(a)) < 2e-3
    )
    big = {
        key: tensor if tensor.dim() == 0 else (tensor * 1e3).half()
        for key, tensor in fused().items()
    }
    with pytest.raises(AdapterError, match="fp16"):
        list(merge([source(big, 1e6)]))


def test_dora_and_rotations_are_refused_by_name_or_folded(source, weights):
    a = lora("transformer.transformer_blocks.0.attn.to_k", H, H) | {
        "transformer.transformer_blocks.0.attn.to_k.lora_magnitude_vector.weight": torch.rand(H) + 1
    }
    b = {"oft_unet_double_blocks_0_img_attn_proj.oft_blocks": torch.randn(4, H // 4, H // 4) * 0.1}
    b |= {"oft_unet_double_blocks_0_img_attn_proj.alpha": torch.tensor(1e3)}
    b = {key.replace("oft_unet", "lora_unet"): tensor for key, tensor in b.items()}
    with pytest.raises(AdapterError, match=r"a: .*to_k \(DoRA\).*b: .*img_attn_proj \(oft\)"):
        merge([source(a), source(b, 1.0, "b")])
    merged = dict(
        merge([source(a, 0.5), source(b, 0.7, "b")], MergeConfig(rank=H), base=weights.__getitem__)
    )
    key = weights[QKV][H : 2 * H].float()
    roles = {
        "up": "lora_B.weight",
        "down": "lora_A.weight",
        "magnitude": "lora_magnitude_vector.weight",
    }
    tensors = {
        role: a[f"transformer.transformer_blocks.0.attn.to_k.{name}"]
        for role, name in roles.items()
    }
    change = dense(merged[QKV].native.delta)
    assert torch.allclose(
        change[H : 2 * H].float(),
        0.5 * (patched_weight(AdapterSpec("lora"), tensors, key, 1.0) - key),
        atol=1e-4,
    )
    assert change[:H].norm() < 1e-4
    turned = patched_weight(
        AdapterSpec("oft", 1e3),
        {"oft_blocks": b["lora_unet_double_blocks_0_img_attn_proj.oft_blocks"]},
        weights[PROJECTION].float(),
        1.0,
    )
    assert torch.allclose(
        dense(merged[PROJECTION].native.delta).float(),
        0.7 * (turned - weights[PROJECTION].float()),
        atol=1e-4,
    )


def test_a_method_on_entries_gets_a_rank(source):
    a, b = fused(), split()
    merged = only(merge([source(a), source(b, 1.0, "b")], MergeConfig("ties", {"density": 0.4})))
    assert merged.rank == 4 + 12 and 0 < merged.error < 1
    again = only(
        merge([source(a), source(b, 1.0, "b")], MergeConfig("ties", {"density": 0.4}, rank=H))
    )
    assert again.error < 1e-3
    from peft.utils.merge_utils import ties

    expected = ties([fused_truth(a), split_truth(b)], torch.ones(2), 0.4)
    assert error_of(again, expected) < 1e-3
    assert merged.error == pytest.approx(optimum(expected, 16), rel=1e-3)


def test_a_seed_repeats_a_draw_whatever_else_is_merged(source):
    a, b = fused(), lora("transformer.transformer_blocks.0.attn.to_out.0", H, H)
    recipe = MergeConfig("dare_linear", {"density": 0.5}, rank=H, seed=4)
    alone, beside = (
        only(merge([source(a)], recipe)),
        dict(merge([source(b, 1.0, "b"), source(a)], recipe))[QKV],
    )
    assert torch.equal(dense(alone.native.delta), dense(beside.native.delta))
    other = only(merge([source(a)], recipe._replace(seed=5)))
    assert not torch.equal(dense(alone.native.delta), dense(other.native.delta))


@pytest.mark.parametrize("method", ["slerp", "karcher", "orthogonal", "average"])
def test_methods_on_factors_cost_no_accuracy(source, method):
    a, b = fused(), split()
    merged = only(merge([source(a), source(b, 0.5, "b")], MergeConfig(method)))
    assert merged.rank == 16 and merged.error == 0
    matrices = [fused_truth(a), 0.5 * split_truth(b)]
    if method == "average":
        assert error_of(merged, sum(matrices) / 1.5) < 1e-6
    elif method == "orthogonal":
        vectors = torch.linalg.svd(matrices[0]).Vh[:4]
        assert (
            error_of(merged, matrices[0] + matrices[1] - matrices[1] @ vectors.T @ vectors) < 1e-6
        )
    else:
        norms = [matrix.norm() for matrix in matrices]
        angle = torch.acos((matrices[0] * matrices[1]).sum() / norms[0] / norms[1])
        factor = torch.sin(angle / 2) / torch.sin(angle)
        middle = factor * (matrices[0] / norms[0] + matrices[1] / norms[1]) * sum(norms) / 2
        assert error_of(merged, middle if method == "karcher" else factor * sum(matrices)) < 1e-5


def test_block_weights_multiply_the_strength(source):
    a = (
        fused()
        | lora("lora_unet_double_blocks_1_img_attn_qkv", 3 * H, H, names=KOHYA)
        | lora("lora_unet_single_blocks_0_linear2", H, 5 * H, names=KOHYA)
    )
    merged = dict(
        merge([source(a, 0.8, blocks="double_blocks.0-5=0.5, double_blocks.1=2; *.linear2=0")])
    )
    assert set(merged) == {QKV, QKV.replace("s.0", "s.1")}
    assert error_of(merged[QKV], 0.4 * fused_truth(a)) < 1e-6
    with pytest.raises(AdapterError, match=r"img_atn.*did you mean 'img_attn'"):
        merge([source(a, blocks="*.img_atn=0")])


@pytest.mark.parametrize(
    "text, places",
    [
        (
            "double_blocks.0-5=0.5",
            {
                "double_blocks.0.img_attn.qkv": 0.5,
                "double_blocks.6.img_mlp.0": 1,
                "double_blocks.5.img_mlp.0": 0.5,
            },
        ),
        ("*.img_mlp=0", {"double_blocks.6.img_mlp.0": 0, "double_blocks.6.img_attn.qkv": 1}),
        (
            "double_blocks.*.img_*=0.25\nmodel.x=1",
            {"double_blocks.6.img_mlp.0": 0.25, "double_blocks.6.txt_mlp.0": 1},
        ),
        (
            "model=0, single_blocks=1",
            {
                "double_blocks.0.img_attn.qkv": 0,
                "single_blocks.3.linear1": 1,
                "te:encoder.block.0": 1,
            },
        ),
        ("te=0", {"double_blocks.0.img_attn.qkv": 1, "te:encoder.block.0": 0}),
        ("te=0, t5xxl.encoder=-2", {"te:encoder.block.0": -2, "te:shared": 0}),
        ("double_block=0", {"double_blocks.0.img_attn.qkv": 1}),
        ("", {"double_blocks.0.img_attn.qkv": 1}),
    ],
)
def test_block_weights_read(text, places):
    blocks = read_block_weights(text)
    for place, weight in places.items():
        slot, colon, module = place.rpartition(":")
        assert blocks.factor("t5xxl" if colon else "denoiser", module) == weight, (place, slot)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("double_blocks", "form name=weight"),
        ("a=b", "'b' is not a number"),
        ("a=nan", "not a number"),
        ("a..b=1", "between two dots"),
        ("a.5-2=1", "backwards"),
        ("a.[0-9]=1", "not a name"),
        ("=1", "form name=weight"),
        ("a.x-3=1", "not a name"),
        ("x" * 20_000, "characters"),
        ("a=1," * 600, "entries"),
    ],
)
def test_block_weights_say_what_is_wrong(text, fault):
    with pytest.raises(AdapterError, match=fault):
        read_block_weights(text)


def test_blocks_that_a_vector_does_not_name_are_off():
    """As in A1111: 17 numbers leave out blocks that only a LoCon has."""
    weights = read_block_weights("MIDD")
    blocks = {
        "input_blocks.0.0": 0,  # not named
        "input_blocks.1.1": 0,
        "input_blocks.4.1": 0,
        "input_blocks.5.1": 1,
        "middle_block.1": 1,
        "output_blocks.6.1": 1,
        "output_blocks.7.1": 0,
        "output_blocks.1.1": 0,  # not named
        "time_embed.0": 1,
    }
    assert {name: weights.factor(DENOISER, name) for name in blocks} == blocks
    assert weights.factor("clip_l", "text_model.encoder.layers.0.mlp.fc1") == 1
    assert read_block_weights("OUTS").factor(DENOISER, "output_blocks.7.1") == 1


def test_the_documentation_names_every_preset():
    text = (Path(__file__).parents[2] / "docs/layer_weights.md").read_text("utf-8")
    assert not [name for name in weight_presets() if f"`{name}`" not in text]


def test_presets_are_read_and_need_not_match(source):
    for name in weight_presets():
        list(merge([source(fused(), blocks=name)]))


@pytest.mark.parametrize(
    "recipe, fault",
    [
        (MergeConfig("best"), "no method 'best'"),
        (MergeConfig("slerp"), "merges exactly 2 LoRAs"),
        (MergeConfig(rank=0), "rank"),
        (MergeConfig(rank=True), "rank"),
        (MergeConfig(energy=1.5), "energy"),
        (MergeConfig(error=-1), "error"),
        (MergeConfig(dtype="fp8"), "dtype"),
        (MergeConfig("ties", {"density": 3}), "density"),
        (MergeConfig(energy=float("nan")), "energy"),
    ],
)
def test_a_recipe_that_cannot_be_followed(source, recipe, fault):
    with pytest.raises(AdapterError, match=fault):
        merge([source(fused())], recipe)


def test_files_for_different_models(source):
    family = families()["sdxl"]
    module = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    target_model = TargetModel(
        [Network("denoiser", PREFIX, {f"{PREFIX}{module}.weight": (640, 640)}, family)]
    )
    b = lora(f"{PREFIX}{module}", 640, 640)
    other = Source(
        make_plan({key: tuple(tensor.shape) for key, tensor in b.items()}, {}, target_model),
        b,
        name="b",
    )
    with pytest.raises(AdapterError, match=r"a is made for FLUX.*b for .*XL"):
        merge([source(fused()), other])


def test_tensors_that_are_not_what_the_plan_says(source):
    good = source(fused(), name="bad file")
    module = "lora_unet_double_blocks_0_img_attn_qkv"
    for damage in (
        {f"{module}.lora_up.weight": torch.ones(2, 2)},
        {f"{module}.alpha": torch.ones(3)},
        {f"{module}.lora_down.weight": torch.ones(0, H)},
    ):
        with pytest.raises(AdapterError, match=f"bad file, {module}"):
            list(merge([good._replace(tensors={**good.tensors, **damage})]))


def test_what_found_no_place_is_told(source):
    a = fused() | lora("lora_unet_double_blocks_99_img_attn_qkv", 3 * H, H, names=KOHYA)
    lost = unplaced([source(a)])
    assert list(lost["a"]) == [f"lora_unet_double_blocks_99_img_attn_qkv.{name}" for name in KOHYA]


def test_the_forecast_is_what_comes(source):
    module = "lycoris_double_blocks_0_img_attn_proj"
    a = fused(dtype=torch.bfloat16) | {
        f"{module}.lokr_w1": torch.randn(16, 16),
        f"{module}.lokr_w2": torch.randn(8, 8),
    }
    b = (
        split()
        | {"transformer.norm_out.linear.lora_B.bias": torch.ones(2 * H)}
        | lora("transformer.norm_out.linear", 2 * H, H)
    )
    sources = [source(a), source(b, 0.5, "b")]
    for recipe in (MergeConfig(), MergeConfig(rank=6), MergeConfig("ties")):
        told = {row.name: row for row in forecast(sources, recipe, measure=True).rows}
        for name, merged in merge(sources, recipe, overlaps=True):
            if isinstance(merged.native.delta, Kronecker):
                continue
            size = sum(
                tensor.numel() * tensor.element_size()
                for tensor in native_tensors([merged.native]).values()
            )
            assert (told[name].rank, told[name].bytes, told[name].sources) == (
                merged.rank,
                size,
                merged.sources,
            )
            assert told[name].overlaps == (merged.overlaps if len(merged.sources) > 1 else ())
        assert len(told) == 4
    dora = source(
        lora("transformer.transformer_blocks.0.attn.to_k", H, H)
        | {"transformer.transformer_blocks.0.attn.to_k.dora_scale": torch.ones(H, 1)}
    )
    assert forecast([dora]).refused == {"a": ["transformer.transformer_blocks.0.attn.to_k (DoRA)"]}


def test_read_as_it_is_needed_and_stopped_by_its_progress(source, tmp_path):
    a = fused() | lora("lora_unet_double_blocks_1_img_attn_qkv", 3 * H, H, names=KOHYA)
    save_file(a, tmp_path / "lora.safetensors")
    seen = []
    with TensorStream(
        tmp_path / "lora.safetensors", read_header(tmp_path / "lora.safetensors")
    ) as stream:
        lazy = source(a)._replace(tensors=stream)
        merged = dict(merge([lazy], progress=lambda done, of: seen.append((done, of))))
        (tmp_path / "lora.safetensors").write_bytes(
            (tmp_path / "lora.safetensors").read_bytes()[:-9]
        )
        with pytest.raises(LoraFileError, match="ends within"):
            [stream[name] for name in a]
    assert seen == [(0, 2), (1, 2), (2, 2)] and error_of(merged[QKV], fused_truth(a)) < 1e-6

    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(merge([source(a)], progress=stop))


@pytest.mark.parametrize(
    "recipe", [MergeConfig(), MergeConfig(rank=6), MergeConfig(energy=0.9), MergeConfig("ties")]
)
def test_written_as_it_is_made(source, recipe, tmp_path):
    module = "lycoris_double_blocks_0_img_attn_proj"
    a = fused(dtype=torch.bfloat16) | {
        f"{PREFIX}double_blocks.0.img_attn.proj.diff_b": torch.ones(H)
    }
    a |= (
        {f"{module}.lokr_w1": torch.randn(16, 16), f"{module}.lokr_w2": torch.randn(8, 8)}
        if recipe != MergeConfig()
        else {}
    )
    sources, seen = [source(a), source(split(), 0.5, "b")], []
    path = write_merged(
        tmp_path / "merged.safetensors", sources, recipe, metadata={"note": "x"}, each=seen.append
    )
    expected = native_tensors(merged.native for _, merged in merge(sources, recipe))
    written = load_file(path)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    assert len(seen) == (2 if recipe == MergeConfig() else 3) and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileExistsError):
        write_merged(path, sources, recipe)


ROLES = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "alpha",
    "dora_scale",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_w1",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "diff",
    "diff_b",
    "w_norm",
    "b_norm",
    "oft_blocks",
    "lora_mid.weight",
    "bias_values",
    "bias_indices",
    "bias_size",
    "set_weight",
]
MODULES = [
    f"{PREFIX}double_blocks.0.img_attn.{name}" for name in ("qkv", "proj", "norm.query_norm")
] + ["transformer.transformer_blocks.0.attn.to_k"]


def hostile(choices):
    """A file of roles, shapes, dtypes and numbers that belong together by chance only."""
    tensors = {}
    for module in MODULES:
        for role in choices.sample(ROLES, 3) + choices.choice(
            [[], ["lora_A.weight", "lora_B.weight"]]
        ):
            shape = {
                "lora_A.weight": (2, H),
                "lora_B.weight": (3 * H if "qkv" in module else H, 2),
            }.get(role)
            shape = (
                shape
                if shape and choices.random() < 0.8
                else [choices.choice([0, 1, 2, 4, H]) for _ in range(choices.randint(0, 4))]
            )
            values = torch.randn(tuple(shape)) * choices.choice([1, 1, 1, 1e30, math.nan])
            tensors[f"{module}.{role}"] = values.to(
                choices.choice([torch.float32, torch.float16, torch.float8_e4m3fn, torch.int32])
            )
    return tensors


@pytest.mark.parametrize("seed", range(12))
def test_hostile_files_raise_nothing_but_our_error(source, weights, seed):
    import random

    from lora_locksmith.lora.merge.methods import methods

    choices = random.Random(seed)
    for method in methods():
        sources = [
            source(hostile(choices), choices.choice([1, -1, 1e30]), name) for name in ("a", "b")
        ]
        recipe = MergeConfig(
            method, rank=choices.choice([None, 3]), dtype=choices.choice(["", "fp16"])
        )
        try:
            forecast(sources, recipe, measure=True)
            native_tensors(
                merged.native
                for _, merged in merge(sources, recipe, weights.__getitem__, overlaps=True)
            )
        except AdapterError as error:
            assert str(error)
