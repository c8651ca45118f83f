"""Adapters that compute a part of the model they were trained on: whether the model at hand is that
one, and still has its numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from torch import Tensor

from ..adapters.registry import named
from ..adapters.spec import AdapterError
from ..adapters.tensors import Tensors
from ..messages import message, text_of
from ..planning.plan import Adapter, Plan
from .from_plan import adapter_of

MAX_TRIED = 2  # adapters of one kind: all of a file were trained on one model


def strangers(plan: Plan, tensors: Tensors, base: Callable[[str], Tensor]) -> dict[int, str]:
    """Place in the plan -> why this model is not the one an adapter was trained on; {} where
    nothing says so.

    tensors: the file's, by key; base: full native name -> the model's weight. The smallest adapters
    of a kind speak for all of it.
    """
    by_kind: dict[str, list[int]] = {}
    for place, adapter in enumerate(plan.adapters):
        if named(adapter.kind).of_its_base:
            by_kind.setdefault(adapter.kind, []).append(place)
    strange: dict[int, str] = {}
    for places in by_kind.values():
        smallest = sorted(
            places,
            key=lambda place: min(
                plan.adapters[place].target.out, *plan.adapters[place].target.inner
            ),
        )
        fault = next(
            filter(
                None,
                (_fault(plan.adapters[place], tensors, base) for place in smallest[:MAX_TRIED]),
            ),
            "",
        )
        strange |= dict.fromkeys(places, fault) if fault else {}
    return strange


def _fault(adapter: Adapter, tensors: Tensors, base: Callable[[str], Tensor]) -> str:
    name, rows, _ = adapter.target.slices[0]
    mine = {role: tensors[key] for role, key in adapter.roles.items()}
    try:
        spec, by_role = adapter_of(adapter, mine, None)
        weight = base(name)
        named(adapter.kind).check_base(spec, by_role, weight.narrow(0, *rows) if rows else weight)
    except AdapterError as error:
        return text_of(error)
    return ""


def rounded_base(plan: Plan, is_rounded: Callable[[str], bool]) -> tuple[str, ...]:
    """A sentence for each kind that takes a part off the model's weights, where these are rounded
    (quantised).
    """
    counts: Mapping[str, int] = Counter(
        adapter.kind
        for adapter in plan.adapters
        if named(adapter.kind).of_its_base
        and any(is_rounded(name) for name, _, _ in adapter.target.slices)
    )
    return tuple(
        message("lora.rounded_base", count=count, kind=named(kind).title)
        for kind, count in counts.items()
    )
