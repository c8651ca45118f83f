"""Addresses on the command line (`https://...`, `hf://...`): which texts are some, and how they are
shown, without what may be secret in them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote, urlsplit

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # a letter and a colon are a drive of Windows
TIMEOUT = 60.0  # seconds for one request
WEB = ("http", "https")
REVISIONED = ("hf",)  # protocols whose first part has an @ before a revision, and no user
SECRET = re.compile(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL|AUTH|^FSSPEC_")  # names of variables
LEAST_SECRET = 6  # letters; shorter ones are words
HIDDEN = "***"
# What an error of a library may hold: queries and users of addresses, such as those it was led to.
QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>)]*")
USER = re.compile(r"://[^\s/@'\"<>]+@")
HEADER = re.compile(r"(?i)\b(bearer|basic|token)\s+[\w.~+/=-]{8,}")


def is_address(text: str) -> bool:
    """Whether a text names a file or folder through a protocol, and no path that is there."""
    return bool(ADDRESS.match(text)) and not os.path.lexists(text)


def protocol_of(address: str) -> str:
    """The protocol of an address, in lower case."""
    return address.partition("://")[0].lower()


def shown_address(address: str) -> str:
    """The address without user, password, query and fragment, for people, files and JSON."""
    protocol, sign, rest = address.partition("://")
    place = re.split(r"[?#]" if protocol.lower() in WEB else r"\?", rest)[0]
    host, slash, path = place.partition("/")
    if protocol.lower() not in REVISIONED:
        host = host.rpartition("@")[2]
    return f"{protocol}{sign}{host}{slash}{path}"


def without_secrets(text: str, address: str) -> str:
    """What an error says, without what is secret in the address or in this process's
    environment.
    """
    text = HEADER.sub(rf"\1 {HIDDEN}", USER.sub("://", QUERY.sub(r"\1", text)))
    secrets = {secret for secret in _secrets(address) if len(secret) >= LEAST_SECRET}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(address: str) -> Iterator[str]:
    parts = urlsplit(address)
    user, _, _ = parts.netloc.rpartition("@")
    for secret in (user, *user.split(":"), parts.query):
        yield from (secret, unquote(secret))
    yield from (value for _, value in parse_qsl(parts.query))
    yield from (value for name, value in os.environ.items() if SECRET.search(name.upper()))
