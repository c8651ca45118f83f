"""Tells what a file is that holds no LoRA, and the folder it belongs into."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import filter as matching
from functools import lru_cache
from itertools import islice
from pathlib import Path

from ..key_maps import KEY_MAPS
from ..key_maps.lines import lines_of, read_text
from ..messages import message
from .groups import Groups
from .numbered_layers import numbered_layers

OTHER_FILES_TABLE = KEY_MAPS / "other_files.table"
PLAIN_ENDINGS = frozenset({"weight", "bias", "scale"})  # how a model's own tensors end
CONTROL_LORA = "lora_controlnet"  # by it ComfyUI knows them; their factors look like a LoRA's
# What the table calls a file -> the id of that.
FILES = {
    "checkpoint": "planning.file_checkpoint",
    "clip_vision": "planning.file_clip_vision",
    "control_lora": "planning.file_control_lora",
    "controlnet": "planning.file_controlnet",
    "diffusion_model": "planning.file_diffusion_model",
    "embedding": "planning.file_embedding",
    "ip_adapter": "planning.file_ip_adapter",
    "style_model": "planning.file_style_model",
    "text_encoder": "planning.file_text_encoder",
    "upscale_model": "planning.file_upscale_model",
    "vae": "planning.file_vae",
}
MAX_KEYS = 5000  # looked at; the models known here have fewer


@lru_cache(maxsize=1)
def _rules(path: Path = OTHER_FILES_TABLE) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(the id of what it is, its folder, patterns) for each line."""
    parts = [line.split("|") for _, line in lines_of(read_text(path))]
    return tuple(
        (FILES[name.strip()], folder.strip(), tuple(patterns.split()))
        for name, folder, patterns in parts
    )


def other_file(keys: Collection[str], groups: Groups) -> str:
    """What a file is that holds no LoRA, or none that any model has a place for, in a sentence
    with the remedy; "" where it holds one, or nothing known.
    """
    numbered = numbered_layers(keys)
    if numbered:
        return message("planning.numbered_layers", **numbered._asdict())
    if CONTROL_LORA not in keys and not all(
        PLAIN_ENDINGS.issuperset(group.spellings) for group in groups.groups
    ):
        return ""
    if groups.refused:
        return next(iter(groups.refused.values())).sentence
    some = list(islice(keys, MAX_KEYS))
    for id, folder, patterns in _rules():
        if all(matching(some, pattern) for pattern in patterns):
            return message("planning.other_file", what=message(id), folder=f"models/{folder}")
    if groups.groups:
        return message("planning.whole_weights")
    return message("planning.no_known_lora") if groups.unread else ""
