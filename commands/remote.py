"""Reads the headers of files on other machines, through fsspec: of each, the header and at most
64 KB more.

Only the command line does so, and only where it is given an address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit, urlunsplit

from ..errors import LocksmithError
from ..files.header import (
    MAX_CONFIG_BYTES,
    PEFT_CONFIG,
    Header,
    LoraFileError,
    NotReached,
    Span,
    Unreadable,
    header_length,
    parse_adapter_config,
    parse_header,
)
from ..messages import message, text_of
from ..planning.target_model import TargetModel
from ..report.inspection import Inspection, inspect_header
from .addresses import TIMEOUT, WEB, protocol_of, shown_address, without_secrets

BEYOND = 65536  # bytes that are read at most besides a header; as many are asked for first
NEAR = 4096  # bytes between two numbers that are read along
MAX_REQUESTS = 8  # for the numbers of one file
UNKNOWN_SIZE = 2**63  # larger than any file
PAGE = "text/html"
CHAIN = "::"  # how fsspec writes one file system on top of another
OF_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
GONE, REFUSED, NOT_IN_RANGE, TOO_MANY = (404, 410), (401, 403, 407), 416, 429


class Changed(Exception):
    """The file became another one between two requests."""


class Chained(Exception):
    """An address of a file system on top of another, which might fetch whole files."""


class WrongRange(Exception):
    """The server answered with another part of the file than it was asked for."""


class Source(Protocol):
    """Reads parts of one file."""

    size: int | None  # bytes of the whole file, once a part was read; None where nothing says it
    ranges: bool  # whether a part can be read without all that is before it
    fetched: int  # bytes that were read in all
    kind: str  # the media type that was told

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`, fewer where the file ends there."""


class Remote:
    """One file on another machine. left: how many numbers (alphas) were not read, as they lie
    scattered.
    """

    def __init__(self, address: str, timeout: float = TIMEOUT):
        self.address, self.timeout, self.name = address, timeout, shown_address(address)
        with reaching(address):
            self.source = source_of(address, timeout)
        self.left = 0
        self.first = b""
        self._known: dict[tuple[Span, ...], Sequence[bytes]] = {}

    @property
    def fetched(self) -> int:
        """How many bytes of it were read."""
        return self.source.fetched

    def header(self) -> Header:
        """Its header, as `files.header.read_header` reads and checks it. Raises LoraFileError."""
        with reaching(self.address):
            self.first = self.source.read(0, BEYOND)
            size = self.source.size
            if self.source.kind == PAGE and _is_page(self.first):
                remedy = message("commands.web_page_remedy")
                raise LoraFileError(self.name, message("files.web_page"), remedy)
            most = UNKNOWN_SIZE if size is None else size
            length = header_length(self.name, self.first[:8], most)
            if size is None:
                fault = message("commands.size_not_told")
                raise LoraFileError(self.name, fault, message("commands.download_first"))
            raw = self.first[8 : 8 + length]
            if len(raw) < length:
                raw += self.source.read(len(self.first), 8 + length)
        if len(raw) < length:
            fault = message("commands.answer_cut_short")
            raise NotReached(self.name, fault, message("commands.try_again"))
        return parse_header(self.name, raw, size - 8 - length)._replace(fetch=self._spans)

    def settings(self) -> Mapping[str, Any] | None:
        """The content of PEFT's `adapter_config.json` beside it, see
        `files.header.adapter_config_beside`.
        """
        address = beside(self.address, PEFT_CONFIG)
        try:
            source = source_of(address, self.timeout)
            raw = source.read(0, MAX_CONFIG_BYTES + 1)
        except Exception as error:
            status = _status(error)
            if isinstance(error, FileNotFoundError) or (status and 400 <= status < 500):
                return None
            return Unreadable(why_not(address, error)[0])
        # Many sites answer with a page where there is no such file.
        return None if _is_page(raw) else parse_adapter_config(raw)

    def _spans(self, spans: Sequence[Span]) -> Sequence[bytes]:
        """The bytes of each span; nothing where they lie too far apart. Raises LoraFileError."""
        key = tuple(spans)
        if key not in self._known:
            with reaching(self.address):
                self._known[key] = self._read_spans(key)
        return self._known[key]

    def _read_spans(self, spans: Sequence[Span]) -> Sequence[bytes]:
        have = len(self.first)
        blocks = _blocks([span for span in spans if span[1] > have])
        most = 8 + int.from_bytes(self.first[:8], "little") + BEYOND - self.fetched
        asked = sum(end - start for start, end in blocks)
        if asked > most or len(blocks) > MAX_REQUESTS or (blocks and not self.source.ranges):
            self.left = len(spans)
            return []
        read = [((0, have), self.first)]
        read += [(block, self.source.read(*block)) for block in blocks]
        return [
            next(raw[start - first : end - first] for (first, last), raw in read if end <= last)
            for start, end in spans
        ]


