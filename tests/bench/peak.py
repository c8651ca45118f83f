"""One call in a process of its own, to see what memory it needs: python -m bench.peak SUBJECT
FUNCTION [ARGUMENT..].
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(subject: str, function: str, *arguments: str) -> int:
    """Bytes by which what the function prepares raises the process's peak of resident memory."""
    import conftest  # noqa: F401 - it loads the pack under the name lora_locksmith
    import torch

    torch.set_num_threads(1)
    run = getattr(importlib.import_module(f"{__package__}.{subject}"), function)(*arguments)
    forget_peak()
    before = peak_bytes()
    run()
    return peak_bytes() - before


def forget_peak() -> None:
    """Let the peak be what is in use now, where the system can (Linux); elsewhere imports hide the
    first megabytes.
    """
    if CLEAR.exists():
        CLEAR.write_text("5")


def peak_bytes() -> int:
    """The process's peak of resident memory since forget_peak."""
    if STATUS.exists():
        return next(
            int(line.split()[1]) * 1024
            for line in STATUS.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
