"""Writing FLUX.1 files in another dialect, verified, against copying their bytes, and what memory
that needs.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .files import copy_bytes, flux_modules, lora_shapes, native_modules, total_size, write_noise
from .measuring import BYTES, Bench, Row, measurement

COPY = "copying as many bytes"


def kohya_file(path: Path, rank: int) -> Path:
    """Fused, flat names and alphas."""
    return write_noise(path, lora_shapes(native_modules(), rank, "kohya"))


def diffusers_file(path: Path, rank: int) -> Path:
    """Split names."""
    return write_noise(path, lora_shapes(flux_modules(), rank))


def convert(source: Path, target: Path, dialect: str) -> None:
    from lora_locksmith.lora.io.mapped import map_tensors
    from lora_locksmith.lora.io.writer import write_as
    from lora_locksmith.report.inspection import inspect_file

    found = inspect_file(source)
    written = write_as(
        found.plan, map_tensors(source, found.header), target, dialect, overwrite=True
    )
    assert written.difference < 1e-6


@measurement(
    Row(
        "write, renamed",
        "Writing in another dialect, verified: renamed",
        COPY,
        "renamed",
        "copy kohya",
        3,
        60,
    ),
    Row("write, fused", "The same: fused", COPY, "fused", "copy diffusers", 7, 60),
    Row("write, split", "The same: split", COPY, "split", "copy kohya", 5, 60),
    rounds=5,
    short_rounds=1,
)
def write(bench: Bench):
    rank = 8 if bench.short else 16
    kohya, diffusers = (
        make(bench.folder / make.__name__, rank) for make in (kohya_file, diffusers_file)
    )
    new = bench.folder / "new.safetensors"
    return bench.take_turns(
        {
            "copy kohya": partial(copy_bytes, [kohya], bench.folder / "copy"),
            "renamed": partial(convert, kohya, new, "comfyui"),
            "split": partial(convert, kohya, new, "diffusers"),
            "copy diffusers": partial(copy_bytes, [diffusers], bench.folder / "copy"),
            "fused": partial(convert, diffusers, new, "comfyui"),
        }
    )


def fix(folder: Path, output: Path) -> None:
    """The command line's, to kohya's names; without a wish good files would be left alone."""
    from lora_locksmith.cli import main

    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        code = main(["fix", str(folder), "--to", "kohya", "--output", str(output), "--overwrite"])
    assert code == 0


@measurement(
    Row(
        "fix",
        "`fix` of a folder of files, hashed, fused, verified",
        COPY,
        "fix",
        "copy",
        8,
        60,
        True,
    ),
    rounds=3,
    short_rounds=1,
)
def fix_folder(bench: Bench):
    count, rank = (2, 4) if bench.short else (5, 16)
    folder = bench.folder / "folder"
    folder.mkdir()
    paths = [diffusers_file(folder / f"{number}.safetensors", rank) for number in range(count)]
    return bench.take_turns(
        {
            "copy": partial(copy_bytes, paths, bench.folder / "copy"),
            "fix": partial(fix, folder, bench.folder / "fixed"),
        }
    )


@measurement(
    Row(
        "memory of fix",
        "Memory `fix` of a file needs at its peak",
        "the size of the file",
        "fix",
        "file",
        0.5,
        1,
    ),
    rounds=3,
    short_rounds=1,
    unit=BYTES,
)
def fix_memory(bench: Bench):
    folder = bench.folder / "folder"
    folder.mkdir()
    path = diffusers_file(folder / "lora.safetensors", 16 if bench.short else 64)
    peaks = bench.peaks("writing", {"fix": ("fixer", folder, bench.folder / "fixed")})
    return peaks | {"file": [total_size([path])] * bench.rounds}


def fixer(folder: str, output: str) -> Callable[[], object]:
    """After a fix of a file of rank 1, which reads the tables; every round writes to a place of its
    own.
    """
    Path(output).mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=output))
    (place / "warm").mkdir()
    diffusers_file(place / "warm" / "small.safetensors", 1)
    fix(place / "warm", place / "warm_fixed")
    return partial(fix, Path(folder), place / "fixed")