def _blocks(spans: Sequence[Span]) -> list[Span]:
    """The spans, in their order, those near each other as one."""
    blocks: list[Span] = []
    for start, end in spans:
        if blocks and start - blocks[-1][1] <= NEAR:
            blocks[-1] = (blocks[-1][0], end)
        else:
            blocks.append((start, end))
    return blocks


def inspect_remote(
    address: str, target_model: TargetModel | None = None, timeout: float = TIMEOUT
) -> tuple[Inspection, Remote]:
    """Inspect the file at an address, as `report.inspection.inspect_file` inspects one on this
    machine. Raises LoraFileError.
    """
    file = Remote(address, timeout)
    header = file.header()
    return inspect_header(file.name, header, file.settings(), target_model), file


def read_remote(
    address: str, has_settings: bool, timeout: float = TIMEOUT
) -> tuple[Header, Mapping[str, Any] | None]:
    """The header of the file at an address, and PEFT's settings beside it where there are some.
    Raises LoraFileError.
    """
    file = Remote(address, timeout)
    return file.header(), file.settings() if has_settings else None


def beside(address: str, name: str) -> str:
    """The address of a file in the same folder."""
    if protocol_of(address) not in WEB:
        return f"{address.rpartition('/')[0]}/{name}"
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}", fragment=""))


