"""Modules that need torch, imported when something of them is first used: reading a file's header
never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["helpers", "products", "rotations", "torch"]


class Lazy:
    """Stands for a module: what is asked of it is asked of the module, which is imported then."""

    def __init__(self, name: str, package: str | None = None):
        self.__dict__["_place"] = name, package

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(*self._place), name)
        # The next look-up finds it here.
        self.__dict__[name] = value
        return value


if TYPE_CHECKING:
    import torch

    from . import products, rotations
    from . import tensors as helpers
else:
    torch = Lazy("torch")
    helpers = Lazy(".tensors", __package__)
    products = Lazy(".products", __package__)
    rotations = Lazy(".rotations", __package__)
