"""The methods of merging against PEFT's own code, and against their papers' formulas written out
entry by entry.
"""

import math

import peft.utils.merge_utils as theirs
import pytest
import torch
from lora_locksmith.adapters.spec import AdapterError
from lora_locksmith.lora.math.low_rank import Factors
from lora_locksmith.lora.merge.merge import inner_products
from lora_locksmith.lora.merge.methods import COEFFICIENTS, ENTRIES, find, methods

OUT, COLUMNS = 40, 56


def draw(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(OUT, COLUMNS, generator=generator) for _ in range(count)]


def seeded(number=3):
    return torch.Generator().manual_seed(number)


def by_entries(name, matrices, generator=None, **options):
    method = find(name)
    return method.run(
        [matrix.clone() for matrix in matrices],
        len(matrices),
        generator or seeded(),
        **method.read_options(options),
    )


def combined(name, matrices, strengths=None, **options):
    """The result of a method that gives coefficients."""
    method = find(name)
    deltas = [Factors(torch.eye(OUT, dtype=torch.float64), matrix.double()) for matrix in matrices]
    found = method.run(
        inner_products(deltas), strengths or [1.0] * len(matrices), **method.read_options(options)
    )
    return sum(factor * matrix.double() for factor, matrix in zip(found, matrices, strict=True))


def test_every_method_says_where_it_comes_from():
    assert len(methods()) >= 14
    for method in methods().values():
        assert (
            "arXiv:" in method.paper or "mergekit" in method.paper or method.name == "sum"
        ) and method.text.endswith(".")
        assert all(option.low <= option.default <= option.high for option in method.options)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.93])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_ties_is_pefts(count, density):
    matrices = draw(count)
    assert torch.allclose(
        by_entries("ties", matrices, density=density),
        theirs.ties(matrices, torch.ones(count), density),
        atol=1e-6,
    )


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_magnitude_pruning_is_pefts(density):
    matrices = draw(3)
    expected = theirs.magnitude_prune(matrices, torch.ones(3), density)
    assert torch.allclose(
        by_entries("magnitude_prune", matrices, density=density), expected, atol=1e-6
    )


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_is_pefts_with_the_same_draws(name):
    matrices = draw(3)
    torch.manual_seed(11)
    expected = getattr(theirs, name)(matrices, torch.ones(3), 0.4)
    assert torch.allclose(by_entries(name, matrices, seeded(11), density=0.4), expected, atol=1e-6)


def test_equal_entries_are_kept_in_the_number_asked_for():
    flat = torch.ones(6, 10)
    assert by_entries("magnitude_prune", [flat], density=0.25).sum() == 15
    assert by_entries("breadcrumbs", [flat], density=0.5, gamma=0.2).sum() == 30
    assert by_entries("magnitude_prune", [flat], density=0.0).sum() == 0
    assert torch.equal(by_entries("magnitude_prune", [flat], density=1.0), flat)


def test_dare_keeps_the_mean_and_the_seed_decides():
    matrix = torch.ones(400, 400)
    thinned = by_entries("dare_linear", [matrix], density=0.3)
    assert thinned.unique().tolist() == pytest.approx([0, 1 / 0.3])
    assert thinned.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(thinned, by_entries("dare_linear", [matrix], density=0.3))
    assert not torch.equal(thinned, by_entries("dare_linear", [matrix], seeded(4), density=0.3))


def test_breadcrumbs_drop_both_ends():
    matrix = torch.arange(1.0, 101.0).reshape(10, 10)
    kept = by_entries("breadcrumbs", [matrix, -2 * matrix], density=0.7, gamma=0.1, scale=3.0)
    inside = (matrix > 20) & (matrix <= 90)
    assert torch.equal(kept, torch.where(inside, 3 * (matrix - 2 * matrix), 0.0))


