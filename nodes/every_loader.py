"""Fix LoRAs in every loader: while it is on, what any node hands to the host's own functions for
LoRAs is planned here first.

What the stock loader places rightly stays its own. What it would leave out, compute otherwise than
trained, or spoil the result with, is ours. Nothing of the host is touched before `turn(True)`, and
after `turn(False)` its functions are what they were.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import torch

from ..files.gc_pause import without_collection
from ..lora.io.mapped import header_of
from ..lora.math.faults import first_line
from ..messages import joined, message
from . import host
from .files import own_maps
from .origins import Origin, Origins
from .stock_first import (
    Division,
    anything,
    divide,
    layers_of,
    patches_of,
    plain_pairs,
)
from .together import settle
from .wrapped import Wrapped

MAX_MAPS = 2  # key maps that a thread remembers: one is asked for, then used
LOAD = ("lora", "to_load", "log_missing")
FOR_MODELS = ("model", "clip", "lora", "strength_model", "strength_clip", "lora_metadata")


@dataclass
class _Call:
    """A call that says which models a LoRA is for, while it runs.

    beside: its adapters are to act beside the layers. weights: where ours were placed. layers:
    patches that are still to be hung beside layers.
    """

    given: Mapping[str, Any]
    beside: bool
    weights: set[str] = field(default_factory=set)
    layers: list[dict[Any, Any]] = field(default_factory=list)

    @property
    def model(self) -> Any:
        return self.given.get("model")

    @property
    def clip(self) -> Any:
        return self.given.get("clip")


@dataclass
class _KeyMap:
    """A key map of the host's, and what models it was made of."""

    names: dict[str, Any]
    models: dict[str, weakref.ref[Any]] = field(default_factory=dict)

    def model(self, part: str) -> Any:
        """Its diffusion model ("unet") or text encoders ("clip")."""
        return self.models[part]() if part in self.models else None


class _Thread(threading.local):
    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.maps: list[_KeyMap] = []
        self.passes = False  # whether all is left to the host


class _Answer(NamedTuple):
    """What becomes of one LoRA: the rest goes to the host, and ours is put to what it makes of
    that.
    """

    rest: dict[str, Any]
    division: Division
    patches: dict[Any, Any]
    layers: list[dict[Any, Any]]
    name: str
    first: Any  # a tensor of it


_here = _Thread()
_origins, _told = Origins(), Origins()
_turning = threading.Lock()


def turn(on: bool) -> None:
    """Let every loader load as this pack's does, or leave all to the host again. Any number of
    times, from any thread.
    """
    with _turning:
        if on == is_on():
            return
        for function in _functions:
            function.on() if on else function.off()
        _told.clear()


def is_on() -> bool:
    """Whether it is on in this process."""
    return any(function.is_on for function in _functions)


def _named(names: tuple[str, ...], by_place: tuple[Any, ...], by_name: Any) -> dict[str, Any]:
    return {**dict(zip(names, by_place, strict=False)), **by_name}


def _for_models(beside: bool) -> Callable[..., Any]:
    """Around the host's functions that load a LoRA onto a model and a CLIP."""

    def around(below: Any, by_place: tuple[Any, ...], by_name: dict[str, Any]) -> Any:
        call = _Call(_named(FOR_MODELS, by_place, by_name), beside)
        try:
            with _known(call):
                made = below(*by_place, **by_name)
            return _finished(call, made)
        except Exception as error:
            if not call.weights:
                raise
            _failed(_name_of(call.given.get("lora")), error)
        with _left_to_the_host():
            return below(*by_place, **by_name)

    return around


