"""Lists the LoRA files of folders on other machines: of any of fsspec's file systems, and of web
servers that show a folder as a page of links.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from ..files.header import ENDINGS, PEFT_CONFIG, PICKLED, LoraFileError
from ..messages import message
from ..report.listing import Listed, Stamp
from .addresses import TIMEOUT, WEB, protocol_of, shown_address
from .remote import PAGE, Web, located, reaching, why_not

MAX_PAGE = 16_000_000  # bytes of a page of links
MAX_FOLDERS = 10_000  # a server can lead in circles
MAX_DEPTH = 32
WORKERS = 8  # requests at a time
# What file systems call that which changes with a file, and web servers.
MARKS = (
    "ETag", "etag", "blob_id", "generation", "md5Hash", "md5", "checksum", "Content-MD5",
    "mtime", "modified", "last_modified", "LastModified", "Last-Modified", "updated", "created",
)  # fmt: skip


class Entry(NamedTuple):
    """What a folder holds: its name in there, where it is, what is told of it ({}: nothing)."""

    name: str
    address: str
    about: Mapping[str, Any]
    is_folder: bool = False


class Listing(NamedTuple):
    """The LoRA files of a folder and of all below it by their paths inside the folder, and the
    folders that could not be listed: what each is called -> why.
    """

    files: dict[str, Listed]
    left_out: dict[str, str]


def list_remote(address: str, timeout: float = TIMEOUT) -> Listing:
    """List the folder at an address. Raises LoraFileError where that itself cannot be listed."""
    entries: dict[str, Entry] = {}
    left_out: dict[str, str] = {}
    name = shown_address(address)
    if name.lower().endswith((*ENDINGS, *PICKLED)):
        raise _no_folder(name)
    with reaching(address):
        ls, waiting = lister(address, timeout), deque([("", address, 0)])
        seen = {address}
    while waiting:
        inside, folder, depth = waiting.popleft()
        try:
            found = list(ls(folder))
        except NotADirectoryError:
            if not inside:
                raise _no_folder(name) from None
            continue
        except Exception as error:
            if not inside:
                with reaching(address):
                    raise
            left_out[inside] = why_not(folder, error)[0]
            continue
        for entry in found:
            if not entry.is_folder:
                entries[inside + entry.name] = entry
            elif entry.address not in seen and depth < MAX_DEPTH and len(seen) < MAX_FOLDERS:
                seen.add(entry.address)
                waiting.append((f"{inside}{entry.name}/", entry.address, depth + 1))
    return Listing(_stamped(entries, remote_root(address), timeout), left_out)


def remote_root(address: str) -> str:
    """What the keys of all files at an address begin with; users, tokens and queries are no part of
    it.
    """
    return f"{shown_address(address).rstrip('/')}/"


def _no_folder(name: str) -> LoraFileError:
    return LoraFileError(name, message("files.is_a_file"), message("library.scan_its_folder"))


def lister(address: str, timeout: float) -> Callable[[str], Iterator[Entry]]:
    """What lists a folder, given its address. Raises whatever fsspec raises."""
    if protocol_of(address) in WEB:
        return lambda folder: _of_page(folder, timeout)
    system, _ = located(address)
    return lambda folder: _of_system(system, folder)


def _of_system(system: Any, folder: str) -> Iterator[Entry]:
    path = system._strip_protocol(folder).rstrip("/")
    for about in system.ls(path, detail=True):
        whole = about["name"].rstrip("/")
        name = whole.rpartition("/")[2]
        is_folder = about.get("type") == "directory"
        if whole == path:
            if not is_folder:
                raise NotADirectoryError(path)
            continue
        yield Entry(name, f"{folder.rstrip('/')}/{name}", about, is_folder)


class Links(HTMLParser):
    """The addresses that a page links to, as they stand there."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where a link leads to."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _of_page(folder: str, timeout: float) -> Iterator[Entry]:
    answer = Web(folder, timeout).ask(0, MAX_PAGE, PAGE)
    asked = urlsplit(folder)
    here = urlsplit(answer.address)
    base = here.path.rpartition("/")[0] + "/"
    for link in dict.fromkeys(Links(answer.raw.decode("utf-8", "replace")).found):
        try:
            there = urlsplit(urldefrag(urljoin(answer.address, link))[0])
        except ValueError:  # no address at all
            continue
        name = there.path.removeprefix(base)
        is_folder, name = name.endswith("/"), name.rstrip("/")
        if _place(there) != _place(here):
            continue
        if not there.path.startswith(base) or not name or "/" in name:
            continue
        # The folder's own user and token are for what is in it, too.
        user = asked.netloc if _place(asked) == _place(there) else there.netloc
        whole = there._replace(netloc=user, query=asked.query or there.query)
        yield Entry(unquote(name), whole.geturl(), {}, is_folder)


def _place(parts: Any) -> tuple[str, str]:
    return parts.scheme, parts.netloc.rpartition("@")[2]


def _stamped(entries: Mapping[str, Entry], root: str, timeout: float) -> dict[str, Listed]:
    wanted = {
        file: entry
        for file, entry in sorted(entries.items())
        if entry.name == PEFT_CONFIG or entry.name.lower().endswith((*ENDINGS, *PICKLED))
    }
    with ThreadPoolExecutor(WORKERS) as pool:
        told = pool.map(lambda entry: _told(entry, timeout), wanted.values())
        about = dict(zip(wanted, told, strict=True))
    files = {}
    for file, entry in wanted.items():
        if entry.name == PEFT_CONFIG:
            continue
        folder = file[: len(file) - len(entry.name)]
        settings = about.get(folder + PEFT_CONFIG)
        stamp = Stamp(*_size_and_mark(about[file]), _size_and_mark(settings)[1] if settings else 0)
        files[file] = Listed(entry.address, stamp, os.fsencode(root + file))
    return files


def _told(entry: Entry, timeout: float) -> Mapping[str, Any]:
    """What its folder tells of a file, of which a web server's tells nothing."""
    if entry.about or protocol_of(entry.address) not in WEB:
        return entry.about
    try:
        file = Web(entry.address, timeout)
        file.look()
    except Exception:  # It is told when the file is read.
        return {"size": 0}
    return {"size": file.size, "ETag": file.mark}


def _size_and_mark(about: Mapping[str, Any]) -> tuple[int, int]:
    """(bytes, a number that is another one once the file changed). Where nothing is told that
    changes with it, the number is another one each time, so that the file is read again.
    """
    size = about.get("size") or 0
    marks = [(name, str(about[name])) for name in MARKS if about.get(name)]
    if not marks:
        return size, time.time_ns()
    return size, int.from_bytes(hashlib.sha256(repr((size, marks)).encode()).digest()[:7], "big")
