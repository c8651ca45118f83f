"""Makes the metadata in a LoRA file's header readable: training, network, base model, dataset,
trigger words, tags and trainer.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

from ..errors import LocksmithError
from ..key_maps import KEY_MAPS
from ..key_maps.lines import lines_of, read_text
from ..messages import joined, message, text_of
from .labels import label as label_of
from .metadata_values import (
    MAX_ITEMS,
    MAX_JSON,
    MAX_NAME,
    MAX_TEXT,
    PLAIN,
    NotOfKind,
    as_text,
    listed,
    named,
    parse_json,
    quoted,
    shortened,
)

METADATA_TABLE = KEY_MAPS / "metadata.table"

# What is read at most: metadata is written by strangers, and a header may have 100 MB.
MAX_UNKNOWN_TEXT = 300  # characters of an unknown value
MAX_UNKNOWN = 1_000  # unknown keys
MAX_ROWS = 60  # rows that one key becomes
MAX_ENTRIES = 10_000  # folders, datasets or settings in one value
MAX_PROBLEMS = 50
MAX_COUNT = 10**12  # what a number of images or captions may be
MAX_TAGS_AS_TRIGGERS = 10
MAX_TRIGGERS = 1_000  # pieces of evidence for trigger words

# A tag counts as a trigger word where it stands in nearly every caption of one folder that is large
# enough to tell.
NEARLY_ALL = 0.9
MIN_IMAGES = 3

UNSET = frozenset({"", "none", "null"})
HEX = re.compile(r"(0x)?[0-9a-fA-F]{8,64}$")
FOLDER = re.compile(r"(\d{1,9})_(.*)$", re.DOTALL)
HINTED_WORDS = re.compile(
    r"\s*(?:trigger|activation) (?:word|phrase|tag)s?\s*:\s*(\S.*)", re.IGNORECASE | re.DOTALL
)
# Kinds of values that tell trigger words, or how many images there are of which.
TELLING = ("trigger", "hint", "tags", "folders", "regular_folders", "datasets")
STATED, FOLDERS, TAGS = range(3)  # how good the evidence for a trigger word is, best first


class MetadataTableError(LocksmithError, ValueError):
    """A line of metadata.table that breaks the rules: the text names line, fault and remedy."""


class TriggerWord(NamedTuple):
    """A word or phrase that a prompt needs, and what says so.

    rank: how good the evidence is: STATED, FOLDERS (of the training images) or TAGS (that stand in
    nearly all captions).
    """

    word: str
    evidence: tuple[str, ...]
    rank: int = 0


class Tag(NamedTuple):
    """A tag of the training captions: in how many captions it stands, and the share of the images
    (None: their number is unknown).
    """

    tag: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not asked here
    share: float | None


class Tags(NamedTuple):
    """The `most` frequent tags, how many different ones there are, and the number of images (None:
    not in the file).
    """

    most: tuple[Tag, ...] = ()
    total: int = 0
    images: int | None = None


class BaseModel(NamedTuple):
    """What the LoRA was trained on; a hash is SHA-256 (64 digits) or the short AutoV1 (8 digits);
    empty where the file does not say.
    """

    name: str = ""
    hash: str = ""


class Metadata(NamedTuple):
    """A file's metadata, readable. `sections`: title -> ((label, text), ...) in the table's order;
    `unknown`: (key, text).
    """

    sections: Mapping[str, tuple[tuple[str, str], ...]]
    trigger_words: tuple[TriggerWord, ...]
    tags: Tags
    resolution: str
    base_model: BaseModel
    hashes: Mapping[str, str]
    trainer_version: str
    unknown: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The metadata as plain JSON types."""
        return {
            "sections": {
                title: [list(row) for row in rows] for title, rows in self.sections.items()
            },
            "trigger_words": [
                {"word": word.word, "evidence": list(word.evidence)} for word in self.trigger_words
            ],
            "tags": {
                "most": [tag._asdict() for tag in self.tags.most],
                "total": self.tags.total,
                "images": self.tags.images,
            },
            "resolution": self.resolution,
            "base_model": self.base_model._asdict(),
            "hashes": dict(self.hashes),
            "trainer_version": self.trainer_version,
            "unknown": [list(row) for row in self.unknown],
            "problems": list(self.problems),
        }


