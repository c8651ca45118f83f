"""What other programs that read LoRA files make of them, by their own code, on the tiny models."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def products(tensors: dict[str, Tensor], start: str = "transformer.") -> dict[str, Tensor]:
    """weight name -> delta, of factors in diffusers' names, and of biases, once strength is in
    them; whatever else stands there fails.
    """
    made = {}
    for name, tensor in tensors.items():
        assert name.startswith(start), name
        module, _, role = name.removeprefix(start).rpartition(".lora_")
        assert role in ("A.weight", "B.weight", "B.bias"), name
        if role == "B.weight":
            down = tensors[f"{start}{module}.lora_A.weight"]
            made[f"{module}.weight"] = (tensor.double() @ down.double()).float()
        elif role == "B.bias":
            made[f"{module}.bias"] = tensor.float()
    return made


def on_flux(deltas: dict[str, Tensor], patcher: Any) -> dict[str, Tensor]:
    """The same on ComfyUI's own weights of a FLUX, by the host's map of the names."""
    import comfy.utils

    names = comfy.utils.flux_to_diffusers(
        patcher.model.model_config.unet_config, output_prefix="diffusion_model."
    )
    weights, native = patcher.model.state_dict(), {}
    for name, delta in deltas.items():
        target = names[name]
        key, rows, *turn = target if isinstance(target, tuple) else (target, None)
        delta = turn[0](delta) if turn else delta
        whole = native.setdefault(key, torch.zeros(weights[key].shape))
        whole.narrow(0, *rows[1:]).add_(delta) if rows else whole.add_(delta)
    return {key: whole for key, whole in native.items() if whole.any()}


def package(name: str, folder: Path) -> None:
    """Make a package importable whose own __init__ wants what is not here (a CUDA extension)."""
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules.setdefault(name, module)


def nunchaku(folder: Path) -> tuple[ModuleType, ModuleType]:
    """(compose, nunchaku_converter) of the nunchaku in this folder."""
    package("nunchaku", folder / "nunchaku")
    return (
        importlib.import_module("nunchaku.lora.flux.compose"),
        importlib.import_module("nunchaku.lora.flux.nunchaku_converter"),
    )


def functions(path: Path, names: tuple[str, ...], **known: Any) -> dict[str, Any]:
    """These functions and classes of a file whose imports are not all here."""
    wanted = [
        node
        for node in ast.parse(path.read_text("utf-8")).body
        if getattr(node, "name", "") in names
    ]
    assert {node.name for node in wanted} == set(names), path
    space = dict(known)
    exec(compile(ast.Module(wanted, []), str(path), "exec"), space)  # their code
    return space
