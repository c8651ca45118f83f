"""Which published size of a family a file or a model is of, by shapes and numbers of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from ..key_maps.table import Family, flatten

# share of the patterns with known shapes that must agree with the sizes of one published variant
MIN_AGREEING = 0.5
MAX_ODD = 0.25  # share of them that may have other sizes than the variant that is named


class BlockCount(NamedTuple):
    """The blocks of one name that a file trains: highest number + 1, and whether most of those
    below are there too.
    """

    depth: int
    complete: bool


class RowFit(NamedTuple):
    """What a sample can be in a family: whether a row fits, and the sizes of the family's symbols
    that each row would have.
    """

    fits: bool
    sizes: tuple[Mapping[str, int], ...]
    plain: bool = True  # as it is spelled, and not read otherwise


NO_MEANING = RowFit(False, ())


def published(family: Family) -> tuple[str, ...]:
    """The published variants, ("",) where there is one size. Numbers of blocks that are stated
    without a variant hold for all; they are none themselves.
    """
    by_blocks = tuple(filter(None, family.blocks))
    sized = family.sizes.keys()
    if sized == {""} and by_blocks:
        return by_blocks  # of one size, told apart by the number of their blocks
    return tuple(dict.fromkeys((*family.sizes, *by_blocks))) or ("",)


def sizes_of(family: Family, variant: str) -> Mapping[str, int]:
    """The sizes of a published variant; those that are stated without one hold for all."""
    return family.sizes.get(variant, family.sizes.get("", {}))


def blocks_of(family: Family, variant: str) -> Mapping[str, int]:
    """The numbers of blocks of a published variant; numbers stated without a
    variant hold for all.
    """
    return {**family.blocks.get("", {}), **family.blocks.get(variant, {})}


def stated(family: Family) -> set[str]:
    """The symbols whose sizes the family's table states."""
    return {symbol for sizes in family.sizes.values() for symbol in sizes}


def same_blocks(variant: Mapping[str, int], counts: Mapping[str, BlockCount]) -> bool:
    """Whether a variant with these numbers of blocks has just as many; files that train a few
    blocks only do not tell.
    """
    trained = {name: depth for name, depth in variant.items() if flatten(name) in counts}
    return bool(trained) and all(
        counts[flatten(name)] == (depth, True) for name, depth in trained.items()
    )


def too_few(variant: Mapping[str, int], counts: Mapping[str, BlockCount]) -> bool:
    """Whether a variant with these numbers of blocks has fewer than the file trains."""
    return any(
        counts[flatten(name)].depth > depth
        for name, depth in variant.items()
        if flatten(name) in counts
    )


def contradicted(sizes: Mapping[str, int], meanings: Iterable[RowFit]) -> int:
    """How many samples have no meaning that agrees with the sizes."""
    return sum(
        not any(
            all(sizes.get(symbol, number) == number for symbol, number in solved.items())
            for solved in meaning.sizes
        )
        for meaning in meanings
    )


def agreeing(family: Family, meanings: Iterable[RowFit]) -> list[str]:
    """The variants in the table's @sizes that agree with most of the shapes that tell any of the
    family's sizes; the best first.
    """
    symbols = stated(family)
    telling = [meaning for meaning in meanings if not meaning.sizes or _tells(meaning, symbols)]
    faults = {variant: contradicted(sizes, telling) for variant, sizes in family.sizes.items()}
    most = (1 - MIN_AGREEING) * len(telling)
    return sorted((name for name in faults if faults[name] <= most), key=faults.__getitem__)


def agrees(family: Family, meanings: Sequence[RowFit]) -> bool:
    """Whether the shapes are those of a published variant."""
    return not family.sizes or bool(agreeing(family, meanings))


def possible(
    family: Family, meanings: Iterable[RowFit], depths: Mapping[str, BlockCount]
) -> list[str]:
    """The published variants that have the shapes and no fewer blocks than are trained."""
    sized = agreeing(family, meanings) if family.sizes else ()

    def has_shapes(variant: str) -> bool:
        sizes = variant if variant in family.sizes else ""
        return sizes in sized or sizes not in family.sizes

    return [
        variant
        for variant in published(family)
        if has_shapes(variant) and not too_few(blocks_of(family, variant), depths)
    ]


def _tells(meaning: RowFit, symbols: Set[str]) -> bool:
    """Whether a sample tells the size of any of these symbols."""
    return any(not symbols.isdisjoint(solved) for solved in meaning.sizes)


def told_variant(
    family: Family, meanings: Iterable[RowFit], depths: Mapping[str, BlockCount]
) -> str:
    """The one published variant against which least speaks; "" where several are left, where all
    have other sizes, and where the family has one only.

    meanings: of the samples whose shapes are known; a few odd ones, such as modules that no table
    knows, do not hide the size of all others. depths: the numbers of blocks.
    """
    variants = published(family)
    if len(variants) == 1:
        return variants[0]
    sized = stated(family)
    told = [meaning for meaning in meanings if _tells(meaning, sized)]
    odd = {
        one: contradicted(sizes_of(family, one), told)
        for one in variants
        if not too_few(blocks_of(family, one), depths)
    }
    fewest = min(odd.values(), default=0)
    left = [one for one in odd if odd[one] == fewest]
    if fewest:
        shares = [sum(_tells(each, sizes_of(family, one).keys()) for each in told) for one in left]
        left = [one for one, count in zip(left, shares, strict=True) if fewest <= MAX_ODD * count]
    symbols = {symbol for meaning in told for solved in meaning.sizes for symbol in solved}
    left = _most(left, [len(symbols & sizes_of(family, one).keys()) for one in left])
    left = _most(left, [same_blocks(blocks_of(family, one), depths) for one in left])
    return left[0] if len(left) == 1 else ""


def _most(variants: Sequence[str], ranks: Sequence[int]) -> list[str]:
    best = max(ranks, default=0)
    return [one for one, rank in zip(variants, ranks, strict=True) if rank == best]


def titled(family: Family, variant: str) -> str:
    """What people call a variant of a family; one that begins with the family's title is all of
    it.
    """
    if not variant:
        return family.title
    return variant if variant.startswith(family.title) else f"{family.title} {variant}"


def faults(
    family: Family, variant: str, depths: Mapping[str, BlockCount], meanings: Sequence[RowFit]
) -> tuple[bool, int, bool]:
    """What speaks against one variant: too few blocks, samples of other sizes, another number of
    blocks.
    """
    blocks = blocks_of(family, variant)
    odd = contradicted(sizes_of(family, variant), meanings)
    return too_few(blocks, depths), odd, not same_blocks(blocks, depths)
