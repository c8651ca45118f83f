"""LoRA files for the command line to read, written with the standard library alone."""

from __future__ import annotations

from pathlib import Path

from hollow_files import write_hollow

ROOT = Path(__file__).resolve().parents[2]
CLI = ROOT / "cli.py"


def write_file(
    path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None
) -> Path:
    """A safetensors file of F16 zeros; the standard library alone, as the command line itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_hollow(path, shapes, metadata, "F16")


def flux_lora(
    rank: int = 4, start: str = "transformer.", blocks: int = 19
) -> dict[str, tuple[int, ...]]:
    """Keys of FLUX.1's feed-forward layers, which no other model has, in diffusers' names."""
    shapes = {}
    for block in range(blocks):
        for layer, out in (
            ("ff.net.0.proj", 12288),
            ("ff_context.net.0.proj", 12288),
            ("norm1.linear", 18432),
        ):
            name = f"{start}transformer_blocks.{block}.{layer}"
            shapes |= {f"{name}.lora_A.weight": (rank, 3072), f"{name}.lora_B.weight": (out, rank)}
    return shapes
