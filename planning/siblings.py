"""Finds tensors that stand beside an adapter's own and that nothing known has there: they mean
another formula than the rest says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def siblings(leaves: Iterable[str], odd: Iterable[str]) -> dict[str, str]:
    """Module -> the first odd key that stands in it.

    leaves: modules with a pair of factors, as the file names them; such a layer has no layers of
    its own. odd: the keys that no adapter uses. AdaLoRA's `lora_E` and a router beside numbered
    experts are such.
    """
    known = frozenset(leaves)
    odd_of: dict[str, str] = {}
    for key in odd if known else ():
        for module in _around(key):
            if module in known:
                odd_of.setdefault(module, key)
                break
    return odd_of


def _around(key: str) -> Iterator[str]:
    """What a key may stand in, the nearest first."""
    end = key.rfind(".")
    while end > 0:
        yield key[:end]
        end = key.rfind(".", 0, end)
