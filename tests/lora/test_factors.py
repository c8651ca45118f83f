"""Factors against dense fp64 matrices: those of LyCORIS and PEFT themselves, and plain linear
algebra.
"""

import math

import peft
import pytest
import torch
from lora_locksmith.adapters.rows import Rows
from lora_locksmith.adapters.spec import AdapterError, AdapterSpec
from lora_locksmith.lora.math.apply import patched_weight
from lora_locksmith.lora.math.low_rank import Factors, Kronecker, add, factors
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")
ROLES = {"lora_up.weight": "up", "lora_down.weight": "down", "lora_mid.weight": "mid"}
LAYERS = {
    "linear": lambda: nn.Linear(24, 40),
    "conv1x1": lambda: nn.Conv2d(24, 40, 1),
    "conv3x3": lambda: nn.Conv2d(24, 40, 3),
    "conv1d": lambda: nn.Conv1d(24, 40, 3),
    "conv3d": lambda: nn.Conv3d(16, 24, 3),
}
MODULES = {
    "locon": (LoConModule, {}),
    "locon_tucker": (LoConModule, {"use_tucker": True}),
    "locon_scalar": (LoConModule, {"use_scalar": True}),
    "locon_rank_stabilised": (LoConModule, {"rs_lora": True}),
    "loha": (LohaModule, {}),
    "loha_tucker": (LohaModule, {"use_tucker": True}),
    "lokr": (LokrModule, {}),
    "lokr_tucker": (LokrModule, {"use_tucker": True}),
    "lokr_both": (LokrModule, {"decompose_both": True}),
    "lokr_full": (LokrModule, {"full_matrix": True}),
    "lokr_uneven": (LokrModule, {"factor": 3}),
}
KINDS = {LoConModule: "lora", LohaModule: "loha", LokrModule: "lokr"}
# Files keep fp32, and the scale of a LyCORIS module is a 0-d fp32 tensor.
CLOSE = 1e-6


def trained(module_class, layer, settings):
    """(tensors by role, alpha, LyCORIS' delta in fp64) of a module with random weights."""
    module = module_class("lycoris_x", layer, 1.0, **{"lora_dim": 3, "alpha": 1.5, **settings})
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("org_module"):
                parameter.normal_(std=0.3) if name != "scalar" else parameter.fill_(0.5)
    tensors = {
        ROLES.get(name, name): tensor.detach().clone()
        for name, tensor in module.state_dict().items()
    }
    alpha = tensors.pop("alpha").item()
    return tensors, alpha, module.double()


def added(module, layer):
    """What a LyCORIS module's own forward adds to the layer's weight, in fp64, as a matrix."""
    if isinstance(module, LoConModule):
        change = module.get_merged_weight(1)[0].detach() - layer.weight.detach()
    else:
        # get_merged_weight of LoHa and LoKr scales twice, their forward does not.
        change = module.get_weight(module.shape).detach() * module.scalar.detach()
    return change.double().reshape(change.shape[0], -1)


def assert_is(delta, dense, tolerance=CLOSE):
    """Every number a delta gives of itself, against the same of the dense fp64 matrix."""
    norm = dense.norm()
    assert delta.shape == tuple(dense.shape)
    assert (delta.dense() - dense).norm() < tolerance * norm
    assert delta.frobenius() == pytest.approx(norm.item(), rel=tolerance)
    expected = torch.linalg.svdvals(dense)
    values = delta.singular_values()
    assert len(values) == delta.rank <= min(dense.shape)
    errors = (values - expected[: delta.rank]).abs()
    assert errors[expected[: delta.rank] > 1e-5 * expected[0]].max() < tolerance * expected[0]
    # A square root of rounding is what Gram matrices make of zero.
    assert errors.max() < max(tolerance, 1e-7) * expected[0]
    assert expected[delta.rank :].sum() < 10 * tolerance * norm
    assert delta.spectral() == pytest.approx(expected[0].item(), rel=tolerance)
    vectors = torch.randn(dense.shape[1], 2, dtype=torch.float64)
    assert (delta.times(vectors) - dense @ vectors).norm() < tolerance * norm * vectors.norm()


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("name", MODULES)
def test_factors_are_what_lycoris_adds(name, layer_name):
    module_class, settings = MODULES[name]
    layer = LAYERS[layer_name]().double()
    tensors, alpha, module = trained(module_class, layer, settings)
    delta = factors(AdapterSpec(KINDS[module_class], alpha), tensors)
    assert isinstance(delta, Kronecker if module_class is LokrModule else Factors)
    assert_is(delta, added(module, layer))


