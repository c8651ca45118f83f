"""Lazy reading of a safetensors file's tensors by name."""

from __future__ import annotations

import os
from collections.abc import Mapping

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..key_maps.header import LoraFileError

__all__ = ["LoraFileError", "LoraReader"]


class LoraReader:
    """The tensors of one safetensors file, each read when it is asked for.

        with LoraReader(path) as reader:
            tensors = reader.tensors({"down": "lora_unet_x.lora_down.weight", "up": "lora_unet_x.lora_up.weight"})

    Tensors keep the file's dtype (fp8 included), live on the CPU, and stay valid after the file is closed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self._file = None
        self._opened = None

    def __enter__(self) -> LoraReader:
        try:
            self._opened = safe_open(self.path, framework="pt", device="cpu")
            self._file = self._opened.__enter__()
        except FileNotFoundError:
            raise LoraFileError(self.path, "there is no such file", "Check the name, or refresh the file list") from None
        except OSError as error:
            raise LoraFileError(self.path, f"it cannot be opened ({error})", "Check that it is a file and may be read") from None
        except SafetensorError as error:
            raise LoraFileError(self.path, f"it is not a whole safetensors file ({error})", "Download or export the file again") from None
        return self

    def __exit__(self, *failure: object) -> None:
        opened, self._opened, self._file = self._opened, None, None
        if opened is not None:
            opened.__exit__(*failure)

    def names(self) -> tuple[str, ...]:
        """The names of all tensors of the file."""
        return tuple(self._open_file().keys())

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`. Raises LoraFileError when it is not in the file or cannot be read."""
        file = self._open_file()
        try:
            return file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            remedy = "The file was changed while it was open, or is damaged: download or export it again"
            raise LoraFileError(self.path, f"the tensor {name[:80]!r} cannot be read ({error})", remedy) from None

    def tensors(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """role -> tensor, for a mapping role -> name."""
        return {role: self.tensor(name) for role, name in names.items()}

    def _open_file(self):
        if self._file is None:
            raise LoraFileError(self.path, "it is not open", "Read its tensors inside the reader's with block")
        return self._file
