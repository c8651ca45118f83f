"""Finds the places a module name can mean: peels wrappers off in any order and asks the site for
the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..key_maps.dialect import DENOISER, ENCODER, Wrapper
from .target_model import Candidate, Site

MOST_PEELS = 64  # wrappers around wrappers that are looked under; real files have four
LONGEST_MODULE = 400  # characters; the longest real one, wrappers included, has about 120
MOST_RECENT = 8  # wrappers remembered for the keys that follow


class Location(NamedTuple):
    """A module name taken apart: what was peeled off, what is left, and every
    place that can mean.
    """

    wrapper: str
    name: str
    candidates: tuple[Candidate, ...]
    rule: str


def locate(site: Site, module: str, recent: list[tuple[str, tuple[str, ...] | None]]) -> Location:
    """Find the places a module name can mean, peeling known wrappers off in any order; fewest
    peeled first.

    `recent` remembers wrappers that led somewhere, so that a file's keys are not each searched for
    anew.
    """
    if len(module) > LONGEST_MODULE:
        return Location("", module, (), "")
    for wrapper, components in recent:
        if module.startswith(wrapper):
            found = site.find(components, module[len(wrapper) :])
            if found:
                return Location(wrapper, module[len(wrapper) :], found, "name and shape")
    location = _peel(site, module, recent)
    if location.candidates:
        return location
    for variant in readings(site, module):
        other = _peel(site, variant, [])
        if other.candidates:
            return other._replace(rule=f"read as {variant}")
    return location


def _peel(site: Site, module: str, recent: list[tuple[str, tuple[str, ...] | None]]) -> Location:
    queue: list[tuple[int, tuple[str, ...] | None]] = [(0, None)]
    deepest = 0
    for offset, components in queue:
        name = module[offset:]
        found = site.find(components, name)
        if found:
            if len(recent) < MOST_RECENT:
                recent.append((module[:offset], components))
            return Location(module[:offset], name, found, "name and shape")
        for wrapper in site.wrappers.peelable(name):
            step = (
                offset + len(wrapper.text),
                site.components_of(wrapper) if wrapper.component else components,
            )
            if step not in queue and len(queue) < MOST_PEELS:
                queue.append(step)
                deepest = max(deepest, step[0])
    return Location(module[:deepest], module[deepest:], (), "")


def readings(site: Site, module: str) -> list[str]:
    """Other readings of a name: without words that mean nothing, with endings and beginnings that
    were once spelled otherwise.
    """
    found = [module]
    for word in site.wrappers.inside:
        # One word may be noise where another is not: XLabs' `processor` behind torch.compile's
        # `_orig_mod`.
        found += [
            name.replace(f".{word}.", ".").replace(f"_{word}_", "_")
            for name in found
            if word in name
        ]
    for spelled, meant in site.wrappers.starts:
        position = module.find(spelled)
        if position == 0 or (position > 0 and module[position - 1] in "._"):
            found.append(module[:position] + meant + module[position + len(spelled) :])
    for spelled, meant in site.wrappers.endings:
        found += [name[: -len(spelled)] + meant for name in found if name.endswith(spelled)]
    return list(dict.fromkeys(found))[1:]


def network_told(site: Site, module: str) -> str | None:
    """Which network a module's wrappers name: DENOISER, ENCODER (any text encoder), or None."""
    told = None
    for wrapper, _ in peeled(site, module):
        if wrapper.component is not None:
            told = DENOISER if wrapper.component == DENOISER else ENCODER
    return told


def peeled(site: Site, module: str) -> Iterator[tuple[Wrapper, str]]:
    """The wrappers in front of a name from the first on, each the longest there, with what stands
    behind it.
    """
    for _ in range(MOST_PEELS if len(module) <= LONGEST_MODULE else 0):
        wrappers = site.wrappers.peelable(module)
        if not wrappers:
            return
        module = module[len(wrappers[0].text) :]
        yield wrappers[0], module
