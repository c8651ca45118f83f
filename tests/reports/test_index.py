"""The index of LoRA files: what it keeps, that several use it at once, and that whatever stands in
its place costs time and nothing else.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from comfy_server import PATIENCE
from lora_locksmith.report import index as index_module
from lora_locksmith.report.index import ASIDE, NAME, Index, Kept
from lora_locksmith.report.library import scan, scan_files
from lora_locksmith.report.listing import find_files, key_root
from reports.small_files import flux_lora, write_file
from shelves import write_shelf

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    f"/loras/{n:03}.safetensors".encode(): Kept("v", f"{n}", f"found {n % 7}", "[]")
    for n in range(200)
}
ALL = (b"", b"\xff")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def index(tmp_path, told) -> Index:
    return Index(tmp_path / "index" / NAME, told.append)


def kept(index: Index) -> dict[bytes, Kept]:
    with index.opened():
        return index.read(*ALL)


def fill(index: Index) -> None:
    with index.opened():
        index.keep(FILES)


def test_what_is_kept_is_read_again(index, told):
    assert kept(index) == {}
    fill(index)
    assert kept(index) == FILES and not told
    with index.opened():
        index.keep({b"/loras/000.safetensors": Kept("w", "1", "other", '["word"]')})
        index.forget(list(FILES)[2:])
        assert index.read(b"/loras/001", b"/loras/002") == {list(FILES)[1]: list(FILES.values())[1]}
    after = kept(index)
    assert after[b"/loras/000.safetensors"].own == '["word"]' and len(after) == 2
    texts = sqlite3.connect(index.path).execute("SELECT text FROM found").fetchall()
    assert sorted(texts) == [("found 1",), ("other",)], "what no file has any more stays"
    assert not told


def test_names_that_are_no_text_are_kept(index):
    odd = {
        os.fsencode("/a/\udcff \u4e2d\u6587\n'\"; DROP.safetensors"): Kept(
            "v", "s", "\\ud800", "\0"
        )
    }
    with index.opened():
        index.keep(odd)
    assert kept(index) == odd


def spoilt(path: Path, seed: int) -> None:
    """Other bytes here and there."""
    rng = random.Random(seed)
    with open(path, "r+b") as file:
        for _ in range(40):
            file.seek(rng.randrange(path.stat().st_size))
            file.write(rng.randbytes(rng.randrange(1, 60)))


def other_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE files (file, version, stamp, mark, own, checksum)")
        database.execute("INSERT INTO files VALUES (x'61', 'v', 's', x'62', '[]', x'63')")


def set_to(statement: str):
    def spoil(path: Path) -> None:
        with sqlite3.connect(path) as database:
            database.execute(statement)
        database.close()

    return spoil


def logged_ahead(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.close()


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text('{"version": "1", "rows": {}}' * 99),
    "random": lambda path: path.write_bytes(random.Random(1).randbytes(9000)),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut in the header": lambda path: os.truncate(path, 60),
    "cut in a page": lambda path: os.truncate(path, path.stat().st_size - 100),
    "other program": other_program,
    "newer": set_to("PRAGMA user_version = 2"),
    "not ours": set_to("PRAGMA application_id = 1"),
    "one more table": set_to("CREATE TABLE more (a)"),
    "trigger": set_to("CREATE TRIGGER t AFTER INSERT ON files BEGIN DELETE FROM files; END"),
    "other content": set_to("UPDATE files SET own = '[1]' WHERE stamp = '7'"),
    "other kind": set_to("UPDATE files SET stamp = x'00' WHERE stamp = '7'"),
    "other text": set_to("UPDATE found SET text = 'lies' WHERE text = 'found 3'"),
    "lost text": set_to("DELETE FROM found WHERE text = 'found 3'"),
    "logged ahead": logged_ahead,
    **{f"spoilt {seed}": lambda path, seed=seed: spoilt(path, seed) for seed in range(12)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_or_foreign_file_is_set_aside_and_made_anew(index, told, damage):
    fill(index)
    damage(index.path)
    before = index.path.read_bytes()
    found = kept(index)
    assert all(FILES[file] == row for file, row in found.items()), "something wrong is believed"
    fill(index)
    assert kept(index) == FILES
    assert len(told) <= 1, "one line is enough"
    if told:
        assert found == {} and index.path.name + ASIDE in told[0]
        assert Path(f"{index.path}{ASIDE}").read_bytes() == before
    else:
        assert before == b"" or found == FILES, "lost in silence"


def test_the_journal_of_a_file_that_is_set_aside_goes_with_it(index, told):
    """Else SQLite would write it back into the new file."""
    fill(index)
    journal = Path(f"{index.path}-journal")
    index.path.write_bytes(b"no database" * 999)
    journal.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\1" * 999)
    assert kept(index) == {} and not journal.exists() and len(told) == 1
    fill(index)
    assert kept(index) == FILES


def test_a_folder_in_its_place_is_left_alone(index, told):
    (index.path / "mine").mkdir(parents=True)
    fill(index)
    assert kept(index) == {} and (index.path / "mine").is_dir()
    assert len(told) == 2 and "it is no file" in told[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none")
def test_a_pipe_in_its_place_is_not_waited_for(index, told):
    index.path.parent.mkdir()
    os.mkfifo(index.path)
    assert kept(index) == {} and len(told) == 1


READER = """
import sys; sys.path.insert(0, sys.argv[1])
from cli import as_package; as_package()
from lora_locksmith.report.index import Index, Kept
told = []
index = Index(sys.argv[2], told.append)
with index.opened():
    count = len(index.read(b"", b"\\xff"))
    for name in (b"a", b"b"):
        index.keep({name: Kept("", "", "", "")})
