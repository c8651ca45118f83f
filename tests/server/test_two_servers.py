"""Two servers over one folder and one index: what one has read the other does not read, and one
that is killed in the middle of a scan leaves an index that is right.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import comfy_server
import pytest
from devtools.steps import ROOT
from lora_locksmith.report.library import scan
from routes import Routes
from shelves import write_shelf

COUNT = 2000
OURS = {"changed", "pickled"}  # what only the routes tell


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = comfy_server.prepare_base(tmp_path_factory.mktemp("two"), ROOT)
    write_shelf(base / "models" / "loras", COUNT)
    return base


@pytest.fixture(scope="module")
def expected(base) -> dict[str, dict]:
    """The rows as a scan without server and index tells them."""
    return {
        row.file: row.as_dict() | {key: list(value) for key, value in lists(row.as_dict())}
        for row in scan(base / "models" / "loras")
    }


def lists(row: dict):
    return ((key, value) for key, value in row.items() if isinstance(value, tuple))


def running(base: Path, comfyui_path: Path, name: str) -> comfy_server.Server:
    log = base / f"{name}.log"
    database = ("--database-url", f"sqlite:///{(base / 'user' / name).as_posix()}.db")
    return comfy_server.Server(Path(sys.executable), comfyui_path, base, log, database)


def told(routes: Routes) -> dict[str, dict]:
    rows = routes.ended()["rows"]
    return {row["file"]: {key: row[key] for key in row.keys() - OURS} for row in rows}


def kept(base: Path) -> int:
    index = base / "user" / "lora-locksmith" / "library.sqlite"
    if not index.exists():
        return 0
    with closing(sqlite3.connect(index)) as database:
        try:
            return database.execute("SELECT count(*) FROM files").fetchone()[0]
        except sqlite3.OperationalError:  # it is being made
            return 0


def children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(state) -> None:
    deadline = time.monotonic() + comfy_server.PATIENCE
    while not state():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the processes of a process")
def test_a_server_that_is_killed_in_the_middle_of_a_scan_leaves_no_harm(
    base, comfyui_path, expected
):
    with running(base, comfyui_path, "killed") as server:
        pid = server.process.pid
        Routes(server).ask("library")
        wait_until(lambda: kept(base))
        readers = children(pid)
        os.kill(pid, signal.SIGKILL)
        server.process.wait()
        wait_until(lambda: all(map(ended, readers)))
    left = kept(base)
    assert left > 0
    with running(base, comfyui_path, "after") as server:
        routes = Routes(server)
        routes.ask("library")
        assert told(routes) == expected
        assert kept(base) == COUNT
        assert "library's index" not in server.log_text(), "it was not in order"


def test_two_servers_share_one_index(base, comfyui_path, expected):
    """And the command line too; while both read, and when all is read."""
    loras = base / "models" / "loras"
    for path in loras.rglob("*.safetensors"):
        os.utime(path)
    with running(base, comfyui_path, "one") as one, running(base, comfyui_path, "two") as two:
        both = Routes(one), Routes(two)
        for routes in both:
            routes.ask("library")
        for routes in both:
            assert told(routes) == expected
        for path in loras.rglob("*.safetensors"):
            about = path.stat()
            path.write_bytes(b"")
            os.truncate(path, about.st_size)
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        for routes in both:
            assert {row["file"]: row["verdict"] for row in routes.library().values()} == {
                name: row["verdict"] for name, row in expected.items()
            }, "a file was read again"
        index = base / "user" / "lora-locksmith" / "library.sqlite"
        rows = {row.file: row.verdict for row in scan(loras, index)}
        assert rows == {name: row["verdict"] for name, row in expected.items()}
        assert kept(base) == COUNT
        for server in (one, two):
            assert "library's index" not in server.log_text()
