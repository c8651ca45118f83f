"""A LoRA file for another program that reads LoRA files: whether it reads the file as it is, else
what a file for it holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...key_maps.dialect import DENOISER
from ...key_maps.reader import Form, Reader
from ...messages import joined, message
from ...planning.names import spell
from ...planning.plan import (
    BOOKKEEPING,
    NO_FAULT,
    NOT_WIRED,
    PLACED,
    Outcome,
    Plan,
    without_adapters,
)
from ...planning.target_model import all_families
from ...report.inspection import Inspection
from ..copies import compared
from ..not_finite import without_odd
from .convert import FULL, Conversion, Spec, convert
from .rename import (
    BASE_UNKNOWN,
    OutputFormat,
    Refused,
    assumption,
    output_format_for,
    plan_for_rival,
    rivals_apart,
)

__all__ = ["ForReader", "for_reader"]

# Full matrices in the place of factors are a file as large as the model.
MAX_FULL_BYTES, MAX_GROWTH = 4 << 30, 4


class ForReader(NamedTuple):
    """What a reader is to be given of a file: what `conversion` makes of `plan`; None: the file as
    it is. filled: modules of the new file that are all zeros, as the reader wants them there.
    encoders: keys of text encoders that the reader has no use for. cautions: sentences.
    """

    plan: Plan
    conversion: Conversion | None
    filled: tuple[str, ...] = ()
    encoders: frozenset[str] = frozenset()
    cautions: tuple[str, ...] = ()


def for_reader(
    inspection: Inspection, tensors: Mapping[str, Tensor], reader: Reader, drop: bool = False
) -> ForReader:
    """The file for a reader. tensors: the file's, by name.

    drop: leave out keys that have no place in the model, and tensors that are not finite. Raises
    Refused and NotFinite with all that the reader cannot be given.
    """
    inspection = _for_its_models(inspection, reader)
    whole = without_odd(compared(inspection, tensors), tensors.__getitem__, drop)
    if _stock_reads(inspection, whole, reader):
        return ForReader(whole, None)
    plan, encoders = _without_encoders(whole, reader)
    format = _format(reader.writes, reader, plan)
    if not reader.families and (apart := rivals_apart(inspection, format)):
        raise Refused((message("lora.reader_ambiguous", models=joined(apart)),))
    made = convert(plan, tensors, format, drop=drop)
    conversion, filled = _completed(made, plan, reader)
    if conversion is made and _is_read(inspection, plan, tensors, reader):
        return ForReader(plan, None)
    _check_size(conversion, inspection, reader)
    cautions = () if reader.families else assumption(inspection, format)
    return ForReader(plan, conversion, filled, encoders, cautions)


def _check_size(conversion: Conversion, inspection: Inspection, reader: Reader) -> None:
    """Raises Refused for full matrices that are many times what the file was: a new model."""
    size = sum(spec.dtype.itemsize * math.prod(spec.shape) for spec in conversion.specs.values())
    if conversion.ways[FULL] and size > max(MAX_FULL_BYTES, MAX_GROWTH * inspection.size):
        raise Refused(
            (message("lora.reader_too_large", reader=reader.title, size=f"{size / 1e9:.0f}"),)
        )


def _format(form: Form, reader: Reader, plan: Plan) -> OutputFormat:
    if form.names:
        return OutputFormat(reader.title, form.record, form.names, form.alpha, form.roles)
    family = plan.target_model.family
    return output_format_for(form.record, family.name if family else "")


def _for_its_models(inspection: Inspection, reader: Reader) -> Inspection:
    """The inspection, for a model of the reader's where the file fits that as well. Raises Refused
    for another model's file, and for what is no LoRA.
    """
    if inspection.other:
        raise Refused((inspection.other,))
    networks, family = inspection.plan.target_model.networks, inspection.plan.target_model.family
    if not networks and not reader.families:
        raise Refused((message(BASE_UNKNOWN),))
    if not reader.families or (family and family.name in reader.families):
        return inspection
    # Where the file does not tell its model, the reader does.
    for name in inspection.guess.ties if networks else reader.families:
        if name in reader.families:
            plan = plan_for_rival(inspection, name)
            if len(plan.adapters) >= len(inspection.plan.adapters) and _places_most(plan):
                return inspection.with_plan(plan)
    models = joined(all_families().families[name].title for name in reader.families)
    if not family:
        raise Refused((message("lora.reader_of_other_names", reader=reader.title, models=models),))
    fault = message(
        "lora.reader_of_other_models", reader=reader.title, models=models, model=family.title
    )
    raise Refused((fault,))


def _places_most(plan: Plan) -> bool:
    placed = sum(outcome.category == PLACED for outcome in plan.outcomes.values())
    return 2 * placed >= len(plan.outcomes) > 0


def _without_encoders(plan: Plan, reader: Reader) -> tuple[Plan, frozenset[str]]:
    """(the plan without text encoders, their keys) for a reader that has no use for them."""
    if reader.encoders:
        return plan, frozenset()
    reason = message("lora.reader_of_the_model_alone", reader=reader.title)
    others = {
        place: reason
        for place, adapter in enumerate(plan.adapters)
        if adapter.target.network != DENOISER
    }
    if len(others) == len(plan.adapters):
        raise Refused((reason,))
    keys = {key for place in others for key in plan.adapters[place].roles.values()}
    left = without_adapters(plan, others) if others else plan
    aside = frozenset(
        key
        for key, outcome in left.outcomes.items()
        if outcome.category == NOT_WIRED or (key in keys and outcome.adapter is None)
    )
    outcomes = {**left.outcomes, **dict.fromkeys(aside, Outcome(BOOKKEEPING, reason))}
    return left._replace(outcomes=outcomes), aside


def _stock_reads(inspection: Inspection, plan: Plan, reader: Reader) -> bool:
    """Whether the reader is as the stock loader, and that reads all of the file rightly."""
    lost = inspection.report.categories.keys() - NO_FAULT
    return reader.stock and plan is inspection.plan and not lost and not inspection.gains


def _is_read(
    inspection: Inspection, plan: Plan, tensors: Mapping[str, Tensor], reader: Reader
) -> bool:
    """Whether the file is to the byte what it would be in a form that the reader reads."""
    if not inspection.header.tensors.keys().isdisjoint(reader.never):
        return False
    for form in (reader.writes, *reader.reads):
        try:
            made = convert(plan, tensors, _format(form, reader, plan))
        except Refused:
            continue
        if _is_that(inspection, tensors, made):
            return True
    return False


def _is_that(inspection: Inspection, tensors: Mapping[str, Tensor], made: Conversion) -> bool:
    header = inspection.header
    if made.specs.keys() != header.tensors.keys():
        return False
    if not made.header_settings.keys() <= header.metadata.keys():
        return False
    return all(_equal(tensors[name], tensor) for name, tensor in made.items())


def _equal(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(
            one.contiguous().reshape(-1).view(torch.uint8),
            other.contiguous().reshape(-1).view(torch.uint8),
        )
    )


# What the reader wants beside what was trained


class _Zeros(NamedTuple):
    """A module that is to be there, or to have a rank, and its weight's shape."""

    module: str
    rank: int
    shape: tuple[int, ...]


