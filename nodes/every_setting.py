"""Whether Fix LoRAs in every loader is to be on: in a file of the pack's own, which the front end's
setting writes by a route, or in the environment, where there is no browser.

One setting for the server: it acts on the host's functions, which all its users share.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from ..errors import LocksmithError, system_reason
from ..files.atomic import making_folder, write_whole
from ..messages import message
from .files import own_folder

FILE = "settings.json"
NAME = "every_loader"
VARIABLE = "LORA_LOCKSMITH_EVERY_LOADER"
WORDS = {"1": True, "true": True, "on": True, "yes": True}
WORDS |= {"0": False, "false": False, "off": False, "no": False}

_writing = threading.Lock()


class SettingError(LocksmithError):
    """Why the setting cannot be changed, and the remedy."""

    def __init__(self, fault: str, remedy: str):
        super().__init__(fault)
        self.fault, self.remedy = fault, remedy


def by_environment() -> bool | None:
    """What the environment says; None where it says nothing, or nothing that is known."""
    value = os.environ.get(VARIABLE, "").strip()
    if value and value.lower() not in WORDS:
        logging.getLogger("lora_locksmith").warning(
            message("nodes.every_wrong_switch", name=VARIABLE, value=value)
        )
    return WORDS.get(value.lower())


def wanted() -> bool:
    """What the environment says, else what was stored; off where neither says anything."""
    told = by_environment()
    return _read().get(NAME) is True if told is None else told


def store(on: bool) -> None:
    """Remember the setting for the next start. Raises SettingError where the environment decides,
    or nothing can be written.
    """
    if by_environment() is not None:
        raise SettingError(
            message("nodes.set_by_environment", name=VARIABLE), message("nodes.change_environment")
        )
    path = _path()
    with _writing:
        content = json.dumps({**_read(), NAME: on}, indent=1).encode()
        try:
            with making_folder(path.parent):
                write_whole(path, content)
        except OSError as error:
            raise SettingError(
                message("nodes.settings_not_written", fault=system_reason(error)),
                message("nodes.check_own_folder", path=path.parent),
            ) from None


def turn_on_if_wanted() -> None:
    """Turn it on as it was stored; while it is off, nothing of the host is touched."""
    if wanted():
        from .every_loader import turn

        turn(True)
        logging.getLogger("lora_locksmith").info(message("nodes.log_every_on"))


def _path() -> Path:
    return own_folder() / FILE


def _read() -> dict[str, Any]:
    try:
        content = json.loads(_path().read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        fault = system_reason(error) if isinstance(error, OSError) else message("files.not_json")
    else:
        if isinstance(content, dict):
            return content
        fault = message("files.not_json_object")
    logging.getLogger("lora_locksmith").warning(
        message("nodes.log_settings_not_read", path=_path(), fault=fault)
    )
    return {}
