"""What the key maps' tables call things in English, as messages that other languages have too."""

from __future__ import annotations

import re

from ..messages import ENGLISH, catalog, message

GAP = re.compile(r"\{(.*?)\}")


def label_id(kind: str, text: str) -> str:
    """The id a text of a table has in the catalogs: "metadata.label" and "Rank (dim)" make
    "metadata.label_rank_dim".
    """
    words = re.sub(r"[^a-z0-9]+", "_", GAP.sub(" ", text).lower())
    return f"{kind}_{words.strip('_')}"


def label(kind: str, text: str, **values: str) -> str:
    """A text of a table, its gaps filled, as a message of this kind; plain where no catalog has it.

    Gaps without a value stay as they are.
    """
    id = label_id(kind, text)
    if id in catalog(ENGLISH):
        return message(id, **values)
    return GAP.sub(lambda gap: values.get(gap[1], gap[0]), text)
