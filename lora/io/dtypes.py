"""The dtypes a file can be written in."""

from __future__ import annotations

import torch

# What people call them.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
