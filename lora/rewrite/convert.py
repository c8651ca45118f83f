"""A planned file's tensors under another dialect's names: renamed where that is enough, else fused,
split or multiplied out exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ...adapters.kind import Decomposition, Kind
from ...adapters.registry import decomposition_of, named
from ...adapters.spec import NUMBERS, AdapterError, AdapterSpec
from ...adapters.tensors import Tensors
from ...messages import joined, message, text_of
from ...planning.apart import taken_apart
from ...planning.names import spell
from ...planning.plan import Adapter, Plan
from ..from_plan import shape_made, spec_of
from ..math.faults import FAULTS
from ..math.low_rank import MAGNITUDES, Kronecker, factors, low_rank_part
from .peft_config import PeftTraining, adapter_config, header_settings
from .rename import (
    NATIVE,
    OutputFormat,
    OutputModule,
    OutputPart,
    Refused,
    is_folder,
    on_several_ranks,
    plan_renames,
)

__all__ = ["Conversion", "Refused", "convert"]

RENAMED, COMPUTED, FULL = "renamed", "fused or split", "full matrices"
MAX_REASONS = 5

Read = Callable[[str], Tensor]
Make = Callable[[Read], dict[str, Tensor]]


class Spec(NamedTuple):
    """What a tensor will be: for a header that is written before the tensors are made."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass
class _Job:
    """One new module: `make(read)` gives its tensors by new name, on whatever device `read` reads
    to.
    """

    unit: OutputModule
    make: Make
    way: str
    trained: PeftTraining | None = None
    names: tuple[str, ...] = ()


# how a unit's weights are made, the scale of its LoRAs, what PEFT must know of them, the way
Weights = tuple[Make, float | None, PeftTraining | None, str]


def _nothing(key: str) -> Tensor:
    raise KeyError(key)


@dataclass
class Conversion:
    """A file in another dialect: made module by module, so that memory stays flat.

    specs: new name -> dtype and shape, in the order `items` gives. configs: PEFT's settings by
    network ("" where the names have no network), for dialects that keep alpha there. left_out:
    keys that are not in it, with the reason. ways: how many modules were only renamed, how many
    were fused or split, and how many are full matrices because nothing smaller is exact. trained:
    rank and scale of the modules that are LoRA factors, by new name.
    """

    writing: OutputFormat
    specs: dict[str, Spec]
    configs: dict[str, dict[str, Any]]
    left_out: Mapping[str, str]
    ways: dict[str, int]
    trained: dict[str, PeftTraining]
    _jobs: Sequence[_Job] = field(default=(), repr=False)
    _read: Read = field(default=_nothing, repr=False)
    _more: bool = field(default=False, repr=False)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(new name, tensor) one module at a time."""
        for job in self._jobs:
            for name, tensor in job.make(self._read).items():
                yield name, _grown(tensor, self.specs[name].shape)
        made = {name for job in self._jobs for name in job.names}
        for name in self.specs.keys() - made if self._more else ():
            yield name, torch.zeros(self.specs[name].shape, dtype=self.specs[name].dtype)

    def with_zeros(
        self, specs: Mapping[str, Spec], ranks: Mapping[str, int], bias: bool
    ) -> Conversion:
        """The same with tensors of these specs too, or as large as these: what is more is zeros.

        ranks: of the modules they are of, by new name. bias: whether these have biases.
        """
        trained = {module: PeftTraining(rank, 1.0, bias=bias) for module, rank in ranks.items()}
        return replace(
            self,
            specs={**self.specs, **specs},
            trained={**self.trained, **trained},
            _more=bool(specs),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All of them at once."""
        return dict(self.items())

    @property
    def caution(self) -> str:
        """What the dialect's reader makes of its ranks, where it does not read them; else ""."""
        several = len({item.rank for item in self.trained.values()}) > 1
        return on_several_ranks(self.writing.dialect) if several else ""

    @property
    def header_settings(self) -> dict[str, str]:
        """The metadata that carries `configs` in a header."""
        return {"lora_adapter_metadata": header_settings(self.configs)} if self.configs else {}


