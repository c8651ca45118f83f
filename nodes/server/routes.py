"""The routes under /lora_locksmith/ that the front end asks: one file, the library, saving a file
in another tool's names, and whether every loader loads as this pack's do.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from aiohttp import ClientPayloadError, web
from server import PromptServer

from ...errors import LocksmithError, exhausted
from ...messages import message, text_of
from ..every_loader import is_on, turn
from ..every_setting import SettingError, store
from ..faults import as_noted
from ..files import lora_names
from ..languages import answered
from .about_file import Unknown, about_file
from .fits import fitting
from .layer_presets import layer_presets
from .library import Library
from .measuring import Measurements, compared
from .pictures import picture_of
from .repairing import Repairs, RepairWish, Running, choices
from .saving import SaveError, save_listed

MAX_BYTES, MAX_NAMES_BYTES = 1 << 16, 1 << 24  # of a wish, of one that names many files
ALL_ROWS = 10**8
# Seconds an answer waits for more rows, and for the first: a page without any has nothing to show.
PATIENCE, FIRST, STEP = 0.3, 2.0, 0.02
WISHES: dict[str, type] = {
    **dict.fromkeys(("name", "dialect", "filename", "dtype", "model"), str),
    "overwrite": bool,
}
OPTIONAL = {"dtype": "", "overwrite": False, "model": ""}
REPAIR: dict[str, type] = {
    "names": list,
    "dialect": str,
    "place": str,
    "drop": bool,
    "models": dict,
    "dry_run": bool,
}
SWITCH = {"on": bool}
SAID = {"text": str}
MEASURED = {"name": str, "other": str}
# What reading raises where a client goes away.
BROKEN_OFF = (
    ConnectionError,
    ClientPayloadError,
    web.RequestPayloadError,
)
HEADERS = {"Cache-Control": "no-store"}

_readers = ThreadPoolExecutor(2, "lora_locksmith questions")
_writer = ThreadPoolExecutor(1, "lora_locksmith saving")
_library = Library()
_repairs = Repairs()
_measurements = Measurements()


class Refusal(LocksmithError):
    """A question that has no answer: what is wrong, what to do, and HTTP's number for it."""

    def __init__(self, fault: str, remedy: str, status: int = 400):
        super().__init__(fault)
        self.fault, self.remedy, self.status = fault, remedy, status


def register() -> None:
    """Add the routes to the host's server, where there is one."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    server.routes.get("/lora_locksmith/file")(_route(_file))
    server.routes.get("/lora_locksmith/picture")(_route(_picture))
    server.routes.get("/lora_locksmith/library")(_route(_rows))
    server.routes.get("/lora_locksmith/fits")(_route(_fits))
    server.routes.get("/lora_locksmith/layer_presets")(_route(_layer_presets))
    server.routes.post("/lora_locksmith/save")(_route(_save))
    server.routes.get("/lora_locksmith/repair")(_route(_repaired))
    server.routes.post("/lora_locksmith/repair")(_route(_repair))
    server.routes.post("/lora_locksmith/repair_stop")(_route(_stop_repair))
    server.routes.get("/lora_locksmith/repair_choices")(_route(_repair_choices))
    server.routes.get("/lora_locksmith/every_loader")(_route(_every_loader))
    server.routes.post("/lora_locksmith/every_loader")(_route(_turn_every_loader))
    server.routes.post("/lora_locksmith/said")(_route(_said))
    server.routes.get("/lora_locksmith/compare")(_route(_compare))
    server.routes.get("/lora_locksmith/weights")(_route(_weights))
    server.routes.post("/lora_locksmith/weights_stop")(_route(_stop_weights))


def _route(
    answer: Callable[[web.Request], Awaitable[str | web.Response]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that answers JSON text, or tells in JSON what is wrong and what to do."""

    async def handle(request: web.Request) -> web.Response:
        try:
            told = await answer(request)
            return _json(told) if isinstance(told, str) else told
        except Refusal as refusal:
            return _refused(request, refusal.fault, refusal.remedy, refusal.status)
        except SettingError as fault:
            return _refused(request, fault.fault, fault.remedy, 409)
        except Unknown as unknown:
            return _refused(request, unknown.fault, unknown.remedy, 404)
        except Running as fault:
            return _refused(request, fault.fault, fault.remedy, 409)
        except SaveError as fault:
            status = 409 if fault.taken or fault.models else 400
            return _refused(request, fault.fault, fault.remedy, status, models=fault.models)
        except LocksmithError as fault:
            return _refused(request, text_of(fault), message("nodes.refresh_and_retry"), 400)
        except Exception as error:
            if short := exhausted(error):
                logging.getLogger("lora_locksmith").warning(
                    message("nodes.log_question_failed_because", fault=short)
                )
                return _refused(request, short, message("nodes.then_try_again"), 503)
            logging.getLogger("lora_locksmith").exception(message("nodes.log_question_failed"))
            failed = message("nodes.server_failed", type=type(error).__name__, error=error)
            return _refused(request, failed, message("nodes.see_log"), 500)

    return handle


