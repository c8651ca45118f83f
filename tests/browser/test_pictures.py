"""With LOCKSMITH_PICTURES=FOLDER all that this pack draws is drawn into that folder, in both ways to
draw nodes, both themes and both languages, small and large. It is apart from the other tests of the
scenes, as each set of pictures begins with files of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scenes import (
    LANGUAGES,
    PALETTES,
    SCENES,
    SIZES,
    files_of_scenes,
    shown_one_after_another,
    small_or_large,
)

PICTURES = os.environ.get("LOCKSMITH_PICTURES")


@pytest.mark.skipif(
    not PICTURES, reason="pictures are drawn where LOCKSMITH_PICTURES names a folder"
)
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_picture_of_each_scene(browser, server, front_end, mode, language, palette, size):
    folder = Path(PICTURES or "") / f"{mode} {palette} {language} {size[0]}"
    folder.mkdir(parents=True, exist_ok=True)
    shown = {"size": size, "palette": palette, "language": language}
    loras = server.base / "models" / "loras"
    with small_or_large(browser, server.url, **shown) as fresh, files_of_scenes(fresh, loras):
        for scene in shown_one_after_another(fresh, SCENES):
            fresh.page.screenshot(path=folder / f"{scene.name}.png")
