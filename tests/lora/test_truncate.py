"""Truncations against torch's full singular value decomposition in fp64: the optimum of Eckart and
Young, whatever the delta is made of.
"""

import math

import pytest
import torch
from lora_locksmith.adapters.spec import AdapterError
from lora_locksmith.lora.math.low_rank import Factors, Kronecker, add
from lora_locksmith.lora.math.truncate import _by_sketch, truncated

pytestmark = pytest.mark.usefixtures("one_thread")
WITHIN = 1e-5


def optimum(dense, rank):
    """|delta - best rank| / |delta| by torch's own decomposition."""
    values = torch.linalg.svdvals(dense.double())
    return (values[rank:].square().sum() / values.square().sum()).sqrt().item()


def error_of(dense, found):
    return ((dense.double() - found.delta.dense().double()).norm() / dense.double().norm()).item()


def random_factors(out, rank, columns, decay=0.0, dtype=torch.float32):
    up, down = torch.randn(out, rank, dtype=dtype), torch.randn(rank, columns, dtype=dtype)
    return Factors(up * torch.logspace(0, -decay, rank, dtype=dtype), down)


def same_training(rank):
    """Two versions of one LoRA, a little apart: the columns of their sum are
    nearly the same twice.
    """
    first = random_factors(200, rank, 120)
    second = Factors(
        first.up + 1e-3 * torch.randn_like(first.up),
        first.down + 1e-3 * torch.randn_like(first.down),
    )
    return add([first, second])


def cancelling(rank):
    """A LoRA minus nearly itself: what is left is a thousandth of the factors."""
    first = random_factors(200, rank, 120)
    return add(
        [first, Factors(-first.up * 1.001, first.down), random_factors(200, 2, 120).scaled(1e-4)]
    )


DELTAS = {
    "plain": lambda: random_factors(200, 24, 120, 2),
    "fp64": lambda: random_factors(200, 24, 120, 2, torch.float64),
    "steep": lambda: random_factors(200, 24, 120, 12),
    "nearly twice the same": lambda: same_training(12),
    "twice the same": lambda: add([random_factors(200, 12, 120)] * 2),
    "cancelling": lambda: cancelling(12),
    "tiny numbers": lambda: Factors(
        random_factors(200, 24, 120).up * 1e-18, random_factors(200, 24, 120).down * 1e-18
    ),
    "more rank than columns": lambda: random_factors(200, 150, 120),
    "a matrix": lambda: Factors(None, torch.randn(200, 120)),
    "a wide matrix": lambda: Factors(None, torch.randn(60, 300)),
    "a vector": lambda: Factors(None, torch.randn(200, 1)),
    "Kronecker": lambda: Kronecker(Factors(None, torch.randn(4, 6)), random_factors(50, 5, 20)),
    "Kronecker of matrices": lambda: Kronecker(
        random_factors(8, 2, 6), Factors(None, torch.randn(20, 30))
    ),
}


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("name", DELTAS)
def test_is_the_optimum(name, rank):
    delta = DELTAS[name]()
    found = truncated(delta, rank)
    dense = (
        delta.dense()
        if delta.dense().norm() > 1e-30
        else Factors(delta.up.double(), delta.down.double()).dense()
    )
    best = optimum(dense, rank)
    assert found.rank == min(rank, delta.rank)
    # What is below fp32's own rounding is no error of the truncation.
    assert error_of(dense, found) <= best * (1 + WITHIN) + 1e-6
    assert found.error == pytest.approx(best, rel=WITHIN, abs=2e-6)
    assert found.kept_energy == pytest.approx(1 - best * best, abs=1e-6)


def test_factors_share_the_singular_values():
    found = truncated(random_factors(200, 24, 120, 2), 8)
    up, down = found.delta.up.double(), found.delta.down.double()
    assert torch.allclose(up.T @ up, down @ down.T, atol=1e-4 * up.norm().item() ** 2)
    assert found.delta.up.dtype == torch.float32


