"""What several LoRAs change, by the model's own weights: whose rows, at which strength, as factors
or as a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...adapters.registry import decomposition_of, named
from ...adapters.rows import Rows
from ...adapters.spec import AdapterError, AdapterSpec
from ...adapters.tensors import check_not_empty, factor_of, multiply, take_matrix
from ...key_maps.dialect import DENOISER
from ...messages import joined, message
from ...planning.plan import BOOKKEEPING, PLACED, Adapter, Plan
from ..from_plan import adapter_of, has_delta, shape_made, spec_of
from ..io.stream import TensorStream
from ..math.apply import patched_weight
from ..math.faults import FAULTS, first_line
from ..math.low_rank import Delta, Factors, Kronecker, factors
from ..not_finite import DAMAGED, NotFinite, odd_tensors, oddities, oddity_of
from .block_weights import NO_BLOCKS, BlockWeights

__all__ = [
    "MergePiece",
    "Source",
    "MergeTarget",
    "dtype_of",
    "lora_name",
    "pieces_of",
    "rank_of",
    "refused",
    "targets",
    "unplaced",
]

Base = Callable[[str], Tensor]
SUFFIXES = (".weight", ".scale")
PLAIN = frozenset({"up", "down", "alpha"})


class Source(NamedTuple):
    """One LoRA of a merge. tensors: by name, such as an open TensorStream; strengths mean what they
    mean on a loader.

    blocks: multiplies the strength, module by module. name: what it is called in reports and
    errors.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]
    strength_model: float = 1.0
    strength_text_encoder: float = 1.0
    blocks: BlockWeights = NO_BLOCKS
    name: str = ""

    def strength(self, network: str, module: str) -> float:
        """What the delta of a native module is multiplied with."""
        whole = self.strength_model if network == DENOISER else self.strength_text_encoder
        return whole * self.blocks.factor(network, module) if whole else 0.0


class MergePart(NamedTuple):
    """Rows of a weight that an adapter of a source changes. rows: of the weight, None for all; cut:
    of the adapter's rows.
    """

    source: int
    adapter: Adapter
    rows: Rows | None
    cut: Rows | None
    strength: float


class MergeTarget(NamedTuple):
    """A weight, or the bias beside it, with all that changes it. shape: of what is changed;
    strengths: of every source there.
    """

    weight: str
    parameter: str
    shape: tuple[int, ...]
    parts: tuple[MergePart, ...]
    strengths: tuple[float, ...]

    @property
    def name(self) -> str:
        """The parameter that is changed."""
        return self.weight if self.parameter == "weight" else f"{_module(self.weight)}.bias"

    @property
    def sources(self) -> tuple[int, ...]:
        """The sources that change it, in their order."""
        return tuple(sorted({part.source for part in self.parts}))

    @property
    def size(self) -> tuple[int, int]:
        """(out, columns): a convolution's columns are in * kernel, a vector's one."""
        columns = 1
        for size in self.shape[1:]:
            columns *= size
        return self.shape[0], columns


class MergePiece(NamedTuple):
    """The delta of one part: scale * delta on the rows from `start` on.

    A plain LoRA's factors are the file's own tensors, possibly of two dtypes, others are fp32.
    dtype: of the file's tensors.
    """

    source: int
    start: int
    delta: Delta
    scale: float
    dtype: torch.dtype
    whole: bool  # the file itself holds a matrix of the weight's size

    @property
    def rows(self) -> Rows:
        """The weight's rows that it changes."""
        return Rows(self.start, self.delta.shape[0])


def targets(sources: Sequence[Source]) -> list[MergeTarget]:
    """Every weight that any source changes at a strength other than 0, in the order of the files.

    Raises AdapterError where two files are made for different models, for a size that cannot be
    told and for block weights that match nothing.
    """
    _check_families(sources)
    parts_of: dict[tuple[str, str], list[MergePart]] = {}
    modules: dict[str, tuple[str, str]] = {}
    for index, source in enumerate(sources):
        own = {}
        for adapter in source.plan.adapters:
            network = source.plan.target_model.networks[adapter.target.network]
            for weight, rows, cut in adapter.target.slices:
                own[weight] = (network.name, _module(weight).removeprefix(network.prefix))
                strength = source.strength(*own[weight])
                for parameter in (
                    ("weight", "bias") if adapter.parameter == "both" else (adapter.parameter,)
                ):
                    if strength and (parameter == adapter.parameter or network.bias_of(weight)):
                        parts_of.setdefault((weight, parameter), []).append(
                            MergePart(index, adapter, rows, cut, strength)
                        )
        source.blocks.check(own.values())
        modules |= own
    return [
        _target(weight, parameter, parts, modules[weight], sources)
        for (weight, parameter), parts in parts_of.items()
    ]


