"""Methods that add multiples of the deltas: nothing is lost, and the result is as low in rank as
its inputs together.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ....adapters.spec import AdapterError
from ....messages import message
from .registry import COEFFICIENTS, Option, method


@method("sum", ("merge.sum", "merge.sum_text"), "", COEFFICIENTS)
def weighted_sum(inner: Tensor | None, strengths: Sequence[float]) -> list[float]:
    """The sum of all deltas at their strengths: the same as stacking the LoRAs."""
    return [1.0] * len(strengths)


@method(
    "average",
    ("merge.average", "merge.average_text"),
    "arXiv:2203.05482 (model soups)",
    COEFFICIENTS,
)
def average(inner: Tensor | None, strengths: Sequence[float]) -> list[float]:
    """The sum divided by the sum of the strengths; a LoRA that leaves a layer alone counts as no
    change there.
    """
    total = sum(strengths)
    if not total:
        raise AdapterError(
            message(
                "merge.average_of_nothing",
                strengths=", ".join(f"{strength:g}" for strength in strengths),
            )
        )
    return [1.0 / total] * len(strengths)


@method(
    "task_arithmetic", ("merge.task_arithmetic", "merge.task_arithmetic_text"),
    "arXiv:2212.04089", COEFFICIENTS,
    Option("scale", 1.0, -10.0, 10.0, "merge.option_sum_scale"),
)  # fmt: skip
def task_arithmetic(inner: Tensor | None, strengths: Sequence[float], scale: float) -> list[float]:
    """The scaled sum of all deltas; a negative strength takes what a LoRA has learned away."""
    return [scale] * len(strengths)
