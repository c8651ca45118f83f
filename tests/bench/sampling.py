"""What LoRAs cost in each step of sampling: beside a layer, and as an offloaded one is patched
anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .allocating import memory_kept
from .bases import patcher_of
from .measuring import Bench, Row, measurement
from .steps import AUTO, BESIDE, OURS_STREAMED, RANK, STREAMED, WIDTH, files, step, ways

TOKENS = 1024
ALONE, STOCK = "the layer alone", "the stock loader's patches of it"


@measurement(
    Row(
        "beside",
        "A step of a 3,072-wide layer over 1,024 tokens, a LoRA of rank 16 beside it",
        ALONE,
        "1",
        "none",
        1.02,
        1.2,
    ),
    Row(
        "beside, four",
        "A step of a 3,072-wide layer, four LoRAs of rank 16 beside it",
        ALONE,
        "4",
        "none",
        1.05,
        1.25,
        True,
    ),
    Row(
        "beside, eight",
        "A step of a 3,072-wide layer, eight LoRAs of rank 16 beside it",
        ALONE,
        "8",
        "none",
        1.09,
        1.35,
    ),
    Row(
        "beside, on the fly",
        "A step of a 3,072-wide layer, four LoRAs of rank 16 beside it",
        "the stock loader's patches of an offloaded weight",
        "4",
        "stock",
        0.87,
        1.2,
        True,
    ),
    rounds=15,
    short_rounds=5,
)
@memory_kept()
def beside(bench: Bench):
    """In fp32, as bf16 is computed without a unit of its own on most processors; all ways give the
    same.
    """
    paths = files(bench.folder, WIDTH)
    make = partial(step, "fp32", TOKENS, WIDTH)
    runs = {"none": make([], STREAMED), "stock": make(paths[:4], STREAMED)}
    for count in (1, 4, 8):
        runs[str(count)] = make(paths[:count], BESIDE)
    outputs = {name: run() for name, run in runs.items()}
    change = outputs["4"] - outputs["none"]
    assert (change - (outputs["stock"] - outputs["none"])).norm() < 1e-3 * change.norm()
    return bench.take_turns(runs)


@measurement(
    Row(
        "patched, four",
        "An offloaded 3,072-wide weight patched anew, four LoRAs of rank 16",
        STOCK,
        "ours 4",
        "stock 4",
        0.34,
        0.5,
        True,
    ),
    Row(
        "patched, four: arithmetic",
        "The same",
        "the one product that it takes, of factors that are there",
        "ours 4",
        "product",
        1.2,
        1.8,
    ),
    Row(
        "patched, one",
        "The same, one LoRA of rank 128, mode auto",
        STOCK,
        "ours 1",
        "stock 1",
        0.7,
        0.95,
    ),
    Row("patched, eight", "The same with eight", STOCK, "ours 8", "stock 8", 0.33, 0.5),
    rounds=15,
    short_rounds=5,
)
@memory_kept()
def patched(bench: Bench):
    """What the host does to an offloaded weight in each forward, in fp32."""
    import torch

    paths, names = files(bench.folder, WIDTH), {"ours": OURS_STREAMED, "stock": STREAMED}
    runs = {
        f"{name} {count}": patching(paths[:count], way)
        for count in (4, 8)
        for name, way in names.items()
    }
    for count in (4, 8):
        ours, stock = (runs[f"{name} {count}"](torch.zeros(WIDTH, WIDTH)) for name in names)
        assert (ours - stock).norm() < 1e-6 * stock.norm()
    large = files(bench.folder / "large", WIDTH, rank=128, count=1)
    runs |= {"ours 1": patching(large, AUTO), "stock 1": patching(large, STREAMED)}
    up, down = torch.randn(WIDTH, 4 * RANK), torch.randn(4 * RANK, WIDTH)
    runs["product"] = lambda weight: weight.addmm_(up, down)
    weight = torch.zeros(WIDTH, WIDTH)
    return bench.take_turns({name: partial(run, weight) for name, run in runs.items()})


def patching(paths: list[Path], way: str) -> Callable[[object], object]:
    """What patches the layer's weight, given dense, in place, under these files."""
    load, _ = ways()[way]
    _, patcher = patcher_of("fp32", WIDTH, [partial(load, path=path) for path in paths])
    from comfy.model_patcher import LowVramPatch

    return LowVramPatch("diffusion_model.linear.weight", patcher.patches)
