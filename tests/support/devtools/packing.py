"""Packs what ComfyUI's registry gets: the files that git knows, but for those of .comfyignore."""

from __future__ import annotations

import subprocess
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from .steps import ROOT, WORK, Fault

ARCHIVE = WORK / "lora-locksmith.zip"
EARLIEST = (1980, 1, 1, 0, 0, 0)  # of what a zip can hold: the same files give the same bytes


def packed_files() -> list[str]:
    """The files of the pack, as paths below its folder, sorted: those that git knows, in a clone;
    elsewhere those that .gitignore does not name.

    Raises:
        Fault: git does not answer.
    """
    names = known_to_git() if (ROOT / ".git").exists() else not_ignored()
    left_out = tuple(patterns_of(".comfyignore"))
    return sorted(name for name in names if not f"/{name}".startswith(left_out))


def known_to_git() -> list[str]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True)
    if listed.returncode:
        raise Fault(f"Git does not list the files of {ROOT}: {listed.stderr.decode().strip()}")
    return [name for name in listed.stdout.decode().split("\0") if name]


def not_ignored() -> list[str]:
    unknown = {pattern.strip("/") for pattern in patterns_of(".gitignore")}
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [
        path.as_posix()
        for path in files
        if not any(fnmatch(part, pattern) for part in path.parts for pattern in unknown)
    ]


def patterns_of(name: str) -> list[str]:
    """The lines of .comfyignore or .gitignore."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pack(archive: Path = ARCHIVE) -> Path:
    """Write the archive; the same files give the same bytes."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in packed_files():
            entry = zipfile.ZipInfo(name, EARLIEST)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(entry, (ROOT / name).read_bytes())
    return archive
