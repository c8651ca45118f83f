"""Mapped files: none is held open, and what happens to them on disk meanwhile is noticed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_locksmith.files.header import LoraFileError, read_header
from lora_locksmith.lora.io import watch
from lora_locksmith.lora.io.mapped import map_tensors
from lora_locksmith.lora.io.watch import Watch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX system")
MANY = """
import resource, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + '/support']
import conftest
from lora_locksmith.files.header import LoraFileError, read_header
from lora_locksmith.lora.io.mapped import map_tensors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
path = Path({path!r})
kept = [map_tensors(path, read_header(path)) for _ in range(200)]
assert all(tensors["a"].sum() == 6 for tensors in kept)
files = []
try:
    while True:
        files.append(open(path))
except OSError:
    try:
        read_header(path)
    except LoraFileError as error:
        files.clear()
        print(error)
"""


@POSIX
def test_more_files_than_a_process_may_have_open(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2, 3)}, path)
    code = MANY.format(tests=str(ROOT / "tests"), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Too many open files" in done.stdout and "ulimit -n" in done.stdout


@POSIX
def test_a_name_that_is_no_text(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors")
    save_file({"a": torch.ones(2, 3)}, tmp_path / "a.safetensors")
    try:
        os.rename(tmp_path / "a.safetensors", path)
    except OSError:
        pytest.skip("this file system has no such names")
    assert map_tensors(path, read_header(path))["a"].sum() == 6


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 0.0)
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2, 3)}, path)
    return path


def overwrite(path: Path, size: int | None = None) -> None:
    about = path.stat()
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
        if size is not None:
            file.truncate(size)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))


@POSIX
def test_overwritten_in_place_is_said_once_and_in_the_next_report(file, caplog):
    seen = Watch(file, read_header(file).stamp)
    seen.check()
    assert seen.unchanged() and not seen.cautions
    overwrite(file)
    with caplog.at_level(logging.WARNING):
        seen.check()
        seen.check()
    assert (
        not seen.unchanged()
        and len(caplog.records) == 1
        and "was overwritten on disk" in caplog.text
    )
    (caution,) = Watch(file, read_header(file).stamp).cautions
    assert "a.safetensors was overwritten" in caution and "Run again" in caution
    assert not Watch(file, read_header(file).stamp).cautions


@POSIX
def test_cut_short_is_an_error_before_the_process_is_killed_for_it(file):
    seen = Watch(file, read_header(file).stamp)
    overwrite(file, 50)
    with pytest.raises(LoraFileError, match="cut short on disk while it was in use"):
        seen.check()


@POSIX
def test_a_new_file_in_its_place_and_none_leave_the_old_one_as_it_was_mapped(file, tmp_path):
    mapped, seen = map_tensors(file, read_header(file)), Watch(file, read_header(file).stamp)
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "b.safetensors")
    os.replace(tmp_path / "b.safetensors", file)
    seen.check()
    file.unlink()
    seen.check()
    assert mapped["a"].sum() == 6 and not seen.cautions and not seen.unchanged()
