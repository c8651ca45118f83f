"""What a method of merging is, and the registry that its decorator fills."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from ...math.spec import AdapterError

# What a method works on, and gives back. In all of them a strength is already in the delta it
# belongs to. (inner [n, n], strengths, **options) -> n factors: the result is the sum of factor *
# delta, as low in rank as the inputs.
# inner: fp64 Frobenius inner products; of a source that does not touch the weight zeros. strengths:
# of all n sources.
COEFFICIENTS = "coefficients"
# (deltas, **options) -> deltas: Factors of those that touch the weight, to be added up.
FACTORS = "factors"
# (deltas, count, generator, **options) -> delta: fp32 [out, columns] of those that touch the
# weight, out of `count` sources. They may be changed in place.
ENTRIES = "entries"


class Option(NamedTuple):
    """A number a method can be given."""

    name: str
    default: float
    low: float
    high: float
    text: str


class Method(NamedTuple):
    """A way to merge. paper: where it was published. inputs: the number of sources it needs, None
    for any.
    """

    name: str
    title: str
    paper: str
    text: str
    form: str
    run: Callable[..., Any]
    options: tuple[Option, ...] = ()
    inputs: int | None = None
    needs_inner: bool = False
    seeded: bool = False

    def read_options(self, given: Mapping[str, float]) -> dict[str, float]:
        """All its options, those not given at their defaults. Raises AdapterError for one that it
        does not have or that is out of range.
        """
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            if name not in known:
                raise AdapterError(
                    f"the method {self.name} has no option {name!r}; it has"
                    f" {', '.join(known) or 'none'}"
                )
            low, high = known[name].low, known[name].high
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not math.isfinite(value)
                or not low <= value <= high
            ):
                raise AdapterError(
                    f"the option {name} of {self.name} is a number from {low:g} to {high:g}, not"
                    f" {value!r}"
                )
        return {name: given.get(name, option.default) for name, option in known.items()}


_METHODS: dict[str, Method] = {}


def method(name: str, title: str, paper: str, form: str, *options: Option, **details: Any):
    """Register a function as a way to merge; the first sentence of its docstring is what users are
    told.
    """

    def register(run):
        text = " ".join(run.__doc__.split("\n\n")[0].split())
        _METHODS[name] = Method(name, title, paper, text, form, run, options, **details)
        return run

    return register


@lru_cache(maxsize=1)
def methods() -> dict[str, Method]:
    """All methods by name; every file of this folder is one or several."""
    package = __package__
    for module in sorted(
        found.name for found in pkgutil.iter_modules(importlib.import_module(package).__path__)
    ):
        importlib.import_module(f"{package}.{module}")
    return dict(
        sorted(_METHODS.items(), key=lambda item: (item[0] != "sum", item[1].form, item[0]))
    )


def find(name: str) -> Method:
    """The method of this name. Raises AdapterError, naming all there are."""
    known = methods()
    if name not in known:
        raise AdapterError(f"there is no method {name!r}; the methods are {', '.join(known)}")
    return known[name]
