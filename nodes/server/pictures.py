"""The picture or film beside a LoRA file, small, by the file's name in the loras folders."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...report.beside import preview_of
from .about_file import listed

SIZE = 384  # pixels of the longer side
FILMS = (".mp4",)
QUALITY = 82


def picture_of(name: str) -> bytes | None:
    """The preview of a listed file as a WebP picture of at most SIZE pixels; None where there is
    none, or none that can be read. Raises Unknown for a name that is not listed.
    """
    path = preview_of(listed("loras", name)[1])
    if path is None:
        return None
    try:
        return _small(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _small(path: Path, modified: int) -> bytes | None:
    from PIL import Image, ImageOps

    try:
        with _frame(path) if path.suffix.lower() in FILMS else Image.open(path) as picture:
            picture.draft("RGB", (SIZE, SIZE))
            upright = ImageOps.exif_transpose(picture)
            upright.thumbnail((SIZE, SIZE))
            buffer = io.BytesIO()
            upright.convert("RGB").save(buffer, "WEBP", quality=QUALITY)
            return buffer.getvalue()
    except Exception:
        # Whatever a stranger's picture makes the library raise, it is no picture for us.
        return None


def _frame(path: Path) -> Any:
    """The first picture of a film."""
    import av

    with av.open(str(path)) as film:
        return next(film.decode(video=0)).to_image()