def _finished(call: _Call, made: Any) -> Any:
    """What the host made, with adapters on one weight in their order, and those that act beside
    layers hung there.
    """
    if call.layers:
        model, clip = made
        strengths = call.given["strength_model"], call.given["strength_clip"]
        whole = ((1.0, call.layers),)
        hung = (
            host.apply_layers(part, whole, strength, {}, left=Counter(), only=None)[0]
            for part, strength in zip((model, clip), strengths, strict=True)
        )
        return tuple(hung)
    if call.weights:
        for part in made:
            if part is not None and part is not call.model and part is not call.clip:
                patches = getattr(part, "patcher", part).patches
                settle(patches, sorted(call.weights & patches.keys()))
    return made


@contextmanager
def _known(call: _Call) -> Iterator[None]:
    """Has `_load` know of the call."""
    _here.calls.append(call)
    try:
        yield
    finally:
        _here.calls.pop()


@contextmanager
def _left_to_the_host() -> Iterator[None]:
    before, _here.passes = _here.passes, True
    try:
        yield
    finally:
        _here.passes = before


def _load(below: Any, by_place: tuple[Any, ...], by_name: dict[str, Any]) -> Any:
    """Around comfy.lora.load_lora, which every loader of the host comes to."""
    given = _named(LOAD, by_place, by_name)
    call = _here.calls[-1] if _here.calls else None
    answer = None
    if not _here.passes:
        try:
            with _left_to_the_host(), without_collection():
                answer = _answer(given["lora"], given["to_load"], call)
        except Exception as error:
            _failed(_name_of(given.get("lora")), error)
    if answer is None:
        return below(*by_place, **by_name)
    try:
        made = below(answer.rest, given["to_load"], log_missing=given.get("log_missing", True))
    except Exception:
        return below(*by_place, **by_name)
    _tell(answer)
    if call is not None:
        call.weights |= answer.division.weights
        call.layers += answer.layers
    return made | answer.patches


def _answer(lora: Any, to_load: Any, call: _Call | None) -> _Answer | None:
    """What becomes of a LoRA; None where the stock loader does all of it rightly, or it is not
    known for which model it is.
    """
    models = _models_of(to_load, call)
    if models is None:
        return None
    tensors = _in_its_own_names(lora, call)
    if not tensors:
        return None
    origin = _origins.of(tensors.values())
    file = _file(tensors, origin, call)
    beside = call is not None and call.beside
    plan, _ = host.planned(file, *models, own_maps())
    try:
        stock = host.stock_patches(lora, to_load)
    except Exception:
        stock = None
    division = divide(plan, tensors, stock, plain_pairs if beside else anything)
    if not division.keys:
        return None
    taken = {id(tensors[key]) for key in division.keys}
    return _Answer(
        {key: tensor for key, tensor in lora.items() if id(tensor) not in taken},
        division,
        {} if beside else patches_of(division, tensors),
        layers_of(division, tensors) if beside else [],
        os.path.basename(origin.path) if origin else message("nodes.every_a_lora"),
        next(iter(tensors.values())),
    )


def _in_its_own_names(lora: Mapping[str, Any], call: _Call | None) -> dict[str, torch.Tensor]:
    """The tensors under their names before the host's conversion, where that is known."""
    before = call.given.get("lora") if call is not None else None
    original = before if isinstance(before, Mapping) else {}
    given = {id(tensor) for tensor in lora.values()}
    same = original and all(id(tensor) in given for tensor in original.values())
    return {
        key: tensor
        for key, tensor in (original if same else lora).items()
        if isinstance(key, str) and isinstance(tensor, torch.Tensor)
    }


def _file(
    tensors: dict[str, torch.Tensor], origin: Origin | None, call: _Call | None
) -> host.LoraFile:
    metadata, beside = origin.told() if origin is not None else ({}, None)
    if not metadata and call is not None and call.given.get("lora_metadata"):
        told = call.given["lora_metadata"]
        metadata = {key: text for key, text in told.items() if isinstance(text, str)}
    return host.LoraFile(tensors, header_of(tensors)._replace(metadata=metadata), beside)


