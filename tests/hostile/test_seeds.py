"""Every seed of the corpus through reader, plan, report and commands."""

from __future__ import annotations

import json

import pytest
import seeds
import torch
from judge import judge, listing, untouched
from lora_locksmith.commands import parser
from lora_locksmith.files.header import LoraFileError, read_header
from lora_locksmith.lora.io.mapped import map_tensors
from safetensors import SafetensorError
from safetensors.torch import load_file

UNSHOWN = {chr(number) for number in [*range(9), *range(11, 32), *range(127, 160), 0x202E]}
READING = (
    ("inspect", "FILE"),
    ("inspect", "--json", "FILE"),
    ("inspect", "--detail", "every key", "FILE"),
    ("compare", "FILE", "FILE"),
    ("scan", "--no-index", "DIR"),
    ("scan", "--no-index", "--json-lines", "DIR"),
)
# Commands that look at the tensors, and which seeds they get.
WORKING = {
    (
        "inspect",
        "--weights",
        "--json",
        "FILE",
    ): "tensor: numbers, tensor: alpha, tensor: rank, tensor: dtype, tensor: shape",
    ("inspect", "--hashes", "--json", "FILE"): "length, layout, tensor: dtype",
    (
        "compare",
        "--weights",
        "FILE",
        "FILE",
    ): "tensor: numbers, tensor: alpha, tensor: rank, tensor: shape",
    ("fix", "FILE", "--drop", "--output", "OUT"): "tensor, name: strange, layout, length",
    (
        "fix",
        "FILE",
        "--to",
        "kohya",
        "--drop",
        "--dtype",
        "fp16",
        "--output",
        "OUT",
    ): "tensor: numbers, tensor: alpha, metadata",
    (
        "fix",
        "FILE",
        "--to",
        "peft",
        "--drop",
        "--output",
        "OUT",
    ): "tensor: alpha, tensor: rank, tensor: dtype",
    (
        "resize",
        "FILE",
        "--rank",
        "1",
        "-o",
        "OUT/a.safetensors",
    ): "tensor: numbers, tensor: alpha, tensor: rank, tensor: shape",
    (
        "merge",
        "FILE=1",
        "FILE=0.5",
        "-o",
        "OUT/c.safetensors",
    ): "tensor: numbers, tensor: alpha, tensor: dtype, tensor: shape",
}


@pytest.fixture
def place(tmp_path):
    """place(content) -> its file in a folder of its own."""
    folder = tmp_path / "files"
    folder.mkdir()

    def put(content):
        (folder / "x.safetensors").write_bytes(content)
        return folder / "x.safetensors"

    return put


@pytest.mark.parametrize("name", seeds.CORPUS)
def test_a_clear_error_or_a_whole_report(place, name):
    path = place(seeds.CORPUS[name])
    with untouched(path.parent):
        judge(path)


def test_a_file_cut_anywhere(place):
    for content in seeds.cut(seeds.WHOLE):
        assert judge(place(content)) != "read"
    assert judge(place(seeds.WHOLE)) == "read"


def test_the_tensors_are_those_that_safetensors_reads(place):
    """Or both refuse them; nothing but LoraFileError and what torch says of sizes it cannot hold
    comes out.
    """
    read = 0
    for name, content in seeds.CORPUS.items():
        path = place(content)
        try:
            theirs = load_file(path)
        except (SafetensorError, RuntimeError, ValueError, OverflowError, TypeError, KeyError):
            continue
        try:
            ours = map_tensors(path, read_header(path))
        except LoraFileError:
            assert "twice" in name or '["F32"' in name, name
            continue
        read += 1
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape), name
            assert not tensor.numel() or torch.equal(
                *(found.contiguous().view(-1).view(torch.uint8) for found in (ours[key], tensor))
            )
    assert read > 150


def run(capsys, arguments) -> int:
    """The exit code; what was told must be showable, and no traceback."""
    code = parser.run(arguments)
    told = capsys.readouterr()
    assert code in (0, 1, 2) and "Traceback" not in told.err and told.out + told.err
    assert UNSHOWN.isdisjoint(told.out + told.err)
    for line in (
        told.out.splitlines() if "--json" in arguments or "--json-lines" in arguments else ()
    ):
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return code


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_commands_that_only_read(place, capsys, arguments):
    every = 1 if arguments == READING[0] else 3
    for name, content in [*seeds.CORPUS.items()][READING.index(arguments) % every :: every]:
        if len(content) > 1_000_000:
            continue
        path = place(content)
        with untouched(path.parent):
            code = run(
                capsys,
                [
                    word.replace("FILE", str(path)).replace("DIR", str(path.parent))
                    for word in arguments
                ],
            )
        assert code != 2 or judge(path) != "read", name


@pytest.mark.parametrize("arguments", WORKING, ids=" ".join)
def test_commands_that_look_at_the_tensors(place, tmp_path, capsys, arguments):
    """A whole file or none comes of it, and no folder is left empty."""
    rooms = tuple(WORKING[arguments].split(", "))
    for name in [name for name in seeds.CORPUS if name.startswith(rooms)]:
        path, out = place(seeds.CORPUS[name]), tmp_path / name.replace("/", "")[:20]
        out.mkdir(exist_ok=True)
        before = listing(out)
        with untouched(path.parent):
            code = run(
                capsys,
                [word.replace("FILE", str(path)).replace("OUT", str(out)) for word in arguments],
            )
        made = [out / file for file in listing(out) if file not in before]
        assert not made or code == 0 or (code == 1 and "--drop" in arguments), (name, code, made)
        assert all(
            file.is_dir() or file.suffix == ".json" or judge(file) == "read" for file in made
        ), name
        for file in sorted(made, reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
