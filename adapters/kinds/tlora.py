"""T-LoRA (arXiv:2507.05964): singular vectors of the base, changed."""

from __future__ import annotations

from ..kind import Kind, roles


class TLoRA(Kind):
    """q_layer [r, in], p_layer [out, r], lambda_layer [1, r]; what it subtracts is not saved."""

    name, title = "tlora", "T-LoRA"
    needs = (roles("tlora"),)
    takes = roles("alpha")
    precedence = 31
    refusal = "T-LoRA: its base matrices are not in the file, so the change it makes cannot be rebuilt"


KINDS = (TLoRA(),)