print(count, len(told), *told)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows' permissions are others")
def test_a_folder_that_cannot_be_written(index, told):
    """What is kept is read all the same, and one line says that nothing new is."""
    drop = ()
    if os.geteuid() == 0:  # who may write everywhere
        if not shutil.which("setpriv"):
            pytest.skip("nothing here takes root's rights away")
        drop = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    fill(index)
    command = [*drop, sys.executable, "-B", "-c", READER, str(ROOT), str(index.path)]
    index.path.chmod(0o444)
    index.path.parent.chmod(0o555)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    finally:
        index.path.parent.chmod(0o755)
        index.path.chmod(0o644)
    assert done.stdout.startswith("200 1 "), done
    assert "cannot be used" in done.stdout and kept(index) == FILES


def test_another_one_that_writes_is_waited_for_and_not_for_ever(index, told, monkeypatch):
    monkeypatch.setattr(index_module, "PATIENCE", 0.05)
    fill(index)
    other = sqlite3.connect(index.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert kept(index) == {} and len(told) == 1 and "locked" in told[0]
    other.execute("COMMIT")
    assert kept(index) == FILES


def test_two_that_find_it_damaged_do_not_set_aside_what_the_other_made(tmp_path, told):
    path = tmp_path / NAME
    path.write_bytes(b"no database" * 999)
    first, second = Index(path, told.append), Index(path, told.append)
    with second.opened():
        second.keep(FILES)
    assert len(told) == 1
    with first.opened():
        assert first.read(*ALL) == FILES and len(told) == 1


WRITER = """
import sys, time; sys.path.insert(0, sys.argv[1])
from cli import as_package; as_package()
from lora_locksmith.report.index import Index, Kept
index = Index(sys.argv[2], print)
number = 0
with index.opened():
    while True:
        number += 1
        names = [f"{sys.argv[3]} {number} {n}".encode() for n in range(50)]
        index.keep({name: Kept("v", str(number), "f" * 999, "[]") for name in names})
        print(number, flush=True)
        time.sleep(0.01)  # else the other one never gets a turn
"""


def test_writers_that_are_killed_leave_it_whole(index, told):
    """Whatever they were at: a step is there or it is not, and nothing is damaged."""
    for turn in range(6):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(ROOT), str(index.path), f"{turn}{name}"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in "ab"
        ]
        seen = []
        for writer in writers:
            lines = [writer.stdout.readline() for _ in range(3)]
            assert lines == ["1\n", "2\n", "3\n"], lines
        for writer in writers:
            writer.kill()
            rest = writer.communicate()[0].split()
            seen.append(int(rest[-1]) if rest else 3)
        rows = kept(index)
        for name, last in zip("ab", seen, strict=True):
            mine = [file for file in rows if file.startswith(f"{turn}{name} ".encode())]
            assert len(mine) % 50 == 0 and len(mine) >= 50 * last
    assert not told


