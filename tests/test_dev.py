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
import yaml
from comfy_server import PATIENCE
from devtools import browser, comfyui, environment, steps
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    code = "import sys; sys.path.insert(0, sys.argv[1]); import dev"
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
    assert comfyui.comfyui_at_hand() == tmp_path / "mine"


def test_named_folder_that_is_no_comfyui_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(steps.Fault, match=r"COMFYUI_PATH is .* Correct or unset it"):
        comfyui.comfyui_at_hand()


def test_comfyui_around_the_pack_is_found(monkeypatch, tmp_path):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(comfyui, "ROOT", make_comfyui(tmp_path) / "custom_nodes" / "any-name")
    assert comfyui.comfyui_at_hand() == tmp_path


def test_unpacks_one_folder_of_plain_files(tmp_path):
    archive = make_archive(
        tmp_path / "a.tar.gz",
        ["top/vendor/X/main.py", "top/vendor/X/d/e.py", "top/other.py"],
        ("top/vendor/X/link",),
    )
    comfyui.unpack_folder(archive, ("vendor", "X"), tmp_path / "out")
    assert {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")
    } == {"main.py", "d", "d/e.py"}


def test_each_release_has_a_place_and_a_hash_of_its_own():
    assert len({comfyui.own_comfyui(version) for version in comfyui.COMFYUI_SOURCES}) == len(
        comfyui.COMFYUI_SOURCES
    )
    assert all(
        len(sha256) == 64 and "==" in package
        for package, sha256 in comfyui.COMFYUI_SOURCES.values()
    )
    assert {comfyui.COMFYUI_VERSION, *comfyui.USUAL_HOSTS} <= comfyui.COMFYUI_SOURCES.keys()


def test_releases_to_test_on_are_named_by_a_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCKSMITH_HOSTS", raising=False)
    assert comfyui.hosts_to_test() == list(comfyui.USUAL_HOSTS)
    monkeypatch.setenv("LOCKSMITH_HOSTS", "all")
    assert comfyui.hosts_to_test() == list(comfyui.COMFYUI_SOURCES)
    mine = make_comfyui(tmp_path / "mine")
    monkeypatch.setenv("LOCKSMITH_HOSTS", f"0.27.0 {mine}")
    assert [comfyui.host_folder(name) for name in comfyui.hosts_to_test()] == [
        comfyui.own_comfyui("0.27.0"),
        mine,
    ]
    monkeypatch.setenv("LOCKSMITH_HOSTS", "0.1")
    with pytest.raises(steps.Fault, match=r"LOCKSMITH_HOSTS names 0\.1, .* Correct or unset it"):
        comfyui.hosts_to_test()


def test_an_archive_of_a_release_is_unpacked_once(monkeypatch, tmp_path):
    monkeypatch.setattr(comfyui, "WORK", tmp_path / "work")
    (tmp_path / "work").mkdir()
    archive = make_archive(tmp_path / "newest.tar.gz", ["top/main.py", "top/comfy/sd.py"])
    monkeypatch.setenv("LOCKSMITH_HOSTS", str(archive))
    comfyui.ensure_hosts()
    folder = comfyui.host_folder(str(archive))
    assert comfyui.is_comfyui(folder) and folder.parent == tmp_path / "work"
    (folder / "mark").touch()
    comfyui.ensure_hosts()
    assert (folder / "mark").exists()


def test_an_archive_without_comfyui_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(comfyui, "WORK", tmp_path / "work")
    (tmp_path / "work").mkdir()
    archive = make_archive(tmp_path / "other.tar.gz", ["top/readme.py"])
    monkeypatch.setenv("LOCKSMITH_HOSTS", str(archive))
    with pytest.raises(steps.Fault, match="holds no ComfyUI"):
        comfyui.ensure_hosts()


@pytest.mark.parametrize(
    "name", ["top/vendor/X/../../../evil.py", "top/vendor/X//../evil.py", "top/vendor/X/.."]
)
def test_refuses_names_that_lead_out_of_the_folder(tmp_path, name):
    archive = make_archive(tmp_path / "a.tar.gz", [name])
    with pytest.raises(steps.Fault, match="outside its folder"):
        comfyui.unpack_folder(archive, ("vendor", "X"), tmp_path / "out")
    assert not list(tmp_path.rglob("evil.py"))


def test_environment_is_made_anew_when_a_pin_changes(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "REQUIREMENTS", tmp_path / "requirements.txt")
    environment.REQUIREMENTS.write_text("torch==1\n", encoding="utf-8")
    before = environment.recipe()
    environment.REQUIREMENTS.write_text("torch==2\n", encoding="utf-8")
    assert environment.recipe() != before


