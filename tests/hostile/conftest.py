"""One thread for torch, and the corpus beside the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices here are small, and the machine may be busy."""
    from threads import one_thread

    with one_thread():
        yield