@pytest.mark.parametrize("layer_name", ["linear", "conv3x3"])
@pytest.mark.parametrize(
    "rank, settings",
    [(4, {"lora_alpha": 2}), (4, {"lora_alpha": 16, "use_rslora": True}), (48, {"lora_alpha": 3})],
)
def test_factors_are_what_peft_merges(layer_name, rank, settings):
    """Rank 48 is more than the layer has inputs."""
    holder = nn.ModuleDict({"layer": LAYERS[layer_name]()})
    config = peft.LoraConfig(r=rank, target_modules=["layer"], init_lora_weights=False, **settings)
    model = peft.get_peft_model(holder, config)
    layer = model.base_model.model["layer"]
    tensors = {
        "down": layer.lora_A["default"].weight.detach().clone(),
        "up": layer.lora_B["default"].weight.detach().clone(),
    }
    layer.lora_A.double(), layer.lora_B.double()
    scale = settings["lora_alpha"] / (math.sqrt(rank) if "use_rslora" in settings else rank)
    truth = layer.get_delta_weight("default").detach()
    assert truth.dtype == torch.float64
    assert_is(factors(AdapterSpec("lora", scale=scale), tensors), truth.flatten(1))


@pytest.mark.parametrize("layer_name", LAYERS)
def test_full_differences_stay_matrices(layer_name):
    layer = LAYERS[layer_name]()
    module = FullModule("lycoris_x", layer, 1.0)
    with torch.no_grad():
        module.weight.add_(torch.randn_like(module.weight))
        module.bias.add_(torch.randn_like(module.bias))
    saved = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    weight = saved["diff"].double().flatten(1)
    assert_is(factors(AdapterSpec("diff"), {"diff": saved["diff"]}), weight)
    assert_is(
        factors(AdapterSpec("diff"), {"diff_b": saved["diff_b"]}), saved["diff_b"].double()[:, None]
    )


def test_norms_and_biases_are_one_column():
    module = NormModule("lycoris_x", nn.LayerNorm(12), 1.0)
    with torch.no_grad():
        module.w_norm.normal_()
    assert_is(
        factors(AdapterSpec("norm"), {"w_norm": module.w_norm.detach()}),
        module.w_norm.detach().double()[:, None],
    )
    bias = torch.randn(12)
    assert_is(
        factors(AdapterSpec("bias_lora", scale=0.25), {"up_bias": bias}), bias.double()[:, None] / 4
    )


@pytest.mark.parametrize("conv", [False, True])
def test_a_sparse_residual_counts(conv):
    kernel = (3, 3) if conv else ()
    tensors = {"down": torch.randn(4, 8, *kernel), "up": torch.randn(32, 4, *[1 for _ in kernel])}
    tensors |= {
        "bias_indices": torch.tensor([[0, 9, 31], [5, 0, 7]]),
        "bias_values": torch.randn(3),
    }
    spec = AdapterSpec("lora", 2.0)
    truth = patched_weight(spec, tensors, torch.zeros(32, 8, *kernel), 1.0).double().flatten(1)
    assert_is(factors(spec, tensors), truth)


def test_a_loha_of_high_rank_is_its_matrix():
    tensors = {
        f"hada_w{half}_{side}": torch.randn(shape)
        for half in (1, 2)
        for side, shape in (("a", (96, 12)), ("b", (12, 80)))
    }
    delta = factors(AdapterSpec("loha", 6.0), tensors)
    halves = [
        tensors[f"hada_w{half}_a"].double() @ tensors[f"hada_w{half}_b"].double() for half in (1, 2)
    ]
    assert delta.up is None
    assert_is(delta, halves[0] * halves[1] * 0.5)


DELTAS = {
    "factors": lambda: Factors(
        torch.randn(24, 3, dtype=torch.float64), torch.randn(3, 20, dtype=torch.float64)
    ),
    "matrix": lambda: Factors(None, torch.randn(24, 20, dtype=torch.float64)),
    "wide": lambda: Factors(
        torch.randn(24, 40, dtype=torch.float64), torch.randn(40, 20, dtype=torch.float64)
    ),
    "pair": lambda: Kronecker(
        Factors(None, torch.randn(4, 5).double()),
        Factors(torch.randn(6, 2).double(), torch.randn(2, 4).double()),
    ),
    "other_pair": lambda: Kronecker(
        Factors(None, torch.randn(3, 2).double()), Factors(None, torch.randn(8, 10).double())
    ),
    "same_pair": lambda: Kronecker(
        Factors(None, torch.randn(4, 5).double()), Factors(None, torch.randn(6, 4).double())
    ),
}


