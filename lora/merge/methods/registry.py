"""What a method of merging is, and the registry that its decorator fills."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from ....adapters.spec import AdapterError
from ....messages import Message, joined, message

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
    text_id: str

    @property
    def text(self) -> Message:
        """What it does."""
        return message(self.text_id)


class Method(NamedTuple):
    """A way to merge. paper: where it was published, "" for what everyone does. inputs: the number
    of sources it needs, None for any.
    """

    name: str
    title_id: str
    text_id: str
    paper: str
    form: str
    run: Callable[..., Any]
    options: tuple[Option, ...] = ()
    inputs: int | None = None
    needs_inner: bool = False
    seeded: bool = False

    @property
    def title(self) -> Message:
        """What it is called."""
        return message(self.title_id)

    @property
    def text(self) -> Message:
        """What it does, in one sentence."""
        return message(self.text_id)

    def read_options(self, given: Mapping[str, float]) -> dict[str, float]:
        """All its options, those not given at their defaults. Raises AdapterError for one that it
        does not have or that is out of range.
        """
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            if name not in known:
                raise AdapterError(
                    message(
                        "merge.no_such_option",
                        method=self.name,
                        option=name,
                        choices=joined(known) if known else message("merge.no_options"),
                    )
                )
            low, high = known[name].low, known[name].high
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not math.isfinite(value)
                or not low <= value <= high
            ):
                raise AdapterError(
                    message(
                        "merge.option_range",
                        option=name,
                        method=self.name,
                        low=f"{low:g}",
                        high=f"{high:g}",
                        value=value,
                    )
                )
        return {name: given.get(name, option.default) for name, option in known.items()}


_METHODS: dict[str, Method] = {}
Run = TypeVar("Run", bound=Callable[..., Any])


def method(
    name: str, ids: tuple[str, str], paper: str, form: str, *options: Option, **details: Any
) -> Callable[[Run], Run]:
    """Register a function as a way to merge; `ids` are the messages of its title and of what it
    does.
    """

    def register(run: Run) -> Run:
        _METHODS[name] = Method(name, *ids, paper, form, run, options, **details)
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
        raise AdapterError(message("merge.no_such_method", method=name, choices=", ".join(known)))
    return known[name]
