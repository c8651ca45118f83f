"""Names the documented layer preset of a trainer a file was trained with, and the layers that
preset silently missed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..adapters.rows import Rows
from ..errors import LocksmithError
from ..key_maps import KEY_MAPS
from ..key_maps.dialect import DENOISER
from ..key_maps.lines import lines_of, read_text
from ..messages import Message, joined, message
from ..planning.names import names_of
from ..planning.plan import Plan
from ..planning.target_model import Network
from .coverage import runs
from .labels import label

FOLDER = KEY_MAPS / "presets"
CLOSE = 0.9  # share of modules in common, of all in either, from which a preset is called near
MAX_LISTED = 4  # presets, or kinds of layers, in a sentence
SPACES = ("diffusers", "native")
LAYERS = ("linear", "conv1", "conv")  # of two dimensions; a kernel of one point; any other kernel
RULES = ("names", "contains", "globs", "regex")
BLOCK = re.compile(r"(.*?)\.(\d+)(?:\.|$)")
SPANS = {  # how the file of a preset names the versions in which it held
    "presets.since": re.compile("since (?P<first>.+)"),
    "presets.until": re.compile("until (?P<last>.+)"),
    "presets.from_to": re.compile("(?P<first>.+) to (?P<last>.+)"),
    "presets.both": re.compile("(?P<first>.+) and (?P<last>.+)"),
}


class PresetError(LocksmithError, ValueError):
    """A file of presets that breaks the rules of its language: the text names file, line, fault and
    remedy.
    """


class PresetRule(NamedTuple):
    """How a trainer picks modules: `names` as PEFT reads a list, `regex` as PEFT reads a text,
    `contains`, or `globs`.
    """

    how: str
    entries: tuple[str, ...]


class PresetBug(NamedTuple):
    """Entries of a preset that hit nothing (or too much): entry -> module its author meant (or hit
    unawares), and what that is.
    """

    pairs: tuple[tuple[str, str], ...]
    label: str

    @property
    def what(self) -> str:
        """The label as a message, where it is not the quoted name of a module."""
        return label("presets.layer", self.label)


class Preset(NamedTuple):
    """One documented choice of layers; `spare`: names for other variants of the model, whose
    absence is no fault.
    """

    trainer: str
    name: str
    versions: str
    families: tuple[str, ...]
    space: str
    chosen: tuple[PresetRule, ...]
    left_out: tuple[PresetRule, ...]
    layers: tuple[str, ...]
    spare: tuple[str, ...]
    dead: tuple[PresetBug, ...]
    stray: tuple[PresetBug, ...]
    line: int

    def __str__(self) -> str:
        return self.title

    @property
    def title(self) -> str:
        """The trainer, the preset's name, and the versions in which it held."""
        by = "presets.title_after_s" if self.trainer.endswith("s") else "presets.title"
        title = message(by, trainer=self.trainer, name=label("presets.name", self.name))
        if not self.versions:
            return title
        return message("presets.with_versions", preset=title, versions=_span(self.versions))


class Finding(NamedTuple):
    """A preset on a model: entries that name no module of it, what was therefore never trained,
    what was hit unawares.
    """

    preset: Preset
    dead_names: tuple[str, ...]
    missed: tuple[str, ...]
    surprises: tuple[str, ...]

    @property
    def fault(self) -> str:
        """What the preset did that its author did not mean, "" where there is nothing."""
        faults = [*self.surprises]
        if self.dead_names:
            names, count = _listed(self.dead_names), len(self.dead_names)
            missed = joined(self.missed, "and_no")
            faults.insert(
                0,
                message("presets.dead_missed", names=names, count=count, missed=missed)
                if missed
                else message("presets.dead", names=names, count=count),
            )
        return joined(faults, "semicolon") if faults else ""

    @property
    def sentence(self) -> str:
        """The preset and its faults."""
        if not self.fault:
            return self.preset.title
        return message("joints.about", subject=self.preset.title, text=self.fault)


class Nearest(NamedTuple):
    """The preset most like the file: share of modules in common, kinds only the preset has, kinds
    only the file has.
    """

    preset: Preset
    share: float
    lacking: tuple[str, ...]
    extra: tuple[str, ...]