def _completed(made: Conversion, plan: Plan, reader: Reader) -> tuple[Conversion, tuple[str, ...]]:
    """The conversion with the modules and ranks that the reader wants too, as zeros; the modules
    that are only zeros. The same one where there are none.
    """
    if not (reader.together or reader.same_rank):
        return made, ()
    shapes = _shapes(made, plan)
    trained = {name: item.rank for name, item in made.trained.items()}
    wanted = {
        item.module: item
        for groups, equal in ((reader.together, False), (reader.same_rank, True))
        for group in groups
        for item in _lacking(trained, group, shapes, equal)
    }
    if not wanted:
        return made, ()
    if any(0 in item.shape for item in wanted.values()):
        name = next(name for name, item in wanted.items() if 0 in item.shape)
        raise Refused((message("lora.reader_wants_unknown", reader=reader.title, module=name),))
    bias = any(item.bias for item in made.trained.values())
    specs = {name: spec for item in wanted.values() for name, spec in _specs(made, item, bias)}
    ranks = {item.module: item.rank for item in wanted.values()}
    return made.with_zeros(specs, ranks, bias), tuple(
        name for name in wanted if name not in trained
    )


def _shapes(made: Conversion, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Every module of the diffusion model under its new name, with its weight's shape."""
    writing = made.writing
    record = plan.target_model.dialects[writing.record]._replace(names=writing.names)
    network = plan.target_model.networks[DENOISER]
    return {item.module: item.shape for item in spell(plan.target_model, network, record)}


def _lacking(
    trained: Mapping[str, int],
    group: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    equal: bool,
) -> Iterator[_Zeros]:
    """The modules of each group in part trained that are missing, or (equal) of a smaller rank.

    trained: module -> rank.
    """
    stems = {
        module.removesuffix(ending)
        for module in trained
        for ending in group
        if module.endswith(f".{ending}")
    }
    for stem in sorted(stems):
        members = [stem + ending for ending in group if stem + ending in shapes]
        rank = max((trained[name] for name in members if name in trained), default=0)
        for name in members if rank else ():
            if name not in trained or (equal and trained[name] < rank):
                yield _Zeros(name, rank, shapes[name])


def _specs(made: Conversion, item: _Zeros, bias: bool) -> Iterator[tuple[str, Spec]]:
    roles, (out, *inner) = made.writing.roles, item.shape
    dtype = next(iter(made.specs.values())).dtype
    shapes = {"down": (item.rank, *inner), "up": (out, item.rank)}
    if bias and "up_bias" in roles:
        shapes["up_bias"] = (out,)
    for role, shape in shapes.items():
        name = f"{item.module}.{roles[role]}"
        known = made.specs.get(name)
        yield name, Spec(known.dtype if known else dtype, tuple(shape))
