"""Whether two planned files do the same to a model: tensor by tensor where they agree, else delta
by delta from the factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ...adapters.registry import decomposition_of, named
from ...adapters.rows import Rows, stretches
from ...adapters.spec import NUMBERS, AdapterError
from ...errors import LocksmithError
from ...messages import message, text_of
from ...planning.apart import taken_apart
from ...planning.plan import Adapter, Plan
from ..from_plan import spec_of
from ..math.low_rank import MAGNITUDES, Delta, Factors, add, factors, low_rank_part

__all__ = ["VerificationError", "check_same"]

Read = Callable[[str], Tensor]
Stored = tuple[Tensor, Tensor, float]  # up, down, scale
EXACT = 1e-6  # of a delta's norm: what fp64 Gram matrices of fp32 factors can tell
# of a norm: what a dtype of few bits may round and still be the same change; a wrong strength
# differs by more
MAX_ROUNDED = 0.25


class VerificationError(LocksmithError, ValueError):
    """A written file that does not do what its source does; the text names the weight."""


PLAIN = frozenset({"up", "down", *NUMBERS, *MAGNITUDES})
_Side = tuple[Plan, Read, Sequence[Adapter]]  # of what is compared: its adapters on one weight


class _Segment(NamedTuple):
    """Rows of a weight, which are the rows `taken` of one adapter."""

    rows: Rows
    taken: Rows
    adapter: Adapter
    read: Read

    def cut(self, rows: Rows) -> _Segment:
        """These rows of the weight alone."""
        return self._replace(rows=rows, taken=rows.shift(self.taken.start - self.rows.start))

    def plain(self) -> Stored | None:
        """(up, down, scale) of a LoRA's rows as they are stored, without columns that are zero
        there; None for other kinds.
        """
        if not named(self.adapter.kind).is_pair or not self.adapter.roles.keys() <= PLAIN:
            return None
        up, down = (self.read(self.adapter.roles[role]).flatten(1) for role in ("up", "down"))
        up = (up.roll(up.shape[0] // 2, 0) if self.adapter.target.swap else up).narrow(
            0, *self.taken
        )
        # A column that is not zero seldom begins with zeros.
        if up[: min(8, len(up))].to(torch.float32).ne(0).any(0).all():
            return up, down, prod(_scales(self.adapter, self.read))
        alive = up.to(torch.float32).ne(0).any(0)
        return up[:, alive], down[alive], prod(_scales(self.adapter, self.read))

    def delta(self) -> Delta:
        """The rows' delta as factors, in fp64. Raises VerificationError for an adapter that has
        none.
        """
        called = named(self.adapter.kind).called
        tensors = {
            called.get(role, role): self.read(key) for role, key in self.adapter.roles.items()
        }
        spec = spec_of(self.adapter, tensors)
        if not named(spec.kind).additive:
            kind = named(self.adapter.kind)
            raise VerificationError(
                message(
                    "lora.read_otherwise",
                    place=self.adapter.module,
                    kind=kind.title or kind.name,
                )
            )
        try:
            whole = factors(spec, low_rank_part(tensors), torch.float64)
        except AdapterError as error:
            raise VerificationError(
                message("joints.about", subject=self.adapter.module, text=text_of(error))
            ) from None
        cut = self.taken.unless_all(whole.shape[0])
        return whole.rows(*cut) if cut else whole


def check_same(
    source: Plan,
    source_read: Read,
    written: Plan,
    written_read: Read,
    dtype: torch.dtype | None = None,
) -> float:
    """The largest relative difference of any weight's delta, 0.0 where all tensors are the same.

    Both plans are for one target model. dtype: what the written file was rounded to, if it was.
    Raises VerificationError where a weight's delta differs by more than its tensors' rounding, or
    an adapter whose effect needs the model's weight is not there unchanged.
    """
    source, written = taken_apart(source), taken_apart(written)
    different = _different(
        source, source_read, written, written_read, _rounding(dtype) if dtype else 0.0
    )
    ours, theirs = (_by_weight(adapters) for adapters in different)
    worst = 0.0
    for weight in {**ours, **theirs}:
        sides = ours.get(weight, []), theirs.get(weight, [])
        worst = max(
            worst,
            _compare(weight, (source, source_read, sides[0]), (written, written_read, sides[1])),
        )
    return worst


def _rounding(dtype: torch.dtype) -> float:
    """What factors of the dtype may be off by, relative: four units in the last place, but no more
    than tells one strength from another.
    """
    return min(4 * torch.finfo(dtype).eps, MAX_ROUNDED)


def _different(
    source: Plan, source_read: Read, written: Plan, written_read: Read, tolerance: float
) -> tuple[list[Adapter], list[Adapter]]:
    """The adapters of both that have no counterpart with the same tensors in the same place."""
    waiting: dict[tuple[object, ...], list[Adapter]] = {}
    for adapter in written.adapters:
        waiting.setdefault(_place(adapter), []).append(adapter)
    ours = []
    for adapter in source.adapters:
        mates = waiting.get(_place(adapter), [])
        same = next(
            (mate for mate in mates if _same(adapter, source_read, mate, written_read, tolerance)),
            None,
        )
        if same is None:
            ours.append(adapter)
        else:
            mates.remove(same)
    return ours, [adapter for mates in waiting.values() for adapter in mates]


def _place(adapter: Adapter) -> tuple[object, ...]:
    return (
        adapter.kind,
        adapter.target.network,
        adapter.target.slices,
        adapter.target.swap,
        adapter.parameter,
    )


def _same(one: Adapter, read_one: Read, other: Adapter, read_other: Read, tolerance: float) -> bool:
    ours, theirs = _roles(one), _roles(other)
    if ours.keys() != theirs.keys() or _options(one) != _options(other):
        return False
    if not all(
        _equal(read_one(key), read_other(theirs[role]), tolerance) for role, key in ours.items()
    ):
        return False
    return all(
        math.isclose(*pair, rel_tol=1e-6)
        for pair in zip(_scales(one, read_one), _scales(other, read_other), strict=True)
    )


def _options(adapter: Adapter) -> frozenset[tuple[str, object]]:
    """What the mathematics is told, without what it takes for granted."""
    usual = {(setting.name, setting.default) for setting in named(adapter.kind).settings}
    return frozenset(adapter.options) - usual


def _roles(adapter: Adapter) -> dict[str, str]:
    called = named(adapter.kind).called
    return {
        called.get(role, role): key for role, key in adapter.roles.items() if role not in NUMBERS
    }


def _scales(adapter: Adapter, read: Read) -> tuple[float, float]:
    """(its scalar, its strength besides): their product is what up @ down of a LoRA is multiplied
    with.
    """
    spec = spec_of(
        adapter, {role: read(adapter.roles[role]) for role in NUMBERS if role in adapter.roles}
    )
    scalar = float(read(adapter.roles["scalar"]).flatten()[0]) if "scalar" in adapter.roles else 1.0
    kind = named(spec.kind)
    if not kind.additive:
        shapes = {role: tuple(read(key).shape) for role, key in adapter.roles.items()}
        return scalar, kind.compared_strength(spec, adapter.rank, shapes)
    return scalar, spec.scale_for(adapter.rank or 1)


def _equal(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype and torch.equal(
        one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
    ):
        return True
    return _apart(one, other) <= tolerance


def _apart(one: Tensor, other: Tensor) -> float:
    """|one - other| / |one|; inf where numbers are not finite."""
    ours, theirs = one.to(torch.float64).flatten(), other.to(torch.float64).flatten()
    norm = torch.linalg.vector_norm(ours).item()
    gap = torch.linalg.vector_norm(ours - theirs).item()
    return _share(gap, norm)


def _share(gap: float, norm: float) -> float:
    """The gap as a share of the norm: of nothing, any gap is infinitely much, and of what is not
    finite nothing can be told: inf.
    """
    if not norm:
        return math.inf if gap else 0.0
    return gap / norm if math.isfinite(gap) and math.isfinite(norm) else math.inf


def _by_weight(adapters: Sequence[Adapter]) -> dict[tuple[str, str], list[Adapter]]:
    groups: dict[tuple[str, str], list[Adapter]] = {}
    for adapter in adapters:
        for weight in dict.fromkeys(piece[0] for piece in adapter.target.slices):
            groups.setdefault((weight, adapter.parameter), []).append(adapter)
    return groups


def _compare(weight: tuple[str, str], ours: _Side, theirs: _Side) -> float:
    """The largest relative difference on one weight (its name, and the parameter)."""
    name = f"{weight[0]} ({weight[1]})" if weight[1] != "weight" else weight[0]
    sides = [
        list(_segments(weight[0], plan, read, adapters)) for plan, read, adapters in (ours, theirs)
    ]
    tolerance = _tolerance((*sides[0], *sides[1]))
    _check_magnitudes(name, weight[0], ours=ours[1:], theirs=theirs[1:], tolerance=tolerance)
    worst = 0.0
    for decomposed in (
        False,
        True,
    ):  # a magnitude is of the weight with these changes, not with the others
        alike = [
            [item for item in side if bool(decomposition_of(item.adapter.roles)) == decomposed]
            for side in sides
        ]
        for rows in stretches(item.rows for side in alike for item in side):
            cut = [[item.cut(rows) for item in side if item.rows.covers(rows)] for side in alike]
            try:
                worst = max(worst, _distance(*cut))
            except (VerificationError, AdapterError) as error:
                raise VerificationError(
                    message("joints.about", subject=name, text=text_of(error))
                ) from None
    if not worst <= tolerance:
        raise VerificationError(
            message("lora.change_differs", place=name, difference=f"{worst:.2e}")
        )
    if _formulas(ours[2]) != _formulas(theirs[2]):
        raise VerificationError(message("lora.other_formula", place=name))
    return worst


def _formulas(adapters: Sequence[Adapter]) -> set[frozenset[tuple[str, object]]]:
    """How adapters with magnitudes are to be computed."""
    return {_options(adapter) for adapter in adapters if decomposition_of(adapter.roles)}


def _tolerance(segments: Sequence[_Segment]) -> float:
    """What the narrowest of the tensors' dtypes rounds."""
    dtypes = {
        item.read(key).dtype
        for item in segments
        for role, key in item.adapter.roles.items()
        if role not in NUMBERS
    }
    return max([EXACT, *(_rounding(dtype) for dtype in dtypes if dtype.is_floating_point)])


