"""Sentences that people read, from catalogs: `locales/<language>/messages/<room>.json`.

What travels from room to room (a reason, a verdict, an error's text) is a `Message`: an English
sentence that can be said in other languages, too. What renders a whole page takes a language and
asks a `Speaker`.

A catalog maps a name to a sentence with {named} gaps, or to its plural forms ({"one": ...,
"other": ...}, chosen by the value `count`, a whole number). The id of a sentence is
"<room>.<name>".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from unicodedata import east_asian_width

LOCALES = Path(__file__).parent / "locales"
ENGLISH = "en"
if TYPE_CHECKING:  # Python before 3.10 must get past this line
    Template = str | Mapping[str, str]


class Source(Protocol):
    """What a message is made from."""

    def render(self, language: str) -> str:
        """The text in a language, in English where the language lacks it."""

    def __iter__(self) -> Iterator[Any]:
        """What it holds, in the order in which it is made from it."""


class Message(str):
    """A text in English that `translate` says in other languages.

    As a str it is English: logs, JSON and whoever knows no languages read that. Joining, slicing or
    formatting it gives a plain str, which stays English; `joined` and `as_sentence` keep it.
    """

    __slots__ = ("source",)
    source: Source

    def __new__(cls, source: Source) -> Message:
        made = super().__new__(cls, source.render(ENGLISH))
        made.source = source
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Message, (self.source,)


def message(id: str, /, **values: Any) -> Message:
    """The sentence of an id, its gaps filled with `values` (str, Message, int or error).

    Raises KeyError for an id that no catalog has, and for a gap without its value.
    """
    return Message(_sentence(id, values))


def joined(parts: Iterable[str], by: str = "comma") -> Message:
    """Several texts as one. by: how, a name of the catalog "joints" ("semicolon", "space" ...)."""
    return Message(_Joined(tuple(parts), by))


def as_sentence(text: str, *, stop: bool = True) -> Message:
    """A text that begins in the middle of a sentence, with a capital letter and a full stop."""
    return Message(_Whole(text, stop))


def translate(text: str, language: str) -> str:
    """A text in a language; a plain str, and what the language lacks, stays English."""
    return text.source.render(language) if isinstance(text, Message) else text


def text_of(error: BaseException) -> str:
    """What an error says, as the message it was raised with where it was one."""
    first = error.args[0] if error.args else ""
    return first if isinstance(first, Message) else str(error)


def packed(text: Any) -> Any:
    """A text as plain JSON that `unpacked` makes a message of again; all else stays as it is."""
    if not isinstance(text, Message):
        return text
    kind, *fields = type(text.source).__name__, *text.source
    return {kind: [_each(packed, field) for field in fields]}


def unpacked(value: str | Mapping[str, Any]) -> str:
    """The text that was `packed`. Raises KeyError where its sentence is in no catalog any more."""
    if not isinstance(value, Mapping):
        return value
    ((kind, fields),) = value.items()
    return Message(SOURCES[kind](*(_each(unpacked, field) for field in fields)))


class Speaker:
    """Says everything in one language: `speak("report.file", name=...)`, `speak(message)`."""

    def __init__(self, language: str = ENGLISH):
        self.language = language

    def __call__(self, said: str, /, **values: Any) -> str:
        """A message, or the sentence of an id with its values, in this language."""
        if isinstance(said, Message):
            return said.source.render(self.language)
        return _sentence(said, values).render(self.language)

    def text(self, text: str) -> str:
        """A text that may be a message or a plain str, which stays as it is."""
        return translate(text, self.language)

    def joined(self, parts: Iterable[str], by: str = "comma") -> str:
        """Several texts as one, see `joined`."""
        return _Joined(tuple(parts), by).render(self.language)


def columns(text: str) -> int:
    """Columns that a text takes in a monospaced font, where Chinese letters take two."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def first_of(texts: Sequence[str], most: int) -> Message:
    """The first texts in a line, and how many more there are."""
    line, more = joined(texts[:most]), len(texts) - most
    return message("joints.listed_and_more", listed=line, count=more) if more > 0 else line


@lru_cache(maxsize=1)  # of the pack's own folders
def languages() -> tuple[str, ...]:
    """The languages that have a catalog, English first."""
    others = {path.parent.name for path in LOCALES.glob("*/messages")} - {ENGLISH}
    return (ENGLISH, *sorted(others))


def language_of(locale: str) -> str:
    """The language that a locale such as zh_CN.UTF-8 or zh-TW asks for; English where no catalog
    has it.
    """
    language = re.split(r"[-_.@]", locale.strip().lower())[0]
    return language if language in languages() else ENGLISH


def translations(document: Any) -> dict[str, dict[str, str]]:
    """What the messages in a JSON document say in other languages: language -> English -> it."""
    found = set(_messages(document))
    return {
        language: {str(text): text.source.render(language) for text in found}
        for language in languages()
        if language != ENGLISH
    }


@lru_cache(maxsize=8)  # one for each language; the pack's own files change with the pack only
def catalog(language: str) -> Mapping[str, Template]:
    """All sentences of a language by id; empty for a language that has none."""
    return {
        f"{path.stem}.{name}": template
        for path in sorted((LOCALES / language / "messages").glob("*.json"))
        for name, template in json.loads(path.read_text(encoding="utf-8")).items()
    }


class _Sentence(NamedTuple):
    id: str
    values: Mapping[str, Any]

    def render(self, language: str) -> str:
        template = catalog(language).get(self.id)
        if template is None:
            template = catalog(ENGLISH)[self.id]
        if not isinstance(template, str):
            one = self.values["count"] == 1 and "one" in template
            template = template["one" if one else "other"]
        values = {name: _in(value, language) for name, value in self.values.items()}
        if isinstance(values.get("count"), int):
            values["count"] = f"{values['count']:,}"
        return template.format_map(values)


def _sentence(id: str, values: Mapping[str, Any]) -> _Sentence:
    # An error's traceback would keep alive what it saw, files too: only its text is kept.
    texts = {
        name: text_of(value) if isinstance(value, BaseException) else value
        for name, value in values.items()
    }
    return _Sentence(id, texts)


class _Joined(NamedTuple):
    parts: tuple[str, ...]
    by: str

    def render(self, language: str) -> str:
        joint = _Sentence(f"joints.{self.by}", {}).render(language)
        return joint.join(translate(part, language) for part in self.parts)


class _Whole(NamedTuple):
    text: str
    stop: bool

    def render(self, language: str) -> str:
        text = translate(self.text, language)
        text = text[:1].upper() + text[1:]
        return _Sentence("joints.sentence", {"text": text}).render(language) if self.stop else text


SOURCES = {source.__name__: source for source in (_Sentence, _Joined, _Whole)}


def _each(change: Callable[[Any], Any], field: Any) -> Any:
    """A field of a source with each text in it changed."""
    if isinstance(field, (list, tuple)):
        return tuple(change(part) for part in field)
    if isinstance(field, Mapping) and not _is_packed(field):
        return {name: change(value) for name, value in field.items()}
    return change(field) if isinstance(field, (str, Mapping)) else field


def _is_packed(field: Mapping[str, Any]) -> bool:
    return len(field) == 1 and next(iter(field)) in SOURCES


def _in(value: Any, language: str) -> Any:
    return translate(value, language) if isinstance(value, str) else value


def _messages(document: Any) -> Iterator[Message]:
    if isinstance(document, Message):
        yield document
    elif isinstance(document, Mapping):
        for name, value in document.items():
            yield from _messages(name)
            yield from _messages(value)
    elif isinstance(document, (list, tuple)):
        for value in document:
            yield from _messages(value)