def read_metadata(metadata: Mapping[str, str], most_tags: int = 50) -> Metadata:
    """Read a safetensors header's metadata (str -> str) with the `most_tags` most frequent tags.

    Never raises for what the metadata holds; broken parts are named in `problems`, unknown keys
    stand in `unknown`.
    """
    if not metadata or not isinstance(metadata, Mapping):
        return Metadata({}, (), Tags(), "", BaseModel(), {}, "", (), ())
    reader = _Reader()
    for key, value in metadata.items():
        reader.take(as_text(key), as_text(value))
    return reader.finish(most_tags)


def trigger_words_of(metadata: Mapping[str, str], noted: Iterable[str] = ()) -> tuple[str, ...]:
    """The trigger words that `read_metadata` finds, behind those `noted` beside the file; nothing
    else is read.
    """
    reader = _Reader()
    for key, value in metadata.items():
        if key in reader.table.telling:
            reader.take(key, as_text(value))
    reader._count_tags(0)
    words = {word.casefold(): word for word in noted}
    words |= {known.word.casefold(): known.word for known in reader._trigger_words()}
    return tuple(words.values())


class MetadataRule(NamedTuple):
    """One line of the table: how a key is read, shown where and as what; `words` may stand in place
    of a number.
    """

    path: tuple[str, ...]
    kind: str
    label: str
    section: str
    order: int
    words: tuple[str, ...] = ()


class Version(NamedTuple):
    """A `@trainer` line: where the value of `path` begins with `start`, the tool is `template`."""

    path: str
    start: str
    template: str


class Table(NamedTuple):
    """metadata.table: rules by path, the rules inside each outer key, answers by name, the
    trainers in order, and the keys that tell of trigger words.
    """

    rules: Mapping[tuple[str, ...], MetadataRule]
    inner: Mapping[str, tuple[MetadataRule, ...]]
    answers: Mapping[str, tuple[str, ...]]
    trainers: tuple[Version, ...]
    sections: tuple[str, ...]
    telling: frozenset[str]


def with_words(metadata: Metadata, noted: Iterable[tuple[str, str]]) -> Metadata:
    """The metadata with trigger words (word, name of the file that says so) from beside the file,
    which stand first.
    """
    words = {word.casefold(): TriggerWord(word, (file,), STATED) for word, file in noted}
    for known in metadata.trigger_words:
        name = known.word.casefold()
        evidence = (*(words[name].evidence if name in words else ()), *known.evidence)
        rank = min(known.rank, words[name].rank if name in words else known.rank)
        words[name] = TriggerWord(known.word, evidence, rank)
    return metadata._replace(trigger_words=tuple(words.values()))


def words_to_use(metadata: Metadata) -> list[str]:
    """The trigger words of the best evidence that there is, for a prompt."""
    best = min((word.rank for word in metadata.trigger_words), default=STATED)
    return [word.word for word in metadata.trigger_words if word.rank == best]


@lru_cache(maxsize=1)
def metadata_table() -> Table:
    """The knowledge in metadata.table."""
    return read_table(read_text(METADATA_TABLE))


def read_table(text: str) -> Table:
    """Read the table's `text`; raises MetadataTableError naming line, fault and remedy."""
    rules: dict[tuple[str, ...], MetadataRule] = {}
    answers: dict[str, tuple[str, ...]] = {}
    trainers: list[Version] = []
    section = ""
    for number, line in lines_of(text):
        words = line.split(None, 2)
        if words[0].startswith("["):
            section = label_of("metadata.section", line.strip()[1:-1])
        elif words[0] == "@trainer" and len(words) == 3 and "=" in words[1]:
            key, _, value = words[1].partition("=")
            trainers.append(Version(key, value, words[2].strip()))
        elif words[0].startswith("@") and words[0] != "@trainer":
            answers[words[0][1:]] = tuple(line.split()[1:])
        else:
            rule = _rule(number, words, section, rules)
            if rule.path in rules:
                raise MetadataTableError(message("metadata.key_twice", line=number, key=words[0]))
            rules[rule.path] = rule
    return Table(
        rules,
        _inner_rules(rules),
        answers,
        tuple(trainers),
        tuple(dict.fromkeys(rule.section for rule in rules.values())),
        frozenset(path[0] for path, rule in rules.items() if rule.kind in TELLING),
    )


