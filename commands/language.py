"""In which language a command speaks: what `--lang` says, else the environment, else English; and
argparse's own words in it.
"""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..messages import ENGLISH, Speaker, columns, language_of, message, text_of

OPTION = "--lang"
VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")  # the first that is set counts
# What argparse says itself: the English text of each is argparse's own, to the letter.
OF_ARGPARSE = (
    "commands.argparse_ambiguous",
    "commands.argparse_argument",
    "commands.argparse_at_least_one",
    "commands.argparse_at_most_one",
    "commands.argparse_count",
    "commands.argparse_excluded",
    "commands.argparse_help",
    "commands.argparse_ignored",
    "commands.argparse_invalid_choice",
    "commands.argparse_invalid_value",
    "commands.argparse_one",
    "commands.argparse_one_required",
    "commands.argparse_options",
    "commands.argparse_positionals",
    "commands.argparse_required",
    "commands.argparse_unrecognized",
    "commands.argparse_usage",
)


def chosen_language(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """The language of this command line; English where what is asked for is not known."""
    for place, argument in enumerate(arguments):
        name, sign, value = argument.partition("=")
        if name == OPTION:
            return language_of(value if sign else "".join(arguments[place + 1 : place + 2]))
    return language_of(next(filter(None, map(environment.get, VARIABLES)), ENGLISH))


def add_language(parser: argparse.ArgumentParser, speak: Speaker) -> None:
    """The option itself, before and after the name of the command."""
    parser.add_argument(
        OPTION, default=argparse.SUPPRESS, metavar="LANG", help=speak("commands.language_help")
    )


def reading(read: Callable[[str], Any], speak: Speaker) -> Callable[[str], Any]:
    """A reader of arguments that says what is wrong with one in this language."""

    def read_or_say(text: str) -> Any:
        try:
            return read(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(speak.text(text_of(error))) from None

    return read_or_say


@contextmanager
def words_of_argparse(speak: Speaker) -> Iterator[None]:
    """Have argparse say its own words in this language meanwhile; what a version says otherwise
    stays English.
    """
    if speak.language == ENGLISH or not hasattr(argparse, "_"):
        yield
        return
    words = {str(message(id)): speak(id) for id in OF_ARGPARSE}
    own: Any = argparse  # its types leave out what it takes its words from
    before = own._, own.ngettext
    own._ = lambda text: words.get(text, text)
    own.ngettext = lambda one, others, count: own._(one if count == 1 else others)
    try:
        yield
    finally:
        own._, own.ngettext = before


class WideFormatter(argparse.HelpFormatter):
    """Breaks lines of text whose letters are two columns wide, and which has no spaces."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = wrapped(" ".join(text.split()), width - len(indent))
        return "\n".join(indent + line for line in lines)


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns, broken at spaces and between wide letters."""
    lines, line = [], ""
    for piece in _pieces(text):
        if line and columns(line + piece.rstrip()) > width and not _closes(piece[0]):
            lines.append(line.rstrip())
            line = ""
        line += piece
    return [*lines, line.rstrip()] if line.strip() else lines


def _closes(letter: str) -> bool:
    """Whether no line begins with it: a full stop, a closing bracket."""
    return columns(letter) == 2 and unicodedata.category(letter) in ("Pe", "Pf", "Po")


def _pieces(text: str) -> Iterator[str]:
    """What is not broken: a wide letter, or a word with the space behind it."""
    word = ""
    for letter in text:
        if columns(letter) == 2:
            if word:
                yield word
            word = ""
            yield letter
            continue
        word += letter
        if letter == " ":
            yield word
            word = ""
    if word:
        yield word
