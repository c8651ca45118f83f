"""Finds the adapter kinds: every file of `kinds/` is one or several, and what applies to several of
them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

from ..messages import message
from . import kinds as folder
from .kind import Decomposition, Kind, ToldShapes
from .spec import AdapterError

__all__ = [
    "asked_metadata",
    "decomposition_of",
    "decompositions",
    "kinds",
    "magnitudes",
    "named",
    "of_host",
    "variant",
]


@lru_cache(maxsize=1)
def _modules() -> tuple[ModuleType, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    return tuple(importlib.import_module(f"{folder.__name__}.{name}") for name in names)


@lru_cache(maxsize=1)
def kinds() -> tuple[Kind, ...]:
    """All kinds, in the order in which they take their tensors where two of them use the same."""
    unsorted = [kind for module in _modules() for kind in getattr(module, "KINDS", ())]
    return tuple(sorted(unsorted, key=lambda kind: kind.precedence))


@lru_cache(maxsize=1)
def decompositions() -> tuple[Decomposition, ...]:
    """What divides weights into direction and magnitude, and applies to several kinds."""
    return tuple(each for module in _modules() for each in getattr(module, "DECOMPOSITIONS", ()))


@lru_cache(maxsize=1)
def magnitudes() -> tuple[str, ...]:
    """The roles of all decompositions."""
    return tuple(role for each in decompositions() for role in each.roles)


@lru_cache(maxsize=1)
def _magnitudes() -> frozenset[str]:
    return frozenset(magnitudes())


def decomposition_of(roles: Collection[str]) -> Decomposition | None:
    """The decomposition that an adapter with these roles has."""
    if _magnitudes().isdisjoint(roles):
        return None
    return next(
        (each for each in decompositions() if any(role in roles for role in each.roles)), None
    )


@lru_cache(maxsize=1)
def asked_metadata() -> tuple[str, ...]:
    """The keys of a header's metadata that tell variants of kinds apart."""
    return tuple(sorted({key for kind in kinds() for key in kind.metadata}))


@lru_cache(maxsize=1)
def _by_name() -> dict[str, Kind]:
    return {kind.name: kind for kind in reversed(kinds())}


@lru_cache(maxsize=1)
def _by_host() -> dict[str, Kind]:
    return {kind.host_class: kind for kind in kinds() if kind.host_class}


@lru_cache(maxsize=256)
def named(name: str) -> Kind:
    """The kind of this name. Raises AdapterError, naming all that can be computed."""
    kind = _by_name().get(name)
    if kind is None:
        known = ", ".join(sorted(kind.name for kind in kinds() if not kind.refusal))
        raise AdapterError(message("adapters.unknown_kind", name=name, known=known))
    return kind


def of_host(name: str) -> Kind | None:
    """The kind that a class of the host with this name computes."""
    return _by_host().get(name)


@lru_cache(maxsize=1)
def _variants() -> Mapping[str, tuple[Kind, ...]]:
    return {
        kind.name: tuple(other for other in kinds() if other.variant_of == kind.name)
        for kind in kinds()
    }


def variant(
    kind: Kind, shapes: ToldShapes, metadata: Mapping[str, str], settings: Mapping[str, Any]
) -> Kind:
    """The kind, or that of its variants which tensors of these shapes in a file with these metadata
    and settings are.
    """
    return next(
        (other for other in _variants()[kind.name] if other.claims(shapes, metadata, settings)),
        kind,
    )
