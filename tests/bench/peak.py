"""One load in a process of its own, to see what memory it needs: python peak.py stock|ours COMFYUI_FOLDER LORA_FILE."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def main(loader: str, comfyui: str, path: str) -> int:
    """Bytes by which the load raised the process's peak."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest
    import tiny_models

    tiny_models.import_comfy(Path(comfyui))
    from lora_locksmith.nodes import host

    sys.path.insert(0, str(Path(__file__).parent))
    import load

    run = load.loaders(host, Path(path))[loader]
    assert conftest.ROOT
    before = peak_bytes()
    run()
    return peak_bytes() - before


def peak_bytes() -> int:
    """The process's peak of resident memory so far; Linux counts kilobytes, macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
