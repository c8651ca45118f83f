"""LoRAs named in a text, `<lora:name:0.8>` or `<lora:name:0.8:0.6>`, and LORA_STACK, the list that
other packs' stackers, randomizers and cyclers pass on.

A1111 (extensions-builtin/Lora, extra_networks_lora.py) has the text encoder's strength first,
ComfyUI's packs the model's, which counts here; `te=` and `unet=` say it without doubt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from os.path import splitext
from typing import Any, NamedTuple

from ..key_maps.weight_presets import weight_presets
from ..lora.merge.block_weights import is_vector
from ..messages import joined, message
from .files import lora_names
from .rows import STRONGEST, StackRow, short

TAG = re.compile(r"<(?:lora|lyco):([^<>:]*)((?::[^<>:]*)*)>", re.IGNORECASE)
GONE = "\0"  # stands where a tag was
ALONE = re.compile(rf"[ \t]*(,?)[ \t]*{GONE}(?:[ \t,{GONE}]*{GONE})?[ \t]*(,?)[ \t]*")
MAX_TAGS = 200
NOTHING = ("", "None")  # names that packs give for a slot without a LoRA


class Named(NamedTuple):
    """A LoRA as a text or a list names it: its name as listed, its strengths, and what of it is not
    used.
    """

    name: str
    strength: float
    strength_clip: float
    unused: tuple[str, ...] = ()
    blocks: str = ""


def read_tags(text: str) -> tuple[list[Named], str]:
    """(the LoRAs that a text names, the text without them). Raises ValueError, which names the tag
    and the remedy.
    """
    tags = TAG.findall(text)
    if len(tags) > MAX_TAGS:
        raise ValueError(message("nodes.too_many_tags", count=len(tags), most=MAX_TAGS))
    found = [_read_tag(name.strip(), rest.split(":")[1:]) for name, rest in tags]
    bare = ALONE.sub(_between, TAG.sub(GONE, text.replace(GONE, " ")))
    return found, "\n".join(line.strip(" \t") for line in bare.split("\n")).strip()


def _between(gap: re.Match[str]) -> str:
    """What stays between two words whose tags are gone."""
    text, (start, end) = gap.string, gap.span()
    if not text[:start].strip() or text[end : end + 1] in ("", "\n") or text[start - 1] == "\n":
        return ""
    return ", " if any(gap.groups()) else " "


def _read_tag(name: str, values: Sequence[str]) -> Named:
    tag = f"<lora:{':'.join((name, *values))}>"
    plain = [value.strip() for value in values if "=" not in value]
    stated = {
        key.strip().lower(): number.strip()
        for key, _, number in (value.partition("=") for value in values if "=" in value)
    }
    strength = _number(plain[0] if plain else stated.pop("unet", "1"), tag)
    clip = _number(plain[1], tag) if len(plain) > 1 else strength
    strength = _number(stated.pop("unet"), tag) if "unet" in stated else strength
    clip = _number(stated.pop("te"), tag) if "te" in stated else clip
    wanted = stated.get("lbw", "")
    blocks = stated.pop("lbw") if is_vector(wanted) or wanted in weight_presets() else ""
    unused = (*plain[2:], *(f"{key}={value}" for key, value in stated.items()))
    return Named(find_lora(name), strength, clip, unused, blocks)


def _number(text: str, tag: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = STRONGEST * 2
    if not -STRONGEST <= number <= STRONGEST:
        raise ValueError(
            message(
                "nodes.tag_strength",
                tag=tag,
                value=text,
                low=f"{-STRONGEST:g}",
                high=f"{STRONGEST:g}",
            )
        )
    return number


def find_lora(name: str) -> str:
    """The listed name of a LoRA that is named with or without folder and ending, in any case.
    Raises ValueError where none or several are called so.
    """
    names = lora_names()
    for fold in (str, str.casefold):
        for spelled in _SPELLINGS:
            wanted = fold(name.replace("\\", "/"))
            same = [one for one in names if fold(spelled(one.replace("\\", "/"))) == wanted]
            if len(same) == 1:
                return same[0]
            if same:
                raise ValueError(
                    message("nodes.several_called_so", name=name, files=joined(sorted(same)))
                )
    stems = {_stem(one.replace("\\", "/")): one for one in names}
    near = get_close_matches(name, stems, 3, 0.6)
    if near:
        raise ValueError(
            message(
                "nodes.none_called_so_but",
                name=name,
                files=joined([stems[one] for one in near], "or"),
            )
        )
    raise ValueError(message("nodes.none_called_so", name=name))


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _without_ending(name: str) -> str:
    return splitext(name)[0]


def _stem(name: str) -> str:
    return _without_ending(_base(name))


_SPELLINGS = (str, _without_ending, _base, _stem)  # of what is listed, the surest first


def read_stack(stack: Any) -> Iterator[Named]:
    """The LoRAs of a LORA_STACK: (name, strength of the model, of CLIP) each. Raises ValueError,
    which names the place and the remedy.
    """
    if stack is None:
        return
    if not isinstance(stack, (list, tuple)):
        raise ValueError(message("nodes.not_a_lora_stack", value=short(stack)))
    for number, entry in enumerate(stack, 1):
        if not isinstance(entry, (list, tuple)) or len(entry) < 2 or not isinstance(entry[0], str):
            raise ValueError(message("nodes.not_a_stack_entry", number=number, value=short(entry)))
        name, strength, *more = entry
        if name in NOTHING:
            continue
        clip = more[0] if more else strength
        place = f"{number}. {name}"
        yield Named(find_lora(name), _number(str(strength), place), _number(str(clip), place))


def unused_of(named: Iterable[Named]) -> list[str]:
    """What tags say that is not used, a sentence each."""
    return [
        message("nodes.tag_unused", name=one.name, unused=", ".join(one.unused))
        for one in named
        if one.unused
    ]


def rows_of(named: Iterable[Named], first: int) -> list[StackRow]:
    """Rows that stand behind a stack's own; first: the number of the first."""
    return [
        StackRow(number, True, one.name, one.strength, one.strength_clip, one.blocks)
        for number, one in enumerate(named, first)
    ]


def as_stack(rows: Iterable[StackRow]) -> list[tuple[str, float, float]]:
    """A LORA_STACK of the rows that are on."""
    return [(row.name, row.strength, row.strength_clip) for row in rows if row.on]
