"""The project's files agree with each other and with what ComfyUI's registry asks of a pack."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from devtools.packing import not_ignored, pack, packed_files, patterns_of
from reports.small_files import flux_lora, write_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GENERATED = (".dev", ".git", "__pycache__", ".hypothesis", ".pytest_cache", ".ruff_cache")


def project_files(*endings: str) -> list[Path]:
    files = (path for path in ROOT.rglob("*") if path.suffix in endings and path.is_file())
    return [
        path
        for path in files
        if not any(part in GENERATED for part in path.relative_to(ROOT).parts)
    ]


def test_requirements_agree_with_pyproject():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == PYPROJECT["project"][
        "dependencies"
    ]


def test_registry_fields():
    assert PYPROJECT["project"]["name"] == "lora-locksmith"
    assert PYPROJECT["tool"]["comfy"]["DisplayName"] == "LoRA Locksmith"
    assert PYPROJECT["tool"]["comfy"]["requires-comfyui"] == ">=0.16.3"
    assert PYPROJECT["project"]["license"] == "MIT" and PYPROJECT["project"]["license-files"] == [
        "LICENSE"
    ]
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert re.fullmatch(r"\d+\.\d+\.\d+", PYPROJECT["project"]["version"])


def test_registry_understands_the_versions():
    """It drops, with a warning nobody sees, a version that does not have three parts."""
    (front_end,) = (
        one
        for one in PYPROJECT["project"]["dependencies"]
        if one.startswith("comfyui-frontend-package")
    )
    assert re.fullmatch(r"comfyui-frontend-package>=\d+\.\d+\.\d+", front_end)
    assert re.fullmatch(r">=\d+\.\d+\.\d+", PYPROJECT["tool"]["comfy"]["requires-comfyui"])


ROOMS = {
    path.parent.relative_to(ROOT).parts[0]
    for path in ROOT.glob("*/__init__.py")
    if path.parent.name not in ("tests", "build")
}


def test_registry_gets_what_users_need_and_nothing_else():
    left_out, unknown = (
        {pattern.strip("/") for pattern in patterns_of(name)}
        for name in (".comfyignore", ".gitignore")
    )
    not_in_git = {".git", *unknown}
    there = {
        path.name
        for path in ROOT.iterdir()
        if not any(path.match(pattern) for pattern in not_in_git)
    }
    assert left_out <= there
    assert there - left_out == {
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "README.zh.md",
        "__init__.py",
        "api.py",
        "cli.py",
        "docs",
        "errors.py",
        "example_workflows",
        "locales",
        "messages.py",
        "pyproject.toml",
        "requirements.txt",
        "web",
        *ROOMS,
    }


def test_the_archive_for_the_registry_is_the_same_each_time(tmp_path):
    first, second = (pack(tmp_path / name) for name in ("first.zip", "second.zip"))
    assert first.read_bytes() == second.read_bytes()
    with ZipFile(first) as archive:
        names = archive.namelist()
    assert names == packed_files() and {"__init__.py", "web/index.js"} <= set(names)
    assert not [name for name in names if f"/{name}".startswith(tuple(patterns_of(".comfyignore")))]
    assert set(names) <= set(not_ignored()), "without git the archive would lack files"


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit(path):
    used = re.findall(r"uses: (\S+)(.*)", path.read_text("utf-8"))
    assert used
    for action, told in used:
        assert re.search(r"@[0-9a-f]{40}$", action) and re.fullmatch(r" # v[\d.]+", told), action


def test_only_a_job_that_runs_none_of_the_project_has_the_token():
    jobs = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text("utf-8"))["jobs"]
    holders = {name for name, job in jobs.items() if "secrets." in json.dumps(job)}
    assert holders == {"publish"} and jobs["publish"]["needs"] == "test"
    runs = "\n".join(step.get("run", "") for step in jobs["publish"]["steps"])
    assert "dev.py" not in runs and "--require-hashes" in runs


@pytest.mark.parametrize("name", ["tests/requirements.txt", ".github/publish.txt"])
def test_what_is_installed_is_pinned_by_hash(name):
    entries = re.split(r"^(?=\w)", (ROOT / name).read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert len(entries) > 20
    assert not [
        entry for entry in entries if not re.match(r"\S+==\S+.*\\\n +--hash=sha256:", entry)
    ]


def test_front_end_files_are_served_once():
    """The host serves WEB_DIRECTORY and [tool.comfy] web each under its own address, so naming both
    runs every script twice.
    """
    assert "web" not in PYPROJECT["tool"]["comfy"]


@pytest.mark.parametrize("path", project_files(".py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_source_is_ascii(path):
    path.read_bytes().decode("ascii")


def test_example_workflows_are_whole():
    for path in (ROOT / "example_workflows").glob("*.json"):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        nodes = {node["id"]: node for node in workflow["nodes"]}
        for identifier, origin, origin_slot, target, target_slot, kind in workflow["links"]:
            assert identifier in nodes[origin]["outputs"][origin_slot]["links"]
            assert nodes[target]["inputs"][target_slot]["link"] == identifier
            assert nodes[origin]["outputs"][origin_slot]["type"] == kind


def test_importing_the_pack_imports_nothing_heavy():
    code = (
        "import importlib.util, sys; path = sys.argv[1]\nspec ="
        " importlib.util.spec_from_file_location('pack', path + '/__init__.py',"
        " submodule_search_locations=[path])\nsys.modules['pack'] = module ="
        " importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\nassert not"
        " {'torch', 'comfy', 'nodes', 'pack.nodes', 'pack.key_maps'} & set(sys.modules),"
        " sorted(sys.modules)\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-I", "-c", code, str(ROOT)], capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that `pip install .` makes, built from a copy, because setuptools leaves its
    workings in the folder.
    """
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(
        ROOT,
        folder / "copy",
        ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "docs", "build", "*.egg-info"),
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        folder,
        copy,
    ]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_has_all_code_and_all_knowledge(wheel):
    wanted = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file()
    }
    wanted = {name for name in wanted if "__pycache__" not in name} | {
        "__init__.py",
        "api.py",
        "cli.py",
        "errors.py",
        "messages.py",
        *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("locales/*/messages/*.json")),
    }
    with ZipFile(wheel) as archive:
        packed = {
            name.removeprefix("lora_locksmith/")
            for name in archive.namelist()
            if name.startswith("lora_locksmith/")
        }
    assert packed - {"dev.py"} == wanted
    assert sum(name.endswith((".table", ".record", ".presets")) for name in packed) > 60


def test_installed_command_runs(wheel, tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        tmp_path / "place",
        wheel,
    ]
    subprocess.run(command, check=True, capture_output=True)
    lora = write_file(
        tmp_path / "lora.safetensors", flux_lora(start="transformer.base_model.model.")
    )
    script = (
        tmp_path
        / "place"
        / "bin"
        / ("lora-locksmith.exe" if sys.platform == "win32" else "lora-locksmith")
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "place")}
    outcome = subprocess.run(
        [script, "inspect", lora], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "57 of 57 layers load" in outcome.stdout
    model = subprocess.run(
        [script, "inspect", "--against", lora, lora],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert model.returncode == 2 and "it is a LoRA, not the model" in model.stderr