def _segments(
    weight: str, plan: Plan, read: Read, adapters: Sequence[Adapter]
) -> Iterator[_Segment]:
    """The adapters' parts on rows of one weight."""
    for adapter in adapters:
        for piece, rows, taken in adapter.target.slices:
            if piece == weight:
                one = rows or taken
                length = one.length if one else _rows(adapter, plan.shapes)
                whole = Rows(0, length)
                yield _Segment(rows or whole, taken or whole, adapter, read)


def _rows(adapter: Adapter, shapes: Mapping[str, tuple[int, ...] | None]) -> int:
    """The rows of a weight that is the adapter's alone: those it grows to, the model's, or (of a
    drawn model) what its tensors tell.

    Raises VerificationError where nothing tells them.
    """
    if adapter.padded_shape:
        return adapter.padded_shape[0]
    known = {
        role: shape for role, key in adapter.roles.items() if (shape := shapes.get(key)) is not None
    }
    rows = adapter.target.out or named(adapter.kind).shape(known).out
    if not rows:
        raise VerificationError(message("lora.rows_unknown", place=adapter.module))
    return rows


def _distance(ours: Sequence[_Segment], theirs: Sequence[_Segment]) -> float:
    """|ours - theirs| / |ours|, both sums, in fp64; inf where numbers are not finite, which nothing
    can be told of.
    """
    if not ours and not theirs:
        return 0.0
    if len(ours) == len(theirs) == 1 and _stored_alike(ours[0].plain(), theirs[0].plain()):
        return 0.0
    source, written = [item.delta() for item in ours], [item.delta() for item in theirs]
    norm = add(source).frobenius() if source else 0.0
    difference = add([*source, *(delta.scaled(-1.0) for delta in written)])
    gap = _norm(difference)
    if not gap <= EXACT * norm:
        gap = difference.frobenius()
    return _share(gap, norm)


