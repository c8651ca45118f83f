"""Looking into files in a process of its own, and remembering headers of the same words: the same
findings as file by file, and no process that stays.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comfy_server import PATIENCE
from hollow_files import write_hollow
from lora_locksmith.key_maps.convention import asked_metadata, noticed_metadata
from lora_locksmith.key_maps.user_maps import NO_USER_MAPS, read_own_maps
from lora_locksmith.report import apart, findings
from lora_locksmith.report.apart import FEW, in_process
from lora_locksmith.report.findings import findings_here, findings_of
from lora_locksmith.report.inspection import telling
from lora_locksmith.report.listing import list_files
from reports.small_files import flux_lora
from shelves import write_shelf

ROOT = Path(__file__).resolve().parents[2]
COUNT = 130
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="only Linux tells the processes of a process"
)


@pytest.fixture
def shelf(tmp_path) -> list:
    """Files of all kinds, some with words and settings beside them."""
    folder = tmp_path / "loras"
    for number, path in enumerate(write_shelf(folder, COUNT)):
        if number % 7 == 0:
            path.with_suffix(".txt").write_text(f"beside {number}")
    (folder / "peft").mkdir()
    write_hollow(folder / "peft" / "adapter_model.safetensors", flux_lora(4))
    (folder / "peft" / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 4}')
    (folder / "old.pt").write_bytes(b"PK")
    return list(list_files(folder).values())


@pytest.fixture
def expected(shelf) -> list:
    return [findings_of(listed.path) for listed in shelf]


@pytest.fixture
def told() -> list[str]:
    return []


def look(told, own=NO_USER_MAPS, folder=Path("none")):
    return in_process(own, folder, told.append)


def children() -> set[int]:
    tasks = Path("/proc/self/task")
    return {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}


def gone(pid: int) -> bool:
    """Whether a process has ended, or is about to be waited for by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(state) -> None:
    deadline = time.monotonic() + PATIENCE
    while not state():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.02)


def test_the_same_is_found(shelf, expected, told):
    assert list(look(told)(shelf)) == expected and not told
    assert any(found.trigger_words for found in expected) and any(found.error for found in expected)
    assert list(look(told)([])) == []


def test_messages_come_as_messages(shelf, expected, told):
    there = [str(found.made_for) for found in look(told)(shelf)]
    assert there == [str(found.made_for) for found in expected]
    verdicts = {type(loss) for found in look(told)(shelf) for loss in found.losses}
    assert verdicts == {type(loss) for found in expected for loss in found.losses} and verdicts


def test_a_users_own_maps_count_there_too(shelf, tmp_path, told):
    (tmp_path / "own" / "families").mkdir(parents=True)
    table = "@title Mine\n@sizes small: h=64\n\nno_such_layer.{} h h = mine.{}\n"
    (tmp_path / "own" / "families" / "mine.table").write_text(table)
    own = read_own_maps(tmp_path / "own")
    assert own.families and not own.errors
    expected = [findings_here(listed, own) for listed in shelf]
    assert list(look(told, own, tmp_path / "own")(shelf)) == expected and not told


def test_few_files_are_not_worth_a_process(shelf, expected, told, monkeypatch):
    monkeypatch.setattr(apart, "START", "raise SystemExit")
    assert list(look(told)(shelf[:FEW])) == expected[:FEW] and not told


@pytest.mark.parametrize(
    "start", ["raise SystemExit", "print('no JSON', flush=True)", "print('[1, ', flush=True)"]
)
def test_what_a_process_does_not_tell_is_read_here(shelf, expected, told, monkeypatch, start):
    monkeypatch.setattr(apart, "START", start)
    assert list(look(told)(shelf)) == expected and len(told) == 1


def test_without_a_python_to_start_all_is_read_here(shelf, expected, told, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(ROOT / "no python"))
    assert list(look(told)(shelf)) == expected and len(told) == 1


@needs_proc
def test_a_process_that_is_killed_is_made_up_for(shelf, expected, told, monkeypatch):
    before = children()
    found = look(told)(shelf)
    first = [next(found) for _ in range(3)]
    (pid,) = children() - before
    os.kill(pid, signal.SIGKILL)
    assert first + list(found) == expected
    assert children() == before and len(told) <= 1, "at most, as it may have been through"


@needs_proc
def test_a_scan_that_is_left_early_leaves_no_process(shelf, told):
    before = children()
    found = look(told)(shelf)
    next(found)
    assert len(children() - before) == 1
    found.close()
    assert children() == before and not told


