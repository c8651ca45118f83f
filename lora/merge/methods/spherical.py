"""Means on the sphere: directions are averaged along great circles, so that deltas that disagree do
not shrink each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .registry import COEFFICIENTS, Option, method

NEARLY_ONE_DIRECTION = 0.9995  # cosine above which a great circle is a line


@method(
    "slerp",
    ("merge.slerp", "merge.slerp_text"),
    "Shoemake 1985 (mergekit)",
    COEFFICIENTS,
    Option("t", 0.5, 0.0, 1.0, "merge.option_t"),
    inputs=2,
    needs_inner=True,
)
def slerp(inner: Tensor, strengths: Sequence[float], t: float) -> list[float]:
    """Between the first and the second delta along the great circle; a straight line where one of
    them is nothing.

    sin((1-t) angle) / sin(angle) and sin(t angle) / sin(angle) times the deltas as they are
    (mergekit merge_methods/slerp.py).
    """
    norms = inner.diagonal().clamp(min=0).sqrt()
    product = (norms[0] * norms[1]).item()
    cosine = max(-1.0, min(1.0, inner[0, 1].item() / product)) if product else 1.0
    if abs(cosine) > NEARLY_ONE_DIRECTION:
        return [1 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


@method(
    "karcher",
    ("merge.karcher", "merge.karcher_text"),
    "Karcher 1977 (doi 10.1002/cpa.3160300502; mergekit)",
    COEFFICIENTS,
    Option("steps", 10, 1, 1000, "merge.option_steps"),
    Option("tolerance", 1e-5, 0.0, 1.0, "merge.option_tolerance"),
    needs_inner=True,
)
def karcher(
    inner: Tensor, strengths: Sequence[float], steps: float, tolerance: float
) -> list[float]:
    """The direction nearest to all deltas along great circles, at the mean of their norms.

    All of it happens in the span of the deltas, where points are coefficients and `inner` measures
    (mergekit merge_methods/karcher.py). A delta that is nothing has no direction, and counts in the
    mean of the norms.
    """
    norms = inner.diagonal().clamp(min=0).sqrt()
    there = norms > 0
    count = int(there.sum())
    if not count:
        return [0.0] * len(norms)
    units = torch.diag(torch.where(there, 1 / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0))
    mean = units.sum(0) / count
    length = _length(mean, inner)
    mean = mean / length if length > tolerance else units[int(there.nonzero()[0])]
    for _ in range(int(steps)):
        step = _tangent(mean, units[there], inner, tolerance) / count
        size = _length(step, inner)
        if size <= tolerance:
            break
        mean = math.cos(size) * mean + math.sin(size) * (step / size)
        mean = mean / _length(mean, inner)
    return (mean * norms.mean()).tolist()


def _length(point: Tensor, inner: Tensor) -> float:
    return math.sqrt(max(0.0, (point @ inner @ point).item()))


def _tangent(mean: Tensor, units: Tensor, inner: Tensor, tolerance: float) -> Tensor:
    """The sum of the directions from the mean to every unit, each as long as its angle."""
    total = torch.zeros_like(mean)
    for unit in units:
        cosine = max(-1.0, min(1.0, (mean @ inner @ unit).item()))
        angle = math.acos(cosine)
        sine = math.sin(angle)
        if angle >= tolerance and sine > 0:
            total += angle / sine * (unit - cosine * mean)
    return total
