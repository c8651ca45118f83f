"""Inspecting one file and scanning a folder, in multiples of parsing the headers' JSON alone and of
asking for the files' times.
"""

from __future__ import annotations

import json
import os
import tracemalloc
from itertools import islice
from pathlib import Path

from .collection import mixed_library
from .files import flux_modules, header_text, lora_shapes
from .measuring import BYTES, Bench, Row, measurement

SPELLINGS = ("transformer.", "diffusion_model.", "transformer.base_model.model.", "kohya")
RANKS = (4, 8, 16, 32, 64, 128)
JSON = "`json.loads` of its header"
FILES, FEW = 1000, 48
MANY_KINDS = 240  # files of which some are alike where few are


def flux_file(path: Path, spelling: str = "transformer.", rank: int = 16, number: int = 0) -> Path:
    """A LoRA over the 494 modules of FLUX.1's blocks, with metadata of its own."""
    from hollow_files import write_hollow

    shapes = lora_shapes(flux_modules(), rank, spelling)
    # What is another in each file, as a hash, must not keep alike ones from being known as such.
    own = {"ss_output_name": f"lora {number}", "sshs_model_hash": f"{number:064x}"}
    return write_hollow(path, shapes, own | {"modelspec.date": "2026-01-01", "ss_steps": "1000"})


@measurement(
    Row(
        "inspect, first",
        "Inspecting a FLUX.1 LoRA: verdict, first of its kind",
        JSON,
        "first",
        "json.loads",
        9,
        25,
    ),
    Row(
        "inspect",
        "The same, one alike was inspected before",
        JSON,
        "alike",
        "json.loads",
        4,
        12,
    ),
    Row(
        "inspect, report",
        "The same, whole report for programs",
        JSON,
        "report",
        "json.loads",
        5,
        15,
    ),
    Row(
        "read header", "Reading and checking its header alone", JSON, "header", "json.loads", 1.9, 6
    ),
    rounds=31,
    short_rounds=9,
)
def inspect(bench: Bench):
    """The tables read and the model drawn before."""
    from lora_locksmith.files.header import read_header
    from lora_locksmith.report import inspection
    from lora_locksmith.report.inspection import inspect_file

    path = flux_file(bench.folder / "flux.safetensors")
    text = header_text(path)
    assert inspect_file(path).report.modules == {"placed": 494, "total": 494}

    def anew():
        inspection._alike.clear()
        return inspect_file(path).verdict

    return bench.take_turns(
        {
            "json.loads": lambda: json.loads(text),
            "header": lambda: read_header(path),
            "first": anew,
            "alike": lambda: inspect_file(path).verdict,
            "report": lambda: inspect_file(path).as_dict(),
        }
    )


def library(folder: Path, files: int) -> Path:
    """A folder of FLUX.1 LoRAs of several trainers and ranks."""
    folder.mkdir()
    for number in range(files):
        kind = number % (len(SPELLINGS) * len(RANKS))
        flux_file(
            folder / f"{number:04}.safetensors",
            SPELLINGS[kind % len(SPELLINGS)],
            RANKS[kind // len(SPELLINGS)],
            number,
        )
    return folder


@measurement(
    Row(
        "scan",
        "Scanning a folder of LoRAs, several alike",
        "`json.loads` of all headers",
        "scan",
        "json.loads",
        0.14,
        12,
    ),
    Row(
        "scan, kept",
        "The same, keeping what is found in a new index",
        "the scan alone",
        "kept",
        "scan",
        1.1,
        8,
    ),
    Row(
        "scan, mixed",
        "Scanning a collection of many kinds, each eighth file like no other",
        "`json.loads` of all headers",
        "mixed",
        "json.loads, mixed",
        2.6,
        16,
    ),
    Row(
        "scan again",
        "Scanning it again",
        "asking the system for the files' times",
        "again",
        "stat",
        5,
        60,
    ),
    Row(
        "scan again, first row",
        "The same, until its first row is there",
        "all rows",
        "first row",
        "again",
        0.5,
        0.9,
    ),
    rounds=5,
    short_rounds=3,
)
def scan(bench: Bench):
    from cold import forget
    from lora_locksmith.report.index import Index
    from lora_locksmith.report.library import scan, scan_files
    from lora_locksmith.report.listing import find_files, key_root

    files = FEW if bench.short else FILES
    place, index = library(bench.folder / "library", files), bench.folder / "index.sqlite"
    paths = sorted(place.iterdir())
    names, roots = [path.name for path in paths], [key_root(place)]
    assert [row.findings.placed for row in scan(place, index)] == [494] * files

    def anew(folder: Path, index: Path | None = None):
        forget()
        if index is not None:
            index.unlink(missing_ok=True)
        return list(scan(folder, index))

    mixed = mixed_library(bench.folder / "mixed", MANY_KINDS if bench.short else 2 * FILES)
    several = sorted(mixed.iterdir())
    first = bench.take_turns(
        {
            "json.loads": lambda: parse_all(paths),
            "scan": lambda: anew(place),
            "kept": lambda: anew(place, index),
            "json.loads, mixed": lambda: parse_all(several),
            "mixed": lambda: anew(mixed),
        }
    )
    again = bench.take_turns(
        {
            "stat": lambda: [os.stat(path) for path in paths],
            "again": lambda: list(scan(place, index)),
            "first row": lambda: next(
                scan_files(find_files(names, [os.fspath(place)]), Index(index, print), roots=roots)
            ),
        }
    )
    return first | again


def parse_all(paths: list[Path]) -> None:
    """json.loads of every header, and nothing kept."""
    for path in paths:
        json.loads(header_text(path))


@measurement(
    Row(
        "memory of a scan",
        "Memory a scan needs at its peak",
        "scanning half of the files",
        "all",
        "half",
        1.1,
        2,
    ),
    rounds=1,
    short_rounds=1,
    unit=BYTES,
)
def scan_memory(bench: Bench):
    """Python's own; what grows is the index's rows."""
    from cold import forget
    from lora_locksmith.report.library import scan

    files = FEW if bench.short else FILES
    place, found = library(bench.folder / "library", files), {}
    for name, most in (("half", files // 2), ("all", files)):
        forget()
        tracemalloc.start()
        for _ in islice(scan(place), most):
            pass
        found[name] = [tracemalloc.get_traced_memory()[1]]
        tracemalloc.stop()
    return found
