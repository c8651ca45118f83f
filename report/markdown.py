"""An inspection as Markdown for people, the verdict first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.hashes import Hashes, verify
from ..key_maps.dialect import DENOISER
from ..planning.keys import parse_key
from ..planning.plan import PLACED
from ..planning.scale import FROM_RANK
from .coverage import TrainedBlocks, blocks_of, is_trained
from .inspection import Inspection, spread
from .load_report import Report, plural, stock_failure

SUMMARY, MODULES, EVERY_KEY = "summary", "modules", "every key"
DETAILS = (SUMMARY, MODULES, EVERY_KEY)
MAX_PATTERNS = 12
MAX_TAGS = 20
MAX_LISTED = 12
LONGEST_CELL = 160
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
    language: str = "en",
) -> str:
    """The report. `detail`: one of DETAILS; `hashes`: the file's; `weights`:
    lora.weights.Weights.as_dict().

    `name`: what the file is called, where its own name does not tell it from others.
    """
    sections = [
        ("", [f"**{plain(inspection.verdict)}**"]),
        ("What it is", list(_what(inspection, hashes, name or Path(inspection.path).name))),
        ("What will load", list(_loads(inspection))),
        ("What was trained", list(_trained(inspection))),
        ("What was never trained", list(_missed(inspection))),
        ("Weights", list(_weights(weights, detail)) if weights else []),
        ("Metadata", list(_metadata(inspection))),
        (
            "Health",
            [f"- {plain(health.finding)}. {health.meaning}" for health in inspection.health]
            or ["Nothing odd was found."],
        ),
    ]
    if detail != SUMMARY:
        sections.append(("Modules", list(_modules(inspection))))
    if detail == EVERY_KEY:
        sections.append(("Every key", list(_keys(inspection))))
    return (
        "\n\n".join(
            (f"## {title}\n\n" if title else "") + "\n".join(lines).strip("\n")
            for title, lines in sections
            if lines
        )
        + "\n"
    )


def _what(inspection: Inspection, hashes: Hashes | None, name: str) -> Iterator[str]:
    family, writer = inspection.family, inspection.report.writer
    evidence = "; ".join(inspection.guess.evidence)
    yield from table(
        ("", ""),
        _rows(
            (
                "File",
                (
                    f"{code(name)}, {size_told(inspection.size)},"
                    f" {len(inspection.header.tensors):,} tensors"
                ),
            ),
            ("Made for", plain((family.title or "cannot be told") + _bracketed(evidence))),
            (
                "Close to",
                ", ".join(_close(title, share) for title, share in inspection.guess.near_misses),
            ),
            (
                "Written by",
                plain(
                    writer.title + _bracketed(inspection.metadata.trainer_version, writer.evidence)
                ),
            ),
            (
                "Adapters",
                ", ".join(f"{count} {kind}" for kind, count in inspection.kinds.most_common()),
            ),
            ("Rank", counted(inspection.ranks)),
            ("Alpha", counted(inspection.alpha_counts)),
            ("Strength", _strength(inspection)),
            ("Data types", counted(inspection.dtypes)),
            *((label, code(text)) for label, text in (hashes._asdict() if hashes else {}).items()),
            (
                "Stored hash",
                (
                    " ".join(plain(text) for text in verify(inspection.header.metadata, hashes))
                    if hashes
                    else ""
                ),
            ),
        ),
    )


def _strength(inspection: Inspection) -> str:
    scales, source = inspection.scales, inspection.report.strength_source
    if not scales:
        return ""
    if not inspection.ranks and set(scales) == {1.0}:
        return "1: whole matrices have no rank, and their alpha does not count"
    origin = source if source.startswith(FROM_RANK) else f"from {source}"
    return f"alpha / rank = {spread(scales)}; {origin}"


def _bracketed(*told: str) -> str:
    return f" ({'; '.join(filter(None, told))})" if any(told) else ""


def _close(title: str, share: float) -> str:
    return (
        f"{title} (knows {share:.0%} of the names)"
        if share < 1
        else f"{title} (all names match, sizes or block counts differ)"
    )


def _rows(*rows: tuple[str, str]) -> list[tuple[str, str]]:
    return [row for row in rows if row[1]]


def _loads(inspection: Inspection) -> Iterator[str]:
    report = inspection.report
    if not inspection.plan.target_model.networks:
        if inspection.other:
            yield "Nothing: it is no LoRA."
        elif inspection.only_encoders:
            yield (
                "It changes text encoders only, and their names do not tell of which model. Connect"
                " a CLIP for the exact answer."
            )
        else:
            yield (
                "The base model could not be identified. Connect a model, or inspect against its"
                " file, to see where the modules go."
            )
        return
    if inspection.is_reference:
        title = inspection.family.title or "the model"
        yield (
            f"Estimated from the {_first(title)} table; connect a model, or inspect against its"
            " file, for an exact answer."
        )
    else:
        yield (
            f"In the given model{f', {report.model_title}' if report.model_title else ''}, exactly:"
        )
    yield ""
    modules, keys = report.modules, report.count(PLACED)
    rows = [
        (
            "LoRA Locksmith",
            f"{modules['placed']} of {modules['total']}",
            f"{keys} of {len(report.outcomes)}",
        )
    ]
    if report.stock_keys is not None:
        stock = f"{len(report.stock_keys)} of {len(report.outcomes)}"
        rows.append(("Stock loader", f"{inspection.stock_modules} of {modules['total']}", stock))
    yield from table(("Loaded by", "modules", "keys"), rows)
    notes = [*report.notes(), *_failing(report), *_taken_in_vain(inspection)]
    yield from (["", *(f"- {plain(note)}" for note in notes)] if notes else [])
    for category, count in report.categories.most_common():
        if category != PLACED:
            yield from ("", f"**{category}**: {plural(count, 'key')}", "")
            patterns = report.patterns(category)
            yield from (
                f"- {code(pattern.name)} ({pattern.keys}): {plain(pattern.reason)}"
                for pattern in patterns[:MAX_PATTERNS]
            )
            yield from [f"- and {len(patterns) - MAX_PATTERNS} more patterns"] * (
                len(patterns) > MAX_PATTERNS
            )


def _failing(report: Report) -> Iterator[str]:
    if report.stock_fails:
        told = stock_failure(report.stock_fails)
        yield f"{told[0].upper()}{told[1:]}."


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
        told = ", ".join(f"{count} {category}" for category, count in vain.most_common())
        yield (
            f"The stock loader also accepts {sum(vain.values())} of these keys, with no or"
            f" wrong effect: {told}."
        )


def _first(title: str) -> str:
    return title.partition(" or ")[0]


def _trained(inspection: Inspection) -> Iterator[str]:
    for place, trained in enumerate(inspection.report.trained):
        yield from [""] * bool(place)
        title = (
            trained.title if trained.network == DENOISER else f"{trained.title}, {trained.network}"
        )
        yield from (f"**{title}**: {plural(trained.modules, 'module')}", "")
        alike: dict[tuple, list[TrainedBlocks]] = {}
        for blocks in trained.blocks:
            alike.setdefault((blocks.count, blocks.kinds), []).append(blocks)
        for members in alike.values():
            yield from _blocks_told(members)
        if (
            trained.network == DENOISER
            and inspection.presets.sentence
            and not inspection.presets.dead_names
        ):
            yield f"- choice of layers: {plain(inspection.presets.sentence)}"


def _blocks_told(members: Sequence[TrainedBlocks]) -> Iterator[str]:
    """One line for each choice of blocks; groups of blocks that are trained alike are told
    together.
    """
    first = members[0]
    choices: dict[str, list[str]] = {}
    for kind in first.kinds:
        choices.setdefault(kind.trained, []).append(kind.name)
    if not first.name:
        trained = [
            name for choice, names in choices.items() if is_trained(choice) for name in names
        ]
        if trained:
            yield f"- outside of blocks: {_listed(trained)}"
        return
    blocks = f"{plural(first.count, 'block')}{' each' * (len(members) > 1)}"
    names = f"{_listed([blocks.name for blocks in members])} ({blocks})"
    if not any(is_trained(choice) for choice in choices):
        yield f"- {names}: nothing"
        return
    yield f"- {names}:"
    for choice, kinds in choices.items():
        if is_trained(choice):
            yield f"    - {blocks_of(choice)}: {_listed(kinds)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(code(name) for name in names[:MAX_LISTED]) + more


def _missed(inspection: Inspection) -> Iterator[str]:
    if inspection.presets.dead_names:
        yield f"- By a fault of the trainer's preset: it {plain(inspection.presets.sentence)}."
    if inspection.report.untrained:
        yield f"- Layer types never trained: {_listed(inspection.report.untrained)}."
    elif inspection.report.trained:
        yield "- Every kind of layer is trained in some block."


def _metadata(inspection: Inspection) -> Iterator[str]:
    metadata = inspection.metadata
    if not inspection.header.metadata:
        yield "There are none."
        return
    for word in metadata.trigger_words:
        yield f"- Trigger word {code(word.word)}: {plain('; '.join(word.evidence))}"
    if metadata.tags.most:
        told = ", ".join(f"{plain(tag.tag)} ({tag.count})" for tag in metadata.tags.most[:MAX_TAGS])
        more = metadata.tags.total - len(metadata.tags.most[:MAX_TAGS])
        yield f"- Tags: {told}{f' and {more} more' * (more > 0)}"
    for title, rows in metadata.sections.items():
        yield from ("", f"**{title}**", "")
        yield from table(("", ""), [(cell(label), cell(text)) for label, text in rows])
    if metadata.unknown:
        yield from ("", "**Other**", "")
        yield from table(("", ""), [(code(key), cell(text)) for key, text in metadata.unknown])


def _modules(inspection: Inspection) -> Iterator[str]:
    rows = []
    for adapter in inspection.report.adapters:
        alpha = inspection.alphas.get(adapter.roles.get("alpha", ""))
        weight, piece, _ = adapter.target.slices[0]
        place = (
            weight if piece is None else f"{weight}, rows {piece[0]} to {piece[0] + piece[1] - 1}"
        )
        more = (
            f" and {len(adapter.target.slices) - 1} more" if len(adapter.target.slices) > 1 else ""
        )
        told = f"{alpha:g}" if alpha is not None else ""
        rows.append(
            (code(adapter.module), adapter.kind, str(adapter.rank or ""), told, code(place) + more)
        )
    yield from table(("module", "kind", "rank", "alpha", "goes to"), rows)


def _keys(inspection: Inspection) -> Iterator[str]:
    rows = []
    for key, outcome in inspection.report.outcomes.items():
        shape = "x".join(str(size) for size in inspection.plan.shapes[key] or ()) or "one number"
        reason = "" if outcome.category == PLACED else plain(outcome.reason)
        rows.append((code(key), parse_key(key).role or "", shape, outcome.category, reason))
    yield from table(("key", "role", "shape", "fate", "why"), rows)


def _weights(weights: Mapping[str, Any], detail: str) -> Iterator[str]:
    """Of lora.weights.Weights.as_dict(): what of the file's effect is placed, where it is, what is
    odd about it.
    """
    yield f"- {plain(weights['verdict'])}"
    for rank, use in weights["rank_use"].items():
        yield (
            f"- Rank {rank}: 99 % of the energy is in {use['median']} of its {rank} ranks in the"
            f" median layer, {use['most']} at most."
        )
    for outlier in weights["outliers"][:MAX_LISTED]:
        yield (
            f"- {code(outlier['module'])} is {outlier['times']:.0f} times as strong as others of"
            " its kind."
        )
    if weights["dead"]:
        yield f"- Zero throughout, so without effect: {_listed(weights['dead'])}."
    broken = [row["module"] for row in weights["modules"] if row["nans"] or row["infs"]]
    if broken:
        yield (
            f"- **Not a number (NaN or infinite)**: {_listed(broken)}. The picture turns black or"
            " to noise."
        )
    yield from (
        f"- {code(fault['module'])} cannot be measured: {plain(fault['reason'])}"
        for fault in weights["faults"][:MAX_LISTED]
    )
    yield from (
        "",
        *table(("blocks", "modules", "share of the energy"), _shares(weights["blocks"])),
    )
    modules = weights["modules"] if detail != SUMMARY else weights["modules"][:MAX_LISTED]
    rows = [
        (
            code(row["module"]),
            *(_figure(row[name]) for name in FIGURES),
            _percent(row["energy_share"]),
        )
        for row in modules
    ]
    yield from (
        "",
        *table(
            ("module", "norm", "largest singular value", "effective rank", "share of the energy"),
            rows,
        ),
    )


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


def counted(counts: Counter) -> str:
    """A distribution: "16", or "16 (490), 4 (4)"."""
    told = [
        (value if isinstance(value, str) else f"{value:g}", count)
        for value, count in counts.most_common(MAX_LISTED)
    ]
    return told[0][0] if len(told) == 1 else ", ".join(f"{text} ({count})" for text, count in told)


def size_told(size: int) -> str:
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
