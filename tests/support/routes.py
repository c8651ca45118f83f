"""Asks the pack's routes of a running server, as the front end does."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request

import comfy_server
import pytest


class Routes:
    """An answer is (HTTP's number, what was told)."""

    def __init__(self, server):
        self.server = server

    def ask(self, route: str, **question) -> tuple[int, dict]:
        words = urllib.parse.urlencode(question, errors="surrogatepass")
        return self.send(
            urllib.request.Request(f"{self.server.url}/lora_locksmith/{route}?{words}")
        )

    def tell(self, wish, kind: str = "application/json", **headers) -> tuple[int, dict]:
        body = wish if isinstance(wish, bytes) else json.dumps(wish).encode()
        headers = {"Content-Type": kind, **headers}
        return self.send(
            urllib.request.Request(f"{self.server.url}/lora_locksmith/save", body, headers)
        )

    @staticmethod
    def send(request: urllib.request.Request) -> tuple[int, dict]:
        try:
            with urllib.request.urlopen(request, timeout=comfy_server.PATIENCE) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            status, text = refusal.code, refusal.read()
        return status, (
            json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
            if text
            else {}
        )

    def library(self, refresh: bool = True) -> dict[str, dict]:
        """The rows by file, once a new scan has ended."""
        if refresh:
            self.ended()
            before = self.ask("library")[1]["scan"]
            self.ask("library", refresh=1)
            return {row["file"]: row for row in self.ended(other_than=before)["rows"]}
        return {row["file"]: row for row in self.ended()["rows"]}

    def ended(self, other_than: str = "") -> dict:
        deadline = time.monotonic() + comfy_server.PATIENCE
        while time.monotonic() < deadline:
            status, told = self.ask("library")
            assert status == 200, told
            if not told["running"] and told["scan"] != other_than:
                assert told["done"] == told["total"] == len(told["rows"]) and told["error"] == ""
                return told
            time.sleep(0.05)
        pytest.fail("the scan does not end")
