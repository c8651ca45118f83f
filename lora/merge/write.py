"""Writes a merge into a file as it is made, one weight at a time."""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ...adapters.spec import AdapterError
from ...files.atomic import check_free, scratch_folder
from ...files.hashes import file_hashes
from ...files.header import read_header
from ...key_maps.dialect import DENOISER
from ...messages import message
from ...planning.target_model import Network, TargetModel
from ...report.inspection import inspect_header
from ..io.lora_model import Native, named
from ..io.mapped import map_tensors
from ..io.writer import raw, write_as, write_lora
from ..rewrite.convert import Conversion, Spec
from ..rewrite.rename import NATIVE
from .collect import Base
from .dry_run import forecast
from .merge import DEFAULT, MergeConfig, Merged, Source, merge

__all__ = ["merge_metadata", "spooled", "write_merged"]

ALIGNMENT = 8


class _Streamed(Conversion):
    """A merge as what a writer takes: what the tensors will be, and the tensors one weight at a
    time.
    """

    def __init__(self, specs: dict[str, Spec], made: Callable[[], Iterator[Native]]):
        # It is in no dialect, and what asks for one has nothing to ask it about.
        super().__init__(None, specs, {}, {}, {}, {})  # type: ignore[arg-type]
        self._made = made

    def items(self) -> Iterator[tuple[str, Tensor]]:
        return named(self._made())


def write_merged(
    path: str | os.PathLike[str],
    sources: Sequence[Source],
    recipe: MergeConfig = DEFAULT,
    *,
    metadata: Mapping[str, str] | None = None,
    base: Base | None = None,
    overwrite: bool = False,
    each: Callable[[Merged], object] | None = None,
    overlaps: bool = False,
    dialect: str = NATIVE,
) -> Path:
    """Merge into a safetensors file, whole or not at all; at no time is more than one weight's
    result in memory.

    each: called with every weight's result, as it goes by. Where ranks are not known before, the
    tensors first go into a temporary file beside `path`. dialect: whose names the file gets; others
    than ComfyUI's own are converted from it and verified, as `write_as` does, and split what the
    merge had to fuse. Raises what `merge` and `write_lora` (or `write_as`) raise.
    """
    if dialect == NATIVE:
        return _native_file(
            Path(path),
            sources,
            recipe,
            metadata=metadata,
            base=base,
            overwrite=overwrite,
            each=each,
            overlaps=overlaps,
        )
    check_free(path, overwrite)
    with scratch_folder(path) as folder:
        made = _native_file(
            Path(folder, "native.safetensors"),
            sources,
            recipe,
            metadata=metadata,
            base=base,
            overwrite=False,
            each=each,
            overlaps=overlaps,
        )
        header = read_header(made)
        plan = inspect_header(made, header, None, _given(sources), whole=True).plan
        return write_as(
            plan, map_tensors(made, header, passing=True), path, dialect, overwrite=overwrite
        ).path


def _given(sources: Sequence[Source]) -> TargetModel:
    """The sources' model, and the text encoders that were not drawn: a drawn one is as large as one
    of the files needed it.
    """
    networks: dict[str, Network] = {}
    for network in (
        network for source in sources for network in source.plan.target_model.networks.values()
    ):
        known = networks.setdefault(network.name, network)
        if len(network.weights) > len(known.weights):
            networks[network.name] = network
    return TargetModel(
        network
        for name, network in networks.items()
        if name == DENOISER or not network.is_reference
    )


def _native_file(
    path: Path,
    sources: Sequence[Source],
    recipe: MergeConfig,
    *,
    metadata: Mapping[str, str] | None,
    base: Base | None,
    overwrite: bool,
    each: Callable[[Merged], object] | None,
    overlaps: bool,
) -> Path:
    check_free(path, overwrite)
    expected = forecast(sources, recipe)

    def made() -> Iterator[Native]:
        for _, merged in merge(sources, recipe, base, overlaps):
            if each:
                each(merged)
            yield merged.native

    if expected.exact:
        specs = {
            name: Spec(tensor.dtype, tuple(tensor.shape))
            for name, tensor in named(row.native for row in expected.rows)
        }
        return write_lora(path, _Streamed(specs, made), metadata, overwrite=overwrite)
    with tempfile.TemporaryFile(prefix=".merge.", dir=path.parent) as file:
        return write_lora(path, spooled(made(), file), metadata, overwrite=overwrite)


# Metadata that speak of one file's tensors, ranks or names.
OF_ONE_FILE = (
    "lora_adapter_metadata",
    "sshs_",
    "ss_network_",
    "modelspec.hash",
    "modelspec.thumbnail",
    "modelspec.merged_from",
    "format",
)


def merge_metadata(
    sources: Sequence[Source], recipe: MergeConfig, paths: Sequence[str | os.PathLike[str]] = ()
) -> dict[str, str]:
    """The header of a merge: what all files say alike of themselves, and from what and how it was
    made, under `locksmith.merge`.

    paths: of the sources' files, for their hashes; reads them whole. Raises OSError or
    LoraFileError.
    """
    common = dict(sources[0].plan.metadata)
    for source in sources[1:]:
        common = {
            key: value for key, value in common.items() if source.plan.metadata.get(key) == value
        }
    kept = {
        key: value
        for key, value in common.items()
        if isinstance(value, str) and not key.startswith(OF_ONE_FILE)
    }
    made_of = [
        {
            "name": source.name,
            "strength_model": source.strength_model,
            "strength_text_encoder": source.strength_text_encoder,
            "blocks": ", ".join(entry.text for entry in source.blocks.entries),
        }
        for source in sources
    ]
    for entry, path in zip(made_of, paths, strict=False):
        entry["sha256"] = file_hashes(os.fspath(path)).sha256
    settings = {
        "method": recipe.method,
        "options": dict(recipe.options),
        "rank": recipe.rank,
        "energy": recipe.energy,
        "error": recipe.error,
    }
    return {
        **kept,
        "format": "pt",
        "locksmith.merge": json.dumps({**settings, "seed": recipe.seed, "sources": made_of}),
    }


def spooled(items: Iterator[Native], file: BinaryIO) -> dict[str, Tensor]:
    """The tensors of these by name, kept in `file` (open for reading and writing) and mapped from
    it; nothing stays in memory.

    The file has to stay open no longer than this takes. Raises AdapterError for a name that comes
    twice.
    """
    places: dict[str, tuple[int, Tensor]] = {}
    for name, tensor in named(items):
        if name in places:
            raise AdapterError(message("lora.two_deltas", parameter=name))
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        places[name] = file.tell(), tensor.to("meta")
        if tensor.numel():
            file.write(raw(tensor))
    file.flush()
    whole = _mapped(file)
    return {name: _view(whole, start, like) for name, (start, like) in places.items()}


def _mapped(file: BinaryIO) -> Tensor:
    size = os.fstat(file.fileno()).st_size
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)


def _view(whole: Tensor, start: int, like: Tensor) -> Tensor:
    return (
        whole[start : start + like.numel() * like.element_size()].view(like.dtype).view(like.shape)
    )
