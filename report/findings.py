"""What is found in one LoRA file, in few fields, and looked for once in files that are alike."""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from ..errors import fault_and_remedy
from ..files.gc_pause import without_collection
from ..files.header import (
    PICKLED,
    Header,
    HeaderText,
    LoraFileError,
    NotReached,
    adapter_config_beside,
    read_header,
    read_text,
)
from ..identify.trainer import UNTOLD
from ..key_maps.user_maps import NO_USER_MAPS, UserMaps
from ..messages import joined, message, packed, unpacked
from .beside import read_beside
from .inspection import Inspection, inspect_header, spread, telling
from .listing import Listed
from .metadata import trigger_words_of
from .outline import Outline, outline_of, ranks_of

MAX_ALIKE = 2048  # kinds of files whose findings are remembered, some kilobytes each
NO_METADATA: Mapping[str, str] = {}
MAX_SAME = 8192  # headers of the same words, of which few bytes are kept each


class Findings(NamedTuple):
    """What is found in a file; all but the last field is shared by files that are alike. `family`
    is "" where it cannot be told.
    """

    family: str = ""
    made_for: str = ""
    trainer: str = ""
    kinds: str = ""
    rank: str = ""
    placed: int = 0
    total: int = 0
    stock: int = 0
    gains: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    cautions: tuple[
        str, ...
    ] = ()  # what makes it doubtful, as far as the header tells, that it comes out as trained
    contradiction: str = ""  # that its metadata name another model than names and shapes do
    trainer_guessed: bool = False  # names alone speak for the trainer
    error: str = ""  # why it cannot be read; then the rest is empty
    trigger_words: tuple[str, ...] = ()  # the file's own, as its header and what lies beside it say

    def shared(self) -> Findings:
        """Without what is the file's own."""
        return self._replace(trigger_words=()) if self.trigger_words else self


class Passing(Findings):
    """Findings that are others the next time, as the file was out of reach; no index keeps them."""

    __slots__ = ()


Read = Callable[[str], tuple[Header, Mapping[str, Any] | None]]  # header, and settings beside it


def findings_here(listed: Listed, own: UserMaps = NO_USER_MAPS) -> Findings:
    """What is in a listed file of this machine; what is not beside it is not asked for."""
    path, is_alone = listed.path, not listed.beside
    if own is NO_USER_MAPS and not listed.stamp.config_changed and not _is_pickled(path):
        return _guarded(lambda: _by_words(path, is_alone))
    read = read_with_settings if listed.stamp.config_changed else read_alone
    return findings_or_fault(path, own, read=read, is_alone=is_alone)


def findings_or_fault(
    path: str, own: UserMaps = NO_USER_MAPS, *, read: Read | None = None, is_alone: bool = False
) -> Findings:
    """`findings_of`, also where the pack makes a mistake."""
    return _guarded(lambda: findings_of(path, own, read=read, is_alone=is_alone))


def findings_of(
    path: str | os.PathLike[str],
    own: UserMaps = NO_USER_MAPS,
    *,
    read: Read | None = None,
    is_alone: bool = False,
) -> Findings:
    """What is in one file. Never raises for what the file holds: `error` says why it cannot be
    read. read: gets what is looked at, of a file on another machine. is_alone: other tools keep
    nothing beside it.
    """
    path = os.fspath(path)
    if _is_pickled(path):
        fault, remedy = message("files.pickle"), message("files.pickle_remedy")
        return _with_words(Findings(error=fault_and_remedy(fault, remedy)), path, is_alone)
    try:
        header, config = (read or read_with_settings)(path)
        findings, _ = _as_alike(path, header, config, own)
    except LoraFileError as error:
        return _with_words(_unreadable(error), path, is_alone)
    is_elsewhere = header.fetch is not None
    return _with_words(findings, path, is_alone or is_elsewhere, header.metadata)


def _by_words(path: str, is_alone: bool) -> Findings:
    """What is in a file; what was found in one whose header has the same words but for the metadata
    is not looked for again.
    """
    try:
        text = read_text(path)
        parts = text.split()
        if parts is None:
            findings, metadata = _looked_into(text)
        else:
            metadata, rest = parts
            digest = blake2b(rest, digest_size=16).digest()
            key = digest, text.data_bytes, telling(metadata)
            known = _same.get(key)
            if known is not None:
                return _with_words(known, path, is_alone, metadata)
            findings, metadata = _looked_into(text, key, metadata)
    except LoraFileError as error:
        return _with_words(_unreadable(error), path, is_alone)
    return _with_words(findings, path, is_alone, metadata)


def _looked_into(
    text: HeaderText, key: tuple[Any, ...] | None = None, metadata: Mapping[str, str] = NO_METADATA
) -> tuple[Findings, Mapping[str, str]]:
    """What is in a file without settings, and its metadata; remembered under the key, if files
    alike share it. Raises LoraFileError.
    """
    header = text.parsed()
    findings, is_shared = _as_alike(os.fspath(text.path), header, None, NO_USER_MAPS)
    if key and is_shared and not header.refusal and header.metadata == metadata:
        _same[key] = findings
        while len(_same) > MAX_SAME:
            _same.popitem(last=False)
    return findings, header.metadata


