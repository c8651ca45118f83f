"""Some seconds of the fuzzer that is guided by coverage; `python guided.py 600` runs it longer."""

from __future__ import annotations

from guided import Guided

SECONDS = 8  # after the corpus itself


def test_some_seconds_find_nothing(tmp_path, capsys):
    fuzzer = Guided(tmp_path)
    fuzzer.run(SECONDS)
    with capsys.disabled():
        print(f"\n{fuzzer.told()}")
    assert not fuzzer.findings, fuzzer.told()
    assert fuzzer.tried > len(fuzzer.corpus) - fuzzer.kept and len(fuzzer.coverage.lines) > 1000
