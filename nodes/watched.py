"""The host's adapters and ours over a mapped file: before its bytes are used they look whether it
is still the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from comfy.weight_adapter.base import WeightAdapterBase

from ..lora.io.watch import Watch
from ..messages import message
from .patches import LocksmithAdapter


class Keys(set):
    """An adapter's keys with the watch of their file: the host copies an adapter by its keys and
    weights alone.
    """

    def __init__(self, keys: Iterable[str] = (), watch: Watch | None = None):
        super().__init__(keys)
        self.watch = watch


class Watched(WeightAdapterBase):
    """Stands before an adapter's class."""

    def calculate_weight(self, weight, *rest, **named):
        """What the adapter computes; LoraFileError where its file was cut short. Says once in the
        log where it makes NaN.
        """
        check(self)
        patched = super().calculate_weight(weight, *rest, **named)
        blame(self, patched)
        return patched


@cache
def _watched_class(made: type[WeightAdapterBase]) -> type[WeightAdapterBase]:
    """A class of adapters, the host's or ours, with the look at the file before it."""
    return type(
        f"Watched{made.__name__}",
        (Watched, made),
        {"__doc__": f"{made.__name__} over a mapped file."},
    )


def watched(layers: Sequence[dict[Any, Any]], watch: Watch | None) -> Sequence[dict[Any, Any]]:
    """The patches as they are, their adapters with an eye on the file; differences, which the host
    adds itself, have none.

    Without a file on disk (`watch` None) there is nothing to look at; the classes say that the
    adapters are this pack's all the same.
    """
    return [{target: _watched(patch, watch) for target, patch in layer.items()} for layer in layers]


def _watched(patch: Any, watch: Watch | None) -> Any:
    if not isinstance(patch, WeightAdapterBase):
        return patch
    kind: Any = type(patch)
    return _watched_class(kind)(Keys(patch.loaded_keys, watch), patch.weights)


def check(adapter: Any) -> None:
    """Look at the adapter's file, if it has one, before its bytes are used. Raises LoraFileError
    where it was cut short.
    """
    watch = getattr(getattr(adapter, "loaded_keys", None), "watch", None)
    if watch is not None:
        watch.check()


def blame(adapter: Watched, patched: torch.Tensor) -> None:
    """Say once in the log that an adapter has made NaN of a weight, if it has."""
    watch = adapter.loaded_keys.watch
    if (
        watch is not None
        and not patched.is_meta
        and watch.first_use(tuple(sorted(adapter.loaded_keys)))
        and not _seems_finite(patched)
    ):
        _blame(adapter, watch)


def _seems_finite(patched: torch.Tensor) -> bool:
    """By one row and one column: NaN in a factor of a product fills a row or a column of it."""
    ends = (patched[:1], patched[:, :1]) if patched.dim() > 1 else (patched,)
    return all(bool(end.isfinite().all()) for end in ends)


def _blame(adapter: Watched, watch: Watch) -> None:
    """Nothing is said where the file is sound, and the model's weight or the
    dtype is what is not.
    """
    weights = adapter.weights[2] if isinstance(adapter, LocksmithAdapter) else adapter.weights
    for tensor in weights:
        if isinstance(tensor, torch.Tensor) and not bool(tensor.to(torch.float32).isfinite().all()):
            first = min(adapter.loaded_keys)
            return watch.caution(message("nodes.not_finite_used", path=watch.path, key=first))
    return None
