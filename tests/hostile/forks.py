"""Runs the command line in children of a process that has everything imported, one for each line of
its input; a test may kill them.

A line in: {"arguments": [...], "limit": bytes that a file may have or 0, "room": bytes of a file
after which it is killed or 0, "output": file, "step": before which of the steps that change
something on disk it is killed, 0: none}. Lines out: the child's number, its exit code.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "support")]


STEPS = frozenset(
    {
        "os.rename",
        "os.link",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.chmod",
        "os.truncate",
        "os.symlink",
    }
)


def die_before(step: int) -> None:
    """Kill this process right before it changes what is in a folder for the `step`th time from here
    on.
    """
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        creates = (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & os.O_CREAT
            and not str(arguments[0]).startswith("/dev/")
        )
        if event in STEPS or creates:
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(wish: dict) -> int:
    """What the process of one command does; its output goes into a file."""
    from lora_locksmith.commands import parser

    output = os.open(wish["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if wish["limit"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (wish["limit"], wish["limit"]))
    if wish["room"]:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_FSIZE, (wish["room"], wish["room"]))
    if wish["step"]:
        die_before(wish["step"])
    code = parser.run(wish["arguments"])
    sys.stdout.flush()
    return code


def main() -> None:
    """Wait for wishes until there are no more."""
    import conftest  # noqa: F401 - it loads the pack under the name lora_locksmith
    import torch
    from lora_locksmith.lora.io import writer  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        wish, number = json.loads(line), os.fork()
        if not number:
            code = 99
            try:
                code = child(wish)
            except BaseException as error:
                os.write(2, f"Traceback: {error!r}".encode())
            finally:
                os._exit(code)
        print(number, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
