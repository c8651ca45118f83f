"""The factors that act beside a model's layers, as a model of their own: the host makes room for
them, puts them on the device before the model, and takes them off like any other.

ComfyUI loads a model together with its additional models (`ModelPatcher.additional_models`), and
reckons with the sizes of all. Clones share these, and a copy of the model for another GPU gets a
copy of them. On a patcher with dynamic VRAM nothing is reckoned: there the host makes room where
something is allocated, and one model that is not dynamic would have it unload all others first
(`load_models_gpu`, `free_for_dynamic`).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

import comfy.model_patcher
import torch
from comfy.patcher_extension import CallbacksMP

from .beside import BesideLayer, LayerPart, Maker, is_additive, spec_of, tensors_in

KEY = "lora_locksmith"
META = torch.device("meta")

Parts = Mapping[str, tuple[LayerPart, ...]]


class LoraFactors(torch.nn.Module):
    """The steps of all layers to which adapters only add, for one device, dtype and way to run.

    What other adapters need of a layer's own weight is made in its first forward pass; here it
    counts as large as its tensors are.
    """

    def __init__(self, parts: Parts, dtype: torch.dtype):
        super().__init__()
        self.parts, self.dtype, self.compiled = parts, dtype, False
        self.steps: dict[str, tuple[Any, ...]] = {}
        self.made_for: tuple[torch.device, torch.dtype, bool] | None = None
        self.held = False  # whether the host has loaded them, and will take them off
        self.users: weakref.WeakSet[BesideLayer] = weakref.WeakSet()
        self.sizes: dict[tuple[torch.dtype, bool], int] = {}
        self.model_loaded_weight_memory = 0  # the host's name for it

    def make(self, device: torch.device) -> None:
        """Make the steps on this device, unless they are there."""
        wanted = (device, self.dtype, self.compiled)
        if self.made_for == wanted:
            return
        self.drop()
        self.steps = {
            name: self._steps(parts, device)
            for name, parts in self.parts.items()
            if is_additive(parts)
        }
        self.made_for, self.model_loaded_weight_memory = wanted, self.size()

    def drop(self) -> None:
        """Free the device: no layer keeps a step of these."""
        for beside in self.users:
            beside.forget()
        self.users.clear()
        self.steps, self.made_for, self.model_loaded_weight_memory = {}, None, 0

    def give(self, layers: Mapping[str, BesideLayer], device: torch.device) -> None:
        """Have the layers use these steps on this device."""
        self.make(device)
        for name, steps in self.steps.items():
            layers[name].take(steps, device, self.dtype)
            self.users.add(layers[name])

    def size(self) -> int:
        """Bytes on a device, known without one."""
        key = self.dtype, self.compiled
        if key not in self.sizes:
            alike = Counter(map(_look, self.parts.values()))
            one_of = {_look(parts): parts for parts in self.parts.values()}
            self.sizes[key] = sum(
                count * _bytes(self._steps(one_of[look], META)) for look, count in alike.items()
            )
        return self.sizes[key]

    def _steps(self, parts: tuple[LayerPart, ...], device: torch.device) -> tuple[Any, ...]:
        if not is_additive(parts):
            return tuple(part.adapter.weights for part in parts)
        return Maker(parts, None, device, dtype=self.dtype, compiled=self.compiled).steps()


class FactorsPatcher(comfy.model_patcher.ModelPatcher):
    """What the host loads and unloads them by: all or none, as each step needs all of them."""

    def model_size(self) -> int:
        """Bytes on the device."""
        return self.model.size()

    def load(self, device_to=None, *_: Any, **__: Any) -> None:
        """Put them on the device."""
        device = self.load_device if device_to is None else device_to
        self.model.make(device)
        self.model.held, self.model.device = True, device

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False) -> int:
        """Bytes that are on the device now and were not; those that there is no room for too."""
        before = self.loaded_size()
        self.load(device_to)
        return self.loaded_size() - before

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False) -> int:
        """Nothing by parts: the host takes all off then."""
        return 0

    def unpatch_model(self, device_to=None, unpatch_weights=True) -> None:
        """Take them off the device."""
        if unpatch_weights:
            self.model.drop()
            self.model.held, self.model.device = False, device_to or self.offload_device

    def deepclone_multigpu(self, new_load_device=None, models_cache=None):
        """The same for a copy of the model on another GPU."""
        device = self.load_device if new_load_device is None else new_load_device
        twin = _patcher_of(LoraFactors(self.model.parts, self.model.dtype), device, self)
        clone = self.clone(model_override=twin.get_clone_model_override())
        clone.load_device = device
        return clone


def _patcher_of(factors: LoraFactors, device: torch.device, like) -> FactorsPatcher:
    return FactorsPatcher(factors, load_device=device, offload_device=like.offload_device)


def count_in(patcher, parts: Parts, dtype: torch.dtype | None) -> None:
    """Have the host reckon with what hangs beside the layers of `patcher` (a new clone).

    dtype: what the layers are given; None: not known, as of text encoders, whose additional models
    the host does not load either.
    """
    if dtype is None or patcher.is_dynamic():
        patcher.remove_additional_models(KEY)
        return
    factors = _patcher_of(LoraFactors(parts, dtype), patcher.load_device, patcher)
    patcher.set_additional_models(KEY, [factors])
    patcher.remove_callbacks_with_key(CallbacksMP.ON_DETACH, KEY)
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _leave)


def factors_of(patcher, parts: Parts, dtype: torch.dtype, compiled: bool) -> LoraFactors:
    """The factors of these parts that the host loads with a patcher; its own where it loads none.

    What other nodes have decided since (another device, another dtype, torch.compile) holds.
    """
    factors = LoraFactors(parts, dtype)
    for one in patcher.get_additional_models_with_key(KEY):
        if one.model.parts is parts:
            factors, one.load_device = one.model, patcher.load_device
    factors.dtype, factors.compiled = dtype, compiled
    return factors


def drop_unheld(patcher) -> None:
    """Free what was made for a model that the host did not load."""
    for one in patcher.get_additional_models_with_key(KEY):
        if not one.model.held:
            one.model.drop()


def _leave(patcher, unpatch_all: bool) -> None:
    """They go with their model."""
    if unpatch_all:
        for one in patcher.get_additional_models_with_key(KEY):
            one.unpatch_model(one.offload_device)


def _look(parts: tuple[LayerPart, ...]) -> tuple[Any, ...]:
    """What the sizes of a layer's steps follow from."""
    return tuple(
        (
            type(part.adapter),
            spec_of(part.adapter),
            part.rows,
            part.shape,
            tuple(tensor.shape for tensor in tensors_in(part.adapter.weights)),
        )
        for part in parts
    )


def _bytes(values: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_in(values))
