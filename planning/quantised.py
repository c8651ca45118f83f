"""What stands beside a quantised weight in a model, and is no layer of it."""

from __future__ import annotations

# The last part of a tensor's name -> the format that writes it: comfy/quant_ops.py, comfy/utils.py
# convert_old_quants, comfy/ops.py of before the host's own quantised tensors, bitsandbytes,
# optimum-quanto.
EXTRAS = {
    "scaled_fp8": "scaled fp8",
    "scale_weight": "scaled fp8",
    "scale_input": "scaled fp8",
    "weight_scale": "scaled",
    "weight_scale_2": "nvfp4",
    "input_scale": "scaled",
    "output_scale": "scaled",
    "pre_quant_scale": "scaled",
    "comfy_quant": "scaled",
    "SCB": "bitsandbytes int8",
    "weight_format": "bitsandbytes int8",
}


def is_extra(name: str) -> bool:
    """Whether a tensor or parameter of this name only serves to read a quantised weight."""
    return name[name.rfind(".") + 1 :] in EXTRAS