def _module(weight: str) -> str:
    return next((weight[: -len(suffix)] for suffix in SUFFIXES if weight.endswith(suffix)), weight)


def _check_families(sources: Sequence[Source]) -> None:
    known = [
        (source, source.plan.target_model.family)
        for source in sources
        if source.plan.target_model.family
    ]
    for source, family in known[1:]:
        if family.name != known[0][1].name:
            first = known[0][0].name or message("merge.first_lora")
            other = source.name or message("merge.another_lora")
            raise AdapterError(
                message(
                    "merge.families_differ",
                    first=first,
                    family=known[0][1].title,
                    other=other,
                    other_family=family.title,
                )
            )


def _target(
    weight: str,
    parameter: str,
    parts: Sequence[MergePart],
    module: tuple[str, str],
    sources: Sequence[Source],
) -> MergeTarget:
    known = set()
    for part in parts:
        shape = (
            sources[part.source]
            .plan.target_model.networks[part.adapter.target.network]
            .weights.get(weight)
            or ()
        )
        if part.adapter.resized:
            id = "merge.fewer_inputs" if part.adapter.columns else "merge.larger_weight"
            lora = sources[part.source].name
            raise AdapterError(message(id, lora=lora, module=part.adapter.module))
        known.add(tuple(shape) if shape and 0 not in shape else _shape_told(weight, part, sources))
    if len(known) > 1:
        raise AdapterError(
            message(
                "merge.sizes_differ",
                weight=weight,
                sizes=joined(map(str, sorted(map(list, known))), "and"),
            )
        )
    shape = known.pop()
    strengths = tuple(source.strength(*module) for source in sources)
    return MergeTarget(
        weight, parameter, shape[:1] if parameter == "bias" else shape, tuple(parts), strengths
    )


def _shape_told(weight: str, part: MergePart, sources: Sequence[Source]) -> tuple[int, ...]:
    """The shape of a weight that no table knows, from the adapter that covers all of it."""
    made = (
        shape_made(part.adapter, sources[part.source].plan.shapes)
        if part.rows is None and part.cut is None
        else None
    )
    if made is None:
        raise AdapterError(message("merge.size_unknown", weight=weight))
    return made


def refused(sources: Sequence[Source], based: bool) -> dict[str, list[str]]:
    """Source -> why adapters of it cannot be merged, by module; based: the model's weights are at
    hand.
    """
    modules_of: dict[str, list[str]] = {}
    for source in sources if not based else ():
        for adapter in source.plan.adapters:
            if not has_delta(adapter):
                decomposition = decomposition_of(adapter.roles)
                kind = (
                    decomposition.title
                    if decomposition and named(adapter.kind).additive
                    else adapter.kind
                )
                modules_of.setdefault(source.name, []).append(f"{adapter.module} ({kind})")
    return modules_of


def unplaced(sources: Sequence[Source]) -> dict[str, dict[str, str]]:
    """Source -> key -> why it is no part of the merge, for the keys that mean something and found
    no place.
    """
    return {
        source.name: lost
        for source in sources
        # What has no part in the merge by its strengths is no loss.
        if (source.strength_model or source.strength_text_encoder)
        and (
            lost := {
                key: out.reason
                for key, out in source.plan.outcomes.items()
                if out.category not in (PLACED, BOOKKEEPING)
            }
        )
    }


def rank_of(adapter: Adapter, shapes: Mapping[str, tuple[int, ...] | None]) -> int | None:
    """The rank `pieces_of` gives an adapter's factors, from the shapes of its tensors; None where
    it has a matrix or a vector.
    """
    if not has_delta(adapter) or adapter.parameter != "weight":
        return None
    found = {role: shapes.get(key) or () for role, key in adapter.roles.items()}
    return named(adapter.kind).product_rank(
        found, (adapter.target.out, math.prod(adapter.target.inner) or 1)
    )


def dtype_of(source: Source, adapter: Adapter) -> torch.dtype:
    """The dtype the factors of an adapter are merged in where none is asked for."""
    tensors = source.tensors
    told = tensors.dtype if isinstance(tensors, TensorStream) else lambda key: tensors[key].dtype
    return _common({role: told(key) for role, key in adapter.roles.items()})


def pieces_of(
    target: MergeTarget, sources: Sequence[Source], base: Base | None = None
) -> Iterator[MergePiece]:
    """The deltas of all parts, read now. base: full native name -> the model's weight, for adapters
    that depend on it.

    Raises AdapterError, naming source and module, for tensors that are not what their names
    promise.
    """
    for part in target.parts:
        source = sources[part.source]
        try:
            tensors = {role: source.tensors[key] for role, key in part.adapter.roles.items()}
            check_finite(part, source, tensors)
            yield _piece(target, part, tensors, base)
        except NotFinite:
            raise
        except FAULTS as error:
            raise AdapterError(
                message(
                    "merge.in_module",
                    lora=lora_name(source.name),
                    module=part.adapter.module,
                    fault=first_line(error),
                )
            ) from error


