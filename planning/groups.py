"""Gathers the keys of a file into modules: all roles of one adapter together, notes and unreadable
keys apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..adapters.registry import kinds, magnitudes
from ..adapters.spec import NUMBERS
from ..messages import message
from .ignored_keys import bookkeeping
from .keys import parse_key, role_spellings
from .not_computed import Known, not_computed
from .orientation import orient

# Names that stand for a whole network: an alpha under one of them is meant for all its modules.
WHOLE_NETWORKS = frozenset(
    {
        "",
        "transformer",
        "unet",
        "text_encoder",
        "text_encoder_2",
        "diffusion_model",
        "base_model.model",
    }
)
SHARED_ROLES = frozenset({*NUMBERS, *magnitudes()})

# PEFT (0.21.2 tuners_utils.py _get_learnable_bias_state_dict) saves a wrapped layer's bias where it
# was trained, and nothing else of it.
WRAPPED = "base_layer"
TRAINED_BIAS = f"{WRAPPED}.bias"
# with bias = "all", PEFT saves the bias of a layer in modules_to_save under both names
SAVED_AGAIN = ".modules_to_save."


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
    refused: Mapping[str, Known] = {}  # key -> the adapter that it is of, which is not computed


def network_alpha(alphas: Mapping[str, str], prefix: str) -> str | None:
    """The key of the alpha that is meant for all modules behind a prefix: of its network, or the
    only one there is.
    """
    return next(
        (
            key
            for network, key in alphas.items()
            if len(alphas) == 1 or prefix.startswith(f"{network}.")
        ),
        None,
    )


def group_keys(keys: Mapping[str, Any], told: Iterable[str] = ()) -> Groups:
    """Take every key apart and put those of one module together, in the file's order.

    keys: with their shapes, or what has one, which say of bare factors which way round they lie.
    told: the keys of the file's metadata and settings, which say it where shapes do not.
    """
    by_name: dict[tuple[str, str], Group] = {}
    notes: dict[str, str] = {}
    repeated: dict[str, str] = {}
    unread: list[str] = []
    refused: dict[str, Known] = {}
    final = role_spellings().final
    group = None
    role: str | None
    for key in keys:
        # A plain up or down factor, as most keys are, is known by its last two words and cannot be
        # a note.
        dot = key.rfind(".", 0, key.rfind("."))
        spelling = key[dot + 1 :]
        ending = final.get(spelling)
        if ending is not None and dot > 0 and spelling[:4] == "lora" and "base_layer" not in key:
            module, adapter, role = key[:dot], "", ending[0]
        else:
            note = bookkeeping(key)
            if note:
                notes[key] = note
                continue
            known = not_computed(key)
            if known is not None:
                refused[key] = known
                continue
            module, adapter, role, spelling = parse_key(key)
            if role is None:
                unread.append(key)
                continue
        # A file's keys are sorted: most belong to the same module as the key before.
        if group is None or module != group.module or adapter != group.adapter_name:
            group = by_name.get((module, adapter))
            if group is None:
                group = by_name[module, adapter] = Group(module, adapter, {}, [])
        if role in group.keys:
            repeated[key] = group.keys[role]
        else:
            group.keys[role] = key
            group.spellings.append(spelling)
    _take_copies(by_name, notes, repeated)
    alphas = _take_network_alphas(by_name)
    orient((group.keys for group in by_name.values()), keys, told)
    _give_shared(by_name, notes)
    _give_to_named(by_name, repeated)
    return Groups(tuple(by_name.values()), alphas, notes, tuple(unread), repeated, refused)


def _take_copies(
    by_name: dict[tuple[str, str], Group], notes: dict[str, str], repeated: dict[str, str]
) -> None:
    """Note what PEFT copied: a bias beside other tensors of its wrapped layer is the base model's,
    not a trained one.
    """
    for key in [key for key in repeated if SAVED_AGAIN in key]:
        notes[key] = message("planning.second_copy", other=repeated.pop(key))
    copied = {key.partition(f".{WRAPPED}.")[0] for key in notes if f".{WRAPPED}." in key}
    for name, group in list(by_name.items()) if copied else ():
        if TRAINED_BIAS in group.spellings and group.module in copied:
            notes[group.keys.pop("bias")] = message("planning.copied_bias")
            group.spellings.remove(TRAINED_BIAS)
            if not group.keys:
                del by_name[name]


def _take_network_alphas(by_name: dict[tuple[str, str], Group]) -> dict[str, str]:
    alphas = {}
    for network in WHOLE_NETWORKS:
        group = by_name.get((network, ""))
        if group is not None and set(group.keys) == {"alpha"}:
            alphas[network] = group.keys["alpha"]
            del by_name[network, ""]
    return alphas


def _give_shared(by_name: dict[tuple[str, str], Group], notes: dict[str, str]) -> None:
    """Tensors that stand once in a file are of every adapter that uses them; notes those of which
    each adapter has its own copy.
    """
    for kind in kinds():
        whole = (
            [name for name, group in by_name.items() if group.keys.keys() <= kind.shared]
            if kind.shared
            else ()
        )
        own = {role for need in kind.needs for role in need} - kind.shared if whole else ()
        users = (
            [group for group in by_name.values() if not group.keys.keys().isdisjoint(own)]
            if whole
            else ()
        )
        for name in whole if users else ():
            for role, key in by_name.pop(name).keys.items():
                if key not in [group.keys.setdefault(role, key) for group in users]:
                    notes[key] = message("planning.copied_to_each")


def _give_to_named(by_name: dict[tuple[str, str], Group], repeated: dict[str, str]) -> None:
    """An alpha or magnitude without an adapter's name belongs to the one named adapter of its
    module.
    """
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