def _models_of(to_load: Any, call: _Call | None) -> tuple[Any, Any] | None:
    """(the ModelPatcher, the CLIP) that a key map is for, or what can stand for them; None where
    that is not known.
    """
    known = next((each for each in reversed(_here.maps) if each.names is to_load), None)
    if call is not None and (known is None or _is_for(known, call)):
        return call.model, call.clip
    if known is None:
        return None
    unet, clip = known.model("unet"), known.model("clip")
    if unet is None and clip is None:
        return None
    return (
        None if unet is None else _patcher_of(unet),
        None if clip is None else SimpleNamespace(cond_stage_model=clip, patcher=_patcher_of(clip)),
    )


def _is_for(known: _KeyMap, call: _Call) -> bool:
    model = None if call.model is None else call.model.model
    clip = None if call.clip is None else call.clip.cond_stage_model
    return known.model("unet") is model and known.model("clip") is clip


def _patcher_of(model: Any) -> Any:
    """A ModelPatcher of a model, for reading; of one that is not loaded none has changed a
    weight.
    """
    for loaded in comfy.model_management.current_loaded_models:
        patcher = loaded.model
        if patcher is not None and patcher.model is model:
            return patcher
    return SimpleNamespace(model=model, backup={}, hook_backup={})


def _key_map_of(part: str) -> Callable[..., Any]:
    """Around the host's functions that make key maps: notes of which model each is."""

    def around(below: Any, by_place: tuple[Any, ...], by_name: dict[str, Any]) -> Any:
        names = below(*by_place, **by_name)
        model = by_place[0] if by_place else by_name.get("model")
        with suppress(TypeError):  # of what no weak reference can be made
            reference, maps = weakref.ref(model), _here.maps
            if not maps or maps[-1].names is not names:
                maps.append(_KeyMap(names))
                del maps[:-MAX_MAPS]
            maps[-1].models[part] = reference
        return names

    return around


def _read(below: Any, by_place: tuple[Any, ...], by_name: dict[str, Any]) -> Any:
    """Around comfy.utils.load_torch_file: notes from which file tensors come."""
    origin = None
    with suppress(Exception):
        origin = Origin.at(by_place[0] if by_place else by_name.get("ckpt"))
    read = below(*by_place, **by_name)
    tensors = read[0] if isinstance(read, tuple) else read
    if origin is not None and isinstance(tensors, Mapping):
        _origins.remember(tensors.values(), origin)
    return read


def _tell(answer: _Answer) -> None:
    """One line in the log for each file."""
    division = answer.division
    parts = [
        message(id, count=count)
        for id, count in (
            ("nodes.every_left_out", division.left_out),
            ("nodes.every_computed", division.computed),
            ("nodes.every_refused", division.refused),
        )
        if count
    ]
    line = message("nodes.log_every_fixed", file=answer.name, parts=joined(parts, "semicolon"))
    told = _told.of([answer.first]) or frozenset()
    if line not in told:
        _told.remember([answer.first], told | {line})
        logging.getLogger("lora_locksmith").info(line)


def _name_of(lora: Any) -> str:
    origin = _origins.of(lora.values()) if isinstance(lora, Mapping) else None
    return os.path.basename(origin.path) if origin else message("nodes.every_a_lora")


def _failed(name: str, error: Exception) -> None:
    fault = first_line(error) or type(error).__name__
    logging.getLogger("lora_locksmith").warning(
        message("nodes.log_every_failed", file=name, fault=fault)
    )


_functions = [
    Wrapped(module, name, around)
    for module, name, around in (
        (comfy.lora, "model_lora_keys_unet", _key_map_of("unet")),
        (comfy.lora, "model_lora_keys_clip", _key_map_of("clip")),
        (comfy.utils, "load_torch_file", _read),
        (comfy.lora, "load_lora", _load),
        (comfy.sd, "load_lora_for_models", _for_models(beside=False)),
        (comfy.sd, "load_bypass_lora_for_models", _for_models(beside=True)),
    )
    if hasattr(module, name)
]
