"""What people get wrong on the command line: told in one line, before any file is read, with the
exit code for it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from comfy_server import PATIENCE
from lora_locksmith.commands import merge as merge_command
from lora_locksmith.commands import parser
from reports.small_files import CLI, ROOT, flux_lora, write_file

FINE, PROBLEMS, FAILED = 0, 1, 2
BROKEN = "transformer.base_model.model."  # what stock does not read
NOT_READ = "none.safetensors"  # is not there, so that a command that reads it first complains of it


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The test's folder, as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def told(place, capsys):
    """told("merge", ...) -> (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = parser.run([str(argument) for argument in arguments])
        except SystemExit as left:
            code = left.code
        return code, *capsys.readouterr()

    return run


WRITES = ("-o", "new.safetensors")
BAD_VALUES = [
    (("merge", "--method", "nonsense"), "no method 'nonsense'; the methods are sum, "),
    (("merge", "--method", ""), "no method ''"),
    (("merge", "--rank", "-1"), "a rank is a whole number from 1 on, not '-1'"),
    (("merge", "--rank", "0"), "from 1 on, not '0'"),
    (("merge", "--rank", "2.5"), "from 1 on, not '2.5'"),
    (("merge", "--rank", "many"), "from 1 on, not 'many'"),
    (("merge", "--energy", "0"), "above 0, at most 1, not '0'"),
    (("merge", "--energy", "95"), "at most 1, not '95'"),
    (("merge", "--energy", "nan"), "at most 1, not 'nan'"),
    (("merge", "--error", "1"), "below 1, not '1'"),
    (("merge", "--error", "inf"), "below 1, not 'inf'"),
    (("merge", "--seed", "x"), "--seed"),
    (("merge", "--dtype", "fp4"), "--dtype"),
    (("merge", "--to", "nobody"), "--to"),
    (("merge", "--set", "density"), "OPTION=NUMBER"),
    (("merge", "--set", "density=much"), "OPTION=NUMBER"),
    (
        ("merge", "--method", "ties", "--set", "density=7"),
        "density of ties is a number from 0 to 1, not 7",
    ),
    (("merge", "--set", "density=0.5"), "the method sum has no option 'density'"),
    (("merge", "--method", "slerp"), "slerp merges exactly 2 LoRAs, 1 given"),
    (("merge", "--blocks", "2", "te=0"), "from 1 to 1"),
    (("merge", "--blocks", "1", "te"), "'te' is not of the form name=weight"),
    (("merge", "x.safetensors=nan"), "a strength is a number"),
    (("merge", "x.safetensors=1:2:3"), "a strength is a number"),
    (("merge", "-o", "nowhere/new.safetensors"), "there is no folder"),
    (("merge", "-o", "."), "it is a folder. Name the new file in it"),
    (("merge", "-o", "taken.safetensors"), "--overwrite replaces it"),
    (("merge", "-o", "n" * 300), "name too long"),
    (("merge", "-o", ""), "specify a file or folder"),
    (("resize", "--rank", "0"), "from 1 on, not '0'"),
    (("resize",), "--rank, --energy or --error"),
    (("resize", "--rank", "1", "-o", "taken.safetensors"), "--overwrite replaces it"),
    (("extract", NOT_READ), "--rank, --energy or --error"),
    (("extract", NOT_READ, "--rank", "-3"), "from 1 on, not '-3'"),
    (("extract", NOT_READ, "--rank", "1", "--clamp", "1.5"), "at most 1, not '1.5'"),
    (("extract", NOT_READ, "--rank", "1", "--device", "toaster"), "--device toaster"),
    (("extract", NOT_READ, "--rank", "1", "-o", "."), "it is a folder"),
    (("fix", "--to", "nobody"), "--to"),
    (("fix", "more.safetensors"), "several new files need a folder"),
    (("fix", "--dtype", "int8"), "--dtype"),
    (("fix", "--in-place"), "not allowed with argument"),
    (("inspect", "--detail", "all"), "--detail"),
]


@pytest.mark.parametrize(
    "arguments, fault",
    BAD_VALUES,
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_a_bad_value_is_told_in_one_line_before_any_file_is_read(place, told, arguments, fault):
    write_file(place / "taken.safetensors", flux_lora(blocks=1))
    before = sorted(place.rglob("*"))
    writes = WRITES if arguments[0] != "inspect" and "-o" not in arguments else ()
    code, out, text = told(*arguments, NOT_READ, *writes)
    assert (code, out, text.count("\n")) == (FAILED, "", 1), text
    assert fault in text and NOT_READ not in text and sorted(place.rglob("*")) == before


def test_the_methods_that_are_named_are_those_that_there_are():
    from lora_locksmith.lora.merge.methods import methods

    assert sorted(merge_command.METHODS) == sorted(methods())


def test_a_file_that_is_not_there_is_told_without_the_words_of_the_graph(told):
    for arguments in (
        ("inspect",),
        ("compare", NOT_READ),
        ("merge", *WRITES),
        ("resize", "--rank", "1", *WRITES),
        ("fix",),
    ):
        code, _, text = told(*arguments, NOT_READ)
        assert (
            code == FAILED
            and "there is no such file. Check the name" in text
            and "list" not in text
        )


def test_folders_instead_of_files_and_the_other_way_round(place, told):
    (place / "folder").mkdir()
    write_file(place / "a.safetensors", flux_lora(blocks=1))
    assert "Name a file in it, or scan the folder" in told("inspect", "folder")[2]
    assert "there is no such folder" in told("scan", "nowhere")[2]
    assert "inspect the file" in told("scan", "a.safetensors")[2]
    for command in (
        ("merge", *WRITES),
        ("resize", "--rank", "1", *WRITES),
        ("compare", "a.safetensors"),
    ):
        code, _, text = told(*command, "folder")
        assert code == FAILED and "it is a folder" in text and text.count("\n") == 1


def test_with_json_a_fault_is_json_and_nothing_else(told):
    for arguments in (
        ("inspect", NOT_READ),
        ("inspect", NOT_READ, "--against", NOT_READ),
        ("compare", NOT_READ, NOT_READ),
        ("merge", NOT_READ, *WRITES),
        ("merge", NOT_READ, "-o", "."),
        ("resize", NOT_READ, *WRITES),
        ("fix", NOT_READ, "--against", NOT_READ),
        ("extract", NOT_READ, NOT_READ, *WRITES),
    ):
        code, out, text = told(*arguments, "--json")
        assert code == FAILED and json.loads(out)["error"] and text == ""


# Names


def test_names_that_shells_and_systems_make_hard(place, told):
    names = [
        "with space.safetensors",
        "\u4e2d\u6587 \U0001f511.safetensors",
        "-dash.safetensors",
        "two\nlines.safetensors",
        "a=0.5.safetensors",
    ]
    for name in names:
        write_file(place / name, flux_lora(1, blocks=1))
    code, out, text = told("inspect", "--json", *names)
    assert (
        code == FINE
        and text == ""
        and [json.loads(line)["file"].removeprefix("./") for line in out.splitlines()] == names
    )
    code, out, _ = told(
        "merge", "--json", *names, "-dash.safetensors=0.5", "a=0.5.safetensors=0.25", *WRITES
    )
    made_of = json.loads(out)["sources"]
    assert code == FINE and [source["strength_model"] for source in made_of] == [
        1,
        1,
        1,
        1,
        1,
        0.5,
        0.25,
    ]
    code, out, text = told("inspect", "no\nsuch.safetensors")
    assert code == FAILED and text.count("\n") == 1 and "no\\nsuch.safetensors" in text


def test_a_pattern_and_a_home_folder_that_the_shell_has_left(place, told, monkeypatch):
    for name in ("a.safetensors", "b.safetensors", "[c].safetensors"):
        write_file(place / name, flux_lora(1, blocks=1))
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("USERPROFILE", str(place))
    for pattern, count in (
        ("*.safetensors", 3),
        ("[ab].safetensors", 2),
        ("[c].safetensors", 1),
        ("~/a.safetensors", 1),
    ):
        code, out, _ = told("inspect", "--json", pattern)
        assert code == FINE and len(out.splitlines()) == count
    assert (
        "no*match.safetensors: there is no such file" in told("inspect", "no*match.safetensors")[2]
    )
    assert (
        told("resize", "~/a.safetensors", "--rank", "1", "-o", "~/new.safetensors")[0] == FINE
        and (place / "new.safetensors").is_file()
    )


def test_files_of_one_name_are_told_apart(place, told):
    paths = [
        write_file(place / folder / "pytorch_lora_weights.safetensors", flux_lora(1, blocks=1))
        for folder in ("one", "two/deep", "deep")
    ]
    other = write_file(place / "other.safetensors", flux_lora(1, blocks=1))
    names = [
        "one/pytorch_lora_weights.safetensors",
        "two/deep/pytorch_lora_weights.safetensors",
        f"{place.name}/deep/{paths[2].name}",
    ]
    _, out, _ = told("merge", *paths, other, other, *WRITES)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in out.splitlines()]
    assert [
        name
        for name in (*names, "other.safetensors (1)", "other.safetensors (2)")
        if name not in rows
    ] == []
    _, out, _ = told("merge", paths[0], paths[1], "--json", "-o", "json.safetensors")
    assert [source["name"] for source in json.loads(out)["sources"]] == [
        names[0],
        "deep/pytorch_lora_weights.safetensors",
    ]
    _, out, _ = told("compare", *paths[:2])
    assert f"| file | {names[0]} | deep/pytorch_lora_weights.safetensors |" in out
    _, out, _ = told("inspect", *paths, other)
    assert re.findall(r"\| File \| `(.+?)`", out) == [*names, "other.safetensors"]


# fix -o


def test_fix_takes_a_folder_or_for_one_file_a_name(place, told):
    write_file(place / "a.safetensors", flux_lora(1, BROKEN, 1))
    for output, made in (
        ("new.safetensors", "new.safetensors"),
        ("folder", "folder/a.safetensors"),
        ("new/sub/", "new/sub/a.safetensors"),
    ):
        code, out, _ = told("fix", "a.safetensors", "-o", output, "--json")
        assert (
            code == FINE
            and Path(json.loads(out)["written"]) == Path(made)
            and (place / made).is_file()
        )
    code, out, _ = told("fix", "a.safetensors", "-o", "new.safetensors")
    assert code == PROBLEMS and "there is a new.safetensors already; --overwrite replaces it" in out
    (place / "notes.txt").touch()
    assert "it is a file, not a folder" in told("fix", "a.safetensors", "-o", "notes.txt")[2]


def test_fix_never_writes_two_files_to_one_place(place, told):
    for folder in ("one", "two"):
        write_file(place / folder / "a.safetensors", flux_lora(1, BROKEN, 1))
    code, out, _ = told("fix", "one/a.safetensors", "two", "-o", "new", "--overwrite", "--json")
    first, second = map(json.loads, out.splitlines())
    assert (
        code == PROBLEMS
        and first["written"]
        and second["written"] == ""
        and os.path.join("one", "a.safetensors") in second["told"]
    )


# Terminals, streams, permissions


def test_version_is_that_of_the_project(locksmith):
    stated = re.search(
        r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE
    )[1]
    found = locksmith("--version", options=("-S",))
    assert (found.returncode, found.stdout, found.stderr) == (
        FINE,
        f"lora-locksmith {stated}\n",
        "",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows' shell cannot close a stream")
def test_a_closed_stream_changes_nothing(environment, file):
    for arguments, code in (([file()], FINE), ([NOT_READ], FAILED)):
        for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
            command = [
                "sh",
                "-c",
                f'exec "$@" {closed}',
                "sh",
                sys.executable,
                str(CLI),
                "inspect",
                *map(str, arguments),
            ]
            found = subprocess.run(command, capture_output=True, env=environment, timeout=PATIENCE)
            assert found.returncode == code and b"Traceback" not in found.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo terminals in Python")
@pytest.mark.parametrize("columns", [40, 200])
def test_a_table_can_be_read_on_any_terminal(environment, file, columns):
    pty = pytest.importorskip("pty")
    folder = file("one.safetensors", start=BROKEN).parent
    leader, follower = pty.openpty()
    command = [sys.executable, str(CLI), "scan", "--no-index", str(folder)]
    terminal = {"TERM": "xterm", "COLUMNS": str(columns), "NO_COLOR": "1"}
    with subprocess.Popen(
        command, stdout=follower, stderr=subprocess.DEVNULL, env={**environment, **terminal}
    ) as process:
        os.close(follower)
        shown = b""
        while chunk := read_terminal(leader):
            shown += chunk
        assert process.wait(60) == PROBLEMS
    os.close(leader)
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).split())
    assert all(
        word in words
        for word in (
            "one.safetensors",
            "FLUX.1",
            "SimpleTuner",
            "LoRA 4",
            "loads",
            "57 layers load that the stock loader leaves out",
        )
    )


