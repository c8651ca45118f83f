"""Writes to the terminal: laid out by rich for people, plain where the output goes into a file or a
pipe.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..messages import Speaker, message, text_of

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

WIDEST_FIRST = 36  # columns a file name gets before it is folded
FINE, PROBLEMS, FAILED, INTERRUPTED = 0, 1, 2, 130
MIN_OTHERS = (
    13  # columns that every other cell needs to be read; on a narrower terminal rows are listed
)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
PART = ".part"  # how the names of files end that are being written


def console(speak: Speaker, error: bool = False) -> Console | None:
    """A rich console for standard output (or error), None where that is no terminal."""
    if not (sys.stderr if error else sys.stdout).isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        _complain_once(speak("commands.needs_rich"))
        return None
    return Console(stderr=error, highlight=False)


def shown(text: str) -> str:
    """The text with control characters escaped: names come from strangers' files, and a terminal
    would do what they say.
    """
    return CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


@lru_cache
def _complain_once(complaint: str) -> None:
    print(complaint, file=sys.stderr)


@contextmanager
def progress(title: str, speak: Speaker) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal: what is given takes (done, total); None elsewhere.

    title: the id of what it says.
    """
    target = console(speak, error=True)
    if target is None:
        yield None
        return
    from rich.progress import Progress

    # rich would draw what is printed meanwhile above the bar, also what is meant for a file or a
    # pipe.
    with Progress(console=target, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(speak(title), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def one_line(text: str) -> str:
    """The text in one line, whatever names are in it."""
    return shown(text).replace("\n", "\\n")


def say(text: str) -> None:
    """Print a line for people beside the output proper, which a pipe may want
    alone, and after it.
    """
    sys.stdout.flush()
    print(shown(text), file=sys.stderr, flush=True)


def show_json(document: Any) -> None:
    """Print one JSON object on a line of its own; a number that JSON has no word for (NaN,
    infinite) becomes null.
    """
    try:
        text = json.dumps(document, allow_nan=False)
    except ValueError:
        text = json.dumps(json.loads(json.dumps(document), parse_constant=lambda name: None))
    print(text, flush=True)


def complain(fault: str, speak: Speaker, as_json: bool = False) -> int:
    """Say in one line what is wrong, to programs as JSON; returns the exit code."""
    if as_json:
        show_json({"error": fault})
    else:
        print(one_line(speak("joints.sentence", text=fault)), file=sys.stderr, flush=True)
    return FAILED


def failed(error: Exception, options: Namespace) -> int:
    """Say why nothing was written; returns the exit code."""
    fault = fault_of(error)
    if not options.json:
        fault = message("commands.nothing_written", fault=fault)
    return complain(fault, options.speak, options.json)


def fault_of(error: Exception) -> str:
    """What an error says, and of which file the system says it."""
    if not isinstance(error, OSError):
        return text_of(error)
    place = os.fsdecode(error.filename or "")
    # A new file has a name of its own until it is whole, which nobody has asked for.
    if place.endswith(PART):
        place = os.path.dirname(os.path.abspath(place))
    subject = place or message("commands.the_output")
    return message("joints.about", subject=subject, text=error.strerror or error)


def spread(numbers: Sequence[int]) -> str:
    """The smallest and the largest."""
    if not numbers:
        return message("commands.none")
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else message("commands.range", low=low, high=high)


def show_any_text() -> None:
    """Let names that are no text, or that the terminal has no letters for, be shown escaped and not
    raise.

    What goes to a stream that is closed is lost, as it should be; a file that is opened next must
    not get its number.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        getattr(sys, name).reconfigure(errors="backslashreplace")


def show_markdown(text: str, speak: Speaker) -> None:
    """Print Markdown, laid out on a terminal and as it is elsewhere."""
    text = shown(text)
    target = console(speak)
    if target is None:
        print(text)
        return
    from rich.markdown import Markdown

    target.print(Markdown(text))


def show_table(heads: Sequence[str], rows: Iterable[Sequence[str]], speak: Speaker) -> None:
    """Print a table, laid out on a terminal; elsewhere one line for each row,
    cells parted by tabs.
    """
    rows = [tuple(map(shown, row)) for row in rows]
    target = console(speak)
    if target is None:
        for row in (heads, *rows):
            print("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    if target.width < WIDEST_FIRST + MIN_OTHERS * (len(heads) - 1):
        return _list_rows(target, heads, rows)
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for place, head in enumerate(heads):
        table.add_column(head, overflow="fold", min_width=None if place else WIDEST_FIRST)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    target.print(table)


def _list_rows(target: Console, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print each row as a paragraph: its first cell, and what the others say below it."""
    from rich.padding import Padding
    from rich.text import Text

    for first, *others in rows:
        target.print(Text(first, "bold", overflow="fold"))
        for head, cell in zip(heads[1:], others, strict=True):
            if cell:
                target.print(Padding(Text(f"{head}: {cell}", overflow="fold"), (0, 0, 0, 2)))
