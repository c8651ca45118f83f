"""Several LoRAs as one LORA_MODEL, for every node that gives one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..adapters.spec import AdapterError
from ..errors import fault_and_remedy
from ..files.header import LoraFileError
from ..lora.copies import compared
from ..lora.io.lora_model import native_tensors
from ..lora.merge.block_weights import read_block_weights
from ..lora.merge.collect import Source
from ..lora.merge.merge import MergeConfig, merge
from ..lora.merge.plan_together import File, inspect_together
from ..lora.merge.report import MergeReport
from ..messages import message
from ..report.file_names import numbered
from . import host
from .files import lora_path, own_maps, wired_lora


class Entry(NamedTuple):
    """One LoRA that is merged: a listed file, or what is connected; strengths and weights for its
    parts as on a loader.
    """

    name: str
    connected: Mapping[str, torch.Tensor] | None
    strength_model: float = 1.0
    strength_clip: float = 1.0
    blocks: str = ""


def sources_of(entries: Sequence[Entry], model, clip) -> list[Source]:
    """What is merged, planned for a ModelPatcher and a CLIP (either may be None) or for the model
    it was made for. Raises AdapterError, NodeError.
    """
    own = own_maps()
    contents = [_content(entry) for entry in entries]
    files = [
        File(entry.name, content.header, content.config_beside)
        for entry, content in zip(entries, contents, strict=True)
    ]
    target_model, names = (
        host.wired_model(model, clip, own),
        numbered([entry.name for entry in entries]),
    )
    return [
        Source(
            compared(inspection, content.tensors),
            content.tensors,
            entry.strength_model,
            entry.strength_clip,
            read_block_weights(entry.blocks),
            name,
        )
        for entry, name, content, inspection in zip(
            entries, names, contents, inspect_together(files, target_model, own), strict=True
        )
    ]


def _content(entry: Entry) -> host.LoraFile:
    if entry.connected is not None:
        return wired_lora(entry.connected)
    try:
        file = host.read_lora(lora_path(entry.name))
        return file._replace(tensors=file.to_be_written())
    except LoraFileError as error:
        fault = fault_and_remedy(error.fault, error.remedy)
        raise AdapterError(message("joints.about", subject=entry.name, text=fault)) from None


def merged(
    sources: Sequence[Source], recipe: MergeConfig, report: MergeReport, base, *, overlaps: bool
) -> dict[str, torch.Tensor]:
    """A LORA_MODEL of these; `report` hears of every weight, base and overlaps are as of `merge`.
    Raises AdapterError.
    """

    def results() -> Iterator[Any]:
        for _, one in merge(sources, recipe, base, overlaps=overlaps, progress=host.progress_bar()):
            report.add(one)
            yield one.native

    return native_tensors(results())
