"""Which layers a file trains, block by block: the model's modules as a matrix of blocks and kinds
of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..identify.lora_family import LONGEST_NUMBER
from ..key_maps.layer_words import LayerWords, blocks_in, layer_words
from ..key_maps.table import flatten, numbered
from ..messages import Message, joined, message
from ..planning.plan import Adapter, Plan
from ..planning.target_model import Network

NONE, PART, ALL = "0", "1", "2"


class Layer(NamedTuple):
    """A module's place: the blocks it is in ("": none), the number of its block (0 outside of
    blocks), and what it is in there.
    """

    blocks: str
    number: int
    kind: str


class LayerKind(NamedTuple):
    """One kind of layer: for each block "0" untrained, "1" some of its rows, "2" all; the ranks
    that were used, and those of each block where they are not the same in all that are trained.
    """

    name: str
    trained: str
    ranks: tuple[int, ...]
    block_ranks: tuple[tuple[int, ...], ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether it is trained in some block."""
        return is_trained(self.trained)


class TrainedBlocks(NamedTuple):
    """All blocks of one name, with the kinds of layers in them; `name` "" holds what is in no
    block.
    """

    name: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not asked here
    kinds: tuple[LayerKind, ...]

    def layer(self, kind: LayerKind) -> str:
        """The modules of a kind by one name, with {} for the block."""
        return f"{self.name}.{{}}.{kind.name}" if self.name else kind.name

    def words(self, kind: LayerKind) -> LayerWords | None:
        """What the name of a kind says, for people; None where it is not understood."""
        return layer_words(kind.name, self.name)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        kinds = [self._kind_as_dict(kind) for kind in self.kinds]
        return {"name": self.name, "count": self.count, "kinds": kinds}

    def _kind_as_dict(self, kind: LayerKind) -> dict[str, Any]:
        words = self.words(kind)
        told = {
            "name": kind.name,
            "trained": kind.trained,
            "ranks": list(kind.ranks),
            "words": words.text if words else "",
        }
        if kind.block_ranks:
            told["block_ranks"] = [list(ranks) for ranks in kind.block_ranks]
        return told


class TrainedLayers(NamedTuple):
    """What a file trains of one network."""

    network: str
    title: str
    modules: int
    blocks: tuple[TrainedBlocks, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "component": self.network,
            "title": self.title,
            "modules": self.modules,
            "blocks": [blocks.as_dict() for blocks in self.blocks],
        }


def trained_layers(plan: Plan) -> list[TrainedLayers]:
    """One matrix for each network the file touches, in the target model's order."""
    layers = []
    for name, network in plan.target_model.networks.items():
        adapters = [adapter for adapter in plan.adapters if adapter.target.network == name]
        if adapters:
            rows, ranks = _rows_trained(adapters)
            modules = len({adapter.module for adapter in adapters})
            title = network.family.title if network.family else name
            layers.append(TrainedLayers(name, title, modules, tuple(_matrix(network, rows, ranks))))
    return layers


def untrained_kinds(layers: Sequence[TrainedLayers]) -> list[str]:
    """Kinds of layers a file trains in no block, named by their module with {} for the block, for
    the networks it touches.
    """
    return [
        blocks.layer(kind)
        for trained in layers
        for blocks in trained.blocks
        for kind in blocks.kinds
        if not kind.is_trained
    ]


def untrained_words(layers: Sequence[TrainedLayers]) -> list[Message]:
    """The same for people, one text for each name of blocks: "image modulation in double_blocks".

    What is not understood is called by its name, and so is what would be called as something that
    is trained.
    """
    told = []
    for trained in layers:
        groups: dict[str, list[Called]] = {}
        for blocks in trained.blocks:
            for kind in blocks.kinds:
                whole = blocks.layer(kind)
                place = blocks_in(whole) or blocks.name
                name = kind.name if place == blocks.name else whole
                called = Called(name, blocks.words(kind), kind.is_trained)
                groups.setdefault(place, []).append(called)
        for place, kinds in groups.items():
            names = _never_trained(kinds)
            if names and place:
                told.append(message("layers.in_blocks", names=joined(names), blocks=place))
            elif names:
                told.append(joined(names))
    return told


class Called(NamedTuple):
    """A kind of layer by its name, and what that says."""

    name: str
    words: LayerWords | None
    is_trained: bool


def _never_trained(kinds: Sequence[Called]) -> list[str]:
    """What to call those that are trained nowhere: a part of the model as a whole where nothing of
    it is trained.
    """
    trained = [words for _, words, is_trained in kinds if words and is_trained]
    parts, texts = {words.part for words in trained}, {words.text for words in trained}
    names: list[str] = []
    listed: dict[str, list[str]] = {}
    for name, words, is_trained in kinds:
        if is_trained:
            continue
        if words is None or words.text in texts:
            names.append(name)
        elif words.part not in parts or not words.which:
            names.append(words.part)
        else:
            listed.setdefault(words.part, []).append(message(f"layers.{words.which}"))
    for part, layers in listed.items():
        names.append(message("layers.listed", part=part, which=joined(dict.fromkeys(layers))))
    return list(dict.fromkeys(names))


