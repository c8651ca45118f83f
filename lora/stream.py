"""Reads a safetensors file tensor by tensor into memory of its own, so that what was read and dropped is no longer in memory."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from ..key_maps.header import Header, LoraFileError, check_unchanged, open_file
from .reader import DTYPES

__all__ = ["TensorStream"]


class TensorStream:
    """The tensors of one file, each read when it is asked for; a mapping's pages would stay in memory until the end.

        with TensorStream(path, read_header(path)) as stream:
            up = stream.tensor("lora_unet_x.lora_up.weight")

    Raises LoraFileError for a file that cannot be opened or was cut, for a name that is not in it and a dtype that torch lacks.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header):
        self.path, self.header = os.fspath(path), header
        self._file = None

    def __enter__(self) -> TensorStream:
        try:
            file = open_file(self.path, 0)
        except OSError as error:
            raise LoraFileError(self.path, f"it cannot be opened ({error.strerror})", "Check that it is a file and may be read") from None
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

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, on the CPU, in the file's dtype."""
        values = torch.empty(0, dtype=self.dtype(name))
        info = self.header.tensors[name]
        if math.prod(info.shape):
            values = values.new_empty(math.prod(info.shape))
            self._fill(values, name, self.header.data_start + info.start)
        return values.view(info.shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, without reading it."""
        info = self.header.tensors.get(name)
        if info is None or info.dtype not in DTYPES:
            fault = f"the tensor {name[:80]!r} cannot be read ({'it is not in the file' if info is None else info.dtype})"
            raise LoraFileError(self.path, fault, "Download or export the file again")
        return getattr(torch, DTYPES[info.dtype])

    def _fill(self, values: Tensor, name: str, start: int) -> None:
        place = memoryview(values.view(torch.uint8).numpy())
        self._file.seek(start)
        done = 0
        # One read gives 2 GB at most on Linux.
        while done < len(place):
            count = self._file.readinto(place[done:])
            if not count:
                fault = f"it ends within the tensor {name[:80]!r}"
                raise LoraFileError(self.path, fault, "The file was changed while it was open, or is damaged: download it again")
            done += count
