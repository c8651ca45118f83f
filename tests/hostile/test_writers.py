"""Disks that are full, folders that cannot be written, files that change, processes that die or
work at once: the old file stays whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import seeds
import torch
from comfy_server import PATIENCE
from judge import judge, listing, untouched
from lora_locksmith.commands import parser
from lora_locksmith.files.atomic import replacing
from lora_locksmith.files.hashes import file_hashes
from lora_locksmith.files.header import LoraFileError, read_header
from lora_locksmith.lora.io.mapped import map_tensors
from lora_locksmith.lora.io.stream import TensorStream
from lora_locksmith.report.inspection import inspect_file
from reports.small_files import CLI
from safetensors.torch import save_file

BROKEN = "transformer.base_model.model."
MAX_STEPS = 40
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX system")


def broken_lora(seed: int = 1, layers: int = 19, rank: int = 2) -> dict[str, torch.Tensor]:
    """A LoRA for FLUX.1 that the stock loader drops for its prefix."""
    generator = torch.Generator().manual_seed(seed)
    names = [
        f"{BROKEN}transformer_blocks.{block}.{layer}"
        for block in range(layers)
        for layer in ("ff.net.0.proj", "ff_context.net.0.proj")
    ]
    shapes = {
        f"{name}.lora_{side}.weight": shape
        for name in names
        for side, shape in (("A", (rank, 3072)), ("B", (12288, rank)))
    }
    return {key: torch.randn(shape, generator=generator).half() for key, shape in shapes.items()}


@pytest.fixture
def broken(tmp_path) -> Path:
    folder = tmp_path / "loras"
    folder.mkdir()
    save_file(broken_lora(), folder / "x.safetensors", {"ss_tag_frequency": "{}"})
    return folder / "x.safetensors"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def whole(path: Path) -> bool:
    """Whether the stock loader loads it wholly."""
    found = inspect_file(path)
    return not found.gains and found.report.modules["placed"] == found.report.modules["total"] > 0


class Forks:
    """The command line in processes that need not import torch again; see forks.py."""

    def __init__(self, output: Path):
        self.output = output
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: object, limit: int = 0, room: int = 0, step: int = 0) -> int:
        """The number of the process that runs this command.

        limit: no file may have more bytes (0: any). room: it is killed when it has written so many
        bytes of a file (0: never). step: it is killed before this change on disk (0: never).
        """
        wish = {
            "arguments": list(map(str, arguments)),
            "limit": limit,
            "output": str(self.output),
            "room": room,
            "step": step,
        }
        print(json.dumps(wish), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def code(self) -> int:
        """How the process ended."""
        return int(self.server.stdout.readline())

    def told(self) -> str:
        return self.output.read_text("utf-8", errors="replace")


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    found = Forks(tmp_path_factory.mktemp("forks") / "output.txt")
    yield found
    found.server.stdin.close()
    found.server.wait(60)


@POSIX
@pytest.mark.parametrize("room", ["half", "a few bytes"])
def test_a_full_disk_leaves_all_as_it_was(broken, tmp_path, forks, room):
    """Every command that writes, into a disk that is full half way: one clear line, no file, no
    folder.
    """
    limit = broken.stat().st_size // 2 if room == "half" else 1024
    out = tmp_path / "out"
    with untouched(tmp_path):
        for arguments in (
            ("fix", broken, "--in-place", "--backup"),
            ("fix", broken, "--output", out / "new"),
            ("fix", broken, "--to", "peft", "--output", out),
            ("resize", broken, "--rank", "2", "-o", tmp_path / "resized.safetensors"),
            ("merge", broken, broken, "-o", tmp_path / "merged.safetensors"),
        ):
            forks.start(*arguments, limit=limit)
            assert (
                forks.code() == 2
                and "File too large" in forks.told()
                and "Traceback" not in forks.told()
            ), arguments


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [("inspect", "FILE"), ("inspect", "--json", "FILE"), ("scan", "--no-index", "DIR")],
    ids=" ".join,
)
def test_output_that_cannot_be_written_is_told(broken, arguments):
    words = [
        word.replace("FILE", str(broken)).replace("DIR", str(broken.parent)) for word in arguments
    ]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, str(CLI), *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    assert (
        done.returncode == 2
        and "No space left" in done.stderr
        and "Traceback" not in done.stderr
        and "Exception" not in done.stderr
    )


def read_only_folder(tmp_path: Path) -> Path | None:
    """A folder nobody can write into, not even root; None where this system has no way to one."""
    if os.name == "nt":
        return None
    if os.getuid() != 0:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o555)
        return folder
    return Path("/proc/self/fdinfo") if Path("/proc/self/fdinfo").is_dir() else None


def test_a_folder_that_cannot_be_written(broken, tmp_path, capsys):
    folder = read_only_folder(tmp_path)
    if folder is None:
        pytest.skip("no folder here is closed to this user")
    with untouched(broken.parent):
        for arguments in (
            ("fix", broken, "--output", folder),
            ("fix", broken, "--to", "peft", "--output", folder),
            ("resize", broken, "--rank", 1, "-o", folder / "a.safetensors"),
            ("merge", broken, broken, "-o", folder / "b.safetensors"),
        ):
            assert parser.run(list(map(str, arguments))) == 2, arguments
            assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(OSError), replacing(folder / "x"):
        pass


@POSIX
def test_a_file_replaced_while_it_is_read_is_noticed(broken, tmp_path):
    """Another file under the name: its offsets are others. The same length, and even the same
    header, must not help.
    """
    header = read_header(broken)
    other = tmp_path / "other.safetensors"
    shutil.copy(broken, other)
    os.replace(other, broken)
    for read in (lambda: map_tensors(broken, header), TensorStream(broken, header).__enter__):
        with pytest.raises(LoraFileError, match="another file"):
            read()
    found = inspect_file(broken)
    with open(broken, "r+b") as file:
        file.truncate(broken.stat().st_size - 1)
    with pytest.raises(LoraFileError, match="another file"):
        map_tensors(broken, found.header)
    assert "cut short" in judge(broken)


@pytest.mark.parametrize("size", [1, 20_000_000])
def test_a_file_that_grows_or_ends_while_it_is_hashed(broken, size):
    def change(done: int, total: int) -> None:
        with open(broken, "r+b") as file:
            file.truncate(size)

    save_file({"a": torch.zeros(3_000_000)}, broken)
    with pytest.raises(LoraFileError, match="changed while it was read"):
        file_hashes(broken, change)


@POSIX
def test_what_another_process_puts_there_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(FileExistsError), replacing(path, overwrite=False) as (file, _):
        file.write(b"ours")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs" and list(tmp_path.iterdir()) == [path]
    # And in the last moment, after it was looked for.
    path.unlink()
    with (
        pytest.raises(FileExistsError),
        replacing(path, False, lambda: path.symlink_to("nowhere")) as (file, _),
    ):
        file.write(b"ours")
    assert os.readlink(path) == "nowhere" and list(tmp_path.iterdir()) == [path]


MOMENTS = {"step": range(1, MAX_STEPS), "room": (1, 4096, 100_000, 2_000_000)}


@POSIX
@pytest.mark.parametrize("kind", MOMENTS)
def test_killed_in_the_midst_of_it_the_old_file_is_whole(broken, tmp_path, forks, kind):
    """Before each change on disk, or when so many bytes are written; what is left is not in the way
    of the next run of the same command.
    """
    original, backup = tmp_path / "original", broken.with_name(broken.name + ".bak")
    shutil.copy(broken, original)
    before, command = digest(broken), ("fix", broken, "--in-place", "--backup")
    ended = set()
    for moment in MOMENTS[kind]:
        forks.start(*command, **{kind: moment})
        code = forks.code()
        left = [path for path in broken.parent.iterdir() if path not in (broken, backup)]
        assert len(left) <= 1 and all(path.suffix == ".part" for path in left)
        ended |= {"as it was" if digest(broken) == before else "fixed"}
        ended |= {"with a part"} if left else set()
        if digest(broken) == before:
            forks.start(*command)
            assert forks.code() == 0, forks.told()
            assert set(broken.parent.iterdir()) == {broken, backup}
        assert whole(broken) and digest(backup) == before
        if code == 0:
            break
        assert code == {"step": -signal.SIGKILL, "room": -signal.SIGXFSZ}[kind]
        shutil.copy(original, broken)
        for path in (backup, *left):
            path.unlink(missing_ok=True)  # the next run has swept what was left
    assert ended >= {"as it was", "with a part"} and (kind == "room" or "fixed" in ended)


@POSIX
def test_a_run_that_was_killed_after_its_backup_is_taken_up_again(broken):
    backup = broken.with_name("x.safetensors.bak")
    before = digest(broken)
    os.link(broken, backup)
    assert parser.run(["fix", str(broken), "--in-place", "--backup"]) == 0
    assert whole(broken) and digest(backup) == before
    # A backup of another file is never lost.
    save_file(broken_lora(2), broken)
    with untouched(broken.parent):
        assert parser.run(["fix", str(broken), "--in-place", "--backup"]) == 1


def test_what_fails_leaves_no_backup(broken, monkeypatch, capsys):
    """The last step may fail, as on a system where another program has the file open."""

    def refuse(*names: object) -> None:
        raise PermissionError(13, "Permission denied", os.fspath(broken))

    before = listing(broken.parent)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        assert parser.run(["fix", str(broken), "--in-place", "--backup"]) == 2
    assert "a program has it open" in capsys.readouterr().err
    assert listing(broken.parent) == before


def test_two_processes_on_one_folder_lose_nothing(tmp_path):
    """Every file ends fixed, and every backup is the file that was."""
    folder = tmp_path / "loras"
    folder.mkdir()
    for number in range(30):
        save_file(broken_lora(number, 2), folder / f"{number:02}.safetensors")
    before = {path.name: digest(path) for path in folder.iterdir()}
    processes = [
        subprocess.Popen(
            [sys.executable, str(CLI), "fix", str(folder), "--in-place", "--backup", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=PATIENCE) for process in processes]
    outcomes = [json.loads(line) for out, _ in told for line in out.splitlines()]
    assert len(outcomes) == 60 and not any("Traceback" in fault for _, fault in told)
    for name, original in before.items():
        assert whole(folder / name) and digest(folder / f"{name}.bak") == original
        assert any(
            outcome["written"] and Path(outcome["file"]).name == name for outcome in outcomes
        )
    assert len(list(folder.iterdir())) == 60


@POSIX
def test_a_link_is_not_put_out_of_place(broken, tmp_path, capsys):
    """The link would become a file, and what it leads to would stay as it was."""
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "x.safetensors").symlink_to(broken)
    with untouched(tmp_path):
        assert parser.run(["fix", str(folder), "--in-place"]) == 1
    assert "link" in capsys.readouterr().out
    assert parser.run(["fix", str(folder)]) == 0 and whole(folder / "x.comfyui.safetensors")


def test_nothing_in_a_file_says_where_anything_is_written(tmp_path, capsys):
    """Names and metadata that are paths: what is written is where it was asked for, and nowhere
    else.
    """
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    tricks = {key: f"../../../{key}" for key in seeds.TOLD} | {
        "ss_output_name": str(tmp_path / "taken.safetensors")
    }
    tensors = broken_lora() | {
        "../../../escaped.lora_A.weight": torch.ones(1, 8),
        "../../../escaped.lora_B.weight": torch.ones(8, 1),
    }
    names = [f"{BROKEN}transformer_blocks.{block}.norm1.linear" for block in range(19)]
    tensors |= {
        f"{name}.lora_{side}.weight": torch.ones(shape)
        for name in names
        for side, shape in (("A", (1, 3072)), ("B", (18432, 1)))
    }
    save_file(tensors, folder / "x.safetensors", tricks)
    for dialect in ("comfyui", "kohya", "peft"):
        assert (
            parser.run(
                [
                    "fix",
                    str(folder / "x.safetensors"),
                    "--to",
                    dialect,
                    "--drop",
                    "--output",
                    str(tmp_path / "out" / dialect),
                ]
            )
            == 1
        )
    made = sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    )
    assert made == [
        "in/deep/x.safetensors",
        "out/comfyui/x.safetensors",
        "out/kohya/x.safetensors",
        "out/peft/x/adapter_config.json",
        "out/peft/x/adapter_model.safetensors",
    ]
