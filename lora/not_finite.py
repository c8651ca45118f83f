"""Finds tensors that hold NaN or infinite numbers: nothing true can be computed of them, so that
they are named and not passed on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..adapters.kind import LIMIT
from ..adapters.registry import named
from ..adapters.spec import AdapterError
from ..messages import Message, joined, message
from ..planning.plan import Plan, without_adapters

__all__ = [
    "DAMAGED",
    "NotFinite",
    "Odd",
    "check_result",
    "odd_tensors",
    "oddities",
    "oddity",
    "without_odd",
]

Read = Callable[[str], Tensor]


class WithRoles(Protocol):
    """An adapter, placed or not."""

    @property
    def kind(self) -> str:
        """The name of its kind."""

    @property
    def roles(self) -> Mapping[str, str]:
        """Role -> key."""


NAN, INFINITE, BOTH = "NaN", "infinite numbers", "NaN and infinite numbers"
HOLDS = {NAN: "lora.holds_nan", INFINITE: "lora.holds_infinite", BOTH: "lora.holds_both"}
MAX_NAMED = 3
PACKED = frozenset({getattr(torch, "float4_e2m1fn_x2", None)})  # of a torch that has it
DAMAGED = "lora.damaged"


class NotFinite(AdapterError):
    """An adapter whose tensors are not finite; the text names the tensors."""


class Odd(NamedTuple):
    """A tensor that is not finite: its adapter's place in the plan, its key, and what is in it."""

    adapter: int
    key: str
    what: str

    @property
    def sentence(self) -> Message:
        """What it holds, as part of a sentence."""
        return message(HOLDS[self.what], key=self.key)


def oddity(tensor: Tensor) -> str:
    """What a tensor holds besides numbers that are finite; "" where nothing."""
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return ""
    # fp8 has no arithmetic of its own; packed fp4 has nothing that could be converted, and no NaN.
    if tensor.dtype in PACKED:
        return ""
    computed = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    # One pass of the ends is many times faster than isfinite, which makes a tensor of its own.
    if all(math.isfinite(end.item()) for end in computed.aminmax()):
        return ""
    nan, infinite = computed.isnan().any().item(), computed.isinf().any().item()
    return BOTH if nan and infinite else NAN if nan else INFINITE


def odd_tensors(adapters: Iterable[tuple[int, WithRoles]], read: Read) -> list[Odd]:
    """The tensors that are not finite among those that the adapters (by their place in the plan)
    are computed from.
    """
    found = [
        (place, adapter, role, key)
        for place, adapter in adapters
        for role, key in adapter.roles.items()
    ]
    return [
        Odd(place, key, what)
        for place, adapter, role, key in found
        if (what := oddity_of(adapter, role, read(key)))
    ]


def oddity_of(adapter: WithRoles, role: str, tensor: Tensor) -> str:
    """`oddity` of a tensor in its role in an adapter: one that is not computed with may hold
    anything.
    """
    kind = named(adapter.kind)
    what = "" if role in kind.silent or role in kind.switches else oddity(tensor)
    if not what or role != "alpha":
        return what
    if not kind.alpha_counts(adapter.roles):
        return ""
    # An infinite limit is none.
    return "" if what == INFINITE and kind.alpha_is == LIMIT else what


def oddities(odd: list[Odd]) -> Message:
    """The tensors, as part of a sentence."""
    parts = [item.sentence for item in odd[:MAX_NAMED]]
    more = len(odd) - MAX_NAMED
    if more > 0:
        parts.append(message("lora.more_not_finite", count=more))
    return joined(parts, "semicolon")


def without_odd(plan: Plan, read: Read, drop: bool) -> Plan:
    """The plan; with `drop`, without the adapters whose tensors are not finite. Raises NotFinite
    where there are any, and not `drop`.
    """
    odd = odd_tensors(enumerate(plan.adapters), read)
    if odd and not drop:
        raise NotFinite(joined((oddities(odd), message(DAMAGED)), "semicolon"))
    return (
        without_adapters(plan, {item.adapter: item.sentence for item in reversed(odd)})
        if odd
        else plan
    )


def check_result(tensor: Tensor, what: str) -> Tensor:
    """The tensor. Raises AdapterError, naming what it is of, where it is not finite though all it
    was made of is.
    """
    if oddity(tensor):
        half = tensor.dtype.itemsize == 2
        raise AdapterError(
            message("lora.too_large_for_fp16", place=what)
            if half
            else message("lora.too_large", place=what)
        )
    return tensor
