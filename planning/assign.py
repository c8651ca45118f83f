"""Which adapters the roles of a module make, and whether what they were trained on fits a module of
the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import NamedTuple

from ..adapters.kind import Kind, Misfit, Missing, ModuleShape, Shape, Shapes
from ..adapters.registry import kinds
from ..messages import message

__all__ = [
    "Assignment",
    "Kind",
    "Misfit",
    "Missing",
    "ModuleShape",
    "Shape",
    "Shapes",
    "assign",
    "fits",
    "missing_roles",
]


class Assignment(NamedTuple):
    """One adapter found among the roles of a module."""

    kind: Kind
    roles: tuple[str, ...]


def assign(roles: Mapping[str, object]) -> tuple[tuple[Assignment, ...], tuple[str, ...]]:
    """Group the roles of one module into adapters; also returns the roles that belong to none."""
    return _assign(tuple(roles))


@lru_cache(maxsize=1024)
def _assign(roles: tuple[str, ...]) -> tuple[tuple[Assignment, ...], tuple[str, ...]]:
    left = dict.fromkeys(roles)
    assignments = []
    for kind in kinds():
        needed = max((need for need in kind.needs if need <= left.keys()), key=len, default=None)
        if needed is not None:
            used = [role for role in left if role in needed or role in kind.takes]
            assignments.append(Assignment(kind, tuple(used)))
            for role in used:
                del left[role]
    return tuple(assignments), tuple(left)


def missing_roles(roles: Mapping[str, object]) -> str:
    """What the nearest adapter lacks, for the report: `lora_up` for a lone `down`."""
    best = max(
        (
            need
            for kind in kinds()
            for need in kind.needs
            if need & roles.keys() and not kind.never_beside
        ),
        key=lambda need: len(need & roles.keys()) / len(need),
        default=None,
    )
    return ", ".join(sorted(best - roles.keys())) if best else message("planning.factor_pair")


def fits(module: ModuleShape, out: int, inner: Shape) -> bool:
    """Whether an adapter trained on a module of this shape fits `out` rows with `inner` dimensions.

    A 1x1 convolution and a linear layer are the same thing; nothing else may be reshaped, except
    that LoHa and LoKr factors of a convolution are flat by design. A size of 0 is not known, and
    fits.
    """
    if module.out is not None and out and module.out != out:
        return False
    if module.inner is None or 0 in inner:
        return True
    if module.inner == inner:
        return True
    ours, theirs = _without_ones(module.inner), _without_ones(inner)
    if ours == theirs:
        return True
    return module.flat and prod(module.inner) == prod(inner)


def _without_ones(inner: Shape) -> Shape:
    end = len(inner)
    while end > 1 and inner[end - 1] == 1:
        end -= 1
    return inner[:end]
