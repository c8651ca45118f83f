"""Deltas by native weight as tensors by name: what ComfyUI calls a LORA_MODEL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...adapters.registry import kinds
from ...adapters.spec import AdapterError
from ...messages import message
from ..math.low_rank import Factors, Kronecker, to_product

__all__ = ["Native", "named", "native_name", "native_tensors"]

DENOISER_PREFIX = "diffusion_model."


class Native(NamedTuple):
    """What one weight, or the bias beside it, gains at strength 1.

    weight: full native name: `diffusion_model.<module>.weight`,
    `clip_l.transformer.<module>.weight` (as in the plan's pieces).
    delta: factors with the scale in up, of the whole weight; or a dense difference of the weight's
    shape.
    parameter: "weight", or "bias" for the bias beside the weight; `weight` still names the weight.
    shape: the weight's, which a convolution's factors need (their columns are in * kernel); () for
    a matrix or a vector.
    """

    weight: str
    delta: Factors | Kronecker | Tensor
    parameter: str = "weight"
    shape: Sequence[int] = ()


def native_name(weight: str) -> str:
    """The module name of a weight in a LORA_MODEL: what stock's key map has for it (comfy/lora.py
    model_lora_keys_*).
    """
    module = weight[: -len(".weight")] if weight.endswith(".weight") else weight
    return module if module.startswith(DENOISER_PREFIX) else f"text_encoders.{module}"


def native_tensors(items: Iterable[Native], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """A LORA_MODEL of these: the names TrainLoraNode and LoraSave of ComfyUI write and stock
    `load_lora` reads.

    Factors become `lora_up.weight`, `lora_down.weight` without an alpha (the scale is in up),
    Kronecker products `lokr_w1`, `lokr_w2`, whole matrices `diff`, biases `diff_b`. dtype: of all
    tensors; None keeps each one's. Raises AdapterError where two items reach the same parameter
    (add them before), or a delta does not fit its shape.
    """
    tensors: dict[str, Tensor] = {}
    reached = set()
    for item in items:
        place = (native_name(item.weight), item.parameter)
        if place in reached:
            id = "lora.two_deltas_on_bias" if item.parameter == "bias" else "lora.two_deltas"
            raise AdapterError(message(id, parameter=place[0]))
        reached.add(place)
        for key, tensor in named((item,)):
            tensors[key] = (tensor if dtype is None else tensor.to(dtype)).contiguous()
    return tensors


def named(items: Iterable[Native]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each item in turn, in the dtype it comes in; for writers that stream."""
    for item in items:
        name = native_name(item.weight)
        for ending, tensor in _roles(item):
            yield f"{name}.{ending}", tensor


def _roles(item: Native) -> Iterator[tuple[str, Tensor]]:
    delta, shape = item.delta, tuple(item.shape)
    if isinstance(delta, Factors) and delta.up is None:
        delta = delta.down
    if isinstance(delta, Tensor):
        yield ("diff_b" if item.parameter == "bias" else "diff"), _dense(delta, shape, item)
    elif item.parameter == "bias":
        yield "diff_b", _dense(delta.dense(), shape[:1] or (delta.shape[0],), item)
    else:
        product = to_product(delta)
        kind = next(kind for kind in kinds() if kind.stores is type(product))
        try:
            yield from kind.stored(product, shape)
        except RuntimeError:
            raise AdapterError(
                message(
                    "lora.delta_does_not_go",
                    place=item.weight,
                    shape=list(delta.shape),
                    size=list(shape),
                )
            ) from None


def _dense(delta: Tensor, shape: tuple[int, ...], item: Native) -> Tensor:
    if item.parameter == "bias":
        return delta.flatten()
    return _shaped(delta, shape, item) if shape else delta


def _shaped(tensor: Tensor, shape: tuple[int, ...], item: Native) -> Tensor:
    try:
        return tensor.reshape(shape)
    except RuntimeError:
        raise AdapterError(
            message(
                "lora.delta_does_not_go",
                place=item.weight,
                shape=list(tensor.shape),
                size=list(shape),
            )
        ) from None
