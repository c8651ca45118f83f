"""Inspects whole folders of LoRA files: one row for each file, and an index, so that nothing is
read again that did not change.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from ..files.header import PICKLED
from ..key_maps.user_maps import NO_USER_MAPS, UserMaps
from ..messages import message
from .findings import Findings, findings_here
from .index import Index
from .judgement import BAD, GOOD, judged
from .listing import Listed, Stamp, key_root, list_files
from .shelf import Shelf

# States of a row besides GOOD and BAD. MENDED: the stock loader would fall short; UNKNOWN: whether
# it loads depends on the model, which the file does not tell; PICKLED_FILE: only a node reads it.
MENDED, PARTLY, DOUBTFUL, UNKNOWN = "mended", "partly", "doubtful", "untold"
PICKLED_FILE, UNREADABLE = "pickled", "unreadable"
# What is found in files, in their order, each when it is asked for.
Engine = Callable[[Sequence[Listed]], Iterator[Findings]]


class LibraryRow(NamedTuple):
    """One file of a folder: its path inside the folder (with /), its stamp, and what is in it."""

    file: str
    stamp: Stamp
    findings: Findings
    has_picture: bool = False  # a preview lies beside it

    @property
    def state(self) -> str:
        """How well it loads, in a word for programs."""
        findings = self.findings
        if findings.error:
            return PICKLED_FILE if self.is_pickled else UNREADABLE
        if findings.total and not findings.placed and not findings.made_for:
            return UNKNOWN
        state = judged(findings.placed, findings.total, cautions=findings.cautions)
        if state == BAD:
            return BAD
        if state == GOOD:
            return MENDED if findings.gains else GOOD
        return PARTLY if findings.placed < findings.total else DOUBTFUL

    @property
    def is_pickled(self) -> bool:
        """Whether only ComfyUI's own loader of pickles reads it."""
        return self.file.lower().endswith(PICKLED)

    @property
    def verdict(self) -> str:
        """In a few words: what loads."""
        findings = self.findings
        if findings.error:
            return message("files.cannot_be_read")
        if not findings.total:
            return message("library.no_lora")
        if self.state == UNKNOWN:
            return message("library.unknown_model")
        if findings.placed == findings.total:
            return message("library.loads")
        return message("report.modules_load", placed=findings.placed, count=findings.total)

    @property
    def has_problem(self) -> bool:
        """Whether something in it has no effect, or the stock loader would not do it justice."""
        return self.state != GOOD

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        findings = self.findings._asdict()
        return {
            "file": self.file,
            "bytes": self.stamp.size,
            **findings,
            "verdict": self.verdict,
            "state": self.state,
            "problem": self.has_problem,
            "has_picture": self.has_picture,
        }


def scan(
    folder: str | os.PathLike[str],
    index: str | os.PathLike[str] | None = None,
    own: UserMaps = NO_USER_MAPS,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[LibraryRow]:
    """One row for each LoRA file in the folder and all below it, by name; `scan_files` tells the
    rest. index: the path of one.

    Raises LoraFileError for a folder that cannot be listed.
    """
    kept = None if index is None else Index(index, logging.getLogger("lora_locksmith").warning)
    yield from scan_files(
        list_files(folder), kept, own, progress=progress, roots=[key_root(folder)]
    )


def scan_files(
    files: Mapping[str, Listed] | Iterable[tuple[str, Listed]],
    index: Index | None = None,
    own: UserMaps = NO_USER_MAPS,
    *,
    marks: str = "",
    roots: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    engine: Engine | None = None,
) -> Iterator[LibraryRow]:
    """One row for each file, in their order; `files`: what a row calls it -> where it is, or such
    pairs, which may be listed only as they are asked for.

    `index` keeps what is found, when the scan ends, early or not, and now and then before; files
    that are in it as they are now are not read. marks: tell when `own` changes. roots: what the
    keys of all files begin with; of what else begins so nothing is kept once the scan is through.
    `progress(done, total)` is called before each file of a mapping. `engine` looks into the files;
    without one they are read here, one after another.
    """
    look = engine or (lambda unknown: (findings_here(listed, own) for listed in unknown))
    with ExitStack() as stack:
        shelf = Shelf(stack.enter_context(index.opened()) if index else None, marks, roots)
        stack.callback(shelf.write)
        pairs = iter(files.items() if isinstance(files, Mapping) else files)
        found = stack.enter_context(closing(_found(pairs, shelf, look)))
        here: dict[str, Listed] = {}
        total = len(files) if isinstance(files, Mapping) and progress else 0
        while True:
            if progress and len(here) < total:
                progress(len(here), total)
            if (one := next(found, None)) is None:
                break
            file, listed, findings = one
            here[file] = listed
            yield LibraryRow(file, listed.stamp, findings, listed.has_picture)
        shelf.forget_others(here)


Found = Generator[tuple[str, Listed, Findings], None, None]


def _found(files: Iterator[tuple[str, Listed]], shelf: Shelf, look: Engine) -> Found:
    """Each file and what is in it. As long as they are known, each is told before the next one is
    listed.
    """
    for file, listed in files:
        findings = shelf.known(listed)
        if findings is None:
            yield from _read({file: listed, **dict(files)}, shelf, look)
            return
        yield file, listed, findings


def _read(files: Mapping[str, Listed], shelf: Shelf, look: Engine) -> Found:
    """The same where some are to be looked into, all of which are listed first: whoever looks gets
    them together.
    """
    known = {file: shelf.known(listed) for file, listed in files.items()}
    new = look([listed for file, listed in files.items() if known[file] is None])
    try:
        for file, listed in files.items():
            findings = known[file]
            if findings is None:
                findings = next(new)
                shelf.put(listed, findings)
            yield file, listed, findings
    finally:
        if isinstance(new, Generator):
            new.close()