def test_breadcrumbs_drop_fewer_outliers_where_more_are_kept():
    matrix = torch.arange(1.0, 101.0).reshape(10, 10)
    assert torch.equal(
        by_entries("breadcrumbs", [matrix], density=0.95, gamma=0.1),
        torch.where(matrix <= 95, matrix, 0.0),
    )


def test_della_draws_larger_entries_likelier_and_keeps_the_mean():
    row = torch.arange(1.0, 6.0).repeat(20000, 1)[:, [3, 0, 4, 1, 2]]
    thinned = by_entries("della_linear", [row], density=0.5, epsilon=0.2)
    chances = (thinned != 0).float().mean(0)
    assert torch.allclose(chances, torch.tensor([0.6, 0.3, 0.7, 0.4, 0.5]), atol=0.02)
    assert torch.allclose(thinned.mean(0), row[0], rtol=0.05)


def test_della_elects_signs_as_ties_does():
    plus, minus = torch.full((3, 8), 2.0), torch.full((3, 8), -1.0)
    assert torch.equal(by_entries("della", [plus, minus], density=1.0), plus)
    assert torch.equal(
        by_entries("ties", [plus, minus, plus * 2], density=1.0, scale=0.5), torch.full((3, 8), 1.5)
    )


def test_della_refuses_chances_that_are_none():
    with pytest.raises(AdapterError, match="epsilon"):
        by_entries("della", draw(2), density=0.05, epsilon=0.2)


@pytest.mark.parametrize("select", [0.1, 0.6, 1.0])
def test_sce_by_its_formula(select):
    matrices = draw(3)
    stack = torch.stack(matrices).double()
    variance = stack.var(0, unbiased=False)
    if select < 1:
        stack = stack * (
            variance
            >= variance.flatten().sort(descending=True).values[int(select * variance.numel()) - 1]
        )
    energy = stack.square().sum((1, 2))
    weights = (energy / energy.sum())[:, None, None] * (
        stack.sign() == torch.where(stack.sum(0) >= 0, 1, -1)
    )
    expected = (stack * weights).sum(0) / weights.sum(0).masked_fill(weights.sum(0) == 0, 1)
    assert torch.allclose(by_entries("sce", matrices, select=select).double(), expected, atol=1e-5)


