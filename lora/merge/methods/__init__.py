"""The ways to merge deltas: one decorated function each, in the files of this folder, with the
paper it comes from.
"""

from __future__ import annotations

from .registry import COEFFICIENTS, ENTRIES, FACTORS, Method, Option, find, methods

__all__ = ["COEFFICIENTS", "ENTRIES", "FACTORS", "Method", "Option", "find", "methods"]
