"""AI-Toolkit's network type "fullrank": lora_A alone is the whole difference (toolkit/lora_special.py, whose lora_up is an identity)."""

from __future__ import annotations

from ..kind import roles
from .difference import Difference


class FullRank(Difference):
    """down of the weight's own shape, without an up; of any other shape it is half of a LoRA."""

    lone = True

    def __init__(self):
        super().__init__("fullrank", "full difference", "down", 95)
        self.needs = (roles("down"),)
        self.called = {"down": "diff"}
        self.scale_into = ("down",)

    def host(self, tensors, alpha, rows, adapter):
        change = tensors["down"]
        return "diff", (change.narrow(0, *rows) if rows else change,)


KINDS = (FullRank(),)
