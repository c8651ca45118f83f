"""The bypass way to load: adapters act beside a layer's forward pass, and its weight stays as it
is, quantised or offloaded.

What our nodes hang on a model is one injection: `beside.py` fuses what several adapters do to a
layer. This file sorts a plan's patches into those that can act beside a layer and those that must
change its weight, and goes on and off with the host.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from comfy.patcher_extension import CallbacksMP, PatcherInjection
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

from ..adapters.kind import ADDED, DERIVED, NORMED, TURNED
from ..adapters.registry import decomposition_of, named
from ..adapters.rows import Rows
from ..messages import message
from .beside import (
    CONVOLUTIONS,
    BesideLayer,
    LayerPart,
    guard_helpers,
    guard_readers,
    kind_of_host,
    spec_of,
    take_off,
)
from .factors import KEY, count_in, drop_unheld, factors_of
from .readers import helpers_of, layers_read

if TYPE_CHECKING:
    from .beside import Layer

MAX_NAMED = 5  # layers in a sentence
# Of each model the layers beside which something hung in its last whole run and that did not run.
SILENT: weakref.WeakKeyDictionary[torch.nn.Module, frozenset[str]] = weakref.WeakKeyDictionary()


def add_bypass_hooks(
    patcher,
    layers: Sequence[dict[Any, Any]],
    strength: float,
    shape_of: Callable[[Tensor], tuple[int, ...]],
    only: Container[str] | None = None,
) -> tuple[list[dict[Any, Any]], Counter[str]]:
    """Hang on `patcher` (a new clone) what of the patches can act in the forward pass.

    only: names of the weights beside whose layers something may hang; None: all. A weight that the
    model reads without calling its layer is none of them. Returns (the layers of patches that are
    left for the weights, what these are by kind). Biases are left without a word.
    """
    read = layers_read(patcher.model) if only is None or only else frozenset()
    parts: dict[str, list[LayerPart]] = {}
    left: list[dict[Any, Any]] = []
    reasons: Counter[str] = Counter()
    for layer in layers:
        rest = {}
        for target, patch in layer.items():
            name, rows, swap = (
                (target, None, None) if isinstance(target, str) else _taken_apart(target)
            )
            module, path = owner_of(patcher.model, name), name.removesuffix(".weight")
            if is_layer(module) and path not in read and (only is None or name in only):
                part = _part(patch, shape_of(module.weight), rows, swap, strength)
                if part is not None:
                    parts.setdefault(path, []).append(part)
                    continue
            rest[target] = patch
            if module is not None and (only is None or name in only):
                kind = _describe(patch, module)
                reasons[message("nodes.kind_read", kind=kind) if path in read else kind] += 1
        if rest:
            left.append(rest)
    if parts:
        hung = Hung.on(patcher).with_more(parts)
        patcher.set_injections(KEY, [PatcherInjection(inject=hung.inject, eject=hung.eject)])
        # A clone takes over its original's word that it is injected; what it now carries is not.
        patcher.is_injected = False
        patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
        patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, hung.tell)
        count_in(patcher, hung.parts, _compute_dtype(patcher.model))
    return left, reasons


def _taken_apart(target: tuple) -> tuple[str, Rows | None, Any]:
    name, offset, *swap = target
    return name, offset and Rows(*offset[1:]), swap[0] if swap else None


def owner_of(model: torch.nn.Module, name: str) -> torch.nn.Module | None:
    """The module of this model that a weight belongs to; None for a bias, and for another model's
    weight.
    """
    if not name.endswith(".weight"):
        return None
    try:
        return model.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        return None


def is_layer(module: torch.nn.Module | None) -> TypeGuard[Layer]:
    """Whether it is a linear layer, of whatever class, or a convolution that does not work in
    groups.
    """
    if not isinstance(getattr(module, "weight", None), Tensor):
        return False
    if isinstance(module, CONVOLUTIONS):
        return module.groups == 1
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _part(
    patch: Any, shape: tuple[int, ...], rows: Rows | None, swap: Any, strength: float
) -> LayerPart | None:
    """The patch as a part of the forward pass; None where it cannot be one."""
    shape = (rows.length if rows else shape[0], *shape[1:])
    way = _way(patch)
    scaling = _scaling_outputs(patch, shape) if way == DERIVED else None
    if scaling is not None:
        patch, way = scaling, TURNED
    return LayerPart(patch, way, rows, shape, swap, strength) if way else None


def _way(patch: Any) -> str | None:
    spec = spec_of(patch)
    if spec is None:
        # The host's own adapters that we make add a delta; one that makes a weight larger cannot do
        # so beside it.
        return ADDED if kind_of_host(patch) and patch.calculate_shape("") is None else None
    roles, tensors = patch.weights[1:]
    kind, decomposition = named(spec.kind), decomposition_of(roles)
    if spec.option("pad_to") or spec.option("columns") or not kind.bypass:
        return None
    if decomposition is None:
        return kind.bypass
    by_role = dict(zip(roles, tensors, strict=True))
    per_output = all(
        decomposition.per_output(role, by_role[role].shape)
        for role in decomposition.roles
        if role in by_role
    )
    return NORMED if per_output else DERIVED


def _scaling_outputs(patch: WeightAdapterBase, shape: tuple[int, ...]) -> WeightAdapterBase | None:
    """An adapter that on a weight of this shape acts on the outputs alone, made to say so; None for
    any other.
    """
    spec, roles, tensors = patch.weights
    told = named(spec.kind).on_outputs(spec, dict(zip(roles, tensors, strict=True)), shape)
    return type(patch)(patch.loaded_keys, (told, roles, tensors)) if told else None


def _describe(patch: Any, module: torch.nn.Module) -> str:
    if not isinstance(patch, WeightAdapterBase):
        return "diff"
    spec = spec_of(patch)
    kind = spec.kind if spec else patch.name
    return (
        kind
        if is_layer(module)
        else message("nodes.kind_on_layer", kind=kind, layer=type(module).__name__)
    )


class Hung:
    """What all our nodes have hung beside a model's layers, by layer; put on a model and taken off
    as the host says, any number of times.

    It is one injection under one key, so that what several nodes add to a layer is fused.
    """

    def __init__(self, parts: dict[str, tuple[LayerPart, ...]]):
        self.parts, self.told = parts, False
        # Layers that ran since the last `tell`: the host takes us off and on again within a run.
        self.ran: set[str] = set()
        self.layers: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, BesideLayer]] = (
            weakref.WeakKeyDictionary()
        )

    @classmethod
    def on(cls, patcher) -> Hung:
        """What hangs on a patcher already."""
        for injection in patcher.injections.get(KEY, ()):
            if isinstance(getattr(injection.inject, "__self__", None), cls):
                return injection.inject.__self__
        return cls({})

    def with_more(self, parts: dict[str, list[LayerPart]]) -> Hung:
        """What hangs, with more parts behind those of each layer."""
        return Hung(
            {
                name: (*self.parts.get(name, ()), *parts.get(name, ()))
                for name in {**self.parts, **parts}
            }
        )

    def inject(self, patcher) -> None:
        """Stand in the forward of each layer of the patcher's model, once; factors are on the
        device before the first step.
        """
        if patcher.model in self.layers:
            return
        dtype, compiled = _compute_dtype(patcher.model), _is_compiled(patcher)
        factors = None if dtype is None else factors_of(patcher, self.parts, dtype, compiled)
        if factors is not None:  # before anything hangs, as it reads the file
            factors.make(patcher.load_device)
        self.layers[patcher.model] = made = {}
        for name, parts in self.parts.items():
            layer = patcher.model.get_submodule(name)
            made[name] = BesideLayer(layer, parts, compiled)
            layer.forward = made[name].forward
        if factors is not None:
            factors.give(made, patcher.load_device)
        guard_readers()
        guard_helpers(helpers_of(patcher.model))

    def tell(self, patcher) -> None:
        """After a run, say once in the log beside which layers nothing has come to act, though it
        has beside others; `did_not_run` then knows it too.

        There are honest reasons: a part of the model that this run has no use for, or blocks that
        another node skips. A layer whose weight something reads without calling it, in a way that
        `readers.py` does not see, is found so too. Of a run that was stopped nothing is said: what
        comes late in the model had no turn. Nor of a compiled one, where layers do not tell.
        """
        made = self.layers.get(patcher.model, {})
        self._note(made)
        ran, self.ran = self.ran, set()
        stopped = sys.exc_info()[1] is not None  # the host cleans up as the error passes by
        if not ran or stopped or any(beside.compiled for beside in made.values()):
            return
        silent = frozenset(self.parts) - ran
        news = silent - SILENT.get(patcher.model, frozenset())
        SILENT[patcher.model] = silent
        if news and not self.told:
            self.told = True
            logging.info(
                message(
                    "nodes.log_layers_did_not_run",
                    count=len(silent),
                    total=len(self.parts),
                    names=_first_of(self.parts, silent),
                )
            )

    def eject(self, patcher) -> None:
        """Leave each layer as it was; where something else stands above ours, ours does nothing
        from now on.
        """
        made = self.layers.pop(patcher.model, {})
        self._note(made)
        for beside in made.values():
            take_off(beside)
        drop_unheld(patcher)

    def _note(self, made: dict[str, BesideLayer]) -> None:
        for name, beside in made.items():
            if beside.fired:
                self.ran.add(name)
                beside.fired = False


def did_not_run(patcher, layers: Container[str]) -> str:
    """A sentence on those of these layers that something hangs beside and that did not run when
    this patcher's model was last sampled; "" where all ran, or nothing is known.
    """
    parts = [name for name in Hung.on(patcher).parts if name in layers]
    silent = SILENT.get(patcher.model, frozenset()).intersection(parts)
    if not silent:
        return ""
    return message(
        "nodes.layers_did_not_run",
        count=len(silent),
        total=len(parts),
        names=_first_of(parts, silent),
    )


def _first_of(parts: Iterable[str], silent: frozenset[str]) -> str:
    names = [name for name in parts if name in silent]
    return ", ".join(names[:MAX_NAMED]) + " ..." * (len(names) > MAX_NAMED)


def _compute_dtype(model: torch.nn.Module) -> torch.dtype | None:
    """What a diffusion model's layers are given; None for other models."""
    ask = getattr(model, "get_dtype_inference", None)
    if ask is not None:
        return ask()
    own = getattr(model, "get_dtype", None)
    return (getattr(model, "manual_cast_dtype", None) or own()) if own else None


def _is_compiled(patcher) -> bool:
    """Whether torch.compile is to run this model: the host's node and the packs' say so in one of
    these places.
    """
    options = patcher.model_options
    wrappers = (
        options.get("transformer_options", {}).get("wrappers", {}),
        getattr(patcher, "wrappers", {}),
    )
    return (
        "torch_compile_kwargs" in options
        or any("torch.compile" in keys for by_key in wrappers for keys in by_key.values())
        or any(map(_is_compiled_module, patcher.model.modules()))
    )


def _is_compiled_module(module: torch.nn.Module) -> bool:
    """Whether it stands for a compiled one, or was compiled itself, whole or by its forward."""
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
    )
