"""Tells without ComfyUI which keys of a file ComfyUI's stock loader would use, by what stock.table
says of its key map and its adapters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import lru_cache
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..errors import LocksmithError, at_line
from ..key_maps import KEY_MAPS
from ..key_maps.dialect import DENOISER
from ..key_maps.lines import lines_of, read_text
from ..key_maps.table import fill, flatten
from ..messages import message, text_of
from ..planning.plan import SHAPE_CONFLICT, Plan
from ..planning.target_model import ModuleNames, Network, TargetModel

STOCK_TABLE = KEY_MAPS / "stock.table"
WEIGHT = ".weight"
TRANSFORMER = ".transformer."
Shapes = Mapping[str, "tuple[int, ...] | None"]


class StockKeys(frozenset[str]):
    """The keys of a file that the stock loader uses; none where it raises instead, and `fails` says
    why ("" where it does not).

    failing: those of them whose weights do not fit: the host logs an error for each while it
    samples, and leaves the model's weight as it is.
    """

    fails: str = ""
    failing: frozenset[str] = frozenset()

    @classmethod
    def of(cls, keys: Iterable[str], failing: Iterable[str]) -> StockKeys:
        """The answer for a file that the stock loader loads."""
        answer = cls(keys)
        answer.failing = answer.intersection(failing)
        return answer

    @classmethod
    def raising(cls, reason: str) -> StockKeys:
        """The answer for a file that the stock loader raises on."""
        answer = cls()
        answer.fails = reason
        return answer


class StockRaises(LocksmithError):
    """What of a file makes the stock loader raise."""


class Names(NamedTuple):
    """A line of a key map: what stands in front of which names, and how they are spelled."""

    prefix: str
    names: str
    flat: bool
    replaced: tuple[tuple[str, str], ...]


class KeyMap(NamedTuple):
    """Names that stock knows of some models or text encoders, and what else the model or the CLIP
    must have for that.
    """

    encoder: bool
    owners: frozenset[str]  # families or slots; "*" is any
    needs: frozenset[str]
    lacks: frozenset[str]
    excepted: frozenset[str]
    alone: bool
    lines: list[Names]

    def holds(self, name: str, present: Iterable[str], slots: Sequence[str]) -> bool:
        """Whether it is for this family or slot, with these modules or slots present."""
        if name in self.excepted or (name not in self.owners and "*" not in self.owners):
            return False
        return (
            self.needs <= set(present)
            and self.lacks.isdisjoint(present)
            and not (self.alone and len(slots) != 1)
        )


class Block(NamedTuple):
    """Names of a list: `names` behind each of `stems` for every place its anchor has in the model;
    no stems: by themselves.
    """

    # (template, native anchor or "" where the family's table tells).
    stems: tuple[tuple[str, str], ...]
    names: list[str]


class SplitRule(NamedTuple):
    """Endings that are read together: stock looks for `leads`, raises without `must`, and reads
    `may` where they stand.
    """

    section: str
    kind: str
    leads: tuple[str, ...]
    must: tuple[str, ...]
    may: tuple[str, ...]


class StockConversion(NamedTuple):
    """How stock renames all keys of a file that has those of `when`."""

    when: list[str]
    must: list[str]
    sizes: list[tuple[str, str]]  # key -> the fewest dimensions it must have
    begins: list[tuple[str, str]]
    replaces: list[tuple[str, str]]
    before: list[str]
    makes: list[str]


class Stock(NamedTuple):
    """stock.table as it was read."""

    maps: list[KeyMap]
    lists: dict[str, list[Block]]
    bare: dict[str, set[str]]  # family -> last words of parameters that are no module's weight
    recipes: list[SplitRule]
    read: set[str]
    checked: dict[str, frozenset[int] | None]
    conversions: list[StockConversion]
    endings: dict[str, tuple[str, ...]]  # last word or last two words -> endings


class StockMatch(NamedTuple):
    """What stock reads of the endings of one module, as places in their order."""

    taken: tuple[int, ...]  # where the file has an adapter anywhere
    alone: tuple[int, ...]  # where it has none
    adapter: bool
    missing: str  # the ending without which stock raises, "" where none is missing
    # Endings that count by their tensor: its dimensions, None for one number.
    checked: tuple[tuple[int, frozenset[int] | None], ...]


def stock_placed(plan: Plan) -> StockKeys:
    """The keys of the plan's file that the stock loader of ComfyUI 0.30 would use in patches on the
    plan's target model.

    As in nodes/host.py: a name counts though the model lacks its weight, for stock maps names
    alone. None where the stock loader raises. A family that stock.table does
    not name, a user's own among them, is known by its native names only.
    """
    try:
        misfits = (
            key for key, outcome in plan.outcomes.items() if outcome.category == SHAPE_CONFLICT
        )
        return StockKeys.of(_placed_by_stock(plan), misfits)
    except StockRaises as fault:
        return StockKeys.raising(text_of(fault))


def missing(key: str) -> str:
    """Why the stock loader raises where it takes a key for granted."""
    return message("identify.key_missing", key=key)


def _placed_by_stock(plan: Plan) -> list[str]:
    known = [
        _names_of(network, plan.target_model) for network in plan.target_model.networks.values()
    ]
    for conversion in stock_table().conversions:
        if all(key in plan.shapes for key in conversion.when):
            _check_conversion(conversion, plan.shapes)
            renamed = _renamed(plan.shapes, conversion)
            shapes = {name: plan.shapes[key] for name, key in renamed.items()}
            return [renamed[name] for name in _placed(_split(renamed, known, {}), shapes)]
    modules: dict[str, list[str]] = {}
    for adapter in plan.adapters:
        # Only what stock knows is looked at closely: of many files that is nothing.
        for names in known:
            if adapter.module in names:
                modules.setdefault(adapter.module, []).extend(adapter.roles.values())
                break
    left = [key for key, outcome in plan.outcomes.items() if outcome.adapter is None]
    return _placed(_split(left, known, modules), plan.shapes)


def _check_conversion(conversion: StockConversion, shapes: Shapes) -> None:
    for key in conversion.must:
        if key not in shapes:
            raise StockRaises(missing(key))
    for key, fewest in conversion.sizes:
        shape = shapes[key]
        if shape is not None and len(shape) < int(fewest):
            raise StockRaises(message("identify.too_few_dimensions", key=key, fewest=fewest))


def _placed(modules: Mapping[str, list[str]], shapes: Shapes) -> list[str]:
    """The keys stock uses of those gathered by module name, prefix included; all these names are
    in its key map. Raises StockRaises.
    """
    taken: list[str] = []
    alone: list[str] = []
    adapters = False
    for module, keys in modules.items():
        size = len(module)
        reading = _reading(tuple([key[size:] for key in keys]))
        passed_over = set()
        for place, dimensions in reading.checked:
            key, shape = keys[place], shapes[keys[place]] or ()
            # An adapter may use an alpha that is not its module's but its whole network's.
            if not key.startswith(module) or (
                dimensions is not None and len(shape) not in dimensions
            ):
                passed_over.add(key)
            elif dimensions is None and shape and prod(shape) != 1:
                raise StockRaises(message("identify.several_numbers", key=key, count=prod(shape)))
        if passed_over:
            keys = [key for key in keys if key not in passed_over]
            reading = _reading(tuple([key[size:] for key in keys]))
        if reading.missing:
            raise StockRaises(missing(module + reading.missing))
        adapters = adapters or reading.adapter
        taken += (
            keys if len(reading.taken) == len(keys) else [keys[place] for place in reading.taken]
        )
        alone += [keys[place] for place in reading.alone] if reading.alone else ()
    return taken if adapters else alone


def _split(
    keys: Iterable[str], known: Sequence[frozenset[str]], modules: dict[str, list[str]]
) -> dict[str, list[str]]:
    """Enter those of the keys that end as stock reads under their module names, where these are
    known.
    """
    endings = stock_table().endings
    for key in keys:
        last = key.rfind(".")
        tail = key[key.rfind(".", 0, max(last, 0)) + 1 :]
        for ending in endings.get(tail) or endings.get(key[last + 1 :], ()):
            if key.endswith(ending):
                module = key[: -len(ending)]
                for names in known:
                    if module in names:
                        modules.setdefault(module, []).append(key)
                        break
    return modules


def _renamed(keys: Iterable[str], conversion: StockConversion) -> dict[str, str]:
    """A file's keys by the names that stock gives them."""
    renamed = {}
    for key in keys:
        name = key
        for spelled, meant in conversion.begins:
            name = meant + name[len(spelled) :] if name.startswith(spelled) else name
        renamed["".join(conversion.before) + _replaced(name, conversion.replaces)] = key
    return {name: key for name, key in renamed.items() if name not in conversion.makes}


