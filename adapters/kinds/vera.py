"""VeRA (arXiv:2310.11454): random matrices shared by all layers, and two trained vectors for each."""

from __future__ import annotations

from ..kind import Kind, roles


class VeRA(Kind):
    """vera_d [r], vera_b [out]."""

    name, title = "vera", "VeRA"
    needs = (roles("vera_d"), roles("vera_b"), roles("vera_d vera_b"))
    takes = roles("vera_A vera_B")
    precedence = 30
    refusal = "VeRA: its base matrices are not in the file, so the change it makes cannot be rebuilt"


KINDS = (VeRA(),)
