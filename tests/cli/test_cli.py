"""The command line as people use it: a process of its own, its output, its exit code, and what it
leaves behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from comfy_server import PATIENCE
from reports.small_files import CLI, flux_lora, write_file

FINE, PROBLEMS, FAILED, INTERRUPTED = 0, 1, 2, 130
UNKNOWN = {"backbone.mixer.lora_A.weight": (4, 96), "backbone.mixer.lora_B.weight": (96, 4)}


def lines(process: subprocess.CompletedProcess) -> list[dict]:
    return [json.loads(line) for line in process.stdout.splitlines()]


def clean(process: subprocess.CompletedProcess) -> bool:
    return "Traceback" not in process.stdout + process.stderr


# without torch


@pytest.mark.parametrize(
    "command",
    [("inspect", "--weights"), ("fix", "--to", "kohya"), ("merge", "-o", "merged.safetensors")],
    ids=lambda command: command[0],
)
def test_a_command_that_needs_torch_says_so_where_there_is_none(locksmith, file, command):
    path = file()
    told = locksmith(*command, path, path, options=("-S",))  # only the standard library
    assert told.returncode == FAILED and clean(told)
    assert (
        "This needs torch, which is not installed here." in told.stderr
        and "pip install torch" in told.stderr
    )


# inspect


def test_inspect_several_files(locksmith, file):
    found = locksmith(
        "inspect",
        file("a.safetensors"),
        file("b.safetensors", start="transformer.base_model.model."),
    )
    assert found.returncode == FINE and found.stderr == ""
    first, second = found.stdout.split("\n\n\n")
    assert "57 of 57 layers load here; the stock loader would load them too" in first
    assert "SimpleTuner (PEFT wrapper bug)" in second and "the stock loader would load 0" in second


def test_a_file_that_cannot_be_read_does_not_keep_the_others_from_being_told(
    locksmith, file, tmp_path
):
    (tmp_path / "empty.safetensors").touch()
    found = locksmith(
        "inspect", tmp_path / "empty.safetensors", tmp_path / "none.safetensors", file()
    )
    assert found.returncode == FAILED and "57 of 57" in found.stdout and clean(found)
    empty, missing = found.stderr.splitlines()
    assert (
        "empty.safetensors: it is empty. Download" in empty
        and "none.safetensors: there is no such file" in missing
    )


def test_exit_code_of_a_file_that_loads_in_part_or_not_at_all(locksmith, tmp_path):
    stray = write_file(
        tmp_path / "stray.safetensors",
        flux_lora() | {"transformer.transformer_blocks.0.to_nowhere.lora_A.weight": (4, 8)},
    )
    assert locksmith("inspect", stray).returncode == PROBLEMS
    assert (
        locksmith("inspect", write_file(tmp_path / "unknown.safetensors", UNKNOWN)).returncode
        == PROBLEMS
    )
    assert (
        locksmith("inspect", write_file(tmp_path / "nothing.safetensors", {})).returncode
        == PROBLEMS
    )
    for start in (
        "diffusion_model.",
        "transformer.",
        "text_encoder.",
    ):  # tells the network, but not of which model
        told = locksmith(
            "inspect",
            write_file(
                tmp_path / "told.safetensors",
                {start + name: shape for name, shape in UNKNOWN.items()},
            ),
        )
        assert told.returncode == PROBLEMS and "unknown base model" in told.stdout.lower()


def test_json_is_one_object_to_a_line(locksmith, file, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(file("whole.safetensors").read_bytes()[:100])
    found = locksmith("inspect", "--json", "--hashes", file(), tmp_path / "cut.safetensors")
    good, broken = lines(found)
    assert found.returncode == FAILED and found.stderr == ""
    assert set(good) == {
        "beside",
        "verdict",
        "file",
        "bytes",
        "tensors",
        "family",
        "trainer",
        "kinds",
        "ranks",
        "alphas",
        "schema",
        "scales",
        "strength_source",
        "dtypes",
        "loads",
        "trained",
        "missed",
        "metadata",
        "health",
        "hashes",
        "stored_hashes",
    }
    assert (
        good["family"]["name"] == "flux1" and good["ranks"] == {"4": 57} and good["tensors"] == 114
    )
    loads = good["loads"]
    assert (
        loads["exact"] is False
        and loads["modules"] == {"placed": 57, "total": 57}
        and loads["stock"] == {"modules": 57, "keys": 114}
    )
    assert set(broken) == {"file", "error"} and "cut.safetensors" in broken["file"]


def test_details(locksmith, file):
    path = file()
    told = [
        locksmith("inspect", "--detail", detail, path).stdout
        for detail in ("summary", "modules", "every key")
    ]
    assert "## Layers" not in told[0] and "## Every key" not in told[1] and "## Layers" in told[1]
    assert told[2].count(".lora_A.weight`") == 57


def test_strange_names_and_metadata_are_told(locksmith, tmp_path):
    keys = {
        f"transformer.{name}.lora_A.weight": (4, 8)
        for name in ("\u4e2d\u6587", "\ud800", "a|b`c<d>", "x" * 3000)
    }
    metadata = {
        "\ud83d": "\udfff",
        "ss_tag_frequency": '{"\\ud800',
        "note": "![x](http://example.invalid/y.png)",
    }
    path = write_file(tmp_path / "strange \u0416 \U0001f511.safetensors", keys, metadata)
    for options in ((), ("--json",), ("--detail", "every key")):
        found = locksmith("inspect", *options, path)
        assert found.returncode == PROBLEMS and clean(found)
        assert "![x](http" not in found.stdout or options == ("--json",)
    told = locksmith("inspect", "--json", path, PYTHONIOENCODING="ascii")
    assert told.returncode == PROBLEMS and json.loads(told.stdout)["tensors"] == 4


@pytest.fixture(scope="module")
def against(tiny_models_folder):
    """The tiny FLUX model file and the folder of the LoRAs made for it."""
    from tiny_models import FLUX

    return tiny_models_folder / "diffusion_models" / FLUX, tiny_models_folder / "loras"


def test_against_a_model(locksmith, against, file):
    from tiny_models import BROKEN_LORA

    model, loras = against
    (told,) = lines(locksmith("inspect", "--json", "--against", model, loras / BROKEN_LORA))
    assert (
        told["loads"]["exact"] is True
        and told["loads"]["modules"]["placed"] == told["loads"]["modules"]["total"] == 22
    )
    large = locksmith("inspect", "--against", model, file(blocks=2))
    assert large.returncode == PROBLEMS and "**shape conflict**: 12 keys" in large.stdout
    wrong = locksmith("inspect", "--against", file(), file())
    assert (
        wrong.returncode == FAILED
        and "it is a LoRA, not the model" in wrong.stderr
        and clean(wrong)
    )


def test_weights_are_measured_only_where_they_are_asked_for(locksmith, against):
    from tiny_models import KOHYA_LORA

    against_kohya = against[0], against[1] / KOHYA_LORA
    (told,) = lines(locksmith("inspect", "--json", "--weights", "--against", *against_kohya))
    assert told["weights"]["modules"] and told["weights"]["dead"] == []


@pytest.mark.parametrize(
    "command",
    [("inspect",), ("inspect", "--json", "--hashes"), ("compare",), ("scan", "--no-index")],
)
def test_neither_torch_nor_comfyui_nor_rich_is_imported(locksmith, file, tmp_path, command):
    targets = [tmp_path] if command[0] == "scan" else [file("a.safetensors"), file("b.safetensors")]
    file("c.safetensors")
    found = locksmith(*command, *targets, options=("-X", "importtime"))
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in found.stderr.splitlines()
        if "import time:" in line
    }
    assert found.returncode == FINE and "argparse" in imported
    assert not imported & {"torch", "safetensors", "numpy", "comfy", "rich", "folder_paths"}


# Wrong use, interruption, a reader that goes away


def test_wrong_use(locksmith, tmp_path):
    for arguments in ((), ("inspect",), ("compare", "x"), ("inspect", "--deep", "x")):
        found = locksmith(*arguments)
        assert found.returncode == FAILED and found.stderr.startswith("usage: lora-locksmith")
    for arguments in (("open", "x"), ("inspect", "--detail", "all", "x")):
        found = locksmith(*arguments)
        assert (
            found.returncode == FAILED
            and found.stderr.count("\n") == 1
            and "choose from" in found.stderr
        )
    missing = locksmith("scan", tmp_path / "nowhere")
    assert (
        missing.returncode == FAILED
        and "there is no such folder" in missing.stderr
        and clean(missing)
    )
    assert "scan" in locksmith("--help").stdout


def many(folder: Path, count: int = 300) -> Path:
    """Files of different ranks, each of which has to be looked at."""
    for rank in range(1, count + 1):
        write_file(folder / f"{rank:04}.safetensors", flux_lora(rank, blocks=4))
    return folder


@pytest.mark.skipif(
    sys.platform == "win32", reason="Ctrl-C cannot be sent to one process on Windows"
)
def test_interrupted_scan_leaves_a_whole_index_and_nothing_else(locksmith, environment, tmp_path):
    folder = many(tmp_path / "loras")
    command = [sys.executable, str(CLI), "scan", "--json-lines", str(folder)]
    # So small a pipe makes the command wait for us, so that it cannot be through before it is
    # interrupted.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "pipesize": 4096}
    # Where the tests run in the background, Ctrl-C is turned off for them and all they start.
    heard = {
        "start_new_session": True,
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **heard, **pipes) as process:
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == INTERRUPTED and complaint == b"Stopped.\n"
    assert first["file"] == "0001.safetensors" and len(rest.splitlines()) < 299
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(kept) <= 1 and all(0 < rows_in(path) < 300 for path in kept)
    assert len(list(folder.iterdir())) == 300
    assert len(lines(locksmith("scan", "--json-lines", folder))) == 300


def test_a_reader_that_goes_away(environment, file, tmp_path):
    for arguments in (["inspect", file()], ["scan", "--json-lines", tmp_path], ["scan", tmp_path]):
        read, write = os.pipe()
        os.close(read)
        process = subprocess.run(
            [sys.executable, str(CLI), *arguments],
            stdout=write,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=PATIENCE,
        )
        os.close(write)
        assert process.returncode == FAILED and process.stderr == b""


# scan


@pytest.fixture
def library(tmp_path) -> Path:
    """A folder as people have them."""
    folder = tmp_path / "loras"
    write_file(folder / "good.safetensors", flux_lora())
    write_file(folder / "sub" / "deep \u4e2d\u6587 \U0001f511" / "nested.SAFETENSORS", flux_lora(8))
    write_file(
        folder / "sub" / "simpletuner.safetensors", flux_lora(start="transformer.base_model.model.")
    )
    write_file(folder / "unknown.sft", UNKNOWN)
    (folder / "empty.safetensors").touch()
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:500])
    (folder / "page.safetensors").write_bytes(
        b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>" * 9
    )
    (folder / "old.pt").write_bytes(b"PK\x03\x04 whatever")
    (folder / "notes.txt").write_text("no LoRA", encoding="utf-8")
    (folder / "folder.safetensors").mkdir()
    return folder


EXPECTED = {
    "good.safetensors": "loads",
    "sub/deep \u4e2d\u6587 \U0001f511/nested.SAFETENSORS": "loads",
    "sub/simpletuner.safetensors": "loads",
    "unknown.sft": "unknown model",
    "empty.safetensors": "cannot be read",
    "cut.safetensors": "cannot be read",
    "page.safetensors": "cannot be read",
    "old.pt": "cannot be read",
}


def verdicts(process: subprocess.CompletedProcess) -> dict[str, str]:
    return {row["file"]: row["verdict"] for row in lines(process)}


def test_scan(locksmith, library):
    found = locksmith("scan", "--json-lines", library)
    assert found.returncode == PROBLEMS and found.stderr == "" and verdicts(found) == EXPECTED
    rows = {row["file"]: row for row in lines(found)}
    assert list(rows) == sorted(rows)
    assert set(rows["good.safetensors"]) == {
        "file",
        "bytes",
        "family",
        "made_for",
        "trainer",
        "kinds",
        "rank",
        "placed",
        "total",
        "stock",
        "gains",
        "losses",
        "cautions",
        "contradiction",
        "trainer_guessed",
        "error",
        "verdict",
        "state",
        "problem",
        "trigger_words",
        "has_picture",
    }
    assert rows["good.safetensors"]["problem"] is False and rows["good.safetensors"]["rank"] == "4"
    assert rows["sub/simpletuner.safetensors"]["gains"] == [
        "57 layers load that the stock loader leaves out"
    ]
    assert "pickle" in rows["old.pt"]["error"] and "web page" in rows["page.safetensors"]["error"]


def test_table_and_problems(locksmith, library):
    table = locksmith("scan", library).stdout.splitlines()
    assert table[0].split("\t")[:3] == ["file", "made for", "written by"] and len(table) == 1 + len(
        EXPECTED
    )
    told = locksmith("scan", "--problems", "--json-lines", library)
    assert verdicts(told).keys() == EXPECTED.keys() - {
        "good.safetensors",
        "sub/deep \u4e2d\u6587 \U0001f511/nested.SAFETENSORS",
    }
    assert locksmith("scan", "--problems", library / "sub").returncode == PROBLEMS
    worst_first = [
        line.split("\t")[4].partition(";")[0]
        for line in locksmith("scan", "--problems", library).stdout.splitlines()[1:]
    ]
    assert worst_first == sorted(
        worst_first, key=lambda verdict: (verdict != "cannot be read", verdict != "unknown model")
    )
    fine = locksmith("scan", "--problems", next((library / "sub").glob("deep*")))
    assert (
        fine.returncode == FINE
        and len(fine.stdout.splitlines()) == 1
        and fine.stderr == "1 file: 1 loads as with stock.\n"
    )


def test_a_folder_without_loras_and_a_file_are_told(locksmith, tmp_path):
    (tmp_path / "readme.txt").touch()
    empty, no_folder = locksmith("scan", tmp_path), locksmith("scan", tmp_path / "readme.txt")
    assert empty.returncode == FINE and "no LoRA file" in empty.stderr
    assert no_folder.returncode == FAILED and "it is a file, not a folder" in no_folder.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo terminals in Python")
def test_rows_go_into_the_file_they_are_sent_to_while_a_terminal_shows_the_progress(
    environment, library, tmp_path
):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    command = [sys.executable, str(CLI), "scan", "--json-lines", "--no-index", str(library)]
    with open(tmp_path / "rows.jsonl", "wb") as rows:
        assert (
            subprocess.run(
                command,
                stdout=rows,
                stderr=follower,
                env={**environment, "TERM": "xterm"},
                timeout=PATIENCE,
            ).returncode
            == PROBLEMS
        )
    os.close(follower)
    os.close(leader)
    told = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()]
    assert {row["file"]: row["verdict"] for row in told} == EXPECTED


def index_of(tmp_path: Path) -> Path:
    (index,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    return index


def rows_in(index: Path) -> int:
    with closing(sqlite3.connect(index)) as database:
        return database.execute("SELECT count(*) FROM files").fetchone()[0]


def overwrite(path: Path) -> None:
    """Other content, of the same size and time."""
    about = path.stat()
    path.write_bytes(b"\0" * about.st_size)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_second_scan_reads_nothing_and_a_changed_file_is_read_again(locksmith, library, tmp_path):
    before = lines(locksmith("scan", "--json-lines", library))
    for path in library.rglob("*"):
        if path.is_file():
            overwrite(path)
    assert lines(locksmith("scan", "--json-lines", library)) == before
    write_file(library / "good.safetensors", flux_lora(16))
    (library / "unknown.sft").unlink()
    (library / "sub" / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 8}), encoding="utf-8"
    )
    after = {row["file"]: row for row in lines(locksmith("scan", "--json-lines", library))}
    assert after["good.safetensors"]["rank"] == "16" and "unknown.sft" not in after
    assert after["sub/simpletuner.safetensors"]["error"], (
        "new settings beside a file may change what is in it: it is read again"
    )
    assert (
        verdicts(locksmith("scan", "--json-lines", "--no-index", library))["cut.safetensors"]
        == "cannot be read"
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_damaged_index_is_set_aside_and_one_line_says_so(locksmith, library, tmp_path, language):
    locksmith("scan", library)
    index = index_of(tmp_path)
    index.write_bytes(b"no index at all" * 99)
    found = locksmith("scan", "--json-lines", "--lang", language, library)
    assert verdicts(found) == EXPECTED
    (line,) = found.stderr.splitlines()
    assert f"{index}.damaged" in line and ("LoRA \u5e93" in line) == (language == "zh")
    assert rows_in(index) == len(EXPECTED)


def test_scan_uses_the_index_of_the_comfyui_that_the_folder_is_in(locksmith, library, tmp_path):
    """Or that it is told of, where the folder is elsewhere."""
    folder = tmp_path / "ComfyUI" / "models" / "loras"
    shutil.copytree(library, folder)
    own = tmp_path / "ComfyUI" / "user" / "lora-locksmith" / "library.sqlite"
    locksmith("scan", "--index", own, library)
    assert rows_in(own) == len(EXPECTED)
    assert verdicts(locksmith("scan", "--json-lines", folder)) == EXPECTED
    assert rows_in(own) == 2 * len(EXPECTED) and not (tmp_path / "cache").exists()
    for path in folder.rglob("*"):
        if path.is_file():
            overwrite(path)
    assert (
        verdicts(locksmith("scan", "--json-lines", folder / "sub")).items()
        <= {name.removeprefix("sub/"): verdict for name, verdict in EXPECTED.items()}.items()
    )
    assert locksmith("scan", "--index", own, "--no-index", library).returncode == 2


def test_cache_that_cannot_be_written_costs_nothing_but_time(locksmith, library, tmp_path):
    (tmp_path / "blocked").write_text("a file where a folder should be", encoding="utf-8")
    found = locksmith(
        "scan",
        "--json-lines",
        library,
        XDG_CACHE_HOME=str(tmp_path / "blocked"),
        LOCALAPPDATA=str(tmp_path / "blocked"),
    )
    assert verdicts(found) == EXPECTED and clean(found)


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="only Linux allows file names that are no text, and links to whoever asks",
)
def test_names_that_are_no_text_and_links_in_a_circle(locksmith, tmp_path):
    folder = tmp_path / "loras"
    path = write_file(folder / "x.safetensors", flux_lora())
    os.rename(path, os.fsencode(folder) + b"/\xff\xfe.safetensors")
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "dangling.safetensors").symlink_to(folder / "nowhere")
    for options in (("--json-lines",), ()):
        found = locksmith("scan", *options, folder)
        assert clean(found) and found.returncode == FINE and "udcff" in found.stdout
    assert verdicts(locksmith("scan", "--json-lines", folder)) == {
        "\udcff\udcfe.safetensors": "loads"
    }


# compare


def test_compare(locksmith, file, tmp_path):
    plain, broken = (
        file("plain.safetensors"),
        file("broken.safetensors", start="transformer.base_model.model."),
    )
    same = locksmith("compare", plain, broken)
    assert (
        same.returncode == FINE
        and "Both change the same 3 layer types, in the same blocks." in same.stdout
    )
    part = locksmith("compare", "--json", plain, file("part.safetensors", blocks=7))
    (told,) = lines(part)
    assert part.returncode == PROBLEMS and told["one_model"] and not told["same_layers"]
    assert told["layers"]["double_blocks.{}.img_mlp.0"] == ["2" * 19, "2" * 7 + "0" * 12]
    assert locksmith("compare", plain, tmp_path / "none.safetensors").returncode == FAILED


def test_compare_what_cannot_be_told(locksmith, file, tmp_path):
    unknown = write_file(tmp_path / "unknown.safetensors", UNKNOWN)
    for first, second, which in ((unknown, unknown, "A and B"), (file(), unknown, "B")):
        found = locksmith("compare", first, second)
        assert (
            found.returncode == PROBLEMS
            and f"Which layers {which} would change is unknown." in found.stdout
        )


def test_compare_weights(locksmith, against):
    from tiny_models import DIFFUSERS_LORA, KOHYA_LORA

    found = locksmith(
        "compare", "--weights", "--json", against[1] / DIFFUSERS_LORA, against[1] / KOHYA_LORA
    )
    (told,) = lines(found)
    assert {"cosine", "norm_a", "norm_b", "meetings"} <= set(told["weights"])


# On a terminal


def on_terminal(
    environment: dict[str, str], *arguments: object, path: Path | None = None
) -> tuple[int, str, str]:
    """(exit code, what a terminal shows, standard error) of a run whose output is a terminal."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    settings = {**environment, "COLUMNS": "120", "TERM": "xterm"} | (
        {"PYTHONPATH": str(path)} if path else {}
    )
    with subprocess.Popen(
        [sys.executable, str(CLI), *map(str, arguments)],
        stdout=follower,
        stderr=subprocess.PIPE,
        env=settings,
    ) as process:
        os.close(follower)
        shown = b""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                part = os.read(leader, 65536)
            except OSError:  # Linux tells the end of a terminal so
                break
            if not part:
                break
            shown += part
        complaint = process.communicate()[1].decode()
    os.close(leader)
    return process.returncode, shown.decode(), complaint


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo terminals in Python")
def test_terminal_output_with_rich_and_without(environment, file, tmp_path):
    library = tmp_path / "loras"
    write_file(library / "good.safetensors", flux_lora())
    files = [file("a.safetensors"), file("b.safetensors")]
    for arguments in (["inspect", *files], ["scan", "--no-index", library]):
        code, shown, complaint = on_terminal(environment, *arguments)
        assert complaint == ("1 file: 1 loads as with stock.\n" if arguments[0] == "scan" else "")
        assert code == FINE and "\x1b[" in shown and "| --- |" not in shown and "FLUX.1" in shown
    without = tmp_path / "without"
    (without / "rich").mkdir(parents=True)
    (without / "rich" / "__init__.py").write_text(
        "raise ImportError('no rich here')", encoding="utf-8"
    )
    for arguments, mark in (
        (["inspect", *files], "| --- |"),
        (["scan", "--no-index", library], "good.safetensors\t"),
    ):
        code, shown, complaint = on_terminal(environment, *arguments, path=without)
        assert (
            code == FINE
            and "\x1b[" not in shown
            and mark in shown.expandtabs(1).replace(" FLUX", "\tFLUX")
        )
        assert complaint.count("pip install rich") == 1


def test_without_platformdirs_nothing_is_kept(locksmith, library, tmp_path):
    without = tmp_path / "without"
    (without / "platformdirs").mkdir(parents=True)
    (without / "platformdirs" / "__init__.py").write_text(
        "raise ImportError('not here')", encoding="utf-8"
    )
    found = locksmith("scan", "--json-lines", library, PYTHONPATH=str(without))
    assert (
        verdicts(found) == EXPECTED
        and "pip install platformdirs" in found.stderr
        and not (tmp_path / "cache").exists()
    )
    assert (
        locksmith("scan", "--json-lines", "--no-index", library, PYTHONPATH=str(without)).stderr
        == ""
    )
