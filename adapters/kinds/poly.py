"""Poly (arXiv:2202.13914): several LoRAs, and a router that mixes them."""

from __future__ import annotations

from ..kind import Kind, roles


class Poly(Kind):
    """poly_lora_A, poly_lora_B."""

    name, title = "poly", "Poly"
    needs = (roles("poly_lora"),)
    precedence = 33
    refusal = "Poly mixes LoRAs by a router at run time, which a loader cannot do"


KINDS = (Poly(),)
