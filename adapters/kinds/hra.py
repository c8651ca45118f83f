"""HRA, Householder reflection adaptation (arXiv:2405.17484)."""

from __future__ import annotations

from ..kind import Kind, roles


class HRA(Kind):
    """hra_u [in, r]."""

    name, title = "hra", "HRA"
    needs = (roles("hra_u"),)
    precedence = 32
    refusal = "HRA (Householder reflection adaptation) is not supported"


KINDS = (HRA(),)
