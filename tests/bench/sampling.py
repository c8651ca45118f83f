"""What LoRAs cost in each step of sampling: beside a layer, and as an offloaded one is patched
anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .allocating import memory_kept
from .files import lora_shapes, write_noise
from .loading import _comfy, by_stock
from .measuring import Bench, Row, measurement

WIDTH, TOKENS, RANK, FILES = 3072, 1024, 16, 8
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
    import torch
    from lora_locksmith.nodes import host

    paths = files(bench)
    tokens = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))
    ours = partial(host.load_and_fix, bypass=True)
    runs = {
        "none": step(tokens, [], by_stock),
        "stock": step(tokens, paths[:4], by_stock, lowvram_model_memory=1),
    }
    for count in (1, 4, 8):
        runs[str(count)] = step(
            tokens, paths[:count], lambda patcher, path: ours(patcher, None, path)[0]
        )
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
    Row("patched, eight", "The same with eight", STOCK, "ours 8", "stock 8", 0.33, 0.5),
    rounds=15,
    short_rounds=5,
)
@memory_kept()
def patched(bench: Bench):
    """What the host does to an offloaded weight in each forward, in fp32."""
    import torch
    from lora_locksmith.nodes import host

    paths = files(bench)
    loads = {
        "ours": lambda patcher, path: host.load_and_fix(patcher, None, path)[0],
        "stock": by_stock,
    }
    runs = {
        f"{name} {count}": patching(paths[:count], load)
        for count in (4, 8)
        for name, load in loads.items()
    }
    for count in (4, 8):
        ours, stock = (runs[f"{name} {count}"](torch.zeros(WIDTH, WIDTH)) for name in loads)
        assert (ours - stock).norm() < 1e-6 * stock.norm()
    weight = torch.zeros(WIDTH, WIDTH)
    return bench.take_turns({name: partial(run, weight) for name, run in runs.items()})


def files(bench: Bench) -> list[Path]:
    """LoRAs of the layer."""
    shapes = lora_shapes({"linear": (WIDTH, WIDTH)}, RANK, "diffusion_model.")
    return [
        write_noise(bench.folder / f"{seed}.safetensors", shapes, seed) for seed in range(FILES)
    ]


def patching(paths: list[Path], load: Callable) -> Callable[[object], object]:
    """What patches the layer's weight, given dense, in place, under these files."""
    _, patcher = loaded(paths, load)
    from comfy.model_patcher import LowVramPatch

    return LowVramPatch("diffusion_model.linear.weight", patcher.patches)


def step(tokens, paths: list[Path], load: Callable, **how) -> Callable[[], object]:
    """The forward pass of a layer of its own, under these files."""
    import torch

    layer, patcher = loaded(paths, load)
    patcher.patch_model(torch.device("cpu"), **how)

    def run():
        assert patcher.model.diffusion_model.linear is layer, (
            "it takes off what it put on when it goes"
        )
        with torch.no_grad():
            return layer(tokens)

    return run


def loaded(paths: list[Path], load: Callable):
    """(a layer of its own, the ModelPatcher around it under these files)."""
    import torch

    comfy = _comfy()
    cpu, model = torch.device("cpu"), torch.nn.Module()
    model.device = cpu
    model.model_config = type("Config", (), {"unet_config": {}})
    model.diffusion_model = torch.nn.Module()
    layer = model.diffusion_model.linear = comfy.ops.manual_cast.Linear(WIDTH, WIDTH)
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.requires_grad_(False).copy_(
            torch.randn(parameter.shape, generator=generator) * 0.02
        )
    patcher = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
    for path in paths:
        patcher = load(patcher, path)
    return layer, patcher
