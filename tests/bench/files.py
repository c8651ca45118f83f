"""The files that are measured: LoRAs over FLUX.1 at its published sizes, in the names of several
trainers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

Shape = tuple[int, ...]
ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)


def flux_modules(hidden: int = 3072, mlp: int = 12288) -> dict[str, tuple[int, int]]:
    """diffusers' name -> (output, input) of every linear layer in FLUX.1's blocks: 494."""
    double = {"norm1.linear": (6 * hidden, hidden), "norm1_context.linear": (6 * hidden, hidden)}
    double |= {f"attn.{name}": (hidden, hidden) for name in ATTENTION}
    for branch in ("ff", "ff_context"):
        double |= {f"{branch}.net.0.proj": (mlp, hidden), f"{branch}.net.2": (hidden, mlp)}
    single = {
        "norm.linear": (3 * hidden, hidden),
        "proj_mlp": (mlp, hidden),
        "proj_out": (hidden, hidden + mlp),
    }
    single |= {f"attn.{name}": (hidden, hidden) for name in ATTENTION[:3]}
    modules = {
        f"transformer_blocks.{i}.{name}": shape for i in range(19) for name, shape in double.items()
    }
    return modules | {
        f"single_transformer_blocks.{i}.{name}": shape
        for i in range(38)
        for name, shape in single.items()
    }


def native_modules() -> dict[str, tuple[int, int]]:
    """The same layers by ComfyUI's names, which are fused."""
    import comfy_models

    shapes = comfy_models.shapes("flux1_dev")
    names = {
        name.removesuffix(".weight").removeprefix("diffusion_model."): shape
        for name, shape in shapes.items()
        if len(shape) == 2
    }
    return {name: shape for name, shape in names.items() if "_blocks." in name}


def every(step: int, modules: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The modules of every `step`th block, in the proportions of all."""
    return {name: shape for name, shape in modules.items() if int(name.split(".")[1]) % step == 0}


def lora_shapes(
    modules: Mapping[str, tuple[int, int]], rank: int, spelling: str = "transformer."
) -> dict[str, Shape]:
    """The tensors of a LoRA over these modules: PEFT's names behind this prefix, or those of
    "kohya", which has alphas.
    """
    return dict(
        sorted(
            tensor
            for module, shape in modules.items()
            for tensor in _tensors(module, *shape, rank, spelling)
        )
    )


def _tensors(
    module: str, out: int, inner: int, rank: int, spelling: str
) -> Iterator[tuple[str, Shape]]:
    if spelling == "kohya":
        name = "lora_unet_" + module.replace(".", "_")
        yield from (
            (f"{name}.alpha", ()),
            (f"{name}.lora_down.weight", (rank, inner)),
            (f"{name}.lora_up.weight", (out, rank)),
        )
    else:
        yield from (
            (f"{spelling}{module}.lora_A.weight", (rank, inner)),
            (f"{spelling}{module}.lora_B.weight", (out, rank)),
        )


@cache
def _noise(size: int):
    import torch

    return (torch.randn(size, generator=torch.Generator().manual_seed(1)) * 0.02).bfloat16()


def write_noise(path: Path, shapes: Mapping[str, Shape], seed: int = 0) -> Path:
    """A bf16 file of noise, each tensor another part of the same numbers, which is many times
    faster than drawing all.
    """
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    noise = _noise(1 << 23)
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        start = int(torch.randint(len(noise) - count, (), generator=generator))
        tensors[name] = noise[start : start + count].view(shape).clone()
    save_file(tensors, path)
    return path


def header_text(path: Path) -> bytes:
    """The JSON of a file's header."""
    with open(path, "rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def copy_bytes(paths: Iterable[Path], target: Path) -> None:
    """The files one behind the other in one new file, put in place whole and on disk when this
    returns, as ours are.
    """
    part = target.with_suffix(".part")
    with open(part, "wb") as new:
        for path in paths:
            with open(path, "rb") as file:
                shutil.copyfileobj(file, new, 1 << 22)
        new.flush()
        os.fsync(new.fileno())
    os.replace(part, target)


def plan_on_flux(path: Path):
    """(plan of the file on a FLUX.1 of full size, its header)."""
    import comfy_models
    from lora_locksmith.files.header import read_header
    from lora_locksmith.planning.plan import make_plan
    from lora_locksmith.planning.target_model import TargetModel, denoiser_network

    header = read_header(path)
    return (
        make_plan(
            header.tensors,
            header.metadata,
            TargetModel([denoiser_network(comfy_models.shapes("flux1_dev"))]),
        ),
        header,
    )


def total_size(paths: Sequence[Path]) -> float:
    return float(sum(path.stat().st_size for path in paths))
