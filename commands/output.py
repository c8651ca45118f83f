"""Writes to the terminal: laid out by rich for people, plain where the output goes into a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ..key_maps.metadata_values import clean

if TYPE_CHECKING:
    from rich.console import Console

WIDEST_FIRST = 36  # columns a file name gets before it is folded
FINE, PROBLEMS, FAILED, INTERRUPTED = 0, 1, 2, 130
NO_RICH = "Output for a terminal needs the library rich: pip install rich. Into a file or a pipe, and with --json, it works without."


def console(error: bool = False) -> Console | None:
    """A rich console for standard output (or error), None where that is no terminal."""
    if not (sys.stderr if error else sys.stdout).isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        _complain_once(NO_RICH)
        return None
    return Console(stderr=error, highlight=False)


@lru_cache
def _complain_once(complaint: str) -> None:
    print(complaint, file=sys.stderr)


def show_any_text() -> None:
    """Let names that are no text, or that the terminal has no letters for, be shown escaped and not raise."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def show_markdown(text: str) -> None:
    """Print Markdown, laid out on a terminal and as it is elsewhere."""
    text = "\n".join(map(clean, text.split("\n")))
    target = console()
    if target is None:
        print(text)
        return
    from rich.markdown import Markdown

    target.print(Markdown(text))


def show_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, laid out on a terminal; elsewhere one line for each row, cells parted by tabs."""
    rows = [tuple(map(clean, row)) for row in rows]
    target = console()
    if target is None:
        for row in (heads, *rows):
            print("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for place, head in enumerate(heads):
        table.add_column(head, overflow="fold", min_width=None if place else WIDEST_FIRST)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    target.print(table)
