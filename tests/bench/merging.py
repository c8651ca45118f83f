"""Merging whole FLUX.1 files, against copying their bytes, and what memory that needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .files import copy_bytes, every, lora_shapes, native_modules, total_size, write_noise
from .measuring import BYTES, Bench, Row, measurement

COPY = "copying as many bytes"
CUT_TO = 24


def write_files(bench: Bench, count: int, rank: int) -> list[Path]:
    """Files over FLUX.1's layers by ComfyUI's own, fused names: sums of them are as large as they
    are together.
    """
    shapes = lora_shapes(native_modules(), rank, "diffusion_model.")
    return [
        write_noise(bench.folder / f"{number}.safetensors", shapes, number)
        for number in range(count)
    ]


def sources(paths: list[Path]):
    """The files planned and open, as the command line has them."""
    from lora_locksmith.files.header import read_header
    from lora_locksmith.lora.io.stream import TensorStream
    from lora_locksmith.lora.merge.collect import Source
    from lora_locksmith.lora.merge.plan_together import File, inspect_together

    headers = [read_header(path) for path in paths]
    found = inspect_together(
        [File(path.name, header) for path, header in zip(paths, headers, strict=True)]
    )
    return [
        Source(one.plan, TensorStream(path, header).__enter__(), 0.8, 0.8, name=path.name)
        for one, path, header in zip(found, paths, headers, strict=True)
    ]


def exact(paths: list[Path], target: Path) -> None:
    from lora_locksmith.lora.merge.write import write_merged

    write_merged(target, sources(paths), overwrite=True)


@measurement(
    Row(
        "merge", "Exact merge of two FLUX.1 files of rank 16", COPY, "exact", "copy", 2.5, 10, True
    ),
    rounds=7,
    short_rounds=3,
)
def merge(bench: Bench):
    paths = write_files(bench, 2, 8 if bench.short else 16)
    runs = {
        "copy": partial(copy_bytes, paths, bench.folder / "copy"),
        "exact": partial(exact, paths, bench.folder / "exact.safetensors"),
    }
    runs["exact"]()
    return bench.take_turns(runs)


@measurement(
    Row(
        "merge, cut",
        f"Merge of two FLUX.1 files of rank 16 at rank {CUT_TO}",
        "their exact merge",
        "cut",
        "exact",
        5,
        30,
    ),
    rounds=3,
    short_rounds=1,
)
def merge_cut(bench: Bench):
    """All blocks, in the short form every 19th."""
    from lora_locksmith.lora.merge.merge import MergeConfig
    from lora_locksmith.lora.merge.write import write_merged

    shapes = lora_shapes(every(19 if bench.short else 1, native_modules()), 16, "diffusion_model.")
    paths = [
        write_noise(bench.folder / f"{number}.safetensors", shapes, number) for number in range(2)
    ]

    def cut() -> None:
        to = bench.folder / "cut.safetensors"
        write_merged(to, sources(paths), MergeConfig(rank=CUT_TO), overwrite=True)

    return bench.take_turns(
        {"exact": partial(exact, paths, bench.folder / "exact.safetensors"), "cut": cut}
    )


@measurement(
    Row(
        "memory of a merge",
        "Memory an exact merge of two needs at its peak",
        "the size of the new file",
        "two",
        "file",
        0.1,
        0.6,
    ),
    Row(
        "memory of a merge of eight",
        "Memory a merge of eight such files needs",
        "a merge of two",
        "eight",
        "two",
        1.1,
        2,
    ),
    rounds=3,
    short_rounds=1,
    unit=BYTES,
)
def merge_memory(bench: Bench):
    paths = write_files(bench, 8, 4 if bench.short else 16)
    runs = {"two": paths[:2], "eight": paths}
    peaks = bench.peaks(
        "merging",
        {
            name: ("merger", bench.folder / "new.safetensors", *files)
            for name, files in runs.items()
        },
    )
    return peaks | {"file": [total_size(paths[:2])] * bench.rounds}


def merger(target: str, *paths: str) -> Callable[[], object]:
    return partial(exact, [Path(path) for path in paths], Path(target))
