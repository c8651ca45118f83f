"""Merges LoRAs of any dialect and kind by the model's weights: exactly, or by a published method,
one weight at a time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...adapters.rows import Rows
from ...adapters.spec import AdapterError
from ...messages import first_of, joined, message
from ..io.dtypes import DTYPES
from ..io.lora_model import Native
from ..math.faults import first_line
from ..math.low_rank import Delta, Factors, Kronecker, both
from ..math.truncate import truncated
from ..not_finite import check_result
from .collect import (
    Base,
    MergePiece,
    MergeTarget,
    Source,
    lora_name,
    pieces_of,
    refused,
    targets,
)
from .methods import COEFFICIENTS, ENTRIES, FACTORS, Method, find

__all__ = ["Merger", "Overlap", "Merged", "MergeConfig", "Source", "inner_products", "merge"]

REFACTORED_RANK = 128
MAX_NAMED = 3
# Scales that a half-precision factor takes without leaving fp16's normal range.
MODEST = (0.25, 4.0)


class MergeConfig(NamedTuple):
    """How to merge.

    method: of `lora.methods`; options: its own. rank: at most; energy: share of every weight's
    squared norm that is kept at least;
    error: relative Frobenius error allowed; none of the three: exact where there is an exact
    low-rank form. dtype: of the result, "" keeps what the files have. seed: of methods that draw.
    refactored_rank: what gets no rank from elsewhere and has no low-rank form (DoRA, OFT, a LoKr of
    full factors) is cut to, unless exact: then it becomes a full difference, as large as the
    weight.
    """

    method: str = "sum"
    options: Mapping[str, float] = {}
    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    dtype: str = ""
    seed: int = 0
    refactored_rank: int = REFACTORED_RANK
    exact: bool = False

    def check(self, count: int) -> tuple[Method, dict[str, float]]:
        """The method and all its options, for so many sources. Raises AdapterError for what cannot
        be asked.
        """
        method = find(self.method)
        if not count or (method.inputs is not None and count != method.inputs):
            name, inputs = method.name, method.inputs
            raise AdapterError(
                message("merge.nothing_to_merge", method=name)
                if inputs is None
                else message("merge.needs_inputs", method=name, count=inputs, given=count)
            )
        if self.dtype and self.dtype not in DTYPES:
            raise AdapterError(
                message("merge.no_such_dtype", dtype=self.dtype, choices=", ".join(DTYPES))
            )
        for name, rank in (("rank", self.rank), ("refactored_rank", self.refactored_rank)):
            if rank is not None and (
                isinstance(rank, bool) or not isinstance(rank, int) or rank < 1
            ):
                raise AdapterError(message("merge.rank_range", name=name, rank=rank))
        if self.energy is not None and not 0 < self.energy <= 1:
            raise AdapterError(message("merge.energy_range", energy=self.energy))
        if self.error is not None and not 0 <= self.error < 1:
            raise AdapterError(message("merge.error_range", error=self.error))
        if self.exact and self.cuts:
            raise AdapterError(message("merge.exact_is_not_cut"))
        return method, method.read_options(self.options)

    @property
    def cuts(self) -> bool:
        """Whether results are cut to a rank, an energy or an error."""
        return self.rank is not None or self.energy is not None or self.error is not None


DEFAULT = MergeConfig()


class Overlap(NamedTuple):
    """Two sources on one weight: the cosine of the angle between their deltas at their strengths;
    None where one is nothing.
    """

    first: int
    second: int
    cosine: float | None


class Merged(NamedTuple):
    """One weight's result. rank: None for a whole matrix or a vector. kept: share of the energy of
    the exact result; error: relative to it, 0 where nothing was cut. overlaps: only where they were
    asked for. exact: no entry was changed but by rounding.
    """

    native: Native
    sources: tuple[int, ...]
    rank: int | None
    kept: float = 1.0
    error: float = 0.0
    overlaps: tuple[Overlap, ...] = ()
    norm: float | None = None  # of the exact result, where overlaps were asked for


def merge(
    sources: Sequence[Source],
    recipe: MergeConfig = DEFAULT,
    base: Base | None = None,
    overlaps: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[str, Merged]]:
    """(native name of the parameter, result) for every parameter that a source changes, one at a
    time.

    Tensors are read when their weight's turn comes, and nothing is kept: what the caller does not
    keep is freed. base: full native name -> the model's weight, which folds DoRA, OFT and their
    like into deltas at strength 1 of that weight. overlaps: also compare the sources, weight by
    weight. progress: called with (weights done, of all); what it raises stops the merge.

    Raises AdapterError before anything is read: for a config that cannot be followed, for files of
    different models, and for adapters that need the model where it is not given; later for tensors
    that are not what the plan says.
    """
    method, options = recipe.check(len(sources))
    lost = refused(sources, base is not None)
    if lost:
        raise AdapterError(_refusal(lost))
    return _merged(
        targets(sources),
        sources,
        Merger(recipe, method, options),
        base,
        overlaps=overlaps,
        progress=progress,
    )


def _refusal(lost: Mapping[str, Sequence[str]]) -> str:
    by_source = []
    for source, modules in lost.items():
        named = first_of(modules, MAX_NAMED)
        by_source.append(message("joints.about", subject=lora_name(source), text=named))
    return message("merge.needs_model", adapters=joined(by_source, "semicolon"))


def _merged(
    wanted: Sequence[MergeTarget],
    sources: Sequence[Source],
    cook: Merger,
    base: Base | None,
    *,
    overlaps: bool,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[str, Merged]]:
    for done, target in enumerate(wanted):
        if progress:
            progress(done, len(wanted))
        yield (
            target.name,
            cook.merge_weight(target, list(pieces_of(target, sources, base)), overlaps),
        )
    if progress:
        progress(len(wanted), len(wanted))


class Merger:
    """Follows a config for one weight at a time. method, options: what config.check gives."""

    def __init__(self, recipe: MergeConfig, method: Method, options: Mapping[str, float]):
        self.recipe, self.method, self.options = recipe, method, options

    def merge_weight(self, target: MergeTarget, pieces: list[MergePiece], overlaps: bool) -> Merged:
        """The result for one target. Raises AdapterError, naming the weight, for numbers nothing
        can be made of (NaN, Inf).
        """
        try:
            return self._merge_weight(target, pieces, overlaps)
        except (AdapterError, RuntimeError, ValueError, IndexError, OverflowError) as error:
            fault = first_line(error)
            raise AdapterError(
                fault
                if fault.startswith(target.name)
                else message("joints.about", subject=target.name, text=fault)
            ) from error

    def _merge_weight(
        self, target: MergeTarget, pieces: list[MergePiece], overlaps: bool
    ) -> Merged:
        dtype = DTYPES.get(self.recipe.dtype) or _promoted(pieces)
        inner = source_products(target, pieces) if overlaps or self.method.needs_inner else None
        result = Merged(
            Native(target.weight, torch.empty(0), target.parameter, target.shape),
            target.sources,
            None,
        )
        if overlaps and inner is not None:
            result = result._replace(overlaps=overlaps_of(inner, target.sources))
        rank = self._rank(target, pieces)
        if self.method.form == COEFFICIENTS:
            factors = self.method.run(inner, target.strengths, **self.options)
            pieces = [piece._replace(scale=piece.scale * factors[piece.source]) for piece in pieces]
        elif len(target.shape) > 1 and self.method.form == FACTORS:
            pieces = self._by_factors(target, pieces)
        elif self.method.form != FACTORS:
            pieces = self._by_entries(target, pieces)
        result = self._written(result, target, pieces, dtype, rank)
        return result._replace(norm=norm_of(inner)) if overlaps and inner is not None else result

    def _by_factors(self, target: MergeTarget, pieces: list[MergePiece]) -> list[MergePiece]:
        """What a method makes of the sources' factors, as pieces again."""
        groups = _by_source(pieces)
        deltas = self.method.run([_together(target, group) for group in groups], **self.options)
        whole = any(piece.whole for piece in pieces)
        return [
            MergePiece(group[0].source, 0, delta, 1.0, _promoted(group), whole)
            for group, delta in zip(groups, deltas, strict=True)
        ]

    def _by_entries(self, target: MergeTarget, pieces: list[MergePiece]) -> list[MergePiece]:
        """What a method makes of the sources' matrices, as one piece of the same rank at most."""
        generator = torch.Generator().manual_seed(
            zlib.crc32(target.name.encode("utf-8", "replace")) ^ (self.recipe.seed & 0xFFFFFFFF)
        )
        matrices = [_dense(target, group) for group in _by_source(pieces)]
        turned = len(target.shape) == 1
        if turned:
            matrices = [matrix.T for matrix in matrices]
        made = self.method.run(matrices, len(target.strengths), generator, **self.options)
        return [
            MergePiece(
                0,
                0,
                Factors(None, made.T if turned else made),
                1.0,
                torch.float32,
                any(piece.whole for piece in pieces),
            )
        ]

    def _written(
        self,
        result: Merged,
        target: MergeTarget,
        pieces: list[MergePiece],
        dtype: torch.dtype,
        rank: int | None,
    ) -> Merged:
        if len(target.shape) == 1:
            vector = _dense(target, pieces).flatten()
            return result._replace(
                native=result.native._replace(delta=_cast(vector, dtype, target))
            )
        delta = _exact(
            target, pieces, dtype if rank is None and not self.recipe.cuts else torch.float32
        )
        if rank is not None or self.recipe.cuts:
            kept = truncated(delta, rank, self.recipe.energy, self.recipe.error)
            result = result._replace(kept=kept.kept_energy, error=kept.error)
            delta = kept.delta
        delta = _cast_delta(delta, dtype, target)
        return result._replace(native=result.native._replace(delta=delta), rank=_rank_of(delta))

    def _rank(self, target: MergeTarget, pieces: list[MergePiece]) -> int | None:
        """The largest rank allowed; None where the result may have any."""
        if self.recipe.cuts:
            return self.recipe.rank
        if self.recipe.exact or any(piece.whole for piece in pieces):
            return None
        if all(_has_factors(piece) for piece in pieces):
            return (
                sum(both(piece.delta)[1].shape[0] for piece in pieces)
                if self.method.form == ENTRIES
                else None
            )
        return (
            None
            if self.method.form == COEFFICIENTS and _stays(target, pieces)
            else self.recipe.refactored_rank
        )