@pytest.mark.parametrize("name", ["plain", "a matrix", "Kronecker", "cancelling"])
def test_energy_and_error_take_the_smallest_rank(name):
    delta = DELTAS[name]()
    values = torch.linalg.svdvals(delta.dense().double()).square()
    tails = values.flip(0).cumsum(0).flip(0) / values.sum()
    for energy in (0.5, 0.9, 0.99):
        wanted = max(1, int((tails > 1 - energy).sum()))
        assert truncated(delta, energy=energy).rank == wanted
        assert truncated(delta, error=math.sqrt(1 - energy)).rank == wanted
        assert truncated(delta, rank=2, energy=energy).rank == min(2, wanted)


def test_energy_of_one_finds_the_rank_there_is():
    assert truncated(add([random_factors(200, 12, 120)] * 2), energy=1.0).rank == 12
    low = random_factors(400, 20, 500)
    found = truncated(Factors(None, low.dense().double()), energy=1.0)
    assert found.rank == 20 and found.error < 1e-6


def test_a_rank_that_is_there_already_changes_nothing():
    delta = random_factors(200, 24, 120)
    assert truncated(delta, 24) == (delta, 1.0, 0.0, 24)
    assert truncated(delta).delta is delta


def test_zero():
    for delta in (
        Factors(torch.zeros(20, 4), torch.randn(4, 30)),
        Factors(None, torch.zeros(300, 400)),
    ):
        found = truncated(delta, energy=0.9)
        assert (found.kept_energy, found.error, found.rank) == (1.0, 0.0, 1)
        assert not found.delta.dense().any()


def spectrum(decay, side=640):
    left, right = (torch.linalg.qr(torch.randn(side, side)).Q for _ in range(2))
    return (left * decay(torch.arange(1, side + 1.0))) @ right


@pytest.mark.parametrize(
    ("decay", "shape"),
    [
        (lambda i: 1 / i, None),
        (lambda i: torch.where(i <= 16, 1.0, 1e-3), None),
        (lambda i: torch.where(i <= 16, 1 / i, 0.02), None),
        (lambda i: 0.9**i, None),
        (lambda i: torch.ones_like(i), None),
        (None, (1500, 600)),
        (None, (600, 1500)),
    ],
    ids=[
        "slow",
        "LoRA and noise",
        "LoRA and much noise",
        "exponential",
        "flat",
        "tall noise",
        "wide noise",
    ],
)
def test_sketches_of_large_matrices_are_the_optimum(decay, shape):
    matrix = spectrum(decay) if shape is None else torch.randn(shape)
    found = truncated(Factors(None, matrix), 16)
    best = optimum(matrix, 16)
    assert error_of(matrix, found) <= best * (1 + WITHIN)
    assert found.error == pytest.approx(best, rel=WITHIN)


def test_a_sketch_is_used_where_it_pays_and_repeats_itself():
    matrix = spectrum(lambda i: 1 / i)
    assert _by_sketch(matrix, matrix.double().norm().item() ** 2, 16) is not None
    first, second = (truncated(Factors(None, matrix), 16).delta for _ in range(2))
    assert torch.equal(first.up, second.up) and torch.equal(first.down, second.down)


@pytest.mark.parametrize(
    "delta",
    [
        Factors(torch.full((20, 4), math.nan), torch.randn(4, 30)),
        Factors(torch.randn(20, 4), torch.full((4, 30), math.inf)),
        Factors(None, torch.full((300, 400), math.nan)),
        Kronecker(Factors(None, torch.full((4, 4), math.inf)), Factors(None, torch.randn(5, 5))),
    ],
)
def test_what_is_not_finite_is_refused(delta):
    with pytest.raises(AdapterError, match="NaN or Inf"):
        truncated(delta, 2)


@pytest.mark.parametrize(
    "asked",
    [
        {"rank": 0},
        {"energy": 0},
        {"energy": 1.5},
        {"error": 1},
        {"error": -0.1},
        {"energy": math.nan},
    ],
)
def test_what_cannot_be_asked_is_refused(asked):
    with pytest.raises(ValueError, match="not"):
        truncated(random_factors(20, 4, 30), **asked)
