"""Rows of weights: what two ranges share, and all ranges laid over each other."""

import pytest
from lora_locksmith.adapters.rows import Rows, laid, stretches


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ((0, 8), (4, 8), (4, 4)),
        ((4, 8), (0, 8), (4, 4)),
        ((0, 8), (2, 3), (2, 3)),
        ((0, 4), (4, 4), None),
        ((0, 4), (9, 1), None),
        ((3, 2), (3, 2), (3, 2)),
    ],
)
def test_two_ranges_share_what_lies_in_both(one, other, common):
    assert Rows(*one).intersect(Rows(*other)) == common
    assert Rows(*one).covers(Rows(*other)) == (common == other)


def test_rows_are_moved_and_none_stands_for_all():
    rows = Rows(4, 8)
    assert rows.end == 12 and rows.shift(-4) == (0, 8)
    assert rows.shift(-4).unless_all(8) is None
    assert rows.unless_all(12) == rows and rows.shift(-4).unless_all(9) == (0, 8)


def test_sizes_lie_one_after_another():
    assert list(laid([3, 1, 2])) == [(0, 3), (3, 1), (4, 2)]
    assert list(laid([])) == []


def test_ranges_laid_over_each_other_are_cut_at_every_border():
    ranges = [Rows(0, 6), Rows(4, 4), Rows(10, 2), Rows(0, 6)]
    assert list(stretches(ranges)) == [(0, 4), (4, 2), (6, 2), (8, 2), (10, 2)]
    assert list(stretches([])) == []