# Scans


def rows_of(folder: Path, index: Path | None = None) -> list[dict]:
    return [row.as_dict() for row in scan(folder, index)]


def test_two_scans_at_once_share_one_index(tmp_path):
    folder, path = tmp_path / "loras", tmp_path / NAME
    write_shelf(folder, 60)
    expected = rows_of(folder)
    first, second = scan(folder, path), scan(folder, path)
    both = []
    for one, other in zip(first, second, strict=True):
        assert one == other
        both.append(one.as_dict())
    assert both == expected
    for file in folder.rglob("*.safetensors"):
        about = file.stat()
        file.write_bytes(b"\0" * about.st_size)
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert rows_of(folder, path) == expected, "a file was read again"


def test_a_scan_of_a_part_reads_what_the_whole_has_kept(tmp_path):
    folder, path = tmp_path / "loras", tmp_path / NAME
    for name in ("a.safetensors", "sub/b.safetensors", "sub/c.safetensors"):
        write_file(folder / name, flux_lora(4))
    expected = rows_of(folder / "sub")
    rows_of(folder, path)
    (folder / "sub" / "c.safetensors").write_bytes(b"")
    about = (folder / "sub" / "b.safetensors").stat()
    (folder / "sub" / "b.safetensors").write_bytes(b"\0" * about.st_size)
    os.utime(folder / "sub" / "b.safetensors", ns=(about.st_atime_ns, about.st_mtime_ns))
    part = rows_of(folder / "sub", path)
    assert part[0] == expected[0] and part[1]["error"]
    with Index(path, pytest.fail).opened() as index:
        assert len(index.read(*ALL)) == 3, "what is elsewhere is forgotten"
    (folder / "sub" / "c.safetensors").unlink()
    rows_of(folder / "sub", path)
    with Index(path, pytest.fail).opened() as index:
        assert len(index.read(*ALL)) == 2


def test_what_comes_beside_a_file_is_told_though_the_file_stays(tmp_path):
    folder, path = tmp_path / "loras", tmp_path / NAME
    file = write_file(folder / "a.safetensors", flux_lora(4))
    told = rows_of(folder, path)[0]
    assert told["trigger_words"] == () and told["has_picture"] is False
    (folder / "a.txt").write_text("ink wash")
    assert rows_of(folder, path)[0]["trigger_words"] == ("ink wash",)
    (folder / "a.preview.png").write_bytes(b"")
    assert rows_of(folder, path)[0]["has_picture"] is True
    (folder / "a.txt").write_text("water color")
    told = rows_of(folder, path)[0]
    assert told["trigger_words"] == ("water color",) and told["placed"] > 0
    (folder / "a.txt").unlink()
    (folder / "a.preview.png").unlink()
    (folder / "a.png").mkdir()
    told = rows_of(folder, path)[0]
    assert told["trigger_words"] == () and told["has_picture"] is False and file.is_file()


def test_rows_of_known_files_come_before_the_rest_is_listed(tmp_path):
    """Whoever waits for the first rows of thousands of files does not wait for the last file's
    time.
    """
    folder, path, asked = tmp_path / "loras", tmp_path / NAME, []
    names = [f"{number}.safetensors" for number in range(6)]
    for name in names:
        write_file(folder / name, flux_lora(4))
    expected = rows_of(folder, path)

    def asking():
        for name in names:
            asked.append(name)
            yield name

    def rows():
        files = find_files(asking(), [os.fspath(folder)])
        return scan_files(files, Index(path, pytest.fail), roots=[key_root(folder)])

    scanned = rows()
    assert next(scanned).as_dict() == expected[0] and asked == names[:1]
    assert [row.as_dict() for row in scanned] == expected[1:] and asked == names
    (folder / names[1]).unlink()
    write_file(folder / names[2], flux_lora(8))
    asked.clear()
    scanned = rows()
    assert next(scanned).file == names[0] and asked == names[:1]
    assert next(scanned).file == names[2] and asked == names
    scanned.close()
    with Index(path, pytest.fail).opened() as index:
        assert len(index.read(*ALL)) == 6, "a scan that is left early forgets nothing"
    assert [row.findings.rank for row in rows()] == ["4", "8", "4", "4", "4"]
    with Index(path, pytest.fail).opened() as index:
        assert len(index.read(*ALL)) == 5
