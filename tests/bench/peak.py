"""One load in a process of its own, to see what memory it needs: python peak.py stock|ours COMFYUI_FOLDER LORA_FILE."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def main(loader: str, comfyui: str, path: str) -> int:
    """Bytes by which the load raised the process's peak."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest  # noqa: F401 - it loads the pack under the name lora_locksmith
    import tiny_models

    tiny_models.import_comfy(Path(comfyui))
    from lora_locksmith.nodes import host

    sys.path.insert(0, str(Path(__file__).parent))
    import load

    run = load.loaders(host, Path(path))[loader]
    forget_peak()
    before = peak_bytes()
    run()
    return peak_bytes() - before


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Let the peak be what is in use now, where the system can (Linux); elsewhere imports hide the first megabytes of a load."""
    if CLEAR.exists():
        CLEAR.write_text("5")


def peak_bytes() -> int:
    """The process's peak of resident memory since forget_peak."""
    if STATUS.exists():
        return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
