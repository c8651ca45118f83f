"""An inspection as Markdown for people, the verdict first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.hashes import Hashes, verify
from ..key_maps.dialect import DENOISER
from ..messages import ENGLISH, Message, Speaker, as_sentence, joined, message
from ..planning.plan import PLACED
from ..planning.scale import FROM_RANK
from .coverage import TrainedBlocks, blocks_of, is_trained
from .inspection import Inspection, spread
from .load_report import Report, category_title, stock_failure

SUMMARY, MODULES, EVERY_KEY = "summary", "modules", "every key"
DETAILS = (SUMMARY, MODULES, EVERY_KEY)
MAX_PATTERNS = 12
MAX_TAGS = 20
MAX_LISTED = 12
LONGEST_CELL = 160
MODULE_HEADS = (
    "inspect.head_module",
    "inspect.head_kind",
    "inspect.head_rank",
    "inspect.head_alpha",
    "inspect.head_goes_to",
)
KEY_HEADS = (
    "inspect.head_key",
    "inspect.head_role",
    "inspect.head_shape",
    "inspect.head_fate",
    "inspect.head_why",
)
BLOCK_HEADS = ("inspect.head_blocks", "inspect.head_modules", "inspect.head_energy")
WEIGHT_HEADS = (
    "inspect.head_module",
    "inspect.head_norm",
    "inspect.head_singular_value",
    "inspect.head_effective_rank",
    "inspect.head_energy",
)
LINES = {"\n": " ", "\r": " "}
IN_CODE = str.maketrans({**LINES, "|": "\\|", "`": "'"})
IN_CELL = str.maketrans({**LINES, "|": "\\|", "`": "'", "<": "&lt;"})
IN_TEXT = str.maketrans({**LINES, "<": "&lt;"})


def markdown(
    inspection: Inspection,
    detail: str = SUMMARY,
    hashes: Hashes | None = None,
    weights: Mapping[str, Any] | None = None,
    name: str = "",
    *,
    language: str = ENGLISH,
) -> str:
    """The report in a language. `detail`: one of DETAILS; `hashes`: the file's; `weights`:
    lora.statistics.Weights.as_dict().

    `name`: what the file is called, where its own name does not tell it from others.
    """
    speak = Speaker(language)
    called = name or Path(inspection.path).name
    sections = [
        ("", [f"**{plain(speak.text(inspection.verdict))}**"]),
        ("inspect.what_it_is", _what(inspection, hashes, called, speak)),
        ("inspect.what_will_load", _loads(inspection, speak)),
        ("inspect.what_was_trained", _trained(inspection, speak)),
        ("inspect.never_trained", _missed(inspection, speak)),
        ("inspect.weights", _weights(weights, detail, speak) if weights else ()),
        ("inspect.metadata", _metadata(inspection, speak)),
        ("inspect.health", _health(inspection, speak)),
        ("inspect.modules", _modules(inspection, speak) if detail != SUMMARY else ()),
        ("inspect.every_key", _keys(inspection, speak) if detail == EVERY_KEY else ()),
    ]
    pages = ((title, "\n".join(lines).strip("\n")) for title, lines in sections)
    heads = ((f"## {speak(title)}\n\n" if title else "", text) for title, text in pages if text)
    return "\n\n".join(head + text for head, text in heads) + "\n"


def _what(
    inspection: Inspection, hashes: Hashes | None, name: str, speak: Speaker
) -> Iterator[str]:
    family, writer = inspection.family, inspection.report.writer
    made_for = speak.text(family.title) or speak("report.unknown")
    evidence = _bracketed(speak, *inspection.guess.evidence)
    if family.is_likely:  # its title has brackets of its own
        evidence = "; " + speak.joined(inspection.guess.evidence, "semicolon")
    version = inspection.metadata.trainer_version
    close = [_close(title, share) for title, share in inspection.guess.near_misses]
    kinds = [f"{count} {speak.text(kind)}" for kind, count in inspection.kinds.most_common()]
    stored = verify(inspection.header.metadata, hashes) if hashes else ()
    tensors = message(
        "inspect.tensors",
        name=code(name),
        size=size_text(inspection.size),
        count=len(inspection.header.tensors),
    )
    rows = (
        ("report.file", speak(tensors)),
        ("report.made_for", plain(made_for + evidence)),
        ("inspect.close_to", speak.joined(close)),
        (
            "inspect.written_by",
            plain(
                speak.text(inspection.report.trainer_title)
                + _bracketed(speak, version, writer.evidence)
            ),
        ),
        ("inspect.adapters", speak.joined(kinds)),
        ("inspect.rank", counted(inspection.ranks)),
        ("inspect.alpha", counted(inspection.alpha_counts)),
        ("report.strength", _strength(inspection, speak)),
        ("inspect.data_types", counted(inspection.dtypes)),
    )
    facts = [(speak(label), fact) for label, fact in rows if fact]
    facts += [(label, code(text)) for label, text in (hashes._asdict() if hashes else {}).items()]
    if stored:
        facts.append((speak("inspect.stored_hash"), " ".join(map(plain, map(speak.text, stored)))))
    yield from table(("", ""), facts)


def _strength(inspection: Inspection, speak: Speaker) -> str:
    scales, source = inspection.scales, inspection.report.strength_source
    if not scales:
        return ""
    if not inspection.ranks and set(scales) == {1.0}:
        return speak("inspect.whole_matrices")
    from_rank = source.startswith(message(FROM_RANK))
    return speak(
        "inspect.strength_assumed" if from_rank else "inspect.strength_from",
        scales=spread(scales),
        source=source,
    )


def _bracketed(speak: Speaker, *texts: str) -> str:
    some = [text for text in texts if text]
    return speak("inspect.bracketed", text=speak.joined(some, "semicolon")) if some else ""


def _close(title: str, share: float) -> Message:
    if share < 1:
        return message("inspect.knows_some", title=title, share=f"{share:.0%}")
    return message("inspect.other_sizes", title=title)


def _loads(inspection: Inspection, speak: Speaker) -> Iterator[str]:
    report = inspection.report
    if not inspection.plan.target_model.networks:
        if inspection.other:
            yield speak(
                "inspect.nothing_named" if inspection.is_nameless else "inspect.nothing_loads"
            )
        elif inspection.only_encoders:
            yield speak("inspect.only_encoders")
        elif inspection.guess.is_absent:
            yield speak("report.no_such_model", model=inspection.guess.title)
        else:
            yield speak("inspect.specify_model")
        return
    if inspection.is_reference:
        family = inspection.plan.target_model.family
        yield (
            speak("inspect.estimated", model=family.title)
            if family
            else speak("inspect.estimated_unknown")
        )
    elif report.model_title:
        yield speak("inspect.exact_for", model=report.model_title)
    else:
        yield speak("inspect.exact")
    yield ""
    yield from _load_table(inspection, speak)
    notes = [*report.notes(), *_failing(report), *_taken_in_vain(inspection)]
    yield from (["", *(f"- {plain(speak.text(note))}" for note in notes)] if notes else [])
    for category, count in report.categories.most_common():
        if category != PLACED:
            yield from _category(report, category, count, speak)


def _load_table(inspection: Inspection, speak: Speaker) -> Iterator[str]:
    report = inspection.report
    total = report.modules["total"]

    def of(part: int, whole: int) -> str:
        return speak("inspect.part_of", part=part, whole=whole)

    keys = len(report.outcomes)
    rows = [("LoRA Locksmith", of(report.modules["placed"], total), of(report.count(PLACED), keys))]
    if report.stock_keys is not None:
        stock = speak("inspect.stock_loader")
        rows.append((stock, of(report.stock_modules, total), of(len(report.stock_works), keys)))
    heads = ("inspect.loaded_by", "inspect.head_modules", "inspect.head_keys")
    yield from table([speak(head) for head in heads], rows)


def _category(report: Report, category: str, count: int, speak: Speaker) -> Iterator[str]:
    title = f"**{speak(category_title(category))}**"
    yield from ("", speak("inspect.category", count=count, category=title), "")
    patterns = report.patterns(category)
    for pattern in patterns[:MAX_PATTERNS]:
        yield f"- {code(pattern.name)} ({pattern.keys}): {plain(speak.text(pattern.reason))}"
    if len(patterns) > MAX_PATTERNS:
        yield "- " + speak("report.more_patterns", count=len(patterns) - MAX_PATTERNS)


def _failing(report: Report) -> Iterator[str]:
    if report.stock_fails:
        yield as_sentence(stock_failure(report.stock_fails))


def _taken_in_vain(inspection: Inspection) -> Iterator[str]:
    """Keys that the stock loader takes and that can do nothing."""
    outcomes = inspection.report.outcomes
    # In the file's order, so that categories of as many keys always stand alike.
    taken = inspection.report.stock_keys or frozenset()
    vain = Counter(
        outcome.category
        for key, outcome in outcomes.items()
        if key in taken and outcome.category != PLACED
    )
    if vain:
        what = joined(
            message("inspect.count_of", count=count, category=category_title(category))
            for category, count in vain.most_common()
        )
        yield message("inspect.taken_in_vain", count=sum(vain.values()), what=what)


def _health(inspection: Inspection, speak: Speaker) -> Iterator[str]:
    for health in inspection.health:
        finding = speak("joints.sentence", text=plain(speak.text(health.finding)))
        yield "- " + speak.joined((finding, speak.text(health.meaning)), "space")
    if not inspection.health:
        yield speak("inspect.nothing_odd")


def _trained(inspection: Inspection, speak: Speaker) -> Iterator[str]:
    for place, trained in enumerate(inspection.report.trained):
        yield from [""] * bool(place)
        title = (
            trained.title if trained.network == DENOISER else f"{trained.title}, {trained.network}"
        )
        yield speak("inspect.network", title=f"**{title}**", count=trained.modules)
        yield ""
        alike: dict[object, list[TrainedBlocks]] = {}
        for blocks in trained.blocks:
            alike.setdefault((blocks.count, blocks.kinds), []).append(blocks)
        for members in alike.values():
            yield from _block_lines(members, speak)
        presets = inspection.presets
        if trained.network == DENOISER and presets.sentence and not presets.dead_names:
            choice = plain(speak.text(presets.sentence))
            yield "- " + speak("inspect.choice_of_layers", choice=choice)


def _block_lines(members: Sequence[TrainedBlocks], speak: Speaker) -> Iterator[str]:
    """One line for each choice of blocks; groups of blocks that are trained alike are on one."""
    first = members[0]
    choices: dict[str, list[str]] = {}
    for kind in first.kinds:
        choices.setdefault(kind.trained, []).append(kind.name)
    if not first.name:
        outside = [
            name for choice, names in choices.items() if is_trained(choice) for name in names
        ]
        if outside:
            yield "- " + speak("inspect.outside_blocks", names=_listed(outside, speak))
        return
    names = speak(
        "inspect.blocks_each" if len(members) > 1 else "inspect.blocks",
        names=_listed([blocks.name for blocks in members], speak),
        count=first.count,
    )
    if not any(is_trained(choice) for choice in choices):
        yield "- " + speak("inspect.blocks_nothing", blocks=names)
        return
    yield "- " + speak("inspect.blocks_follow", blocks=names)
    for choice, kinds in choices.items():
        if is_trained(choice):
            blocks = speak.text(blocks_of(choice))
            yield "    - " + speak("joints.about", subject=blocks, text=_listed(kinds, speak))


def _listed(names: Sequence[str], speak: Speaker) -> str:
    listed = ", ".join(code(name) for name in names[:MAX_LISTED])
    if len(names) <= MAX_LISTED:
        return listed
    return speak("joints.listed_and_more", listed=listed, count=len(names) - MAX_LISTED)


def _missed(inspection: Inspection, speak: Speaker) -> Iterator[str]:
    if inspection.presets.dead_names:
        fault = plain(speak.text(inspection.presets.sentence))
        yield "- " + speak("inspect.fault_of_preset", fault=fault)
    if inspection.report.untrained:
        told = inspection.report.untrained_words
        names = speak.joined([plain(speak.text(text)) for text in told], "semicolon")
        yield "- " + speak("inspect.layer_types_never_trained", names=names)
    elif inspection.report.trained:
        yield "- " + speak("inspect.every_layer_type_trained")


def _metadata(inspection: Inspection, speak: Speaker) -> Iterator[str]:
    metadata = inspection.metadata
    if not inspection.header.metadata:
        yield speak("inspect.no_metadata")
        return
    for word in metadata.trigger_words:
        evidence = plain(speak.joined(word.evidence, "semicolon"))
        yield "- " + speak("inspect.trigger_word", word=code(word.word), evidence=evidence)
    if metadata.tags.most:
        tags = ", ".join(f"{plain(tag.tag)} ({tag.count})" for tag in metadata.tags.most[:MAX_TAGS])
        more = metadata.tags.total - len(metadata.tags.most[:MAX_TAGS])
        if more > 0:
            tags = speak("joints.listed_and_more", listed=tags, count=more)
        yield "- " + speak("inspect.tags", tags=tags)
    for title, rows in metadata.sections.items():
        yield from ("", f"**{speak.text(title)}**", "")
        yield from table(
            ("", ""), [(cell(speak.text(label)), cell(speak.text(text))) for label, text in rows]
        )
    if metadata.unknown:
        yield from ("", f"**{speak('inspect.other_metadata')}**", "")
        yield from table(
            ("", ""),
            [(code(speak.text(key)), cell(speak.text(text))) for key, text in metadata.unknown],
        )


def _modules(inspection: Inspection, speak: Speaker) -> Iterator[str]:
    rows = []
    for adapter in inspection.report.adapters:
        alpha = inspection.alphas.get(adapter.roles.get("alpha", ""))
        weight, rows_of, _ = adapter.target.slices[0]
        place = (
            weight
            if rows_of is None
            else speak("inspect.rows_of", weight=weight, first=rows_of.start, last=rows_of.end - 1)
        )
        place = code(place)
        if len(adapter.target.slices) > 1:
            more = len(adapter.target.slices) - 1
            place = speak("joints.listed_and_more", listed=place, count=more)
        shown = f"{alpha:g}" if alpha is not None else ""
        rows.append((code(adapter.module), adapter.kind, str(adapter.rank or ""), shown, place))
    yield from table([speak(head) for head in MODULE_HEADS], rows)


def _keys(inspection: Inspection, speak: Speaker) -> Iterator[str]:
    rows = []
    for key, outcome in inspection.report.outcomes.items():
        sizes = inspection.plan.shapes[key] or ()
        shape = "x".join(str(size) for size in sizes) or speak("inspect.one_number")
        reason = "" if outcome.category == PLACED else plain(speak.text(outcome.reason))
        fate = speak(category_title(outcome.category))
        rows.append((code(key), inspection.report.role_of(key) or "", shape, fate, reason))
    yield from table([speak(head) for head in KEY_HEADS], rows)


def _weights(weights: Mapping[str, Any], detail: str, speak: Speaker) -> Iterator[str]:
    """Of lora.statistics.Weights.as_dict(): what of the file's effect is placed, where it is, what
    is odd about it.
    """
    yield f"- {plain(speak.text(weights['verdict']))}"
    for rank, use in weights["rank_use"].items():
        yield "- " + speak("inspect.rank_use", rank=rank, median=use["median"], most=use["most"])
    for outlier in weights["outliers"][:MAX_LISTED]:
        module, times = code(outlier["module"]), f"{outlier['times']:.0f}"
        yield "- " + speak("inspect.outlier", module=module, times=times)
    if weights["dead"]:
        yield "- " + speak("inspect.all_zero", names=_listed(weights["dead"], speak))
    broken = [row["module"] for row in weights["modules"] if row["nans"] or row["infs"]]
    if broken:
        yield "- " + speak("inspect.not_finite", names=_listed(broken, speak))
    for fault in weights["faults"][:MAX_LISTED]:
        module, reason = code(fault["module"]), plain(speak.text(fault["reason"]))
        yield "- " + speak("inspect.not_measured", module=module, reason=reason)
    heads = [speak(head) for head in BLOCK_HEADS]
    yield from ("", *table(heads, _shares(weights["blocks"])))
    modules = weights["modules"] if detail != SUMMARY else weights["modules"][:MAX_LISTED]
    rows = [
        (
            code(row["module"]),
            *(_figure(row[name]) for name in FIGURES),
            _percent(row["energy_share"]),
        )
        for row in modules
    ]
    yield from ("", *table([speak(head) for head in WEIGHT_HEADS], rows))


FIGURES = ("frobenius", "spectral", "effective_rank")


def _shares(shares: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    return [
        (code(share["name"]), str(share["modules"]), _percent(share["share"])) for share in shares
    ]


def _figure(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def counted(counts: Counter[Any]) -> str:
    """A distribution: "16", or "16 (490), 4 (4)"."""
    lines = [
        (value if isinstance(value, str) else f"{value:g}", count)
        for value, count in counts.most_common(MAX_LISTED)
    ]
    return (
        lines[0][0] if len(lines) == 1 else ", ".join(f"{text} ({count})" for text, count in lines)
    )


def size_text(size: int) -> str:
    """Bytes for people: 0.9 KB, 152.3 MB."""
    for unit, factor in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def code(text: str) -> str:
    """Text from a file as code, which cannot break out of a table or act as markup, shortened."""
    return f"`{_shortened(text).translate(IN_CODE)}`"


def cell(text: str) -> str:
    """Text from a file that cannot break out of a table or act as a link, a picture or HTML,
    shortened.
    """
    return _unlinked(_shortened(text).translate(IN_CELL))


def plain(text: str) -> str:
    """Our own sentence with words of the file in it: nothing in it may act as a link, a picture or
    HTML.
    """
    return _unlinked(text.translate(IN_TEXT))


def _unlinked(text: str) -> str:
    # A report is shown as Markdown: a picture in a stranger's metadata would be fetched from the
    # stranger's server.
    return text.replace("](", "]\\(").replace("][", "]\\[")


def _shortened(text: str) -> str:
    return (
        text
        if len(text) <= LONGEST_CELL
        else f"{text[:LONGEST_CELL]}... ({len(text):,} characters)"
    )
