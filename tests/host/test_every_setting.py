"""The setting Fix LoRAs in every loader: where it is stored, what the environment says, and that
loading the pack touches nothing of the host while it is off.
"""

from __future__ import annotations

import asyncio
import json

import pytest

VARIABLE = "LORA_LOCKSMITH_EVERY_LOADER"


@pytest.fixture
def stored(host, tmp_path, monkeypatch):
    """The file of the setting, in a user folder of the test's own, not yet there."""
    import folder_paths

    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path / "user"))
    monkeypatch.delenv(VARIABLE, raising=False)
    yield tmp_path / "user" / "lora-locksmith" / "settings.json"
    folder_paths.set_user_directory(before)


def load_the_pack():
    """What the host does with the pack at its start."""
    from lora_locksmith import comfy_entrypoint

    async def load():
        extension = await comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    assert asyncio.run(load())


def test_the_pack_leaves_the_host_alone_while_the_setting_is_off(stored, every, functions):
    originals = functions()
    for content in (None, {}, {"every_loader": False}, {"every_loader": "false"}, [True]):
        if content is not None:
            stored.parent.mkdir(parents=True, exist_ok=True)
            stored.write_text(json.dumps(content))
        load_the_pack()
        assert all(one is two for one, two in zip(functions(), originals, strict=True))


def test_the_pack_is_on_from_its_start_where_that_was_stored(stored, every):
    from lora_locksmith.nodes.every_setting import store

    store(True)
    load_the_pack()
    assert every.is_on()


def test_what_else_stands_in_the_file_stays(stored):
    from lora_locksmith.nodes.every_setting import store, wanted

    stored.parent.mkdir(parents=True)
    stored.write_text(json.dumps({"another": 7}))
    store(True)
    assert wanted()
    store(False)
    assert not wanted()
    assert json.loads(stored.read_text()) == {"another": 7, "every_loader": False}


@pytest.mark.parametrize("content", ["", "{", "[" * 100000, "\x80"])
def test_a_file_that_cannot_be_read_is_off_and_said(stored, content, caplog):
    from lora_locksmith.nodes.every_setting import store, wanted

    stored.parent.mkdir(parents=True)
    stored.write_bytes(content.encode("latin-1"))
    assert not wanted()
    assert str(stored) in caplog.text
    store(True)
    assert wanted()


@pytest.mark.parametrize(
    "value, on", [("1", True), ("TRUE", True), (" on ", True), ("0", False), ("off", False)]
)
def test_the_environment_counts_more_and_cannot_be_overruled(stored, monkeypatch, value, on):
    from lora_locksmith.nodes.every_setting import SettingError, store, wanted

    store(not on)
    monkeypatch.setenv(VARIABLE, value)
    assert wanted() is on
    with pytest.raises(SettingError, match=VARIABLE):
        store(on)
    monkeypatch.delenv(VARIABLE)
    assert wanted() is not on


def test_a_word_that_the_environment_should_not_say_counts_for_nothing(stored, monkeypatch, caplog):
    from lora_locksmith.nodes.every_setting import store, wanted

    monkeypatch.setenv(VARIABLE, "maybe")
    assert not wanted()
    assert "maybe" in caplog.text and VARIABLE in caplog.text
    store(True)
    assert wanted()


def test_a_folder_that_cannot_be_written_is_said_with_a_remedy(stored):
    from lora_locksmith.nodes.every_setting import SettingError, store, wanted

    stored.parent.parent.mkdir(parents=True)
    stored.parent.write_text("a file in the folder's place")
    with pytest.raises(SettingError, match="cannot be saved") as refused:
        store(True)
    assert str(stored.parent) in refused.value.remedy
    assert not wanted()
