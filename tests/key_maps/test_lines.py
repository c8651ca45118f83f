"""The text formats are read by one reader: what editors and people put into a text changes nothing
of what it says.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from lora_locksmith.identify import stock_loader as stock
from lora_locksmith.key_maps import (
    convention,
    dialect,
    layer_words,
    lines,
    reader,
    table,
    weight_presets,
)
from lora_locksmith.key_maps.lines import TextError, lines_of, read_text
from lora_locksmith.key_maps.user_maps import own_maps_stamp, read_own_maps
from lora_locksmith.lora.rewrite import rename
from lora_locksmith.planning import ignored_keys as bookkeeping
from lora_locksmith.planning import keys as grammar
from lora_locksmith.planning import misplaced_files as other_files
from lora_locksmith.planning import not_computed, orientation
from lora_locksmith.report import metadata, presets

FORMATS = {
    "family table": (table.FOLDER / "flux1.table", lambda path: table.read_table(path)),
    "dialect record": (dialect.FOLDER / "kohya.record", lambda path: dialect.read_dialect(path)),
    "convention": (
        convention.FOLDER / "lokr_whole.convention",
        lambda path: convention.read_convention(path),
    ),
    "reader": (reader.FOLDER / "nunchaku_flux.reader", lambda path: reader.read_reader(path)),
    "presets": (presets.FOLDER / "simpletuner.presets", lambda path: presets.read_presets(path)),
    "presets of layer weights": (
        weight_presets.FOLDER / "flux1.weights",
        lambda path: weight_presets.read_weight_presets(path),
    ),
    "words of layers": (layer_words.TABLE, lambda path: layer_words.phrases.__wrapped__(path)),
    "roles": (grammar.ROLES_TABLE, lambda path: grammar.role_spellings.__wrapped__(path)),
    "bookkeeping": (
        bookkeeping.BOOKKEEPING_TABLE,
        lambda path: bookkeeping._bookkeeping_rules.__wrapped__(path),
    ),
    "stock": (stock.STOCK_TABLE, lambda path: stock.stock_table.__wrapped__(path)),
    "written": (rename.WRITTEN_TABLE, lambda path: rename._table.__wrapped__(path)),
    "metadata": (metadata.METADATA_TABLE, lambda path: metadata.read_table(read_text(path))),
    "not computed": (
        not_computed.NOT_COMPUTED_TABLE,
        lambda path: not_computed.known_adapters.__wrapped__(path),
    ),
    "orientation": (
        orientation.ORIENTATION_TABLE,
        lambda path: orientation.ways.__wrapped__(path),
    ),
    "other files": (
        other_files.OTHER_FILES_TABLE,
        lambda path: other_files._rules.__wrapped__(path),
    ),
}


def trailing(text: str) -> str:
    """Every line that says something gets a comment, whose words look like what a line may hold."""
    return "".join(
        f"{line} # writes lora_x_ 3h h = a | b: c\n" if line.strip() else "\n"
        for line in text.splitlines()
    )


CHANGES = {
    "trailing comments": trailing,
    "trailing comments behind tabs": lambda text: trailing(text).replace(" # writes", "\t#writes"),
    "comment lines": (
        lambda text: "# one\n" + text.replace("\n", "\n  # two [x] @y = z\n\t#three\n")
    ),
    "blank lines": lambda text: "\n \n" + text.replace("\n", "\n\n   \t\n"),
    "line ends of Windows": lambda text: text.replace("\n", "\r\n"),
    "line ends of old": lambda text: text.replace("\n", "\r"),
    "byte order mark": lambda text: "\ufeff" + text,
    "tabs": lambda text: text.replace("  ", "\t"),
    "spaces at the ends": lambda text: text.replace("\n", "  \t\n"),
    "no end of the last line": lambda text: text.rstrip("\n"),
}


def said(found) -> str:
    """What a reader found, without the numbers of the lines."""
    return re.sub(r"line=\d+", "", repr(found))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FORMATS)
def test_what_editors_and_people_put_into_a_text_changes_nothing(tmp_path, name, change):
    path, read = FORMATS[name]
    copy = tmp_path / path.name
    copy.write_bytes(CHANGES[change](path.read_text("utf-8")).encode("utf-8"))
    assert said(read(copy)) == said(read(path))


def test_every_text_of_the_pack_is_of_one_of_these_formats():
    known = {
        path.name if path.parent.name == "key_maps" else path.suffix for path, _ in FORMATS.values()
    }
    folder = Path(lines.__file__).parent
    texts = [
        path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert len(texts) > 70
    assert all((path.name if path.parent == folder else path.suffix) in known for path in texts)


def test_a_sign_within_a_word_is_no_comment():
    assert list(lines_of("a#b c # d\n#e\n  f\t#g#\n #\nh\r\ni")) == [
        (1, "a#b c"),
        (3, "  f"),
        (5, "h"),
        (6, "i"),
    ]


def test_the_words_of_a_comment_are_no_prefixes(tmp_path):
    (tmp_path / "dialects").mkdir()
    record = (
        "title Home\nwrites acme.  # diffusion_model.blocks.0. is what the old version wrote\nnames"
        " native # mine\nform dotted\n"
    )
    (tmp_path / "dialects" / "home.record").write_text(record)
    own = read_own_maps(tmp_path)
    assert not own.errors
    assert own.dialects["home"].writes == ("acme.",) and own.dialects["home"].names == "native"


TABLE = b"@title Home Made\n@sizes small: h=4\nmix h h = answer\n"
DIGITS = b"9" * 5000
WRONG = {
    "latin.table": b"@title Na\xefve\nmix h h = answer\n",
    "binary.table": bytes(range(256)) * 20,
    "huge.table": b"# more\n" * 400_000,
    "size.table": TABLE + b"more %s h = other\n" % DIGITS,
    "share.table": TABLE + b"more h h = other:%s + rest\n" % DIGITS,
    "sizes.table": TABLE + b"@sizes large: h=%s\n" % DIGITS,
    "blocks.table": TABLE + b"@blocks large: mix=%s\n" % DIGITS,
    "negative.table": TABLE + b"@blocks large: mix=-1\n",
    "side.table": TABLE + b"a.{}{}{}{} h h = b.{}{}{}{}\n",
    "many.table": (
        b"@title Many\n"
        + b"".join(b"[a%d.{} = b%d.{}]\n" % (i, i) for i in range(9000))
        + b"x h h = y\n" * 9000
    ),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "families").mkdir()
    (tmp_path / "dialects").mkdir()
    (tmp_path / "families" / "home.table").write_bytes(TABLE)
    return tmp_path


def left_out(folder: Path, name: str) -> str:
    """What is said of a map that is left out; the sound one beside it is there."""
    own_maps_stamp(folder)
    own = read_own_maps(folder)
    assert list(own.families) == ["home"]
    (error,) = own.errors
    assert name in error
    return error


@pytest.mark.parametrize("name", WRONG)
def test_a_table_that_is_none_is_left_out_and_named(folder, name):
    (folder / "families" / name).write_bytes(WRONG[name])
    assert len(left_out(folder, name)) < 1000


@pytest.mark.skipif(os.name == "nt", reason="Windows makes links for administrators only")
@pytest.mark.parametrize("name", [".#mine.table", "gone.table", "round.table"])
def test_a_link_that_leads_nowhere_is_left_out_and_named(folder, name):
    target = name if name == "round.table" else "user@host.1234:5678"
    (folder / "families" / name).symlink_to(target)
    left_out(folder, name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "families" / "pipe.table")
    left_out(folder, "pipe.table")


def test_a_folder_with_the_name_of_a_table_is_left_out_and_named(folder):
    (folder / "families" / "folder.table").mkdir()
    left_out(folder, "folder.table")


def test_a_file_that_takes_the_place_of_the_folder_holds_no_maps(tmp_path):
    (tmp_path / "families").write_text("no folder")
    assert not read_own_maps(tmp_path).families
    own_maps_stamp(tmp_path)


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="nothing is unreadable here",
)
def test_a_file_that_may_not_be_read_is_left_out_and_named(folder):
    path = folder / "families" / "secret.table"
    path.write_bytes(TABLE)
    path.chmod(0)
    left_out(folder, "secret.table")


def test_a_text_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TextError, match=r"none\.table.*cannot be read"):
        read_text(tmp_path / "none.table")