def read_terminal(leader: int) -> bytes:
    """What was written to the terminal; nothing when it is closed."""
    try:
        return os.read(leader, 65536)
    except OSError:
        return b""


@pytest.fixture
def drop() -> tuple[str, ...]:
    """What a command begins with that may not read and write everything."""
    if not hasattr(os, "geteuid"):
        pytest.skip("Windows' permissions are others")
    if os.geteuid() != 0:
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("nothing here takes root's rights away")
    return "setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"


def test_a_folder_below_that_may_not_be_listed_is_named(environment, tmp_path, drop):
    write_file(tmp_path / "seen.safetensors", flux_lora(1, blocks=1))
    hidden = write_file(tmp_path / "styles" / "hidden" / "a.safetensors", flux_lora(1, blocks=1))
    hidden.parent.chmod(0)
    try:
        command = [*drop, sys.executable, "-B", str(CLI), "scan", "--no-index", str(tmp_path)]
        found = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=PATIENCE
        )
    finally:
        hidden.parent.chmod(0o755)
    assert found.returncode == PROBLEMS and "seen.safetensors" in found.stdout
    left_out = "styles/hidden is not looked through: it cannot be listed (Permission denied)."
    assert left_out in found.stdout.splitlines() + found.stderr.splitlines()


def test_what_may_not_be_read_or_written_is_named(environment, tmp_path, drop):
    folder = tmp_path / "kept"
    write_file(folder / "broken.safetensors", flux_lora(1, BROKEN, 1))
    write_file(folder / "secret.safetensors", flux_lora(1, blocks=1)).chmod(0)
    folder.chmod(0o555)
    try:
        for arguments, fault in (
            (
                ("inspect", "secret.safetensors"),
                "secret.safetensors: it cannot be opened (Permission denied)",
            ),
            (
                ("merge", "broken.safetensors", *WRITES),
                f"the folder {folder} may not be written to",
            ),
            (
                ("resize", "broken.safetensors", "--rank", "1", *WRITES),
                f"the folder {folder} may not be written to",
            ),
            (
                ("fix", "broken.safetensors"),
                f"broken.safetensors: not written: {folder}: Permission denied",
            ),
        ):
            command = [*drop, sys.executable, "-B", str(CLI), *arguments]
            found = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=folder,
                env=environment,
                timeout=PATIENCE,
            )
            assert found.returncode == FAILED and fault in found.stderr, found.stderr
            assert found.stderr.count("\n") == 1 and ".part" not in found.stderr
    finally:
        folder.chmod(0o755)
