"""A model of one layer of every sort, and adapters of every sort for each, with the change of the
weight by the adapters' definitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
RANK = 3


class Layers(nn.Module):
    """One layer of every sort; no two of a kind have the same shape."""

    def __init__(self):
        super().__init__()
        self.linear, self.square = nn.Linear(24, 36), nn.Linear(24, 24)
        self.conv1, self.point1 = nn.Conv1d(12, 16, 3, padding=1), nn.Conv1d(12, 8, 1)
        self.conv2, self.point2 = nn.Conv2d(12, 20, 3, padding=1), nn.Conv2d(12, 16, 1)
        self.square2 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv3, self.point3 = nn.Conv3d(8, 12, 3, padding=1), nn.Conv3d(8, 16, 1)
        self.norm, self.groups, self.embedding = (
            nn.LayerNorm(24),
            nn.GroupNorm(4, 16),
            nn.Embedding(40, 24),
        )


INPUTS = {
    "linear": (5, 24),
    "square": (5, 24),
    "conv1": (2, 12, 9),
    "point1": (2, 12, 9),
    "conv2": (2, 12, 7, 7),
    "point2": (2, 12, 7, 7),
    "square2": (2, 16, 7, 7),
    "conv3": (1, 8, 5, 5, 5),
    "point3": (1, 8, 5, 5, 5),
}


class Toy(nn.Module):
    """What the host's ModelPatcher takes for a diffusion model."""

    def __init__(self):
        super().__init__()
        self.diffusion_model, self.device = Layers(), CPU


def patcher():
    """The host's ModelPatcher over it, with random weights."""
    import comfy.model_patcher

    torch.manual_seed(4)
    model = Toy().requires_grad_(False)
    for weight in model.parameters():
        weight.copy_(torch.randn_like(weight) * 0.3 + (weight.dim() == 1))
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU)


class Adapter(NamedTuple):
    """Tensors by role, the change of the weight (or of the bias beside it), and the adapter's
    place.
    """

    tensors: dict[str, Tensor]
    change: Tensor
    of: str = "weight"


