"""The table of what the tests take, and the order it gives."""

from types import SimpleNamespace

import pytest
import times
from times import Time


def report(nodeid, when, duration, cpu):
    return SimpleNamespace(nodeid=nodeid, when=when, duration=duration, cpu=cpu)


def test_a_files_time_is_that_of_all_phases_of_its_tests():
    reports = [
        report("tests/a.py::one[x::y]", "setup", 1.0, 0.5),
        report("tests/a.py::one[x::y]", "call", 2.0, 1.0),
        report("tests/a.py::two", "setup", 0.0, 0.0),
        report("tests/a.py::two", "teardown", 4.0, 0.25),
        report("tests/b.py::one", "setup", 8.0, 8.0),
    ]
    assert times.summed(reports) == {
        "tests/a.py": Time(7.0, 1.75, 2),
        "tests/b.py": Time(8.0, 8.0, 1),
    }


def test_files_without_a_time_run_first_and_then_the_longest():
    known = {"short": Time(1, 1, 900), "long": Time(9, 1, 1), "same": Time(9, 1, 1)}
    files = ["short", "new", "long", "same", "newer"]
    assert times.longest_first(files, known) == ["new", "newer", "long", "same", "short"]


def test_what_did_not_run_keeps_its_time_and_what_is_gone_does_not(tmp_path):
    table, (here, there) = tmp_path / "tests" / "times.txt", ("tests/a.py", "tests/b.py")
    table.parent.mkdir()
    for file in (here, there):
        (tmp_path / file).touch()
    times.write({here: Time(1, 1, 1), there: Time(2, 2, 2), "tests/gone.py": Time(3, 3, 3)}, table)
    times.write({here: Time(5.04, 4, 7)}, table)
    assert times.read(table) == {here: Time(5.0, 4.0, 7), there: Time(2.0, 2.0, 2)}


def test_a_line_that_is_no_time_is_named(tmp_path):
    (tmp_path / "times.txt").write_text("# head\n1.0 much 3 tests/a.py\n", "utf-8")
    with pytest.raises(ValueError, match="no line of times"):
        times.read(tmp_path / "times.txt")


def test_the_table_names_no_file_that_is_gone():
    root = times.TABLE.parent.parent
    gone = sorted(file for file in times.read() if not (root / file).is_file())
    assert not gone, f"run 'python dev.py test --times', or take these lines out: {gone}"
