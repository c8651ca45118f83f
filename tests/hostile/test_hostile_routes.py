"""The real server with the corpus in its loras folder: every route answers, in JSON, and none waits
or fails.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import seeds
from comfy_server import PATIENCE

EVERY = 3  # seed
SMALL = {
    f"hostile {place:03}.safetensors": seed
    for place, seed in enumerate([*seeds.CORPUS.values()][::EVERY])
    if len(seed) < 30_000
}
PIPE, LOOP = "pipe.safetensors", "loop.safetensors"


@pytest.fixture
def loras(server):
    """The loras folder with the corpus in it, a pipe and a link to itself."""
    folder = server.base / "models" / "loras"
    made = [folder / name for name in (*SMALL, PIPE, LOOP)]
    for name, content in SMALL.items():
        (folder / name).write_bytes(content)
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / PIPE)
        (folder / LOOP).symlink_to(LOOP)
    yield folder
    for path in made:
        path.unlink(missing_ok=True)


def ask(server, route: str, **question) -> tuple[int, dict]:
    """(HTTP's number, the answer); NaN is no JSON."""
    address = f"{server.url}/lora_locksmith/{route}?{urllib.parse.urlencode(question)}"
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        status, text = refusal.code, refusal.read()
    return status, json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_library_has_a_row_for_every_hostile_file(server, loras):
    before = ended(server)["scan"]
    ask(server, "library", refresh=1)
    told = ended(server, before)
    rows = {row["file"]: row for row in told["rows"]}
    assert rows.keys() >= SMALL.keys() and not rows.keys() & {PIPE, LOOP} and not told["error"]
    assert all("not understood" not in row["error"] for row in rows.values())
    assert 20 < sum(bool(rows[name]["error"]) for name in SMALL) < len(SMALL) - 20


def ended(server, other_than: str = "") -> dict:
    """What the library tells when its scan has ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        status, told = ask(server, "library")
        assert status == 200
        if not told["running"] and told["scan"] != other_than:
            return told
        time.sleep(0.2)
    pytest.fail("the scan does not end")


def test_every_hostile_file_is_told_in_full_or_why_not(server, loras):
    for name in SMALL:
        status, told = ask(server, "file", name=name, full=1)
        assert status == 200 and (told["error"] or told["inspection"]["tensors"] >= 0), (name, told)
        assert (told["error"] != "") == (told["inspection"] is None), name
    for name in (PIPE, LOOP, f"../loras/{next(iter(SMALL))}"):
        assert ask(server, "file", name=name)[0] == 404