def dependency_groups() -> dict[str, list]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]


@pytest.mark.parametrize("group", ["comfyui", "trainers", "test", "docs", "lint", "publish"])
def test_what_the_groups_ask_for_is_pinned(group):
    """What is pinned is of this pyproject.toml: 'python dev.py lock' was not forgotten."""
    file = environment.PUBLISH if group == "publish" else environment.REQUIREMENTS
    pinned = [
        Requirement(line)
        for line in environment.without_hashes(file.read_text(encoding="utf-8")).splitlines()
        if not line.startswith("#")
    ]
    for wanted in map(Requirement, dependency_groups()[group]):
        versions = [
            spec.version
            for one in pinned
            if canonicalize_name(one.name) == canonicalize_name(wanted.name)
            for spec in one.specifier
        ]
        assert versions, f"{wanted.name} has no pin: python dev.py lock"
        assert all(wanted.specifier.contains(version) for version in versions), wanted


def test_the_group_of_comfyui_is_what_it_requires(comfyui_path):
    if comfyui.comfyui_version(comfyui_path) != comfyui.COMFYUI_VERSION:
        pytest.skip(f"the group is of ComfyUI {comfyui.COMFYUI_VERSION}")
    lines = (comfyui_path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = [Requirement(line) for line in lines if line and not line.startswith("#")]
    wanted = map(Requirement, dependency_groups()["comfyui"])
    assert {(canonicalize_name(one.name), str(one.specifier)) for one in asked} == {
        (canonicalize_name(one.name), str(one.specifier)) for one in wanted
    }


def test_hooks_before_a_commit_run_dev_py_commands():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (repository,) = yaml.safe_load(text)["repos"]
    assert repository["repo"] == "local"  # nothing is downloaded
    for hook in repository["hooks"]:
        program, *arguments = hook["entry"].split()
        assert program == "python"
        assert arguments[0] == "dev.py" and dev.parse(arguments[1:]).command


def test_every_torch_package_is_pinned():
    assert [pin.split("==")[0] for pin in environment.pins(environment.TORCH_PACKAGES)] == list(
        environment.TORCH_PACKAGES
    )


def test_text_is_appended_once_and_not_to_the_other_names_of_the_file(tmp_path):
    installed, in_a_cache = tmp_path / "extension.py", tmp_path / "cached.py"
    installed.write_text("a = 1\n", encoding="utf-8")
    os.link(installed, in_a_cache)
    for _ in range(2):
        environment.append_once(installed, "# mark\n", mark="# mark")
    assert installed.read_text(encoding="utf-8") == "a = 1\n# mark\n"
    assert in_a_cache.read_text(encoding="utf-8") == "a = 1\n"


def test_failing_step_says_what_failed_and_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(steps, "WORK", tmp_path)
    monkeypatch.setattr(steps, "SETUP_LOG", tmp_path / "setup.log")
    with pytest.raises(steps.Fault, match=r"(?s)the disk is full.*Free some space\."):
        steps.run_step(
            "a step",
            [sys.executable, "-c", "raise SystemExit('the disk is full')"],
            "Free some space.",
        )
    assert "a step" in capsys.readouterr().out


def test_lock_lets_one_in_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "WORK", tmp_path)
    with steps.one_at_a_time(), open(tmp_path / "lock", "a+") as second:
        assert not steps.try_to_lock(second)
    with open(tmp_path / "lock", "a+") as second:
        assert steps.try_to_lock(second)


def test_named_browser_that_is_no_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("CHROMIUM_PATH", str(tmp_path))
    with pytest.raises(steps.Fault, match=r"CHROMIUM_PATH is .* Correct or unset it"):
        browser.browser_at_hand()


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
    monkeypatch.setattr(browser, "BROWSER_PLACES", ())
    monkeypatch.setattr(steps, "WORK", tmp_path)
    monkeypatch.setattr(steps, "SETUP_LOG", tmp_path / "setup.log")
    monkeypatch.setattr(browser, "OWN_BROWSERS", tmp_path / "browsers")
    monkeypatch.setattr(browser, "environment_python", lambda: commands / "python")

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
    browser.ensure_browser()
    assert browser.browser_at_hand() == commands / "chromium"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no apt-get")
def test_no_browser_is_said_and_left_to_the_tests_that_need_it(bare_machine, capsys):
    bare_machine("exit 1")
    browser.ensure_browser()
    assert browser.browser_at_hand() is None
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
