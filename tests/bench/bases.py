"""One wide layer around which LoRAs act, its weight stored in each of the ways that matter while
sampling.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DENSE = {"fp32": "float32", "bf16": "bfloat16", "fp8": "float8_e4m3fn"}
# our name -> the host's format
QUANTISED = {"scaled fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}
GGUF = os.environ.get("LOCKSMITH_GGUF", "")  # a folder with github.com/city96/ComfyUI-GGUF
BASES = (*DENSE, *QUANTISED, *(["Q8_0"] if GGUF else []))


def layer_of(base: str, width: int) -> tuple[Any, type]:
    """(the host's linear layer of this width, stored as `base` says; the ModelPatcher for it)."""
    import torch
    from comfy.model_patcher import ModelPatcher

    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(width, width, generator=generator) * 0.02
    bias = torch.randn(width, generator=generator) * 0.02
    if base in DENSE:
        return _dense(weight, bias, getattr(torch, DENSE[base])), ModelPatcher
    if base in QUANTISED:
        return _quantised(weight, bias, QUANTISED[base]), ModelPatcher
    pack = _gguf_pack()
    return _packed(pack, weight, bias, base), pack.nodes.GGUFModelPatcher


def computed_in(base: str) -> Any:
    """The dtype of what comes in and goes out."""
    import torch

    return torch.bfloat16 if base == "bf16" else torch.float32


def _dense(weight: Any, bias: Any, dtype: Any) -> Any:
    import comfy.ops

    layer = comfy.ops.manual_cast.Linear(*weight.shape, dtype=dtype)
    layer.load_state_dict({"weight": weight.to(dtype), "bias": bias})
    return layer


def _quantised(weight: Any, bias: Any, form: str) -> Any:
    import comfy.ops
    import comfy.quant_ops as quant_ops
    import torch

    layout = quant_ops.QUANT_ALGOS[form]["comfy_tensor_layout"]
    scale = {} if form == "int8_tensorwise" else {"scale": "recalculate"}
    tensor = quant_ops.QuantizedTensor.from_float(weight, layout, **scale)
    note = list(json.dumps({"format": form}).encode())
    layer = comfy.ops.mixed_precision_ops({}, torch.float32).Linear(*weight.shape, bias=True)
    layer.load_state_dict(
        tensor.state_dict("weight")
        | {"bias": bias, "comfy_quant": torch.tensor(note, dtype=torch.uint8)}
    )
    return layer


def _packed(pack: Any, weight: Any, bias: Any, form: str) -> Any:
    import gguf
    import torch

    kind = gguf.GGMLQuantizationType[form]
    packed = torch.from_numpy(gguf.quants.quantize(weight.numpy(), kind))
    layer = pack.ops.GGMLOps.Linear(*weight.shape)
    tensor = pack.ops.GGMLTensor(packed, tensor_type=kind, tensor_shape=weight.shape)
    layer.load_state_dict({"weight": tensor, "bias": bias})
    return layer


def _gguf_pack() -> Any:
    """ComfyUI-GGUF, as the host imports it."""
    name = "bench_gguf"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, Path(GGUF) / "__init__.py", submodule_search_locations=[GGUF]
        )
        assert spec and spec.loader
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def patcher_of(base: str, width: int, loads: list[Callable[[Any], Any]]) -> tuple[Any, Any]:
    """(a layer of its own, the ModelPatcher around it after these loads)."""
    import torch

    cpu, model = torch.device("cpu"), torch.nn.Module()
    model.device = cpu
    model.model_config = type("Config", (), {"unet_config": {}})
    model.diffusion_model = torch.nn.Module()
    layer, make = layer_of(base, width)
    model.diffusion_model.linear = layer
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    patcher = make(model, cpu, cpu)
    for load in loads:
        patcher = load(patcher)
    return layer, patcher
