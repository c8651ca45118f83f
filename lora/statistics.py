"""What the weights of a LoRA say: norms, ranks and energy of every module, and how alike two LoRAs
are, all from their factors.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters.kind import Measured
from ..adapters.registry import decomposition_of, named
from ..adapters.rows import Rows, stretches
from ..adapters.spec import AdapterError, AdapterSpec
from ..adapters.tensors import factor_of
from ..messages import joined, message
from ..planning.assign import assign
from ..planning.groups import group_keys, network_alpha
from ..planning.plan import DUPLICATE_TARGET, PLACED, Adapter, Plan
from ..planning.resolve import locate
from ..planning.scale import Settings, read_settings, scale_of, settings_for
from ..planning.target_model import TargetModel
from .from_plan import alpha_value, has_delta, spec_of
from .math.faults import FAULTS, first_line
from .math.low_rank import Delta, add, factors, from_product, low_rank_part

__all__ = [
    "Comparison",
    "ModuleStats",
    "Weights",
    "compare_weights",
    "cosine_of",
    "energy_of",
    "measure_modules",
    "measure_weights",
]

# side of the matrices whose singular values are computed; larger ones are only measured by their
# norm
LARGEST_CORE = 1024
OUTLIER = 10.0
LONGEST_REASON = 300  # characters
FEWEST_OF_A_KIND = 4
MAX_ENERGY = 0.99

NEEDS_MODEL = "adapters.needs_weight"
OUTSIDE = "lora.outside_blocks"

Read = Callable[[str], Tensor]


class ModuleStats(NamedTuple):
    """One adapter of a file, measured; None: not to be told from the file alone, and `note` says
    why.

    All norms are of scale * delta at strength 1. max_abs, nans and infs are of the file's own
    tensors. relative: what an adapter that depends on the model's weight does to it, in parts of
    that weight.
    """

    module: str  # as it stands in the file
    kind: str
    network: str = ""  # the rest is of the place: "" and () where the adapter found none
    target: str = ""  # native module
    places: tuple[str, ...] = ()  # weights, with [first:last] rows
    rank: int | None = None
    scale: float | None = None
    frobenius: float | None = None
    spectral: float | None = None
    effective_rank: float | None = None  # exp of the entropy of the singular values' energy shares
    stable_rank: float | None = None  # (frobenius / spectral)^2
    top_share: float | None = None  # of the energy, in the largest singular value
    rank_99: int | None = None  # the fewest ranks that hold 99 % of the energy
    max_abs: float | None = None
    dead: bool = False  # the delta is zero throughout
    nans: int = 0
    infs: int = 0
    relative: float | None = None
    note: str = ""

    @property
    def energy(self) -> float:
        """frobenius squared, 0 where it is not known or not finite."""
        square = self.frobenius * self.frobenius if self.frobenius is not None else 0.0
        return square if math.isfinite(square) else 0.0

    @property
    def block(self) -> str:
        """The native name up to its first number: double_blocks.3."""
        words = self.target.split(".")
        numbers = [place for place, word in enumerate(words) if word.isdecimal()]
        return ".".join(words[: numbers[0] + 1]) if numbers else message(OUTSIDE)

    @property
    def layer_kind(self) -> str:
        """The first weight with its rows, all numbers of its name left open: modules of one kind
        lie in different blocks.
        """
        name, bracket, rows = (self.places[0] if self.places else "").partition("[")
        return (
            ".".join("{}" if word.isdecimal() else word for word in name.split("."))
            + bracket
            + rows
        )


class Share(NamedTuple):
    """A part of the model: how many placed adapters, their energy, and its share of the whole
    file's placed energy.
    """

    name: str
    modules: int
    energy: float
    share: float


class Outlier(NamedTuple):
    """A module far stronger than its like: `times` the median spectral norm of
    its kind of layer.
    """

    module: str
    spectral: float
    median: float
    times: float


class Weights(NamedTuple):
    """A file's adapters, measured. Adapters on one weight are counted one by one, as if they did
    not overlap.
    """

    modules: tuple[ModuleStats, ...]  # placed ones, the most energy first
    # (category of the plan, adapter that found no place).
    unplaced: tuple[tuple[str, ModuleStats], ...]
    energy: float  # of all placed ones: the sum of their squared Frobenius norms
    # Share of the whole file's energy; None when there is none to share.
    energy_placed: float | None
    networks: tuple[Share, ...]
    blocks: tuple[Share, ...]
    layer_kinds: tuple[Share, ...]
    outliers: tuple[Outlier, ...]
    faults: tuple[tuple[str, str], ...]  # (module, why its tensors could not be measured)

    @property
    def verdict(self) -> str:
        """One line: how much of the file's effect reaches the model."""
        if self.energy_placed is None:
            return message("lora.nothing_measured")
        percent = _percent(self.energy_placed)
        lost = [row for category, row in self.unplaced if category != DUPLICATE_TARGET]
        unknown = sum(row.frobenius is None for row in (*self.modules, *lost)) + len(self.faults)
        if unknown:
            return message("lora.effect_placed_but", share=percent, count=unknown)
        return message("lora.effect_placed", share=percent)

    def rank_use(self) -> dict[int, dict[str, int]]:
        """rank -> adapters of it, and how many ranks hold 99 % of the energy: in the median and in
        the most demanding one.
        """
        needed: dict[int, list[int]] = {}
        for row in self.modules:
            if named(row.kind).is_pair and row.rank and row.rank_99 is not None and not row.dead:
                needed.setdefault(row.rank, []).append(row.rank_99)
        return {
            rank: {"adapters": len(used), "median": statistics.median_high(used), "most": max(used)}
            for rank, used in sorted(needed.items())
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; numbers that are not finite are None."""
        return {
            "verdict": self.verdict,
            "energy": _plain(self.energy),
            "energy_placed": _plain(self.energy_placed),
            "components": [_row(share) for share in self.networks],
            "blocks": [_row(share) for share in self.blocks],
            "layer_kinds": [_row(share) for share in self.layer_kinds],
            "outlier_rule": message(
                "lora.outlier_rule", times=f"{OUTLIER:g}", least=FEWEST_OF_A_KIND
            ),
            "outliers": [_row(outlier) for outlier in self.outliers],
            "rank_use": {str(rank): use for rank, use in self.rank_use().items()},
            "dead": [row.module for row in self.modules if row.dead],
            "modules": [
                _row(row) | {"energy_share": _share(row.energy, self.energy)}
                for row in self.modules
            ],
            "unplaced": [_row(row) | {"category": category} for category, row in self.unplaced],
            "faults": [{"module": module, "reason": reason} for module, reason in self.faults],
        }


def measure_modules(
    plan: Plan, tensors: Mapping[str, Tensor], config_beside: Mapping[str, Any] | None = None
) -> Weights:
    """Measure every adapter of a planned file, one at a time, so that memory stays flat.

    tensors: by name, such as an open TensorStream. config_beside: PEFT's adapter_config.json, if
    the plan was made with one; it gives adapters that found no place their strength. Tensors that
    are not what the plan says are `faults`, never raised; what reading raises for a damaged file
    is.
    """
    read = tensors.__getitem__
    faults: list[tuple[str, str]] = []
    measures = [
        (adapter.module, partial(_placed, adapter, plan.target_model, read))
        for adapter in plan.adapters
    ]
    placed = sorted(_measured(measures, faults), key=lambda row: -row.energy)
    lost = [
        (category, row)
        for category, module, measure in _unplaced(plan, read, config_beside)
        for row in _measured([(module, measure)], faults)
    ]
    energy = math.fsum(row.energy for row in placed)
    # A second copy of what is placed is no loss.
    missing = math.fsum(row.energy for category, row in lost if category != DUPLICATE_TARGET)
    return Weights(
        tuple(placed),
        tuple(lost),
        energy,
        energy / (energy + missing) if energy + missing else None,
        _shares(placed, energy, lambda row: row.network),
        _shares(placed, energy, lambda row: row.block),
        _shares(placed, energy, lambda row: row.layer_kind),
        tuple(_outliers(placed)),
        tuple(faults),
    )


def _measured(
    measures: Iterable[tuple[str, Callable[[], ModuleStats]]], faults: list[tuple[str, str]]
) -> list[ModuleStats]:
    rows = []
    for module, measure in measures:
        try:
            rows.append(measure())
        except FAULTS as error:
            faults.append((module, _short(error)))
    return rows


def _short(error: Exception) -> str:
    """What an error says, cut where names in the file make it very long."""
    reason = first_line(error)
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON]


def _placed(adapter: Adapter, target_model: TargetModel, read: Read) -> ModuleStats:
    tensors = {role: read(key) for role, key in adapter.roles.items()}
    spec, target = spec_of(adapter, tensors), adapter.target
    row = ModuleStats(
        adapter.module,
        adapter.kind,
        target.network,
        target.module,
        tuple(_places(adapter, target_model)),
        adapter.rank,
    )
    kind = named(spec.kind)
    if kind.additive:
        return _with_delta(row, spec, tensors)
    return _with_measured(
        _with_values(row, tensors),
        kind.measured(spec, tensors, target.out, math.prod(target.inner)),
    )


def _with_measured(row: ModuleStats, measured: Measured) -> ModuleStats:
    """The row of a kind that needs the model's weight, with what its file alone tells."""
    relative, scale = measured.relative, 1.0 if measured.scale is None else measured.scale
    if isinstance(relative, tuple):
        relative = from_product(relative).frobenius() * abs(scale)
    row = row._replace(relative=relative, note=measured.note)
    if measured.delta is None:
        return row
    row = row._replace(rank=measured.rank, scale=measured.scale)
    return _with_norms(row, from_product(measured.delta).scaled(scale), measured.note)


def _places(adapter: Adapter, target_model: TargetModel) -> Iterator[str]:
    for weight, rows, _ in adapter.target.slices:
        name = _parameter(adapter, target_model, weight)
        yield f"{name}[{rows.start}:{rows.end}]" if rows else name


def _parameter(adapter: Adapter, target_model: TargetModel, weight: str) -> str:
    """The weight, or the bias beside it, that the adapter changes."""
    bias = (
        target_model.networks[adapter.target.network].bias_of(weight)
        if adapter.parameter == "bias"
        else None
    )
    return bias or weight


def _with_delta(row: ModuleStats, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> ModuleStats:
    plain, kind, decomposition = low_rank_part(tensors), named(spec.kind), decomposition_of(tensors)
    row = _with_values(row, plain)._replace(
        scale=factor_of(kind, spec, plain) if kind.low_rank else None
    )
    # fp32 is right to 1e-5 here, or looks again in fp64, and takes half the time.
    return _with_norms(
        row, factors(spec, plain, torch.float32), decomposition.note if decomposition else ""
    )


def _with_values(row: ModuleStats, tensors: Mapping[str, Tensor]) -> ModuleStats:
    """Counts of NaN and Inf, and the largest finite magnitude, of the tensors that are weights."""
    largest, nans, infs, kind = 0.0, 0, 0, named(row.kind)
    silent = {"alpha", *kind.silent, *kind.switches}
    for role, tensor in tensors.items():
        if role in silent or not tensor.numel():
            continue
        low, high = (end.item() for end in _as_computed(tensor).aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            tensor = tensor.to(torch.float32)
            nans, infs = nans + int(tensor.isnan().sum()), infs + int(tensor.isinf().sum())
            tensor = torch.where(tensor.isfinite(), tensor, 0.0)
            low, high = (end.item() for end in tensor.aminmax())
        largest = max(largest, -low, high)
    return row._replace(max_abs=largest, nans=nans, infs=infs)


def _as_computed(tensor: Tensor) -> Tensor:
    """fp8 has no arithmetic of its own."""
    return tensor.to(torch.float32) if tensor.dtype.itemsize == 1 else tensor


def _with_norms(row: ModuleStats, delta: Delta, note: str) -> ModuleStats:
    if delta.core > LARGEST_CORE:
        frobenius = delta.frobenius()
        values = torch.full((1,), math.nan, dtype=torch.float64)
        large = message("lora.matrix_too_large", size=LARGEST_CORE)
        note = joined((note, large), "semicolon") if note else large
    else:
        values = delta.singular_values()
        frobenius = torch.linalg.vector_norm(values).item()
    if not math.isfinite(frobenius):
        return row._replace(note=message("lora.norm_not_finite"))
    row = row._replace(frobenius=frobenius, dead=frobenius == 0, note=note)
    return row if row.dead or delta.core > LARGEST_CORE else _with_spectrum(row, values)


def _with_spectrum(row: ModuleStats, values: Tensor) -> ModuleStats:
    """values: the singular values, largest first, not all zero."""
    shares = (values / values[0]).square()
    whole = shares.sum()
    shares = shares / whole
    entropy = -torch.special.xlogy(shares, shares).sum().item()
    needed = int((shares.cumsum(0) < MAX_ENERGY).sum()) + 1
    return row._replace(
        spectral=values[0].item(),
        effective_rank=math.exp(entropy),
        stable_rank=whole.item(),
        top_share=shares[0].item(),
        rank_99=min(needed, len(shares)),
    )


def _unplaced(
    plan: Plan, read: Read, config_beside: Mapping[str, Any] | None
) -> Iterator[tuple[str, str, Callable[[], ModuleStats]]]:
    """(category, module, how to measure it) of every adapter in the file that has no place."""
    settings = read_settings(plan.metadata, config_beside)
    grouped = group_keys(plan.shapes, plan.metadata)
    for group in grouped.groups:
        for kind, names in assign(group.keys)[0]:
            category = next(
                (
                    plan.outcomes[group.keys[role]].category
                    for role in names
                    if not _is_placed(plan, group.keys[role])
                ),
                None,
            )
            if category is None or kind.never_beside:
                continue
            location = locate(plan.target_model, group.module, [])
            names += tuple(role for role in kind.borrows if role in group.keys)
            roles = {role: group.keys[role] for role in names}
            alpha = (
                network_alpha(grouped.network_alphas, location.prefix)
                if "down" in roles and "alpha" not in roles
                else None
            )
            roles |= {"alpha": alpha} if alpha else {}
            row = ModuleStats(group.module, kind.name, note=kind.refusal or message(NEEDS_MODEL))
            yield (
                category,
                group.module,
                partial(
                    _lost, row, roles, settings_for(settings, location.prefix), location.name, read
                ),
            )


def _is_placed(plan: Plan, key: str) -> bool:
    return plan.outcomes[key].category == PLACED


def _lost(
    row: ModuleStats, roles: Mapping[str, str], settings: Settings | None, name: str, read: Read
) -> ModuleStats:
    tensors = {role: read(key) for role, key in roles.items()}
    kind = named(row.kind)
    if not kind.additive:
        return _with_values(row, tensors)
    rank = kind.rank({role: tensor.shape for role, tensor in tensors.items()})
    if "alpha" in tensors:
        spec = AdapterSpec(
            kind.name,
            alpha_value(tensors["alpha"], kind.name) if kind.alpha_counts(tensors) else None,
        )
    else:
        spec = AdapterSpec(kind.name, scale=scale_of(settings, name, rank, row.kind).scale)
    return _with_delta(row._replace(rank=rank), spec, tensors)


def _shares(
    rows: Sequence[ModuleStats], total: float, name: Callable[[ModuleStats], str]
) -> tuple[Share, ...]:
    parts: dict[str, list[float]] = {}
    for row in rows:
        parts.setdefault(name(row), []).append(row.energy)
    shares = [
        Share(name, len(energies), math.fsum(energies), _share(math.fsum(energies), total))
        for name, energies in parts.items()
    ]
    return tuple(sorted(shares, key=lambda share: -share.energy))


def _outliers(rows: Sequence[ModuleStats]) -> Iterator[Outlier]:
    by_kind: dict[str, list[tuple[ModuleStats, float]]] = {}
    for row in rows:
        if row.spectral:
            by_kind.setdefault(row.layer_kind, []).append((row, row.spectral))
    for alike in by_kind.values():
        median = statistics.median(spectral for _, spectral in alike)
        for row, spectral in alike if len(alike) >= FEWEST_OF_A_KIND else ():
            if spectral > OUTLIER * median:
                yield Outlier(row.module, spectral, median, spectral / median)


class Overlap(NamedTuple):
    """Rows of one weight that A, B or both change: the norms of both changes, NaN where one is not
    known, and the cosine of the angle between them.
    """

    weight: str
    rows: Rows
    norm_a: float
    norm_b: float
    cosine: float | None  # None where one of them changes nothing, or is not finite

    @property
    def is_finite(self) -> bool:
        """Whether both norms are."""
        return math.isfinite(self.norm_a + self.norm_b)


class Comparison(NamedTuple):
    """How alike two LoRAs on one model are; energies are squared Frobenius norms at strength 1.

    All sums are over what is known and finite: the norms over what is so in that file, the cosine
    over what is in both.
    """

    overlaps: tuple[Overlap, ...]  # the most energy first
    norm_a: float
    norm_b: float
    cosine: float | None  # of all changes together
    energy_only_a: float  # where B changes nothing
    energy_only_b: float
    left_out: tuple[tuple[str, str, str], ...]  # ("a" or "b", module, why it is not compared)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; numbers that are not finite are None."""
        left_out = [
            {"file": file, "module": module, "reason": reason}
            for file, module, reason in self.left_out
        ]
        return {
            "meetings": [
                _row(overlap) | {"rows": [overlap.rows.start, overlap.rows.end]}
                for overlap in self.overlaps
            ],
            "norm_a": _plain(self.norm_a),
            "norm_b": _plain(self.norm_b),
            "cosine": _plain(self.cosine),
            "energy_only_a": _plain(self.energy_only_a),
            "energy_only_b": _plain(self.energy_only_b),
            "left_out": left_out,
        }


class _Segment(NamedTuple):
    """Where an adapter's rows land in one weight, of length 0 where only the adapter tells it;
    source: which of its rows, None for all.
    """

    file: str
    rows: Rows
    source: Rows | None
    adapter: Adapter


_Laid = tuple[_Segment, Delta | None]  # with what it changes; None: that is not known
Sides = Mapping[str, tuple[Plan, Mapping[str, Tensor]]]  # "a" and "b", or "a" alone
# Told of how many weights of how many are measured; what it raises ends the work.
Progress = Callable[[int, int], None]


def compare_weights(
    plan_a: Plan,
    tensors_a: Mapping[str, Tensor],
    plan_b: Plan,
    tensors_b: Mapping[str, Tensor],
    *,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the deltas of two files planned for the same model, exactly and from their factors,
    one weight at a time.

    Dialects and fused or split spellings meet in the model's own weights, which are cut where
    either file's adapters begin or end. Adapters on the same rows add up. Those whose effect needs
    the model's weight, and those whose tensors are not what the plan says, are `left_out`.
    """
    return _compare({"a": (plan_a, tensors_a), "b": (plan_b, tensors_b)}, progress)


def measure_weights(
    plan: Plan, tensors: Mapping[str, Tensor], *, progress: Progress | None = None
) -> Comparison:
    """How much a file changes each weight: as A of a comparison, beside a B that changes
    nothing.
    """
    return _compare({"a": (plan, tensors)}, progress)


def _compare(sides: Sides, progress: Progress | None) -> Comparison:
    left_out: list[tuple[str, str, str]] = []
    segments: dict[str, list[_Segment]] = {}
    for file, (plan, _) in sides.items():
        for adapter in plan.adapters:
            if not has_delta(adapter):
                left_out.append((file, adapter.module, message(NEEDS_MODEL)))
            for weight, segment in _segments(file, adapter, plan.target_model):
                segments.setdefault(weight, []).append(segment)
    reads = {file: tensors.__getitem__ for file, (_, tensors) in sides.items()}
    found: list[tuple[Overlap, float]] = []
    for done, (weight, parts) in enumerate(segments.items()):
        if progress:
            progress(done, len(segments))
        found.extend(_meet(weight, parts, reads, left_out))
    return _compared(found, tuple(dict.fromkeys(left_out)))


def _segments(
    file: str, adapter: Adapter, target_model: TargetModel
) -> Iterator[tuple[str, _Segment]]:
    weights = target_model.networks[adapter.target.network].weights
    for weight, rows, source in adapter.target.slices:
        name = _parameter(adapter, target_model, weight)
        # A drawn model has no biases, but a bias has as many rows as the weight beside it.
        shape = weights.get(name, weights[weight][:1])
        yield name, _Segment(file, rows or Rows(0, shape[0] if shape else 1), source, adapter)


def _meet(
    weight: str,
    segments: Sequence[_Segment],
    reads: Mapping[str, Read],
    left_out: list[tuple[str, str, str]],
) -> Iterator[tuple[Overlap, float]]:
    """Every stretch of rows between two borders with its inner product; a stretch nobody changes is
    none. What is not finite is `left_out` of the sums.
    """
    laid = _laid(weight, segments, reads, left_out)
    for rows in stretches(segment.rows for segment, _ in laid):
        cut: dict[str, list[Delta | None]] = {file: [] for file in "ab"}
        for segment, delta in laid:
            if segment.rows.covers(rows):
                cut[segment.file].append(delta and _cut(segment, delta, rows))
        if any(cut.values()):
            overlap, inner = _overlap(weight, rows, cut["a"], cut["b"])
            if not overlap.is_finite:
                left_out.extend(_not_finite(laid))
            yield overlap, inner


def _not_finite(laid: Iterable[_Laid]) -> Iterator[tuple[str, str, str]]:
    for segment, delta in laid:
        if delta and not math.isfinite(delta.frobenius()):
            yield segment.file, segment.adapter.module, message("lora.norm_not_finite")


def _laid(
    weight: str,
    segments: Sequence[_Segment],
    reads: Mapping[str, Read],
    left_out: list[tuple[str, str, str]],
) -> list[_Laid]:
    """What each adapter changes there."""
    laid: list[_Laid] = []
    columns: int | None = None
    for segment in segments:
        delta = None
        try:
            if has_delta(segment.adapter):
                delta = _delta_of(weight, segment, reads[segment.file], columns)
                columns = delta.shape[1]
                segment = segment._replace(rows=Rows(segment.rows.start, delta.shape[0]))
        except FAULTS as error:
            left_out.append((segment.file, segment.adapter.module, _short(error)))
        laid.append((segment, delta))
    return laid


def _delta_of(weight: str, segment: _Segment, read: Read, columns: int | None) -> Delta:
    """columns: those of the other adapters, where there are any."""
    tensors = {role: read(key) for role, key in segment.adapter.roles.items()}
    spec = spec_of(segment.adapter, tensors)
    delta = factors(spec._replace(rows=segment.source), tensors)
    length = segment.rows.length
    if length and delta.shape[0] != length:
        raise AdapterError(message("lora.rows_of_adapter", made=delta.shape[0], rows=length))
    if columns not in (None, made := delta.shape[1]):
        about = {"weight": weight, "columns": made, "other": columns}
        raise AdapterError(message("lora.columns_differ", **about))
    return delta


def _cut(segment: _Segment, delta: Delta, rows: Rows) -> Delta:
    return delta if rows == segment.rows else delta.rows(*rows.shift(-segment.rows.start))


def _overlap(
    weight: str, rows: Rows, deltas_a: Sequence[Delta | None], deltas_b: Sequence[Delta | None]
) -> tuple[Overlap, float]:
    (one, norm_a), (other, norm_b) = map(_summed, (deltas_a, deltas_b))
    inner = one.inner(other) if one and other else 0.0
    return Overlap(weight, rows, norm_a, norm_b, cosine_of(inner, norm_a, norm_b)), inner


def _summed(deltas: Sequence[Delta | None]) -> tuple[Delta | None, float]:
    """The sum of changes, and its norm: NaN where one of them is not known."""
    known = [delta for delta in deltas if delta]
    if len(known) < len(deltas):
        return None, math.nan
    whole = add(known) if known else None
    return whole, whole.frobenius() if whole else 0.0


def cosine_of(inner: float, norm_a: float, norm_b: float) -> float | None:
    """Of two changes by their inner product; None where one changes nothing or is not finite."""
    product = norm_a * norm_b
    if not product or not math.isfinite(product) or not math.isfinite(inner):
        return None
    return max(-1.0, min(1.0, inner / product))


def _compared(
    found: Sequence[tuple[Overlap, float]], left_out: tuple[tuple[str, str, str], ...]
) -> Comparison:
    overlaps = sorted((overlap for overlap, _ in found), key=_order)
    norms = [(overlap.norm_a, overlap.norm_b) for overlap, _ in found]
    finite = [one for one in found if one[0].is_finite and math.isfinite(one[1])]
    of_both = [(overlap.norm_a, overlap.norm_b) for overlap, _ in finite]
    inner = math.fsum(inner for _, inner in finite)
    return Comparison(
        tuple(overlaps),
        math.sqrt(energy_of(a for a, _ in norms)),
        math.sqrt(energy_of(b for _, b in norms)),
        cosine_of(inner, *(math.sqrt(energy_of(side)) for side in zip(*of_both, strict=True)))
        if of_both
        else None,
        energy_of(a for a, b in norms if not b),
        energy_of(b for a, b in norms if not a),
        left_out,
    )


def energy_of(norms: Iterable[float]) -> float:
    """The squares of those that are finite, summed; NaN where there are only others."""
    known = list(norms)
    finite = [norm * norm for norm in known if math.isfinite(norm)]
    return math.fsum(finite) if finite or not known else math.nan


def _order(overlap: Overlap) -> float:
    energy = overlap.norm_a * overlap.norm_a + overlap.norm_b * overlap.norm_b
    return -energy if math.isfinite(energy) else math.inf


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _percent(share: float) -> str:
    """One decimal; only what is all of it is 100."""
    return "100" if share == 1 else f"{min(99.9, round(100 * share, 1)):g}"


def _plain(value: Any) -> Any:
    """A number JSON has, or None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(values: Any) -> dict[str, Any]:
    """A record as JSON, where a network is a `component`."""
    return {
        ("component" if name == "network" else name): list(value)
        if isinstance(value, tuple)
        else _plain(value)
        for name, value in values._asdict().items()
    }