@lru_cache(maxsize=1024)
def _reading(tails: tuple[str, ...]) -> StockMatch:
    """What stock makes of the endings of one module (comfy/lora.py load_lora,
    comfy/weight_adapter/*.py load).
    """
    stock = stock_table()
    first: dict[tuple[str, str], SplitRule] = {}
    for recipe in stock.recipes:
        if all(ending in tails for ending in recipe.leads):
            first.setdefault((recipe.section, recipe.kind), recipe)
    needed = {ending for recipe in first.values() for ending in (*recipe.leads, *recipe.must)}
    taken = needed | stock.read | {ending for recipe in first.values() for ending in recipe.may}
    alone = {
        ending
        for recipe in first.values()
        if recipe.section != "adapters"
        for ending in recipe.leads
    }
    sections = {section for section, _ in first}
    return StockMatch(
        tuple(place for place, ending in enumerate(tails) if ending in taken),
        tuple(place for place, ending in enumerate(tails) if ending in alone),
        "adapters" in sections and "plain" not in sections,
        min(needed - set(tails), default=""),
        tuple(
            (place, stock.checked[ending])
            for place, ending in enumerate(tails)
            if ending in stock.checked
        ),
    )


_known_names: WeakKeyDictionary[ModuleNames, dict[tuple[str, ...], frozenset[str]]] = (
    WeakKeyDictionary()
)


