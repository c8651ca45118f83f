"""Headers of LoRAs for the models of comfy_models.py, inspected against a model or alone."""

from __future__ import annotations

from lora_locksmith.files.header import Header, TensorInfo
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.planning.names import spell
from lora_locksmith.report.inspection import inspect_header

RANK = 4


def pair(module, out, inner):
    return {f"{module}.lora_A.weight": (RANK, *inner), f"{module}.lora_B.weight": (out, RANK)}


def file_for(target_model, chosen=lambda module: True):
    """The names and shapes of a LoRA on all matrices that `chosen` takes, with ComfyUI's names."""
    spelled = spell(target_model, target_model.networks[DENOISER], dialects()["diffusion_pipe"])
    return {
        key: shape
        for module in spelled
        if len(module.shape) == 2 and chosen(module.module)
        for key, shape in pair(module.module, module.shape[0], module.shape[1:]).items()
    }


def held(shapes, target_model, metadata=None):
    tensors = {key: TensorInfo("F32", shape) for key, shape in shapes.items()}
    return inspect_header("a.safetensors", Header(tensors, metadata or {}), None, target_model)


def inspected(shapes, metadata=None):
    tensors = {key: TensorInfo("F32", shape) for key, shape in shapes.items()}
    return inspect_header("a.safetensors", Header(tensors, metadata or {}), None)


def modules(shapes):
    return {key.rpartition(".lora_")[0] for key in shapes}


def matters(module):
    """What trainers train: blocks, and not what stands before and behind them."""
    return any(character.isdecimal() for character in module)
