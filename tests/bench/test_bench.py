"""Every measurement in its short form: fails only where a ratio breaks its bound, by a margin that
no machine explains.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from threads import one_thread

from bench.measuring import Result, measurements
from bench.tables import BEGIN, END, machine, number, put_into_documents


@pytest.fixture
def folder(tmp_path):
    """Gone when the test is over: the files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("name", measurements())
def test_ratios(comfy, folder, record_property, name):
    with one_thread():
        results = measurements()[name].results(folder, short=True)
    for result in results:
        record_property(
            "measured", f"{result.row.name}: {number(result.ratio)} of {result.row.against}"
        )
    assert not [
        f"{one.row.name}: {one.ratio:.4g}, bound {one.row.most}"
        for one in results
        if not one.ratio <= one.row.most
    ]


def test_the_table_takes_the_marked_place_in_the_readme(comfy, tmp_path):
    readme = Path(__file__).parents[2] / "README.md"
    shutil.copy(readme, tmp_path)
    (tmp_path / "docs").mkdir()
    results = [
        Result.of(row, [row.measured], [1.0], one.unit)
        for one in measurements().values()
        for row in one.rows
    ]
    for _ in range(2):
        put_into_documents(tmp_path, machine(), results)
    written, whole = (
        (tmp_path / "README.md").read_text("utf-8"),
        (tmp_path / "docs" / "benchmarks.md").read_text("utf-8"),
    )
    outside = [
        re.sub(f"{BEGIN}.*{END}", "", text, flags=re.DOTALL)
        for text in (written, readme.read_text("utf-8"))
    ]
    assert outside[0] == outside[1] and "## How fast" in outside[0]
    for result in results:
        line = f"| {result.row.what} | {result.row.against} | {number(result.row.measured)} |"
        assert line in whole
        assert (
            f"| {result.row.what} | {number(result.row.measured)} | {result.row.against} |"
            in written
        ) == result.row.told_in_readme
