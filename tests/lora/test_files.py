"""What is written beside a file until it is put in its place: private to nobody but its writer, and
swept when that was killed.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from lora_locksmith.files import atomic as files
from lora_locksmith.files.atomic import NewFile, replacing, scratch_folder, write_whole

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX system")
ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + '/support']
import conftest
from lora_locksmith.files.atomic import replacing, scratch_folder
with {what}(Path({path!r})) as made:
    if {what} is replacing:
        made[0].write(b"half")
        made[0].flush()
    else:
        (made / "large").write_bytes(b"half")
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path, what: str = "replacing") -> subprocess.Popen:
    """A process in the midst of writing `path`."""
    code = HOLD.format(tests=str(ROOT / "tests"), what=what, path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_write_into_a_scratch_folder_waits_for_nobody(tmp_path, monkeypatch):
    """Its lock is this process' own: each merge into another tool's names waited five seconds."""

    def waits(seconds):
        raise AssertionError("waits for a lock")

    monkeypatch.setattr(files.time, "sleep", waits)
    with scratch_folder(tmp_path / "merged.safetensors") as folder:
        write_whole(folder / "native.safetensors", b"on the way")
        write_whole(tmp_path / "merged.safetensors", (folder / "native.safetensors").read_bytes())
    assert names(tmp_path) == {"merged.safetensors"}


@POSIX
@pytest.mark.parametrize("what", ["replacing", "scratch_folder"])
def test_the_next_write_sweeps_what_a_killed_one_left_and_nothing_else(tmp_path, what):
    others = {
        ".x.abcd1234.part",
        "y.part",
        ".y.locksmith-1.part",
        ".z.locksmith-0123456789ab.part.bak",
    }
    for name in others:
        (tmp_path / name).write_bytes(b"another program's")
    living, killed = holder(tmp_path / "living", what), holder(tmp_path / "killed", what)
    parts = {name for name in names(tmp_path) - others if name.endswith(".part")}
    assert len(parts) == 2
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(60)
    write_whole(tmp_path / "new", b"new")
    left = names(tmp_path) - others - {"new"}
    assert left == {name for name in parts if "living" in name}
    living.communicate("", 60)
    assert living.returncode == 0
    assert names(tmp_path) == others | {"new"} | ({"living"} if what == "replacing" else set())
    assert what == "scratch_folder" or (tmp_path / "living").read_bytes() == b"half"


def test_writers_at_once_do_not_sweep_each_other(tmp_path):
    """Many threads, and as many sweeps as writes."""
    faults = []

    def write(number: int) -> None:
        try:
            for turn in range(40):
                write_whole(tmp_path / f"{number}-{turn}", b"whole")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not faults and len(names(tmp_path)) == 320


@POSIX
def test_a_file_has_the_permissions_of_any_new_one_and_the_process_keeps_its_umask(
    tmp_path, monkeypatch
):
    """The umask is the whole process's: a thread that makes a file meanwhile must not get 0o666."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    (tmp_path / "any").touch()
    write_whole(tmp_path / "new", b"")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "any").stat().st_mode
    )
    for mode in (0o600, 0o640, 0o444, 0o755):
        os.chmod(tmp_path / "new", mode)
        with replacing(tmp_path / "new") as (_, temporary):
            assert not stat.S_IMODE(temporary.stat().st_mode) & ~(mode | 0o600)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode


def test_a_large_folder_is_not_listed_for_every_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE_FOLDER", 3)
    seen = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: (seen.append(folder), real(folder))[1])
    for number in range(10):
        write_whole(tmp_path / str(number), b"")
    assert 1 < len(seen) < 10


def test_what_fails_between_the_two_leaves_both_as_they_were(tmp_path, monkeypatch):
    path, beside = tmp_path / "weights", tmp_path / "settings"

    def refuse(old, new, real=os.replace):
        if Path(new) == path:
            raise PermissionError(13, "in use", str(path))
        real(old, new)

    monkeypatch.setattr(os, "replace", refuse)
    with (
        pytest.raises(PermissionError),
        replacing(path, beside=NewFile("settings", b"new")) as (file, _),
    ):
        file.write(b"new")
    assert names(tmp_path) == set()
    path.write_bytes(b"old")
    beside.write_bytes(b"old settings")
    with (
        pytest.raises(PermissionError),
        replacing(path, beside=NewFile("settings", b"new")) as (file, _),
    ):
        file.write(b"new")
    assert names(tmp_path) == {"weights", "settings"}
    assert (path.read_bytes(), beside.read_bytes()) == (b"old", b"old settings")


def test_settings_of_another_file_are_not_replaced_unless_asked(tmp_path):
    (tmp_path / "settings").write_bytes(b"theirs")
    with (
        pytest.raises(FileExistsError),
        replacing(tmp_path / "weights", False, beside=NewFile("settings", b"ours")),
    ):
        pass
    assert names(tmp_path) == {"settings"}


def test_old_parts_are_swept_where_there_are_no_locks(tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.setattr(files, "fcntl", None)
    new, old = (
        tmp_path / ".a.locksmith-0123456789ab.part",
        tmp_path / ".b.locksmith-0123456789ab.part",
    )
    for path in (new, old):
        path.touch()
    os.utime(old, (time.time() - 2 * files.OLD,) * 2)
    with scratch_folder(tmp_path / "x") as folder, suppress(OSError):
        assert folder.is_dir() and names(tmp_path) == {new.name, folder.name}
    assert names(tmp_path) == {new.name}