def _has_factors(piece: MergePiece) -> bool:
    return isinstance(piece.delta, Factors) and piece.delta.up is not None


def _stays(target: MergeTarget, pieces: Sequence[MergePiece]) -> bool:
    """Whether it is one Kronecker product, which can be written as it is."""
    return (
        len(pieces) == 1
        and isinstance(pieces[0].delta, Kronecker)
        and pieces[0].delta.shape == target.size
    )


def _promoted(pieces: Sequence[MergePiece]) -> torch.dtype:
    dtype = pieces[0].dtype
    for piece in pieces[1:]:
        dtype = torch.promote_types(dtype, piece.dtype)
    return dtype


def _by_source(pieces: Sequence[MergePiece]) -> list[list[MergePiece]]:
    groups: dict[int, list[MergePiece]] = {}
    for piece in pieces:
        groups.setdefault(piece.source, []).append(piece)
    return [groups[source] for source in sorted(groups)]


def _exact(target: MergeTarget, pieces: Sequence[MergePiece], dtype: torch.dtype) -> Delta:
    """The sum of all pieces: factors side by side in `dtype`, rows where they belong; fp32 where
    there are no factors.
    """
    if all(_has_factors(piece) for piece in pieces):
        return _side_by_side(target, pieces, dtype)
    if _stays(target, pieces):
        return pieces[0].delta.scaled(pieces[0].scale)
    return Factors(None, _dense(target, pieces))