def _json(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="application/json", headers=HEADERS)


def _refused(
    request: web.Request,
    fault: str,
    remedy: str,
    status: int,
    *,
    models: Mapping[str, str] | None = None,
) -> web.Response:
    """models: name -> title of those among which a person has to choose."""
    document = {"error": fault, "remedy": remedy} | ({"models": models} if models else {})
    return _json(json.dumps(answered(document, _language(request))), status)


def _language(request: web.Request) -> str:
    """The language in which the front end shows what we answer."""
    return request.query.get("language", "")


def _named(request: web.Request, field: str = "name") -> str:
    """The file that is asked about."""
    name = request.query.get(field)
    if not name:
        raise Refusal(message("nodes.no_file_named"), message("nodes.give_listed_name"))
    return name


async def _in_thread(pool: ThreadPoolExecutor, work: Callable[[], Any]) -> str:
    """What `work` gives, as JSON text; both are made in a thread."""
    return await asyncio.get_running_loop().run_in_executor(pool, lambda: json.dumps(work()))


async def _file(request: web.Request) -> str:
    asked = request.query
    work = partial(
        about_file,
        _named(request),
        asked.get("model_folder", ""),
        asked.get("model", ""),
        clip=asked.get("clip", ""),
        full=asked.get("full", "") == "1",
        layers=asked.get("layers", ""),
        language=_language(request),
    )
    return await _in_thread(_readers, work)


async def _layer_presets(request: web.Request) -> str:
    work = partial(layer_presets, _named(request))
    return await _in_thread(_readers, lambda: answered(work(), _language(request)))


async def _picture(request: web.Request) -> web.Response:
    """The small picture of a file; no content where it has none, which is no fault."""
    work = partial(picture_of, _named(request))
    picture = await asyncio.get_running_loop().run_in_executor(_readers, work)
    if picture is None:
        return web.Response(status=204, headers=HEADERS)
    return web.Response(body=picture, content_type="image/webp", headers=HEADERS)


async def _rows(request: web.Request) -> str:
    since, most = _count(request, "since", 0), _count(request, "most", ALL_ROWS)
    _library.read(refresh=request.query.get("refresh") == "1")
    await _while(partial(_library.waiting, since), PATIENCE if since else FIRST)
    return await asyncio.get_running_loop().run_in_executor(
        _readers, _library.answer, since, most, _language(request)
    )