def is_trained(choice: str) -> bool:
    """Whether a string of marks (Kind.trained) has any block that is trained."""
    return bool(choice.strip(NONE))


def blocks_of(choice: str) -> Message:
    """Which blocks a string of marks means: "all", "blocks 0-5, 8"; says where only rows are
    trained.
    """
    trained = [number for number, mark in enumerate(choice) if mark != NONE]
    part = all(choice[number] != ALL for number in trained)
    if len(trained) == len(choice):
        return message("inspect.all_blocks_part" if part else "inspect.all_blocks")
    return message(
        "inspect.some_blocks_part" if part else "inspect.some_blocks",
        numbers=runs(trained),
        count=len(trained),
    )


def runs(numbers: Iterable[int]) -> str:
    """Numbers in words: "0-3, 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _rows_trained(adapters: Iterable[Adapter]) -> tuple[dict[str, int | None], dict[str, set[int]]]:
    """(weight -> rows that are trained, None: all), (weight -> ranks)."""
    rows: dict[str, int | None] = {}
    ranks: dict[str, set[int]] = {}
    for adapter in adapters:
        for weight, piece, _ in adapter.target.slices:
            before = rows.get(weight, 0)
            rows[weight] = None if piece is None or before is None else before + piece.length
            known = ranks.setdefault(weight, set())
            if adapter.rank is not None:
                known.add(adapter.rank)
    return rows, ranks


def _matrix(
    network: Network, rows: Mapping[str, int | None], ranks: Mapping[str, set[int]]
) -> list[TrainedBlocks]:
    marks: dict[str, dict[str, dict[int, str]]] = {}
    used: dict[tuple[str, str], dict[int, set[int]]] = {}
    for weight, layer in layers(network).items():
        mark = _mark(rows.get(weight, 0), network.weights[weight])
        if mark == NONE and (weight in network.optional or len(network.weights[weight]) < 2):
            continue
        marks.setdefault(layer.blocks, {}).setdefault(layer.kind, {})[layer.number] = mark
        of_kind = used.setdefault((layer.blocks, layer.kind), {})
        if mark != NONE:
            of_kind.setdefault(layer.number, set()).update(ranks.get(weight, ()))
    return [_blocks(name, kinds, used) for name, kinds in marks.items()]


def _blocks(
    name: str,
    kinds: Mapping[str, Mapping[int, str]],
    used: Mapping[tuple[str, str], Mapping[int, set[int]]],
) -> TrainedBlocks:
    count = 1 + max(max(numbers) for numbers in kinds.values()) if name else 1
    listed = [
        LayerKind(
            kind,
            "".join(numbers.get(number, NONE) for number in range(count)),
            tuple(sorted(set().union(*used[name, kind].values()))),
            _block_ranks(used[name, kind], count),
        )
        for kind, numbers in kinds.items()
    ]
    return TrainedBlocks(name, count if name else 0, tuple(listed))


def _block_ranks(used: Mapping[int, set[int]], count: int) -> tuple[tuple[int, ...], ...]:
    """For each block its ranks; nothing where all that are trained have the same."""
    if len({frozenset(ranks) for ranks in used.values()}) < 2:
        return ()
    return tuple(tuple(sorted(used.get(number, ()))) for number in range(count))


def _mark(rows: int | None, shape: Sequence[int]) -> str:
    if rows is None or (shape and rows >= shape[0] > 0):
        return ALL
    return PART if rows else NONE


_layers: WeakKeyDictionary[Network, dict[str, Layer]] = WeakKeyDictionary()


def layers(network: Network) -> dict[str, Layer]:
    """Where every weight of a network is; biases left out. Remembered, because networks are
    used again.
    """
    layers = _layers.get(network)
    if layers is None:
        weights = [
            (module, weight)
            for module, weight in network.modules.items()
            if not weight.endswith(".bias")
        ]
        layers = _layers[network] = {weight: _layer(network, module) for module, weight in weights}
    return layers


def _layer(network: Network, module: str) -> Layer:
    """By the family's own {}; by the first number that stands alone where no table knows the
    module.
    """
    for match in network.family.find(flatten(module)) if network.family else ():
        if match.alternative < 0 and match.native[0] == module:
            places = numbered(match.row.native[0], module)
            if not places or len(places[0][1]) >= LONGEST_NUMBER:
                return Layer("", 0, module)
            blocks, number = places[0]
            return Layer(blocks, int(number), module[len(blocks) + len(number) + 2 :])
    words = module.split(".")
    place = next(
        (
            i
            for i, word in enumerate(words[:-1])
            if word.isdecimal() and i and len(word) < LONGEST_NUMBER
        ),
        None,
    )
    if place is None:
        return Layer("", 0, module)
    return Layer(".".join(words[:place]), int(words[place]), ".".join(words[place + 1 :]))
