"""LoRA files for the command line to read, written with the standard library alone."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLI = ROOT / "cli.py"


def write_file(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of F16 zeros; the standard library alone, as the command line itself."""
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def flux_lora(rank: int = 4, start: str = "transformer.", blocks: int = 19) -> dict[str, tuple[int, ...]]:
    """Keys of FLUX.1's feed-forward layers, which no other model has, in diffusers' names."""
    shapes = {}
    for block in range(blocks):
        for layer, out in (("ff.net.0.proj", 12288), ("ff_context.net.0.proj", 12288), ("norm1.linear", 18432)):
            name = f"{start}transformer_blocks.{block}.{layer}"
            shapes |= {f"{name}.lora_A.weight": (rank, 3072), f"{name}.lora_B.weight": (out, rank)}
    return shapes
