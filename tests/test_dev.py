"""dev.py's own promises: it needs only Python, finds the right ComfyUI, unpacks nothing outside its
folder, and stops when told to.
"""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import locksmith_dev as dev
import pytest
from comfy_server import PATIENCE

ROOT = Path(dev.__file__).parent


def make_comfyui(folder: Path) -> Path:
    for name in ("main.py", "comfy/sd.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def make_archive(path: Path, names: list[str], links: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/"
            tar.addfile(member)
    return path


def test_needs_the_standard_library_only():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import dev; dev.helpers()"
    outcome = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT)], capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr


def test_unknown_command_is_explained():
    outcome = subprocess.run(
        [sys.executable, str(ROOT / "dev.py"), "fly"], capture_output=True, text=True
    )
    assert outcome.returncode == 2
    assert "demo" in outcome.stderr


def test_pytest_arguments_pass_through_in_order():
    assert dev.parse(["test", "tests/server", "-k", "demo or loads", "-x"]).rest == [
        "tests/server",
        "-k",
        "demo or loads",
        "-x",
    ]
    assert dev.parse(["mutate", "planning/plan.py", "--most", "9"]).rest == [
        "planning/plan.py",
        "--most",
        "9",
    ]


def test_the_whole_suite_uses_all_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert dev.workers([]) == dev.workers(["-q", "-k", "demo"]) == dev.workers(["--times"])
    assert dev.workers([]) == ["-n", "4", "--dist", "loadfile", "--no-loadscope-reorder"]
    assert (
        dev.workers(["tests/lora"])
        == dev.workers(["-x", "tests/test_dev.py::test_named_comfyui_wins"])
        == dev.workers(["-n0"])
        == []
    )
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert dev.workers([]) == []


def test_bytecode_is_kept_where_the_machine_keeps_none(tmp_path, monkeypatch):
    """A module that one process imports is compiled for the next, and its folder stays clean."""
    monkeypatch.setattr(dev, "BYTECODE", tmp_path / "bytecode")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "some_module.py").write_text("NUMBER = 1\n", encoding="utf-8")
    subprocess.run(
        [sys.executable, "-c", "import some_module"],
        cwd=tmp_path / "code",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **dev.keeping_bytecode()},
        check=True,
    )
    assert [file.name for file in (tmp_path / "code").iterdir()] == ["some_module.py"]
    assert list((tmp_path / "bytecode").rglob("some_module.*.pyc"))


def test_named_comfyui_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(make_comfyui(tmp_path / "mine")))
    assert dev.comfyui_at_hand() == tmp_path / "mine"


def test_named_folder_that_is_no_comfyui_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(dev.Fault, match=r"COMFYUI_PATH is .* Correct or unset it"):
        dev.comfyui_at_hand()


def test_comfyui_around_the_pack_is_found(monkeypatch, tmp_path):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(dev, "ROOT", make_comfyui(tmp_path) / "custom_nodes" / "any-name")
    assert dev.comfyui_at_hand() == tmp_path


def test_unpacks_one_folder_of_plain_files(tmp_path):
    archive = make_archive(
        tmp_path / "a.tar.gz",
        ["top/vendor/X/main.py", "top/vendor/X/d/e.py", "top/other.py"],
        ("top/vendor/X/link",),
    )
    dev.unpack_folder(archive, ("vendor", "X"), tmp_path / "out")
    assert {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")
    } == {"main.py", "d", "d/e.py"}


def test_each_release_has_a_place_and_a_hash_of_its_own():
    assert len({dev.own_comfyui(version) for version in dev.COMFYUI_SOURCES}) == len(
        dev.COMFYUI_SOURCES
    )
    assert all(
        len(sha256) == 64 and "==" in package for package, sha256 in dev.COMFYUI_SOURCES.values()
    )
    assert {dev.COMFYUI_VERSION, *dev.USUAL_HOSTS} <= dev.COMFYUI_SOURCES.keys()


def test_releases_to_test_on_are_named_by_a_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCKSMITH_HOSTS", raising=False)
    assert dev.hosts_to_test() == list(dev.USUAL_HOSTS)
    monkeypatch.setenv("LOCKSMITH_HOSTS", "all")
    assert dev.hosts_to_test() == list(dev.COMFYUI_SOURCES)
    mine = make_comfyui(tmp_path / "mine")
    monkeypatch.setenv("LOCKSMITH_HOSTS", f"0.27.0 {mine}")
    assert [dev.host_folder(name) for name in dev.hosts_to_test()] == [
        dev.own_comfyui("0.27.0"),
        mine,
    ]
    monkeypatch.setenv("LOCKSMITH_HOSTS", "0.1")
    with pytest.raises(dev.Fault, match=r"LOCKSMITH_HOSTS names 0\.1, .* Correct or unset it"):
        dev.hosts_to_test()


@pytest.mark.parametrize(
    "name", ["top/vendor/X/../../../evil.py", "top/vendor/X//../evil.py", "top/vendor/X/.."]
)
def test_refuses_names_that_lead_out_of_the_folder(tmp_path, name):
    archive = make_archive(tmp_path / "a.tar.gz", [name])
    with pytest.raises(dev.Fault, match="outside its folder"):
        dev.unpack_folder(archive, ("vendor", "X"), tmp_path / "out")
    assert not list(tmp_path.rglob("evil.py"))


