"""The page of what is covered says what is so, of every model in every tool's spelling.

LOCKSMITH_ACCEPT_REPORTS=1 writes it anew; read what changed before it is kept.
"""

from __future__ import annotations

import os

import coverage_page
import every_name
import pytest
from lora_locksmith.key_maps.dialect import dialects
from lora_locksmith.key_maps.table import families, parse_table

ACCEPT = "LOCKSMITH_ACCEPT_REPORTS"
SMALL = "@title Small\n@sizes : h=64\nfirst.proj h h = {}\nsecond.proj h h = {}\n"


def test_the_page_is_what_becomes_of_every_name():
    rows = [coverage_page.row_of(family) for family in every_name.denoisers()]
    page = coverage_page.page(rows)
    if os.environ.get(ACCEPT):
        coverage_page.PAGE.write_text(page, "utf-8", newline="\n")
    assert coverage_page.PAGE.read_text("utf-8") == page, (
        f"{ACCEPT}=1 writes it anew; read what changed before it is kept"
    )


def test_what_is_trained_is_told_of_models_and_tools_that_are_known():
    for name, told in coverage_page.trained().items():
        assert name in dialects() or name == coverage_page.ONE_NAMING
        assert told.families | told.unread <= families().keys()
        assert told.source and not told.families & told.unread


def test_only_tables_without_other_names_are_said_to_have_one_naming():
    stated = {
        family.name
        for family in every_name.denoisers()
        if every_name.states(family, every_name.DIFFUSERS)
    }
    assert not stated & coverage_page.trained()[coverage_page.ONE_NAMING].families


@pytest.mark.parametrize("name", dialects())
def test_a_name_on_another_layer_is_noticed(name):
    model = every_name.drawn(parse_table("small", SMALL.format("a.to_q", "b.to_q")), "")
    other = every_name.drawn(parse_table("small", SMALL.format("b.to_q", "a.to_q")), "")
    dialect = dialects()[name]._replace(names=every_name.DIFFUSERS, inside=())
    written = every_name.written(model, dialect, every_name.DIFFUSERS)
    assert len(written[1]) == 2
    assert every_name.landed(model, *written).wrong == ()
    assert every_name.landed(other, *written).wrong == tuple(written[1])


@pytest.mark.parametrize("name", dialects())
def test_a_name_that_no_layer_has_is_noticed(name):
    model = every_name.drawn(parse_table("small", SMALL.format("a.to_q", "b.to_q")), "")
    fewer = every_name.drawn(parse_table("small", SMALL.format("a.to_q", "c.to_q")), "")
    dialect = dialects()[name]._replace(names=every_name.DIFFUSERS, inside=())
    written = every_name.written(model, dialect, every_name.DIFFUSERS)
    assert len(every_name.landed(fewer, *written).wrong) == 1
