"""Applying patches against the stock loader's: fails only where a ratio breaks by a margin that no machine explains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import apply

# Measured: 1.0 and 1.4. A plain LoRA is the host's own adapter, so its target is 1.05; the rest is a busy machine's noise.
MOST = {"ours": 1.4, "ours, DoRA": 5.0}


def test_patched_block_costs_what_it_costs_with_stock(comfy, tmp_path, capsys):
    from lora_locksmith.nodes import host

    found = apply.measure(host, tmp_path)
    with capsys.disabled():
        print(f"\napply against stock: {json.dumps(found)}")
    for name, most in MOST.items():
        assert found["ratio"][name] < most, found
