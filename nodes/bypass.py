"""The bypass way to load: adapters act beside a layer's forward pass, and its weight stays as it is, quantised or offloaded.

A layer's adapters hang on it as one forward hook. Unlike a replaced `forward`, hooks of several nodes, and of the host's own
bypass loaders, go on and off in any order and add up. The mathematics is the adapters' own: what an adapter does to a weight
is done to zeros for its delta, and to the outputs where it turns or scales them. One that needs the weight (DoRA's norm, OFT of
the inputs) takes the layer's own, with the patches on it, without what other adapters add beside it.
"""

from __future__ import annotations

import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import comfy.ops
import torch
from comfy.patcher_extension import PatcherInjection
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor
from torch.nn import functional

from ..adapters.kind import ADDED, DERIVED, NORMED, TURNED, Kind
from ..adapters.registry import decomposition_of, named, of_host
from ..lora.adapters import AdapterSpec
from ..lora.spec import MAGNITUDES
from .watched import check

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


class Part(NamedTuple):
    """One adapter on one layer, or on some of its output rows.

    way: ADDED (a delta of the weight), NORMED (a DoRA per output), TURNED (acts on the outputs alone), DERIVED (a delta that
    needs the whole weight, each time anew: exact, and twice the work). shape: of the rows' weight. swap: its two halves are
    exchanged between adapter and layer, and the adapter does not do that itself.
    """

    adapter: WeightAdapterBase
    way: str
    rows: tuple[int, int] | None
    shape: tuple[int, ...]
    swap: Callable[[Tensor], Tensor] | None
    strength: float

    def on(self, weight: Tensor, strength: float | None = None) -> Tensor:
        """What the adapter makes of an fp32 weight [rows, ...], which it may overwrite."""
        strength = self.strength if strength is None else strength
        return self.adapter.calculate_weight(weight, "", strength, 1.0, None, self.swap or _as_it_is, torch.float32, None)


def _as_it_is(change: Tensor) -> Tensor:
    return change


def hang_beside_layers(
    patcher, layers: Sequence[dict[Any, Any]], strength: float, shape_of: Callable[[Tensor], tuple[int, ...]]
) -> tuple[list[dict[Any, Any]], Counter[str]]:
    """Hang on `patcher` (a new clone) what of the patches can act in the forward pass.

    Returns (the layers of patches that are left for the weights, what these are by kind). Biases are left without a word.
    """
    parts: dict[str, list[Part]] = {}
    left: list[dict[Any, Any]] = []
    reasons: Counter[str] = Counter()
    for layer in layers:
        rest = {}
        for target, patch in layer.items():
            name, rows, swap = (target, None, None) if isinstance(target, str) else _taken_apart(target)
            module = _owner(patcher.model, name)
            part = _part(patch, shape_of(module.weight), rows, swap, strength) if _is_layer(module) else None
            if part is not None:
                parts.setdefault(name.removesuffix(".weight"), []).append(part)
                continue
            rest[target] = patch
            if module is not None:
                reasons[_describe(patch, module)] += 1
        if rest:
            left.append(rest)
    if parts:
        hooks = Hooks(parts)
        patcher.set_injections(f"lora_locksmith_{uuid.uuid4().hex}", [PatcherInjection(inject=hooks.inject, eject=hooks.eject)])
        # A clone takes over its original's word that it is injected; what it now carries is not.
        patcher.is_injected = False
    return left, reasons


def _taken_apart(target: tuple) -> tuple[str, tuple[int, int] | None, Any]:
    name, offset, *swap = target
    return name, offset and (offset[1], offset[2]), swap[0] if swap else None


def _owner(model: torch.nn.Module, name: str) -> torch.nn.Module | None:
    """The module of this model that a weight belongs to; None for a bias, and for another model's weight."""
    if not name.endswith(".weight"):
        return None
    try:
        return model.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        return None


def _is_layer(module: torch.nn.Module | None) -> bool:
    """Whether it is a linear layer, of whatever class, or a convolution that does not work in groups."""
    if not isinstance(getattr(module, "weight", None), Tensor):
        return False
    if isinstance(module, CONVOLUTIONS):
        return module.groups == 1
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _part(patch: Any, shape: tuple[int, ...], rows: tuple[int, int] | None, swap: Any, strength: float) -> Part | None:
    """The patch as a part of the forward pass; None where it cannot be one."""
    shape = (rows[1] if rows else shape[0], *shape[1:])
    way = _way(patch)
    scaling = _scaling_outputs(patch, shape) if way == DERIVED else None
    if scaling is not None:
        patch, way = scaling, TURNED
    return Part(patch, way, rows, shape, swap, strength) if way else None


def _way(patch: Any) -> str | None:
    spec = _spec_of(patch)
    if spec is None:
        # The host's own adapters that we make add a delta; one that makes a weight larger cannot do so beside it.
        return ADDED if _kind_of_host(patch) and patch.calculate_shape("") is None else None
    roles, tensors = patch.weights[1:]
    kind, decomposition = named(spec.kind), decomposition_of(roles)
    if spec.option("pad_to") or spec.option("columns") or not kind.bypass:
        return None
    if decomposition is None:
        return kind.bypass
    by_role = dict(zip(roles, tensors, strict=True))
    per_output = all(decomposition.per_output(role, by_role[role].shape) for role in decomposition.roles if role in by_role)
    return NORMED if per_output else DERIVED