@pytest.mark.parametrize("other", DELTAS)
@pytest.mark.parametrize("one", DELTAS)
def test_inner_products_and_sums(one, other):
    left, right = DELTAS[one](), DELTAS[other]()
    a, b = left.dense(), right.dense()
    assert left.inner(right) == pytest.approx(
        (a * b).sum().item(), abs=1e-12 * a.norm().item() * b.norm().item()
    )
    assert_is(add([left, right, left]), a + b + a, 1e-12)


@pytest.mark.parametrize("strip", [1, 3 * 20, 2**22])
def test_inner_product_in_strips_of_any_height(strip, monkeypatch):
    monkeypatch.setattr("lora_locksmith.lora.math.low_rank.STRIP", strip)
    left, right = DELTAS["matrix"](), DELTAS["pair"]()
    assert left.inner(right) == pytest.approx(
        (left.dense() * right.dense()).sum().item(), rel=1e-10
    )


@pytest.mark.parametrize("rows", [(0, 24), (6, 12), (0, 6), (5, 14), (7, 1), (23, 1)])
@pytest.mark.parametrize("name", DELTAS)
def test_rows_halves_and_scaling(name, rows):
    delta = DELTAS[name]()
    dense = delta.dense()
    assert_is(delta.rows(*rows), dense.narrow(0, *rows), 1e-10)
    assert_is(delta.swap_halves(), dense.roll(12, 0), 1e-10)
    assert_is(delta.scaled(-0.3), dense * -0.3, 1e-10)


def test_rows_of_a_pair_stay_a_pair_only_between_its_blocks():
    pair = DELTAS["pair"]()
    assert isinstance(pair.rows(6, 12), Kronecker)
    assert isinstance(pair.rows(5, 12), Factors)


def test_rows_and_swap_of_the_spec():
    tensors = {"down": torch.randn(3, 8), "up": torch.randn(16, 3)}
    whole = tensors["up"].double() @ tensors["down"].double()
    delta = factors(AdapterSpec("lora", rows=Rows(4, 8), swap=True), tensors)
    assert_is(delta, whole[4:12].roll(4, 0))
    single = factors(AdapterSpec("lora"), tensors, torch.float32)
    assert single.up.dtype == single.down.dtype == torch.float32
    assert_is(single, whole)


def test_tensors_are_not_changed():
    tensors = {
        "down": torch.randn(3, 8, dtype=torch.float64),
        "up": torch.randn(16, 3, dtype=torch.float64),
    }
    before = {role: tensor.clone() for role, tensor in tensors.items()}
    factors(AdapterSpec("lora", 12.0), tensors)
    assert all(torch.equal(tensors[role], before[role]) for role in before)


@pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-7])
def test_a_product_that_cancels_keeps_its_digits(apart):
    """Two parts of 1 that nearly cancel: the Gram matrices alone would be left with noise."""
    column, row, other = (
        torch.randn(40, 1).double(),
        torch.randn(1, 30).double(),
        torch.randn(1, 30).double(),
    )
    delta = Factors(torch.cat((column, column), 1), torch.cat((row, apart * other - row)))
    expected = apart * (column @ other).norm().item()
    assert delta.frobenius() == pytest.approx(expected, rel=1e-6)
    assert delta.spectral() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("decades", [2, 4, 6])
def test_factors_of_uneven_size(decades):
    """Columns of up from 1 to 10^-decades, rows of down the other way round."""
    sizes = torch.logspace(0, -decades, 6, dtype=torch.float64)
    up = torch.linalg.qr(torch.randn(40, 6).double()).Q * sizes
    down = torch.linalg.qr(torch.randn(30, 6).double()).Q.T * sizes.flip(0)[:, None]
    assert_is(Factors(up, down), up @ down, 1e-8)


@pytest.mark.parametrize("exponents", [(0, 0), (-25, 0), (-21, 21), (12, -30), (25, 10), (-30, -8)])
def test_fp32_factors_of_any_size(exponents):
    """Squares of such numbers leave fp32's range; the norms must not."""
    up, down = (
        torch.randn(*shape) * 10.0**exponent
        for shape, exponent in zip(((40, 5), (5, 30)), exponents, strict=True)
    )
    dense = up.double() @ down.double()
    single = Factors(up, down)
    assert single.frobenius() == pytest.approx(dense.norm().item(), rel=1e-6)
    expected = torch.linalg.svdvals(dense)[:5]
    assert (single.singular_values() / expected - 1).abs().max() < 1e-5


