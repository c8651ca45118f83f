"""What differs on Windows and macOS, tried on every system: files in use, names, line ends, and
consoles with few letters.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_locksmith.commands.parser import run
from lora_locksmith.files.atomic import is_file_name
from lora_locksmith.files.header import read_header
from lora_locksmith.key_maps.dialect import read_dialect
from lora_locksmith.key_maps.table import read_table
from lora_locksmith.key_maps.user_maps import read_own_maps
from lora_locksmith.lora.io import mapped as reader
from lora_locksmith.lora.io.mapped import map_tensors
from lora_locksmith.lora.io.writer import write_lora
from lora_locksmith.lora.rewrite.verify import VerificationError
from reports.small_files import CLI, flux_lora, write_file
from safetensors.torch import load_file, save_file

ROOT = CLI.parent
BROKEN = "transformer.base_model.model."


def is_held(path: str | os.PathLike[str]) -> bool:
    """Whether this process has the file open or mapped."""
    name = os.path.realpath(path)
    mapped = any(
        line.rstrip("\n").endswith(name)
        for line in Path("/proc/self/maps").read_text("utf-8").splitlines()
    )
    opened = [Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
    return mapped or any(os.path.realpath(link) == name for link in opened if link.is_symlink())


@pytest.fixture
def as_on_windows(monkeypatch) -> None:
    """Files that this process has open or mapped can be neither replaced nor removed, as on
    Windows, where the rule holds by itself.
    """
    if sys.platform == "win32":
        return
    if sys.platform != "linux":
        pytest.skip("what a process has open is told by Linux only")

    def refusing(does):
        def do(*paths, **options):
            held = [path for path in paths if os.path.exists(path) and is_held(path)]
            if held:
                raise PermissionError(13, "Access is denied", os.fspath(held[0]))
            return does(*paths, **options)

        return do

    monkeypatch.setattr(reader, "CAN_REPLACE_MAPPED", False)
    for name in ("replace", "unlink", "remove", "rename"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


@pytest.fixture
def lora(tmp_path) -> Path:
    """A LoRA for FLUX.1 with SimpleTuner's broken keys."""
    made = torch.Generator().manual_seed(1)
    tensors = {
        key: torch.randn(shape, generator=made).half()
        for key, shape in flux_lora(2, BROKEN).items()
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_mended_in_its_place(as_on_windows, lora):
    old = lora.read_bytes()
    assert run(["fix", "--in-place", "--backup", str(lora)]) == 0
    assert not any(BROKEN in key for key in load_file(lora))
    (backup,) = (path for path in lora.parent.iterdir() if path != lora)
    assert backup.read_bytes() == old


def test_a_file_is_resized_onto_itself(as_on_windows, lora):
    assert run(["resize", str(lora), "-o", str(lora), "--rank", "1", "--overwrite"]) == 0
    assert {min(tensor.shape) for tensor in load_file(lora).values() if tensor.dim() == 2} == {1}


def test_a_merge_is_converted_and_takes_an_old_ones_place(as_on_windows, lora):
    out = lora.with_name("out.safetensors")
    out.write_bytes(b"old")
    assert (
        run(["merge", f"{lora}=0.8", f"{lora}=0.3", "-o", str(out), "--overwrite", "--to", "kohya"])
        == 0
    )
    assert all(key.startswith("lora_unet_") for key in load_file(out))
    assert names(lora.parent) == ["lora.safetensors", "out.safetensors"]


def test_a_file_in_use_is_said_to_be_and_stays(as_on_windows, lora):
    old = lora.read_bytes()
    with open(lora, "rb"), pytest.raises(PermissionError, match="a program has it open") as raised:
        write_lora(lora, {"a": torch.ones(2)}, overwrite=True)
    assert raised.value.filename == str(lora)
    assert lora.read_bytes() == old and names(lora.parent) == ["lora.safetensors"]


def test_what_is_wrong_with_a_written_file_is_told_though_it_cannot_be_removed(
    as_on_windows, tmp_path
):
    def check(temporary):
        mapped = map_tensors(temporary, read_header(temporary))
        raise VerificationError(f"{len(mapped)} tensors are wrong")

    with pytest.raises(VerificationError, match="1 tensors are wrong"):
        write_lora(tmp_path / "new.safetensors", {"a": torch.ones(2)}, check=check)
    assert not (tmp_path / "new.safetensors").exists()


NAMES = [
    "lora",
    "v1.2",
    "my lora (2)",
    "\u4e2d\u6587",
    "caf\u00e9",
    "cafe\u0301",
    "console",
    "com10",
    "nul_",
    ".hidden",
    "a.b.c",
]
NO_NAMES = [
    "",
    " ",
    ".",
    "..",
    "a.",
    "a ",
    "CON",
    "nul",
    "aux.safetensors",
    "Com1",
    "LPT\u00b9.x",
    "conin$",
    "NUL .x",
    "a:b",
    "a\\b",
    "a/b",
    "a*",
    "a?",
    'a"',
    "a|b",
    "<a>",
    "a\0",
    "a\n",
    "\udc00",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_every_system_takes(name):
    assert is_file_name(name)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_some_system_does_not_take(name):
    assert not is_file_name(name)


def test_maps_may_have_been_saved_by_any_editor(tmp_path):
    for folder, pattern in (("families", "*.table"), ("dialects", "*.record")):
        (tmp_path / folder).mkdir()
        for path in (ROOT / "key_maps" / folder).glob(pattern):
            text = path.read_text("utf-8")
            (tmp_path / folder / path.name).write_bytes(
                b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
            )
    found = read_own_maps(tmp_path)
    assert not found.errors and len(found.families) > 30 and len(found.dialects) > 15
    for name, dialect in found.dialects.items():
        assert dialect == read_dialect(ROOT / "key_maps" / "dialects" / f"{name}.record")
    for name, family in found.families.items():
        assert family == read_table(ROOT / "key_maps" / "families" / f"{name}.table")


@pytest.mark.parametrize("command", [("inspect", "--detail", "modules"), ("scan",), ("compare",)])
def test_a_console_may_lack_letters(command, tmp_path):
    file = write_file(
        tmp_path / "\u4e2d\u6587.safetensors",
        {**flux_lora(2), "unknown.\u5c42.lora_A.weight": (2, 4)},
    )
    files = {"scan": [tmp_path], "compare": [file, file]}.get(command[0], [file])
    cache = {name: str(tmp_path / "cache") for name in ("XDG_CACHE_HOME", "LOCALAPPDATA")}
    environment = {**os.environ, **cache, "PYTHONIOENCODING": "cp1252"}
    told = subprocess.run(
        [sys.executable, CLI, *command, *files], capture_output=True, env=environment, timeout=300
    )
    said = (told.stdout + told.stderr).decode("cp1252")
    assert told.returncode in (0, 1) and "Traceback" not in said
    assert re.search(r"\\u4e2d\\u6587|\\u5c42", said)


def test_a_checkout_has_the_same_bytes_everywhere():
    assert "* text=auto eol=lf" in (ROOT / ".gitattributes").read_text("utf-8").splitlines()
