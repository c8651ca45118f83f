"""What the registry gets, unpacked as ComfyUI-Manager unpacks it, runs by itself."""

import sys
import zipfile
from pathlib import Path

import comfy_server
import demo
import pytest
from devtools.packing import pack


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory, comfyui_path, tiny_models_folder):
    """A server whose pack is the archive, unpacked, beside the tiny models."""
    base = tmp_path_factory.mktemp("registry")
    pack(base / "pack.zip")
    with zipfile.ZipFile(base / "pack.zip") as archive:
        archive.extractall(base / "unpacked")
    comfy_server.prepare_base(base, base / "unpacked")
    (base / "models").rename(base / "no models")
    (base / "models").symlink_to(tiny_models_folder)
    with comfy_server.Server(
        Path(sys.executable), comfyui_path, base, base / "server.log"
    ) as running:
        yield running


def test_it_has_all_nodes_and_complains_of_nothing(unpacked, object_info):
    assert not comfy_server.complaints_about_the_pack(unpacked.startup_log)
    ours = {name for name in object_info if name.startswith("Locksmith")}
    assert ours and ours == {
        name for name in unpacked.object_info() if name.startswith("Locksmith")
    }


def test_it_serves_its_front_end_and_its_help(unpacked):
    folder = f"/extensions/{comfy_server.PACK_FOLDER}"
    for path in ("index.js", "i18n/zh.mjs", "docs/LocksmithLoadAndFixLoRA/zh.md"):
        assert unpacked.get_bytes(f"{folder}/{path}")


def test_it_loads_what_stock_does_not(unpacked):
    assert demo.run_demo(unpacked).as_promised
