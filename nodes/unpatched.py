"""The model's own weight where the host hands an adapter one that others have changed already.

Under a hook the host gives an adapter the weight with the model's patches on it, and with those of
the hooks before, and beside it what the weight was: `original_weights` of its calculate_weight, as
`get_key_patches` of its ModelPatcher makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..adapters.rows import Rows

# The host's: key -> [(weight, its way to compute with it), *patches].
Originals = Mapping[str, list[Any]]
Offset = tuple[int, int, int]  # dimension, start, length


def own_rows(
    originals: Originals | None, key: str, offset: Offset | None, weight: Tensor
) -> Callable[[Rows | None], Tensor] | None:
    """Rows -> these rows of the model's own weight (None: all), a copy in fp32 on the device of
    `weight`; None where the host tells no such weight, or one that has grown since.

    weight: as it is now; offset: the part of the whole that it is.
    """
    if not originals or key not in originals:
        return None
    stored, convert = originals[key][0]
    if is_quantised(stored):
        stored = convert(stored.to(weight.device, torch.float32, copy=True), inplace=True)
    part = stored if offset is None else stored.narrow(*offset)
    if part.shape != weight.shape:
        return None

    def rows_of(rows: Rows | None) -> Tensor:
        piece = part if rows is None else part.narrow(0, *rows)
        return piece.detach().to(weight.device, torch.float32, copy=True)

    return rows_of


def is_quantised(weight: Tensor) -> bool:
    """Whether a weight is stored as fewer bits than 16 a number, in whatever form."""
    marks = ("quant_state", "tensor_shape", "_qdata")
    return (
        any(getattr(weight, mark, None) is not None for mark in marks) or weight.dtype.itemsize < 2
    )