class PresetReport(NamedTuple):
    """What a file's layers tell of its training; all empty where there is nothing to compare.

    `exact`: presets that train just these layers, likeliest first. `partial`: presets that do so on
    `blocks` only.
    """

    exact: tuple[Finding, ...] = ()
    partial: tuple[Finding, ...] = ()
    blocks: str = ""
    nearest: Nearest | None = None
    known: bool = False  # whether any preset of this family is on record

    @property
    def sure(self) -> Finding | None:
        """The finding whose slips hold whichever of the presets it was: None where one of them has
        none.
        """
        findings = self.exact or self.partial
        return findings[0] if findings and all(finding.dead_names for finding in findings) else None

    @property
    def dead_names(self) -> tuple[str, ...]:
        """Entries of the preset that name no module of this model."""
        return self.sure.dead_names if self.sure else ()

    @property
    def missed(self) -> tuple[str, ...]:
        """Layers the preset's author meant by dead names, which were never trained."""
        return self.sure.missed if self.sure else ()

    @property
    def surprises(self) -> tuple[str, ...]:
        """Modules that the (first) preset hit beside those its author meant."""
        findings = self.exact or self.partial
        return findings[0].surprises if findings else ()

    @property
    def sentence(self) -> str:
        """All of it in one readable sentence, "" where there is nothing to say."""
        if self.exact or self.partial:
            return _looks_like(self.exact or self.partial, self.blocks)
        if self.nearest:
            return _is_near(self.nearest)
        return message("presets.none") if self.known else ""

    def as_dict(self) -> dict[str, Any]:
        """Everything a program needs; plain JSON types."""
        nearest = self.nearest
        return {
            "exact": [_as_dict(finding) for finding in self.exact],
            "partial": [_as_dict(finding) for finding in self.partial],
            "blocks": self.blocks,
            "nearest": (
                nearest
                and {
                    "preset": nearest.preset.title,
                    "share": nearest.share,
                    "lacking": [*nearest.lacking],
                    "extra": [*nearest.extra],
                }
            ),
            "dead_names": [*self.dead_names],
            "missed": [*self.missed],
            "surprises": [*self.surprises],
            "sentence": self.sentence,
        }


def match_presets(plan: Plan, trainer: str = "") -> PresetReport:
    """Compare the layers of the diffusion model that a plan trains with every preset on record for
    its family.

    `trainer`: what is known of the writer (free text); presets of trainers named in it come first.
    Weight matrices are compared, by slices, so the spelling of the file does not count; biases do
    not count. Exact: the same set. Partial: the preset's set in every block the file trains, and
    nothing else. Nearest: at least CLOSE of all modules of either in common. Never raises for what
    a file holds.
    """
    network = plan.target_model.networks.get(DENOISER)
    if network is None or network.family is None:
        return PresetReport()
    layout = layout_of(network)
    trained = layout.trained(plan)
    if not trained or not layout.presets:
        return PresetReport(known=bool(layout.presets))
    exact = layout.exact(trained)
    if exact:
        return PresetReport(_findings(layout, exact, trained, trainer), known=True)
    blocks = layout.blocks_of(trained)
    partial = layout.restricted(trained, blocks)
    if partial:
        return PresetReport(
            (), _findings(layout, partial, trained, trainer), layout.spelled_out(blocks), known=True
        )
    return PresetReport(nearest=layout.nearest(trained, trainer), known=True)


def _findings(
    layout: Layout, presets: Iterable[Preset], trained: int, trainer: str
) -> tuple[Finding, ...]:
    counted = ~(layout.optional & ~trained)
    ranked = sorted(
        presets,
        key=lambda preset: (
            not _named(preset, trainer),
            (layout.masks[preset] & counted).bit_count(),
        ),
    )
    return tuple(layout.finding(preset, trained) for preset in ranked)


def _named(preset: Preset, trainer: str) -> bool:
    return preset.trainer.lower() in trainer.lower()