def _is_page(raw: bytes) -> bool:
    return raw[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<" and b"\0" not in raw[:8]


# Where the bytes come from


def source_of(address: str, timeout: float) -> Source:
    """What reads the file at an address. Raises whatever its library raises."""
    return Web(address, timeout) if protocol_of(address) in WEB else Stored(address)


def located(address: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it. Raises ImportError, ValueError, Chained."""
    import fsspec
    from fsspec.core import url_to_fs

    protocol = protocol_of(address)
    if protocol not in WEB:
        if CHAIN in address:
            raise Chained
        found: tuple[Any, str] = url_to_fs(address)
        return found
    client: dict[str, Any] = {"trust_env": True}  # proxies of the environment, .netrc
    for web in WEB:
        client |= fsspec.config.conf.get(web, {}).get("client_kwargs", {})
    return fsspec.filesystem(protocol, client_kwargs=client), address


class Stored:
    """A file of any of fsspec's file systems but the web, which reads by ranges by itself."""

    ranges = True
    kind = ""

    def __init__(self, address: str):
        self.fetched = 0
        self.fs, self.path = located(address)
        about = self.fs.info(self.path)
        if about.get("type") == "directory":
            raise IsADirectoryError(self.path)
        self.size: int | None = about.get("size")

    def read(self, start: int, end: int) -> bytes:
        """See Source; what its library would read ahead is not read."""
        if self.size is not None:
            end = min(end, self.size)
        if start >= end:
            return b""
        with self.fs.open(self.path, "rb", cache_type="none") as file:
            file.seek(start)
            raw: bytes = file.read(end - start)
        self.fetched += len(raw)
        return raw


class Answer(NamedTuple):
    """What a server answered."""

    address: str  # the one it was led to
    raw: bytes


class Web:
    """A file on the web. fsspec's own reader would read all of an answer whose server knows no
    ranges, so its connections are used, and no more of an answer is read than was asked for.
    """

    def __init__(self, address: str, timeout: float):
        self.fs, self.address = located(address)
        self.timeout, self.fetched = timeout, 0
        self.size: int | None = None
        self.ranges, self.kind = True, ""
        self.tag = self.mark = ""  # what tells that it is the same file; `mark`: any such thing

    def read(self, start: int, end: int) -> bytes:
        """See Source."""
        return self.ask(start, end).raw

    def ask(self, start: int, end: int, kind: str = "") -> Answer:
        """The bytes from start to end, and where they came from.

        kind: the only media type that is read. Raises NotADirectoryError for another one.
        """
        from fsspec.asyn import sync

        answer: Answer = sync(self.fs.loop, self._ask, start, end, kind)
        return answer

    def look(self) -> None:
        """Learn `size` and `mark` without reading the file."""
        from fsspec.asyn import sync

        if not sync(self.fs.loop, self._look):
            self.read(0, 1)

    def _options(self, **headers: str) -> dict[str, Any]:
        from aiohttp import ClientTimeout

        own = dict(self.fs.kwargs)
        # A packed answer would have other offsets.
        headers = {**own.pop("headers", {}), "Accept-Encoding": "identity", **headers}
        return {**own, "headers": headers, "timeout": ClientTimeout(total=self.timeout)}

    async def _look(self) -> bool:
        """Whether the server told its size."""
        session = await self.fs.set_session()
        url = self.fs.encode_url(self.address)
        async with session.head(url, allow_redirects=True, **self._options()) as answer:
            if answer.status >= 400:  # Many addresses that were signed for GET refuse this.
                return False
            self._note(answer, _whole_size(answer))
            return self.size is not None

    async def _ask(self, start: int, end: int, kind: str) -> Answer:
        session = await self.fs.set_session()
        url = self.fs.encode_url(self.address)
        options = self._options(Range=f"bytes={start}-{end - 1}")
        # What is left of an answer closes its connection.
        async with session.get(url, **options) as answer:
            begins, total = _range_of(answer)
            if answer.status == NOT_IN_RANGE:
                self._note(answer, total or 0)
                return Answer(str(answer.url), b"")
            answer.raise_for_status()
            self.kind = answer.content_type
            if kind and self.kind != kind:
                raise NotADirectoryError(self.address)
            self.ranges = begins is not None
            self._note(answer, total if self.ranges else _whole_size(answer))
            if begins not in (None, start):
                raise WrongRange
            raw = await _body(answer, end - (begins or 0))
            self.fetched += len(raw)
            return Answer(str(answer.url), raw[start - (begins or 0) :])

    def _note(self, answer: Any, size: int | None) -> None:
        """Raises Changed where it is another file than before."""
        tag = answer.headers.get("ETag", "")
        other = bool(self.tag and tag and tag != self.tag)
        if other or (self.size is not None and self.size != size):
            raise Changed
        self.size, self.tag = size, tag
        self.mark = tag or answer.headers.get("Last-Modified", "")


def _whole_size(answer: Any) -> int | None:
    """What the length of a whole answer says; None of one that is packed."""
    packed = answer.headers.get("Content-Encoding", "identity") not in ("", "identity")
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and not packed else None


def _range_of(answer: Any) -> tuple[int | None, int | None]:
    """(the first byte of a part, bytes of the whole); the first is None of a whole answer."""
    found = OF_RANGE.match(answer.headers.get("Content-Range", ""))
    if answer.status == NOT_IN_RANGE:
        return None, int(found[2]) if found and found[2].isdecimal() else None
    if answer.status != 206:
        return None, None
    if not found or not found[1]:
        raise WrongRange
    return int(found[1]), int(found[2]) if found[2].isdecimal() else None


async def _body(answer: Any, most: int) -> bytes:
    """At most so many bytes of an answer, whatever it has."""
    parts: list[bytes] = []
    while most > 0 and (part := await answer.content.read(most)):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


# What goes wrong


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Tell in one line what goes wrong with an address. Raises LoraFileError."""
    try:
        yield
    except (LocksmithError, MemoryError):
        raise
    except Exception as error:
        raise NotReached(shown_address(address), *why_not(address, error)) from None


def why_not(address: str, error: Exception) -> tuple[str, str]:
    """(what is wrong, what to do), without anything that is secret. error: of fsspec, or of what it
    calls.
    """
    status, name = _status(error), type(error).__name__
    if isinstance(error, ImportError):
        return _lacking(address, error)
    if isinstance(error, IsADirectoryError):
        return message("files.folder"), message("files.folder_remedy")
    if name == "TooManyRedirects":
        return message("commands.led_in_circles"), message("commands.check_address")
    if status in REFUSED or isinstance(error, PermissionError):
        fault = message("commands.access_refused", status=status or name)
        return fault, message("commands.get_access")
    if status in GONE or (isinstance(error, FileNotFoundError) and not status):
        return message("commands.nothing_there"), message("commands.check_address")
    if status == TOO_MANY:
        return message("commands.too_many_requests"), message("commands.try_later")
    if status:
        return message("commands.server_fails", status=status), message("commands.try_later")
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return message("commands.no_answer_in_time"), message("commands.allow_more_time")
    if isinstance(error, Changed):
        return message("files.replaced"), message("files.changed_remedy")
    if isinstance(error, WrongRange):
        return message("commands.wrong_range"), message("commands.download_first")
    if isinstance(error, Chained):
        return message("commands.chained_address"), message("commands.check_address")
    reason = without_secrets(text_of(error), address).strip()[:160]
    if isinstance(error, ValueError):
        return message("commands.address_not_read", reason=reason), message(
            "commands.check_address"
        )
    reason = f"{name}: {reason}" if reason else name
    return message("commands.not_reached", reason=reason), message("commands.check_connection")


def _lacking(address: str, error: ImportError) -> tuple[str, str]:
    """A library that is not installed: what the pack asks for, or what fsspec names."""
    of_pack = error.name in ("fsspec", "aiohttp", "huggingface_hub", "requests")
    if of_pack or protocol_of(address) in (*WEB, "hf"):
        return message("commands.needs_fsspec"), message("commands.install_fsspec")
    return message("commands.needs_another_library", protocol=protocol_of(address)), str(error)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status in an error, or in what it was raised from."""
    while error is not None:
        answer = getattr(error, "response", None)
        for holder, name in ((error, "status"), (error, "status_code"), (answer, "status_code")):
            if isinstance(status := getattr(holder, name, None), int) and status:
                return status
        error = error.__cause__
    return None
