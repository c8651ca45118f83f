"""Times inspecting one file and scanning a folder, in multiples of parsing the headers' JSON alone and of asking for the files' times."""

from __future__ import annotations

import json
import os
import statistics
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from interleaved import interleaved
from load import flux_modules

ROUNDS = 15
RANKS = (4, 8, 16, 32, 64, 128)


def roles(module: str, spelling: str, out: int, inner: int, rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of one LoRA module as a trainer names them: (name, shape)."""
    if spelling == "kohya":
        name = "lora_unet_" + module.replace(".", "_")
        yield from ((f"{name}.alpha", ()), (f"{name}.lora_down.weight", (rank, inner)), (f"{name}.lora_up.weight", (out, rank)))
    else:
        yield from ((f"{spelling}{module}.lora_A.weight", (rank, inner)), (f"{spelling}{module}.lora_B.weight", (out, rank)))


SPELLINGS = ("transformer.", "diffusion_model.", "transformer.base_model.model.", "kohya")


def flux_file(path: Path, spelling: str = "transformer.", rank: int = 16, number: int = 0) -> None:
    """A LoRA over the 494 modules of FLUX.1's blocks, with metadata of its own."""
    from hollow_files import write_hollow

    shapes = dict(tensor for module, size in flux_modules().items() for tensor in roles(module, spelling, *size, rank))
    write_hollow(path, dict(sorted(shapes.items())), {"ss_output_name": f"lora {number}", "ss_steps": str(number)})


def header_text(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def ratios(runs: Mapping[str, Callable[[], object]], base: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Medians of the runs' times, interleaved, in multiples of the run `base`."""
    times, _ = interleaved(runs, rounds)
    relative = {name: [own / other for own, other in zip(taken, times[base], strict=True)] for name, taken in times.items()}
    return {name: round(statistics.median(found), 2) for name, found in relative.items()}


def inspecting(folder: Path) -> dict[str, object]:
    """One file, its tables read and its model drawn before: the verdict, also as that of one alike, and the whole report for programs."""
    from lora_locksmith.key_maps import inspection
    from lora_locksmith.key_maps.header import read_header
    from lora_locksmith.key_maps.inspection import inspect_file

    def anew():
        inspection._alike.clear()
        return inspect_file(path).verdict

    path = folder / "flux.safetensors"
    flux_file(path)
    assert inspect_file(path).report.modules == {"placed": 494, "total": 494}
    text = header_text(path)
    return ratios(
        {
            "json.loads": lambda: json.loads(text),
            "read_header": lambda: read_header(path),
            "verdict, first of its kind": anew,
            "verdict": lambda: inspect_file(path).verdict,
            "whole report": lambda: inspect_file(path).as_dict(),
        },
        "json.loads",
    )


def library(folder: Path, files: int) -> Path:
    """A folder of FLUX.1 LoRAs of several trainers and ranks."""
    folder.mkdir()
    for number in range(files):
        kind = number % (len(SPELLINGS) * len(RANKS))
        flux_file(folder / f"{number:04}.safetensors", SPELLINGS[kind % len(SPELLINGS)], RANKS[kind // len(SPELLINGS)], number)
    return folder


def scanning(folder: Path, files: int, rounds: int = 3) -> dict[str, object]:
    """A folder of many files: scanned, in multiples of json.loads of all headers; scanned again, in multiples of stat of all files."""
    from lora_locksmith.key_maps.library import scan

    place, index = library(folder / "library", files), folder / "index.json"
    paths = sorted(place.iterdir())
    assert [row.findings.placed for row in scan(place, index)] == [494] * files
    first = ratios({"json.loads": lambda: parse_all(paths), "scan": lambda: list(scan(place))}, "json.loads", rounds)
    again = ratios({"stat": lambda: [os.stat(path) for path in paths], "rescan": lambda: list(scan(place, index))}, "stat", ROUNDS)
    return {"files": files, "scan_to_json_loads": first["scan"], "rescan_to_stat": again["rescan"], "peak_kilobytes": peak(place, files)}


def parse_all(paths: list[Path]) -> None:
    """json.loads of every header, and nothing kept."""
    for path in paths:
        json.loads(header_text(path))


def peak(place: Path, files: int) -> dict[str, int]:
    """Python's peak memory of a scan of a quarter of the files, and of all: what grows is the index's rows."""
    from itertools import islice

    from lora_locksmith.key_maps.library import scan

    found = {}
    for name, most in (("quarter", files // 4), ("all", files)):
        tracemalloc.start()
        for _ in islice(scan(place), most):
            pass
        found[name] = tracemalloc.get_traced_memory()[1] // 1024
        tracemalloc.stop()
    return found


if __name__ == "__main__":
    import sys
    import tempfile

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest  # noqa: F401 - gives the pack its name

    with tempfile.TemporaryDirectory() as place:
        print(json.dumps({"inspect": inspecting(Path(place)), "scan": scanning(Path(place), 1000)}, indent=1))