def random(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.5


def adapters(shape: tuple[int, ...]) -> Iterator[tuple[str, Adapter]]:
    """Every sort of adapter that a trainer writes for a layer with such a weight."""
    torch.manual_seed(7)
    for make in (_loras, _lohas, _lokrs, _differences):
        yield from make(*shape)


def _loras(out: int, *inner: int) -> Iterator[tuple[str, Adapter]]:
    if not inner:
        return
    ones, alpha = [1] * (len(inner) - 1), {"alpha": torch.tensor(2.0)}
    up, down = random(out, RANK, *ones), random(RANK, *inner)
    change = (up.flatten(1) @ down.flatten(1)).view(out, *inner)
    yield (
        "lora",
        Adapter({"lora_up.weight": up, "lora_down.weight": down, **alpha}, change * 2 / RANK),
    )
    yield "lora without alpha", Adapter({"lora_B.weight": up, "lora_A.weight": down}, change)
    if len(inner) == 1:
        kernel = {"lora_up.weight": up[..., None, None], "lora_down.weight": down[..., None, None]}
        yield "lora of a 1x1 convolution", Adapter(kernel, change)
    if len(inner) > 1:
        yield (
            "lora with a flat down",
            Adapter(
                {"lora_up.weight": up.flatten(1), "lora_down.weight": down.flatten(1), **alpha},
                change * 2 / RANK,
            ),
        )
        core, down = random(RANK, RANK, *inner[1:]), random(RANK, inner[0], *ones)
        change = torch.einsum("pq...,op,qi->oi...", core, up.flatten(1), down.flatten(1))
        yield (
            "tucker lora",
            Adapter(
                {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": core, **alpha},
                change * 2 / RANK,
            ),
        )


def _lohas(out: int, *inner: int) -> Iterator[tuple[str, Adapter]]:
    if not inner:
        return
    columns, alpha, ones = (
        torch.Size(inner).numel(),
        {"alpha": torch.tensor(2.0)},
        [1] * (len(inner) - 1),
    )
    flat = {"hada_w1_a": random(out, RANK), "hada_w1_b": random(RANK, columns)}
    flat |= {"hada_w2_a": random(out, RANK), "hada_w2_b": random(RANK, columns), **alpha}
    halves = [
        (flat[f"hada_w{half}_a"] @ flat[f"hada_w{half}_b"]).view(out, *inner) for half in (1, 2)
    ]
    yield "loha", Adapter(flat, halves[0] * halves[1] * 2 / RANK)
    kept = {
        role: tensor.view(*tensor.shape, *ones) if role.endswith("a") else tensor
        for role, tensor in flat.items()
        if role != "alpha"
    }
    kept = {
        role: tensor.view(RANK, *inner) if role.endswith("b") else tensor
        for role, tensor in kept.items()
    }
    yield "loha with its kernel", Adapter(kept | alpha, halves[0] * halves[1] * 2 / RANK)
    tucker = {
        f"hada_w{half}_{side}": random(RANK, size)
        for half in (1, 2)
        for side, size in (("a", out), ("b", inner[0]))
    }
    tucker |= {f"hada_t{half}": random(RANK, RANK, *(inner[1:] or (1, 1))) for half in (1, 2)}
    products = [
        _tucker(tucker, f"hada_t{half}", f"hada_w{half}").reshape(out, *inner) for half in (1, 2)
    ]
    yield "tucker loha", Adapter(tucker | alpha, products[0] * products[1] * 2 / RANK)


def _tucker(tensors: dict[str, Tensor], core: str, factors: str) -> Tensor:
    return torch.einsum(
        "pq...,po,qi->oi...", tensors[core], tensors[factors + "_a"], tensors[factors + "_b"]
    )


def _lokrs(out: int, *inner: int) -> Iterator[tuple[str, Adapter]]:
    if not inner:
        return
    rows, columns, alpha = out // 4, inner[0] // 2, {"alpha": torch.tensor(2.0)}
    first, second = {"lokr_w1": random(4, 2)}, {"lokr_w2": random(rows, columns, *inner[1:])}
    yield "lokr", Adapter(first | second | alpha, _kron(first["lokr_w1"], second["lokr_w2"]))
    left, right = random(4, RANK), random(RANK, 2)
    split = {"lokr_w1_a": left, "lokr_w1_b": right}
    yield (
        "lokr, first factor split",
        Adapter(split | second | alpha, _kron(left @ right, second["lokr_w2"]) * 2 / RANK),
    )
    low = {
        "lokr_w2_a": random(rows, RANK),
        "lokr_w2_b": random(RANK, torch.Size((columns, *inner[1:])).numel()),
    }
    product = (low["lokr_w2_a"] @ low["lokr_w2_b"]).view(rows, columns, *inner[1:])
    yield (
        "lokr, second factor split",
        Adapter(first | low | alpha, _kron(first["lokr_w1"], product) * 2 / RANK),
    )
    yield "lokr, both split", Adapter(split | low | alpha, _kron(left @ right, product) * 2 / RANK)
    if len(inner) > 1:
        kept = low | {"lokr_w2_b": low["lokr_w2_b"].view(RANK, columns, *inner[1:])}
        yield (
            "lokr with its kernel",
            Adapter(first | kept | alpha, _kron(first["lokr_w1"], product) * 2 / RANK),
        )
        core = {
            "lokr_t2": random(RANK, RANK, *inner[1:]),
            "lokr_w2_a": random(RANK, rows),
            "lokr_w2_b": random(RANK, columns),
        }
        yield (
            "tucker lokr",
            Adapter(
                first | core | alpha,
                _kron(first["lokr_w1"], _tucker(core, "lokr_t2", "lokr_w2")) * 2 / RANK,
            ),
        )


def _kron(first: Tensor, second: Tensor) -> Tensor:
    return torch.kron(first.reshape(*first.shape, *[1] * (second.dim() - 2)), second.contiguous())


def _differences(out: int, *inner: int) -> Iterator[tuple[str, Adapter]]:
    change = random(out, *inner)
    yield "diff", Adapter({"diff": change}, change)
    if len(inner) == 1:
        yield "diff of a 1x1 convolution", Adapter({"diff": change[..., None, None]}, change)
    if len(inner) > 1 and not any(size > 1 for size in inner[1:]):
        yield "diff of a linear layer", Adapter({"diff": change.flatten(1)}, change)
    if not inner:
        yield "norm", Adapter({"w_norm": change}, change)
    bias = random(out)
    yield "bias", Adapter({"diff_b": bias}, bias, "bias")
