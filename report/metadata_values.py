"""One value of a file's metadata as text: numbers, times, sizes, lists; bounded, because strangers
write metadata.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from ..messages import Message, joined, message

MAX_JSON = 8_000_000  # characters of JSON in one file's metadata
MAX_TEXT = 4_000  # characters of a known value
MAX_NAME = 120  # characters of a name
MAX_ITEMS = 24  # entries of a list that are written out
# Control characters, bidirectional overrides and lone surrogates: terminals, pages and UTF-8 cannot
# take them.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class NotOfKind(ValueError):
    """A value that is not of its kind: the text says what it is not."""


def as_text(value: Any) -> str:
    """A value of any type as text; JSON where it is not a plain one."""
    if isinstance(value, str):
        return value
    try:
        return (
            str(value)
            if value is None or isinstance(value, (bool, int, float))
            else json.dumps(value)
        )
    except (ValueError, TypeError, RecursionError, OverflowError):
        return f"({type(value).__name__})"


def clean(text: str) -> str:
    return text if text.isprintable() else UNPRINTABLE.sub("\ufffd", text)


def quoted(text: str) -> str:
    return repr(clean(text))


def shortened(text: str, most: int = MAX_TEXT, write: Callable[[str], str] = clean) -> str:
    """`text` without unprintable characters, cut to `most` characters; what was cut tells its true
    length.
    """
    if len(text) <= most:
        return write(text)
    return message("metadata.cut", text=write(text[:most].rstrip()), count=len(text))


def named(text: Any) -> str:
    if isinstance(text, Message):
        return text
    return shortened(as_text(text).strip(), MAX_NAME)


def listed(items: list[str], total: int) -> str:
    """The items in a line, and how many more of `total` there are."""
    line = joined(items, "comma")
    if total <= len(items):
        return line
    return message("metadata.and_more", listed=line, count=total - len(items))


def _number(text: str) -> str:
    text = text.strip() if len(text) <= 60 else ""
    try:
        finite = math.isfinite(float(text))
    except ValueError:
        finite = False
    if not finite:
        raise NotOfKind(message("metadata.no_number"))
    return text[:-2] if text.endswith(".0") else text


def _integer(text: str) -> str:
    text = _number(text)
    if float(text) != int(float(text)):
        raise NotOfKind(message("metadata.no_whole_number"))
    return text if text.lstrip("+-").isdigit() else str(int(float(text)))


def _numbers(text: str) -> str:
    parts = text.strip().strip("[]()")[:MAX_TEXT].split(",")
    return ", ".join(_number(part) for part in parts if part.strip())


def _boolean(text: str) -> str:
    word = text.strip().lower()
    if word not in ("true", "false", "1", "0", "yes", "no"):
        raise NotOfKind(message("metadata.no_boolean"))
    return message("metadata.yes" if word in ("true", "1", "yes") else "metadata.no")


def _time(text: str) -> str:
    try:
        return datetime.fromtimestamp(float(_number(text)), timezone.utc).strftime(
            "%Y-%m-%d %H:%M:%S UTC"
        )
    except (OverflowError, OSError):
        raise NotOfKind(message("metadata.no_time")) from None


def _resolution(text: str) -> str:
    """`1024`, `1024,768`, `(1024, 768)`, `[1024, 768]` and `1024x768` as 1024x768; several
    resolutions as they are.
    """
    numbers = re.findall(r"\d{1,6}", text[:200])
    if not numbers:
        raise NotOfKind(message("metadata.no_resolution"))
    if len(numbers) > 2 or re.search(r"[^\d\s,x()\[\]]", text[:200]):
        return shortened(text, MAX_NAME)
    return f"{numbers[0]}x{numbers[-1]}"


def _resolutions(text: str) -> str:
    """OneTrainer's: `512,768` is two target resolutions, `512x768` a fixed one (modules/dataLoader
    mixins).
    """
    parts = [part.strip() for part in text[:200].split(",")]
    return ", ".join(f"{part}x{part}" if part.isdigit() else named(part) for part in parts if part)


def _list(text: str) -> str:
    items = parse_json(text) if text[:1] == "[" and len(text) < MAX_JSON else text
    if not isinstance(items, list):
        return shortened(text)
    return listed([named(item) for item in items[:MAX_ITEMS]], len(items))


def _size(text: str) -> str:
    if len(text) < 1024:
        return message("metadata.characters", count=len(text))
    return message("metadata.kilobytes", count=round(len(text) / 1024))


def _image(text: str) -> str:
    """A data address of an image, by its kind and size."""
    address = re.match(r"data:image/([\w.+-]{1,20})[;,]", text)
    if not address:
        return shortened(text, MAX_NAME)
    size = len(text) - text.find(",") - 1
    size = size * 3 // 4 if ";base64," in text[:100] else size
    return message("metadata.image", kind=address.group(1), count=max(1, round(size / 1024)))


def _images(text: str) -> str:
    return message("metadata.images", count=text.count('"') // 2, size=_size(text))


PLAIN: dict[str, Callable[[str], str]] = {
    "text": shortened,
    "integer": _integer,
    "number": _number,
    "numbers": _numbers,
    "boolean": _boolean,
    "time": _time,
    "resolution": _resolution,
    "resolutions": _resolutions,
    "list": _list,
    "image": _image,
    "images": _images,
    "size": _size,
}


def _whole(digits: str) -> int:
    if len(digits) > 100:
        raise ValueError(message("metadata.many_digits"))
    return int(digits)


# Python before 3.10.7 takes quadratic time for a number of any length; later ones refuse it.
PARSE_INTEGER = None if hasattr(sys, "get_int_max_str_digits") else _whole


def parse_json(text: str) -> Any:
    """Parsed JSON; raises ValueError where it is broken, too deep, or has a
    number beyond reason.
    """
    try:
        return json.loads(text, parse_int=PARSE_INTEGER)
    except RecursionError:
        raise ValueError(message("metadata.too_deep")) from None
