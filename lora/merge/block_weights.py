"""Weights for parts of a model, as people write them: `double_blocks.0-5=0.5,
*.img_mlp=0, te=0`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from ...adapters.spec import AdapterError
from ...key_maps.dialect import DENOISER
from ...key_maps.weight_presets import weight_presets
from ...messages import message

__all__ = [
    "NO_BLOCKS",
    "BlockWeights",
    "is_vector",
    "read_block_weights",
]

MODEL, ENCODERS, ANYWHERE = "model", "te", "*"
MAX_TEXT, MAX_ENTRIES = 10_000, 500
NAME = re.compile(r"[A-Za-z0-9_*?]+(-[0-9]+)?\Z")
RANGE = re.compile(r"([0-9]{1,6})-([0-9]{1,6})\Z")


# What the numbers of a block weight vector stand for, by how many they are; the first is the text
# encoder's. hako-mikan/sd-webui-lora-block-weight scripts/lora_block_weight.py (LoRA and LoCon of
# SD 1.5 and of SDXL, FLUX.1); ComfyUI calls IN input_blocks, M middle_block, OUT output_blocks.
def _unet(inputs: Iterable[int], outputs: Iterable[int]) -> tuple[str, ...]:
    return (
        ENCODERS,
        *(f"input_blocks.{number}" for number in inputs),
        "middle_block",
        *(f"output_blocks.{number}" for number in outputs),
    )


FLUX = (
    "clip_l",
    "t5xxl",
    "img_in txt_in time_in vector_in guidance_in",
    *(f"double_blocks.{number}" for number in range(19)),
    *(f"single_blocks.{number}" for number in range(38)),
    "final_layer",
)
VECTORS = {
    len(parts): parts
    for parts in (
        FLUX,
        _unet((4, 5, 7, 8), range(6)),
        _unet((1, 2, 4, 5, 7, 8), range(3, 12)),
        _unet(range(9), range(9)),
        _unet(range(12), range(12)),
    )
}
VECTOR = re.compile(r"[-+.0-9eE]+([ \t]*[,;][ \t]*[-+.0-9eE]+)+\Z")


_Module = tuple[str, tuple[str, ...]]  # network, words of the native name


class _Entry(NamedTuple):
    """One `pattern=weight`. words: of the native name, from its start (anywhere: from any word);
    the name may go on behind them.
    """

    text: str
    words: tuple[str, ...]
    anywhere: bool
    weight: float

    def matches(self, network: str, module: tuple[str, ...]) -> bool:
        if not self.anywhere and len(self.words) == 1 and self.words[0] in (MODEL, ENCODERS):
            return (network == DENOISER) == (self.words[0] == MODEL)
        if not self.anywhere and self.words[0] == network != DENOISER:
            return _begins(self.words[1:], module)
        starts = range(len(module)) if self.anywhere else (0,)
        return any(_begins(self.words, module[start:]) for start in starts)

    def is_found_in(self, modules: Iterable[_Module]) -> bool:
        """Whether it matches one of them, or need not."""
        is_general = not self.anywhere and self.words[0] in (MODEL, ENCODERS)
        return is_general or any(self.matches(*module) for module in modules)


class BlockWeights(NamedTuple):
    """What every module is multiplied with; of several entries that match a module the last one
    counts.

    strict: entries that match nothing are a fault. whole: what 1 becomes, for who wants the other
    modules alone.
    """

    entries: tuple[_Entry, ...] = ()
    strict: bool = True
    whole: float = 1.0

    def factor(self, network: str, module: str) -> float:
        """The weight of a native module (without `diffusion_model.`) of DENOISER or of a text
        encoder's slot; 1 where none is given.
        """
        words = tuple(module.split("."))
        factor = next(
            (entry.weight for entry in reversed(self.entries) if entry.matches(network, words)),
            1.0,
        )
        return self.whole if factor == 1 else factor

    def check(self, modules: Iterable[tuple[str, str]]) -> None:
        """Raise AdapterError for an entry that none of these (network, module) matches; `te` and
        `model` may match none.
        """
        if not self.strict:
            return
        known = _words_of(modules)
        for entry in self.entries:
            if not entry.is_found_in(known):
                raise AdapterError(
                    message(
                        "merge.block_weight_unmatched",
                        entry=entry.text,
                        instead=_instead(entry, known),
                    )
                )

    def found_in(self, modules: Iterable[tuple[str, str]]) -> str:
        """As text, without the entries that `check` would refuse."""
        known = _words_of(modules)
        return ", ".join(entry.text for entry in self.entries if entry.is_found_in(known))


NO_BLOCKS = BlockWeights()


def read_block_weights(text: str) -> BlockWeights:
    """Read `pattern=weight` entries between commas, semicolons or new lines; or the name of a
    preset of layer weights.

    A pattern is the beginning of a module's native name, word by word between dots:
    `double_blocks.0-5` (a range of numbers), `double_blocks.*.img_*` (* within a word, or as any
    one word); with `*.` in front it may begin at any word. `model` is the whole diffusion model,
    `te` all text encoders, `clip_l`, `t5xxl` ... one of them. Numbers alone are a block weight
    vector of as many as VECTORS has. Raises AdapterError saying what is wrong.
    """
    preset = weight_presets().get(text.strip())
    if preset is not None:
        return read_block_weights(preset.weights)._replace(strict=False)
    if len(text) > MAX_TEXT:
        raise AdapterError(message("merge.block_text_too_long", count=len(text), most=MAX_TEXT))
    if is_vector(text):
        return _vector(text)
    parts = [part.strip() for part in re.split(r"[,;\n]", text)]
    entries = tuple(_entry(part) for part in parts if part)
    if len(entries) > MAX_ENTRIES:
        raise AdapterError(
            message("merge.too_many_block_weights", count=len(entries), most=MAX_ENTRIES)
        )
    return BlockWeights(entries)


def is_vector(text: str) -> bool:
    """Whether it is numbers alone, more than one."""
    return bool(VECTOR.match(text.strip()))


def _vector(text: str) -> BlockWeights:
    """A model need not have all blocks that a vector names; those of a UNet that it does not name
    are off, as in the extension (`to26`).
    """
    numbers = [number.strip() for number in re.split("[,;]", text)]
    parts = VECTORS.get(len(numbers))
    if parts is None:
        known = ", ".join(map(str, VECTORS))
        raise AdapterError(message("merge.vector_length", count=len(numbers), known=known))
    named = [
        f"{name}={number}"
        for part, number in zip(parts, numbers, strict=True)
        for name in part.split()
    ]
    unnamed = () if parts == FLUX else ("input_blocks=0", "output_blocks=0")
    return BlockWeights(tuple(map(_entry, (*unnamed, *named))), strict=False)


def _entry(part: str) -> _Entry:
    pattern, sign, number = (piece.strip() for piece in part.partition("="))
    if not sign or not pattern:
        raise AdapterError(message("merge.block_weight_form", entry=part))
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise AdapterError(message("merge.block_weight_number", entry=part, weight=number))
    words = pattern.split(".")
    anywhere = words[0] == ANYWHERE and len(words) > 1
    words = words[1:] if anywhere else words
    for word in words:
        _check_word(word, part)
    return _Entry(part, tuple(words), anywhere, weight)


def _check_word(word: str, part: str) -> None:
    span = RANGE.match(word)
    if not word:
        raise AdapterError(message("merge.block_weight_dots", entry=part))
    if not NAME.match(word) or ("-" in word and not span):
        raise AdapterError(message("merge.block_weight_part", entry=part, part=word))
    if span and int(span[1]) > int(span[2]):
        raise AdapterError(message("merge.block_weight_range", entry=part, range=word))


def _begins(words: Sequence[str], module: Sequence[str]) -> bool:
    return len(words) <= len(module) and all(
        _is(word, found) for word, found in zip(words, module, strict=False)
    )


def _is(word: str, found: str) -> bool:
    span = RANGE.match(word)
    if span:
        return found.isdecimal() and len(found) < 7 and int(span[1]) <= int(found) <= int(span[2])
    return word == found or (("*" in word or "?" in word) and fnmatchcase(found, word))


def _words_of(modules: Iterable[tuple[str, str]]) -> list[_Module]:
    return [(network, tuple(module.split("."))) for network, module in modules]


def _instead(entry: _Entry, modules: Iterable[_Module]) -> str:
    """What may have been meant."""
    names = {word for _, words in modules for word in words if not word.isdecimal()}
    for word in entry.words:
        near = (
            []
            if word in names or RANGE.match(word) or word.isdecimal()
            else get_close_matches(word, names, 1, 0.6)
        )
        if near:
            return message("merge.did_you_mean", name=near[0])
    return message("merge.native_names")