def _names_of(network: Network, target_model: TargetModel) -> frozenset[str]:
    """Every name of the network in stock's key map, remembered for the network's names."""
    by_slots = _known_names.setdefault(network.names, {})
    known = by_slots.get(target_model.slots)
    if known is None:
        known = by_slots[target_model.slots] = stock_names(network, target_model)
    return known


def stock_names(network: Network, target_model: TargetModel) -> frozenset[str]:
    """What comfy/lora.py model_lora_keys_unet or model_lora_keys_clip would call the network's
    weights.
    """
    stock = stock_table()
    encoder = network.name != DENOISER
    name = network.name if encoder else network.family.name if network.family else ""
    present = target_model.slots if encoder else network.modules
    spellings = _Spellings(network, stock)
    names: set[str] = set()
    for key_map in stock.maps:
        if key_map.encoder == encoder and key_map.holds(name, present, target_model.slots):
            for line in key_map.lines:
                names.update(spellings.of(line))
    return frozenset(names)


class _Spellings:
    """The names of one network in each of the ways that stock.table speaks of."""

    def __init__(self, network: Network, stock: Stock):
        self.network, self.lists = network, stock.lists
        prefix = network.prefix if network.name == DENOISER else network.name + TRANSFORMER
        weights = [weight[: -len(WEIGHT)] for weight in network.weights if weight.endswith(WEIGHT)]
        others = [weight for weight in network.weights if not weight.endswith(WEIGHT)]
        if network.is_reference and network.family:
            bare: Set[str] = stock.bare.get(network.family.name, frozenset())
            others += [weight for weight in weights if weight.rpartition(".")[2] in bare]
            weights = [weight for weight in weights if weight.rpartition(".")[2] not in bare]
        self.known = {
            "slot": weights,
            "native": [weight[len(prefix) :] for weight in weights if weight.startswith(prefix)],
            "other": [weight.removeprefix(network.prefix) for weight in others],
        }
        self.texts: dict[bool, str] = {}

    def of(self, line: Names) -> list[str]:
        names = self._named(line.names)
        if line.replaced:
            names = [_replaced(f"{name}.", line.replaced)[:-1] for name in names]
        return [line.prefix + (name.replace(".", "_") if line.flat else name) for name in names]

    def _named(self, names: str) -> list[str]:
        base, _, inner = names.partition("/")
        if names not in self.known:
            listed = chain.from_iterable(self._block(block) for block in self.lists.get(base, ()))
            cut = [
                name[len(inner) :] for name in self.known.get(base, ()) if name.startswith(inner)
            ]
            self.known[names] = [*listed, *cut]
        return self.known[names]

    def _block(self, block: Block) -> Iterable[str]:
        if not block.stems:
            yield from block.names
        for template, anchor in block.stems:
            for numbers in self._places(anchor or template, native=bool(anchor)):
                stem = fill(template, numbers)
                for name in block.names:
                    yield f"{stem}.{name}"

    def _places(self, anchor: str, native: bool) -> set[tuple[str, ...]]:
        """The block numbers with which the anchor begins a name of the model."""
        if native not in self.texts:
            self.texts[native] = "\n".join(self.known["native"] if native else self._by_diffusers())
        return {
            match.groups()
            for match in re.finditer(rf"^{_pattern(anchor)}\.", self.texts[native], re.MULTILINE)
        }

    def _by_diffusers(self) -> Iterable[str]:
        """The native names as the family's table says that diffusers spells them; of fused ones the
        first part.
        """
        family = self.network.family
        if not family:
            return
        for module in self.known["native"]:
            for match in family.find(flatten(module)):
                numbers = re.fullmatch(_pattern(match.row.native[0]), module)
                if numbers and match.alternative < 0 and match.row.alternatives:
                    yield fill(match.row.alternatives[0].parts[0].name, numbers.groups())


@lru_cache(maxsize=1024)
def _pattern(template: str) -> str:
    """A name template as a regular expression; its groups are the block numbers."""
    return re.escape(template).replace(r"\{\}", "([0-9]+)")


