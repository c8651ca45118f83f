"""A client that goes away, and a machine that has too little of something: nothing of ours in the
log but a line, and an answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import pytest

HEAD = "POST /lora_locksmith/save HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
BODIES = {
    "a length": "Content-Length: 1000\r\n\r\n{",
    "chunks": "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
}


@pytest.fixture
def routes(comfy):
    from lora_locksmith.nodes.server import routes

    return routes


async def serve(handler, talk):
    """What `talk(port, ended)` gives while `handler` answers there; `ended` is set when it has."""
    from aiohttp import web

    ended = asyncio.Event()

    async def handle(request):
        try:
            return await handler(request)
        finally:
            ended.set()

    app = web.Application()
    app.router.add_route("*", "/lora_locksmith/{name}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        target_model = web.TCPSite(runner, "127.0.0.1", 0)
        await target_model.start()
        return await talk(target_model._server.sockets[0].getsockname()[1], ended)
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("body", BODIES)
def test_a_client_that_goes_away_is_no_fault_of_ours(routes, caplog, body):
    reached = asyncio.Event()

    async def answer(request):
        reached.set()
        return await routes._save(request)

    async def talk(port, ended):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((HEAD + BODIES[body]).encode())
        await writer.drain()
        await reached.wait()
        writer.close()
        await asyncio.wait_for(ended.wait(), 60)

    with caplog.at_level(logging.WARNING):
        asyncio.run(serve(routes._route(answer), talk))
    assert not caplog.records


@pytest.mark.parametrize(
    ("fails", "word"),
    [(lambda: bytearray(sys.maxsize), "memory"), (lambda: no_thread(), "threads")],
)
def test_what_the_machine_has_too_little_of_is_answered(routes, caplog, fails, word):
    async def answer(request):
        return await routes._in_thread(routes._readers, fails)

    async def talk(port, ended):
        from aiohttp import ClientSession

        async with (
            ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/lora_locksmith/file") as told,
        ):
            return told.status, json.loads(await told.text())

    with caplog.at_level(logging.WARNING):
        status, told = asyncio.run(serve(routes._route(answer), talk))
    assert status == 503 and word in told["error"] and told["remedy"]
    assert not any(record.exc_info for record in caplog.records)


def no_thread():
    raise RuntimeError("can't start new thread")


def test_a_library_whose_thread_did_not_start_is_read_at_the_next_question(comfy, monkeypatch):
    from lora_locksmith.nodes.server.library import Library

    library, started = Library(), []
    monkeypatch.setattr("threading.Thread.start", lambda thread: no_thread())
    with pytest.raises(RuntimeError, match="thread"):
        library.read()
    assert not library.waiting(0)
    monkeypatch.setattr("threading.Thread.start", lambda thread: started.append(thread))
    library.read()
    assert len(started) == 1
