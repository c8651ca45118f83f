"""Weighing a file (norms, ranks, energy) from its factors, against making every
delta and its norm.
"""

from __future__ import annotations

from pathlib import Path

from .files import every, flux_modules, lora_shapes, plan_on_flux, write_noise
from .measuring import Bench, Row, measurement

RANK = 64


@measurement(
    Row(
        "weights",
        "Measuring weights: norms, ranks, energy",
        "every dense delta and its norm",
        "ours",
        "dense",
        0.05,
        0.12,
    ),
    rounds=5,
    short_rounds=1,
)
def weights(bench: Bench):
    """Every 8th block of FLUX.1 at rank 64, in the short form every 19th: the proportions are those
    of all.
    """
    from lora_locksmith.lora.io.mapped import map_tensors
    from lora_locksmith.lora.statistics import measure_modules

    modules = every(19 if bench.short else 8, flux_modules())
    path = write_noise(bench.folder / "lora.safetensors", lora_shapes(modules, RANK))
    plan, header = plan_on_flux(path)
    found, norms = (
        {row.module: row for row in measure_modules(plan, map_tensors(path, header)).modules},
        dense_norms(plan, path),
    )
    assert found.keys() == norms.keys() and len(norms) == len(modules)
    assert all(abs(found[module].frobenius / norm - 1) < 1e-4 for module, norm in norms.items())
    return bench.take_turns(
        {
            "dense": lambda: dense_norms(plan, path),
            "ours": lambda: measure_modules(plan, map_tensors(path, header)),
        }
    )


def dense_norms(plan, path: Path) -> dict[str, float]:
    """module -> Frobenius norm, each delta as a dense fp32 matrix."""
    import torch
    from lora_locksmith.files.header import read_header
    from lora_locksmith.lora.io.stream import TensorStream

    norms = {}
    with TensorStream(path, read_header(path)) as tensors:
        for adapter in plan.adapters:
            up, down = (tensors[adapter.roles[role]].float() for role in ("up", "down"))
            # Row by row: the fp32 norm of a whole matrix of this size is wrong in its third digit.
            norms[adapter.module] = torch.linalg.vector_norm(
                torch.linalg.vector_norm(up @ down, dim=1)
            ).item()
    return norms
