"""Times writing a full-size FLUX LoRA in another dialect, verified, in multiples of copying the same bytes; and its peak memory."""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path

from load import flux_modules

ROUNDS = 3
RANK = 16
# (dialect the file is in, dialect it is written in): names only, fused, split.
WAYS = {"names only": ("kohya", "comfyui"), "fused": ("diffusers", "comfyui"), "split": ("kohya", "diffusers")}


def flux_file(path: Path, dialect: str, rank: int = RANK) -> None:
    """A LoRA of bf16 noise over the linear layers of FLUX.1's blocks, as `dialect` (diffusers or kohya) names and divides them."""
    import torch
    from lora_locksmith.key_maps.dialect import dialects
    from lora_locksmith.key_maps.header import Header, TensorInfo
    from lora_locksmith.key_maps.inspection import inspect_header
    from lora_locksmith.key_maps.spell import spell
    from safetensors.torch import save_file

    tensors = {}
    for module, (out, inner) in flux_modules().items():
        tensors[f"transformer.{module}.lora_A.weight"] = torch.randn(rank, inner).to(torch.bfloat16)
        tensors[f"transformer.{module}.lora_B.weight"] = torch.randn(out, rank).to(torch.bfloat16)
    if dialect != "diffusers":
        header = Header({name: TensorInfo("BF16", tuple(tensor.shape)) for name, tensor in tensors.items()}, {})
        site = inspect_header("", header, None).plan.site
        tensors = {}
        for module in spell(site, site.components["denoiser"], dialects()[dialect]):
            if "_blocks" in module.module and 0 not in module.shape:
                out, inner = module.shape
                tensors[f"{module.module}.lora_down.weight"] = torch.randn(rank, inner).to(torch.bfloat16)
                tensors[f"{module.module}.lora_up.weight"] = torch.randn(out, rank).to(torch.bfloat16)
                tensors[f"{module.module}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path)


def copied(source: Path, target: Path) -> float:
    """Seconds to read a file and to write the same bytes, synced."""
    start = time.perf_counter()
    with open(source, "rb") as read, open(target, "wb") as write:
        while part := read.read(1 << 22):
            write.write(part)
        write.flush()
        os.fsync(write.fileno())
    return time.perf_counter() - start


def converted(source: Path, target: Path, dialect: str) -> tuple[float, float]:
    """(seconds to convert and verify, largest relative difference)."""
    from lora_locksmith.key_maps.inspection import inspect_file
    from lora_locksmith.lora.reader import map_tensors
    from lora_locksmith.lora.writer import write_as

    start = time.perf_counter()
    found = inspect_file(source)
    written = write_as(found.plan, map_tensors(source, found.header), target, dialect, overwrite=True)
    return time.perf_counter() - start, written.difference


def measure(folder: Path, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """For each way: times_copy (median of converting over copying), largest difference, megabytes."""
    found = {}
    for way, (written_in, dialect) in WAYS.items():
        source = folder / f"{written_in}.safetensors"
        if not source.exists():
            flux_file(source, written_in)
        times = []
        for _ in range(rounds):
            copy = copied(source, folder / "copy")
            seconds, difference = converted(source, folder / "new.safetensors", dialect)
            times.append((seconds / copy, seconds))
        found[way] = {
            "times_copy": round(statistics.median(ratio for ratio, _ in times), 2),
            "seconds": round(statistics.median(seconds for _, seconds in times), 2),
            "difference": difference,
            "megabytes": source.stat().st_size // 10**6,
        }
    return found


def peak_of_own(folder: Path, rank: int) -> int:
    """Bytes of memory of its own (mapped files aside) that fusing a file of this rank adds at most (Linux)."""
    source, small, target = folder / f"rank{rank}.safetensors", folder / "small.safetensors", folder / "peak.safetensors"
    flux_file(small, "diffusers", 1)
    flux_file(source, "diffusers", rank)
    converted(small, target, "comfyui")
    start, most, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], own_memory() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    converted(source, target, "comfyui")
    done.set()
    watcher.join()
    return most[0]


def own_memory() -> int:
    """Anonymous bytes of this process."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    import tempfile

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest  # noqa: F401 - gives the pack its name
    from threads import one_thread

    with one_thread(), tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder)), indent=1))
        print({rank: f"{peak_of_own(Path(folder), rank) // 2**20} MiB" for rank in (16, 64)})