class Layout:
    """A model's weight matrices as bits: what each name of either naming means, and which of them
    each preset trains.
    """

    def __init__(self, network: Network, presets: Sequence[Preset]):
        # A layout is kept for as long as its network lives, so it must not keep the network
        # itself.
        self.family = network.family
        self.labels: list[str] = []
        self.groups: list[tuple[str, int] | None] = []
        self.slices: dict[str, list[tuple[Rows | None, int]]] = {}
        self.names: dict[str, dict[str, int]] = {space: {} for space in SPACES}
        self.suffixes: dict[str, dict[str, int]] = {space: {} for space in SPACES}
        self.layers = dict.fromkeys(LAYERS, 0)
        self._hit: dict[tuple[str, str, str], int] = {}
        for module, weight in network.modules.items():
            shape = network.weights[weight]
            if weight.endswith(".weight") and len(shape) > 1:
                self._enter(module, weight, shape)
        self.other = 1 << len(self.labels)  # stands for all that is no weight matrix of the model
        self.optional = _union(
            bit for weight in network.optional for _, bit in self.slices.get(weight, ())
        )
        self.places: dict[tuple[str, tuple[int, int] | None], int] = {
            (weight, None): _union(bit for _, bit in members)
            for weight, members in self.slices.items()
        }
        self.block_bits = self._blocks()
        self.presets = tuple(
            preset for preset in presets if self.family and self.family.name in preset.families
        )
        self.masks = {preset: self.trains(preset) for preset in self.presets}
        self.by_mask: dict[int, list[Preset]] = {}
        for preset, mask in self.masks.items():
            self.by_mask.setdefault(mask, []).append(preset)

    def _enter(self, module: str, weight: str, shape: tuple[int, ...]) -> None:
        layer = (
            "linear"
            if len(shape) == 2
            else "conv"
            if any(size > 1 for size in shape[2:])
            else "conv1"
        )
        for name, rows, _ in names_of(self.family, module, shape) or [("", None, False)]:
            bit = 1 << len(self.labels)
            self.labels.append(_kind(name or module))
            self.groups.append(_block(module))
            self.slices.setdefault(weight, []).append((rows, bit))
            self.layers[layer] |= bit
            for space, spelled in zip(SPACES, (name, module), strict=True):
                self._name(space, spelled, bit)

    def _name(self, space: str, name: str, bit: int) -> None:
        if not name:
            return
        self.names[space][name] = self.names[space].get(name, 0) | bit
        index = self.suffixes[space]
        while True:
            index[name] = index.get(name, 0) | bit
            _, dot, name = name.partition(".")
            if not dot:
                return

    def _blocks(self) -> dict[tuple[str, int] | None, int]:
        """Bits by block; a name's number is a block's where all from 0 up to it occur."""
        numbers: dict[str, set[int]] = {}
        for group in self.groups:
            if group:
                numbers.setdefault(group[0], set()).add(group[1])
        stacks = {
            stack for stack, seen in numbers.items() if len(seen) > 1 and max(seen) == len(seen) - 1
        }
        self.groups = [group if group and group[0] in stacks else None for group in self.groups]
        bits: dict[tuple[str, int] | None, int] = {}
        for position, group in enumerate(self.groups):
            bits[group] = bits.get(group, 0) | 1 << position
        return bits

    def trains(self, preset: Preset) -> int:
        """The bits of all modules of this model that the preset trains."""
        mask = _union(self._hits(preset.space, rule) for rule in preset.chosen)
        mask &= ~_union(self._hits(preset.space, rule) for rule in preset.left_out)
        return mask & _union(self.layers[layer] for layer in preset.layers)

    def _hits(self, space: str, rule: PresetRule) -> int:
        if rule.how == "names":
            return _union(self.suffixes[space].get(entry, 0) for entry in rule.entries)
        return _union(self._hits_of(space, rule.how, entry) for entry in rule.entries)

    def _hits_of(self, space: str, how: str, entry: str) -> int:
        # Presets share many of their entries.
        mask = self._hit.get((space, how, entry))
        if mask is None:
            hit = _tester(how, entry)
            mask = self._hit[(space, how, entry)] = _union(
                bits for name, bits in self.names[space].items() if hit(name)
            )
        return mask

    def trained(self, plan: Plan) -> int:
        """The bits of what a plan's adapters reach in this model."""
        mask, places = 0, self.places
        for adapter in plan.adapters:
            if adapter.target.network == DENOISER and adapter.parameter != "bias":
                for weight, rows, _ in adapter.target.slices:
                    bits = places.get((weight, rows))
                    mask |= self._place(weight, rows) if bits is None else bits
        return mask

    def _place(self, weight: str, rows: Rows | None) -> int:
        bits, covered = 0, 0
        for own, bit in self.slices.get(weight, ()):
            if rows and own and rows.covers(own):
                bits, covered = bits | bit, covered + own.length
        if not rows or covered != rows.length:
            bits |= self.other
        return self.places.setdefault((weight, rows), bits)

    def blocks_of(self, mask: int) -> dict[tuple[str, int] | None, int]:
        """The blocks (None: outside of all blocks) a set of modules touches, with
        all their bits.
        """
        return {block: bits for block, bits in self.block_bits.items() if bits & mask}

    def exact(self, trained: int) -> Sequence[Preset]:
        """Presets that train just these modules; what only some variants of a drawn model have may
        be missing.
        """
        absent = self.optional & ~trained
        return (
            [preset for preset, mask in self.masks.items() if mask & ~absent == trained]
            if absent
            else self.by_mask.get(trained, ())
        )

    def restricted(
        self, trained: int, blocks: Mapping[tuple[str, int] | None, int]
    ) -> list[Preset]:
        """Presets that train just these modules, if only these blocks are looked at."""
        if not any(blocks):
            return []
        within = (_union(blocks.values()) | self.other) & ~(self.optional & ~trained)
        return [preset for preset, mask in self.masks.items() if mask & within == trained]

    def spelled_out(self, blocks: Iterable[tuple[str, int] | None]) -> str:
        """Blocks in words: "double_blocks 0-3, 7 and all single_blocks"."""
        blocks = list(blocks)
        stacks: dict[str, list[int]] = {}
        for stack, number in filter(None, blocks):
            stacks.setdefault(stack, []).append(number)
        sizes = Counter(block[0] for block in self.block_bits if block)
        parts = [
            message("presets.all_of", blocks=stack)
            if len(numbers) == sizes[stack]
            else f"{stack} {runs(numbers)}"
            for stack, numbers in stacks.items()
        ]
        return joined(parts + [message("presets.outside")] * (None in blocks), "and")

    def nearest(self, trained: int, trainer: str) -> Nearest | None:
        """The preset most like a set of modules, None where even that shares less than CLOSE."""
        absent = self.optional & ~trained
        shares = {
            preset: (mask & trained).bit_count() / (mask & ~absent | trained).bit_count()
            for preset, mask in self.masks.items()
        }
        best = max(self.presets, key=lambda preset: (shares[preset], _named(preset, trainer)))
        if shares[best] < CLOSE:
            return None
        mask = self.masks[best] & ~absent
        return Nearest(best, shares[best], self.kinds(mask & ~trained), self.kinds(trained & ~mask))

    def kinds(self, mask: int) -> tuple[str, ...]:
        """The names of modules in a set, block numbers left out."""
        kinds = dict.fromkeys(
            kind for position, kind in enumerate(self.labels) if mask >> position & 1
        )
        return (*kinds, message("presets.not_a_weight")) if mask & self.other else tuple(kinds)

    def finding(self, preset: Preset, trained: int) -> Finding:
        """What the preset's own entries did on this model."""
        index = self.suffixes[preset.space]
        tried = [
            PresetRule(rule.how, (entry,))
            for rule in preset.chosen
            for entry in rule.entries
            if entry not in preset.spare
        ]
        dead = tuple(rule.entries[0] for rule in tried if not self._hits(preset.space, rule))
        missed = [slip.what for slip in preset.dead if self._missed(slip, index, dead, trained)]
        surprises = [
            message("presets.also_hit", entry=entry, layer=slip.what)
            for slip in preset.stray
            for entry, module in slip.pairs
            if self.names[preset.space].get(module, 0) & trained
        ]
        return Finding(preset, dead, tuple(dict.fromkeys(missed)), tuple(dict.fromkeys(surprises)))

    @staticmethod
    def _missed(
        slip: PresetBug, index: Mapping[str, int], dead: Sequence[str], trained: int
    ) -> bool:
        meant = _union(index.get(module, 0) for entry, module in slip.pairs if entry in dead)
        return bool(meant) and not meant & trained


