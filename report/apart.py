"""Looks into LoRA files in a process of its own, so that a server answers others meanwhile and what
is remembered for the scan is gone with it.

The process imports nothing but the standard library and this pack, says nothing to anyone but the
one who started it, and ends with it: it writes what it found into a pipe, which breaks then.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ..key_maps.user_maps import NO_USER_MAPS, UserMaps, read_own_maps
from ..messages import message
from .findings import Findings, Passing, Unpacker, findings_here, packed_findings
from .library import Engine
from .listing import Listed, Stamp

CLEAN = 300  # files after which garbage is collected
FEW = 24  # files that are looked into sooner than a process has started
ROOT = Path(__file__).parents[1]
START = (
    "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)];"
    " from cli import as_package; as_package();"
    " from lora_locksmith.report.apart import work; work()"
)


def in_process(own: UserMaps, folder: Path, tell: Callable[[str], Any]) -> Engine:
    """Look into files in another process, and here where there is none, which `tell` is told of.
    folder: where `own` was read from.
    """

    def engine(files: Sequence[Listed]) -> Iterator[Findings]:
        done = 0
        if len(files) > FEW and sys.executable and not getattr(sys, "frozen", False):
            wish = {
                "own": None if own is NO_USER_MAPS else os.fspath(folder),
                "files": [(listed.path, listed.stamp, listed.beside) for listed in files],
            }
            for findings in _found_apart(wish):
                yield findings
                done += 1
            if done < len(files):
                tell(message("library.apart_failed"))
        for listed in files[done:]:
            yield findings_here(listed, own)

    return engine


def _found_apart(wish: dict[str, Any]) -> Iterator[Findings]:
    """What the process finds, as far as it gets."""
    try:
        process = _start()
    except OSError:
        return
    assert process.stdin and process.stdout, "both are pipes"
    try:
        with suppress(OSError), process.stdin as line:
            line.write(json.dumps(wish).encode())
        unpack = Unpacker()
        for text in process.stdout:
            passing, shared, own = json.loads(text)
            findings = unpack(shared, own)
            if findings is None:
                return
            yield Passing(*findings) if passing else findings
    except ValueError:  # a line that it could not end
        return
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-S", "-c", START, os.fspath(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def work() -> None:
    """What the process does: read a wish, and answer it, a line for each file."""
    gc.disable()  # it would go through all tables again and again
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it
    wish = json.loads(sys.stdin.buffer.read())
    own = NO_USER_MAPS if wish["own"] is None else read_own_maps(Path(wish["own"]))
    try:
        for number, (path, stamp, beside) in enumerate(wish["files"]):
            findings = findings_here(Listed(path, Stamp(*stamp), b"", beside), own)
            _answer(sys.stdout.buffer, findings)
            if number % CLEAN == CLEAN - 1:
                gc.collect()
                gc.freeze()  # what is left stays to the end, and is not looked at again
    except OSError:  # nobody reads it any more
        os._exit(1)


def _answer(pipe: IO[bytes], findings: Findings) -> None:
    line = [isinstance(findings, Passing), *packed_findings(findings)]
    pipe.write(json.dumps(line).encode() + b"\n")
    pipe.flush()
