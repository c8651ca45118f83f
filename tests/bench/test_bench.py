"""Every measurement in its short form: fails only where a ratio breaks its bound, by a margin that no machine explains."""

from __future__ import annotations

import shutil

import pytest
from threads import one_thread

from bench.measuring import measurements
from bench.tables import number


@pytest.fixture
def folder(tmp_path):
    """Gone when the test is over: the files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("name", measurements())
def test_ratios(comfy, folder, capsys, name):
    with one_thread():
        results = measurements()[name].results(folder, short=True)
    with capsys.disabled():
        print("".join(f"\n{result.row.name}: {number(result.ratio)} of {result.row.against}" for result in results))
    assert not [f"{one.row.name}: {one.ratio:.4g}, bound {one.row.most}" for one in results if not one.ratio <= one.row.most]