def convert(
    plan: Plan,
    tensors: Mapping[str, Tensor],
    dialect: str | OutputFormat,
    dtype: torch.dtype | None = None,
    drop: bool = False,
) -> Conversion:
    """What `plan` placed, in `dialect` (a name, or a format that stands in no table).

    tensors: the file's, by name (map_tensors: nothing is read before it is used). dtype: of the
    result's tensors, alphas aside; None keeps each one's. drop: leave out keys that have no place;
    otherwise they are a reason to refuse. Raises Refused with everything the dialect cannot say,
    before any tensor is made.
    """
    plan = taken_apart(plan)
    renames = plan_renames(plan, dialect, drop)
    reasons = list(renames.refusals)
    jobs: list[_Job] = []
    specs: dict[str, Spec] = {}
    sources = [_Source(adapter) for adapter in plan.adapters]
    for unit in renames.units:
        try:
            unit = _sized(unit, plan)
            job = _Planner(unit, renames.writing, sources, tensors.__getitem__, dtype).job()
            made = job.make(_on_meta(tensors.__getitem__))
            specs |= {
                name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in made.items()
            }
            job.names = tuple(made)
            jobs.append(job)
        except FAULTS as error:
            module = sources[unit.parts[0].adapter].adapter.module
            reasons.append(message("joints.about", subject=module, text=text_of(error)))
    if not jobs and not reasons:
        reasons.append(message("lora.nothing_placed"))
    if reasons:
        more = len(reasons) - MAX_REASONS
        raise Refused(
            (
                *reasons[:MAX_REASONS],
                *([message("joints.and_more", count=more)] if more > 0 else ()),
            )
        )
    jobs, specs = _with_biases(jobs, specs, renames.writing)
    ways = {way: sum(job.way == way for job in jobs) for way in (RENAMED, COMPUTED, FULL)}
    configs = _configs(plan, renames.writing, jobs) if renames.writing.alpha == "config" else {}
    trained = {job.unit.module: job.trained for job in jobs if job.trained}
    return Conversion(
        renames.writing, specs, configs, renames.left_out, ways, trained, jobs, tensors.__getitem__
    )


def _sized(unit: OutputModule, plan: Plan) -> OutputModule:
    """The unit with the shape its one adapter tells, where no table has the weight's."""
    if 0 not in unit.shape or len(unit.parts) > 1 or unit.parts[0].rows or unit.parts[0].into:
        return unit
    made = shape_made(plan.adapters[unit.parts[0].adapter], plan.shapes)
    return unit._replace(shape=made) if made and len(made) >= len(unit.shape) else unit


def _with_biases(
    jobs: list[_Job], specs: dict[str, Spec], writing: OutputFormat
) -> tuple[list[_Job], dict[str, Spec]]:
    """PEFT gives every module a bias or none: those without one get zeros."""
    if "up_bias" not in writing.roles or not any(job.trained and job.trained.bias for job in jobs):
        return jobs, specs
    done: list[_Job] = []
    ordered: dict[str, Spec] = {}
    for job in jobs:
        start = f"{job.unit.module}."
        ordered |= {name: specs[name] for name in job.names}
        if job.trained and not job.trained.bias:
            up = specs[start + writing.roles["up"]]
            name, spec = start + writing.roles["up_bias"], Spec(up.dtype, up.shape[:1])
            ordered[name] = spec
            job = _Job(
                job.unit, _and_zeros(job.make, name, spec), job.way, job.trained._replace(bias=True)
            )
        done.append(job)
    return done, ordered


def _and_zeros(make: Make, name: str, spec: Spec) -> Make:
    return lambda read: make(read) | {name: torch.zeros(spec.shape, dtype=spec.dtype)}


def _configs(plan: Plan, writing: OutputFormat, jobs: Sequence[_Job]) -> dict[str, dict[str, Any]]:
    """PEFT's settings for each network, by what stands in front of its names."""
    record = plan.target_model.dialects[writing.record]._replace(names=writing.names)
    configs = {}
    for name in dict.fromkeys(job.unit.network for job in jobs):
        mine = {job.unit.name: job for job in jobs if job.unit.network == name}
        prefix = next(iter(mine.values())).unit.prefix
        known = [
            item.module[len(prefix) :]
            for item in spell(plan.target_model, plan.target_model.networks[name], record)
        ]
        trained = {module: job.trained for module, job in mine.items() if job.trained}
        if trained:
            network = "" if is_folder(writing.dialect) else prefix.rstrip(".")
            configs[network] = adapter_config(trained, known)
    return configs