def _stored_alike(one: Stored | None, other: Stored | None) -> bool:
    """Whether two LoRAs are the same numbers, all of them finite."""
    if one is None or other is None or not math.isclose(one[2], other[2], rel_tol=1e-12):
        return False
    return all(
        ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        for ours, theirs in zip(one[:2], other[:2], strict=True)
    )


def _norm(delta: Delta) -> float:
    """A norm that may be as wrong as 1e-8 of the factors' own; the exact one of a difference needs
    QR and is seldom needed.
    """
    if isinstance(delta, Factors) and delta.up is not None:
        return (
            ((delta.up.T @ delta.up) * (delta.down @ delta.down.T)).sum().clamp(min=0).sqrt().item()
        )
    return delta.frobenius()


def _check_magnitudes(
    name: str,
    weight: str,
    *,
    ours: tuple[Read, Sequence[Adapter]],
    theirs: tuple[Read, Sequence[Adapter]],
    tolerance: float,
) -> None:
    """Compare those of both sides, each a (read, adapters)."""
    try:
        one, other = _magnitudes(weight, *ours), _magnitudes(weight, *theirs)
    except VerificationError as error:
        raise VerificationError(
            message("joints.about", subject=name, text=text_of(error))
        ) from None
    if one.keys() != other.keys():
        raise VerificationError(message("lora.magnitudes_lost", place=name))
    for axis, vector in one.items():
        if not _alike_with_gaps(vector, other[axis], tolerance):
            raise VerificationError(message("lora.magnitudes_differ", place=name))


