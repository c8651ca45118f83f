"""Times merging two full-size FLUX.1 files against copying their bytes, and truncated sums against the peers' ways, in one run."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

FILE_RANK = 16
ROUNDS = 3
RANK = 24
# (out, columns) of FLUX.1's commonest module, and the rank of each of the two files.
MODULE, MODULE_RANKS = (3072, 3072), (16, 64)


def write_files(folder: Path, count: int) -> list[Path]:
    """Files over all modules of FLUX.1 in ComfyUI's own, fused names, rank 16, bf16; sums of them are as large as they are together."""
    import comfy_models
    import torch
    from safetensors.torch import save_file

    shapes = {name: shape for name, shape in comfy_models.shapes("flux1_dev").items() if "_blocks." in name and len(shape) == 2}
    paths = []
    for number in range(count):
        generator, tensors = torch.Generator().manual_seed(number), {}
        for name, (out, inner) in shapes.items():
            module = name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = torch.randn(FILE_RANK, inner, generator=generator).bfloat16()
            tensors[f"{module}.lora_B.weight"] = torch.randn(out, FILE_RANK, generator=generator).bfloat16()
        paths.append(folder / f"lora_{number}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def sources(paths: list[Path]):
    """The files planned on a FLUX.1 and open, as the command line has them."""
    from lora_locksmith.key_maps.header import read_header
    from lora_locksmith.lora.collect import Source
    from lora_locksmith.lora.stream import TensorStream
    from lora_locksmith.lora.together import File, inspect_together

    headers = [read_header(path) for path in paths]
    found = inspect_together([File(path.name, header) for path, header in zip(paths, headers, strict=True)])
    return [
        Source(one.plan, TensorStream(path, header).__enter__(), 0.8, 0.8, name=path.name)
        for one, path, header in zip(found, paths, headers, strict=True)
    ]


def copy_bytes(paths: list[Path], folder: Path) -> None:
    """The files one behind the other in one new file, put in place whole and on disk when this returns, as a merge is."""
    with open(folder / "copy.part", "wb") as target:
        for path in paths:
            with open(path, "rb") as file:
                shutil.copyfileobj(file, target, 1 << 22)
        target.flush()
        os.fsync(target.fileno())
    os.replace(folder / "copy.part", folder / "copy")


def exact(paths: list[Path], folder: Path) -> None:
    """The exact sum, as a file."""
    from lora_locksmith.lora.merge_file import write_merged

    write_merged(folder / "exact.safetensors", sources(paths), overwrite=True)


def cut(paths: list[Path]) -> None:
    """The sum at rank 24, kept nowhere."""
    from lora_locksmith.lora.merge import Recipe, merge

    for _ in merge(sources(paths), Recipe(rank=RANK)):
        pass


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def whole_files(folder: Path) -> dict[str, object]:
    """Ratios of merging whole files to copying as many bytes."""
    paths = write_files(folder, 2)
    copies, exacts = [], []
    for _ in range(ROUNDS):
        copies.append(timed(lambda: copy_bytes(paths, folder)))
        exacts.append(timed(lambda: exact(paths, folder)))
    return {
        "megabytes": round((folder / "exact.safetensors").stat().st_size / 1e6),
        "copy_seconds": round(statistics.median(copies), 2),
        "exact_to_copy": round(statistics.median(ours / copy for ours, copy in zip(exacts, copies, strict=True)), 2),
        f"rank_{RANK}_seconds": round(timed(lambda: cut(paths)), 2),
    }


def ways(rank: int) -> Mapping[str, Callable[[], tuple]]:
    """name -> () -> (up, down) of rank `rank` of the sum of two deltas of that rank each."""
    import torch
    from lora_locksmith.lora.factors import Factors
    from lora_locksmith.lora.truncate import truncated

    out, columns = MODULE
    generator = torch.Generator().manual_seed(rank)
    up, down = torch.randn(out, 2 * rank, generator=generator), torch.randn(2 * rank, columns, generator=generator)

    def ours():
        kept = truncated(Factors(up, down), rank).delta
        return kept.up, kept.down

    def sampled():
        left, values, right = torch.svd_lowrank(up @ down, rank + 8, niter=4)
        return left[:, :rank] * values[:rank], right[:, :rank].T

    def whole():
        """As sd-scripts' svd_merge_lora.py and PEFT's add_weighted_adapter with combination_type svd: SVD of the dense sum."""
        left, values, right = torch.linalg.svd(up @ down)
        return left[:, :rank] * values[:rank], right[:rank]

    optimum = torch.linalg.svdvals(torch.linalg.qr(up.double()).R @ torch.linalg.qr(down.double().T).R.T)
    best = optimum[rank:].norm().item()
    return {"ours": ours, "svd_lowrank": sampled, "svd": whole}, (up, down), best


def one_module(rank: int, with_svd: bool) -> dict[str, object]:
    """How many times faster than the peers' ways, and the error above the optimum of each."""
    made, (up, down), best = ways(rank)
    made["ours"]()
    seconds = {"ours": min(timed(made["ours"]) for _ in range(5)), "svd_lowrank": min(timed(made["svd_lowrank"]) for _ in range(2))}
    if with_svd:
        seconds["svd"] = timed(made["svd"])
    told: dict[str, object] = {"rank": rank, "ours_milliseconds": round(1000 * seconds["ours"], 2)}
    for name, time_taken in seconds.items():
        if name != "ours":
            told[f"times_faster_than_{name}"] = round(time_taken / seconds["ours"], 1)
    for name in ("ours", "svd_lowrank"):
        left, right = made[name]()
        told[f"error_above_optimum_{name}"] = (up.double() @ down.double() - left.double() @ right.double()).norm().item() / best - 1
    return told


def peaks(folder: Path) -> dict[str, float]:
    """Megabytes by which a merge raises the peak of a process of its own, for 2 and for 8 files."""
    paths = write_files(folder, 8)
    found = {}
    for count in (2, 8):
        command = [sys.executable, __file__, str(folder / "peak.safetensors"), *map(str, paths[:count])]
        found[f"{count}_files"] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found


def main(output: str, *paths: str) -> float:
    """Merge as the command line does, and tell the peak."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest  # noqa: F401 - it loads the pack under the name lora_locksmith
    import torch
    from lora_locksmith.lora.merge_file import write_merged
    from peak import forget_peak, peak_bytes

    torch.set_num_threads(1)
    given = sources([Path(path) for path in paths])
    forget_peak()
    before = peak_bytes()
    write_merged(output, given, overwrite=True)
    return round((peak_bytes() - before) / 1e6, 1)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