def check_finite(part: MergePart, source: Source, tensors: Mapping[str, Tensor]) -> None:
    """Raise NotFinite, naming all such tensors of the source, where one of these is not finite."""
    if not any(oddity_of(part.adapter, role, tensor) for role, tensor in tensors.items()):
        return
    used = []
    for place, adapter in enumerate(source.plan.adapters):
        network = source.plan.target_model.networks[adapter.target.network]
        modules = [
            _module(weight).removeprefix(network.prefix) for weight, _, _ in adapter.target.slices
        ]
        if any(source.strength(network.name, module) for module in modules):
            used.append((place, adapter, modules[0]))
    odd = odd_tensors(((place, adapter) for place, adapter, _ in used), source.tensors.__getitem__)
    module = next(module for place, _, module in used if place == odd[0].adapter)
    raise NotFinite(
        message(
            "merge.not_finite",
            lora=lora_name(source.name),
            tensors=oddities(odd),
            damaged=message(DAMAGED),
            module=module,
        )
    )


def lora_name(name: str) -> str:
    """What a source is called in a sentence."""
    return name or message("merge.a_lora")


def _piece(
    target: MergeTarget, part: MergePart, tensors: dict[str, Tensor], base: Base | None
) -> MergePiece:
    start, length = part.rows or Rows(0, target.shape[0])
    spec = spec_of(part.adapter, tensors)
    dtype = _dtype(tensors)
    delta: Delta
    if not has_delta(part.adapter):
        delta = _by_the_weight(target, part, tensors, base)
        return MergePiece(part.source, start, delta, part.strength, dtype, False)
    kind = named(spec.kind)
    if kind.is_pair and PLAIN.issuperset(tensors):
        delta, scale = _plain(spec, tensors, part.cut)
    else:
        delta, scale = factors(spec._replace(rows=part.cut), tensors, torch.float32), 1.0
        # A Kronecker product of many singular values is the smaller thing as it is.
        if isinstance(delta, Kronecker) and 2 * delta.rank <= min(delta.shape):
            delta = delta.as_factors()
    if delta.shape != (length, target.size[1]):
        raise AdapterError(
            message(
                "lora.delta_does_not_go_into_rows",
                shape=list(delta.shape),
                rows=length,
                size=list(target.shape),
            )
        )
    whole = kind.whole or (kind.is_pair and getattr(delta, "up", 0) is None)
    return MergePiece(part.source, start, delta, scale * part.strength, dtype, whole)


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return _common({role: tensor.dtype for role, tensor in tensors.items()})


def _common(dtypes: Mapping[str, torch.dtype]) -> torch.dtype:
    """The dtype that holds all of an adapter's tensors; fp8, which nothing computes in, counts as
    bf16, which holds it exactly.
    """
    found = None
    for dtype in {
        dtype for role, dtype in dtypes.items() if role != "alpha" and dtype.is_floating_point
    }:
        dtype = torch.bfloat16 if dtype.itemsize == 1 else dtype
        found = dtype if found is None else torch.promote_types(found, dtype)
    return torch.float32 if found in (None, torch.float64) else found


def _plain(
    spec: AdapterSpec, tensors: Mapping[str, Tensor], cut: Rows | None
) -> tuple[Factors, float]:
    """The file's own factors, nothing computed: (factors, scale)."""
    check_not_empty(tensors)
    up, down = (
        tensors[role].flatten(1) if tensors[role].dim() > 1 else take_matrix(tensors, role)
        for role in ("up", "down")
    )
    if up.shape[1] != down.shape[0]:
        multiply(up, down, ("up", "down"))
    delta = Factors(up, down)
    delta = delta.rows(*cut) if cut else delta
    return delta.swap_halves() if spec.swap else delta, factor_of(named(spec.kind), spec, tensors)


def _by_the_weight(
    target: MergeTarget, part: MergePart, tensors: Mapping[str, Tensor], base: Base | None
) -> Factors:
    """What the adapter makes of the model's weight at strength 1, minus that weight."""
    if base is None:
        raise AdapterError(message("merge.needs_weight", kind=part.adapter.kind))
    weight = base(target.name).to(torch.float32)
    if tuple(weight.shape) != target.shape:
        raise AdapterError(
            message("merge.weight_shape", shape=list(weight.shape), size=list(target.shape))
        )
    weight = weight.narrow(0, *part.rows) if part.rows else weight
    patched = patched_weight(*adapter_of(part.adapter, tensors, part.cut), weight, 1.0)
    return Factors(None, (patched - weight).reshape(weight.shape[0], -1))
