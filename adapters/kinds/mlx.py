"""LoRA as MLX saves it (ml-explore/mlx-examples flux/flux/lora.py, mlx-lm tuner/lora.py): as
x @ lora_a @ lora_b takes the factors, the other way round than elsewhere.
"""

from __future__ import annotations

from ..kind import InStock, roles
from .embedding import EmbeddingLoRA


class TransposedLoRA(EmbeddingLoRA):
    """lora_a [in, r], lora_b [r, out]: W [out, in] + scale * (a @ b)^T."""

    name, title = "lora_transposed", "MLX LoRA"
    needs = (roles("transposed_a transposed_b"),)
    factors, spelled = ("transposed_b", "transposed_a"), ("lora_b", "lora_a")
    zeroed_by = needs[0]
    stock = InStock("MLX LoRA")


KINDS = (TransposedLoRA(),)
