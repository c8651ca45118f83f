"""Finds trainings that a file holds twice, as fused modules and again as their split parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..adapters.registry import named

if TYPE_CHECKING:
    from .plan import Adapter


def fused_copies(adapters: Sequence[Adapter]) -> set[int]:
    """Indices of the adapters that only repeat what split ones of the same spelling already hold.

    Seen in Anime-Z files (diffusers skips their `qkv.lora` and `out.lora`, _convert_non_diffusers_z_image_lora_to_diffusers).
    Only where a fused LoRA and all its parts stand together under one wrapper and spelling; other doubles are meant to add up.
    """
    if not any(adapter.target.parts > 1 and adapter.target.naming < 0 for adapter in adapters):
        return set()
    rows: dict[tuple, int] = {}
    for adapter in adapters:
        if named(adapter.kind).is_pair and adapter.target.naming >= 0:
            rows[_place(adapter)] = rows.get(_place(adapter), 0) + adapter.target.out
    if not rows:
        return set()
    whole = {index: adapter for index, adapter in enumerate(adapters) if named(adapter.kind).is_pair and adapter.target.naming < 0}
    copies = {index for index, adapter in whole.items() if rows.get(_place(adapter)) == adapter.target.out}
    return copies if any(adapters[index].target.parts > 1 for index in copies) else set()


def _place(adapter: Adapter) -> tuple:
    return adapter.location.wrapper, adapter.adapter_name, tuple(adapter.spellings), adapter.target.pieces[0][0]