class _Source:
    """One adapter of the plan with its numbers; its swap is left to whoever places it."""

    def __init__(self, adapter: Adapter):
        self.adapter = adapter
        self._spec: AdapterSpec | None = None
        self.numbers: dict[str, Tensor] = {}

    def open(self, read: Read) -> _Source:
        """Read the numbers. Raises AdapterError where they are none."""
        if self._spec is None:
            self.numbers = {
                role: read(self.adapter.roles[role])
                for role in NUMBERS
                if role in self.adapter.roles
            }
            self._spec = spec_of(self.adapter, self.numbers)._replace(swap=False)
        return self

    @property
    def spec(self) -> AdapterSpec:
        assert self._spec is not None, "it was not opened"
        return self._spec

    @property
    def kind(self) -> Kind:
        return named(self.adapter.kind)

    @property
    def scalar(self) -> float:
        return float(self.numbers["scalar"].flatten()[0]) if "scalar" in self.numbers else 1.0

    @property
    def scale(self) -> float:
        """What up @ down (or a bias) of a LoRA is multiplied with at strength 1."""
        if self.adapter.rank:
            return self.scalar * self.spec.scale_for(self.adapter.rank)
        return self.scalar * (1.0 if self.spec.scale is None else self.spec.scale)

    def load(self, read: Read, numbers: bool = False) -> dict[str, Tensor]:
        """role, as the kind's mathematics calls it -> tensor; the numbers only when they are asked
        for.
        """
        called = self.kind.called
        tensors = {
            called.get(role, role): read(key)
            for role, key in self.adapter.roles.items()
            if role not in NUMBERS
        }
        return {**tensors, **self.numbers} if numbers else tensors

    @property
    def plain(self) -> bool:
        """Whether it is two factors, with at most a magnitude beside them."""
        return (
            self.kind.is_pair
            and not self.adapter.resized
            and self.adapter.roles.keys() <= {"up", "down", *NUMBERS, *MAGNITUDES}
        )


