"""Runs commands with their output in a log, one process at a time, and says what failed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

# Not resolved: a link in custom_nodes stays in that ComfyUI.
ROOT = Path(__file__).absolute().parents[3]
WORK = ROOT / ".dev"
SETUP_LOG = WORK / "setup.log"


class Fault(Exception):
    """Something a person has to act on; the message names what is wrong and the remedy."""


def say(text: str = "") -> None:
    print(text, flush=True)


def try_step(title: str, command: list[str], **variables: str) -> bool:
    try:
        run_step(title, command, **variables)
    except Fault:
        say("    not possible here; trying another way")
        return False
    return True


def run_step(title: str, command: list[str], remedy: str = "", **variables: str) -> None:
    """Run a command with its output in the setup log and a sign of life every 20 s; Fault with the
    log's end if it fails.

    `variables` are added to the command's environment.
    """
    say(f"  {title}")
    started, environment = time.monotonic(), {**os.environ, **variables}
    with open(SETUP_LOG, "a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=WORK,
            env=environment,
        )
        try:
            while wait_a_while(process, 20.0) is None:
                say(f"    still at it after {time.monotonic() - started:.0f} s")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode != 0:
        raise Fault(f"This failed: {' '.join(command)}\n{end_of(SETUP_LOG)}\n{remedy}".rstrip())


def wait_a_while(process: subprocess.Popen, seconds: float) -> int | None:
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def end_of(log: Path, lines: int = 15) -> str:
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join(f"  | {line}" for line in tail) + f"\nThe whole log: {log}"


@contextlib.contextmanager
def the_only_server():
    """Refuse a second server in .dev/demo, where it would empty the first one's temporary files and
    overwrite its log.
    """
    WORK.mkdir(exist_ok=True)
    with open(WORK / "server.lock", "a+") as lock:
        if not try_to_lock(lock):
            raise Fault(
                "A demo or server of this folder is still running. End it with Ctrl-C in its"
                " terminal, then run this again."
            )
        yield


def make_once(is_there: Callable[[], object], make: Callable[[], object]) -> None:
    """Make what is not there; another dev.py may do so while this one waits for its turn."""
    if not is_there():
        with one_at_a_time():
            if not is_there():
                make()


@contextlib.contextmanager
def one_at_a_time():
    """Hold this folder's lock, so that two dev.py do not make the same thing; the system frees it
    when a process dies.
    """
    WORK.mkdir(exist_ok=True)
    with open(WORK / "lock", "a+") as lock:
        waiting = False
        while not try_to_lock(lock):
            if not waiting:
                say("Another dev.py is at work in this folder; waiting for it.")
            waiting = True
            time.sleep(1)
        yield


def try_to_lock(file) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
