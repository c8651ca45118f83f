"""Functions of the host with one of ours around them, put on and taken off while it runs, beside
other packs that do the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

# Called as (the function below, its arguments by place, those by name).
Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class _Layer:
    """One function of ours over one function below it; not active, it only passes on."""

    def __init__(self, below: Callable[..., Any], around: Around):
        self.below, self.active = below, True

        @functools.wraps(below)
        def function(*by_place: Any, **by_name: Any) -> Any:
            if self.active:
                return around(below, by_place, by_name)
            return below(*by_place, **by_name)

        self.function = function


class Wrapped:
    """A module's function that can have one of ours around it.

    Whoever keeps a reference to the function from before keeps that one; whoever looks it up in its
    module gets ours. At most one layer of ours is active, however other packs wrap meanwhile.
    """

    def __init__(self, module: ModuleType, name: str, around: Around):
        self.module, self.name, self.around = module, name, around
        self._layers: list[_Layer] = []

    @property
    def is_on(self) -> bool:
        """Whether ours acts."""
        return any(layer.active for layer in self._layers)

    def on(self) -> None:
        """Stand around what is in the module now; nothing where ours acts already."""
        if self.is_on:
            return
        self._uncover()
        current = getattr(self.module, self.name)
        layer = next((layer for layer in self._layers if layer.below is current), None)
        if layer is None:
            layer = _Layer(current, self.around)
            self._layers.append(layer)
        layer.active = True
        setattr(self.module, self.name, layer.function)

    def off(self) -> None:
        """Leave the module as it was; where another pack stands above ours, ours passes on only."""
        for layer in self._layers:
            layer.active = False
        self._uncover()

    def _uncover(self) -> None:
        """Take off those of ours that are on top. One may have come there when another pack left,
        or because that took it for the host's own and put it back.
        """
        below = {layer.function: layer.below for layer in self._layers}
        while (current := getattr(self.module, self.name)) in below:
            setattr(self.module, self.name, below[current])
