"""What other tools keep beside a LoRA file: trigger words, a strength, a preview. Only read."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

MAX_BYTES = 8_000_000  # of a file that is read
MAX_WORDS, LONGEST = 200, 1_000  # trigger words of a file, characters of one
STRONGEST = 100.0


class Source(NamedTuple):
    """A file that a tool keeps beside a LoRA's.

    ending: behind the LoRA's name without its own ending; of_whole_name: behind the whole name.
    words, strength: what leads to them in its JSON; () words of a text: all of it.
    """

    ending: str
    words: tuple[str, ...]
    strength: tuple[str, ...] = ()
    of_whole_name: bool = False


# The best first. LoRA Manager (willmiao/ComfyUI-Lora-Manager, py/utils/models.py: usage_tips is
# JSON in a text); Civitai's model version, as Civitai Helper stores it; A1111
# (modules/ui_extra_networks_user_metadata.py); rgthree (py/server/utils_info.py: beside the whole
# name, words as objects).
SOURCES = (
    Source(".metadata.json", ("civitai", "trainedWords"), ("usage_tips", "strength")),
    Source(".civitai.info", ("trainedWords",)),
    Source(".json", ("activation text",), ("preferred weight",)),
    Source(".rgthree-info.json", ("trainedWords",), of_whole_name=True),
    Source(".txt", ()),
)
# Pictures and films that tools show for a LoRA, the most usual ending first.
PREVIEWS = tuple(
    f"{middle}{ending}"
    for ending in (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4")
    for middle in (".preview", "")
)


class Noted(NamedTuple):
    """Something a tool noted, and the name of the file that says so."""

    value: Any
    file: str


class Beside(NamedTuple):
    """What lies beside one LoRA file.

    words: trigger words, each once. strength: what its user or its author recommends; None where
    nothing says it.
    """

    words: tuple[Noted, ...] = ()
    strength: Noted | None = None


def read_beside(path: str | os.PathLike[str]) -> Beside:
    """Read what lies beside a LoRA file; what cannot be read counts as not there."""
    path = os.fspath(path)
    words: dict[str, Noted] = {}
    strength = None
    for source in SOURCES:
        file = _place(source, path)
        text = _text_of(file)
        if text is None:
            continue
        content = _parsed(text) if source.words else text
        for word in _words(_at(content, source.words)):
            if len(words) < MAX_WORDS:
                words.setdefault(word.casefold(), Noted(word, os.path.basename(file)))
        number = _number(_at(content, source.strength)) if source.strength else None
        if strength is None and number is not None:
            strength = Noted(number, os.path.basename(file))
    return Beside(tuple(words.values()), strength)


def beside_stamp(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Changes when what `read_beside` reads does."""
    return tuple(_modified(_place(source, os.fspath(path))) for source in SOURCES)


def aside_of(name: str, entries: Mapping[str, os.DirEntry[str]]) -> tuple[str, bool]:
    """(what changes when what `read_beside` reads does, whether `preview_of` finds anything) of a
    LoRA file, by what its folder holds: name -> entry. Only the texts are asked for their times.
    """
    stem = os.path.splitext(name)[0]
    stamps = []
    for source in SOURCES:
        beside = entries.get((name if source.of_whole_name else stem) + source.ending)
        if beside is not None:
            with suppress(OSError):
                about = beside.stat()
                stamps.append(f"{source.ending} {about.st_size} {about.st_mtime_ns}")
    pictures = (entries.get(stem + ending) for ending in PREVIEWS)
    return "\n".join(stamps), any(map(is_file, pictures))


def is_file(entry: os.DirEntry[str] | None) -> bool:
    """Whether there is an entry, and it is or leads to a regular file."""
    try:
        return entry is not None and entry.is_file()
    except OSError:
        return False


def _place(source: Source, path: str) -> str:
    return (path if source.of_whole_name else os.path.splitext(path)[0]) + source.ending


def _modified(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0


def preview_of(path: str | os.PathLike[str]) -> Path | None:
    """The picture or film beside a LoRA file; None where there is none."""
    stem = Path(path).with_suffix("")
    candidates = (stem.with_name(stem.name + ending) for ending in PREVIEWS)
    return next((one for one in candidates if one.is_file()), None)


def _text_of(file: str) -> str | None:
    try:
        about = os.stat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_BYTES:
            return None
        with open(file, encoding="utf-8-sig", errors="replace") as text:
            return text.read()
    except (OSError, ValueError):  # a name with a zero is no place
        return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _at(content: Any, steps: Iterable[str]) -> Any:
    """What these steps lead to in nested objects, some of which are JSON in a text."""
    for step in steps:
        content = _parsed(content) if isinstance(content, str) else content
        content = content.get(step) if isinstance(content, dict) else None
    return content


def _words(found: Any) -> Iterator[str]:
    for one in found if isinstance(found, list) else (found,):
        text = one.get("word") if isinstance(one, dict) else one
        if isinstance(text, str):
            text = " ".join(text.split()).strip(", ")
            if 0 < len(text) <= LONGEST:
                yield text


def _number(value: Any) -> float | None:
    """A strength; None for 0 too, which A1111 writes where nobody said one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    number = float(value)
    return number if math.isfinite(number) and 0 < abs(number) <= STRONGEST else None
