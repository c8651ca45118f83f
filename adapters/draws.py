"""Places as torch draws them from a seed: the first numbers of torch.randperm(total,
generator=torch.Generator().manual_seed(seed)).

Source: ATen/native/TensorFactories.cpp randperm_cpu and ATen/core/MT19937RNGEngine.h, torch 2.13.
It draws from the Mersenne Twister (mt19937, initialised by one number) and exchanges entry i with
entry i + draw % (total - i), so that the first entries need the first draws alone: no list of all
entries is made, and another version of torch does not change what a file means.
"""

from __future__ import annotations

import random
from functools import lru_cache

from ..messages import message

MAX_PLACES = (2**32 - 1) // 20  # from here on newer versions of torch draw 64 bits in place of 32
BITS = 2**32 - 1


def check_places(total: int, count: int) -> None:
    """ValueError for more places than there are, or than all versions of torch draw alike."""
    if not 0 <= count <= total or total >= MAX_PLACES:
        raise ValueError(message("adapters.too_many_places", places=count, total=f"{total:,}"))


@lru_cache(maxsize=32)
def first_places(seed: int, total: int, count: int) -> tuple[int, ...]:
    """The first `count` of a permutation of range(total). Raises ValueError as
    check_places does.
    """
    check_places(total, count)
    twister = _twister(seed)
    moved: dict[int, int] = {}
    for place in range(min(count, total - 1)):
        other = place + twister.getrandbits(32) % (total - place)
        moved[place], moved[other] = moved.get(other, other), moved.get(place, place)
    return tuple(moved.get(place, place) for place in range(count))


def _twister(seed: int) -> random.Random:
    """The Mersenne Twister as one number initialises it; Python's own seed
    initialises by an array.
    """
    state = [seed & BITS]
    for index in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + index) & BITS)
    twister = random.Random()
    twister.setstate((3, (*state, 624), None))
    return twister
