"""Merging in null spaces: what an earlier LoRA listens to, a later one leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...math.low_rank import Delta, Factors, both
from .registry import FACTORS, Option, method


@method(
    "orthogonal",
    ("merge.orthogonal", "merge.orthogonal_text"),
    "arXiv:2511.11051 (NP-LoRA)",
    FACTORS,
    Option(
        "suppression",
        1.0,
        0.0,
        1.0,
        "merge.option_suppression",
    ),
)
def orthogonal(deltas: Sequence[Delta], suppression: float) -> list[Delta]:
    """The first delta as it is, every later one without its part in the inputs that the earlier
    ones use.

    later - suppression * (later V) V^T with V the right singular vectors of the earlier ones (their
    formula for a style and a content LoRA: the style goes first).
    """
    kept, basis = [deltas[0]], _right_vectors(deltas[0])
    for delta in deltas[1:]:
        kept.append(_without(delta, basis, suppression))
        basis = torch.linalg.qr(torch.cat((basis, _right_vectors(delta)), 1)).Q
    return kept


def _right_vectors(delta: Delta) -> Tensor:
    """Orthonormal fp64 [columns, rank]: the inputs a delta responds to."""
    vectors: Tensor
    up = delta.up if isinstance(delta, Factors) else None
    if not isinstance(delta, Factors) or up is None or delta.down.shape[0] > min(delta.shape):
        matrix = delta.dense().to(torch.float64)
        values, vectors = torch.linalg.eigh(matrix.T @ matrix)
        return vectors[
            :, values > values[-1].clamp(min=0) * max(matrix.shape) * torch.finfo(torch.float32).eps
        ]
    inner = torch.linalg.qr(delta.down.to(torch.float64).T)
    outer = torch.linalg.qr(up.to(torch.float64), mode="r").R
    _, values, vectors = torch.linalg.svd(outer @ inner.R.T, full_matrices=False)
    # Factors come from fp32 or less: what is below its rounding is no direction.
    directions: Tensor = (
        inner.Q @ vectors[values > values[0] * max(delta.shape) * torch.finfo(torch.float32).eps].T
    )
    return directions


def _without(delta: Delta, basis: Tensor, suppression: float) -> Factors:
    up = delta.up if isinstance(delta, Factors) else None
    rows = both(delta)[1] if up is not None else delta.dense()
    rows = rows.to(torch.float64)
    rows = rows - suppression * (rows @ basis) @ basis.T
    return Factors(up, rows.to(torch.float32 if up is None else up.dtype))
