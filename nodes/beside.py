"""What adapters do beside one layer: all that add are one product, and the layer's weight stays as
it is, whatever its storage.

A layer's adapters become steps in their order. Additive ones that follow each other are fused:
their down factors are one matrix, their strengths are folded into their up factors, and what they
add to a range of rows is one product, added in place. What an adapter needs of the weight itself
(DoRA's norm) it takes once, from the layer's own, with the patches on it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial, reduce, wraps
from inspect import signature
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.ops
import comfy.rmsnorm
import torch
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor
from torch.nn import functional

from ..adapters.kind import ADDED, DERIVED, NORMED, TURNED, Kind, KroneckerProduct, Product
from ..adapters.registry import named, of_host
from ..adapters.rotation import Rotation
from ..adapters.rows import Rows
from ..adapters.spec import AdapterSpec
from ..lora.math.low_rank import MAGNITUDES
from .watched import check

if TYPE_CHECKING:

    class Layer(torch.nn.Module):
        """What `bypass.is_layer` finds: a linear layer of whatever class, or a convolution. torch
        says of a module's attributes that each may be a tensor or a module.
        """

        weight: Tensor
        bias: Tensor | None


CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
# under torch.compile the smallest rank; each larger one is twice the one before, so that few graphs
# serve all
LADDER = 16
FP16_HIGH = 2.0**14  # a quarter of the largest number of fp16
# what the host may fold into a product besides the activation
FOLDED = frozenset(("act_weight", "act_eps", "residual", "residual_scale"))
PIECE = 1024  # rows of an identity that are turned at once


class LayerPart(NamedTuple):
    """One adapter on one layer, or on some of its output rows.

    way: ADDED (a delta of the weight), NORMED (a DoRA per output), TURNED (acts on the outputs
    alone), DERIVED (a delta that needs the whole weight: on the inputs where it turns them, else
    each time anew, which is twice the work). shape: of the rows' weight. swap: its two halves are
    exchanged between adapter and layer, and the adapter does not do that itself.
    """

    adapter: WeightAdapterBase
    way: str
    rows: Rows | None
    shape: tuple[int, ...]
    swap: Callable[[Tensor], Tensor] | None
    strength: float

    def on(self, weight: Tensor, strength: float | None = None) -> Tensor:
        """What the adapter makes of an fp32 weight [rows, ...], which it may overwrite."""
        strength = self.strength if strength is None else strength
        return self.adapter.calculate_weight(
            weight, "", strength, 1.0, None, self.swap or _as_it_is, torch.float32, None
        )


def _as_it_is(change: Tensor) -> Tensor:
    return change


class AddedRows(NamedTuple):
    """What one additive adapter adds to its rows: up @ down, [rows, r] and [r, inputs]; up None:
    down alone.
    """

    rows: Rows | None
    up: Tensor | None
    down: Tensor


class Sum(NamedTuple):
    """Additive adapters as one: down [R, inputs], and for each range of rows its columns of that
    product and up [r, rows] or None.
    """

    down: Tensor
    ups: tuple[tuple[Rows | None, Rows, Tensor | None], ...]

    def onto(self, beside: BesideLayer, out: Tensor, x: Tensor, convolve: Callable | None) -> None:
        low = beside.through(self.down, x, convolve)
        for rows, columns, up in self.ups:
            view, part = beside.outputs(out, rows), low.narrow(-1, *columns)
            if up is None or convolve is not None or view.dtype != low.dtype:
                view.add_((part if up is None else torch.matmul(part, up)).to(view.dtype))
            else:
                # Product and sum round once.
                view.view(-1, view.shape[-1]).addmm_(part.reshape(-1, part.shape[-1]), up)


class Kron(NamedTuple):
    """A LoKr on a linear layer: kron(first [a, c], second [b, d]), the second as a pair where it
    has one.
    """

    rows: Rows | None
    cut: Rows | None
    first: Tensor
    second: tuple[Tensor, ...]

    def onto(self, beside: BesideLayer, out: Tensor, x: Tensor, convolve: Callable | None) -> None:
        change = x.unflatten(-1, (self.first.shape[1], -1))
        for factor in self.second:
            change = functional.linear(change, factor)
        change = torch.matmul(self.first, change).flatten(-2)
        view = beside.outputs(out, self.rows)
        view.add_((change if self.cut is None else change.narrow(-1, *self.cut)).to(view.dtype))


class Scaling(NamedTuple):
    """A DoRA per output: its outputs without bias times `gain` [rows] in fp32, beside what its Sum
    or Kron adds.
    """

    rows: Rows | None
    gain: Tensor
    bias: Tensor | float

    def onto(self, beside: BesideLayer, out: Tensor, x: Tensor, convolve: Callable | None) -> None:
        view = beside.outputs(out, self.rows)
        view.copy_((view.float() - self.bias).mul_(self.gain).add_(self.bias))


class Turning(NamedTuple):
    """An adapter on the outputs without bias."""

    part: LayerPart
    bias: Tensor | float

    def onto(self, beside: BesideLayer, out: Tensor, x: Tensor, convolve: Callable | None) -> None:
        view = beside.outputs(out, self.part.rows)
        columns = (view - self.bias).float().flatten(0, -2).T.contiguous()
        view.copy_(self.part.on(columns).T.reshape(view.shape) + self.bias)


class Derived(NamedTuple):
    """A delta that depends on the whole weight: made anew each time, as keeping it would be a
    second weight.
    """

    part: LayerPart

    def onto(self, beside: BesideLayer, out: Tensor, x: Tensor, convolve: Callable | None) -> None:
        weight = _rows(self.part, as_computed(beside.layer, x.device)[0])
        delta = (self.part.on(weight.clone()) - weight).to(x.dtype)
        view = beside.outputs(out, self.part.rows)
        view.add_(beside.through(delta, x, convolve).to(view.dtype))


class BesideLayer:
    """Stands in a layer's `forward`: calls the one below, and adds what the adapters do.

    torch.compile guards a replaced `forward`, as it does not a forward hook, and its tensors are
    inputs of the graph: another strength, or another LoRA of the same rank, compiles nothing anew.
    """

    def __init__(self, layer: Layer, parts: Sequence[LayerPart], compiled: bool):
        self.layer, self.parts, self.compiled = layer, tuple(parts), compiled
        self.on = True
        self.made_for: tuple[torch.device, torch.dtype] | None = None
        self.fired = False  # whether it has changed an output; compiled, it does not say so
        self.turns: tuple[Tensor, ...] = ()
        self.steps: tuple[Any, ...] = ()
        self.convolution = layer if isinstance(layer, CONVOLUTIONS) else None
        self.spatial = 0 if self.convolution is None else len(self.convolution.kernel_size)
        self.inner = below(layer)

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """The layer's output under its adapters; that of the layer alone while something else has
        this one's place.
        """
        if not self.on:
            return self.inner(*args, **named)
        x = plain(args[0] if args else named["input"])
        self.make(x.device, x.dtype)
        if self.turns:
            turned = self._turned(x)
            args, named = (
                ((turned, *args[1:]), named) if args else (args, named | {"input": turned})
            )
        out = self.inner(*args, **named)
        if not _is_known(named.get("input_act")):
            return out  # and the layer counts as one that did not run
        return self.changed(out, _activated(x, named), {} if self.convolution is None else named)

    def changed(self, out: Tensor, x: Tensor, named: dict[str, Any]) -> Tensor:
        """What the steps make of the layer's output for the input x."""
        if not torch.compiler.is_compiling():
            self.fired = True
        if out.requires_grad or not out.is_contiguous():
            out = out.clone(memory_format=torch.contiguous_format)
        rest = {name: value for name, value in named.items() if name != "input"}
        convolution = self.convolution
        convolve = None if convolution is None else partial(convolution._conv_forward, **rest)
        for step in self.steps:
            step.onto(self, out, x, convolve)
        return out

    def outputs(self, out: Tensor, rows: Rows | None) -> Tensor:
        """A view of these output rows, the channels last."""
        channel = out.dim() - 1 - self.spatial
        return (out if rows is None else out.narrow(channel, *rows)).movedim(channel, -1)

    def through(self, matrix: Tensor, x: Tensor, convolve: Callable | None) -> Tensor:
        """x through a weight of the layer's kind, given as a matrix; the channels last."""
        if convolve is None:
            return functional.linear(x, matrix)
        low = convolve(x, matrix.reshape(matrix.shape[0], -1, *self.layer.weight.shape[2:]), None)
        return low.movedim(low.dim() - 1 - self.spatial, -1)

    def make(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make the steps for inputs of this device and dtype, unless they are there."""
        if self.made_for != (device, dtype):
            self._make(device, dtype)

    def take(self, steps: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> None:
        """Use steps that were made elsewhere for inputs of this device and dtype."""
        self.turns, self.steps, self.made_for = (), steps, (device, dtype)

    def forget(self) -> None:
        """Let go of the steps; they are made anew when they are needed."""
        self.turns, self.steps, self.made_for = (), (), None

    @property
    def is_additive(self) -> bool:
        """Whether it only adds to the output, whatever that is made of."""
        return is_additive(self.parts)

    @torch.compiler.disable
    def _make(self, device: torch.device, dtype: torch.dtype) -> None:
        maker = Maker(self.parts, self.layer, device, dtype=dtype, compiled=self.compiled)
        self.turns, self.steps = maker.turns(), maker.steps()
        self.made_for = (device, dtype)

    def _turned(self, x: Tensor) -> Tensor:
        change = sum(_by_blocks(x, blocks) - x.float() for blocks in self.turns)
        return (x.float() + change).to(x.dtype)


class Maker:
    """Makes the steps of a layer's parts for a device and a dtype.

    layer: whose weight parts may need; what only adds is made without it.
    """

    def __init__(
        self,
        parts: Sequence[LayerPart],
        layer: Layer | None,
        device: torch.device,
        *,
        dtype: torch.dtype,
        compiled: bool,
    ):
        self.layer, self.compiled, self.device, self.dtype = layer, compiled, device, dtype
        self.parts = [part._replace(adapter=on_device(part.adapter, device)) for part in parts]
        self.turned: dict[int, Tensor] = {}
        if not isinstance(layer, CONVOLUTIONS):
            for index, part in enumerate(self.parts):
                if part.way != DERIVED and part.way != ADDED:
                    break
                blocks = input_blocks(part, device) if part.way == DERIVED else None
                if blocks is not None:
                    self.turned[index] = blocks

    def turns(self) -> tuple[Tensor, ...]:
        """What is done to the inputs, each by itself."""
        return tuple(self.turned.values())

    def steps(self) -> tuple[Any, ...]:
        """What is done to the outputs, in order."""
        steps, added = [], []
        for index, part in enumerate(self.parts):
            if index in self.turned:
                continue
            if part.way == ADDED:
                added.append(_added(part))
                continue
            steps += self._sums(added)
            added = []
            if part.way == NORMED:
                gain, piece = self._normed(part)
                steps.append(Scaling(part.rows, gain, self._bias(part)))
                added.append(piece)
            else:
                steps.append(
                    Turning(part, self._bias(part)) if part.way == TURNED else Derived(part)
                )
        return (*steps, *self._sums(added))

    def _sums(self, added: Iterable[AddedRows | Kron]) -> list[Any]:
        """What is added as few steps: all pairs are one, and each Kronecker product is one by
        itself.
        """
        added = list(added)
        pairs = [piece for piece in added if isinstance(piece, AddedRows)]
        return ([self._sum(pairs)] if pairs else []) + [
            self._cast(one) for one in added if isinstance(one, Kron)
        ]

    def _sum(self, pairs: Sequence[AddedRows]) -> Sum:
        downs, ups, first = [], [], 0
        for rows in dict.fromkeys(piece.rows for piece in pairs):
            group = [piece for piece in pairs if piece.rows == rows]
            up, down = joined(group)
            if self.compiled and up is not None:
                more = _on_ladder(down.shape[0]) - down.shape[0]
                up, down = functional.pad(up, (0, more)), functional.pad(down, (0, 0, 0, more))
            if up is not None:
                up, down = in_dtype(up, down, self.dtype)
            downs.append(down.to(self.dtype))
            ups.append(
                (rows, Rows(first, down.shape[0]), None if up is None else up.T.contiguous())
            )
            first += down.shape[0]
        return Sum(torch.cat(downs), tuple(ups))

    def _cast(self, step: Kron) -> Kron:
        return step._replace(
            first=step.first.to(self.dtype),
            second=tuple(factor.to(self.dtype) for factor in step.second),
        )

    def _normed(self, part: LayerPart) -> tuple[Tensor, AddedRows]:
        """What a DoRA multiplies its outputs with, and what it then adds."""
        factor = _factor(part, self._own[0])
        gain = 1 + part.strength * (factor - 1)
        bare = _without_magnitude(part)._replace(way=ADDED, strength=1.0)
        return gain, _times(_piece(bare, _product(bare)), part.strength * factor)

    def _bias(self, part: LayerPart) -> Tensor | float:
        bias = None if getattr(self.layer, "bias", None) is None else self._own[1]
        if bias is None:
            return 0.0
        return bias if part.rows is None else bias.narrow(0, *part.rows)

    @cached_property
    def _own(self) -> tuple[Tensor, Tensor | None]:
        """The layer's own weight, dense, and bias, for as long as this maker is there."""
        assert self.layer is not None
        return as_computed(self.layer, self.device)


def is_additive(parts: Iterable[LayerPart]) -> bool:
    """Whether parts of a layer only add to its output."""
    return all(part.way == ADDED for part in parts)


def tensors_in(values: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors in an adapter's weights, or in steps."""
    return (value for value in _flattened(values) if isinstance(value, Tensor))


def below(layer: torch.nn.Module) -> Callable[..., Tensor]:
    """A layer's forward as it is now, without those of ours that do nothing any more."""
    forward = layer.forward
    while isinstance(owner := getattr(forward, "__self__", None), BesideLayer) and not owner.on:
        forward = owner.inner
    return forward


def take_off(beside: BesideLayer) -> None:
    """Give a layer back the forward it had; where something else replaced ours since, ours stays
    below it and does nothing.

    The host takes injections off in the order in which it put them on.
    """
    beside.on = False
    beside.forget()
    layer = beside.layer
    if getattr(layer.__dict__.get("forward"), "__self__", None) is not beside:
        return
    forward = below(layer)
    if (
        getattr(forward, "__self__", None) is layer
        and getattr(forward, "__func__", None) is type(layer).forward
    ):
        del layer.forward
    else:
        layer.forward = forward


def beside_of(layer: torch.nn.Module) -> BesideLayer | None:
    """What stands in a layer's forward and acts, if it is ours."""
    bound = getattr(layer.__dict__.get("forward"), "__self__", None)
    return bound if isinstance(bound, BesideLayer) and bound.on else None


def guard_readers() -> None:
    """Have what reads an int8 layer's weight without calling the layer (ComfyUI's
    `comfy.ops.linear_input_act`) add what we add.
    """
    stock = getattr(comfy.ops, "linear_input_act", None)
    if stock is None or getattr(stock, "of_locksmith", False):
        return

    further = tuple(signature(stock).parameters)[3:]

    @wraps(stock)
    def linear_input_act(
        linear: torch.nn.Module, x: Tensor, input_act: str, *args: Any, **named: Any
    ) -> Tensor:
        beside = beside_of(linear)
        if beside is None:
            return stock(linear, x, input_act, *args, **named)
        given = dict(zip(further, args, strict=False)) | named
        return _folded(partial(stock, linear, x, input_act), beside, x, input_act, given)

    guarded: Any = linear_input_act  # functions have no such attribute of their own
    guarded.of_locksmith = True
    comfy.ops.linear_input_act = guarded


def _folded(
    stock: Callable[..., Tensor], beside: BesideLayer, x: Tensor, act: str, given: dict[str, Any]
) -> Tensor:
    """`linear(act(x))` as the host computes it in one, with what acts beside the layer.

    given: its further arguments. From 0.36 on it computes
    `residual + residual_scale * linear(act(x))`: what we add is scaled as well. With one that we do
    not know the host is left alone, and the layer counts as one that did not run.
    """
    if not (given.keys() <= FOLDED and _is_known(act)):
        return _alone(beside, partial(stock, **given))
    activated = plain(_eager(x, act, given.get("act_weight"), given.get("act_eps")))
    if beside.is_additive:
        bare = {name: value for name, value in given.items() if not name.startswith("residual")}
        out = _alone(beside, partial(stock, **bare))
        beside.make(activated.device, activated.dtype)
        out = beside.changed(out, activated, {})
    else:
        out = beside.layer(activated)
    residual = given.get("residual")
    return out if residual is None else torch.addcmul(residual, out, given["residual_scale"])


def _alone(beside: BesideLayer, run: Callable[[], Tensor]) -> Tensor:
    """What `run` gives while nothing acts beside the layer."""
    beside.on = False
    try:
        return run()
    finally:
        beside.on = True


def guard_helpers(helpers: Iterable[tuple[str, str]]) -> None:
    """Have functions that read a layer's weight do nothing while something hangs beside it.

    helpers: (module, name) of functions whose None has their callers call the layer, as
    `readers.py` finds them.
    """
    for module, name in helpers:
        place: Any = sys.modules[module]
        stock = getattr(place, name)
        if not getattr(stock, "of_locksmith", False):
            setattr(place, name, _only_bare(stock))


def _only_bare(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def helper(*args: Any, **named: Any) -> Any:
        given = (one for one in (*args, *named.values()) if isinstance(one, torch.nn.Module))
        if any(beside_of(module) for one in given for module in one.modules()):
            return None
        return stock(*args, **named)

    guarded: Any = helper
    guarded.of_locksmith = True
    return guarded


def plain(x: Tensor) -> Tensor:
    """An input as a plain tensor."""
    return x.dequantize() if isinstance(x, QuantizedTensor) else x


def _activated(x: Tensor, named: dict[str, Any]) -> Tensor:
    """What the weight is multiplied with, where the host has the layer apply an activation (ComfyUI
    from 0.37 on).
    """
    return _eager(x, named.get("input_act"), named.get("act_weight"), named.get("act_eps"))


def _is_known(input_act: str | None) -> bool:
    """Whether the host tells what it means by this activation."""
    return input_act in (None, "rms_norm") or input_act in comfy.ops.INPUT_ACT_EAGER


def _eager(x: Tensor, input_act: str | None, weight: Tensor | None, eps: float | None) -> Tensor:
    """An activation by the host's name for it; weight and eps: of a norm's."""
    if input_act is None:
        return x
    if input_act == "rms_norm":
        return comfy.rmsnorm.rms_norm(x, weight, 0.0 if eps is None else eps)
    return comfy.ops.INPUT_ACT_EAGER[input_act](x)


def joined(group: Sequence[AddedRows]) -> tuple[Tensor | None, Tensor]:
    """Pieces of the same rows as one up [rows, r] and down [r, inputs]; a whole matrix swallows the
    others, and has no up.
    """
    ups = [piece.up for piece in group if piece.up is not None]
    if len(ups) == len(group):
        return torch.cat(ups, 1), torch.cat([piece.down for piece in group])
    wholes = (piece.down if piece.up is None else piece.up @ piece.down for piece in group)
    return None, reduce(add, wholes)


def in_dtype(up: Tensor, down: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """fp32 factors up [rows, r] and down [r, inputs] in another dtype.

    fp16 has no small numbers: 6e-5 is the smallest it holds with all its bits, and a strength below
    1 in `up` is soon below that. Powers of two, which change no bit, go from `down` to `up` until
    both are about as large; or back, from an `up` above what fp16 holds.
    """
    if dtype == torch.float16 and up.numel() and down.numel():
        high, wide = up.abs().amax(0), down.abs().amax(1)
        halves = torch.log2(wide / high).div(2).floor().clamp(min=0)
        halves = torch.where(high > FP16_HIGH, torch.log2(FP16_HIGH / high).floor(), halves)
        halves = halves.nan_to_num(0, 0, 0).int()
        up, down = torch.ldexp(up, halves), torch.ldexp(down, -halves[:, None])
    return up.to(dtype), down.to(dtype)


def _on_ladder(rank: int) -> int:
    step = LADDER
    while step < rank:
        step *= 2
    return step


def _by_blocks(x: Tensor, blocks: Tensor) -> Tensor:
    """x times a block-diagonal matrix, given as blocks [n, b, b], in fp32."""
    return torch.einsum(
        "...nb,nab->...na", x.float().unflatten(-1, (blocks.shape[0], -1)), blocks
    ).flatten(-2)


def input_blocks(part: LayerPart, device: torch.device) -> Tensor | None:
    """Of an adapter that only turns a linear layer's inputs, blocks of one size: W' = W M, M
    block-diagonal; its blocks [n, b, b].

    At the part's strength. None for all others.
    """
    kind, tensors = (
        named(part.adapter.weights[0].kind),
        dict(zip(*part.adapter.weights[1:], strict=True)),
    )
    if (
        part.rows is not None
        or not isinstance(kind, Rotation)
        or not kind.on_inputs
        or kind.butterfly
    ):
        return None
    inputs = part.shape[1]
    sizes = kind.block_sizes({role: tensors[role] for role in kind.block_roles(tensors)}, inputs)
    if len(sizes) != 1 or sizes[0][0] * sizes[0][1] != inputs:
        return None
    size, step = sizes[0][0], max(PIECE // sizes[0][0], 1) * sizes[0][0]
    found = []
    for start in range(0, inputs, step):
        count = min(step, inputs - start)
        identity = torch.zeros(count, inputs, device=device)
        identity[:, start : start + count] = torch.eye(count, device=device)
        turned = part.on(identity)[:, start : start + count].reshape(
            count // size, size, count // size, size
        )
        found.append(turned.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
    return torch.cat(found)


def pair_of(part: LayerPart) -> AddedRows:
    """What an additive adapter adds as a pair, its strength in it, in fp32; as a matrix where it is
    no pair.
    """
    return _piece(part, _product(part))


def _added(part: LayerPart) -> AddedRows | Kron:
    """What an additive adapter adds, its strength in it, in fp32; a LoKr stays a Kronecker product
    where it can.
    """
    made = _product(part)
    return (_kronecker(part, made) if isinstance(made, KroneckerProduct) else None) or _piece(
        part, made
    )


def _product(part: LayerPart) -> Product | KroneckerProduct | None:
    """The factors of an adapter of ours."""
    spec = spec_of(part.adapter)
    return (
        named(spec.kind).product(
            spec, dict(zip(*part.adapter.weights[1:], strict=True)), torch.float32
        )
        if spec
        else None
    )


def _piece(part: LayerPart, made: Product | KroneckerProduct | None) -> AddedRows:
    """What an additive adapter adds, as a pair or a matrix; made: its factors, if it is ours."""
    spec = spec_of(part.adapter)
    if spec is None:
        pair = pair_of_host(part.adapter)
        if pair is None:
            return _whole(part)
        return _pair(part, *pair, rows=None, swap=part.swap is not None)
    if isinstance(made, Product) and made.up is not None:
        return _pair(part, made.up, made.down, 1.0, rows=spec.rows, swap=spec.swap)
    return _whole(part)


def _pair(
    part: LayerPart, up: Tensor, down: Tensor, scale: float, *, rows: Rows | None, swap: bool
) -> AddedRows:
    """up and down of the whole module, of which these rows are the part's; swap: the halves of
    these are exchanged.
    """
    if down[0].numel() != torch.Size(part.shape[1:]).numel():
        return _whole(part)
    up = up.flatten(1).float() * (scale * part.strength)
    up = up if rows is None else up.narrow(0, *rows)
    return AddedRows(
        part.rows, up.roll(up.shape[0] // 2, 0) if swap else up, down.flatten(1).float()
    )


def _kronecker(part: LayerPart, made: KroneckerProduct) -> Kron | None:
    """A LoKr on a linear layer by its factors; None where its rows or inputs are not those of the
    product.
    """
    spec = spec_of(part.adapter)
    if spec is None or spec.swap or part.swap or len(part.shape) != 2:
        return None
    first = made.first.matrix().float() * part.strength
    second = (made.second.down,) if made.second.up is None else (made.second.down, made.second.up)
    return (
        Kron(part.rows, spec.rows, first, second)
        if second[0].shape[1] * first.shape[1] == part.shape[1]
        else None
    )


def _whole(part: LayerPart) -> AddedRows:
    """The delta itself, for adapters without smaller factors."""
    device = next(iter(tensors_in(part.adapter.weights))).device
    return AddedRows(part.rows, None, part.on(torch.zeros(part.shape, device=device)).flatten(1))


def _flattened(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, tuple) and not isinstance(value, AdapterSpec):
            yield from _flattened(value)
        else:
            yield value


def _times(piece: AddedRows, factor: Tensor) -> AddedRows:
    """A piece, each of its rows times a factor [rows]."""
    if piece.up is None:
        return piece._replace(down=piece.down * factor[:, None])
    return piece._replace(up=piece.up * factor[:, None])


def as_computed(layer: Layer, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The fp32 weight and bias the layer computes with, whatever their storage, with the patches
    other nodes gave them.
    """
    wanted = {"dtype": torch.float32, "device": device, "bias_dtype": torch.float32}
    # Layers of other packs, ComfyUI-GGUF's among them, have their own.
    own = getattr(layer, "cast_bias_weight", None)
    if own is not None:
        return own(**wanted)
    if not hasattr(layer, "weight_function"):
        return layer.weight.to(device, torch.float32), (
            None if layer.bias is None else layer.bias.to(device, torch.float32)
        )
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, **wanted, offloadable=True)
    weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    kept = weight.to(torch.float32, copy=True), None if bias is None else bias.clone()
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    return kept


def on_device(value: Any, device: torch.device) -> Any:
    """An adapter with its tensors on `device`, as the host copies one."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, WeightAdapterBase):
        check(value)
        return type(value)(value.loaded_keys, on_device(value.weights, device))
    if isinstance(value, tuple) and not isinstance(value, AdapterSpec):
        return tuple(on_device(item, device) for item in value)
    return value


def spec_of(patch: Any) -> AdapterSpec | None:
    """The spec of an adapter of ours; None for all others."""
    ours = (
        isinstance(patch, WeightAdapterBase)
        and isinstance(patch.weights, tuple)
        and isinstance(patch.weights[0], AdapterSpec)
    )
    return patch.weights[0] if ours else None


def kind_of_host(patch: Any) -> Kind | None:
    """The kind that an adapter of the host computes; None for all others."""
    if not isinstance(patch, WeightAdapterBase):
        return None
    return next((kind for made in type(patch).__mro__ if (kind := of_host(made.__name__))), None)


def pair_of_host(patch: Any) -> tuple[Tensor, Tensor, float] | None:
    """up, down and scale of an adapter of the host that is a plain pair; None for all others."""
    kind = kind_of_host(patch)
    return kind.host_pair(patch.weights) if kind else None


def _without_magnitude(part: LayerPart) -> LayerPart:
    """The adapter without its DoRA: it adds its delta."""
    spec, roles, tensors = part.adapter.weights
    kept = [
        (role, tensor)
        for role, tensor in zip(roles, tensors, strict=True)
        if role not in MAGNITUDES
    ]
    plain = type(part.adapter)(
        part.adapter.loaded_keys,
        (spec, tuple(role for role, _ in kept), tuple(tensor for _, tensor in kept)),
    )
    return part._replace(adapter=plain)


def _rows(part: LayerPart, weight: Tensor) -> Tensor:
    return weight if part.rows is None else weight.narrow(0, *part.rows)


def _factor(part: LayerPart, weight: Tensor) -> Tensor:
    """What a DoRA multiplies each output with, [rows]: its magnitude over the norm of the layer's
    own weight plus the delta.
    """
    weight = _rows(part, weight)
    direction = _without_magnitude(part).on(weight.clone(), 1.0).flatten(1)
    scaled = part.on(weight.clone(), 1.0).flatten(1)
    length = (direction * direction).sum(1)
    return (scaled * direction).sum(1) / length.clamp(min=torch.finfo(torch.float32).tiny)
