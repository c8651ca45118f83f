"""The one reader of the pack's text formats: UTF-8, any line ends, tabs as spaces, and one rule for
comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import LocksmithError
from ..files.header import open_file

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
        raise fault(
            f"{path}: it is the lock of an editor, not a text. It goes when the editor closes"
            f" {path.name.removeprefix(LOCK)}"
        )
    try:
        with open_file(path) as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise fault(
            f"{path}: it cannot be read ({error.strerror or error}). Put a text file there that may"
            " be read"
        ) from None
    except ValueError as error:
        raise fault(f"{path}: it cannot be read ({error}). Rename it") from None
    if len(raw) > MAX_BYTES:
        raise fault(
            f"{path}: it is larger than {MAX_BYTES:,} bytes, which no text of this kind is. Put"
            " the right file there"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise fault(f"{path}, line {line}: it is not UTF-8. Save it as UTF-8 text") from None


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
