"""Finds trainings that a file holds twice, as fused modules and again as their split parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..adapters.registry import named

if TYPE_CHECKING:
    from .plan import Adapter

# Whether the first adapter changes its weight as the others do together, as far as the numbers'
# dtype can tell.
Same = Callable[["Adapter", Sequence["Adapter"]], bool]


def fused_twins(adapters: Sequence[Adapter], by_header: bool) -> Mapping[int, tuple[int, ...]]:
    """Index of each adapter of a whole weight -> indices of the split ones that cover the same
    weight; {} where nothing is fused.

    Seen in Anime-Z files (diffusers skips their `qkv.lora` and `out.lora`,
    _convert_non_diffusers_z_image_lora_to_diffusers).
    by_header: there are no numbers to compare. Then only those of one prefix and spelling, which
    one tool wrote, are taken for copies.
    """
    if not any(adapter.target.parts > 1 and adapter.target.naming < 0 for adapter in adapters):
        return {}
    parts: dict[tuple[str, ...], list[int]] = {}
    for index, adapter in enumerate(adapters):
        if named(adapter.kind).is_pair and adapter.target.naming >= 0:
            for weight, _, _ in adapter.target.slices:
                parts.setdefault(_place(adapter, weight, by_header), []).append(index)
    whole = {
        index: adapter
        for index, adapter in enumerate(adapters)
        if named(adapter.kind).is_pair and adapter.target.naming < 0
    }
    twins = {
        index: tuple(parts.get(_place(adapter, adapter.target.slices[0][0], by_header), ()))
        for index, adapter in whole.items()
    }
    found = {
        index: split
        for index, split in twins.items()
        if split and _rows(adapters, split) == adapters[index].target.out
    }
    return found if any(adapters[index].target.parts > 1 for index in found) else {}


def _place(adapter: Adapter, weight: str, by_header: bool) -> tuple[str, ...]:
    return (
        weight,
        adapter.adapter_name,
        *((adapter.location.prefix, *adapter.spellings) if by_header else ()),
    )


def _rows(adapters: Sequence[Adapter], split: Sequence[int]) -> int:
    return sum(adapters[index].target.out for index in split)