SCANNER = """
import sys; sys.path.insert(0, sys.argv[1])
from cli import as_package; as_package()
from pathlib import Path
from lora_locksmith.key_maps.user_maps import NO_USER_MAPS
from lora_locksmith.report.apart import in_process
from lora_locksmith.report.listing import list_files
files = list(list_files(sys.argv[2]).values()) * 100
found = in_process(NO_USER_MAPS, Path(), print)(files)
next(found)
tasks = Path("/proc/self/task").iterdir()
print(*[(task / "children").read_text() for task in tasks], flush=True)
sys.stdin.read()
"""


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_who_started_it(shelf, tmp_path, how):
    command = [sys.executable, "-c", SCANNER, str(ROOT), str(tmp_path / "loras")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as scanner:
        (pid,) = map(int, scanner.stdout.readline().split())
        assert not gone(pid)
        scanner.send_signal(how)
        scanner.wait()
        wait_until(lambda: gone(pid))


def test_it_imports_neither_torch_nor_anything_that_is_installed(tmp_path):
    code = apart.START.replace("work()", "import sys; print(*sys.modules)")
    command = [sys.executable, "-S", "-c", code, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    allowed = {*sys.stdlib_module_names, "lora_locksmith", "cli", "__main__"}
    assert {name for name in loaded - allowed if not name.startswith("__")} == set()


# Headers of the same words

LORA = {
    f"transformer.transformer_blocks.{block}.attn.to_q.lora_{side}.weight": {
        "dtype": "BF16", "shape": shape, "data_offsets": [at, at + 24576]
    }
    for block in range(2)
    for side, shape, at in (("A", [4, 3072], block * 49152), ("B", [3072, 4], block * 49152 + 24576))
}  # fmt: skip
REST = json.dumps(LORA)[1:]
METADATA = (
    "{}",
    '{"modelspec.trigger_phrase": "one"}',
    '{"modelspec.trigger_phrase": "two \\u4e2d"}',
    '{"modelspec.trigger_phrase": "\u4e2d\u6587"}',
    '{ "a" : "[true, false]" }',
    '{"a": "}", "b": "{\\"c\\": \\"}\\"}"}',
    '{"a": "1", "a": "2"}',
    '{"a": "1", "a": "1"}',
    '{"a": 1}',
    '{"a": {"b": [1]}}',
    '{"a": "\\ud800"}',
    '{"a": "x", }',
    '{"a": "x"',
    '{"a": NaN}',
    "[]",
    "null",
    '"text"',
    '{"ss_network_module": "networks.lora", "ss_network_alpha": "16"}',
    '{"lora_adapter_metadata": "{\\"transformer.lora_alpha\\": 8, \\"transformer.r\\": 4}"}',
    '{"a": "ends with \\\\"}',
    '{"a": "\\"}", "b": "\\\\\\"}"}',
    '{"a": {"b": "c"}}',
    '{"a": "b" }',
    '{"sshs_model_hash": "1", "modelspec.date": "2026-01-01", "b": "[-0, true]"}',
)
FORMS = ('{"__metadata__":%s,%s', '{"__metadata__" : %s, %s', ' {"__metadata__":%s,%s')
MORE = (
    "{" + REST,
    '{"\\u005f_metadata__":{"modelspec.trigger_phrase": "hidden"},' + REST,
    '{"__metadata__":{},"__metadata__":{"modelspec.trigger_phrase": "twice"},' + REST,
    '{"__metadata__":{}' + REST,
    '{"__metadata__":{},' + REST[:-1] + ',"__metadata__":{"a": "b"}}',
    '{"__metadata__":{},' + REST.replace('"shape"', '"more": 1, "shape"', 1),
    '{"__metadata__":{},' + REST.replace("24576]", "24577]", 1),
)
TEXTS = [form % (metadata, REST) for form in FORMS for metadata in METADATA] + list(MORE)


@pytest.mark.parametrize("data_bytes", [98304, 98300, 98400])
def test_what_is_remembered_of_a_header_says_no_more_than_the_header(
    tmp_path, data_bytes, monkeypatch
):
    """Whichever header came first, and whatever is wrong with the next one."""
    files = []
    for number, text in enumerate(TEXTS):
        raw = text.encode("utf-8", "surrogatepass")
        path = tmp_path / f"{number:03}.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data_bytes))
        files.append(path)
    alone = {}
    for path in files:
        findings._same.clear()
        findings._alike.clear()
        alone[path.name] = findings_of(path)
    assert len(set(alone.values())) > 5
    listed = list_files(tmp_path)
    findings._same.clear()
    for first in (*MORE, TEXTS[1]):
        order = [f"{TEXTS.index(first):03}.safetensors", *listed]
        for name in order:
            assert findings_here(listed[name]) == alone[name], (name, TEXTS[int(name[:3])])


def test_a_header_of_the_same_words_is_not_read_again(tmp_path, monkeypatch):
    read = []
    parse = findings.HeaderText.parsed
    monkeypatch.setattr(
        findings.HeaderText, "parsed", lambda text: read.append(text.path) or parse(text)
    )
    findings._same.clear()
    for number in range(6):
        words = {"modelspec.trigger_phrase": f"word {number}"} | {"long": "x" * 3 * number}
        words["sshs_model_hash"] = f"{number:064x}"  # of the file, as most trainers write it
        write_hollow(tmp_path / f"{number}.safetensors", flux_lora(7), words)
    found = [findings_here(listed) for listed in list_files(tmp_path).values()]
    assert [one.trigger_words for one in found] == [(f"word {number}",) for number in range(6)]
    assert len(read) == 1 and len({one.shared() for one in found}) == 1


def test_of_metadata_that_differ_in_every_file_only_their_presence_tells_files_apart():
    noticed = noticed_metadata()
    assert "sshs_model_hash" in noticed
    for key in asked_metadata():
        assert telling({key: "1"}) != telling({}), key
        assert (telling({key: "1"}) == telling({key: "2"})) == (key in noticed), key
