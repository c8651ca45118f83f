"""Computes the hashes by which LoRA files are known (SHA-256, AutoV1 to AutoV3, CRC32), and
compares them with those in the metadata.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

from ..errors import system_reason
from ..messages import message
from .header import MAX_HEADER_BYTES, LoraFileError, not_opened, open_file

CHUNK_BYTES = 1 << 22
# AUTOMATIC1111's first model hash: stable-diffusion-webui model_hash, sd-scripts
# library/train_util.py model_hash.
AUTOV1_START, AUTOV1_BYTES = 0x100000, 0x10000
STORED_HASH = re.compile(r"\s*(0x)?([0-9a-fA-F]{10,64})\s*$")


class Hashes(NamedTuple):
    """A file's hashes as hexadecimal text; "" where a hash is not defined for the file.

    sha256: the whole file.
    autov1: 8 digits of the SHA-256 of 0x10000 bytes at 0x100000; "" for a file that ends before
        (Civitai: below 2 MiB).
    autov2: the first 10 digits of sha256.
    autov3: the first 12 digits of sshs_model_hash.
    sshs_model_hash: SHA-256 of what follows the header, the tensors (sd-scripts
        train_util.addnet_hash_safetensors); "" without a header.
    crc32: 8 upper-case digits, lowest byte first, as Civitai's scanner prints them (model-scanner
        HashTask.cs).

    Civitai's BLAKE3 is missing because Python's standard library has none.
    """

    sha256: str
    autov1: str
    autov2: str
    autov3: str
    sshs_model_hash: str
    crc32: str

    def as_dict(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        """`hashes`: these; `stored_hashes`: what those in the file's metadata say about its
        tensors.
        """
        return {"hashes": self._asdict(), "stored_hashes": verify(metadata, self)}


def file_hashes(
    path: str | os.PathLike[str], progress: Callable[[int, int], Any] | None = None
) -> Hashes:
    """The hashes of the file at `path`, read once, in constant memory (two parts of CHUNK_BYTES).

    `progress(done_bytes, total_bytes)` is called after each part; what it raises ends the work and
    is not caught. Raises LoraFileError where the file cannot be read or changes its size meanwhile.
    """
    try:
        file = open_file(path, 0)
    except OSError as error:
        raise not_opened(path, error) from None
    with file, ThreadPoolExecutor(2) as pool:
        return _hash_file(path, file, pool, progress)


def _hash_file(
    path: str | os.PathLike[str],
    file: BinaryIO,
    pool: ThreadPoolExecutor,
    progress: Callable[[int, int], Any] | None,
) -> Hashes:
    """Feeds every part to all hashes; the two SHA-256 of everything run in threads, because hashlib
    lets go of the interpreter.
    """
    total = os.fstat(file.fileno()).st_size
    whole, tensors, first = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    checksum = done = 0
    part = _read(path, file)
    data_start = _data_start(part, total)
    while part and done <= total:
        view = memoryview(part)
        running = [pool.submit(whole.update, view)]
        if data_start is not None and done + len(part) > data_start:
            running.append(pool.submit(tensors.update, view[max(0, data_start - done) :]))
        first.update(view[max(0, AUTOV1_START - done) : max(0, AUTOV1_START + AUTOV1_BYTES - done)])
        checksum = zlib.crc32(view, checksum)
        done += len(part)
        part = _read(path, file)
        for task in running:
            task.result()
        if progress is not None:
            progress(done, total)
    if done != total:
        raise LoraFileError(
            path,
            message("files.changed_size", size=f"{total:,}"),
            message("files.wait"),
        )
    sha256, data = whole.hexdigest(), tensors.hexdigest() if data_start is not None else ""
    autov1 = first.hexdigest()[:8] if total >= AUTOV1_START + AUTOV1_BYTES else ""
    return Hashes(
        sha256, autov1, sha256[:10], data[:12], data, checksum.to_bytes(4, "little").hex().upper()
    )


def _read(path: str | os.PathLike[str], file: BinaryIO) -> bytes:
    try:
        return file.read(CHUNK_BYTES)
    except OSError as error:
        raise LoraFileError(
            path,
            message("files.not_readable", reason=system_reason(error)),
            message("files.check_access"),
        ) from None


def _data_start(first: bytes, total: int) -> int | None:
    """Where the tensors begin; None for a file that does not begin like safetensors. The header's
    content is not judged here.
    """
    if len(first) < 9:
        return None
    (length,) = struct.unpack("<Q", first[:8])
    return (
        8 + length
        if 2 <= length <= MAX_HEADER_BYTES and 8 + length <= total and first[8:9] == b"{"
        else None
    )


def verify(metadata: Mapping[str, str], hashes: Hashes) -> list[str]:
    """What the hashes stored in the metadata say about the tensors, one sentence each; empty where
    none is stored. Never raises.

    sd-scripts, musubi-tuner and ai-toolkit write `sshs_model_hash` as bare digits over the file's
    data (addnet_hash_safetensors). LyCORIS (lycoris/utils precalculate_safetensors_hashes),
    OneTrainer (`modelspec.hash_sha256`) and sd-scripts' sai_model_spec.py write `0x` and hash
    tensor by tensor in an order of their own, so that such a hash can agree but its disagreement
    proves nothing. `sshs_legacy_hash` cannot be checked: it covers a piece of a file that had
    another header.
    """
    sentences: list[str] = []
    for key in STORED_KEYS if hashes.sshs_model_hash else ():
        value = metadata.get(key)
        if not isinstance(value, str) or not value:
            continue
        stored = STORED_HASH.match(value) if len(value) < 100 else None
        if stored is None:
            sentences.append(message("files.no_hash", key=key))
        elif hashes.sshs_model_hash.startswith(stored.group(2).lower()):
            sentences.append(message("files.hash_agrees", key=key))
        else:
            sentences.append(
                message(
                    "files.hash_of_own_order" if stored.group(1) else "files.hash_disagrees",
                    key=key,
                    stored=stored.group(2)[:12].lower(),
                    hash=hashes.autov3,
                )
            )
    return sentences


STORED_KEYS = ("sshs_model_hash", "modelspec.hash_sha256")


def source_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a file that is made of another tells of it in its metadata: name and SHA-256."""
    return {
        "locksmith.source": os.path.basename(path),
        "locksmith.source_sha256": file_hashes(path).sha256,
    }