async def _while(waiting: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait as long as that holds, but not longer than an answer may."""
    waited = 0.0
    while waiting() and waited < patience:
        await asyncio.sleep(STEP)
        waited += STEP


async def _repaired(request: web.Request) -> str:
    """What became of files beyond the first `since`; all of them where that is no number."""
    told = request.query.get("since", "")
    since = int(told) if told.isascii() and told.isdigit() and len(told) < 10 else 0
    await _while(partial(_repairs.waiting, since))
    answer = partial(_repairs.answer, since, _language(request))
    return await asyncio.get_running_loop().run_in_executor(_readers, answer)


async def _repair(request: web.Request) -> str:
    wish = RepairWish(**await _wish(request, REPAIR, RepairWish._field_defaults, MAX_NAMES_BYTES))
    language = _language(request)

    def begun() -> str:
        _repairs.start(wish)
        return _repairs.answer(0, language)

    return await asyncio.get_running_loop().run_in_executor(_readers, begun)


async def _stop_repair(request: web.Request) -> str:
    await _wish(request, {}, {})
    _repairs.stop()
    return await _repaired(request)


async def _repair_choices(request: web.Request) -> str:
    return await _in_thread(_readers, choices)


def _count(request: web.Request, name: str, otherwise: int) -> int:
    told = request.query.get(name) or str(otherwise)
    if not (told.isascii() and told.isdigit() and len(told) < 10):
        fault = message("nodes.not_a_count", name=name, value=told)
        raise Refusal(fault, message("nodes.give_row_count"))
    return int(told)


async def _fits(request: web.Request) -> str:
    """Which files fit a model, as far as the library has read them; `refresh=1` has it read those
    first that it has not seen.
    """
    asked = request.query
    model = _named(request, "model")
    _library.read()

    def told() -> dict[str, Any]:
        rows, running = _library.found()
        wanted = asked.get("refresh") == "1" and not running
        if wanted and not {row.file for row in rows}.issuperset(lora_names()):
            _library.read(refresh=True)
            rows, running = _library.found()
        about = fitting(rows, asked.get("model_folder", ""), model)
        return about | {"running": running}

    return await _in_thread(_readers, told)


async def _save(request: web.Request) -> str:
    wish = await _wish(request, WISHES, OPTIONAL)
    return await _in_thread(_writer, lambda: answered(save_listed(**wish), _language(request)))


async def _said(request: web.Request) -> str:
    """What a node stopped with, in the language that is asked for: the host tells it in English."""
    text = as_noted((await _wish(request, SAID, {}))["text"])
    return json.dumps(answered({"text": text}, _language(request)))


async def _compare(request: web.Request) -> str:
    work = partial(compared, _named(request), _named(request, "other"))
    return await _in_thread(_readers, lambda: answered(work(), _language(request)))


async def _weights(request: web.Request) -> str:
    """The weights of a file, or of it and an `other`: measured first, where they are not yet, while
    answers tell how far that is.
    """
    begin = partial(_measurements.of, _named(request), request.query.get("other", ""))
    measured = await asyncio.get_running_loop().run_in_executor(_readers, begin)
    await _while(lambda: measured.running)
    return await _in_thread(_readers, lambda: answered(measured.answer(), _language(request)))


async def _stop_weights(request: web.Request) -> str:
    wish = await _wish(request, MEASURED, {"other": ""})
    work = partial(_measurements.stop, **wish)
    return await _in_thread(_readers, lambda: answered(work(), _language(request)))


async def _every_loader(request: web.Request) -> str:
    return json.dumps({"on": is_on()})


async def _turn_every_loader(request: web.Request) -> str:
    """Stores first, so that what cannot last is not begun."""
    on = (await _wish(request, SWITCH, {}))["on"]

    def act() -> dict[str, bool]:
        store(on)
        if on != is_on():
            turn(on)
            # The host keeps what loaders gave before: it is to ask them anew, as by its own /free.
            PromptServer.instance.prompt_queue.set_flag("free_memory", True)
        return {"on": is_on()}

    return await _in_thread(_writer, act)


async def _wish(
    request: web.Request,
    fields: Mapping[str, type],
    optional: Mapping[str, Any],
    most: int = MAX_BYTES,
) -> Mapping[str, Any]:
    """The body of a request to do something. Only JSON that says so is taken: a form of another
    page cannot send that unasked.
    """
    if request.content_type != "application/json":
        raise Refusal(message("nodes.request_not_json"), message("nodes.send_as_json"))
    try:
        raw = await request.content.read(most + 1)
        while len(raw) <= most and (more := await request.content.read(most)):
            raw += more
    except BROKEN_OFF:
        raise Refusal(message("nodes.request_cut_off"), message("nodes.send_again")) from None
    try:
        wish = json.loads(raw) if len(raw) <= most else None
    except (ValueError, RecursionError):
        wish = None
    if not isinstance(wish, dict):
        raise Refusal(
            message("nodes.request_not_an_object"),
            message("nodes.send_object_with", fields=", ".join(fields)),
        )
    wish = {**optional, **wish}
    wrong = [name for name, kind in fields.items() if type(wish.get(name)) is not kind]
    if wrong:
        raise Refusal(
            message("nodes.field_missing_or_wrong", field=wrong[0]),
            message("nodes.send_field_as", field=wrong[0], type=fields[wrong[0]].__name__),
        )
    return {name: wish[name] for name in fields}
