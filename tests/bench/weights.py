"""Times weighing a file against the plain way, interleaved: every delta materialised, and its norm taken."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from interleaved import interleaved

RANK = 64
ROUNDS = 3
# An eighth of FLUX.1: every 8th block, in the proportions and at the sizes of all.
EVERY = 8
# Dense deltas whose spectral norm is sampled by svdvals: one takes as long as weighing hundreds of modules.
SAMPLES = 2


def write_lora(path: Path) -> int:
    """A bf16 LoRA of rank 64 over every 8th block of a full-size FLUX.1, in diffusers' names; returns its modules."""
    import torch
    from load import flux_modules
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(4)
    modules = {name: shape for name, shape in flux_modules().items() if int(name.split(".")[1]) % EVERY == 0}
    tensors = {}
    for name, (out, inner) in modules.items():
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(RANK, inner, generator=generator).bfloat16()
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(out, RANK, generator=generator).bfloat16()
    save_file(tensors, path)
    return len(modules)


def make_plan(path: Path):
    """The plan of the file on a full-size FLUX.1."""
    import comfy_models
    from lora_locksmith.key_maps.header import read_header
    from lora_locksmith.key_maps.plan import make_plan
    from lora_locksmith.key_maps.site import Site, denoiser_component

    header = read_header(path)
    return make_plan(header.tensors, header.metadata, Site([denoiser_component(comfy_models.shapes("flux1_dev"))]))


def materialise(plan, path: Path) -> dict[str, float]:
    """module -> Frobenius norm, each delta as a dense fp32 matrix."""
    import torch
    from lora_locksmith.lora.reader import LoraReader

    norms = {}
    with LoraReader(path) as reader:
        for adapter in plan.adapters:
            up, down = (reader.tensor(adapter.roles[role]).float() for role in ("up", "down"))
            # Row by row: the fp32 norm of a whole matrix of this size is wrong in its third digit.
            norms[adapter.module] = torch.linalg.vector_norm(torch.linalg.vector_norm(up @ down, dim=1)).item()
    return norms


def spectral_norms(plan, path: Path) -> dict[str, float]:
    """module -> spectral norm of a few dense square deltas by svdvals."""
    import torch
    from lora_locksmith.lora.reader import LoraReader

    square = [adapter for adapter in plan.adapters if adapter.target.out == 3072 and adapter.target.inner == (3072,)]
    with LoraReader(path) as reader:
        pairs = {adapter.module: [reader.tensor(adapter.roles[role]).float() for role in ("up", "down")] for adapter in square[:SAMPLES]}
    return {module: torch.linalg.svdvals(up @ down)[0].item() for module, (up, down) in pairs.items()}


def weigh(plan, path: Path):
    """The whole answer of `weigh`, read from the file."""
    from lora_locksmith.lora.reader import LoraReader
    from lora_locksmith.lora.weights import weigh

    with LoraReader(path) as reader:
        return weigh(plan, reader)


def measure(folder: Path, rounds: int = ROUNDS) -> dict[str, object]:
    """How many times faster weighing is than the norms of the dense deltas, and by how much the two differ; one thread each."""
    path = folder / "lora.safetensors"
    modules, plan = write_lora(path), make_plan(path)
    seconds, results = interleaved({"dense": lambda: materialise(plan, path), "ours": lambda: weigh(plan, path)}, rounds)
    rows = {row.module: row for row in results["ours"].modules}
    assert len(rows) == len(plan.adapters) == modules
    start = time.perf_counter()
    spectral = spectral_norms(plan, path)
    sampling = time.perf_counter() - start
    norms = statistics.median(dense / ours for dense, ours in zip(seconds["dense"], seconds["ours"], strict=True))
    spectra = statistics.median((dense + sampling) / ours for dense, ours in zip(seconds["dense"], seconds["ours"], strict=True))
    return {
        "modules": modules,
        "of_flux": f"every {EVERY}th block",
        "rank": RANK,
        "weigh_seconds": round(statistics.median(seconds["ours"]), 3),
        "dense_seconds": round(statistics.median(seconds["dense"]), 2),
        "times_faster_than_frobenius": round(norms, 1),
        f"times_faster_than_frobenius_and_{SAMPLES}_spectral_norms": round(spectra, 1),
        "svdvals_of_a_square_delta_seconds": round(sampling / len(spectral), 2),
        "frobenius_differs": max(abs(rows[module].frobenius / norm - 1) for module, norm in results["dense"].items()),
        "spectral_differs": max(abs(rows[module].spectral / norm - 1) for module, norm in spectral.items()),
    }
