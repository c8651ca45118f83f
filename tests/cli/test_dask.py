"""A scan on dask's workers: the same rows as in this process, on a cluster that is there and on one
that is started for it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from distributed import LocalCluster
from lora_locksmith.commands import engines
from lora_locksmith.commands.engines import ClusterError, findings_at, on_dask, task
from lora_locksmith.commands.parser import run, version
from lora_locksmith.report.findings import findings_of
from lora_locksmith.report.listing import Listed, Stamp
from reports.small_files import ROOT, flux_lora, write_file
from web_server import serving

FINE, PROBLEMS, FAILED = 0, 1, 2
FILES = 40  # more than one task's


@pytest.fixture
def library(tmp_path) -> Path:
    folder = tmp_path / "loras"
    for number in range(FILES):
        start = "transformer." if number % 3 else "transformer.base_model.model."
        path = folder / str(number % 4) / f"{number}.safetensors"
        write_file(path, flux_lora(1 + number % 5, start))
    (folder / "0" / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 4}')
    (folder / "page.safetensors").write_bytes(b"<!DOCTYPE html><html></html>" * 9)
    (folder / "old.pt").write_bytes(b"PK\x03\x04 whatever")
    return folder


@pytest.fixture(scope="module")
def scheduler():
    """The address of a cluster of two workers, in threads of this process."""
    with LocalCluster(
        n_workers=2,
        processes=False,
        threads_per_worker=1,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster.scheduler_address


def told(process) -> list[dict]:
    return [json.loads(line) for line in process.stdout.splitlines()]


def rows(capsys, *arguments) -> tuple[int, list[dict]]:
    code = run(["scan", "--json-lines", "--no-index", *map(str, arguments)])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def listed(path):
    return Listed(str(path), Stamp(0, 0, 0), b"")


def engine(scheduler, tell=lambda count: None, version=version):
    return on_dask(scheduler, None, 20, version=version(), tell=tell)


def test_a_cluster_tells_the_same_rows(capsys, library, scheduler, monkeypatch):
    expected = rows(capsys, library)
    assert expected[0] == PROBLEMS and len(expected[1]) == FILES + 2
    asked = []
    monkeypatch.setattr(
        engines, "findings_at", lambda *job: (asked.append(job), findings_at(*job))[1]
    )
    assert rows(capsys, library, "--scheduler", scheduler) == expected
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", scheduler)
    import dask

    with dask.config.set(scheduler_address=scheduler):
        assert rows(capsys, library, "--engine", "dask") == expected
    # Twice by the workers, and twice here what they could not read.
    assert len(asked) == 2 * (FILES + 2) + 2 * 2


def test_processes_of_its_own_tell_the_same_rows_and_keep_the_index(locksmith, library, tmp_path):
    """Of a clone, which is not installed: the workers find it by its folder."""
    expected = locksmith("scan", "--json-lines", "--no-index", library)
    dask = locksmith("scan", "--json-lines", "--engine", "dask", "--workers", "2", "loras")
    assert (dask.returncode, told(dask), dask.stderr) == (PROBLEMS, told(expected), "")
    (index,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    about = index.stat()
    again = locksmith("scan", "--json-lines", "--scheduler", "tcp://127.0.0.1:9", "loras")
    assert told(again) == told(expected), "nothing is left to do, so no cluster is asked"
    assert index.stat().st_mtime_ns == about.st_mtime_ns


def test_addresses_on_a_cluster(capsys, library, scheduler):
    with serving(library) as web:
        expected = rows(capsys, library)
        assert rows(capsys, f"{web.url}/files/", "--scheduler", scheduler) == expected
        assert rows(capsys, library.as_uri(), "--scheduler", scheduler) == expected


def test_what_workers_cannot_read_is_read_here_and_told(capsys, library, scheduler, monkeypatch):
    expected = rows(capsys, library)

    def elsewhere(package, version, timeout):
        work = task(package, version, timeout)
        return lambda jobs: work([(f"/elsewhere{path}", *beside) for path, *beside in jobs])

    monkeypatch.setattr(engines, "task", elsewhere)
    code = run(["scan", "--json-lines", "--no-index", "--scheduler", scheduler, str(library)])
    said = capsys.readouterr()
    assert (code, [json.loads(line) for line in said.out.splitlines()]) == expected
    assert f"{FILES} files were read here, as the workers could not read them." in said.err


def test_workers_of_another_version_are_refused(library, scheduler):
    files = [listed(library / "page.safetensors")]
    with pytest.raises(ClusterError, match=r"and this is 99\.0.*Install lora-locksmith 99\.0"):
        list(engine(scheduler, version=lambda: "99.0")(files))


def test_workers_without_the_pack_are_told(library, scheduler, monkeypatch):
    def lacking(package, version, timeout):
        def work(jobs):
            import importlib

            importlib.import_module("no_such_pack")

        return work

    monkeypatch.setattr(engines, "task", lacking)
    files = [listed(library / "page.safetensors")]
    with pytest.raises(ClusterError, match="the dask workers lack no_such_pack"):
        list(engine(scheduler)(files))


def test_a_scan_that_is_left_early_leaves_the_cluster_usable(library, scheduler):
    paths = [str(path) for path in sorted(library.glob("1/*.safetensors"))]
    files = [listed(path) for path in paths]
    found = engine(scheduler)(files)
    first = next(found)
    found.close()
    assert first == findings_of(paths[0])
    assert list(engine(scheduler)(files)) == [findings_of(path) for path in paths]


def test_nobody_at_the_schedulers_address(capsys, library):
    code = run(["scan", "--timeout", "1", "--scheduler", "tcp://127.0.0.1:9", str(library)])
    said = capsys.readouterr()
    assert code == FAILED and said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("the dask cluster does not do the work (") and "--scheduler" in line


def test_a_cluster_without_workers(library):
    files = [listed(library / "page.safetensors")]
    with (
        LocalCluster(
            n_workers=0, protocol="tcp", host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as none,
        pytest.raises(ClusterError, match="that the cluster has workers"),
    ):
        look = on_dask(none.scheduler_address, None, 1, version=version(), tell=lambda count: None)
        list(look(files))


def test_without_dask_one_line_says_what_to_install(locksmith, library, tmp_path):
    (tmp_path / "without" / "distributed").mkdir(parents=True)
    stub = "raise ModuleNotFoundError('none', name='distributed')"
    (tmp_path / "without" / "distributed" / "__init__.py").write_text(stub)
    failed = locksmith("scan", "--engine", "dask", library, PYTHONPATH=str(tmp_path / "without"))
    assert failed.returncode == FAILED and failed.stdout == ""
    assert "lora-locksmith[dask]" in failed.stderr and len(failed.stderr.splitlines()) == 1


def test_the_task_finds_the_pack_in_its_folder(library, tmp_path):
    """In a process that knows nothing of it, from a folder of any name."""
    import subprocess
    import sys

    import cloudpickle

    clone = tmp_path / "any-name"
    leave = shutil.ignore_patterns(".*", "tests", "docs", "web", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=leave)
    path = next(library.glob("1/*.safetensors"))
    (tmp_path / "task").write_bytes(cloudpickle.dumps(task(str(clone), version(), 20)))
    code = (
        "import pickle, sys; work = pickle.load(open(sys.argv[1], 'rb'));"
        " told, found = work([(sys.argv[2], False)]); print(told, found[0][1])"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "task"), str(path)]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.stdout.split() == [version(), "FLUX.1"], outcome.stderr