@pytest.mark.parametrize("overlap", [0.9, 0.999, 1 - 1e-6])
def test_fp32_factors_whose_product_is_small(overlap):
    """Columns that nearly cancel, by far more than fp32 Gram matrices can tell."""
    column, row = torch.randn(400, 1), torch.randn(1, 300)
    up, down = torch.cat((column, column * overlap), 1), torch.cat((row, -row))
    dense = up.double() @ down.double()
    single = Factors(up, down)
    assert single.frobenius() == pytest.approx(dense.norm().item(), rel=1e-5)
    assert single.spectral() == pytest.approx(dense.norm().item(), rel=1e-5)


@pytest.mark.parametrize("alpha", [1e-30, 1e-12, 1e30])
def test_scales_fp32_cannot_hold(alpha):
    tensors = {"down": torch.randn(4, 8), "up": torch.randn(16, 4) * 1e-10}
    truth = (tensors["up"].double() @ tensors["down"].double()).norm().item() * alpha / 4
    assert factors(AdapterSpec("lora", alpha), tensors, torch.float32).frobenius() == pytest.approx(
        truth, rel=1e-6
    )


def test_zero_and_repeated_columns():
    column, row = torch.randn(12, 1), torch.randn(1, 9)
    delta = Factors(column.expand(12, 4), row.expand(4, 9))
    assert_is(delta, 4 * (column @ row).double())
    zero = Factors(torch.zeros(12, 4), torch.randn(4, 9))
    assert zero.frobenius() == zero.spectral() == 0
    assert zero.singular_values().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", DELTAS)
def test_what_is_not_finite_does_not_crash(name, bad):
    delta = DELTAS[name]()
    part = delta.first.down if isinstance(delta, Kronecker) else delta.down
    part[0, 0] = bad
    assert not math.isfinite(delta.frobenius())
    assert delta.singular_values().isnan().all()
    assert math.isnan(delta.spectral())
    assert not math.isfinite(delta.inner(delta))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_narrow_dtypes(dtype):
    tensors = {"down": torch.randn(3, 8).to(dtype), "up": torch.randn(16, 3).to(dtype)}
    assert_is(
        factors(AdapterSpec("lora", 1.5), tensors),
        tensors["up"].double() @ tensors["down"].double() / 2,
        1e-12,
    )


@pytest.mark.parametrize(
    "kind, shapes",
    [
        ("lora", {"up": (8, 3), "down": (4, 6)}),
        ("lora", {"up": (8,), "down": (4, 6)}),
        ("lora", {"up": (8, 4)}),
        ("lora", {"up": (8, 4), "down": (4, 6), "mid": (5, 5, 3, 3)}),
        ("lora", {"up": (8, 0), "down": (0, 6)}),
        ("lora", {"up": (8, 4), "down": (4, 6), "dora_scale": (8, 1)}),
        ("lora", {"up": (8, 4), "down": (4, 6), "scalar": (2,)}),
        (
            "loha",
            {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 7)},
        ),
        ("lokr", {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (3, 4)}),
        ("lokr", {"lokr_w1": (2,), "lokr_w2": (4, 2)}),
        ("diff", {"diff": (4, 4), "diff_b": (4,)}),
        ("diff", {}),
        ("oft", {"oft_blocks": (2, 4, 4)}),
        ("nothing", {"up": (8, 4), "down": (4, 6)}),
    ],
)
def test_what_is_no_delta_is_refused(kind, shapes):
    with pytest.raises(AdapterError):
        factors(AdapterSpec(kind), {role: torch.ones(shape) for role, shape in shapes.items()})


@pytest.mark.parametrize("rows", [(-1, 2), (0, 0), (20, 5), (24, 1)])
@pytest.mark.parametrize("name", ["factors", "matrix", "pair"])
def test_rows_outside_are_refused(name, rows):
    with pytest.raises(AdapterError, match="rows"):
        DELTAS[name]().rows(*rows)


def test_shapes_that_differ_are_refused():
    small, large = Factors(None, torch.ones(2, 3)), Factors(None, torch.ones(3, 3))
    for wrong in (
        lambda: small.inner(large),
        lambda: add([small, large]),
        lambda: add([]),
        lambda: large.swap_halves(),
    ):
        with pytest.raises(AdapterError):
            wrong()