def _rule(
    number: int,
    words: list[str],
    section: str,
    rules: Mapping[tuple[str, ...], MetadataRule],
) -> MetadataRule:
    if len(words) < 3 or not section:
        raise MetadataTableError(message("metadata.key_alone", line=number, key=words[0]))
    kind, *allowed = words[1].split("|")
    if kind not in PLAIN and kind not in STRUCTURED and kind not in SPECIAL:
        known = ", ".join(sorted({*PLAIN, *STRUCTURED, *SPECIAL}))
        raise MetadataTableError(
            message("metadata.unknown_kind", line=number, kind=kind, known=known)
        )
    path = tuple(words[0].split(">"))
    outer = rules.get(path[:1])
    inside = "metadata.field" if outer and outer.kind == "adapter" else "metadata.label"
    label = label_of(inside, words[2].strip())
    return MetadataRule(path, kind, label, section, len(rules), tuple(allowed))


def _inner_rules(
    rules: Mapping[tuple[str, ...], MetadataRule],
) -> dict[str, tuple[MetadataRule, ...]]:
    inner: dict[str, tuple[MetadataRule, ...]] = {}
    for path, rule in rules.items():
        if len(path) > 1:
            inner[path[0]] = (*inner.get(path[0], ()), rule)
    return inner


class _Reader:
    """Collects what the keys of one file say."""

    def __init__(self) -> None:
        self.table = metadata_table()
        self.rows: list[tuple[int, int, str, str, str]] = []  # order, number, section, label, text
        self.values: dict[str, str] = {}  # path -> text, where it has a value
        self.problems: list[str] = []
        self.unknown: list[tuple[str, str]] = []
        self.unlisted = 0
        self.json_left = MAX_JSON
        self.triggers: list[tuple[int, str, str]] = []  # how good the evidence is, word, evidence
        self.frequencies: tuple[MetadataRule, dict[str, Any]] | None = None
        self.images: dict[str, int] = {}  # folder -> number of images
        self.regular: set[str] = set()  # folders of regularisation images

    def take(self, key: str, text: str) -> None:
        """Read one key of the metadata."""
        rule = self.table.rules.get((key,))
        if rule is None:
            self._unknown(key, text)
        elif rule.kind in STRUCTURED:
            if len(text) > 8 or text.strip().lower() not in UNSET:
                self._structured(rule, key, text)
        else:
            self._plain(rule, key, text)

    def _unknown(self, key: str, text: str) -> None:
        if len(self.unknown) >= MAX_UNKNOWN:
            self.unlisted += 1
            return
        self.unknown.append(
            (named(key) or message("metadata.no_name"), shortened(text, MAX_UNKNOWN_TEXT))
        )

    def _plain(self, rule: MetadataRule, path: str, text: str, label: str = "") -> None:
        if len(text) < 8 and text.strip().lower() in UNSET:
            return
        if rule.kind in SPECIAL:
            SPECIAL[rule.kind](self, path, text)
        try:
            shown = (
                text.strip()
                if text.strip() in rule.words
                else PLAIN.get(rule.kind, shortened)(text)
            )
        except (ValueError, RecursionError, OverflowError) as error:
            shown = named(text)
            unread = message("files.cannot_be_read")
            fault = text_of(error) if isinstance(error, NotOfKind) else unread
            self._problem(message("metadata.value", key=path, value=_quoted(text), fault=fault))
        self.values.setdefault(path, shown if rule.kind in RESOLUTIONS else shortened(text.strip()))
        self._row(rule, label or rule.label, shown)

    def _structured(self, rule: MetadataRule, key: str, text: str) -> None:
        if len(text) > self.json_left:
            self._problem(message("metadata.too_long", key=key, count=len(text)))
            self._row(rule, rule.label, PLAIN["size"](text))
            return
        self.json_left -= len(text)
        try:
            content = parse_json(text)
        except ValueError as error:
            self._broken(rule, key, text, text_of(error))
            return
        if content is None:
            return
        wanted = list if rule.kind == "datasets" else dict
        if not isinstance(content, wanted):
            fault = "metadata.no_list" if wanted is list else "metadata.no_object"
            self._broken(rule, key, text, message(fault))
            return
        STRUCTURED[rule.kind](self, rule, content)

    def _broken(self, rule: MetadataRule, key: str, text: str, fault: str) -> None:
        # A bare word where others write an object (`software`: ai-toolkit) is no fault.
        if rule.kind == "each" and text[:1] not in "{[":
            self.values.setdefault(f"{key}>name", shortened(text.strip(), MAX_NAME))
        else:
            self._problem(message("metadata.broken_json", key=key, fault=shortened(fault, 200)))
        self._row(rule, rule.label, shortened(text, MAX_UNKNOWN_TEXT))

    def _row(self, rule: MetadataRule, label: str, text: str) -> None:
        self.rows.append((rule.order, len(self.rows), rule.section, label, text))

    def _problem(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    # JSON values

    def _entries(self, rule: MetadataRule, content: dict[str, Any] | list[Any]) -> list[Any]:
        """The first entries, as many as are read; that there are more is a problem."""
        if len(content) > MAX_ENTRIES:
            self._problem(
                message(
                    "metadata.many_entries",
                    key=rule.path[0],
                    count=len(content),
                    most=f"{MAX_ENTRIES:,}",
                )
            )
        return list(islice(content.items() if isinstance(content, dict) else content, MAX_ENTRIES))

    def _each(self, rule: MetadataRule, content: dict[str, Any], label: str = "") -> None:
        """Every entry of an object becomes a row: under the table's label where it has one, else
        under its own name.
        """
        shown = 0
        for name, value in content.items():
            if shown == MAX_ROWS:
                more = message("joints.and_more", count=len(content) - shown)
                self._row(rule, label or rule.label, more)
                return
            if value is None or value in ([], {}, ""):
                continue
            shown += 1
            known = self.table.rules.get((rule.path[0], name))
            if known is None:
                title = _within(label, named(name)) or _numbered(rule.label, name)
                self._row(rule, title, shortened(as_text(value), MAX_UNKNOWN_TEXT))
                continue
            title = _within(label, known.label) or known.label
            if known.kind == "count":
                self._count(known, value, title)
            else:
                self._plain(known, ">".join(known.path), as_text(value), title)

    def _some(self, rule: MetadataRule, content: dict[str, Any]) -> None:
        """Only the entries that the table names become rows; one more says how many there are."""
        for inner in self.table.inner.get(rule.path[0], ()):
            value: Any = content
            for name in inner.path[1:]:
                value = value.get(name) if isinstance(value, dict) else None
            if value is None or value in ("", [], {}):
                continue
            if inner.kind == "count":
                self._count(inner, value, inner.label)
            else:
                self._plain(inner, ">".join(inner.path), as_text(value))
        self._row(rule, rule.label, message("metadata.settings", count=len(content)))

    def _adapter(self, rule: MetadataRule, content: dict[str, Any]) -> None:
        """PEFT's settings, whose names are `network.field`."""
        parts: dict[str, dict[str, Any]] = {}
        others = message("metadata.other_networks")
        for name, value in self._entries(rule, content):
            network, _, field = name.rpartition(".")
            network = network if network in parts or len(parts) < MAX_ITEMS else others
            # False is what PEFT writes for everything that is not used; it is shown where the table
            # knows the field.
            if value is not False or (rule.path[0], field) in self.table.rules:
                parts.setdefault(network, {})[field] = value
        for network, fields in parts.items():
            self._each(rule, fields, named(network) or message("metadata.adapter"))

    def _count(self, rule: MetadataRule, content: Any, label: str = "") -> None:
        count = len(content) if isinstance(content, (dict, list)) else 1
        items = list(content.items())[:MAX_ITEMS] if isinstance(content, dict) else []
        pairs = [f"{named(name)} = {named(value)}" for name, value in items]
        self._row(rule, label or rule.label, listed(pairs, count) if pairs else f"{count:,}")

    def _folders(self, rule: MetadataRule, content: dict[str, Any]) -> None:
        """ss_dataset_dirs: {folder: {"n_repeats": int, "img_count": int}}."""
        for number, (folder, facts) in enumerate(self._entries(rule, content)):
            facts = facts if isinstance(facts, dict) else {}
            self._folder(folder, facts.get("img_count"), rule.kind == "regular_folders")
            if number < MAX_ROWS:
                self._row(rule, _numbered(rule.label, folder), _images_and_repeats(facts))
        if len(content) > MAX_ROWS:
            self._row(rule, rule.label, message("joints.and_more", count=len(content) - MAX_ROWS))

    def _folder(self, folder: str, count: Any, regular: bool) -> None:
        if _is_count(count):
            self.images.setdefault(folder, count)
        if regular:
            self.regular.add(folder)
            return
        name = FOLDER.match(folder)
        if name and name.group(2).strip():
            evidence = message("metadata.by_folder", folder=named(folder))
            self._trigger(FOLDERS, name.group(2), evidence)

    def _buckets(self, rule: MetadataRule, content: dict[str, Any]) -> None:
        """ss_bucket_info: {"buckets": {number: {"resolution": [width, height], "count": int}}}."""
        text = _bucket_text(content)
        if text:
            self._row(rule, rule.label, text)

    def _datasets(self, rule: MetadataRule, content: list[Any]) -> None:
        """ss_datasets: one object per dataset, each with `subsets` (sd-scripts) or a directory
        (musubi-tuner).
        """
        sizes: dict[str, None] = {}
        for number, dataset in enumerate(self._entries(rule, content), 1):
            if not isinstance(dataset, dict):
                self._problem(message("metadata.dataset_no_object", number=number))
                continue
            size = dataset.get("resolution")
            if size is not None and len(sizes) < MAX_ITEMS:
                sizes[_resolution_or_name(size)] = None
            subsets = dataset.get("subsets")
            subsets = (
                [subset for subset in subsets if isinstance(subset, dict)]
                if isinstance(subsets, list)
                else []
            )
            for subset in subsets[:MAX_ENTRIES]:
                self._subset(subset)
            if number <= MAX_ROWS:
                title = message("metadata.dataset", number=number)
                self._row(rule, title, _dataset_text(dataset))
                for subset in subsets[:MAX_ITEMS]:
                    name = _subset_name(subset)
                    name = message("metadata.subset", dataset=title, subset=name)
                    self._row(rule, name, _subset_text(subset))
        if sizes:
            self.values.setdefault("ss_datasets>resolution", joined(sizes, "comma"))

    def _subset(self, subset: dict[str, Any]) -> None:
        folder = subset.get("metadata_file") or subset.get("image_dir")
        regular = subset.get("is_reg") is True
        if isinstance(folder, str):
            self._folder(folder, subset.get("img_count"), regular)
        tokens = subset.get("class_tokens")
        if isinstance(tokens, str) and tokens.strip() and not regular:
            self._trigger(FOLDERS, tokens, message("metadata.by_class_tokens"))

    def _tags(self, rule: MetadataRule, content: dict[str, Any]) -> None:
        self.frequencies = (rule, content)

    # Trigger words

    def _trigger(self, rank: int, word: str, evidence: str) -> None:
        if word.strip() and len(self.triggers) < MAX_TRIGGERS:
            self.triggers.append((rank, shortened(word.strip(), 500), evidence))

    def _stated(self, path: str, text: str) -> None:
        words = text
        if text[:1] == "[" and len(text) < 100_000:
            try:
                words = parse_json(text)
            except ValueError:
                words = text
        for word in words[:MAX_ITEMS] if isinstance(words, list) else (words,):
            self._trigger(STATED, as_text(word), message("metadata.says_so", key=path))

    def _hint(self, path: str, text: str) -> None:
        hint = HINTED_WORDS.match(text[:MAX_TEXT])
        if hint:
            self._trigger(STATED, hint.group(1), message("metadata.says_so", key=path))

    def _count_tags(self, most: int) -> Tags:
        """Adds up ss_tag_frequency, {folder: {tag: captions}}, without regularisation images, and
        finds the tags of all captions.
        """
        if self.frequencies is None:
            return Tags()
        rule, content = self.frequencies
        sums: dict[str, int] = {}
        images: int | None = 0
        for folder, tags in self._entries(rule, _folders_of_tags(content)):
            if folder in self.regular and len(content) > 1:
                continue
            counts = _counts(tags)
            if counts is not tags:
                self._problem(message("metadata.no_tag_counts", folder=_quoted(folder)))
            known = self.images.get(folder)
            images = None if known is None or images is None else images + known
            self._tags_as_triggers(folder, counts, known)
            if sums:
                for tag, count in counts.items():
                    sums[tag] = sums.get(tag, 0) + count
            else:
                sums = dict(counts)
        return self._most_frequent(rule, sums, images or None, most)

    def _most_frequent(
        self, rule: MetadataRule, sums: dict[str, int], images: int | None, most: int
    ) -> Tags:
        best = heapq.nlargest(max(0, most), sums.items(), key=itemgetter(1))
        tags = tuple(
            Tag(named(tag), count, min(1.0, round(count / images, 4)) if images else None)
            for tag, count in best
        )
        if sums:
            facts = {
                "count": len(sums),
                "first": ", ".join(f"{tag.tag} ({tag.count:,})" for tag in tags[:10]),
            }
            self._row(
                rule,
                rule.label,
                message("metadata.tags_of_images", images=f"{images:,}", **facts)
                if images
                else message("metadata.tags", **facts),
            )
        return Tags(tags, len(sums), images)

    def _tags_as_triggers(self, folder: str, counts: dict[str, int], images: int | None) -> None:
        """The rule: in at least NEARLY_ALL of the folder's images; where their number is unknown,
        nearly as often as the commonest tag.
        """
        if len(counts) == 1 and folder in (f"{count}_{tag}" for tag, count in counts.items()):
            # ai-toolkit's update_training_metadata writes {"1_word": {"word": 1}} for its
            # trigger_word.
            self._trigger(STATED, next(iter(counts)), message("metadata.only_tag"))
            return
        whole = max(counts.values(), default=0) if images is None else images
        if whole < MIN_IMAGES or len(self.triggers) >= MAX_TRIGGERS:
            return
        least = NEARLY_ALL * whole
        common = [item for item in counts.items() if item[1] >= least]
        for tag, count in heapq.nlargest(MAX_TAGS_AS_TRIGGERS, common, key=itemgetter(1)):
            if images is None:
                evidence = message(
                    "metadata.common_tag",
                    count=count,
                    folder=named(folder),
                    commonest=f"{whole:,}",
                )
            else:
                evidence = message(
                    "metadata.tag_of_captions",
                    tagged=f"{min(count, images):,}",
                    count=images,
                    folder=named(folder),
                )
            self._trigger(TAGS, tag, evidence)

    def _trigger_words(self) -> tuple[TriggerWord, ...]:
        words: dict[str, tuple[str, list[str], int]] = {}
        tags = 0
        for rank, word, evidence in sorted(self.triggers, key=lambda trigger: trigger[0]):
            name = word.casefold()
            if name not in words:
                tags += rank == TAGS
                if len(words) >= MAX_ROWS or tags > MAX_TAGS_AS_TRIGGERS:
                    continue
            evidences = words.setdefault(name, (word, [], rank))[1]
            if evidence not in evidences and len(evidences) < MAX_ITEMS:
                evidences.append(evidence)
        return tuple(
            TriggerWord(word, tuple(evidences), rank) for word, evidences, rank in words.values()
        )

    # The whole

    def finish(self, most_tags: int) -> Metadata:
        """What was read, in the table's order."""
        tags = self._count_tags(most_tags)
        self._duration()
        if self.unlisted:
            self._problem(message("metadata.unlisted", count=self.unlisted))
        sections: dict[str, list[tuple[str, str]]] = {}
        for _, _, section, label, text in sorted(self.rows):
            sections.setdefault(section, []).append((label, text))
        return Metadata(
            {title: tuple(sections[title]) for title in self.table.sections if title in sections},
            self._trigger_words(),
            tags,
            self._resolution(),
            self._base_model(),
            {
                path: self.values[path]
                for path in self.table.answers["hashes"]
                if path in self.values
            },
            self._trainer_version(),
            tuple(self.unknown),
            tuple(self.problems),
        )

    def _answer(self, name: str) -> str:
        return next(
            (self.values[path] for path in self.table.answers[name] if path in self.values), ""
        )

    def _duration(self) -> None:
        started, finished = (
            self.values.get(f"ss_training_{word}_at", "") for word in ("started", "finished")
        )
        try:
            seconds = int(float(finished) - float(started))
        except (ValueError, OverflowError):
            return
        if 0 <= seconds < 10**9:
            hours, minutes = seconds // 3600, seconds // 60
            duration = (
                message("metadata.hours", hours=f"{hours:,}", minutes=minutes % 60)
                if hours
                else message("metadata.minutes", minutes=minutes, seconds=seconds % 60)
            )
            rule = self.table.rules[("ss_training_finished_at",)]
            self._row(rule, message("metadata.label_duration"), duration)

    def _resolution(self) -> str:
        stated = self._answer("stated_resolution")
        return self._answer("resolution") or (
            message("metadata.stated_resolution", resolution=stated) if stated else ""
        )

    def _base_model(self) -> BaseModel:
        hashes = (self.values.get(path, "") for path in self.table.answers["base_hash"])
        return BaseModel(
            shortened(self._answer("base_name"), 500),
            next((text.lower() for text in hashes if HEX.match(text)), ""),
        )

    def _trainer_version(self) -> str:
        for version in self.table.trainers:
            fields = re.findall(r"\{(.*?)\}", version.template)
            if self.values.get(version.path, "\0").startswith(version.start) and all(
                field in self.values for field in fields
            ):
                values = {field: shortened(self.values[field], MAX_NAME) for field in fields}
                return label_of("metadata.trainer", version.template, **values)
        return ""


SPECIAL: dict[str, Callable[[_Reader, str, str], None]] = {
    "trigger": _Reader._stated,
    "hint": _Reader._hint,
}
STRUCTURED: dict[str, Callable[[_Reader, MetadataRule, Any], None]] = {
    "each": _Reader._each,
    "some": _Reader._some,
    "adapter": _Reader._adapter,
    "count": _Reader._count,
    "tags": _Reader._tags,
    "folders": _Reader._folders,
    "regular_folders": _Reader._folders,
    "buckets": _Reader._buckets,
    "datasets": _Reader._datasets,
}
RESOLUTIONS = ("resolution", "resolutions")


def _quoted(text: str) -> str:
    return shortened(text, 40, quoted)


def _within(whole: str, label: str) -> str:
    """The label of something within something else, "" where the whole has no name."""
    return whole and message("joints.about", subject=whole, text=label)


def _numbered(label: str, name: Any) -> str:
    return message("metadata.of_name", label=label, name=named(name))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def _counts(tags: Any) -> dict[str, int]:
    """The counts in one folder's tags: the same object where nothing else is in it."""
    if not isinstance(tags, dict):
        return {}
    # All in one go, because there are thousands.
    if (
        set(map(type, tags.values())) <= {int}
        and min(tags.values(), default=0) >= 0
        and max(tags.values(), default=0) < MAX_COUNT
    ):
        return tags
    return {tag: count for tag, count in tags.items() if _is_count(count)}


def _folders_of_tags(content: dict[str, Any]) -> dict[str, Any]:
    """Tags by folder; some tools write the tags without a folder."""
    if content and all(_is_count(value) for value in content.values()):
        return {message("metadata.the_dataset"): content}
    return content


def _resolution_or_name(value: Any) -> str:
    try:
        return PLAIN["resolution"](as_text(value))
    except ValueError:
        return named(value)


def _images_and_repeats(facts: Mapping[str, Any]) -> str:
    images, repeats = facts.get("img_count"), facts.get("n_repeats", facts.get("num_repeats"))
    number = message("metadata.number_of_images", count=images) if _is_count(images) else ""
    if not _is_count(repeats) or repeats == 1:
        return number or message("metadata.number_unknown")
    repeated = message("metadata.repeated", count=repeats)
    if not number:
        return repeated
    return message("metadata.number_and_repeated", number=number, repeated=repeated)


def _bucket_text(content: Any) -> str:
    buckets = content.get("buckets") if isinstance(content, dict) else None
    if not isinstance(buckets, dict) or not buckets:
        return ""
    facts = [bucket for bucket in list(buckets.values())[:MAX_ROWS] if isinstance(bucket, dict)]
    sizes = [
        f"{_resolution_or_name(bucket.get('resolution'))}: {named(bucket.get('count'))}"
        for bucket in facts
    ]
    return listed(sizes, len(buckets))


# What a dataset's entry is called: the id of a sentence with the entry's text in its gap.
DATASET_FACTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("resolution", "", _resolution_or_name),
    ("batch_size_per_device", "metadata.batch_size", named),
    ("num_train_images", "metadata.images_with_repeats", named),
    ("num_reg_images", "metadata.regularization_images", named),
    ("num_repeats", "metadata.repeats", named),
    ("min_bucket_reso", "metadata.buckets_from", named),
    ("max_bucket_reso", "metadata.buckets_to", named),
    ("image_directory", "metadata.folder", named),
    ("image_jsonl_file", "metadata.image_list", named),
    ("video_directory", "metadata.videos_in", named),
    ("video_jsonl_file", "metadata.image_list", named),
    ("control_directory", "metadata.control_images_in", named),
    ("target_frames", "metadata.frames", named),
    ("frame_extraction", "metadata.frames_taken", named),
    ("max_frames", "metadata.most_frames", named),
    ("source_fps", "metadata.frames_per_second", named),
    ("bucket_info", "metadata.bucket_sizes", _bucket_text),
)


