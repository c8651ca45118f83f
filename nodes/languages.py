"""What nodes and routes show, in the front end's language: beside the English text goes a table
from English to each other language, from which the front end chooses.

STRING outputs and JSON stay English, because a workflow's later nodes and programs read them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..messages import ENGLISH, language_of, translations

Render = Callable[[str], str]  # language -> text


def shown(render: Render, document: Mapping[str, Any], as_json: str) -> dict[str, list[str]]:
    """What a node's `ui` holds: its text in English, its report, and what to show in other
    languages instead.

    render: makes the whole text in a language. document: the report, with the messages in it.
    """
    text = render(ENGLISH)
    table = translations(document)
    for language, texts in table.items():
        texts[text] = render(language)
    return {
        "text": [text],
        "report_json": [as_json],
        "translations": [json.dumps(table, ensure_ascii=False)],
    }


def answered(document: Mapping[str, Any], asked: str, **renders: Render) -> dict[str, Any]:
    """A route's answer with what it says in the language that is asked for, if that is not English.

    renders: the whole texts in the answer, field -> what makes the field's text in a language.
    """
    language = language_of(asked)
    if language == ENGLISH:
        return dict(document)
    texts = translations(document).get(language, {})
    texts |= {str(document[field]): render(language) for field, render in renders.items()}
    return {**document, "translations": {language: texts}}
