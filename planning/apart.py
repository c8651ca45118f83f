"""Takes adapters that are several LoRAs apart, each a LoRA on its own rows of the target."""

from __future__ import annotations

from collections.abc import Mapping

from ..adapters.registry import named
from ..adapters.rows import Rows
from ..adapters.spec import NUMBERS
from .plan import Adapter, Plan
from .target_model import Target

Shapes = Mapping[str, tuple[int, ...] | None]  # by key
PAIR = "lora"  # the kind of each


def taken_apart(plan: Plan) -> Plan:
    """The plan with the pairs of such adapters in their place; the outcome of a key names the first
    of those that use it.
    """
    pieces = [apart(adapter, plan.shapes) for adapter in plan.adapters]
    if all(len(of_one) == 1 for of_one in pieces):
        return plan
    adapters = tuple(piece for of_one in pieces for piece in of_one)
    first: dict[str, int] = {}
    for place, adapter in enumerate(adapters):
        for key in adapter.roles.values():
            first.setdefault(key, place)
    outcomes = {
        key: outcome if outcome.adapter is None else outcome._replace(adapter=first[key])
        for key, outcome in plan.outcomes.items()
    }
    return plan._replace(adapters=adapters, outcomes=outcomes)


def apart(adapter: Adapter, shapes: Shapes) -> tuple[Adapter, ...]:
    """The adapter, or the LoRAs that it is made of: equal to it in what they do to the target."""
    kind = named(adapter.kind)
    if adapter.resized or adapter.target.swap or adapter.options:
        return (adapter,)
    own = {role: shapes.get(key) or () for role, key in adapter.roles.items()}
    pairs = tuple(kind.pairs(own))
    if not pairs or not kind.consumed.union(NUMBERS).issuperset(adapter.roles):
        return (adapter,)
    numbers = {role: key for role, key in adapter.roles.items() if role in NUMBERS}
    return tuple(
        adapter._replace(
            kind=PAIR,
            roles={role: adapter.roles[called] for role, called in roles.items()} | numbers,
            target=_narrowed(adapter.target, rows),
        )
        for roles, rows in pairs
    )


def _narrowed(target: Target, wanted: Rows) -> Target:
    """The target of these rows of an adapter alone."""
    slices = []
    for weight, place, source in target.slices:
        own = source or Rows(0, target.out)
        common = own.intersect(wanted)
        if common is not None:
            moved = common.shift((place.start if place else 0) - own.start)
            taken = common.shift(-wanted.start).unless_all(wanted.length)
            slices.append((weight, place if common == own else moved, taken))
    return target._replace(slices=tuple(slices), out=wanted.length, parts=1)
