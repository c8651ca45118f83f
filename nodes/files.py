"""The LoRA files a node can be given, by the names the host lists them under."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import folder_paths
import torch

from ..key_maps.user_maps import UserMaps, own_maps_stamp
from ..lora.io.mapped import header_of
from ..messages import as_sentence, message
from ..report.listing import stamp_of
from . import host
from .faults import NodeError, noted

OWN_MAPS_FOLDER = "lora-locksmith"


class MadeFiles:
    """The files that a node type made, by what was wished. One that is gone when its node is about
    to run again is made again, and not told from the cache.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Path] = {}
        self._lost: Counter[Hashable] = Counter()

    def note(self, wish: Hashable, path: Path) -> None:
        """The file was made for this wish."""
        self._made[wish] = path

    def times_lost(self, wish: Hashable) -> int:
        """How often what was made for this wish was gone."""
        path = self._made.get(wish)
        if path and not path.exists():
            self._lost[wish] += 1
            del self._made[wish]
        return self._lost[wish]


def lora_names() -> list[str]:
    """The files in the loras folders, as the host lists them."""
    return folder_paths.get_filename_list("loras")


def spellings(name: str) -> tuple[str, ...]:
    """A name and how other systems write it: workflows travel, and Windows separates folders the
    other way.
    """
    return tuple(dict.fromkeys((name, name.replace("\\", "/"), name.replace("/", "\\"))))


def listed_name(lora_name: str) -> str:
    """The name the host lists a LoRA file under, whichever system's separators it is given with; as
    it is, where there is none.
    """
    listed = frozenset(lora_names())
    known = [name for name in spellings(lora_name) if name in listed]
    known += [
        name
        for name in spellings(lora_name)
        if folder_paths.get_full_path("loras", name) is not None
    ]
    return known[0] if known else lora_name


def lora_path(lora_name: str) -> str:
    """The path of a LoRA file by its name in the loras folders; NodeError where it is gone."""
    path = folder_paths.get_full_path("loras", listed_name(lora_name))
    if path is None:
        raise NodeError(as_sentence(message("nodes.lora_not_listed", name=lora_name)))
    return path


def wired_lora(lora: Any) -> host.LoraFile:
    """A LORA_MODEL as another node gives it; NodeError for what is none."""
    if not isinstance(lora, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in lora.items()
    ):
        raise NodeError(message("nodes.not_a_lora_model"))
    return host.LoraFile(lora, header_of(lora), None)


def lora_is_listed(lora_name: str | None) -> bool | str:
    """True, or what is wrong with a name that is not in the loras folders, and the remedy; None:
    another node makes it.
    """
    if (
        lora_name is not None
        and folder_paths.get_full_path("loras", listed_name(lora_name)) is None
    ):
        return noted(message("nodes.lora_not_listed", name=lora_name))
    return True


def lora_changed(lora_name: str | None) -> tuple:
    """Changes when the file, or one of the user's own maps, changes on disk; always, where another
    node makes the name.
    """
    if lora_name is None:
        return (float("nan"),)  # a new one each time: the same one would count as equal
    path = folder_paths.get_full_path("loras", listed_name(lora_name))
    return (lora_name, stamp_of(path), own_stamp()) if path else (lora_name,)


def own_maps() -> UserMaps:
    """The user's own tables and records."""
    return host.own_maps(own_folder())


def own_folder() -> Path:
    """Where a user's own tables and records are."""
    return Path(folder_paths.get_user_directory(), OWN_MAPS_FOLDER)


def own_stamp() -> tuple:
    """Changes when one of them changes on disk."""
    return own_maps_stamp(own_folder())