def test_environment_is_made_anew_when_a_pin_changes(monkeypatch, tmp_path):
    monkeypatch.setattr(dev, "REQUIREMENTS", tmp_path / "requirements.txt")
    dev.REQUIREMENTS.write_text("torch==1\n", encoding="utf-8")
    before = dev.recipe()
    dev.REQUIREMENTS.write_text("torch==2\n", encoding="utf-8")
    assert dev.recipe() != before


def test_every_torch_package_is_pinned():
    assert [pin.split("==")[0] for pin in dev.pins(dev.TORCH_PACKAGES)] == list(dev.TORCH_PACKAGES)


def test_text_is_appended_once_and_not_to_the_other_names_of_the_file(tmp_path):
    installed, in_a_cache = tmp_path / "extension.py", tmp_path / "cached.py"
    installed.write_text("a = 1\n", encoding="utf-8")
    os.link(installed, in_a_cache)
    for _ in range(2):
        dev.append_once(installed, "# mark\n", mark="# mark")
    assert installed.read_text(encoding="utf-8") == "a = 1\n# mark\n"
    assert in_a_cache.read_text(encoding="utf-8") == "a = 1\n"


def test_failing_step_says_what_failed_and_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(dev, "WORK", tmp_path)
    monkeypatch.setattr(dev, "SETUP_LOG", tmp_path / "setup.log")
    with pytest.raises(dev.Fault, match=r"(?s)the disk is full.*Free some space\."):
        dev.run_step(
            "a step",
            [sys.executable, "-c", "raise SystemExit('the disk is full')"],
            "Free some space.",
        )
    assert "a step" in capsys.readouterr().out


def test_lock_lets_one_in_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setattr(dev, "WORK", tmp_path)
    with dev.one_at_a_time(), open(tmp_path / "lock", "a+") as second:
        assert not dev.try_to_lock(second)
    with open(tmp_path / "lock", "a+") as second:
        assert dev.try_to_lock(second)


def test_named_browser_that_is_no_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("CHROMIUM_PATH", str(tmp_path))
    with pytest.raises(dev.Fault, match=r"CHROMIUM_PATH is .* Correct or unset it"):
        dev.browser_at_hand()


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ([], True),
        (["-x", "--durations=3"], True),
        (["tests"], True),
        (["tests/browser/test_report.py::test_x", "-x"], True),
        (["tests/lora", "-k", "browser"], False),
        (["tests/lora", "tests/browser"], True),
        (["tests/test_dev.py::test_x"], False),
    ],
)
def test_browser_is_got_only_for_its_own_tests(arguments, needed):
    assert dev.needs_browser(arguments) is needed


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """make(script) -> the folder of all commands of a machine without a browser, whose apt-get is a
    shell script.
    """
    commands = tmp_path / "commands"
    commands.mkdir()
    monkeypatch.setenv("PATH", str(commands))
    monkeypatch.delenv("CHROMIUM_PATH", raising=False)
    monkeypatch.setattr(dev, "BROWSER_PLACES", ())
    for name, path in {
        "WORK": tmp_path,
        "SETUP_LOG": tmp_path / "setup.log",
        "OWN_BROWSERS": tmp_path / "browsers",
    }.items():
        monkeypatch.setattr(dev, name, path)
    monkeypatch.setattr(dev, "environment_python", lambda: commands / "python")

    def make(script: str) -> Path:
        for name, text in {
            "apt-get": script,
            "sudo": '[ "$1" = -n ] && shift && exec "$@"',
            "python": "exit 1",
        }.items():
            (commands / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
            (commands / name).chmod(0o755)
        return commands

    return make


@pytest.mark.skipif(os.name == "nt", reason="Windows has no apt-get")
def test_browser_comes_from_the_system_even_if_its_list_of_packages_is_empty_at_first(bare_machine):
    commands = bare_machine(
        'cd "${0%/*}"; case "$1" in update) : > list;; install) [ -f list ] && : > chromium && exec'
        " /bin/chmod +x chromium;; esac"
    )
    dev.ensure_browser()
    assert dev.browser_at_hand() == commands / "chromium"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no apt-get")
def test_no_browser_is_said_and_left_to_the_tests_that_need_it(bare_machine, capsys):
    bare_machine("exit 1")
    dev.ensure_browser()
    assert dev.browser_at_hand() is None
    assert "no browser to test with" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to answer")
def test_server_ends_with_dev_py(comfyui_path, tmp_path):
    """A demo that is told to end takes its server along: no process stays behind."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests/support']\nimport dev,"
        " comfy_server, signal, pathlib\nsignal.signal(signal.SIGTERM, lambda *_:"
        " sys.exit(143))\nbase = comfy_server.prepare_base(pathlib.Path(sys.argv[3]),"
        " dev.ROOT)\nwith comfy_server.Server(pathlib.Path(sys.executable),"
        " pathlib.Path(sys.argv[2]), base, base / 'server.log') as server:\n   "
        " print(server.process.pid, flush=True)\n    server.process.wait()\n"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(comfyui_path), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        server = int(parent.stdout.readline())
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=PATIENCE) == 143
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and is_alive(server):
        time.sleep(0.1)
    assert not is_alive(server)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