def _replaced(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for spelled, meant in pairs:
        name = name.replace(spelled, meant)
    return name


@lru_cache(maxsize=1)
def stock_table(path: Path = STOCK_TABLE) -> Stock:
    """Read stock.table; raises ValueError naming the line that cannot be read."""
    reader = _Reader()
    for number, line in lines_of(read_text(path)):
        words = line.split()
        try:
            if line[0] == " ":
                reader.row(words)
            else:
                reader.section(words)
        except (LookupError, ValueError) as error:
            fault = message("identify.unread_row", error=repr(error))
            remedy = message("identify.see_comments")
            raise ValueError(at_line(path, number, fault, remedy)) from None
    return reader.stock()


class _Reader:
    """Reads the table's sections line by line."""

    def __init__(self) -> None:
        self.maps: list[KeyMap] = []
        self.lists: dict[str, list[Block]] = {}
        self.bare: dict[str, set[str]] = {}
        self.recipes: list[SplitRule] = []
        self.words: dict[str, set[str]] = {"read": set(), "one": set()}
        self.dimensions: dict[str, frozenset[int]] = {}
        self.conversions: list[StockConversion] = []
        self.row: Callable[[list[str]], None] = self._no_section

    def section(self, words: list[str]) -> None:
        title, *rest = words
        if title in ("model", "encoder"):
            self.maps.append(_key_map(title, rest))
            self.row = lambda row: self.maps[-1].lines.append(_names(row))
        elif title == "names":
            self.lists[rest[0]] = [Block((), [])]
            self.row = lambda row: self._name(self.lists[rest[0]], row)
        elif title == "bare":
            self.row = lambda row: self.bare.setdefault(row[0], set()).update(row[1:])
        elif title in ("adapters", "plain", "bias"):
            self.row = lambda row: self._recipe(title, row)
        elif title == "conversion":
            self.conversions.append(StockConversion(*([] for _ in StockConversion._fields)))
            self.row = self._conversion
        else:
            self.row = self.words[title].update

    def stock(self) -> Stock:
        known = self.words["read"].union(
            *[recipe.leads + recipe.must + recipe.may for recipe in self.recipes]
        )
        endings: dict[str, tuple[str, ...]] = {}
        for ending in sorted(known):
            last = ".".join(ending.lstrip("._").split(".")[-2:])
            endings[last] = (*endings.get(last, ()), ending)
        checked = {**dict.fromkeys(self.words["one"]), **self.dimensions}
        return Stock(
            self.maps,
            self.lists,
            self.bare,
            self.recipes,
            self.words["read"],
            checked,
            self.conversions,
            endings,
        )

    def _no_section(self, row: list[str]) -> None:
        raise ValueError(message("identify.row_before_section"))

    def _name(self, blocks: list[Block], row: list[str]) -> None:
        if not row[0].startswith("["):
            blocks[-1].names.extend(row)
            return
        template, _, anchor = " ".join(row).strip("[]").partition(" = ")
        if blocks[-1].names or not blocks[-1].stems:
            blocks.append(Block((), []))
        blocks[-1] = Block((*blocks[-1].stems, (template, anchor)), [])

    def _recipe(self, section: str, row: list[str]) -> None:
        parts: list[list[str]] = [[]]
        for word in row[1:]:
            ending, *dimensions = word.split("/")
            if ending == ":":
                parts.append([])
                continue
            parts[-1].append(ending)
            if dimensions:
                self.dimensions[ending] = frozenset(int(number) for number in dimensions)
        leads, must, may = (tuple(part) for part in [*parts, [], []][:3])
        self.recipes.append(SplitRule(section, row[0], leads, must, may))

    def _conversion(self, row: list[str]) -> None:
        field, *words = row
        values: Sequence[Any] = (  # pairs or words, as the field has them
            [_pair(word) for word in words] if field in ("begins", "replaces", "sizes") else words
        )
        self.conversions[-1][StockConversion._fields.index(field)].extend(values)


def _key_map(title: str, words: list[str]) -> KeyMap:
    said: dict[str, set[str]] = {
        word: set() for word in ("of", "with", "without", "except", "alone")
    }
    current = "of"
    for word in words:
        if word in said:
            current = word
        said[current].add(word)
    needs, lacks, excepted = (
        frozenset(said[word] - {word}) for word in ("with", "without", "except")
    )
    return KeyMap(
        title == "encoder", frozenset(said["of"]), needs, lacks, excepted, bool(said["alone"]), []
    )


def _names(row: list[str]) -> Names:
    prefix, names, form, *replaced = row
    if form not in ("dotted", "flat"):
        raise ValueError(message("identify.neither_form", form=form))
    return Names(
        "" if prefix == "-" else prefix,
        names,
        form == "flat",
        tuple(_pair(word) for word in replaced),
    )


def _pair(word: str) -> tuple[str, str]:
    spelled, meant = word.split("=")
    return spelled, meant
