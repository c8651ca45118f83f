"""LoRA as MLX saves it (ml-explore/mlx-examples flux/flux/lora.py, mlx-lm tuner/lora.py): as
x @ lora_a @ lora_b takes the factors, the other way round than elsewhere. Others save bare
parameters of these names as LoRA has them; planning/orientation.py tells.
"""

from __future__ import annotations

from ..kind import InStock, Kind, Said, roles
from .embedding import EmbeddingLoRA


class TransposedLoRA(EmbeddingLoRA):
    """lora_a [in, r], lora_b [r, out]: W [out, in] + scale * (a @ b)^T."""

    name, title = "lora_transposed", "MLX LoRA"
    needs = (roles("transposed_a transposed_b"),)
    takes = roles("alpha")
    factors, spelled = ("transposed_b", "transposed_a"), ("lora_b", "lora_a")
    zeroed_by = needs[0]
    stock = InStock("MLX LoRA")


class EitherLoRA(Kind):
    """lora_a, lora_b of which nothing tells whether they are MLX's."""

    name, title = "lora_either", "LoRA"
    needs = (roles("either_a either_b"),)
    takes = roles("alpha")
    refusal = Said("adapters.either_way_round")


KINDS = (TransposedLoRA(), EitherLoRA())