def _dataset_text(dataset: Mapping[str, Any]) -> str:
    """One line on a dataset of sd-scripts (train_network.py) or musubi-tuner
    (dataset/image_video_dataset.py get_metadata).
    """
    texts = [
        (id, read(dataset[name]))
        for name, id, read in DATASET_FACTS
        if dataset.get(name) not in (None, 0, "", [], {})
    ]
    facts = [message(id, text=text) if id else text for id, text in texts if text]
    return shortened(joined(facts, "semicolon")) if facts else message("metadata.no_details")


def _subset_name(subset: Mapping[str, Any]) -> str:
    return named(
        subset.get("image_dir")
        or subset.get("metadata_file")
        or subset.get("class_tokens")
        or message("metadata.a_subset")
    )


# The same of a part of a dataset; a switch has no gap.
SUBSET_FACTS = (
    ("class_tokens", "metadata.class_tokens", False),
    ("is_reg", "metadata.are_regularization_images", True),
    ("shuffle_caption", "metadata.captions_shuffled", True),
    ("keep_tokens", "metadata.tokens_kept", False),
    ("keep_tokens_separator", "metadata.kept_before", False),
    ("caption_prefix", "metadata.captions_begin", False),
    ("caption_suffix", "metadata.captions_end", False),
    ("flip_aug", "metadata.flipped", True),
    ("color_aug", "metadata.colors_changed", True),
    ("random_crop", "metadata.cropped_at_random", True),
    ("enable_wildcard", "metadata.wildcards", True),
)


def _subset_text(subset: Mapping[str, Any]) -> str:
    texts = [_images_and_repeats(subset)]
    for name, id, is_switch in SUBSET_FACTS:
        value = subset.get(name)
        if value in (None, False, 0, "", [], {}):
            continue
        if not is_switch:
            texts.append(message(id, text=named(value)))
        elif value is True:
            texts.append(message(id))
        else:
            texts.append(_within(message(id), named(value)))
    return shortened(joined(texts, "semicolon"))