def _spec_of(patch: Any) -> AdapterSpec | None:
    """The spec of an adapter of ours; None for all others."""
    ours = isinstance(patch, WeightAdapterBase) and isinstance(patch.weights, tuple) and isinstance(patch.weights[0], AdapterSpec)
    return patch.weights[0] if ours else None


def _kind_of_host(patch: Any) -> Kind | None:
    if not isinstance(patch, WeightAdapterBase):
        return None
    return next((kind for made in type(patch).__mro__ if (kind := of_host(made.__name__))), None)


def _scaling_outputs(patch: WeightAdapterBase, shape: tuple[int, ...]) -> WeightAdapterBase | None:
    """An adapter that on a weight of this shape acts on the outputs alone, made to say so; None for any other."""
    spec, roles, tensors = patch.weights
    told = named(spec.kind).on_outputs(spec, dict(zip(roles, tensors, strict=True)), shape)
    return type(patch)(patch.loaded_keys, (told, roles, tensors)) if told else None


def _describe(patch: Any, module: torch.nn.Module) -> str:
    if not isinstance(patch, WeightAdapterBase):
        return "diff"
    spec = _spec_of(patch)
    kind = spec.kind if spec else patch.name
    return kind if _is_layer(module) else f"{kind} on {type(module).__name__}"


class Hooks:
    """The parts of one load, by layer; put on a model and taken off as the host says, any number of times."""

    def __init__(self, parts: dict[str, list[Part]]):
        self.parts = {name: tuple(of_layer) for name, of_layer in parts.items()}
        self.handles: weakref.WeakKeyDictionary[torch.nn.Module, list[Any]] = weakref.WeakKeyDictionary()

    def inject(self, patcher) -> None:
        """Put the hooks on the patcher's model, once."""
        if patcher.model not in self.handles:
            self.handles[patcher.model] = [
                patcher.model.get_submodule(name).register_forward_hook(Hook(parts), with_kwargs=True) for name, parts in self.parts.items()
            ]

    def eject(self, patcher) -> None:
        """Take them off again, if they are on."""
        for handle in self.handles.pop(patcher.model, ()):
            handle.remove()


class Hook:
    """The forward hook of one layer; what it makes for a device it keeps for as long as it hangs there."""

    def __init__(self, parts: tuple[Part, ...]):
        self.parts = parts
        self.kept: dict[Any, Any] = {}

    def __call__(self, layer: torch.nn.Module, args: tuple, named: dict[str, Any], output: Tensor) -> Tensor:
        """The layer's output under its adapters, one after the other."""
        named = dict(named)
        x = args[0] if args else named.pop("input")
        x = x.dequantize() if isinstance(x, QuantizedTensor) else x
        channel = output.dim() - 1 - (len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else 0)
        convolve = partial(layer._conv_forward, **named) if isinstance(layer, CONVOLUTIONS) else None
        output = output.clone()
        for index in range(len(self.parts)):
            part = self._part(index, x.device)
            view = output if part.rows is None else output.narrow(channel, *part.rows)
            view = view.movedim(channel, -1)
            if part.way == TURNED:
                view.copy_(self._turned(layer, part, view))
                continue
            change = self._through(layer, index, x, convolve).movedim(channel, -1)
            if part.way == NORMED:
                change = self._normed(layer, index, part, view, change)
            view.add_(change.to(view.dtype))
        return output

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def _part(self, index: int, device: torch.device) -> Part:
        part = self.parts[index]
        return self._once((index, device), lambda: part._replace(adapter=_on_device(part.adapter, device)))

    def _through(self, layer: torch.nn.Module, index: int, x: Tensor, convolve: Callable | None) -> Tensor:
        """x through the adapter's delta alone, by its two factors where it has them; a DoRA's at strength 1."""
        part = self._part(index, x.device)
        factors = self._once((index, x.device, x.dtype), lambda: _factors(part, x.dtype))
        if factors is None:
            change = self._delta(layer, part, x.device).to(x.dtype)
            return functional.linear(x, change) if convolve is None else convolve(x, change, None)
        up, down = factors
        if convolve is None:
            return functional.linear(functional.linear(x, down), up)
        low = convolve(x, down.reshape(-1, *part.shape[1:]), None)
        channel = low.dim() - len(part.shape) + 1
        return functional.linear(low.movedim(channel, -1), up).movedim(-1, channel)

    def _delta(self, layer: torch.nn.Module, part: Part, device: torch.device) -> Tensor:
        if part.way == DERIVED:
            weight = _rows(part, as_computed(layer, device)[0])
            return part.on(weight.clone()) - weight
        zeros = torch.zeros(part.shape, device=device)
        return part.on(zeros) if part.way == ADDED else _without_magnitude(part).on(zeros, 1.0)

    def _normed(self, layer: torch.nn.Module, index: int, part: Part, view: Tensor, change: Tensor) -> Tensor:
        factor = self._own(layer, view.device)[1][index]
        bare = view - self._bias(layer, part, view)
        return part.strength * ((factor - 1) * bare + factor * change)

    def _turned(self, layer: torch.nn.Module, part: Part, view: Tensor) -> Tensor:
        bias = self._bias(layer, part, view)
        columns = (view - bias).float().flatten(0, -2).T.contiguous()
        return part.on(columns).T.reshape(view.shape) + bias

    def _bias(self, layer: torch.nn.Module, part: Part, view: Tensor) -> Tensor | float:
        if getattr(layer, "bias", None) is None:
            return 0.0
        bias = self._own(layer, view.device)[0]
        return bias if part.rows is None else bias.narrow(0, *part.rows)

    def _own(self, layer: torch.nn.Module, device: torch.device) -> tuple[Tensor | None, dict[int, Tensor]]:
        """The layer's bias, and what each DoRA multiplies its outputs with; the dense weight lives only here."""

        def ask() -> tuple[Tensor | None, dict[int, Tensor]]:
            weight, bias = as_computed(layer, device)
            parts = [(index, self._part(index, device)) for index, part in enumerate(self.parts) if part.way == NORMED]
            return bias, {index: _factor(part, weight) for index, part in parts}

        return self._once(("own", device), ask)


