"""Writes safetensors files of zeros that take no space on the disk, with the standard library
alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

BYTES = {
    "F64": 8,
    "F32": 4,
    "BF16": 2,
    "F16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


def write_hollow(
    path: Path,
    shapes: Mapping[str, tuple],
    metadata: Mapping[str, str] | None = None,
    dtype: str = "BF16",
    values: Mapping[str, bytes] | None = None,
) -> Path:
    """A safetensors file at `path`. shapes: name -> shape, or (dtype, *shape); values: the data of
    tensors that are not zero.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, described in shapes.items():
        kind, *shape = (
            described if described and isinstance(described[0], str) else (dtype, *described)
        )
        start, end = end, end + BYTES[kind] * prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for name, value in (values or {}).items():
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(value)
    return path
