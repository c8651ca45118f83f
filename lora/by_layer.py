"""What a comparison of weights says of each layer and of each block of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..planning.target_model import TargetModel
from ..report.compare import FileComparison
from ..report.coverage import Layer, layers
from ..report.inspection import Inspection
from .io.stream import TensorStream
from .statistics import (
    Comparison,
    Overlap,
    Progress,
    compare_weights,
    cosine_of,
    energy_of,
    measure_weights,
)

__all__ = ["ByLayer", "Change", "by_layer", "compared_weights", "measured_weights"]


class Change(NamedTuple):
    """How much A and B change a layer, or with `kind` "" a whole block: squared Frobenius norms,
    None where they are not known or not finite; and the cosine of the angle between both changes,
    None where one of them changes nothing. A block is the sum over what is finite in it, as the
    whole is. What is in no block has `blocks` "" and `number` 0.
    """

    component: str
    blocks: str
    number: int
    kind: str
    energy_a: float | None
    energy_b: float | None
    cosine: float | None


class ByLayer(NamedTuple):
    """The changed layers and the blocks with such, in the model's order."""

    layers: tuple[Change, ...]
    blocks: tuple[Change, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        blocks = [change._asdict() for change in self.blocks]
        for block in blocks:
            del block["kind"]
        return {"layers": [change._asdict() for change in self.layers], "blocks": blocks}


Place = tuple[str, Layer]  # a network's name, and where in it


def by_layer(comparison: Comparison, models: Iterable[TargetModel]) -> ByLayer:
    """models: those that the files are planned for. A bias counts to the layer it is of."""
    places = _places(models)
    found: dict[Place, list[Overlap]] = {place: [] for place in places.values()}
    for overlap in comparison.overlaps:
        place = places.get(overlap.weight, ("", Layer("", 0, overlap.weight)))
        found.setdefault(place, []).append(overlap)
    blocks: dict[Place, list[Overlap]] = {}
    for (network, layer), overlaps in found.items():
        blocks.setdefault((network, layer._replace(kind="")), []).extend(overlaps)
    return ByLayer(_changes(found.items(), _change), _changes(blocks.items(), _block))


def _places(models: Iterable[TargetModel]) -> dict[str, Place]:
    """Where each weight of the models is, and the bias beside it."""
    places: dict[str, Place] = {}
    for model in models:
        for name, network in model.networks.items():
            for weight, layer in layers(network).items():
                places.setdefault(weight, (name, layer))
                if bias := network.bias_of(weight):
                    places.setdefault(bias, (name, layer))
    return places


def _changes(
    found: Iterable[tuple[Place, Sequence[Overlap]]],
    told: Callable[[Place, Sequence[Overlap]], Change],
) -> tuple[Change, ...]:
    return tuple(told(place, overlaps) for place, overlaps in found if overlaps)


def _change(place: Place, overlaps: Sequence[Overlap]) -> Change:
    network, layer = place
    energy_a = math.fsum(overlap.norm_a * overlap.norm_a for overlap in overlaps)
    energy_b = math.fsum(overlap.norm_b * overlap.norm_b for overlap in overlaps)
    inner = math.fsum(
        overlap.cosine * overlap.norm_a * overlap.norm_b
        for overlap in overlaps
        if overlap.cosine is not None
    )
    cosine = cosine_of(inner, math.sqrt(energy_a), math.sqrt(energy_b))
    return Change(network, *layer, _finite(energy_a), _finite(energy_b), cosine)


def _block(place: Place, overlaps: Sequence[Overlap]) -> Change:
    """The sums over what is finite, so that one broken layer does not hide all others."""
    change = _change(place, [overlap for overlap in overlaps if overlap.is_finite] or overlaps)
    return change._replace(
        energy_a=_finite(energy_of(overlap.norm_a for overlap in overlaps)),
        energy_b=_finite(energy_of(overlap.norm_b for overlap in overlaps)),
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def compared_weights(files: FileComparison, *, progress: Progress | None = None) -> dict[str, Any]:
    """The weights of both files side by side, as plain JSON. Raises LoraFileError."""
    first, second = files.first, files.second
    with (
        TensorStream(first.path, first.header) as tensors_a,
        TensorStream(second.path, second.header) as tensors_b,
    ):
        comparison = compare_weights(
            first.plan, tensors_a, second.plan, tensors_b, progress=progress
        )
        tensors_a.check()
        tensors_b.check()
    models = (first.plan.target_model, second.plan.target_model)
    return comparison.as_dict() | by_layer(comparison, models).as_dict()


def measured_weights(file: Inspection, *, progress: Progress | None = None) -> dict[str, Any]:
    """The same of one file, beside nothing. Raises LoraFileError."""
    with TensorStream(file.path, file.header) as tensors:
        comparison = measure_weights(file.plan, tensors, progress=progress)
        tensors.check()
    return comparison.as_dict() | by_layer(comparison, (file.plan.target_model,)).as_dict()
