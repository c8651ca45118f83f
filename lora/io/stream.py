"""Reads a safetensors file tensor by tensor into memory of its own, so that what was read and
dropped is no longer in memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import torch
from torch import Tensor

from ...files.header import Header, LoraFileError, check_unchanged, open_file
from ...messages import message
from .mapped import DTYPES, read_with_safetensors

__all__ = ["TensorStream"]


class TensorStream(Mapping[str, Tensor]):
    """The tensors of one file by name, each read when it is asked for; a mapped file's pages would
    stay in memory until the end.

        with TensorStream(path, read_header(path)) as stream:
            up = stream["lora_unet_x.lora_up.weight"]

    Tensors are on the CPU, in the file's dtype, and stay valid after the file is closed. Raises
    LoraFileError for a file that cannot be opened, that is not the header's or was cut, and for a
    dtype that torch lacks.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header):
        self.path, self.header = os.fspath(path), header
        self._file: BinaryIO | None = None

    def __enter__(self) -> TensorStream:
        try:
            file = open_file(self.path, 0)
        except OSError as error:
            raise LoraFileError(
                self.path,
                message("files.not_opened", reason=error.strerror),
                message("lora.check_file"),
            ) from None
        try:
            check_unchanged(self.path, file, self.header)
        except LoraFileError:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(self, *failure: object) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def check(self) -> None:
        """Raises LoraFileError where the file was written to since its header was read: then what
        was read of it may be of two files.
        """
        if self._file is not None:
            check_unchanged(self.path, self._file, self.header)

    def __len__(self) -> int:
        return len(self.header.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __getitem__(self, name: str) -> Tensor:
        info = self.header.tensors[name]
        if info.dtype not in DTYPES:
            return read_with_safetensors(self.path, [name])[name]
        values = torch.empty(0, dtype=self.dtype(name))
        if math.prod(info.shape):
            values = values.new_empty(math.prod(info.shape))
            self._fill(values, name, self.header.data_start + info.start)
        return values.view(info.shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, without reading it where its name tells it."""
        known = DTYPES.get(self.header.tensors[name].dtype)
        return getattr(torch, known) if known else self[name].dtype

    def _fill(self, values: Tensor, name: str, start: int) -> None:
        if self._file is None:
            raise LoraFileError(
                self.path, message("lora.not_open"), message("lora.read_within_block")
            )
        content = values.view(torch.uint8).numpy()
        place = memoryview(content)  # type: ignore[arg-type]  # numpy says it is a buffer from 3.12 on
        self._file.seek(start)
        done = 0
        # One read gives 2 GB at most on Linux.
        while done < len(place):
            # BinaryIO leaves it out; files have it
            count = self._file.readinto(place[done:])  # type: ignore[attr-defined]
            if not count:
                fault = message("lora.ends_within", tensor=name[:80])
                raise LoraFileError(
                    self.path,
                    fault,
                    message("lora.changed_while_open"),
                )
            done += count
