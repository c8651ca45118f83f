"""The one class that every error of this pack has."""

from __future__ import annotations


class LocksmithError(Exception):
    """What this pack raises: the text says what is wrong, with the file, key or line it is about, and what to do.

    Subclasses may also be a ValueError or another of Python's, where callers expect one.
    """
