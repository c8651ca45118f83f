"""A checkpoint or diffusion model file by ComfyUI's names, one parameter at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...adapters.rows import Rows
from ...adapters.spec import AdapterError
from ...files.header import TensorInfo, read_header
from ...identify.checkpoint import (
    ENCODERS,
    GLUED,
    NAMED_ENCODERS,
    OPENCLIP,
    PREFIXES,
    SUFFIXES,
    model_files,
    network_path,
    target_model_of_checkpoint,
)
from ...key_maps.dialect import DENOISER
from ...key_maps.table import parse_table
from ...messages import message
from ...planning.target_model import Network, Target, TargetModel
from .mapped import map_tensors

__all__ = ["ModelFile"]

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
# What scaled fp8 is multiplied with: comfy/ops.py, comfy/quant_ops.py.
SCALES = (
    "scale_weight",
    "weight_scale",
)
# Beside weights with more than one value to a byte.
PACKED_EXTRAS = (
    "weight_scale_2",
    "absmax",
    "quant_map",
)
PACKED = "lora.packed"


class _Source(NamedTuple):
    """A tensor of the file that is (some rows of) a native parameter."""

    name: str
    rows: Rows | None  # of the parameter
    taken: Rows | None  # of the tensor
    swap: bool


class ModelFile:
    """A checkpoint or diffusion model by ComfyUI's names, whatever the file's; each parameter is
    read when it is asked for.

    parameters: native name -> the file's tensors it is made of; strange: tensors of the model that
    cannot be read, with the reason.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        checkpoint = target_model_of_checkpoint(path)
        self.target_model: TargetModel = checkpoint.target_model
        self.title: str = checkpoint.title
        self.infos: dict[str, TensorInfo] = {}
        self.tensors: dict[str, Tensor] = {}
        self.parameters: dict[str, list[_Source]] = {}
        self.strange: dict[str, str] = {}
        for start, file in self._parts():
            header = read_header(file)
            self.infos |= {start + name: info for name, info in header.tensors.items()}
            self.tensors |= {
                start + name: tensor for name, tensor in map_tensors(file, header).items()
            }
        for name, info in self.infos.items():
            self._take(name, info)

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.path)

    def _parts(self) -> Iterator[tuple[str, Path]]:
        """(what to put before its names, file) of all files of the model."""
        main, folder = network_path(self.path)
        yield from (("", file) for file in model_files(main))
        family = self.target_model.family
        if folder is None or family is None:
            return
        for slot, prefixes in family.encoders.items():
            name = next((text[:-1] for text in prefixes if text.endswith(".")), "")
            if name and (folder / name).is_dir():
                yield from (
                    (f"{NAMED_ENCODERS[0]}{slot}.transformer.", file)
                    for file in model_files(folder / name)
                )

    def _take(self, name: str, info: TensorInfo) -> None:
        module, suffix = _divided(name)
        if suffix in SCALES or not info.shape:
            return
        candidate = next(
            (found for found in self._find(module) if _fits(found, info.shape, suffix)), None
        )
        if candidate is None:
            return
        network = self.target_model.networks[candidate.network]
        for weight, rows, taken in candidate.slices:
            parameter = network.bias_of(weight) if suffix == "bias" else weight
            if parameter is None:
                continue
            if info.dtype not in FLOATS or any(
                f"{module}.{extra}" in self.infos for extra in PACKED_EXTRAS
            ):
                self.strange[parameter] = message(PACKED, dtype=info.dtype)
            self.parameters.setdefault(parameter, []).append(
                _Source(name, rows, taken, candidate.swap)
            )

    def _find(self, module: str) -> Sequence[Target]:
        for start, slot in ENCODERS.items():
            if module.startswith(start):
                network = self.target_model.networks.get(slot) if slot else self._openclip
                return network.find(module[len(start) :]) if network else ()
        for start in NAMED_ENCODERS:
            slot, _, inner = module.removeprefix(start).partition(".")
            if module.startswith(start) and slot in self.target_model.networks:
                return self.target_model.networks[slot].find(inner.removeprefix("transformer."))
        names = [module]
        for name in names:
            found = (
                self.target_model.networks[DENOISER].find(name)
                if DENOISER in self.target_model.networks
                else ()
            )
            if found:
                return found
            names += [
                name[len(start) :]
                for start in PREFIXES
                if name.startswith(start) and len(names) < 16
            ]
        return ()

    @cached_property
    def _openclip(self) -> Network | None:
        """The text encoder that OpenCLIP's names in the file mean, known by these."""
        slots = [slot for slot in ("clip_g", "clip_h") if slot in self.target_model.networks]
        if not slots:
            return None
        network = self.target_model.networks[slots[0]]
        return Network(
            network.name, network.prefix, network.weights, parse_table("openclip", OPENCLIP)
        )

    def shape(self, parameter: str) -> tuple[int, ...]:
        """The native shape; () where it is not told."""
        for network in self.target_model.networks.values():
            if parameter in network.weights:
                return network.weights[parameter]
        return ()

    def dtypes(self, parameter: str) -> set[torch.dtype]:
        """The dtypes of the file's tensors the parameter is made of."""
        return {self.tensors[source.name].dtype for source in self.parameters[parameter]}

    def stored(self) -> Iterator[Tensor]:
        """Its tensors as they are stored."""
        for sources in self.parameters.values():
            for source in sources:
                yield self.tensors[source.name]

    def scaled(self, parameter: str) -> bool:
        """Whether its values are multiplied with a scale beside them."""
        return any(self._scale(source.name) is not None for source in self.parameters[parameter])

    def weight(self, parameter: str) -> Tensor:
        """`read` for whoever cannot know what the file holds. Raises AdapterError for what it has
        not, or packed.
        """
        if parameter not in self.parameters:
            raise AdapterError(
                message("lora.model_lacks", model=self.path.name, parameter=parameter)
            )
        if parameter in self.strange:
            place = f"{self.path.name}, {parameter}"
            raise AdapterError(message("joints.about", subject=place, text=self.strange[parameter]))
        return self.read(parameter)

    def read(self, parameter: str) -> Tensor:
        """The parameter in fp32 and its native shape; the file's own tensor where it is the whole
        in that dtype already.
        """
        sources, shape = self.parameters[parameter], self.shape(parameter)
        if len(sources) == 1 and sources[0].rows is None:
            value = self._part(sources[0])
            return value.reshape(shape) if shape and value.numel() == math.prod(shape) else value
        rows = [source.rows or Rows(0, shape[0] if shape else 0) for source in sources]
        if not shape or sum(one.length for one in rows) != shape[0]:
            raise AdapterError(message("lora.model_lacks_rows", parameter=parameter))
        whole = torch.empty(shape, dtype=torch.float32)
        for source, (start, length) in zip(sources, rows, strict=True):
            part = self._part(source).reshape(length, *shape[1:])
            whole.narrow(0, start, length).copy_(part)
        return whole

    def _part(self, source: _Source) -> Tensor:
        value = self.tensors[source.name].to(torch.float32)
        scale = self._scale(source.name)
        if scale is not None:
            scale = scale.to(torch.float32)
            value = value * (
                scale if scale.numel() == 1 else scale.reshape(-1, *[1] * (value.dim() - 1))
            )
        if source.taken is not None:
            value = value.narrow(0, *source.taken)
        return value.roll(value.shape[0] // 2, 0) if source.swap else value

    def _scale(self, name: str) -> Tensor | None:
        module = name.removesuffix(".weight")
        return next(
            (
                self.tensors[f"{module}.{scale}"]
                for scale in SCALES
                if f"{module}.{scale}" in self.tensors and module != name
            ),
            None,
        )


def _divided(name: str) -> tuple[str, str]:
    """(module, last word): as the module of a checkpoint's tensor is called, and `weight`, `bias`,
    `scale` ... or nothing.
    """
    for ending, suffix in GLUED.items():
        if name.endswith(ending):
            return name[: -len(suffix)], suffix[1:]
    module, _, last = name.rpartition(".")
    known = {suffix[1:] for suffix in SUFFIXES} | set(SCALES)
    return (module, last) if last in known else (name, "")


def _fits(candidate: Target, shape: Sequence[int], suffix: str) -> bool:
    if suffix == "bias":
        return candidate.out in (0, shape[0])
    return candidate.out in (0, 1, shape[0]) and math.prod(candidate.inner) * candidate.out in (
        0,
        math.prod(shape),
    )