def _side_by_side(target: MergeTarget, pieces: Sequence[MergePiece], dtype: torch.dtype) -> Factors:
    """Ranks concatenated; a piece of some rows only has zeros beside it."""
    pairs = [both(piece.delta) for piece in pieces]
    (out, columns), rank = target.size, sum(factor.shape[0] for _, factor in pairs)
    partial = any(piece.delta.shape[0] != out for piece in pieces)
    up = torch.zeros(out, rank, dtype=dtype) if partial else torch.empty(out, rank, dtype=dtype)
    down = torch.empty(rank, columns, dtype=dtype)
    place = 0
    for piece, (own_up, own_down) in zip(pieces, pairs, strict=True):
        width = own_up.shape[1]
        scale, shift = _divided(piece.scale, dtype)
        # The larger share goes to down, whose rows lie together.
        rows = up.narrow(0, *piece.rows)
        _fill(rows[:, place : place + width], own_up, shift)
        _fill(down[place : place + width], own_down, scale)
        place += width
    return Factors(up, down)


def _fill(place: Tensor, values: Tensor, scale: float) -> None:
    """place = values * scale, rounded once."""
    if scale == 1:
        place.copy_(values)
    elif values.dtype == place.dtype and values.dtype.itemsize > 1:
        torch.mul(values, scale, out=place)
    else:
        place.copy_(
            values.to(torch.float32).mul_(scale)
            if values.dtype != torch.float32
            else values * scale
        )


def _divided(scale: float, dtype: torch.dtype) -> tuple[float, float]:
    """A scale for down and one for up. In fp16 a power of two goes to up, which that rounds nothing
    of, so that both stay in range.
    """
    if (
        dtype != torch.float16
        or not scale
        or MODEST[0] <= abs(scale) <= MODEST[1]
        or not math.isfinite(scale)
    ):
        return scale, 1.0
    shift = 2.0 ** round(math.log2(abs(scale)) / 2)
    return scale / shift, shift


def _together(target: MergeTarget, pieces: Sequence[MergePiece]) -> Delta:
    """One source's delta on the whole weight, in fp32."""
    return _exact(target, pieces, torch.float32)


