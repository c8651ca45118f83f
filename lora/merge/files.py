"""Opens LoRA files as the sources of a merge."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from ...files.header import adapter_config_beside, read_header
from ...identify.checkpoint import target_model_of_checkpoint
from ...report.file_names import numbered, told_apart
from ..copies import compared
from ..io.model_file import ModelFile
from ..io.stream import TensorStream
from ..rewrite.rename import NATIVE
from .block_weights import NO_BLOCKS, BlockWeights
from .collect import Base, Source, refused
from .merge import MergeConfig
from .plan_together import File, inspect_together
from .report import MergeReport
from .write import merge_metadata, write_merged


class Entry(NamedTuple):
    """A file to merge: its path, its strength on the diffusion model and on the text encoders."""

    path: str
    model: float = 1.0
    text_encoder: float = 1.0
    blocks: BlockWeights = NO_BLOCKS


def open_sources(
    entries: Sequence[Entry], model: str | os.PathLike[str] | None, stack: ExitStack
) -> tuple[list[Source], dict[str, str]]:
    """Open and plan the files of a merge for one model.

    Args:
        entries: the files, in the order of the merge.
        model: the base model's file; None: the files themselves say which model it is.
        stack: closes the files when it is left.

    Returns:
        The sources, and the metadata by which the merged file names its model.

    Raises:
        LoraFileError: a file cannot be read. LocksmithError: they are for different models.
    """
    target_model = target_model_of_checkpoint(model).target_model if model else None
    paths = [entry.path for entry in entries]
    read = [File(path, read_header(path), adapter_config_beside(path)) for path in paths]
    inspections = inspect_together(read, target_model)
    streams = [stack.enter_context(TensorStream(file.name, file.header)) for file in read]
    sources = [
        Source(
            compared(inspection, stream),
            stream,
            entry.model,
            entry.text_encoder,
            entry.blocks,
            name,
        )
        for entry, stream, inspection, name in zip(
            entries, streams, inspections, numbered(told_apart(paths)), strict=True
        )
    ]
    families = (one.family_metadata for one in inspections if one.family_metadata)
    return sources, next(families, {})


def merge_files(
    to: str | os.PathLike[str],
    entries: Sequence[Entry],
    opened: tuple[Sequence[Source], Mapping[str, str]],
    config: MergeConfig,
    *,
    model: str | os.PathLike[str] | None = None,
    dialect: str = NATIVE,
    overwrite: bool = False,
) -> MergeReport:
    """Merge files into a file, and tell what was merged, cut and lost.

    Args:
        entries: the files; opened: what `open_sources` gave for them.
        model: the base model's file, for adapters that depend on its weights.
        dialect: whose names the file gets.

    Raises:
        what `write_merged` raises.
    """
    sources, family = opened
    report = MergeReport(sources, config)
    metadata = {**merge_metadata(sources, config, [entry.path for entry in entries]), **family}
    report.written = str(
        write_merged(
            to,
            sources,
            config,
            metadata=metadata,
            base=base_weights(model, sources),
            overwrite=overwrite,
            each=report.add,
            overlaps=True,
            dialect=dialect,
        )
    )
    return report


def base_weights(model: str | os.PathLike[str] | None, sources: Sequence[Source]) -> Base | None:
    """The base model's weights by name, where a model is given and an adapter needs them."""
    return ModelFile(model).weight if model and refused(sources, False) else None
