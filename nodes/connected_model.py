"""A connected model's weights one at a time, as its patches make them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..adapters.spec import AdapterError
from ..messages import message
from ..planning.quantised import is_extra
from ..planning.target_model import TargetModel
from . import host
from .files import own_maps
from .unpatched import is_quantised


class ConnectedModel:
    """A MODEL and, if there is one, a CLIP (ModelPatchers of the host) as `ModelWeights`.

    name: what errors call it. A LoRA that is patched onto the model is part of its weights.
    """

    def __init__(self, name: str, model, clip=None):
        self.name = name
        self.target_model: TargetModel = host.target_model_of(model, clip, own_maps())
        self._stored = host.stored_weights(model, clip)
        self._patched = host.patches_of(model, clip)
        self._weight = host.patched_weights_of(model, clip)
        self._shapes = {
            weight: shape
            for network in self.target_model.networks.values()
            for weight, shape in network.weights.items()
            if not is_extra(weight) and self._is_float(weight)
        }

    @property
    def title(self) -> str:
        """What model it is."""
        family = self.target_model.family
        return family.title if family else message("inspect.unknown_model")

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Native name -> shape."""
        return self._shapes

    @cached_property
    def strange(self) -> dict[str, str]:
        """What is stored in a way that only its own loader reads, with the reason."""
        return {
            name: message("lora.packed", dtype=str(self._stored(name)[0].dtype))
            for name, shape in self._shapes.items()
            if tuple(self._stored(name)[0].shape) != shape
        }

    def shape(self, parameter: str) -> tuple[int, ...]:
        """The native shape; () for what it has not."""
        return self._shapes.get(parameter, ())

    def dtypes(self, parameter: str) -> set[torch.dtype]:
        """What it is stored as."""
        return {self._stored(parameter)[0].dtype}

    def scaled(self, parameter: str) -> bool:
        """Whether its values are more than what is stored: patched, or quantised with a scale."""
        stored, convert = self._stored(parameter)
        scaled = convert is not host.as_it_is or stored.dtype.itemsize > 1
        return parameter in self._patched or (scaled and is_quantised(stored))

    def read(self, parameter: str) -> Tensor:
        """Its values in fp32 on the CPU; not to be written to."""
        return self._weight(parameter)

    def stored(self) -> Iterator[Tensor]:
        """Its tensors as they are stored."""
        for name in self._shapes:
            yield self._stored(name)[0]

    @property
    def largest(self) -> int:
        """Numbers in its largest weight."""
        return max((torch.Size(shape).numel() for shape in self._shapes.values()), default=0)

    def _is_float(self, name: str) -> bool:
        try:
            stored, _ = self._stored(name)
        except AdapterError:
            return False
        return stored.dtype.is_floating_point or is_quantised(stored)