def _dense(target: MergeTarget, pieces: Sequence[MergePiece]) -> Tensor:
    """The fp32 sum of all pieces as a matrix [out, columns]."""
    total = torch.zeros(target.size)
    for piece in pieces:
        rows = total.narrow(0, *piece.rows)
        if _has_factors(piece):
            up, down = (factor.to(torch.float32) for factor in both(piece.delta))
            torch.addmm(rows, up, down, alpha=piece.scale, out=rows)
        else:
            rows.add_(piece.delta.dense(), alpha=piece.scale)
    return total


def inner_products(deltas: Sequence[Delta]) -> Tensor:
    """fp64 [n, n]: the Frobenius inner product of every two deltas of one shape."""
    if all(isinstance(delta, Factors) and delta.up is not None for delta in deltas):
        pieces = [
            MergePiece(place, 0, delta, 1.0, both(delta)[1].dtype, False)
            for place, delta in enumerate(deltas)
        ]
        return _products_of_factors(pieces, len(deltas))
    products = torch.empty(len(deltas), len(deltas), dtype=torch.float64)
    for first, one in enumerate(deltas):
        for second, other in enumerate(deltas[: first + 1]):
            products[first, second] = products[second, first] = one.inner(other)
    return products


def source_products(target: MergeTarget, pieces: Sequence[MergePiece]) -> Tensor:
    """Inner products of all sources' deltas, zeros for those that do not change the weight."""
    count = len(target.strengths)
    if all(_has_factors(piece) for piece in pieces):
        return _products_of_factors(pieces, count)
    inner = torch.zeros(count, count, dtype=torch.float64)
    present = torch.tensor(target.sources)
    inner[present[:, None], present] = inner_products(
        [_together(target, group) for group in _by_source(pieces)]
    )
    return inner


def _products_of_factors(pieces: Sequence[MergePiece], count: int) -> Tensor:
    """<U D, V E> = sum over (U^T V) * (D E^T), of the rows that two pieces share; pieces of the
    same rows are taken together.
    """
    stacks: dict[Rows, list[MergePiece]] = {}
    for piece in pieces:
        stacks.setdefault(piece.rows, []).append(piece)
    laid = [(rows, *_stacked(stack, count)) for rows, stack in stacks.items()]
    inner = torch.zeros(count, count, dtype=torch.float64)
    for place, (rows, up, down, owners) in enumerate(laid):
        for other_rows, other_up, other_down, other_owners in laid[: place + 1]:
            common = rows.intersect(other_rows)
            if common:
                ours = up.narrow(0, *common.shift(-rows.start))
                theirs = other_up.narrow(0, *common.shift(-other_rows.start))
                outer = ours.T @ theirs
                product = owners.T @ (outer * (down @ other_down.T)) @ other_owners
                inner += product if rows == other_rows else product + product.T
    return inner


def _stacked(stack: Sequence[MergePiece], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """fp64 up [rows, rank] and down [rank, columns] of pieces side by side, and [rank, count] whose
    each rank is.
    """
    up = torch.cat([both(piece.delta)[0].to(torch.float64) * piece.scale for piece in stack], 1)
    down = torch.cat([both(piece.delta)[1].to(torch.float64) for piece in stack])
    owners = torch.tensor(
        [piece.source for piece in stack for _ in range(both(piece.delta)[1].shape[0])]
    )
    return up, down, torch.nn.functional.one_hot(owners, count).to(torch.float64)


def overlaps_of(inner: Tensor, sources: Sequence[int]) -> tuple[Overlap, ...]:
    """Every two of these sources, by their inner products."""
    norms = inner.diagonal().clamp(min=0).sqrt().tolist()
    found = []
    for place, first in enumerate(sources):
        for second in sources[place + 1 :]:
            product, value = norms[first] * norms[second], inner[first, second].item()
            known = product > 0 and math.isfinite(product) and math.isfinite(value)
            found.append(
                Overlap(first, second, max(-1.0, min(1.0, value / product)) if known else None)
            )
    return tuple(found)


def norm_of(inner: Tensor) -> float:
    """The norm of what the sources add up to, before anything else is done to it."""
    return math.sqrt(max(0.0, inner.sum().item()))


def _rank_of(delta: Any) -> int | None:
    return delta.down.shape[0] if isinstance(delta, Factors) and delta.up is not None else None


def _cast_delta(delta: Delta, dtype: torch.dtype, target: MergeTarget) -> Delta:
    if isinstance(delta, Kronecker):
        return Kronecker(
            _cast_factors(delta.first, dtype, target), _cast_factors(delta.second, dtype, target)
        )
    return _cast_factors(delta, dtype, target)


def _cast_factors(delta: Factors, dtype: torch.dtype, target: MergeTarget) -> Factors:
    return Factors(
        delta.up if delta.up is None else _cast(delta.up, dtype, target),
        _cast(delta.down, dtype, target),
    )


def _cast(tensor: Tensor, dtype: torch.dtype, target: MergeTarget) -> Tensor:
    return check_result(tensor.to(dtype), target.name)
