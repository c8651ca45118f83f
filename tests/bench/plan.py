"""Times planning a file and indexing a model of full size: torch-free work on names and shapes."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 15
# One model of each kind of table: fused and split names, a UNet, the longest list of names, plain transformer blocks.
MODELS = ("flux1_dev", "sdxl", "qwen_image", "wan21_i2v_14b")


def milliseconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median of `rounds` runs."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def write_lora(path: Path) -> None:
    """A DoRA with alphas over all of FLUX.1's blocks in diffusers' names, rank 1: 1,976 keys."""
    import torch
    from load import flux_modules
    from safetensors.torch import save_file

    tensors = {}
    for module, (out, inner) in flux_modules().items():
        roles = {"lora_A.weight": (1, inner), "lora_B.weight": (out, 1), "alpha": (), "lora_magnitude_vector": (out,)}
        tensors |= {f"transformer.{module}.{role}": torch.zeros(shape, dtype=torch.bfloat16) for role, shape in roles.items()}
    save_file(tensors, path)


def planning(path: Path) -> dict[str, object]:
    """A plan with a warm index, in milliseconds and as a multiple of parsing the same header's JSON alone."""
    import comfy_models
    from lora_locksmith.key_maps.header import read_header
    from lora_locksmith.key_maps.plan import make_plan
    from lora_locksmith.key_maps.site import Site, denoiser_component

    site = Site([denoiser_component(comfy_models.shapes("flux1_dev"))])
    header = read_header(path)
    text = header_text(path)
    plan = make_plan(header.tensors, header.metadata, site)
    assert {outcome.category for outcome in plan.outcomes.values()} == {"placed"}
    parsing = milliseconds(lambda: json.loads(text))
    took = milliseconds(lambda: make_plan(header.tensors, header.metadata, site))
    reading = milliseconds(lambda: read_header(path))
    return {
        "keys": len(header.tensors),
        "json_loads_milliseconds": round(parsing, 2),
        "read_header_milliseconds": round(reading, 2),
        "plan_milliseconds": round(took, 2),
        "plan_to_json_loads": round(took / parsing, 1),
    }


def header_text(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def indexing(name: str) -> dict[str, object]:
    """The index of a full-size model, in milliseconds and as a multiple of parsing its names and shapes as JSON."""
    import comfy_models
    from lora_locksmith.key_maps.site import Site, denoiser_component

    shapes = dict(comfy_models.shapes(name))
    text = json.dumps({key: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for key, shape in shapes.items()})
    site = Site([denoiser_component(shapes)])
    assert site.family is not None and site.family.name == comfy_models.MODELS[name].family
    parsing = milliseconds(lambda: json.loads(text))
    took = milliseconds(lambda: Site([denoiser_component(shapes)]))
    return {"weights": len(shapes), "index_milliseconds": round(took, 1), "index_to_json_loads": round(took / parsing, 1)}
