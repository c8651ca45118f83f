"""What a merge will give, before it is computed: ranks, sizes, what meets what, and what will be
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...adapters.kind import KroneckerProduct
from ...adapters.registry import named
from ..io.dtypes import DTYPES
from ..io.lora_model import Native
from ..math.low_rank import Delta, Factors, Kronecker, tensors_of
from .collect import MergeTarget, Source, dtype_of, pieces_of, rank_of, refused, targets
from .merge import DEFAULT, MergeConfig, Merger, Overlap, norm_of, overlaps_of, source_products
from .methods import COEFFICIENTS, ENTRIES, Method

__all__ = ["Forecast", "ForecastRow", "forecast"]


class ForecastRow(NamedTuple):
    """One parameter of a merge. native: the result's tensors on the meta device, with the largest
    rank they can have; exact: just these tensors will come. overlaps, kept, norm: where they were
    measured, as in Merged. refactored: it has no exact factors and would be cut to a rank that
    nobody asked for.
    """

    name: str
    sources: tuple[int, ...]
    native: Native
    exact: bool
    overlaps: tuple[Overlap, ...] = ()
    kept: float | None = None
    norm: float | None = None
    refactored: bool = False

    @property
    def rank(self) -> int | None:
        """At most; None for a whole matrix or a vector."""
        return self.native.delta.down.shape[0] if isinstance(self.native.delta, Factors) else None

    @property
    def bytes(self) -> int:
        """Of the tensors, at most."""
        tensors = tensors_of(self.native.delta)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Forecast(NamedTuple):
    """What a merge would give. refused: source -> its adapters that need the model's weights."""

    rows: tuple[ForecastRow, ...]
    refused: Mapping[str, Sequence[str]]

    @property
    def bytes(self) -> int:
        """Of all tensors, at most."""
        return sum(row.bytes for row in self.rows)

    @property
    def exact(self) -> bool:
        """Whether every row is."""
        return all(row.exact for row in self.rows)


def forecast(
    sources: Sequence[Source],
    recipe: MergeConfig = DEFAULT,
    measure: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Forecast:
    """What `merge` would give, from names, shapes and dtypes alone.

    measure: also read the weights that have factors and compare the sources; nothing dense is
    built, and no method that needs a matrix is run. Raises AdapterError as merge does, but not for
    adapters that need the model.
    """
    method, options = recipe.check(len(sources))
    wanted, cook, rows = targets(sources), Merger(recipe, method, options), []
    for done, target in enumerate(wanted):
        if progress:
            progress(done, len(wanted))
        ranks = [rank_of(part.adapter, sources[part.source].plan.shapes) for part in target.parts]
        row = _expected(target, ranks, sources, recipe, method)
        rows.append(_measured(row, target, sources, cook) if measure and None not in ranks else row)
    return Forecast(tuple(rows), refused(sources, False))


def _expected(
    target: MergeTarget,
    ranks: Sequence[int | None],
    sources: Sequence[Source],
    recipe: MergeConfig,
    method: Method,
) -> ForecastRow:
    dtype = DTYPES.get(recipe.dtype) or _expected_dtype(target, sources)
    whole = any(named(part.adapter.kind).whole for part in target.parts)
    vector, low = len(target.shape) == 1, None not in ranks
    rank = None if vector else _expected_rank(ranks, target.size, whole, recipe, method)
    (out, columns), certain = (
        target.size,
        vector
        or (low and method.form != ENTRIES and recipe.energy is None and recipe.error is None),
    )
    refactored = (
        rank is not None
        and not recipe.cuts
        and not (low and method.form != ENTRIES)
        and not _stays(target, method)
    )
    delta: Factors | Tensor
    if rank is None:
        delta = torch.empty(target.shape, dtype=dtype, device="meta")
    else:
        delta = Factors(
            *(
                torch.empty(shape, dtype=dtype, device="meta")
                for shape in ((out, rank), (rank, columns))
            )
        )
    return ForecastRow(
        target.name,
        target.sources,
        Native(target.weight, delta, target.parameter, target.shape),
        certain,
        refactored=refactored,
    )


def _stays(target: MergeTarget, method: Method) -> bool:
    """Whether it is one Kronecker product, which is written as it is."""
    part = target.parts[0]
    alone = method.form == COEFFICIENTS and len(target.parts) == 1 and part.rows is part.cut is None
    return alone and named(part.adapter.kind).stores is KroneckerProduct


def _expected_rank(
    ranks: Sequence[int | None],
    size: tuple[int, int],
    whole: bool,
    recipe: MergeConfig,
    method: Method,
) -> int | None:
    known = [rank for rank in ranks if rank is not None]
    low = len(known) == len(ranks)
    if low and method.form != ENTRIES:
        return min(recipe.rank or sum(known), sum(known))
    if (whole or recipe.exact) and not recipe.cuts:
        return None
    most = (
        (recipe.rank or min(size)) if recipe.cuts else sum(known) if low else recipe.refactored_rank
    )
    return most if most < min(size) else None


def _expected_dtype(target: MergeTarget, sources: Sequence[Source]) -> torch.dtype:
    dtypes = [dtype_of(sources[part.source], part.adapter) for part in target.parts]
    found = dtypes[0]
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    return found


def _measured(
    row: ForecastRow, target: MergeTarget, sources: Sequence[Source], cook: Merger
) -> ForecastRow:
    pieces = list(pieces_of(target, sources))
    if cook.method.form == ENTRIES:
        inner = source_products(target, pieces)
        return row._replace(overlaps=overlaps_of(inner, target.sources), norm=norm_of(inner))
    made = cook.merge_weight(target, pieces, True)
    return row._replace(
        native=row.native._replace(delta=_ghost(made.native.delta)),
        overlaps=made.overlaps,
        kept=made.kept,
        norm=made.norm,
    )


def _ghost(delta: Delta | Tensor) -> Delta | Tensor:
    """The delta without its values."""
    if isinstance(delta, Tensor):
        return delta.to("meta")
    return (
        Kronecker(_hollow(delta.first), _hollow(delta.second))
        if isinstance(delta, Kronecker)
        else _hollow(delta)
    )


def _hollow(delta: Factors) -> Factors:
    return Factors(delta.up if delta.up is None else delta.up.to("meta"), delta.down.to("meta"))