def as_computed(layer: torch.nn.Module, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The fp32 weight and bias the layer computes with, whatever their storage, with the patches other nodes gave them."""
    wanted = {"dtype": torch.float32, "device": device, "bias_dtype": torch.float32}
    own = getattr(layer, "cast_bias_weight", None)  # layers of other packs, ComfyUI-GGUF's among them, have their own
    if own is not None:
        return own(**wanted)
    if not hasattr(layer, "weight_function"):
        return layer.weight.to(device, torch.float32), None if layer.bias is None else layer.bias.to(device, torch.float32)
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, **wanted, offloadable=True)
    weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    kept = weight.to(torch.float32, copy=True), None if bias is None else bias.clone()
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    return kept


def _on_device(value: Any, device: torch.device) -> Any:
    """An adapter with its tensors on `device`, as the host copies one."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, WeightAdapterBase):
        check(value)
        return type(value)(value.loaded_keys, _on_device(value.weights, device))
    if isinstance(value, tuple) and not isinstance(value, AdapterSpec):
        return tuple(_on_device(item, device) for item in value)
    return value


def _factors(part: Part, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """up [rows, rank] with scale and strength (a DoRA's without), and down [rank, inputs], of a LoRA; None for all else."""
    if part.way == DERIVED:
        return None
    found = _of_ours(part) if _spec_of(part.adapter) else _of_host(part)
    if found is None or found[1][0].numel() != torch.Size(part.shape[1:]).numel():
        return None
    up, down, scale, swapped = found
    up = up.flatten(1).float() * (scale * (part.strength if part.way == ADDED else 1.0))
    up = up.roll(up.shape[0] // 2, 0) if swapped else up
    return up.to(dtype), down.flatten(1).to(dtype)


def _of_host(part: Part) -> tuple[Tensor, Tensor, float, bool] | None:
    found = _kind_of_host(part.adapter).host_pair(part.adapter.weights)
    return found and (*found, part.swap is not None)


def _of_ours(part: Part) -> tuple[Tensor, Tensor, float, bool] | None:
    spec = part.adapter.weights[0]
    if not named(spec.kind).is_pair:
        return None
    tensors = dict(zip(*part.adapter.weights[1:], strict=True))
    if not {"up", "down", *MAGNITUDES} >= tensors.keys():
        return None
    up = tensors["up"] if spec.rows is None else tensors["up"].narrow(0, *spec.rows)
    return up, tensors["down"], spec.scale_for(tensors["down"].shape[0]), spec.swap


def _without_magnitude(part: Part) -> Part:
    """The same adapter without its DoRA: it adds its delta."""
    spec, roles, tensors = part.adapter.weights
    kept = [(role, tensor) for role, tensor in zip(roles, tensors, strict=True) if role not in MAGNITUDES]
    plain = type(part.adapter)(part.adapter.loaded_keys, (spec, tuple(role for role, _ in kept), tuple(tensor for _, tensor in kept)))
    return part._replace(adapter=plain)


def _rows(part: Part, weight: Tensor) -> Tensor:
    return weight if part.rows is None else weight.narrow(0, *part.rows)


def _factor(part: Part, weight: Tensor) -> Tensor:
    """What a DoRA multiplies each output with, [rows]: its magnitude over the norm of the layer's own weight plus the delta."""
    weight = _rows(part, weight)
    direction = _without_magnitude(part).on(weight.clone(), 1.0).flatten(1)
    scaled = part.on(weight.clone(), 1.0).flatten(1)
    length = (direction * direction).sum(1)
    return (scaled * direction).sum(1) / length.clamp(min=torch.finfo(torch.float32).tiny)
