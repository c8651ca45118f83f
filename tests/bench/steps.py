"""What one, four and eight LoRAs add to a step of a layer, by how its weight is stored, over how
many tokens, and the way they act.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from .allocating import memory_kept
from .bases import BASES, computed_in, patcher_of
from .files import lora_shapes, write_noise
from .loading import _comfy, by_stock
from .measuring import BYTES, Bench, Cell, Row, measurement

WIDTH, SHORT_WIDTH, RANK = 3072, 1024, 16
COUNTS, TOKENS = (1, 4, 8), (256, 1024, 4096)
ALONE = "the layer alone"
STREAMED = "stock, patched in each step"
BYPASS = "stock, bypass"
OURS_STREAMED = "ours, patched in each step"
BESIDE = "ours, beside the layer"
AUTO = "ours, mode auto, of a model that does not fit"
WAYS = (STREAMED, BYPASS, OURS_STREAMED, BESIDE)
# Of narrow layers, as the tests measure them, the arithmetic of eight is half of the layer's own,
# and an int8 product takes a fifth of one in fp32.
MOST = {BESIDE: 2.0, OURS_STREAMED: 12.0}
MOST_INT8 = {BESIDE: 5.0, OURS_STREAMED: 30.0}
UNBOUND = 1e9


def cells(base: str, tokens: int) -> Iterator[Row]:
    """What the step takes in multiples of the layer's alone, for each number of LoRAs and way."""
    most = MOST_INT8 if base == "int8" else MOST
    for count, way in product(COUNTS, WAYS):
        if way == BYPASS and count > 1:
            continue  # its second takes the place of its first
        cell = Cell(base, tokens, count, way)
        yield Row(
            f"step, {base}, {tokens}, {count}, {way}",
            f"{base}, {tokens:,} tokens, {count} x rank {RANK}, {way}",
            ALONE,
            f"{count} {way}",
            "none",
            1.0,
            most.get(way, UNBOUND),
            cell=cell,
        )


def step(base: str, tokens: int, width: int, paths: list[Path], way: str) -> Callable[[], Any]:
    """The forward pass of a layer of its own, with these files acting this way."""
    import torch

    load, how = ways()[way]
    layer, patcher = patcher_of(base, width, [partial(load, path=path) for path in paths])
    patcher.patch_model(torch.device("cpu"), **how)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, tokens, width, generator=generator).to(computed_in(base))

    def run() -> Any:
        assert patcher.model.diffusion_model.linear is layer
        with torch.no_grad():
            return layer(x)

    return run


def ways() -> dict[str, tuple[Callable, dict[str, int]]]:
    """way -> (what loads a file, how the model is loaded)."""
    import comfy.model_management as management
    import torch
    from lora_locksmith.nodes import host

    def ours(patcher: Any, path: Path, mode: str) -> Any:
        return host.load_and_fix(patcher, None, path, mode=mode)[0]

    def of_a_large_model(patcher: Any, path: Path) -> Any:
        before, management.vram_state = management.vram_state, management.VRAMState.NO_VRAM
        patcher.load_device = torch.device("cuda")  # named only
        try:
            return ours(patcher, path, "auto")
        finally:
            management.vram_state = before

    streamed = {"lowvram_model_memory": 1}
    return {
        STREAMED: (by_stock, streamed),
        BYPASS: (partial(by_stock, bypass=True), {}),
        OURS_STREAMED: (partial(ours, mode="patch"), streamed),
        AUTO: (of_a_large_model, streamed),
        BESIDE: (partial(ours, mode="bypass"), {}),
    }


def files(folder: Path, width: int, rank: int = RANK, count: int = max(COUNTS)) -> list[Path]:
    """LoRAs of the layer, written into a folder."""
    folder.mkdir(exist_ok=True)
    shapes = lora_shapes({"linear": (width, width)}, rank, "diffusion_model.")
    return [write_noise(folder / f"{seed}.safetensors", shapes, seed) for seed in range(count)]


def measure(base: str, tokens: int) -> Callable[[Bench], Any]:
    @memory_kept()
    def take(bench: Bench) -> Any:
        width = SHORT_WIDTH if bench.short else WIDTH
        paths = files(bench.folder, width)
        make = partial(step, base, tokens // 4 if bench.short else tokens, width)
        runs = {"none": make([], STREAMED)}
        for row in cells(base, tokens):
            assert row.cell
            runs[row.ours] = make(paths[: row.cell.count], row.cell.way)
        for run in runs.values():
            run()
        return bench.take_turns(runs)

    take.__name__ = f"step_{base.replace(' ', '_')}_{tokens}"
    return take


INT8 = Row(
    "beside, int8",
    "A step of an int8 3,072-wide layer over 1,024 tokens, four LoRAs of rank 16 beside it",
    "the stock loader's patches of it",
    f"4 {BESIDE}",
    f"4 {STREAMED}",
    0.4,
    0.9,
    True,
)

for _base, _tokens in product(BASES, TOKENS):
    _told = [INT8] if (_base, _tokens) == ("int8", 1024) else []
    measurement(*_told, *cells(_base, _tokens), rounds=7, short_rounds=3)(measure(_base, _tokens))


@measurement(
    Row(
        "memory of a step",
        "Memory a step of a 3,072-wide layer over 1,024 tokens needs at its peak, four LoRAs of"
        " rank 16 beside it",
        "the stock loader's patches of an offloaded weight",
        BESIDE,
        STREAMED,
        0.5,
        0.8,
    ),
    rounds=3,
    short_rounds=1,
    unit=BYTES,
)
def memory_of_a_step(bench: Bench):
    files(bench.folder, WIDTH)
    return bench.peaks(
        "steps", {way: ("prepared", bench.folder, way) for way in (BESIDE, STREAMED)}
    )


def prepared(folder: str, way: str) -> Callable[[], Any]:
    """A step in fp32 with the first four files of a folder, in a process of its own."""
    _comfy()
    paths = [Path(folder) / f"{seed}.safetensors" for seed in range(4)]
    return step("fp32", 1024, WIDTH, paths, way)
