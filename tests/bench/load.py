"""Times loading against the stock loader, interleaved in one run: file on disk -> patches on a full-size FLUX.1."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from interleaved import ratios_to_stock

RANK = 16
ROUNDS = 9


def write_flux_lora(path: Path) -> int:
    """A LoRA over all 494 modules of FLUX.1 that diffusers' names have, rank 16, bf16, in names the stock loader reads."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for module, (out, inner) in flux_modules().items():
        tensors[f"transformer.{module}.lora_A.weight"] = torch.zeros(RANK, inner, dtype=torch.bfloat16)
        tensors[f"transformer.{module}.lora_B.weight"] = torch.zeros(out, RANK, dtype=torch.bfloat16)
    save_file(tensors, path)
    return len(tensors) // 2


def flux_modules(hidden: int = 3072, mlp: int = 12288) -> dict[str, tuple[int, int]]:
    """diffusers' name -> (output, input) of every linear layer in FLUX.1's blocks."""
    square = (hidden, hidden)
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    double = {"norm1.linear": (6 * hidden, hidden), "norm1_context.linear": (6 * hidden, hidden)}
    double |= {f"attn.{name}": square for name in attention}
    for branch in ("ff", "ff_context"):
        double |= {f"{branch}.net.0.proj": (mlp, hidden), f"{branch}.net.2": (hidden, mlp)}
    single = {"norm.linear": (3 * hidden, hidden), "proj_mlp": (mlp, hidden), "proj_out": (hidden, hidden + mlp)}
    single |= {f"attn.{name}": square for name in ("to_q", "to_k", "to_v")}
    modules = {f"transformer_blocks.{i}.{name}": shape for i in range(19) for name, shape in double.items()}
    return modules | {f"single_transformer_blocks.{i}.{name}": shape for i in range(38) for name, shape in single.items()}


def loaders(host, path: Path) -> dict[str, Callable[[], object]]:
    """What is timed, by name; each starts from the file on disk."""
    import comfy.model_patcher
    import comfy.sd
    import comfy.utils
    import comfy_models
    import torch

    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(comfy_models.network("flux1_dev"), cpu, cpu)

    def stock():
        tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
        return comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 1.0, lora_metadata=metadata)[0]

    def ours(forget_model: bool):
        host.forget(files=True, models=forget_model)
        return host.load_and_fix(patcher, None, path)[0]

    return {"stock": stock, "ours": lambda: ours(True), "ours, model known": lambda: ours(False)}


def measure(host, folder: Path, rounds: int = ROUNDS) -> dict[str, object]:
    """Medians of interleaved runs as ratios to stock's, with the spread (the middle half of the rounds)."""
    path = folder / "flux_lora.safetensors"
    modules = write_flux_lora(path)
    timed = loaders(host, path)
    for load in timed.values():
        patched = load().patches
        assert sum(len(patches) for patches in patched.values()) == modules
    return {"modules": modules, **ratios_to_stock(timed, rounds)}


def peak_memory(loader: str, comfyui: Path, path: Path) -> int:
    """Bytes by which one load in a fresh process raises its peak, by the loader `loader` ("stock" or "ours")."""
    program = Path(__file__).with_name("peak.py")
    finished = subprocess.run([sys.executable, str(program), loader, str(comfyui), str(path)], check=True, capture_output=True, text=True)
    return int(finished.stdout.split()[-1])
