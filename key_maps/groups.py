"""Gathers the keys of a file into modules: all roles of one adapter together, notes and unreadable keys apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .bookkeeping import bookkeeping
from .grammar import ParsedKey, parse_key

# Names that stand for a whole network: an alpha under one of them is meant for all its modules.
WHOLE_NETWORKS = frozenset({"", "transformer", "unet", "text_encoder", "text_encoder_2", "diffusion_model", "base_model.model"})
SHARED_ROLES = frozenset({"alpha", "dora_scale", "magnitude", "scalar"})


class Group(NamedTuple):
    """The keys of one module and adapter name: role -> key, and how each role is spelled."""

    module: str
    adapter_name: str
    keys: dict[str, str]
    spellings: list[str]


class Groups(NamedTuple):
    """A file's keys by module, and those that are in none."""

    groups: tuple[Group, ...]
    network_alphas: dict[str, str]  # name of a whole network -> its alpha's key
    notes: dict[str, str]  # key -> what it is, without effect by itself
    unread: tuple[str, ...]  # no role known
    repeated: dict[str, str]  # key -> the key that has the same role in the same module


def group_keys(keys: Iterable[str]) -> Groups:
    """Take every key apart and put those of one module together, in the file's order."""
    by_name: dict[tuple[str, str], Group] = {}
    notes: dict[str, str] = {}
    repeated: dict[str, str] = {}
    unread = []
    for key in keys:
        note = bookkeeping(key)
        if note:
            notes[key] = note
            continue
        parsed = parse_key(key)
        if parsed.role is None:
            unread.append(key)
        else:
            _join(by_name, key, parsed, repeated)
    alphas = _take_network_alphas(by_name)
    _give_to_named(by_name, repeated)
    return Groups(tuple(by_name.values()), alphas, notes, tuple(unread), repeated)


def _join(by_name: dict[tuple[str, str], Group], key: str, parsed: ParsedKey, repeated: dict[str, str]) -> None:
    name = (parsed.module, parsed.adapter)
    group = by_name.get(name)
    if group is None:
        group = by_name[name] = Group(parsed.module, parsed.adapter, {}, [])
    if parsed.role in group.keys:
        repeated[key] = group.keys[parsed.role]
    else:
        group.keys[parsed.role] = key
        group.spellings.append(parsed.spelling)


def _take_network_alphas(by_name: dict[tuple[str, str], Group]) -> dict[str, str]:
    alphas = {}
    for network in WHOLE_NETWORKS:
        group = by_name.get((network, ""))
        if group is not None and set(group.keys) == {"alpha"}:
            alphas[network] = group.keys["alpha"]
            del by_name[network, ""]
    return alphas


def _give_to_named(by_name: dict[tuple[str, str], Group], repeated: dict[str, str]) -> None:
    """An alpha or magnitude without an adapter's name belongs to the one named adapter of its module."""
    named: dict[str, list[Group]] = {}
    for (module, adapter), group in by_name.items():
        if adapter:
            named.setdefault(module, []).append(group)
    for module, others in named.items():
        lone = by_name.get((module, ""))
        if lone is None or len(others) != 1 or lone.keys.keys() - SHARED_ROLES:
            continue
        for role, key in lone.keys.items():
            kept = others[0].keys.setdefault(role, key)
            if kept != key:
                repeated[key] = kept
        del by_name[module, ""]
