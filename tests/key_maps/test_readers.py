"""The records of other programs' loaders: read strictly, and true to what writing can do."""

from __future__ import annotations

import pytest
from lora_locksmith.key_maps.dialect import dialects
from lora_locksmith.key_maps.reader import FOLDER, ReaderError, read_reader, readers
from lora_locksmith.key_maps.table import families
from lora_locksmith.lora.rewrite.rename import writable

GOOD = "title X\nsource y\nwrites comfyui\n"


@pytest.mark.parametrize("reader", readers().values(), ids=lambda reader: reader.name)
def test_a_reader_names_what_there_is(reader):
    assert reader.title and reader.source and set(reader.families) <= families().keys()
    for form in (reader.writes, *reader.reads):
        assert form.record in (dialects() if form.names else writable())
        assert not form.names or {"down", "up"} <= form.roles.keys()
        assert form.alpha != "tensor" or "alpha" in form.roles
    # Zeros beside factors with an alpha of their own would change their strength.
    assert not reader.same_rank or reader.writes.alpha == "folded"


def test_every_record_is_a_choice_and_native_names_are_the_first():
    titles = list(readers())
    assert len(titles) == len(list(FOLDER.iterdir()))
    assert readers()[titles[0]].writes.record == "comfyui"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "colour red\n", r"x\.reader.*4.*colour.*writes"),
        (GOOD + "reads kohya native alpha=1\n", r"x\.reader.*4.*kohya native alpha=1"),
        (
            GOOD + "reads kohya native multiplied up down\n",
            r"x\.reader.*4.*tensor, config or folded",
        ),
        ("title X\nwrites comfyui\n", r"x\.reader.*source"),
        (GOOD + "never\n", r"x\.reader.*4"),
    ],
)
def test_a_mistake_is_told_with_its_line(text, said, tmp_path):
    path = tmp_path / "x.reader"
    path.write_text(text, "utf-8")
    with pytest.raises(ReaderError, match=said):
        read_reader(path)


def test_a_record_is_read_whole(tmp_path):
    path = tmp_path / "x.reader"
    path.write_text(
        GOOD
        + "families flux1 wan  # two\nencoders no\nstock reads\nreads kohya native tensor up=u down alpha\n"
        + "together a b\ntogether c d\nsame_rank e f\nnever k l\n",
        "utf-8",
    )
    reader = read_reader(path)
    assert reader.families == ("flux1", "wan") and not reader.encoders and reader.stock
    assert reader.reads[0].roles == {"up": "u", "down": "down", "alpha": "alpha"}
    assert reader.together == (("a", "b"), ("c", "d")) and reader.same_rank == (("e", "f"),)
    assert reader.never == ("k", "l") and reader.name == "x"
