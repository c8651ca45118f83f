"""Writes LoRA files whole or not at all: streamed, verified against their source before they are
put in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ...files.atomic import NewFile, making_folder, replacing
from ...files.header import (
    ENDINGS,
    PEFT_CONFIG,
    PICKLED,
    LoraFileError,
    adapter_config_beside,
    read_header,
)
from ...key_maps.convention import without_settled
from ...messages import joined, message, text_of
from ...planning.plan import Plan, make_plan
from ...report.load_report import category_title
from ..math.faults import FAULTS
from ..not_finite import without_odd
from ..rewrite.convert import Conversion, Spec, convert
from ..rewrite.rename import Refused, is_folder
from ..rewrite.verify import VerificationError, check_same
from .mapped import CODES, map_tensors, open_with_safetensors

__all__ = ["VerificationError", "Written", "metadata_for", "write_as", "write_lora"]

CONVERTER = "LoRA Locksmith"
CHUNK_BYTES = 1 << 22
# Hashes of the tensors as the file holds them; write_lora fills in those that the metadata have.
HASHES = ("sshs_model_hash", "modelspec.hash_sha256")
PEFT_FILE = "adapter_model.safetensors"
# Metadata that speak of the source's names or strengths and would be read wrongly of the new file.
STALE = ("lora_adapter_metadata", "sshs_legacy_hash")


class Written(NamedTuple):
    """What was written: modules that were only renamed, that were fused or split, that are full
    matrices now.

    difference: the largest of any weight's delta, relative. caution: what the trainer's reader
    makes of it.
    """

    path: Path
    dialect: str
    renamed: int
    computed: int
    full: int
    left_out: Mapping[str, str]
    difference: float
    bytes: int
    caution: str = ""


def write_lora(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor] | Conversion,
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
    check: Callable[[Path], Any] | None = None,
    at_last: Callable[[], Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a safetensors file in one step: whoever reads `path` sees the old file or the new one.

    tensors: by name, or a Conversion, which is made one module at a time. metadata: text by key;
    `sshs_model_hash` and `modelspec.hash_sha256` are computed where they are among the keys.
    check(temporary file) runs before the file is put in place, at_last() right before; what they
    raise leaves `path` as it was. config: PEFT's settings, put into adapter_config.json beside it
    in the same step. Raises FileExistsError unless `overwrite`, OSError, ValueError for a dtype
    that safetensors lacks.
    """
    path = Path(path)
    if isinstance(tensors, Conversion):
        specs = tensors.specs
    else:
        specs = {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    beside = (
        NewFile(PEFT_CONFIG, json.dumps(config, indent=2).encode()) if config is not None else None
    )
    with replacing(path, overwrite, at_last, beside) as (file, temporary):
        _write(file, specs, tensors, dict(metadata or {}))
        file.flush()
        if check is not None:
            check(temporary)
    return path


def _write(
    file: BinaryIO,
    specs: Mapping[str, Spec],
    tensors: Mapping[str, Tensor] | Conversion,
    metadata: dict[str, str],
) -> None:
    for key in HASHES:
        if key in metadata:
            metadata[key] = "0" * 64 if key == HASHES[0] else "0x" + "0" * 64
    offsets = _offsets(specs)
    header = _header(specs, offsets, metadata)
    file.write(header)
    for name, tensor in tensors.items():
        spec = specs[name]
        if (tensor.dtype, tuple(tensor.shape)) != spec:
            raise ValueError(
                message(
                    "lora.came_out_as",
                    tensor=name,
                    made=str(tensor.dtype),
                    made_shape=list(tensor.shape),
                    wanted=str(spec.dtype),
                    wanted_shape=list(spec.shape),
                )
            )
        file.seek(len(header) + offsets[name][0])
        if tensor.numel():
            file.write(raw(tensor))
    # A file whose last tensors are empty, or a module that was not made, must not leave a hole.
    if file.seek(0, os.SEEK_END) != len(header) + max(
        (end for _, end in offsets.values()), default=0
    ):
        raise ValueError(message("lora.not_every_tensor"))
    if any(key in metadata for key in HASHES):
        digest = _data_hash(file, len(header))
        metadata |= {
            key: digest if key == HASHES[0] else f"0x{digest}" for key in HASHES if key in metadata
        }
        file.seek(0)
        file.write(_header(specs, offsets, metadata))


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor that is not empty, as safetensors has them."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(content)  # type: ignore[arg-type]  # numpy says it is a buffer from 3.12 on


def _offsets(specs: Mapping[str, Spec]) -> dict[str, tuple[int, int]]:
    """Where each tensor lies: wide dtypes first, so that every tensor is aligned, as safetensors
    itself writes.
    """
    offsets, end = {}, 0
    for name in sorted(specs, key=lambda name: -specs[name].dtype.itemsize):
        start, end = end, end + specs[name].dtype.itemsize * torch.Size(specs[name].shape).numel()
        offsets[name] = (start, end)
    return offsets


def _header(
    specs: Mapping[str, Spec], offsets: Mapping[str, tuple[int, int]], metadata: Mapping[str, str]
) -> bytes:
    content: dict[str, Any] = (
        {"__metadata__": {_whole(key): _whole(value) for key, value in metadata.items()}}
        if metadata
        else {}
    )
    for name, place in offsets.items():
        dtype = CODES.get(specs[name].dtype)
        if dtype is None:
            raise ValueError(
                message("lora.dtype_unknown", tensor=name, dtype=str(specs[name].dtype))
            )
        content[name] = {
            "dtype": dtype,
            "shape": list(specs[name].shape),
            "data_offsets": list(place),
        }
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _whole(text: str) -> str:
    """The text without lone surrogates, which damaged metadata may hold and safetensors does not
    read.
    """
    return str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _data_hash(file: BinaryIO, start: int) -> str:
    file.seek(start)
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def write_as(
    plan: Plan,
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    dialect: str,
    *,
    dtype: torch.dtype | None = None,
    provenance: Mapping[str, str] | None = None,
    overwrite: bool = False,
    drop: bool = False,
    at_last: Callable[[], Any] | None = None,
    cautions: Sequence[str] = (),
    conversion: Conversion | None = None,
) -> Written:
    """Write a planned file in `dialect`, and put it in place only when it does to the model what
    the plan does.

    provenance: our own metadata (source, hash ...), put in as they are. at_last: as in
    `write_lora`. cautions: what is to be told of the new file besides. conversion: what `convert`
    made of the same arguments, where the caller has it; the plan's numbers were looked at then.
    For PEFT `path` without its ending becomes a folder with adapter_model.safetensors and
    adapter_config.json. Raises Refused and NotFinite before anything is written,
    VerificationError, FileExistsError, OSError.
    """
    if conversion is None:
        plan = without_odd(plan, tensors.__getitem__, drop)
        conversion = convert(plan, tensors, dialect, dtype, drop)
    _check_dtypes(conversion)
    metadata = metadata_for(plan.metadata, conversion, provenance or {})
    path = Path(path)
    config = conversion.configs.get("")
    check = _Check(_without(plan, conversion.left_out), tensors, path, dtype=dtype, config=config)
    with ExitStack() as stack:
        if config is not None:
            path = place_of(path, dialect)
            stack.enter_context(making_folder(path.parent))
        write_lora(
            path,
            conversion,
            metadata,
            overwrite=overwrite,
            check=check,
            at_last=at_last,
            config=config,
        )
    renamed, computed, full = conversion.ways.values()
    return Written(
        path,
        dialect,
        renamed,
        computed,
        full,
        conversion.left_out,
        check.difference,
        path.stat().st_size,
        joined(filter(None, (*cautions, conversion.caution)), "space"),
    )


def _check_dtypes(conversion: Conversion) -> None:
    """Raises Refused for a dtype that safetensors has no name for."""
    for name, spec in conversion.specs.items():
        if spec.dtype not in CODES:
            raise Refused((message("lora.dtype_unwritable", tensor=name, dtype=str(spec.dtype)),))


def _without(plan: Plan, left_out: Mapping[str, str]) -> Plan:
    """The plan without the adapters whose keys were left out."""
    kept = (one for one in plan.adapters if left_out.keys().isdisjoint(one.roles.values()))
    return plan._replace(adapters=tuple(kept))


class _Check:
    """Reads a written file back, and keeps the largest difference of any weight's change.

    path: where it will lie; what stands beside it there will be read with it. config: PEFT's
    settings where they are written too.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        path: Path,
        *,
        dtype: torch.dtype | None,
        config: Mapping[str, Any] | None,
    ):
        self.plan, self.tensors, self.path = plan, tensors, path
        self.dtype, self.config, self.difference = dtype, config, 0.0

    def __call__(self, temporary: Path) -> None:
        """Raises VerificationError where it does not do what the plan does."""
        beside = self.config if self.config is not None else adapter_config_beside(self.path)
        self.difference = _verify(self.plan, self.tensors, temporary, beside, self.dtype)
        # PEFT reads the settings beside the file, we those in its header.
        if self.config is not None:
            stated = read_header(temporary).metadata["lora_adapter_metadata"]
            if json.loads(stated) != self.config:
                raise VerificationError(message("lora.settings_differ"))


def place_of(path: Path, dialect: str) -> Path:
    """Where `write_as` puts a file that is to be `path`: for PEFT in a folder of its name, without
    the ending if it is one of a file (the `.5` of `style-v1.5` is none).
    """
    if not is_folder(dialect):
        return path
    ends = path.suffix.lower() in (*ENDINGS, *PICKLED)
    return (path.with_suffix("") if ends else path) / PEFT_FILE


def _verify(
    plan: Plan,
    tensors: Mapping[str, Tensor],
    written: Path,
    config: Mapping[str, Any] | None,
    dtype: torch.dtype | None,
) -> float:
    try:
        with open_with_safetensors(written):
            header = read_header(written)
        made = map_tensors(written, header, passing=True)
        again = make_plan(
            header.tensors,
            header.metadata,
            plan.target_model,
            config_beside=config,
            number=partial(_number, made),
        )
    except LoraFileError as error:
        raise VerificationError(message("lora.not_read_back", fault=text_of(error))) from None
    placed = {key for adapter in again.adapters for key in adapter.roles.values()}
    lost = [key for key in header.tensors if key not in placed]
    if lost:
        raise VerificationError(
            message(
                "lora.lost_key",
                key=lost[0],
                category=category_title(again.outcomes[lost[0]].category),
                reason=again.outcomes[lost[0]].reason,
            )
        )
    try:
        return check_same(plan, tensors.__getitem__, again, made.__getitem__, dtype)
    except VerificationError:
        raise
    except FAULTS as error:
        raise VerificationError(message("lora.not_comparable", fault=text_of(error))) from None


def _number(tensors: Mapping[str, Tensor], name: str) -> float | None:
    """The value of a tensor of one number; None where it is none."""
    tensor = tensors[name]
    return float(tensor.item()) if tensor.numel() == 1 and not tensor.is_complex() else None


def exact(number: float) -> str:
    """A number as the shortest text that is read as the very same."""
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def metadata_for(
    source: Mapping[str, str], conversion: Conversion, provenance: Mapping[str, str]
) -> dict[str, str]:
    """The new file's metadata: the source's without what would be wrong of the new tensors, the
    dialect's settings, ours.
    """
    metadata = {key: value for key, value in source.items() if key not in STALE}
    metadata.setdefault("format", "pt")
    metadata = without_settled(metadata)
    if conversion.trained and (
        "ss_network_dim" in metadata or conversion.writing.roles.get("up") == "lora_up.weight"
    ):
        folded = conversion.writing.alpha == "folded"
        ranks = {item.rank for item in conversion.trained.values()}
        alphas = {
            item.rank * (1.0 if folded else item.scale) for item in conversion.trained.values()
        }
        metadata["ss_network_dim"] = str(next(iter(ranks))) if len(ranks) == 1 else "Dynamic"
        metadata["ss_network_alpha"] = (
            exact(float(next(iter(alphas)))) if len(alphas) == 1 else "Dynamic"
        )
    if "sshs_legacy_hash" in source:
        metadata.setdefault("sshs_model_hash", "")
    metadata |= conversion.header_settings
    metadata |= {
        "locksmith.converter": CONVERTER,
        "locksmith.dialect": conversion.writing.dialect,
        **provenance,
    }
    return metadata
