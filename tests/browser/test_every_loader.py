"""The setting Fix LoRAs in every loader in the real front end: it acts on the server, and follows
what the server says.
"""

from __future__ import annotations

import json
import urllib.request

import comfy_server
import pytest
from playwright.sync_api import expect

EVERY, ROUTE = "loralocksmith.every.loader", "/lora_locksmith/every_loader"


def order(server, on):
    body = json.dumps({"on": on}).encode()
    request = urllib.request.Request(server.url + ROUTE, body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=comfy_server.PATIENCE).close()


@pytest.fixture(autouse=True)
def off(server, front_end):
    """Off on the server and in the page, before and after each test."""
    yield
    order(server, False)
    front_end.open()
    front_end.wait_until(lambda: front_end.setting(EVERY) is False)


def is_on(server):
    return server.get(ROUTE)["on"]


def is_order(request):
    return request.method == "POST" and ROUTE in request.url


def test_the_switch_in_the_settings_turns_it_on_and_off(server, front_end):
    page = front_end.page
    front_end.run_command("Comfy.ShowSettingsDialog")
    page.get_by_text("LoRA Locksmith", exact=True).first.click()
    switch = page.get_by_role("switch", name="Fix LoRAs in every loader")
    expect(switch).not_to_be_checked()
    switch.click(force=True)
    front_end.wait_until(lambda: is_on(server))
    expect(switch).to_be_checked()
    switch.click(force=True)
    front_end.wait_until(lambda: not is_on(server))
    page.keyboard.press("Escape")


def test_many_clicks_in_a_row_end_where_the_last_one_says(server, front_end):
    orders, answered = [], []
    front_end.page.on("request", lambda asked: is_order(asked) and orders.append(asked))
    front_end.page.on("requestfinished", lambda asked: is_order(asked) and answered.append(asked))
    for turn in range(9):
        front_end.set(EVERY, turn % 2 == 0)
    # Nothing follows an answered order for what was wanted last.
    front_end.wait_until(
        lambda: len(answered) == len(orders) > 0 and orders[-1].post_data_json == {"on": True}
    )
    assert is_on(server) and front_end.setting(EVERY) is True


def test_a_page_shows_what_the_server_has(server, front_end):
    order(server, True)
    front_end.open()
    front_end.wait_until(lambda: front_end.setting(EVERY) is True)
    assert is_on(server)
    order(server, False)
    front_end.open()
    front_end.wait_until(lambda: front_end.setting(EVERY) is False)
    assert not is_on(server)


def test_a_setting_that_the_server_cannot_keep_goes_back_and_says_why(server, front_end):
    path = server.base / "user" / "lora-locksmith" / "settings.json"
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    try:
        front_end.set(EVERY, True)
        expect(
            front_end.page.get_by_text("Fix LoRAs in every loader was not changed")
        ).to_be_visible()
        front_end.wait_until(lambda: front_end.setting(EVERY) is False)
        assert not is_on(server)
    finally:
        path.rmdir()
    # The browser's own line about an answer that is a refusal.
    assert all("409" in line for line in front_end.said)
    front_end.said.clear()