LAYOUTS: WeakKeyDictionary[Network, Layout] = WeakKeyDictionary()


def layout_of(network: Network) -> Layout:
    """The network's layout under the presets on record, made once."""
    layout = LAYOUTS.get(network)
    if layout is None:
        layout = LAYOUTS[network] = Layout(network, presets())
    return layout


def _tester(how: str, entry: str) -> Callable[[str], object]:
    if how == "contains":
        return lambda name: entry in name
    return re.compile(translate(entry) if how == "globs" else entry).fullmatch


def _union(masks: Iterable[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def _block(module: str) -> tuple[str, int] | None:
    match = BLOCK.match(module)
    return (match[1], int(match[2])) if match else None


def _kind(name: str) -> str:
    """A name with the number of its block, if it has one, left out; other numbers stay."""
    match = BLOCK.match(name)
    rest = name[match.end(2) :] if match else ""
    return f"{match[1]}.{{}}{rest}" if match and rest else name


def _span(versions: str) -> str:
    """The versions of a preset as a message; as they are where they are just one."""
    for id, pattern in SPANS.items():
        match = pattern.fullmatch(versions)
        if match:
            return message(id, **match.groupdict())
    return versions


def _looks_like(findings: Sequence[Finding], blocks: str) -> str:
    presets = joined([finding.sentence for finding in findings[:MAX_LISTED]], "semicolon_or")
    more = len(findings) - MAX_LISTED
    sentence = (
        message("presets.looks_like_more", presets=presets, count=more)
        if more > 0
        else message("presets.looks_like", presets=presets)
    )
    return message("presets.on_blocks", sentence=sentence, blocks=blocks) if blocks else sentence


def _is_near(nearest: Nearest) -> str:
    preset, lacking, extra = nearest.preset.title, _first(nearest.lacking), _first(nearest.extra)
    if lacking and extra:
        return message("presets.nearest_both", preset=preset, lacking=lacking, extra=extra)
    if lacking:
        return message("presets.nearest_without", preset=preset, lacking=lacking)
    if extra:
        return message("presets.nearest_with", preset=preset, extra=extra)
    return message("presets.nearest", preset=preset)


def _first(kinds: Sequence[str]) -> str:
    """The first kinds of layers; "..." behind them where there are more."""
    names = joined(map(_quoted, kinds[:MAX_LISTED]), "comma")
    return message("presets.and_others", names=names) if len(kinds) > MAX_LISTED else names


def _listed(names: Sequence[str]) -> str:
    *first, last = map(_quoted, names)
    return joined([joined(first, "comma"), last], "and") if first else last


def _quoted(name: str) -> str:
    return name if isinstance(name, Message) else f"`{name}`"


def _as_dict(finding: Finding) -> dict[str, Any]:
    preset = finding.preset
    return {
        "trainer": preset.trainer,
        "preset": preset.name,
        "versions": preset.versions,
        "dead_names": [*finding.dead_names],
        "missed": [*finding.missed],
        "surprises": [*finding.surprises],
    }


@cache
def presets(folder: Path = FOLDER) -> tuple[Preset, ...]:
    """Every preset of the files in `folder`, one file per trainer; raises PresetError for a file
    that breaks the rules.
    """
    return tuple(
        preset for path in sorted(folder.glob("*.presets")) for preset in read_presets(path)
    )


def read_presets(path: Path) -> tuple[Preset, ...]:
    """Read the file at `path`; raises PresetError naming file, line, what is
    wrong and the remedy.
    """
    return parse_presets(read_text(path, PresetError), str(path))


def parse_presets(text: str, source: str = "presets") -> tuple[Preset, ...]:
    """Parse the text of one trainer's presets."""
    reader = _Reader(source)
    for number, line in lines_of(text):
        reader.read(number, line.strip())
    return reader.finish()


class _Reader:
    """Collects presets line by line: `@trainer`, `@space`, `[families]`, `preset NAME : VERSIONS`,
    and what belongs to it.
    """

    KEYWORDS = (
        "names",
        "contains",
        "globs",
        "regex",
        "without",
        "layers",
        "spare",
        "dead",
        "stray",
    )

    def __init__(self, source: str):
        self.source, self.line = source, 0
        self.trainer, self.space = "", SPACES[0]
        self.families: tuple[str, ...] = ()
        self.open: dict[str, Any] | None = None
        self.done: list[Preset] = []

    def fail(self, fault: Message) -> PresetError:
        return PresetError(
            message("presets.at_line", source=self.source, line=self.line, fault=fault)
        )

    def read(self, number: int, line: str) -> None:
        keyword, _, rest = line.partition(" ")
        if line.startswith(("@", "[")) or keyword == "preset":
            self._close()
        self.line = number
        if line.startswith("@"):
            self._directive(keyword[1:], rest.strip())
        elif line.startswith("["):
            self._section(line)
        elif keyword == "preset":
            self._preset(rest)
        else:
            self._member(keyword, rest.strip())

    def _directive(self, keyword: str, value: str) -> None:
        if keyword == "trainer" and value:
            self.trainer = value
        elif keyword == "space" and value in SPACES:
            self.space = value
        else:
            raise self.fail(
                message(
                    "presets.wrong_directive",
                    keyword=keyword,
                    value=value,
                    spaces=joined(SPACES, "or"),
                )
            )

    def _section(self, line: str) -> None:
        self.families = tuple(line[1:-1].split())
        if not line.endswith("]") or not self.families:
            raise self.fail(message("presets.wrong_section"))

    def _preset(self, rest: str) -> None:
        name, _, versions = rest.partition(" : ")
        if not self.trainer or not self.families or not name.strip():
            raise self.fail(message("presets.preset_alone"))
        kept: dict[str, list[Any]] = {
            "chosen": [],
            "left_out": [],
            "layers": [],
            "spare": [],
            "dead": [],
            "stray": [],
        }
        self.open = {"name": name.strip(), "versions": versions.strip(), "line": self.line, **kept}

    def _member(self, keyword: str, rest: str) -> None:
        if self.open is None:
            raise self.fail(message("presets.outside_preset", keyword=keyword))
        if keyword not in self.KEYWORDS or not rest:
            keywords = joined(self.KEYWORDS)
            raise self.fail(message("presets.wrong_keyword", keyword=keyword, keywords=keywords))
        if keyword in RULES:
            self.open["chosen"].append(self._rule(keyword, rest))
        elif keyword == "without":
            how, _, entries = rest.partition(" ")
            self.open["left_out"].append(self._rule(how, entries))
        elif keyword in ("dead", "stray"):
            self.open[keyword].append(self._slip(rest))
        else:
            self.open[keyword] += rest.split()

    def _rule(self, how: str, rest: str) -> PresetRule:
        entries = tuple(rest.split())
        if how not in RULES or not entries:
            raise self.fail(message("presets.wrong_rule", how=how, ways=joined(RULES)))
        try:
            for entry in entries:
                _tester(how, entry)
        except re.error as error:
            raise self.fail(message("presets.no_expression", text=rest, error=error)) from None
        return PresetRule(how, entries)

    def _slip(self, rest: str) -> PresetBug:
        pairs, _, what = rest.partition(" : ")
        split = tuple((one, two) for one, _, two in (p.partition("=") for p in pairs.split()))
        if not what.strip() or not split or not all(a and b and "=" not in b for a, b in split):
            raise self.fail(message("presets.wrong_pairs", text=rest))
        return PresetBug(split, what.strip())

    def _close(self) -> None:
        preset, self.open = self.open, None
        if preset is None:
            return
        self.line = preset["line"]
        if not preset["chosen"]:
            raise self.fail(
                message("presets.picks_nothing", name=preset["name"], ways=joined(RULES))
            )
        names = {entry for rule in preset["chosen"] for entry in rule.entries}
        used = [
            *preset["spare"],
            *(entry for slip in (*preset["dead"], *preset["stray"]) for entry, _ in slip.pairs),
        ]
        unknown = [entry for entry in used if entry not in names]
        if unknown:
            raise self.fail(message("presets.no_entry", entry=unknown[0]))
        strange = [layer for layer in preset["layers"] if layer not in LAYERS]
        if strange:
            layers = joined(LAYERS)
            raise self.fail(message("presets.wrong_layer", layer=strange[0], layers=layers))
        if any(
            (done.name, done.versions, done.families)
            == (preset["name"], preset["versions"], self.families)
            for done in self.done
        ):
            raise self.fail(message("presets.preset_twice", name=preset["name"]))
        preset["layers"] = preset["layers"] or LAYERS
        lists = {
            key: tuple(value) for key, value in preset.items() if isinstance(value, (list, tuple))
        }
        self.done.append(
            Preset(
                trainer=self.trainer,
                families=self.families,
                space=self.space,
                **{**preset, **lists},
            )
        )

    def finish(self) -> tuple[Preset, ...]:
        self._close()
        if not self.done:
            raise PresetError(message("presets.empty", source=self.source))
        return tuple(self.done)
