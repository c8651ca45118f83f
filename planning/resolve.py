"""Finds the places a module name can mean: peels prefixes off in any order and asks the target
model for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from ..key_maps.dialect import DENOISER, ENCODER, Prefix
from ..messages import Message, message
from .target_model import Target, TargetModel

MAX_PEELS = 64  # prefixes around prefixes that are looked under; real files have four
LONGEST_MODULE = 400  # characters; the longest real one, prefixes included, has about 120
MAX_RECENT = 8  # prefixes remembered for the keys that follow


class Location(NamedTuple):
    """A module name taken apart: what was peeled off, what is left, and every
    place that can mean.
    """

    prefix: str
    name: str
    candidates: tuple[Target, ...]
    rule: str


@lru_cache(maxsize=1)  # most modules of all files have this rule
def by_name_and_shape() -> Message:
    """The rule of a module that is found as it is called."""
    return message("planning.by_name_and_shape")


def locate(
    target_model: TargetModel, module: str, recent: list[tuple[str, tuple[str, ...] | None]]
) -> Location:
    """Find the places a module name can mean, peeling known prefixes off in any order; fewest
    peeled first.

    `recent` remembers prefixes that led somewhere, so that a file's keys are not each searched for
    anew.
    """
    if len(module) > LONGEST_MODULE:
        return Location("", module, (), "")
    for prefix, networks in recent:
        if module.startswith(prefix):
            targets = target_model.find(networks, module[len(prefix) :])
            if targets:
                return Location(prefix, module[len(prefix) :], targets, by_name_and_shape())
    location = _peel(target_model, module, recent)
    if location.candidates:
        return location
    for variant in alias_names(target_model, module):
        other = _peel(target_model, variant, [])
        if other.candidates:
            return other._replace(rule=message("planning.read_as", name=variant))
    return location


def _peel(
    target_model: TargetModel, module: str, recent: list[tuple[str, tuple[str, ...] | None]]
) -> Location:
    queue: list[tuple[int, tuple[str, ...] | None]] = [(0, None)]
    deepest = 0
    for offset, networks in queue:
        name = module[offset:]
        targets = target_model.find(networks, name)
        if targets:
            if len(recent) < MAX_RECENT:
                recent.append((module[:offset], networks))
            return Location(module[:offset], name, targets, by_name_and_shape())
        for prefix in target_model.prefixes.peelable(name):
            step = (
                offset + len(prefix.text),
                networks
                if untold(target_model, prefix, networks)
                else target_model.networks_of(prefix),
            )
            if step not in queue and len(queue) < MAX_PEELS:
                queue.append(step)
                deepest = max(deepest, step[0])
    return Location(module[:deepest], module[deepest:], (), "")


def alias_names(target_model: TargetModel, module: str) -> list[str]:
    """Other readings of a name: without words that mean nothing, with endings and beginnings that
    were once spelled otherwise.
    """
    names = [module]
    for word in target_model.prefixes.inside:
        # One word may be noise where another is not: XLabs' `processor` behind torch.compile's
        # `_orig_mod`.
        names += [
            name.replace(f".{word}.", ".").replace(f"_{word}_", "_")
            for name in names
            if word in name
        ]
    for sign in target_model.prefixes.dots:
        names += [name.replace(sign, ".") for name in names if sign in name]
    for spelled, meant in target_model.prefixes.starts:
        position = module.find(spelled)
        if position == 0 or (position > 0 and module[position - 1] in "._"):
            names.append(module[:position] + meant + module[position + len(spelled) :])
    for spelled, meant in target_model.prefixes.endings:
        names += [name[: -len(spelled)] + meant for name in names if name.endswith(spelled)]
    return list(dict.fromkeys(names))[1:]


def network_named(target_model: TargetModel, module: str) -> str | None:
    """Which network a module's prefixes name: DENOISER, ENCODER (any text encoder), or None."""
    network = None
    for prefix, _ in peeled(target_model, module):
        if not untold(target_model, prefix, network):
            network = DENOISER if prefix.network == DENOISER else ENCODER
    return network


def untold(target_model: TargetModel, prefix: Prefix, told: object) -> bool:
    """Whether a prefix leaves open which network is meant; told: what those in front of it say.

    YuE2's text encoder is called as the noise `model.`, which says nothing behind a prefix that
    tells.
    """
    return prefix.network is None or (
        bool(told) and prefix.text in target_model.prefixes.noise and told != ENCODER
    )


def peeled(target_model: TargetModel, module: str) -> Iterator[tuple[Prefix, str]]:
    """The prefixes in front of a name from the first on, each the longest there, with what stands
    behind it.
    """
    for _ in range(MAX_PEELS if len(module) <= LONGEST_MODULE else 0):
        prefixes = target_model.prefixes.peelable(module)
        if not prefixes:
            return
        module = module[len(prefixes[0].text) :]
        yield prefixes[0], module
