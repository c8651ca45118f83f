"""The one reader of the pack's text formats: UTF-8, any line ends, tabs as spaces, and one rule for
comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import LocksmithError, about_file, at_line, system_reason
from ..files.header import open_file
from ..messages import Message, joined, message

MAX_BYTES = 2_000_000  # of one text; the largest of the pack's has some 25,000
LOCK = ".#"  # how the lock begins that an editor lays beside a file that is open
# A # within a word belongs to the word.
COMMENT = re.compile(r"(?:^|\s)#")


class TextError(LocksmithError, ValueError):
    """A text that cannot be read: it names the file, what is wrong and the remedy."""


def read_text(path: Path, fault: type[LocksmithError] = TextError) -> str:
    """The text of the file at `path`. Raises `fault` for what is no text file, is too large, or is
    not UTF-8.
    """
    if path.name.startswith(LOCK):
        remedy = message("key_maps.close_editor", name=path.name.removeprefix(LOCK))
        raise fault(about_file(path, message("key_maps.lock"), remedy))
    try:
        with open_file(path) as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise fault(_unread(path, error, "key_maps.put_readable_file")) from None
    except ValueError as error:
        raise fault(_unread(path, error, "key_maps.rename_file")) from None
    if len(raw) > MAX_BYTES:
        too_large = message("key_maps.text_too_large", size=f"{MAX_BYTES:,}")
        raise fault(about_file(path, too_large, message("key_maps.put_right_file")))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        remedy = message("key_maps.save_as_utf8")
        raise fault(at_line(path, line, message("key_maps.not_utf8"), remedy)) from None


def _unread(path: Path, error: Exception, remedy: str) -> Message:
    """remedy: the id of what to do."""
    fault = message("files.not_readable", reason=system_reason(error))
    return about_file(path, fault, message(remedy))


def unknown_field(path: Path, number: int, field: str, known: Iterable[str]) -> Message:
    """That a record's line begins with none of these fields; its name is the file's."""
    remedy = message("key_maps.use_one_of", known=joined(one for one in known if one != "name"))
    return at_line(path, number, message("key_maps.unknown_field", field=field), remedy)


def missing_fields(path: Path, missing: Sequence[str]) -> Message:
    """That a record lacks fields."""
    fault = message("key_maps.missing_fields", count=len(missing), fields=joined(missing))
    return about_file(path, fault, message("key_maps.add_lines"))


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of every line that says something, without its comment; the spaces it begins
    with stay.

    A comment begins with a # at the start of the line or behind a space, and ends with the line.
    """
    ends = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(ends.split("\n"), 1):
        line = line.expandtabs()
        comment = COMMENT.search(line)
        line = (line[: comment.start()] if comment else line).rstrip()
        if line:
            yield number, line
