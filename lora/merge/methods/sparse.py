"""Methods that thin deltas out entry by entry before they are added: their results have no exact
low-rank form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Generator, Tensor

from ....adapters.spec import AdapterError
from ....messages import message
from .registry import ENTRIES, Option, method

SCALE = Option("scale", 1.0, -10.0, 10.0, "merge.option_scale")


def density(default: float) -> Option:
    """The option every method here has."""
    return Option("density", default, 0.0, 1.0, "merge.option_density")


@method(
    "magnitude_prune",
    ("merge.magnitude_prune", "merge.magnitude_prune_text"),
    "arXiv:1506.02626 (PEFT)",
    ENTRIES,
    density(0.5),
)
def magnitude_prune(
    deltas: Sequence[Tensor], count: int, generator: Generator, density: float
) -> Tensor:
    """The sum of all deltas, of each only its largest entries."""
    return _added([keep_largest(delta, density) for delta in deltas])


@method("ties", ("merge.ties", "merge.ties_text"), "arXiv:2306.01708", ENTRIES, density(0.2), SCALE)
def ties(
    deltas: Sequence[Tensor], count: int, generator: Generator, density: float, scale: float
) -> Tensor:
    """Of each delta its largest entries; where signs differ the heavier one wins, and those that
    have it are averaged.
    """
    return elect_and_average([keep_largest(delta, density) for delta in deltas]).mul_(scale)


@method(
    "dare_linear",
    ("merge.dare_linear", "merge.dare_linear_text"),
    "arXiv:2311.03099",
    ENTRIES,
    density(0.5),
    seeded=True,
)
def dare_linear(
    deltas: Sequence[Tensor], count: int, generator: Generator, density: float
) -> Tensor:
    """The sum of all deltas, of each only entries drawn at random, made larger by
    what was dropped.
    """
    return _added([keep_at_random(delta, density, generator) for delta in deltas])


@method(
    "dare_ties",
    ("merge.dare_ties", "merge.dare_ties_text"),
    "arXiv:2311.03099, arXiv:2306.01708",
    ENTRIES,
    density(0.5),
    SCALE,
    seeded=True,
)
def dare_ties(
    deltas: Sequence[Tensor], count: int, generator: Generator, density: float, scale: float
) -> Tensor:
    """Of each delta entries drawn at random, as DARE does; then one sign for each entry and the
    average, as TIES does.
    """
    return elect_and_average([keep_at_random(delta, density, generator) for delta in deltas]).mul_(
        scale
    )


WINDOW = Option(
    "epsilon",
    0.1,
    0.0,
    0.5,
    "merge.option_epsilon",
)


@method(
    "della",
    ("merge.della", "merge.della_text"),
    "arXiv:2406.11617",
    ENTRIES,
    density(0.5),
    WINDOW,
    SCALE,
    seeded=True,
)
def della(
    deltas: Sequence[Tensor],
    count: int,
    generator: Generator,
    *,
    density: float,
    epsilon: float,
    scale: float,
) -> Tensor:
    """Of each delta entries drawn at random, larger ones likelier; then one sign for each entry and
    the average.
    """
    return elect_and_average(
        [keep_by_rank(delta, density, epsilon, generator) for delta in deltas]
    ).mul_(scale)


@method(
    "della_linear",
    ("merge.della_linear", "merge.della_linear_text"),
    "arXiv:2406.11617",
    ENTRIES,
    density(0.5),
    WINDOW,
    seeded=True,
)
def della_linear(
    deltas: Sequence[Tensor], count: int, generator: Generator, density: float, epsilon: float
) -> Tensor:
    """The sum of all deltas, of each entries drawn at random, larger ones likelier."""
    return _added([keep_by_rank(delta, density, epsilon, generator) for delta in deltas])


@method(
    "breadcrumbs",
    ("merge.breadcrumbs", "merge.breadcrumbs_text"),
    "arXiv:2312.06795",
    ENTRIES,
    density(0.9),
    Option("gamma", 0.01, 0.0, 1.0, "merge.option_gamma"),
    SCALE,
)
def breadcrumbs(
    deltas: Sequence[Tensor],
    count: int,
    generator: Generator,
    *,
    density: float,
    gamma: float,
    scale: float,
) -> Tensor:
    """The sum of all deltas, of each without its largest and its smallest entries."""
    return _added([keep_middle(delta, density, gamma) for delta in deltas]).mul_(scale)


@method(
    "sce",
    ("merge.sce", "merge.sce_text"),
    "arXiv:2408.07990 (FuseChat 3)",
    ENTRIES,
    Option(
        "select",
        0.1,
        0.0,
        1.0,
        "merge.option_select",
    ),
)
def sce(deltas: Sequence[Tensor], count: int, generator: Generator, select: float) -> Tensor:
    """Entries in which the LoRAs differ most, averaged by the energy each LoRA has in them, those
    of the lighter sign left out.

    Select, calculate, erase. A LoRA that leaves the layer alone takes part in the variance, with
    zeros.
    """
    if select < 1:
        mask = _most_varied(deltas, count, select)
        for delta in deltas:
            delta.mul_(mask)
    energies = [
        torch.linalg.vector_norm(delta, dtype=torch.float64).item() ** 2 for delta in deltas
    ]
    total = sum(energies) or 1.0
    positive = _added(deltas, keep=True) >= 0
    result, divisor = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta, energy in zip(deltas, energies, strict=True):
        agrees = torch.where(positive, delta > 0, delta < 0)
        result.add_(delta.mul_(agrees), alpha=energy / total)
        divisor.add_(agrees, alpha=energy / total)
    return result.div_(divisor.masked_fill_(divisor == 0, 1.0))


def keep_largest(delta: Tensor, density: float) -> Tensor:
    """The int(density * entries) entries of the largest magnitude, the rest 0."""
    kept = int(density * delta.numel())
    if kept >= delta.numel():
        return delta
    return delta.mul_(_largest(delta.abs(), kept))


def keep_middle(delta: Tensor, density: float, gamma: float) -> Tensor:
    """Without int(gamma * entries) largest, and of the rest the largest, int(density * entries) in
    all.

    As in mergekit's sparsify.py, where more are to be kept than gamma leaves fewer outliers are
    dropped.
    """
    entries = delta.numel()
    kept = int(density * entries)
    outliers = min(int(gamma * entries), entries - kept)
    magnitudes = delta.abs()
    wide = _largest(magnitudes, kept + outliers)
    return delta.mul_(wide & ~_largest(magnitudes, outliers))


def _largest(magnitudes: Tensor, kept: int) -> Tensor:
    """A mask of exactly `kept` entries."""
    mask = torch.zeros(magnitudes.numel(), dtype=torch.bool)
    flat = magnitudes.flatten()
    if not 0 < kept < len(flat):
        return mask.fill_(kept > 0).view(magnitudes.shape)
    # For this many, numpy's partial sort takes an eighth of the time of torch's kthvalue and topk.
    threshold = float(numpy.partition(flat.numpy(), len(flat) - kept)[len(flat) - kept])
    torch.gt(flat, threshold, out=mask)
    # Of entries as large as the threshold only as many as there is room for.
    ties = (flat == threshold).nonzero()[: kept - int(mask.sum()), 0]
    mask[ties] = True
    return mask.view(magnitudes.shape)


def keep_at_random(delta: Tensor, density: float, generator: Generator) -> Tensor:
    """Every entry with probability `density`, divided by it; so that the mean stays what it was."""
    if density >= 1:
        return delta
    if density <= 0:
        return delta.zero_()
    # A chance for each entry, as one chance for all is drawn by other means on processors that have
    # them.
    return delta.mul_(torch.bernoulli(torch.full_like(delta, density), generator=generator)).div_(
        density
    )


def keep_by_rank(delta: Tensor, density: float, epsilon: float, generator: Generator) -> Tensor:
    """Every entry with a probability from density - epsilon (the smallest of its row) to density +
    epsilon, divided by it (MagPrune).
    """
    if density >= 1:
        return delta
    if density - epsilon <= 0 or density + epsilon >= 1:
        raise AdapterError(
            message("merge.density_and_epsilon", density=f"{density:g}", epsilon=f"{epsilon:g}")
        )
    columns = delta.shape[1]
    places = (
        torch.arange(columns, dtype=delta.dtype)
        .div_(max(columns - 1, 1))
        .mul_(2 * epsilon)
        .add_(density - epsilon)
    )
    for rows in delta.split(max(1, STRIP // columns)):
        chances = torch.empty_like(rows).scatter_(1, rows.abs().argsort(1), places.expand_as(rows))
        rows.mul_(torch.bernoulli(chances, generator=generator)).div_(chances)
    return delta


STRIP = 2**22  # entries that are sorted at a time


def elect_and_average(deltas: Sequence[Tensor]) -> Tensor:
    """Of every entry the sign of the sum, and the mean of those that have it (0 has none)."""
    positive = _added(deltas, keep=True) >= 0
    result, count = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta in deltas:
        agrees = torch.where(positive, delta > 0, delta < 0)
        result.add_(delta.mul_(agrees))
        count.add_(agrees)
    return result.div_(count.clamp_(min=1))


def _added(deltas: Sequence[Tensor], keep: bool = False) -> Tensor:
    total = deltas[0].clone() if keep else deltas[0]
    for delta in deltas[1:]:
        total.add_(delta)
    return total


def _most_varied(deltas: Sequence[Tensor], count: int, select: float) -> Tensor:
    mean = _added(deltas, keep=True).div_(count)
    variance = mean.square().mul_(count - len(deltas))
    for delta in deltas:
        variance.add_((delta - mean).square_())
    return _largest(variance, int(select * int(variance.count_nonzero())))
