"""One measurement of weights: it ends where nobody asks any longer, and a fault reaches who asks."""

from __future__ import annotations

import math
import threading
import time
from itertools import count

import pytest
from comfy_server import PATIENCE
from lora_locksmith.files.header import LoraFileError

pytestmark = pytest.mark.usefixtures("comfy")
SHORT = 2.0  # seconds of patience
ONCE_A_MINUTE = 60  # a browser lets timers of a tab in the background run so often


def measuring(measure, patience=math.inf):
    from lora_locksmith.nodes.server.measuring import Measurement

    return Measurement(measure, threading.Lock(), patience=patience)


def ended(measurement):
    """The measurement, once it has ended."""
    measurement.start()
    for thread in threading.enumerate():
        if thread.name == "lora_locksmith measuring":
            thread.join(PATIENCE)
    assert not measurement.running
    return measurement


def endless(progress):
    for done in count():
        progress(done, 1)


def test_it_ends_where_nobody_asks_any_longer():
    from lora_locksmith.nodes.server import measuring as module

    found = ended(measuring(endless, patience=0))
    assert found.answer()["stopped"] and not found.is_worth_keeping
    assert module.PATIENCE > 2 * ONCE_A_MINUTE


def test_it_goes_on_as_long_as_somebody_asks():
    def measure(progress):
        begun = time.monotonic()
        while time.monotonic() - begun <= SHORT:
            time.sleep(SHORT / 20)
            found.ask()
            progress(0, 1)
        return {"norm_a": 1.0}

    found = measuring(measure, SHORT)
    assert ended(found).answer()["weights"] == {"norm_a": 1.0}
    assert found.is_worth_keeping


def test_a_fault_between_two_questions_is_told_once():
    """Else it would be measured again and again by a page that asks until it hears of an end."""

    def measure(progress):
        raise LoraFileError("x.safetensors", "it ends within", "export it again")

    found = ended(measuring(measure))
    assert found.is_worth_keeping
    assert "it ends within" in found.answer()["error"]
    assert not found.is_worth_keeping
