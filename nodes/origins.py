"""From which file tensors were read that another loader hands on: the host's loaders pass tensors
alone, and what else a file says of its adapters stands in its header or beside it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from ..files.header import ENDINGS, LoraFileError, adapter_config_beside, read_header
from ..report.listing import Stamp, stamp_of


class Origin(NamedTuple):
    """A file as it was when tensors were read from it."""

    path: str
    stamp: Stamp | None

    @classmethod
    def at(cls, path: Any) -> Origin | None:
        """The file at `path` as it is now; None for what is no path."""
        if not isinstance(path, str | os.PathLike):
            return None
        path = os.path.realpath(path)
        return cls(path, stamp_of(path))

    def told(self) -> tuple[Mapping[str, str], Mapping[str, Any] | None]:
        """(the header's metadata, the content of PEFT's settings beside the file); nothing where
        the file is no longer the same one.
        """
        if self.stamp is None or stamp_of(self.path) != self.stamp:
            return {}, None
        beside = adapter_config_beside(self.path)
        if os.path.splitext(self.path)[1].lower() not in ENDINGS:
            return {}, beside
        try:
            return read_header(self.path).metadata, beside
        except LoraFileError:
            return {}, beside


class Origins:
    """Remembers tensors as long as they live, by identity; a tensor is never changed or kept."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], Any]] = {}

    def remember(self, tensors: Iterable[Any], origin: Any) -> None:
        """Note where tensors come from; what is none is passed over."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                self._known[id(tensor)] = (
                    weakref.ref(tensor, self._forgetting(id(tensor))),
                    origin,
                )

    def of(self, tensors: Iterable[Any]) -> Any:
        """Where these tensors come from; None where that is not known, or not the same of all that
        are known.
        """
        found = None
        for tensor in tensors:
            reference, origin = self._known.get(id(tensor), (None, None))
            if reference is None or reference() is not tensor:
                continue
            if found is not None and origin != found:
                return None
            found = origin
        return found

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def _forgetting(self, number: int) -> Any:
        known = self._known

        def forget(reference: Any) -> None:
            # Another tensor may have the number by now.
            if known.get(number, (None,))[0] is reference:
                del known[number]

        return forget
