"""Reads a family table (one text file per model: native names, symbolic shapes, other spellings)
and looks names up in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ..adapters.rows import Rows, laid
from ..errors import LocksmithError, about_file, at_line
from ..messages import joined, message
from .lines import lines_of, read_text

Size = tuple[tuple[str, int], ...]  # a sum of terms: (("h", 3),) is 3h, (("", 64),) is 64
Entry = tuple[int, int, int]  # row, alternative (-1: its native name), part
# what a name of a table is found by: its template, its own numbers and their places, its shape
Seen = tuple[str, tuple[str, ...], tuple[int, ...], tuple[Size, ...] | None]
Lookup = Mapping[str, tuple[tuple[tuple[int, ...], Mapping[tuple[str, ...], list[Entry]]], ...]]
TERM = re.compile(r"(\d*)([a-z]?)")
UNNAMED = "_"
DIRECTIVES = (
    "title",
    "sizes",
    "blocks",
    "encoder",
    "kind",
    "root",
    "metadata",
    "common",
    "inputs",
    "names",
    "beside",
    "branch",
    "stages",
    "elsewhere",
)
FOLDER = Path(__file__).parent / "families"
ABSENT = FOLDER.with_name("absent")  # models that ComfyUI does not have
MAX_TOLD = 80  # characters of what is wrong that an error repeats
MAX_DIGITS = 9  # of a size or a number of blocks
# characters of all names a table stands for, every header before every row; the pack's largest has
# 60,000
MAX_WRITTEN = 2_000_000


class TableError(LocksmithError, ValueError):
    """A family table that breaks the rules of the table language: the text names file, line, fault
    and remedy.
    """


class Part(NamedTuple):
    """One name of an alternative; `size` is its share of the output rows, None for an equal share
    of the rest.
    """

    name: str
    size: Size | None


class Alternative(NamedTuple):
    """One way other tools spell a row: parts laid one after another over the output rows; `swap`:
    halves exchanged.
    """

    parts: tuple[Part, ...]
    swap: bool = False


class TableRow(NamedTuple):
    """One native module, or several laid end to end, with the shape (None: not stated) and all
    other spellings.
    """

    native: tuple[str, ...]
    shape: tuple[Size, ...] | None
    alternatives: tuple[Alternative, ...]
    line: int
    # the input may be wider in a LoRA than in the model (control LoRAs), marked `..` behind the
    # last size
    widens_input: bool = False
    optional: bool = (
        False  # not in every published model of the family, marked `?` behind the native name
    )
    names: str = (
        ""  # whose names its first alternative has, by the last @names above it; "": diffusers'
    )


class Inputs(NamedTuple):
    """What is known of the input widths of a family's rows marked `..` (@inputs).

    fixed: of published models, to which no LoRA makes another model grow. begins: (narrow, wide) of
    models whose first inputs are the same, so that what was trained on the first fits the second.
    """

    fixed: frozenset[int] = frozenset()
    begins: frozenset[tuple[int, int]] = frozenset()


class Branch(NamedTuple):
    """A part of the network that only some published models have (@branch): what it is, whose, and
    the native names of its modules or what they begin with, `{}` for block numbers.
    """

    what: str
    owner: str
    names: tuple[str, ...]

    def holds(self, native: str) -> bool:
        """Whether a module, `{}` for its block numbers, belongs to it."""
        return any(native == name or native.startswith(f"{name}.") for name in self.names)


class Match(NamedTuple):
    """A name found in a table: the native modules it stands for (indices filled in) and which
    alternative and part it is.
    """

    row: TableRow
    index: int  # type: ignore[assignment]  # the row's place in the table; tuple's is not asked
    native: tuple[str, ...]
    alternative: int  # -1: the native name itself
    part: int


class Slice(NamedTuple):
    """Where rows of one adapter land: rows of the native weight (None: all), rows of the adapter
    (None: all).
    """

    native: int
    rows: Rows | None
    source: Rows | None


class Family(NamedTuple):
    """A model architecture: its rows, the numbering of its text encoders, and the sizes of its
    published variants.
    """

    name: str
    title: str
    rows: tuple[TableRow, ...]
    encoders: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, Mapping[str, int]]
    lookup: Lookup
    kind: str = "denoiser"
    root: str = "transformer"  # what diffusers calls the network
    blocks: Mapping[
        str, Mapping[str, int]
    ] = {}  # published numbers of blocks by variant ("": all), by the name before the number
    metadata: tuple[
        str, ...
    ] = ()  # how trainers' metadata begin that name this model, letters and digits only
    inputs: Inputs = Inputs()
    common: bool = False  # most files that fit this family and others as well are for this one
    # what ComfyUI keeps beside the diffusion model, by its name -> its name in the model's file
    beside: Mapping[str, str] = MappingProxyType({})
    branches: tuple[Branch, ...] = ()
    stages: tuple[str, ...] = ()  # models of one shape that sample one after the other
    # flattened templates with which names begin that mean another network where no prefix tells
    elsewhere: tuple[str, ...] = ()

    def find(self, flat: str) -> list[Match]:
        """Every row that the flattened name `flat` can mean, exact indices before free ones."""
        template, numbers = generalise(flat)
        meanings = []
        for positions, index, alternative, part in self.meanings(template, numbers):
            row = self.rows[index]
            free = (
                [number for i, number in enumerate(numbers) if i not in positions]
                if positions
                else numbers
            )
            meanings.append(
                Match(
                    row, index, tuple([fill(name, free) for name in row.native]), alternative, part
                )
            )
        return meanings

    def meanings(
        self, template: str, numbers: tuple[str, ...]
    ) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
        """(which of the numbers are its own, row, alternative, part) of every row that a
        generalised name can mean.
        """
        for positions, entries in self.lookup.get(template, ()):
            for index, alternative, part in entries.get(tuple([numbers[i] for i in positions]), ()):
                yield positions, index, alternative, part

    def spellings(self, row: TableRow, alternative: int, numbers: Sequence[str]) -> tuple[str, ...]:
        """The names of an alternative's parts (native: alternative -1) with the block indices
        filled in.
        """
        names = (
            row.native
            if alternative < 0
            else [part.name for part in row.alternatives[alternative].parts]
        )
        return tuple(fill(name, numbers) for name in names)


def flatten(name: str) -> str:
    """The separator-free spelling of a module name: `.` and `_` are one, doubled separators
    collapse.
    """
    flat = name.replace(".", "_")
    while "__" in flat:
        flat = flat.replace("__", "_")
    return flat


def generalise(flat: str) -> tuple[str, tuple[str, ...]]:
    """Replace the numbers that stand alone in a flattened name: `blocks_7_ff_net_0` ->
    (`blocks_{}_ff_net_{}`, ("7", "0")).
    """
    words = flat.split("_")
    numbers = []
    for i, word in enumerate(words):
        if word.isdecimal():
            numbers.append(word)
            words[i] = "{}"
    return "_".join(words), tuple(numbers)


def fill(template: str, numbers: Sequence[str]) -> str:
    """Put block indices into the `{}` of a dotted template, in order."""
    if "{}" not in template:
        return template
    pieces = template.split("{}")
    return "".join(piece + number for piece, number in zip(pieces, [*numbers, ""], strict=False))


def numbered(template: str, name: str) -> list[tuple[str, str]]:
    """The numbers that fill a template's {}, each with the name before it: (`double_blocks`, "7"),
    (`down.{}.block`, "0").
    """
    numbers, before = [], ""
    for word, actual in zip(template.split("."), name.split("."), strict=False):
        if word == "{}":
            numbers.append((before, actual))
        before = f"{before}.{word}" if before else word
    return numbers


def unify(shape: tuple[Size, ...], actual: Sequence[int]) -> dict[str, int] | None:
    """Solve a row's symbols against real sizes; None where they disagree or the number of
    dimensions differs.
    """
    if len(shape) != len(actual):
        return None
    known: dict[str, int] = {}
    waiting = list(zip(shape, actual, strict=True))
    while waiting:
        rest = []
        for size, number in waiting:
            unknown = [term for term in size if term[0] and term[0] not in known]
            remainder = number - sum(
                factor * known.get(symbol, 1)
                for symbol, factor in size
                if (symbol, factor) not in unknown
            )
            if len(unknown) > 1:
                rest.append((size, number))
            elif unknown:
                symbol, factor = unknown[0]
                if remainder <= 0 or remainder % factor:
                    return None
                known[symbol] = remainder // factor
            elif remainder:
                return None
        if len(rest) == len(waiting):
            return known
        waiting = rest
    return known


def evaluate(size: Size, known: Mapping[str, int]) -> int | None:
    """The number a symbolic size stands for, None while a symbol is unknown."""
    if any(symbol and symbol not in known for symbol, _ in size):
        return None
    return sum(factor * (known[symbol] if symbol else 1) for symbol, factor in size)


def slices(
    row: TableRow, alternative: int, part: int, shapes: tuple[tuple[int, ...], ...]
) -> tuple[Slice, ...] | None:
    """Where the part's rows land in native weights of these shapes; None where the shapes do not
    fit the row.

    A size of 0 is not known: a whole weight can then still be meant, a part of one cannot be
    placed.
    """
    whole = alternative < 0 or (
        len(row.native) == 1 and len(row.alternatives[alternative].parts) == 1
    )
    if any(0 in shape for shape in shapes):
        return (Slice(0, None, None),) if whole else None
    known = unify(row.shape, shapes[0]) if row.shape is not None and len(row.native) == 1 else {}
    if known is None:
        return None
    if whole:
        return (Slice(0, None, None),)
    outputs = [shape[0] if shape else 0 for shape in shapes]
    bounds = _bounds(row.alternatives[alternative].parts, known, sum(outputs))
    if bounds is None:
        return None
    return tuple(_overlaps(outputs, bounds[part]))


def _bounds(parts: tuple[Part, ...], known: Mapping[str, int], total: int) -> list[Rows] | None:
    sizes = [evaluate(part.size, known) if part.size is not None else None for part in parts]
    unsized = sum(part.size is None for part in parts)
    rest = total - sum(size or 0 for size in sizes)
    if (unsized and (rest <= 0 or rest % unsized)) or (not unsized and rest):
        return None
    if any(size is None and part.size is not None for size, part in zip(sizes, parts, strict=True)):
        return None
    return list(laid(rest // unsized if size is None else size for size in sizes))


def _overlaps(outputs: Sequence[int], part: Rows) -> Iterable[Slice]:
    for index, weight in enumerate(laid(outputs)):
        common = part.intersect(weight)
        if common:
            yield Slice(
                index,
                common.shift(-weight.start).unless_all(weight.length),
                common.shift(-part.start).unless_all(part.length),
            )


def in_one_form(rows: Iterable[TableRow]) -> Iterable[TableRow]:
    """The rows but for those of a weight in another form: of layers that a model has fused or
    apart, the form that stands first.
    """
    spelled: set[str] = set()
    for row in rows:
        if not (row.optional and row.native[0] in spelled):
            yield row
            spelled.update(
                part.name
                for alternative in row.alternatives
                for part in alternative.parts
                if len(alternative.parts) > 1
            )


def read_table(path: Path) -> Family:
    """Read the table at `path`; raises TableError naming file, line, what is
    wrong and the remedy.
    """
    return parse_table(path.stem, read_text(path, TableError), str(path))


def parse_table(name: str, text: str, source: str = "table") -> Family:
    """Parse the text of a table into a Family called `name`."""
    reader = _Reader(source)
    for number, line in lines_of(text):
        reader.read(number, line)
    return reader.family(name)


class _Reader:
    """Collects one table line by line; a section's headers apply to all rows
    until the next header.
    """

    def __init__(self, source: str):
        self.source, self.line, self.text = source, 0, ""
        self.directives: dict[str, list[str]] = {name: [] for name in DIRECTIVES}
        self.lines: dict[tuple[str, str], int] = {}  # where each directive stands
        self.names_others = False  # whether the row has a ` = `
        self.sections: list[tuple[str, tuple[str, ...], bool]] = [("", ("",), False)]
        self.header_open = False
        self.rows: list[TableRow] = []
        self.written = 0

    def fail(self, fault: str, remedy: str, directive: tuple[str, str] | None = None) -> TableError:
        if directive:
            self.line = self.lines[directive]
        return TableError(at_line(self.source, self.line, fault, remedy))

    def read(self, number: int, line: str) -> None:
        self.line, self.text = number, line.strip()
        line = self.text
        if "{}{}" in line:
            raise self.fail(message("key_maps.indices_adjoin"), message("key_maps.part_indices"))
        if line.startswith("@"):
            keyword, _, rest = line[1:].partition(" ")
            if keyword not in self.directives:
                known = joined("@" + word for word in self.directives)
                raise self.fail(
                    message("key_maps.unknown_directive", directive=keyword),
                    message("key_maps.use_one_of", known=known),
                )
            if keyword == "names" and rest.strip() in ("", "native", "diffusers"):
                raise self.fail(message("key_maps.bad_names"), message("key_maps.names_remedy"))
            self.directives[keyword].append(rest.strip())
            self.lines[keyword, rest.strip()] = number
        elif line.startswith("["):
            self._section(line)
        else:
            self.header_open = False
            self._row(line)

    def _section(self, line: str) -> None:
        if not line.endswith("]"):
            raise self.fail(message("key_maps.open_header"), message("key_maps.write_header"))
        native, _, others = line[1:-1].partition("=")
        native, optional = native.strip().removesuffix("?"), native.strip().endswith("?")
        names = tuple(other.strip() for other in others.split("|") if other.strip()) or (native,)
        for other in names:
            if other.count("{}") != native.count("{}"):
                raise self.fail(
                    message("key_maps.other_indices", name=other, native=native),
                    message("key_maps.give_indices"),
                )
        if not self.header_open:
            self.sections = []
        self.header_open = True
        self.sections.append((native, names, optional))

    def _row(self, line: str) -> None:
        left, equals, right = line.partition(" = ")
        self.names_others = bool(equals)
        tokens, widens_input = left.split(), False
        if "+" in tokens:
            names, shape = tokens[0::2], None
            if any(token != "+" for token in tokens[1::2]):
                raise self.fail(message("key_maps.fused_shape"), message("key_maps.write_fused"))
        else:
            widens_input = tokens[-1].endswith("..")
            tokens[-1] = tokens[-1].removesuffix("..")
            names, shape = tokens[:1], self._shape(tokens[1:])
        optional, names[0] = names[0].endswith("?"), names[0].removesuffix("?")
        alternatives = (
            [self._alternative(text) for text in right.split("|")] if right.strip() else []
        )
        for native, others, maybe in self.sections:
            self._add_row(
                native,
                others,
                names,
                shape,
                alternatives=alternatives,
                widens_input=widens_input,
                optional=optional or maybe,
            )

    def _add_row(
        self,
        native: str,
        others: tuple[str, ...],
        names: list[str],
        shape: tuple[Size, ...] | None,
        *,
        alternatives: list[Alternative],
        widens_input: bool,
        optional: bool,
    ) -> None:
        self.written += sum(len(other) + 8 for other in (native, *others)) * (
            1 + sum(len(one.parts) for one in alternatives)
        )
        self.written += len(self.text) * (1 + len(others))
        if self.written > MAX_WRITTEN:
            raise self.fail(message("key_maps.too_many_names"), message("key_maps.leave_out"))
        spelled = []
        for alternative in alternatives or [Alternative((Part(names[0], None),))] * (
            len(names) == 1
        ):
            for other in others:
                parts = tuple(
                    Part(_join(other, part.name), part.size) for part in alternative.parts
                )
                spelled.append(Alternative(parts, alternative.swap))
        whose = self.directives["names"][-1] if self.directives["names"] else ""
        self.rows.append(
            TableRow(
                tuple(_join(native, name) for name in names),
                shape,
                tuple(spelled),
                self.line,
                widens_input,
                optional,
                whose,
            )
        )

    def _shape(self, tokens: list[str]) -> tuple[Size, ...] | None:
        if not tokens:
            raise self.fail(message("key_maps.no_shape"), message("key_maps.give_shape"))
        return None if tokens == ["-"] else tuple(self._size(token) for token in tokens)

    def _size(self, text: str) -> Size:
        terms: dict[str, int] = {}
        for term in text.split("+"):
            match = TERM.fullmatch(term)
            if not match or not term:
                id = "key_maps.write_size" if self.names_others else "key_maps.write_size_or_names"
                raise self.fail(message("key_maps.no_size", text=text[:MAX_TOLD]), message(id))
            factor, symbol = match.groups()
            if len(factor) > MAX_DIGITS:
                remedy = message("key_maps.most_digits", most=MAX_DIGITS)
                raise self.fail(message("key_maps.too_many_digits"), remedy)
            terms[symbol] = terms.get(symbol, 0) + int(factor or 1)
        if any(factor == 0 for factor in terms.values()):
            zero = message("key_maps.size_of_zero", text=text[:MAX_TOLD])
            raise self.fail(zero, message("key_maps.smallest_size"))
        return tuple(sorted(terms.items()))

    def _alternative(self, text: str) -> Alternative:
        text = text.strip()
        swap = text.startswith("~")
        parts = []
        for piece in text.removeprefix("~").split("+"):
            name, colon, size = piece.strip().partition(":")
            if not name or " " in name or (colon and not size):
                raise self.fail(
                    message("key_maps.no_name", text=piece.strip()),
                    message("key_maps.write_names"),
                )
            parts.append(Part(name, self._size(size) if size else None))
        if swap and len(parts) > 1:
            raise self.fail(message("key_maps.swap_of_several"), message("key_maps.split_row"))
        return Alternative(tuple(parts), swap)

    def family(self, name: str) -> Family:
        title = self.directives["title"]
        if len(title) != 1:
            fault, remedy = message("key_maps.no_title"), message("key_maps.add_title")
            raise TableError(about_file(self.source, fault, remedy))
        kind = self.directives["kind"][-1] if self.directives["kind"] else "denoiser"
        if kind not in ("denoiser", "text_encoder"):
            fault, remedy = message("key_maps.unknown_kind", kind=kind), message("key_maps.kinds")
            raise self.fail(fault, remedy, ("kind", kind))
        if not self.rows:
            fault, remedy = message("key_maps.no_rows"), message("key_maps.add_row")
            raise TableError(about_file(self.source, fault, remedy))
        rows = tuple(self.rows)
        self._check_sums(rows)
        root = self.directives["root"][-1] if self.directives["root"] else "transformer"
        marks = tuple(mark for text in self.directives["metadata"] for mark in text.split())
        sizes, blocks, common = (
            self._by_variant("sizes"),
            self._by_variant("blocks"),
            bool(self.directives["common"]),
        )
        return Family(
            name,
            title[0],
            rows,
            self._encoders(),
            sizes,
            self._lookup(rows),
            kind,
            root,
            blocks,
            marks,
            self._inputs(),
            common,
            self._beside(),
            self._branches(rows),
            tuple(
                word.replace("_", " ")
                for text in self.directives["stages"]
                for word in text.split()
            ),
            tuple(
                f"{flatten(word)}_"
                for text in self.directives["elsewhere"]
                for word in text.split()
            ),
        )

    def _encoders(self) -> dict[str, tuple[str, ...]]:
        encoders = {}
        for text in self.directives["encoder"]:
            slot, *prefixes = text.split() or [""]
            if not prefixes:
                line = f"@encoder {slot}".rstrip()
                raise self.fail(
                    message("key_maps.no_prefix", line=line),
                    message("key_maps.write_encoder"),
                    ("encoder", text),
                )
            encoders[slot] = tuple(prefixes)
        return encoders

    def _beside(self) -> dict[str, str]:
        """`@beside name=name.in.the.file`: modules outside of the diffusion model."""
        beside = {}
        for text in self.directives["beside"]:
            for pair in text.split() or [""]:
                name, _, stored = pair.partition("=")
                if not name or not stored or "." in name:
                    line = f"@beside {pair}".rstrip()
                    raise self.fail(
                        message("key_maps.no_stored_name", line=line),
                        message("key_maps.write_beside"),
                        ("beside", text),
                    )
                beside[name] = stored
        return beside

    def _inputs(self) -> Inputs:
        """`@inputs 64<384 64<128..`: widths of published models; `<`: begins as, `..`: control
        LoRAs make a model as wide all the same.
        """
        fixed, begins = set(), set()
        for text in self.directives["inputs"]:
            try:
                chains = [[_width(width) for width in chain.split("<")] for chain in text.split()]
            except ValueError:
                raise self.fail(
                    message("key_maps.unread_directive", directive="inputs", text=text[:MAX_TOLD]),
                    message("key_maps.write_inputs"),
                    ("inputs", text),
                ) from None
            for chain in chains:
                fixed |= {width for width, grown in chain if not grown}
                begins |= {(narrow, wide) for (narrow, _), (wide, _) in pairwise(chain)}
        return Inputs(frozenset(fixed), frozenset(begins))

    def _branches(self, rows: tuple[TableRow, ...]) -> tuple[Branch, ...]:
        """`@branch image of Wan 2.1 I2V: img_emb blocks.{}.cross_attn.k_img`: of the rows so
        called, or whose names begin so.
        """
        natives = [name for row in rows for name in row.native]
        branches = []
        for text in self.directives["branch"]:
            title, _, names = text.partition(":")
            what, _, owner = title.partition(" of ")
            branch = Branch(what.strip(), owner.strip(), tuple(names.split()))
            alone = (branch._replace(names=(name,)) for name in branch.names)
            if not all((branch.what, branch.owner, branch.names)) or not all(
                any(map(one.holds, natives)) for one in alone
            ):
                raise self.fail(
                    message("key_maps.unread_directive", directive="branch", text=text[:MAX_TOLD]),
                    message("key_maps.write_branch"),
                    ("branch", text),
                )
            branches.append(branch)
        return tuple(branches)

    def _by_variant(self, directive: str) -> dict[str, dict[str, int]]:
        """The numbers of each published variant: `@sizes dev: h=3072 m=12288`; without a name they
        hold for all.
        """
        numbers: dict[str, dict[str, int]] = {}
        for text in self.directives[directive]:
            variant, _, written = text.rpartition(":")
            try:
                pairs = {
                    name: _count(number)
                    for name, number in (pair.split("=") for pair in written.split())
                }
            except ValueError:
                raise self.fail(
                    message("key_maps.unread_directive", directive=directive, text=text[:MAX_TOLD]),
                    message("key_maps.write_numbers", most=MAX_DIGITS),
                    (directive, text),
                ) from None
            numbers.setdefault(variant.strip(), {}).update(pairs)
        return numbers

    def _check_sums(self, rows: tuple[TableRow, ...]) -> None:
        for row in rows:
            for alternative in row.alternatives:
                sizes = [part.size for part in alternative.parts if part.size is not None]
                if row.shape is None or len(sizes) < len(alternative.parts) or len(row.native) > 1:
                    continue
                total: dict[str, int] = {}
                for symbol, factor in (term for size in sizes for term in size):
                    total[symbol] = total.get(symbol, 0) + factor
                if tuple(sorted(total.items())) != row.shape[0]:
                    self.line = row.line
                    raise self.fail(
                        message("key_maps.wrong_sum", name=row.native[0]),
                        message("key_maps.correct_sizes"),
                    )

    def _lookup(self, rows: tuple[TableRow, ...]) -> Lookup:
        seen: dict[Seen, Entry] = {}
        for index, row in enumerate(rows):
            # Fused native names are found by their own rows.
            natives = [(-1, 0, row.native[0])] if len(row.native) == 1 else []
            others = [
                (a, p, part.name)
                for a, alt in enumerate(row.alternatives)
                for p, part in enumerate(alt.parts)
            ]
            for alternative, part, name in natives + others:
                if name.rpartition(".")[2] != UNNAMED:
                    self._enter(seen, rows, (index, alternative, part), name)
        lookup: dict[str, dict[tuple[int, ...], dict[tuple[str, ...], list[Entry]]]] = {}
        for (template, literals, positions, _), entry in seen.items():
            lookup.setdefault(template, {}).setdefault(positions, {}).setdefault(
                literals, []
            ).append(entry)
        return {
            template: tuple(sorted(groups.items(), key=lambda group: -len(group[0])))
            for template, groups in lookup.items()
        }

    def _enter(
        self, seen: dict[Seen, Entry], rows: tuple[TableRow, ...], entry: Entry, name: str
    ) -> None:
        marked = flatten(name.replace("{}", "0free0"))
        words = marked.split("_")
        numbers = [word for word in words if word.isdecimal() or word == "0free0"]
        positions = tuple(i for i, number in enumerate(numbers) if number != "0free0")
        template = "_".join(
            "{}" if word.isdecimal() or word == "0free0" else word for word in words
        )
        row = rows[entry[0]]
        key = (template, tuple(numbers[i] for i in positions), positions, row.shape)
        other = seen.setdefault(key, entry)
        if other != entry and self._meaning(rows, other) != self._meaning(rows, entry):
            self.line = row.line
            raise self.fail(
                message("key_maps.ambiguous", name=name, line=rows[other[0]].line),
                message("key_maps.ambiguous_remedy"),
            )

    @staticmethod
    def _meaning(rows: tuple[TableRow, ...], entry: Entry) -> tuple[object, ...]:
        row, (_, alternative, part) = rows[entry[0]], entry
        if alternative < 0 or len(row.alternatives[alternative].parts) == 1:
            return row.native, alternative >= 0 and row.alternatives[alternative].swap
        sizes = [piece.size for piece in row.alternatives[alternative].parts]
        return row.native, tuple(sizes), part


def _count(text: str) -> int:
    """A number from 1 on. Raises ValueError for all else."""
    number = int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else 0
    if not number:
        raise ValueError(text)
    return number


def _width(text: str) -> tuple[int, bool]:
    """A published width, and whether it is marked as one that a LoRA may make. Raises ValueError
    for all else.
    """
    return _count(text.removesuffix("..")), text.endswith("..")


def _join(prefix: str, name: str) -> str:
    if name.startswith("/"):
        return name[1:]
    return f"{prefix}.{name}" if prefix else name


@cache
def families(folder: Path = FOLDER) -> Mapping[str, Family]:
    """Every family whose table lies in `folder`, by file name: the folder is the registry."""
    return {path.stem: read_table(path) for path in sorted(folder.glob("*.table"))}