def _guarded(look: Callable[[], Findings]) -> Findings:
    try:
        with without_collection():
            return look()
    except MemoryError:  # The file is not to blame, and the index would remember it.
        raise
    except Exception as error:  # A mistake of ours about one file must not hide all others.
        return Findings(
            error=message("library.not_understood", kind=type(error).__name__, error=str(error))
        )


def _is_pickled(path: str) -> bool:
    return path.lower().endswith(PICKLED)


def _unreadable(error: LoraFileError) -> Findings:
    kind = Passing if isinstance(error, NotReached) else Findings
    return kind(error=fault_and_remedy(error.fault, error.remedy))


def _with_words(
    findings: Findings, path: str, is_alone: bool, metadata: Mapping[str, str] = NO_METADATA
) -> Findings:
    """With the file's own trigger words."""
    noted = () if is_alone else [note.value for note in read_beside(path).words]
    if not noted and not metadata:
        return findings
    words = trigger_words_of(metadata, noted)
    return findings._replace(trigger_words=words) if words else findings


def _as_alike(
    path: str, header: Header, config: Mapping[str, Any] | None, own: UserMaps
) -> tuple[Findings, bool]:
    """What is in a file, and whether files that are alike share it."""
    outline = outline_of(header) if own is NO_USER_MAPS else None
    if outline is None:
        return _summary(inspect_header(path, header, config, own=own)), False
    key = (outline.digest, telling(header.metadata), repr(config), header.refusal)
    known = _remembered(key) or _remembered((*key, outline.ranks))
    if known is not None:
        return known.of(outline), True
    inspection = inspect_header(path, header, config)
    findings, plan = _summary(inspection), inspection.plan
    if plan.by_values:
        return findings, False
    places = None if plan.by_ranks else ranks_of(header, inspection.ranked)
    _remember((*key, outline.ranks) if places is None else key, _Alike(findings, places))
    return findings, True


class _Alike(NamedTuple):
    """What was found in a file, and by which of its outline's ranks; None where ranks decided
    more.
    """

    findings: Findings
    places: Sequence[int] | None

    def of(self, outline: Outline) -> Findings:
        """What is in a file alike."""
        if self.places is None:
            return self.findings
        rank = spread(Counter([outline.ranks[place] for place in self.places]))
        return self.findings if rank == self.findings.rank else self.findings._replace(rank=rank)


def _remembered(key: tuple[object, ...]) -> _Alike | None:
    # Taken out and put back in single steps, because several threads ask.
    known = _alike.pop(key, None)
    if known is not None:
        _alike[key] = known
    return known


def _remember(key: tuple[object, ...], found: _Alike) -> None:
    _alike[key] = found
    while len(_alike) > MAX_ALIKE:
        _alike.popitem(last=False)


def read_with_settings(path: str) -> tuple[Header, Mapping[str, Any] | None]:
    """The header of a file, and PEFT's settings beside it. Raises LoraFileError."""
    return read_header(path), adapter_config_beside(path)


def read_alone(path: str) -> tuple[Header, None]:
    """The header of a file that has no settings beside it. Raises LoraFileError."""
    return read_header(path), None


_same: OrderedDict[tuple[Any, ...], Findings] = OrderedDict()
_alike: OrderedDict[tuple[object, ...], _Alike] = OrderedDict()


def _summary(inspection: Inspection) -> Findings:
    report = inspection.report
    if inspection.other:
        return Findings(trainer=UNTOLD, losses=(inspection.other,))
    return Findings(
        family=inspection.family.name,
        made_for=inspection.family.title,
        trainer=report.trainer,
        kinds=joined(kind for kind, _ in inspection.kinds.most_common()),
        rank=spread(inspection.ranks),
        placed=report.modules["placed"],
        total=report.modules["total"],
        stock=inspection.report.stock_modules,
        gains=tuple(inspection.gains),
        losses=(*([report.remedy] if report.guess.is_absent else []), *report.losses),
        cautions=report.cautions,
        contradiction=report.contradiction,
        trainer_guessed=report.writer.is_guess,
    )


def packed_findings(findings: Findings) -> tuple[str, str]:
    """(what files that are alike share, what is the file's own), as JSON texts."""
    shared = [
        list(map(packed, field)) if isinstance(field, tuple) else packed(field)
        for field in findings[:-1]
    ]
    return _short(shared), _short(findings.trigger_words)


def _short(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))


class Unpacker:
    """Makes findings of what was packed; those that are alike share one object."""

    def __init__(self) -> None:
        self._shared: dict[str, Findings] = {}

    def __call__(self, shared: str, own: str) -> Findings | None:
        """None where the texts are not of this version, whatever they say of themselves."""
        try:
            findings = self._shared.get(shared) or self._read(shared)
            words = json.loads(own)
            return findings._replace(trigger_words=tuple(words)) if words else findings
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return None

    def _read(self, text: str) -> Findings:
        fields: Iterator[Any] = (
            tuple(map(unpacked, field)) if isinstance(field, list) else unpacked(field)
            for field in json.loads(text)
        )
        self._shared[text] = findings = Findings(*fields)
        return findings