def test_sce_counts_a_lora_that_leaves_the_layer_alone():
    matrix = draw(1)[0]
    method = find("sce")
    absent = method.run([matrix.clone()], 2, seeded(), select=0.25)
    present = by_entries("sce", [matrix, torch.zeros_like(matrix)], select=0.25)
    assert torch.equal(absent, present) and absent.count_nonzero() == matrix.numel() // 4


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_by_its_formula(t):
    first, second = (matrix.double() for matrix in draw(2))
    second = second + 0.7 * first
    angle = torch.acos((first * second).sum() / first.norm() / second.norm())
    expected = (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(
        angle
    )
    assert torch.allclose(combined("slerp", [first, second], t=t), expected)


def test_slerp_is_a_line_where_there_is_no_circle():
    matrix = draw(1)[0].double()
    for other in (matrix * 1.5, torch.zeros_like(matrix)):
        assert torch.allclose(
            combined("slerp", [matrix, other], t=0.25), 0.75 * matrix + 0.25 * other
        )


def test_karcher_of_two_is_slerp_at_the_middle():
    matrices = draw(2)
    matrices[1] = matrices[1] * 3 + matrices[0]
    units = [matrix.double() / matrix.norm() for matrix in matrices]
    direction = combined("slerp", units)
    expected = (
        direction / direction.norm() * torch.tensor([matrix.norm() for matrix in matrices]).mean()
    )
    assert torch.allclose(
        combined("karcher", matrices, steps=100, tolerance=1e-12), expected, atol=1e-5
    )


def test_karchers_mean_is_where_the_ways_to_all_deltas_cancel():
    matrices = [matrix + 0.3 * draw(1, 9)[0] for matrix in draw(4)]
    mean = combined("karcher", matrices, steps=200, tolerance=1e-12)
    assert mean.norm().item() == pytest.approx(sum(matrix.norm().item() for matrix in matrices) / 4)
    unit, total = mean / mean.norm(), torch.zeros(OUT, COLUMNS, dtype=torch.float64)
    for matrix in matrices:
        other = matrix.double() / matrix.double().norm()
        cosine = (unit * other).sum()
        total += torch.acos(cosine) / torch.sin(torch.acos(cosine)) * (other - cosine * unit)
    assert total.norm() < 1e-6


def test_karcher_gives_what_there_is_no_direction_no_weight():
    matrix = draw(1)[0].double()
    assert torch.allclose(combined("karcher", [matrix, torch.zeros_like(matrix)]), matrix / 2)
    assert torch.equal(
        combined("karcher", [torch.zeros_like(matrix)] * 2), torch.zeros_like(matrix)
    )


def test_sums_means_and_task_arithmetic():
    first, second = (matrix.double() for matrix in draw(2))
    assert torch.allclose(combined("sum", [first, second]), first + second)
    assert torch.allclose(
        combined("average", [first * 0.5, second * 1.5], [0.5, 1.5]),
        (0.5 * first + 1.5 * second) / 2,
    )
    assert torch.allclose(
        combined("task_arithmetic", [first, -second], scale=0.4), 0.4 * (first - second)
    )
    with pytest.raises(AdapterError, match="sum is not 0"):
        combined("average", [first, second], [1.0, -1.0])


def low_rank(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(OUT, rank, generator=generator), torch.randn(rank, COLUMNS, generator=generator)
    )


@pytest.mark.parametrize("suppression", [0.0, 0.4, 1.0])
def test_orthogonal_by_its_formula(suppression):
    """NP-LoRA's equation 12: style + content (I - mu / (1 + mu) V V^T), V from the whole style
    delta's SVD.
    """
    style, content, third = low_rank(4, 1), low_rank(5, 2), low_rank(3, 3)
    kept = find("orthogonal").run([style, content, third], suppression=suppression)
    vectors = torch.linalg.svd(style.dense().double()).Vh[:4]
    expected = content.dense().double() @ (
        torch.eye(COLUMNS, dtype=torch.float64) - suppression * vectors.T @ vectors
    )
    assert kept[0] is style and torch.allclose(kept[1].dense().double(), expected, atol=1e-5)
    both = torch.linalg.svd(torch.cat((style.down, content.down)).double()).Vh[: 7 + 2]
    expected = third.dense().double() @ (
        torch.eye(COLUMNS, dtype=torch.float64) - suppression * both.T @ both
    )
    assert torch.allclose(kept[2].dense().double(), expected, atol=1e-5)


def test_orthogonal_sees_the_true_rank_and_whole_matrices():
    style = low_rank(4, 1)
    doubled = Factors(torch.cat((style.up, style.up), 1), torch.cat((style.down, style.down)))
    content, run = low_rank(5, 2), find("orthogonal").run
    expected = run([style, content], suppression=1.0)[1].dense()
    for same in (doubled, Factors(None, style.dense())):
        assert torch.allclose(run([same, content], suppression=1.0)[1].dense(), expected, atol=1e-4)
    assert torch.allclose(
        run([style, Factors(None, content.dense())], suppression=1.0)[1].dense(),
        expected,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "given",
    [
        {"density": 2.0},
        {"density": math.nan},
        {"density": True},
        {"density": "0.5"},
        {"speed": 1.0},
    ],
)
def test_options_are_read_strictly(given):
    with pytest.raises(AdapterError, match=next(iter(given))):
        find("ties").read_options(given)


def test_an_unknown_method_names_the_known():
    with pytest.raises(AdapterError, match="ties"):
        find("best")


def test_forms_are_what_the_merge_knows():
    assert {method.form for method in methods().values()} == {COEFFICIENTS, ENTRIES, "factors"}