def _alike_with_gaps(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two vectors have their gaps (NaN) in the same places and elsewhere
    the same numbers.
    """
    if not torch.equal(one.isnan(), other.isnan()):
        return False
    return _apart(one[~one.isnan()], other[~other.isnan()]) <= tolerance


def _magnitudes(weight: str, read: Read, adapters: Sequence[Adapter]) -> Mapping[str, Tensor]:
    """ "rows": the magnitudes per output of the weight, NaN where there are none; "columns": those
    per input.

    Raises VerificationError where two adapters have some for the same rows, of which none is the
    weight's own.
    """
    magnitudes: dict[str, Tensor] = {}
    parts: list[tuple[int, Tensor]] = []
    for adapter in adapters:
        role = next((role for role in MAGNITUDES if role in adapter.roles), None)
        if role is None:
            continue
        tensor = read(adapter.roles[role]).to(torch.float64)
        vector = tensor.flatten()
        decomposition = decomposition_of((role,))
        if decomposition is None or not decomposition.per_output(role, tensor.shape):
            if "columns" in magnitudes:
                raise VerificationError(message(TWICE))
            magnitudes["columns"] = vector
            continue
        vector = vector.roll(vector.shape[0] // 2) if adapter.target.swap else vector
        pieces = [piece[1:] for piece in adapter.target.slices if piece[0] == weight]
        parts += [
            (rows.start if rows else 0, vector.narrow(0, *taken) if taken else vector)
            for rows, taken in pieces
        ]
    if parts:
        magnitudes["rows"] = _joined(parts)
    return magnitudes


TWICE = "lora.magnitudes_twice"


def _joined(parts: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Vectors that begin at these places, as one, with NaN between them. Raises VerificationError
    where they overlap.
    """
    whole = torch.full(
        (max(start + len(vector) for start, vector in parts),), math.nan, dtype=torch.float64
    )
    for start, vector in parts:
        place = whole.narrow(0, start, len(vector))
        if not place.isnan().all():
            raise VerificationError(message(TWICE))
        place.copy_(vector)
    return whole
