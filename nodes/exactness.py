"""Says of adapters that are computed from the base model's own weights where the model at hand has only roundings of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import comfy.utils
import torch

from ..adapters.registry import named
from ..key_maps.plan import Adapter, Plan

EXACT = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})


def doubts_of_base(plan: Plan, model, clip) -> Iterator[str]:
    """What cannot come out exactly, because it is computed from weights of which the model holds roundings."""
    rounded: Counter[str] = Counter()
    for adapter in plan.adapters:
        if named(adapter.kind).rebuilds_base and not _is_exact(_weight_of(adapter, model, clip)):
            rounded[named(adapter.kind).title] += 1
    for title, count in rounded.items():
        yield (
            f"{title} takes off a part of the base model, which is computed from the model at hand: {count} of its modules are quantised "
            "there, and come out as far off as that rounding. Load the LoRA on the unquantised model, or convert it there."
        )


def _weight_of(adapter: Adapter, model, clip) -> torch.Tensor | None:
    name = adapter.target.pieces[0][0]
    for patcher in (model, getattr(clip, "patcher", None)):
        try:
            return patcher and comfy.utils.get_attr(patcher.model, name)
        except AttributeError:
            continue
    return None


def _is_exact(weight: torch.Tensor | None) -> bool:
    return weight is None or (type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.dtype in EXACT)
