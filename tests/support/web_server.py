"""A web server for a folder, on this machine: with ranges and without, counting what it sends, and
answering as servers do that are not well.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from html import escape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

PIECE = 16384
WELL = ("/files/", "/plain/", "/untold/")  # with ranges, without, without a word on changes
STATUSES = {"/gone/": 410, "/login/": 401, "/gated/": 403, "/busy/": 429, "/down/": 503}


class Handler(SimpleHTTPRequestHandler):
    """The first part of a path says how it answers; "/files/": well."""

    protocol_version = "HTTP/1.1"
    server: WebServer

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):  # the client closed the connection
            self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        place = urlsplit(self.path).path
        how = f"/{place.split('/')[1]}/"
        self.server.asked.append((self.command, self.path))
        self.server.headers.append((place, dict(self.headers)))
        if how in STATUSES:
            return self.begin(STATUSES[how], Content_Length=0)
        special = getattr(self, f"answer_{how.strip('/')}", None)
        if special:
            return special(place)
        if how not in WELL:
            return self.begin(404, Content_Length=0)
        file = self.server.folder / unquote(f"{place}/"[len(how) :].rstrip("/"))
        if file.is_dir():
            return self.page(file, with_body)
        if not file.is_file():
            return self.begin(404, Content_Length=0)
        self.send_file(file, place, how, with_body)

    def begin(self, status: int, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def page(self, folder: Path, with_body: bool) -> None:
        if not urlsplit(self.path).path.endswith("/"):
            return self.begin(301, Location=f"{self.path}/", Content_Length=0)
        names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
        links = ["<a href='../'>up</a>", "<a href='?C=N;O=D'>Name</a>"]
        links += [f'<a href="{quote(name)}">{escape(name)}</a>' for name in names]
        body = f"<!DOCTYPE html><html><body>{'<br>'.join(links)}</body></html>".encode()
        self.begin(200, Content_Type="text/html; charset=utf-8", Content_Length=len(body))
        if with_body:
            self.wfile.write(body)

    def send_file(self, file: Path, place: str, how: str, with_body: bool) -> None:
        about, asked = file.stat(), self.headers.get("Range") if how != "/plain/" else None
        size = about.st_size
        start, end = 0, size
        headers: dict[str, Any] = {"Content_Type": "application/octet-stream"}
        if how != "/untold/":
            headers["ETag"] = f'"{about.st_mtime_ns:x}-{size:x}"'
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else size, size)
            if start >= size:
                return self.begin(416, Content_Range=f"bytes */{size}", Content_Length=0)
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{size}"
        self.begin(206 if asked else 200, Content_Length=end - start, **headers)
        if with_body:
            self.send_part(file, place, start, end)

    def send_part(self, file: Path, place: str, start: int, end: int) -> None:
        with open(file, "rb") as source:
            source.seek(start)
            while start < end:
                gone = self.connection.send(source.read(min(PIECE, end - start)))
                start += gone
                source.seek(start)
                self.server.sent[place] += gone

    def answer_api(self, place: str) -> None:
        """What a model hub says of a repository with the folder's files."""
        if "/gated/" in f"{place}/":
            return self.begin(403, X_Error_Code="GatedRepo", Content_Length=0)
        files = [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name}
            for path in sorted(self.server.folder.iterdir())
        ]
        body = json.dumps(files if "/tree/" in place else {"id": "u/r", "sha": "1" * 40}).encode()
        self.begin(200, Content_Type="application/json", Content_Length=len(body))
        if self.command == "GET":
            self.wfile.write(body)

    def answer_hub(self, place: str) -> None:
        file = self.server.folder / place.rpartition("/resolve/main/")[2]
        self.send_file(file, place, "/hub/", self.command == "GET")

    # Servers that are not well

    def answer_moved(self, place: str) -> None:
        self.begin(302, Location=place.replace("/moved/", "/files/"), Content_Length=0)

    def answer_circle(self, place: str) -> None:
        self.begin(302, Location=self.path, Content_Length=0)

    def answer_elsewhere(self, place: str) -> None:
        """Leads to another host, as sites do to their storage, with a signature."""
        other = self.server.other
        self.begin(302, Location=f"{other}{place}?Signature=elsewhere-secret", Content_Length=0)

    def answer_slow(self, place: str) -> None:
        self.server.stop.wait(30)

    def answer_drip(self, place: str) -> None:
        """One byte now and then, for ever."""
        self.begin(200, Content_Length=1 << 30)
        while not self.server.stop.wait(0.05):
            self.connection.send(b"\x10")

    def answer_site(self, place: str) -> None:
        body = b"\n<!DOCTYPE html><html><title>Sign in</title></html>" * 99
        self.begin(200, Content_Type="text/html", Content_Length=len(body))
        self.wfile.write(body)

    def answer_sizeless(self, place: str) -> None:
        self.send_chunks((self.server.folder / place.removeprefix("/sizeless/")).read_bytes())

    def send_chunks(self, body: bytes) -> None:
        self.begin(200, Transfer_Encoding="chunked")
        for at in range(0, len(body), PIECE):
            part = body[at : at + PIECE]
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def answer_wrong(self, place: str) -> None:
        """A part, but another one."""
        self.begin(206, Content_Range="bytes 7-17/99999", Content_Length=10)
        self.wfile.write(b"x" * 10)

    def answer_endless(self, place: str) -> None:
        """Says it sends the part, and sends without end."""
        self.begin(206, Content_Range=f"bytes 0-65535/{1 << 40}", Connection="close")
        piece = (b"\x80\x96\x98\x00\x00\x00\x00\x00" + b" " * 120) * 128
        while not self.server.stop.is_set():
            self.server.sent[place] += self.connection.send(piece)

    def answer_cut(self, place: str) -> None:
        """Promises more than it sends."""
        file = self.server.folder / place.removeprefix("/cut/")
        self.begin(200, Content_Length=file.stat().st_size, Connection="close")
        self.connection.send(file.read_bytes()[:300])
        self.close_connection = True

    def answer_swapped(self, place: str) -> None:
        """Another file at each request."""
        file = self.server.folder / place.removeprefix("/swapped/")
        start, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = file.read_bytes()[int(start) : int(last) + 1]
        size = file.stat().st_size
        end = int(start) + len(part) - 1
        self.begin(
            206,
            Content_Range=f"bytes {start}-{end}/{size}",
            Content_Length=len(part),
            ETag=f'"{time.monotonic_ns()}"',
        )
        self.wfile.write(part)


class WebServer(ThreadingHTTPServer):
    """sent: bytes of files by path; asked: (method, path) of every request; headers: what came with
    it; other: a second server's address.
    """

    daemon_threads = True

    def __init__(self, folder: Path, other: str = ""):
        super().__init__(("127.0.0.1", 0), Handler)
        # Else the system takes megabytes off a server whose client reads nothing.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.folder, self.other = folder, other
        self.sent: Counter[str] = Counter()
        self.asked: list[tuple[str, str]] = []
        self.headers: list[tuple[str, dict[str, str]]] = []
        self.stop = threading.Event()

    def handle_error(self, *request: Any) -> None:
        """A client that closes the connection is what is tried here."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*request)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def serving(folder: Path, other: str = "") -> Iterator[WebServer]:
    """A running server for a folder."""
    with WebServer(folder, other) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop.set()
            server.shutdown()
            thread.join()