class _Planner:
    """Finds how one unit is made, the simplest way first."""

    def __init__(
        self,
        unit: OutputModule,
        writing: OutputFormat,
        sources: Sequence[_Source],
        read: Read,
        dtype: torch.dtype | None,
    ):
        self.unit, self.writing, self.read, self.dtype = unit, writing, read, dtype
        pairs = [(part, sources[part.adapter].open(read)) for part in unit.parts]
        self.weights = [pair for pair in pairs if pair[1].adapter.parameter != "bias"]
        self.biases = [pair for pair in pairs if pair[1].adapter.parameter == "bias"]
        for _, source in pairs:
            self._check_meaning(source)

    def _check_meaning(self, source: _Source) -> None:
        """Refused where the source's tensors mean something that those of the new
        file would not.
        """
        kind, dialect = source.kind, self.writing.dialect
        asked = {setting.name for setting in kind.settings}
        beside = [name for name, _ in source.adapter.options if name not in asked]
        if source.spec.option("fan_in_fan_out"):
            raise Refused((message("lora.transposed"),))
        if kind.told_by and self.writing.alpha != "config":
            raise Refused((message("lora.changes_base_too", kind=kind.title, dialect=dialect),))
        # Such a meaning is one of ComfyUI's own formulas, which its metadata, or its names, go on
        # telling.
        if beside and dialect != NATIVE:
            settings = joined(beside)
            raise Refused(
                (message("lora.setting_beside", settings=settings, dialect=dialect, native=NATIVE),)
            )
        if beside and any(
            self._spelling(role) != role for role in MAGNITUDES if role in source.adapter.roles
        ):
            raise Refused((message("lora.magnitudes_in_metadata"),))

    def job(self) -> _Job:
        """The work for this unit. Raises Refused, or AdapterError for tensors that are not what
        they should be.
        """
        nothing: Weights = (lambda read: {}, None, None, RENAMED)
        make_weights, scale, trained, way = self._weights() if self.weights else nothing
        make_biases, bias_way = self._biases(scale) if self.biases else (nothing[0], RENAMED)
        if trained and self.biases:
            trained = trained._replace(bias=True)
        if self.writing.alpha == "config" and not trained:
            kinds = ", ".join(
                sorted({source.kind.name for _, source in (*self.weights, *self.biases)})
            )
            raise Refused((message("lora.pairs_only", dialect=self.writing.dialect, kinds=kinds),))
        way = COMPUTED if (way, bias_way) == (RENAMED, COMPUTED) else way
        return _Job(
            self.unit,
            lambda read: self._named({**make_weights(read), **make_biases(read)}),
            way,
            trained,
        )

    # Weights

    def _weights(self) -> Weights:
        sources = [source for _, source in self.weights]
        whole = all(part.rows is None and part.into is None for part, _ in self.weights)
        roles = [
            role
            for _, source in self.weights
            for role in source.adapter.roles
            if role not in NUMBERS
        ]
        apart = len(roles) == len(set(roles)) and not {"up", "diff"} <= set(roles)
        if whole and (apart or len(self.weights) == 1) and all(map(self._keeps, sources)):
            return self._kept()
        if all(source.plain for _, source in self.weights):
            return self._blocks([_Block(part, source) for part, source in self.weights], True)
        cut = self._cut()
        if cut:
            return cut
        return self._multiplied_out()

    def _keeps(self, source: _Source) -> bool:
        return self._sayable(source) and self._turns(source)

    def _sayable(self, source: _Source) -> bool:
        if not source.kind.by_names and not source.kind.told_by:
            return False
        return all(
            self._spelling(role, source) for role in source.adapter.roles if role not in NUMBERS
        )

    def _spelling(self, role: str, source: _Source | None = None) -> str | None:
        """The role the dialect has for this one: itself, or the other name of a magnitude per
        output.
        """
        role = source.kind.called.get(role, role) if source is not None else role
        if role in self.writing.roles:
            return role
        other = dict(zip(MAGNITUDES, reversed(MAGNITUDES), strict=True)).get(role)
        return other if other in self.writing.roles else None

    def _swapped(self, source: _Source) -> bool:
        return source.adapter.target.swap != self.unit.swap

    def _turns(self, source: _Source) -> bool:
        """Whether its halves need not be exchanged, or can be in the tensors as they are."""
        if not self._swapped(source):
            return True
        if not source.kind.additive:
            raise Refused((message("lora.halves_swapped", kind=source.kind.name),))
        return _rolled(source, source.load(self.read)) is not None

    def _kept(self) -> Weights:
        """Every adapter as it is, under the new name."""
        loras = [source for _, source in self.weights if _is_lora(source)]
        scale = loras[0].scale if loras else None
        turned = any(self._swapped(source) for _, source in self.weights)

        def make(read: Read) -> dict[str, Tensor]:
            made: dict[str, Tensor] = {}
            for _, source in self.weights:
                tensors = source.load(read)
                if self._swapped(source):
                    tensors = _rolled(source, tensors) or {}
                made |= (
                    self._lora(source, tensors)
                    if _is_lora(source)
                    else self._other(source, tensors)
                )
            return made

        trained = None
        if loras and len(self.weights) == 1:
            dora = any(role in loras[0].adapter.roles for role in MAGNITUDES)
            rank = cast(int, loras[0].adapter.rank)  # the tensors of a LoRA tell it
            trained = PeftTraining(rank, loras[0].scale, dora, told_by=loras[0].kind.told_by)
        return make, scale, trained, COMPUTED if turned else RENAMED

    def _lora(self, source: _Source, tensors: Tensors) -> dict[str, Tensor]:
        """A LoRA's roles with its strength where the dialect keeps it."""
        made = {role: tensor for role, tensor in tensors.items() if role not in MAGNITUDES}
        alpha = None
        if (
            "alpha" in source.numbers
            and source.scalar == 1
            and source.spec.alpha == source.numbers["alpha"].item()
        ):
            alpha = source.numbers["alpha"]
        made |= self._strength(made["up"], tensors["down"].shape[0], source.scale, alpha)
        return made | self._magnitude(tensors, tensors["up"].shape[0], len(self.unit.shape))

    def _strength(
        self, up: Tensor, rank: int, scale: float, alpha: Tensor | None
    ) -> dict[str, Tensor]:
        if self.writing.alpha == "folded":
            return {"up": _times(up, scale)}
        if self.writing.alpha == "tensor" and scale == 0:
            # An alpha of 0 means 'not set' to every reader.
            return {"up": _times(up, 0.0)}
        if self.writing.alpha == "tensor":
            return {
                "alpha": (
                    alpha
                    if alpha is not None and alpha.item() != 0
                    else torch.tensor(scale * rank, dtype=torch.float32)
                )
            }
        return {}

    def _magnitude(self, tensors: Tensors, out: int, dimensions: int) -> dict[str, Tensor]:
        role = next((role for role in MAGNITUDES if role in tensors), None)
        if role is None:
            return {}
        spelled = self._spelling(role)
        if spelled == role:
            return {role: tensors[role]}
        vector = _decomposition(role).vector(role, tensors[role], out)
        if vector is None or spelled is None:
            raise Refused((message("lora.magnitudes_per_input"),))
        return {spelled: self._stored(spelled, vector, dimensions)}

    def _stored(self, role: str, vector: Tensor, dimensions: int) -> Tensor:
        """Magnitudes per output as the dialect's role for them has them."""
        return _decomposition(role).stored(
            role, vector, dimensions, self.writing.roles[role] == role
        )

    def _other(self, source: _Source, tensors: Tensors) -> dict[str, Tensor]:
        """Another kind's roles; a factor that no tensor of the dialect says goes into the first of
        them.
        """
        made = {
            spelled: tensor
            for role, tensor in tensors.items()
            if role not in MAGNITUDES and (spelled := self._spelling(role, source))
        }
        factor, kind = source.scalar, source.kind
        if (
            "alpha" in source.numbers
            and "alpha" in self.writing.roles
            and source.adapter.strength.by_tensors
        ):
            made["alpha"] = source.numbers["alpha"]
        else:
            made, own = self._said(source, tensors, made)
            factor *= own
        if factor != 1:
            first = next((role for role in kind.scale_into if role in made), None)
            if first is None:
                raise Refused((message("lora.strength_outside", kind=kind.name),))
            made[first] = _times(made[first], factor)
        return made | self._magnitude(tensors, self.unit.shape[0], len(self.unit.shape))

    def _said(
        self, source: _Source, tensors: Tensors, made: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], float]:
        """(the tensors with an alpha for the source's strength, what of it is left to multiply them
        with).
        """
        kind, spec, rank = source.kind, source.spec, source.adapter.rank
        if "alpha" not in self.writing.roles:
            return made, kind.factor(spec, rank)
        alpha, left = kind.alpha_saying(
            spec, rank, {role: tensor.shape for role, tensor in tensors.items()}
        )
        return (
            made | ({} if alpha is None else {"alpha": torch.tensor(alpha, dtype=torch.float32)}),
            left,
        )

    # Rows of one adapter that is no plain LoRA

    def _cut(self) -> Weights | None:
        """One adapter of which this unit is some rows, cut in its own tensors; None where that
        cannot be.
        """
        if len(self.weights) != 1:
            return None
        part, source = self.weights[0]
        kind = source.kind
        if (
            not kind.additive
            or not kind.by_names
            or part.rows is None
            or part.into is not None
            or kind.is_pair
            or self._swapped(source)
        ):
            return None
        rows = part.rows
        if (
            not self._sayable(source)
            or kind.narrow(source.load(_on_meta(self.read)), *rows) is None
        ):
            return None
        if any(role in source.adapter.roles for role in MAGNITUDES):
            return None
        return (
            (lambda read: self._other(source, kind.narrow(source.load(read), *rows) or {})),
            None,
            None,
            COMPUTED,
        )

    # Everything else: factors

    def _multiplied_out(self) -> Weights:
        """Linear adapters as plain factors, or as one full difference."""
        for _, source in self.weights:
            plain = source.kind.is_pair and all(item.kind.is_pair for _, item in self.weights)
            if not source.kind.additive:
                title = source.kind.title or source.kind.name
                raise Refused((message("lora.no_name_nor_division", kind=title),))
            if not plain and any(role in source.adapter.roles for role in MAGNITUDES):
                raise Refused((message("lora.no_form_for_dora", kind=source.kind.name),))
            if source.adapter.resized:
                raise Refused((message("lora.other_size"),))
        blocks = [_Block(part, source, expanded=True) for part, source in self.weights]
        ranks = [block.rank_if_low(_on_meta(self.read)) for block in blocks]
        known = [rank for rank in ranks if rank is not None]
        if len(known) == len(ranks):
            out, columns = self.unit.shape[0], math.prod(self.unit.shape[1:])
            if sum(known) * (out + columns) < out * columns:
                return self._blocks(blocks, False)
        if "diff" not in self.writing.roles:
            kinds = ", ".join(sorted({source.kind.name for _, source in self.weights}))
            raise Refused(
                (message("lora.no_name_not_low_rank", dialect=self.writing.dialect, kinds=kinds),)
            )
        return (lambda read: {"diff": self._dense(read)}), None, None, FULL

    def _dense(self, read: Read) -> Tensor:
        total = None
        for part, source in self.weights:
            tensors = source.load(read, numbers=True)
            dtype = next(tensor.dtype for role, tensor in tensors.items() if role not in NUMBERS)
            delta = factors(source.spec, low_rank_part(tensors), torch.float32)
            matrix = (delta.rows(*part.rows) if part.rows else delta).dense().to(torch.float32)
            if total is None:
                total = matrix.new_zeros((self.unit.shape[0], matrix.shape[1]))
                result = dtype
            start, length = part.into or (0, self.unit.shape[0])
            total.narrow(0, start, length).add_(matrix)
        assert total is not None, "a unit has a part"
        if self._all_swapped():
            total = total.roll(total.shape[0] // 2, 0)
        return total.reshape(self.unit.shape).to(result)

    def _all_swapped(self) -> bool:
        turned = {self._swapped(source) for _, source in self.weights}
        if turned == {False}:
            return False
        if len(turned) > 1 or any(part.rows or part.into for part, _ in self.weights):
            raise Refused((message("lora.halves_of_a_part"),))
        return True

    def _blocks(self, blocks: list[_Block], looked_at: bool) -> Weights:
        """Block-diagonal factors: each adapter's columns beside the others', in its own rows; equal
        downs share theirs.
        """
        if looked_at:
            _share_downs(blocks, self.read)
        turned = self._all_swapped()
        scales = [block.scale for block in blocks]
        scale = next((number for number in scales if number), 1.0)
        out, inner = self.unit.shape[0], self.unit.shape[1:]
        dora = self._magnitudes_fit()
        own = [block for block in blocks if block.shares is None]
        rank = sum(block.rank(_on_meta(self.read)) for block in own)

        def make(read: Read) -> dict[str, Tensor]:
            loaded = {id(block): block.load(read) for block in blocks}
            first_up, first_down = loaded[id(blocks[0])]
            if first_up.is_meta:
                made = _empty(
                    first_up, first_down, out, rank, first_down.shape[1:] if looked_at else inner
                )
                return self._finished(read, made, rank=rank, scale=scale, turned=turned, dora=dora)
            downs = [loaded[id(block)][1].flatten(1) for block in own]
            up = torch.zeros((out, rank), dtype=first_up.dtype, device=first_up.device)
            starts, place = {}, 0
            for block, down in zip(own, downs, strict=True):
                starts[id(block)], place = place, place + down.shape[0]
            for block in blocks:
                piece = _times(loaded[id(block)][0].flatten(1), block.scale / scale)
                start, length = block.part.into or (0, out)
                columns = starts[id(block.shares or block)]
                region = up.narrow(0, start, length).narrow(1, columns, piece.shape[1])
                region.add_(piece.to(up.dtype)) if up.dtype.itemsize > 1 else region.copy_(piece)
            up = up.roll(out // 2, 0) if turned else up
            down = torch.cat(downs).reshape(rank, *(first_down.shape[1:] if looked_at else inner))
            up = up.reshape(*up.shape, *[1] * (down.dim() - 2))
            return self._finished(
                read, {"up": up, "down": down}, rank=rank, scale=scale, turned=turned, dora=dora
            )

        return make, scale, PeftTraining(rank, scale, dora), COMPUTED

    def _finished(
        self,
        read: Read,
        made: dict[str, Tensor],
        *,
        rank: int,
        scale: float,
        turned: bool,
        dora: bool,
    ) -> dict[str, Tensor]:
        """Factors with their strength, and magnitudes where there are any."""
        made |= self._strength(made["up"], rank, scale, None)
        if dora:
            role = next(role for role in reversed(MAGNITUDES) if role in self.writing.roles)
            made[role] = self._stored(role, self._joined(read, turned), len(self.unit.shape))
        return made

    def _magnitudes_fit(self) -> bool:
        """Whether magnitudes go with the rows; raises Refused where they would be lost."""
        have = [
            role
            for _, source in self.weights
            if (role := next((role for role in MAGNITUDES if role in source.adapter.roles), None))
        ]
        if not have:
            return False
        covered = sum((part.into or (0, self.unit.shape[0]))[1] for part, _ in self.weights)
        if len(have) < len(self.weights) or covered != self.unit.shape[0]:
            raise Refused((message("lora.part_without_magnitudes"),))
        for (_, source), role in zip(self.weights, have, strict=True):
            tensor = self.read(source.adapter.roles[role])
            rows = self.read(source.adapter.roles["up"]).shape[0]
            if _decomposition(role).vector(role, tensor, rows) is None:
                raise Refused((message("lora.magnitudes_not_divisible"),))
        if self.writing.roles.keys().isdisjoint(MAGNITUDES):
            raise Refused((message("lora.no_name_for_magnitudes", dialect=self.writing.dialect),))
        return True

    def _joined(self, read: Read, turned: bool) -> Tensor:
        """The magnitudes per output of all parts, [out]."""
        pieces = sorted(self.weights, key=lambda pair: pair[0].into or (0, 0))
        vectors = []
        for part, source in pieces:
            role = next(role for role in MAGNITUDES if role in source.adapter.roles)
            vector = read(source.adapter.roles[role]).flatten()
            vectors.append(vector.narrow(0, *part.rows) if part.rows else vector)
        if vectors[0].is_meta:
            return torch.empty(self.unit.shape[0], dtype=vectors[0].dtype, device="meta")
        return torch.cat(vectors).roll(self.unit.shape[0] // 2 if turned else 0)

    # Biases

    def _biases(self, lora_scale: float | None) -> tuple[Make, str]:
        """The bias of the unit as one vector, in the role the dialect has for it."""
        kinds = {source.kind for _, source in self.biases}
        whole = all(part.rows is None and part.into is None for part, _ in self.biases)
        kind = next(iter(kinds))
        role = kind.vector
        replaced = any(not kind.additive for kind in kinds)
        if replaced and not (whole and len(self.biases) == 1):
            raise Refused((message("lora.replaced_bias"),))
        if replaced or len(self.biases) > 1 or kind.scaled or role not in self.writing.roles:
            role = "bias" if replaced else "diff_b"
        divisor = 1.0
        if (
            role not in self.writing.roles
            and "up_bias" in self.writing.roles
            and lora_scale
            and not replaced
        ):
            # What is multiplied into up needs no strength, which would divide the bias.
            role, divisor = "up_bias", 1.0 if self.writing.alpha == "folded" else lora_scale
        if role not in self.writing.roles:
            raise Refused(
                (
                    message(
                        "lora.no_name_here",
                        dialect=self.writing.dialect,
                        kind=kind.name.replace("_", " "),
                    ),
                )
            )

        def make(read: Read) -> dict[str, Tensor]:
            total = None
            for part, source in self.biases:
                vector = read(source.adapter.roles[source.kind.vector]).flatten()
                vector = _times(vector, (source.scale if source.kind.scaled else 1.0) / divisor)
                vector = vector.narrow(0, *part.rows) if part.rows else vector
                vector = vector.roll(vector.shape[0] // 2) if self._swapped(source) else vector
                if part.into is None and len(self.biases) == 1:
                    return {role: vector}
                total = vector.new_zeros(self.unit.shape[0]) if total is None else total
                total.narrow(0, *(part.into or (0, self.unit.shape[0]))).add_(
                    vector.to(total.dtype)
                )
            assert total is not None, "a unit has a part"
            return {role: total}

        return make, (
            RENAMED if whole and len(self.biases) == 1 and role == kind.vector else COMPUTED
        )

    def _named(self, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New name -> tensor, in the asked dtype."""
        alone = next(
            (role for role in made if self.writing.beside.get(role, role) not in made), None
        )
        if alone is not None:
            other, dialect = self.writing.beside[alone], self.writing.dialect
            raise Refused(
                (message("lora.read_beside_only", dialect=dialect, role=alone, other=other),)
            )
        named = {}
        for role, tensor in made.items():
            spelling = self.writing.roles.get(role)
            if spelling is None:
                raise Refused(
                    (message("lora.no_name_for_role", dialect=self.writing.dialect, role=role),)
                )
            if self.dtype is not None and role not in NUMBERS and tensor.is_floating_point():
                tensor = tensor.to(self.dtype)
            named[f"{self.unit.module}.{spelling}"] = tensor
        return named


def _is_lora(source: _Source) -> bool:
    """Whether it has a LoRA's tensors, whatever its settings make of them."""
    return source.kind.is_pair or bool(source.kind.told_by)


class _Block:
    """Rows of one adapter as up [rows, rank] and down [rank, ...], and where they
    go in the unit.
    """

    def __init__(self, part: OutputPart, source: _Source, expanded: bool = False):
        self.part, self.source, self.expanded = part, source, expanded
        self.kept: Tensor | None = None  # columns that are not zero in these rows
        self.shares: _Block | None = None  # a block with the same down
        self.scale = 1.0 if expanded else source.scale

    def load(self, read: Read) -> tuple[Tensor, Tensor]:
        """(up, down) of these rows."""
        tensors = self.source.load(read, numbers=self.expanded)
        if self.expanded:
            up, down = self._expanded(tensors)
        else:
            up, down = tensors["up"], tensors["down"]
        up = up.narrow(0, *self.part.rows) if self.part.rows else up
        if self.kept is not None:
            kept = self.kept.to(up.device)
            up, down = up[:, kept], down[kept]
        return up, down

    def _expanded(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        dtype = next(tensor.dtype for role, tensor in tensors.items() if role not in NUMBERS)
        delta = factors(self.source.spec, low_rank_part(tensors), torch.float32)
        delta = delta.as_factors() if isinstance(delta, Kronecker) else delta
        if delta.up is None:
            raise AdapterError(message("lora.not_low_rank"))
        return delta.up.to(dtype), delta.down.to(dtype)

    def rank_if_low(self, read: Read) -> int | None:
        """Its rank; None where it is a full matrix."""
        try:
            return self.load(read)[1].shape[0]
        except AdapterError:
            return None

    def rank(self, read: Read) -> int:
        """Columns it adds."""
        return self.load(read)[1].shape[0]


def _empty(
    up: Tensor, down: Tensor, out: int, rank: int, inner: Sequence[int]
) -> dict[str, Tensor]:
    """The shapes of block-diagonal factors; torch needs seconds to load what concatenates on the
    meta device.
    """
    kernel = [1] * (len(inner) - 1)
    return {
        "up": torch.empty((out, rank, *kernel), dtype=up.dtype, device="meta"),
        "down": torch.empty((rank, *inner), dtype=down.dtype, device="meta"),
    }


def _share_downs(blocks: Sequence[_Block], read: Read) -> None:
    """Find columns that are zero in a block's rows, and blocks whose downs are the same: neither
    needs ranks of its own.
    """
    for block in blocks:
        if block.part.rows is not None:
            up = block.load(read)[0].flatten(1).to(torch.float32)
            alive = up.ne(0).any(0)
            if not alive.all():
                # One column stays even where all are zero: a module without factors is no module.
                block.kept = (
                    alive.nonzero().flatten() if alive.any() else torch.zeros(1, dtype=torch.int64)
                )
    for place, block in enumerate(blocks):
        for other in blocks[:place]:
            if other.shares is None and _same(other.load(read)[1], block.load(read)[1]):
                block.shares = other
                break


def _grown(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor in the corner of zeros of this shape; itself where it has it."""
    if tuple(tensor.shape) == shape:
        return tensor
    larger = tensor.new_zeros(shape)
    larger[tuple(map(slice, tensor.shape))] = tensor
    return larger


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    # Factors that differ do so from the first numbers on.
    return all(
        torch.equal(left.view(torch.uint8), right.view(torch.uint8))
        for left, right in ((one[:1], other[:1]), (one, other))
    )


def _on_meta(read: Read) -> Read:
    return lambda key: read(key).to("meta")


def _rolled(source: _Source, tensors: Tensors) -> dict[str, Tensor] | None:
    """The tensors with the two halves of the output rows exchanged; None where they cannot be cut
    there.
    """
    kind = source.kind
    rows = kind.count_rows(tensors)
    if rows % 2:
        raise Refused((message("lora.odd_rows", rows=rows),))
    lower, upper = kind.narrow(tensors, 0, rows // 2), kind.narrow(tensors, rows // 2, rows // 2)
    if lower is None or upper is None:
        return None
    turned = dict(tensors)
    if any(tensor.is_meta for tensor in tensors.values()):
        return turned
    for role, tensor in tensors.items():
        if lower[role] is not tensor:
            dimension = next(
                axis
                for axis in range(tensor.dim())
                if lower[role].shape[axis] != tensor.shape[axis]
            )
            turned[role] = torch.cat((upper[role], lower[role]), dimension)
        elif role in MAGNITUDES and _decomposition(role).vector(role, tensor, rows) is not None:
            turned[role] = tensor.flatten().roll(rows // 2).reshape(tensor.shape)
    return turned


def _decomposition(role: str) -> Decomposition:
    """Whose magnitudes a role has."""
    found = decomposition_of((role,))
    assert found is not None, role
    return found


def _times(tensor: Tensor, factor: float) -> Tensor:
    """tensor * factor in its own dtype, rounded once."""
    if (
        factor == 1 or tensor.is_meta
    ):  # arithmetic on meta tensors has torch import its compiler: seconds
        return tensor
    return (
        tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32) * factor
    ).to(tensor.dtype)
