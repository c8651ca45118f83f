"""A LoRA from two models: what a tuned checkpoint changed, weight by weight, at the best small rank."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..key_maps.checkpoint import (
    ENCODERS,
    GLUED,
    NAMED_ENCODERS,
    OPENCLIP,
    PREFIXES,
    SUFFIXES,
    model_files,
    network_path,
    site_of_checkpoint,
)
from ..key_maps.dialect import DENOISER
from ..key_maps.header import LoraFileError, TensorInfo, read_header
from ..key_maps.plan import make_plan
from ..key_maps.site import Candidate, Component, Site
from ..key_maps.table import parse_table
from .factors import Factors
from .native import Native, native_tensors
from .reader import map_tensors
from .resize import Ask, check_free
from .spec import AdapterError
from .truncate import Truncation, energy_of, truncated
from .writer import write_as, write_lora

__all__ = ["Extraction", "Row", "Tuned", "extract", "extract_file"]

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
SCALES = ("scale_weight", "weight_scale")  # what scaled fp8 is multiplied with: comfy/ops.py, comfy/quant_ops.py
PACKED_EXTRAS = ("weight_scale_2", "absmax", "quant_map")  # beside weights with more than one value to a byte
NATIVE = "native"
FORMAT = {"format": "pt"}
PACKED = "its values are packed ({dtype}); give the unquantised model"
NOT_ASKED = "norms, biases and the like are only taken when asked for (extras)"


class Row(NamedTuple):
    """What became of one changed weight: the share of its change's squared norm that is kept, |change - kept| / |change|, |change|."""

    weight: str
    shape: tuple[int, ...]
    rank: int | None  # None: a difference, kept whole
    kept_energy: float
    error: float
    norm: float


class Tuned(NamedTuple):
    """How to extract. ask: rank, energy or error of every weight; extras: norms, biases and lone parameters too, as differences.

    clamp: the quantile to which sd-scripts clamps both factors (networks/extract_lora_from_models.py, 0.99 there), None: not at
    all. device: where the decompositions run.
    """

    ask: Ask
    extras: bool = False
    clamp: float | None = None
    device: str = "cpu"


@dataclass
class Extraction:
    """What was found, filled while `extract` runs: rows, how many weights are equal, and what is left out with the reason."""

    rows: list[Row] = field(default_factory=list)
    unchanged: int = 0
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def kept_energy(self) -> float:
        """The share of the squared norm of all changes taken that is kept."""
        total = math.fsum(row.norm**2 for row in self.rows)
        return math.fsum(row.norm**2 * row.kept_energy for row in self.rows) / total if total else 1.0


class _Source(NamedTuple):
    """A tensor of the file that is (some rows of) a native parameter."""

    name: str
    rows: tuple[int, int] | None  # of the parameter
    taken: tuple[int, int] | None  # of the tensor
    swap: bool


class Model:
    """A checkpoint or diffusion model by ComfyUI's names, whatever the file's; each parameter is read when it is asked for.

    parameters: native name -> the file's tensors it is made of; strange: tensors of the model that cannot be read, with the reason.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        checkpoint = site_of_checkpoint(path)
        self.site: Site = checkpoint.site
        self.title: str = checkpoint.title
        self.infos: dict[str, TensorInfo] = {}
        self.tensors: dict[str, Tensor] = {}
        self.parameters: dict[str, list[_Source]] = {}
        self.strange: dict[str, str] = {}
        for start, file in self._parts():
            header = read_header(file)
            self.infos |= {start + name: info for name, info in header.tensors.items()}
            self.tensors |= {start + name: tensor for name, tensor in map_tensors(file, header).items()}
        for name, info in self.infos.items():
            self._take(name, info)

    def _parts(self) -> Iterator[tuple[str, Path]]:
        """(what to put before its names, file) of all files of the model."""
        main, folder = network_path(self.path)
        yield from (("", file) for file in model_files(main))
        family = self.site.family
        for slot, wrappers in family.encoders.items() if folder is not None and family else ():
            name = next((text[:-1] for text in wrappers if text.endswith(".")), "")
            if name and (folder / name).is_dir():
                yield from ((f"{NAMED_ENCODERS[0]}{slot}.transformer.", file) for file in model_files(folder / name))

    def _take(self, name: str, info: TensorInfo) -> None:
        module, suffix = _divided(name)
        if suffix in SCALES or not info.shape:
            return
        candidate = next((found for found in self._find(module) if _fits(found, info.shape, suffix)), None)
        if candidate is None:
            return
        component = self.site.components.get(candidate.component)
        for weight, rows, taken in candidate.pieces:
            parameter = component.bias_of(weight) if suffix == "bias" else weight
            if parameter is None:
                continue
            if info.dtype not in FLOATS or any(f"{module}.{extra}" in self.infos for extra in PACKED_EXTRAS):
                self.strange[parameter] = PACKED.format(dtype=info.dtype)
            self.parameters.setdefault(parameter, []).append(_Source(name, rows, taken, candidate.swap))

    def _find(self, module: str) -> Sequence[Candidate]:
        for start, slot in ENCODERS.items():
            if module.startswith(start):
                component = self.site.components.get(slot) if slot else self._openclip
                return component.find(module[len(start) :]) if component else ()
        for start in NAMED_ENCODERS:
            slot, _, inner = module.removeprefix(start).partition(".")
            if module.startswith(start) and slot in self.site.components:
                return self.site.components[slot].find(inner.removeprefix("transformer."))
        names = [module]
        for name in names:
            found = self.site.components[DENOISER].find(name) if DENOISER in self.site.components else ()
            if found:
                return found
            names += [name[len(start) :] for start in PREFIXES if name.startswith(start) and len(names) < 16]
        return ()

    @cached_property
    def _openclip(self) -> Component | None:
        """The text encoder that OpenCLIP's names in the file mean, known by these."""
        slots = [slot for slot in ("clip_g", "clip_h") if slot in self.site.components]
        if not slots:
            return None
        component = self.site.components[slots[0]]
        return Component(component.name, component.prefix, component.weights, parse_table("openclip", OPENCLIP))

    def shape(self, parameter: str) -> tuple[int, ...]:
        """The native shape; () where it is not told."""
        for component in self.site.components.values():
            if parameter in component.weights:
                return component.weights[parameter]
        return ()

    def dtypes(self, parameter: str) -> set[torch.dtype]:
        """The dtypes of the file's tensors the parameter is made of."""
        return {self.tensors[source.name].dtype for source in self.parameters[parameter]}

    def scaled(self, parameter: str) -> bool:
        """Whether its values are multiplied with a scale beside them."""
        return any(self._scale(source.name) is not None for source in self.parameters[parameter])

    def read(self, parameter: str) -> Tensor:
        """The parameter in fp32 and its native shape; the file's own tensor where it is the whole in that dtype already."""
        sources, shape = self.parameters[parameter], self.shape(parameter)
        if len(sources) == 1 and sources[0].rows is None:
            value = self._part(sources[0])
            return value.reshape(shape) if shape and value.numel() == math.prod(shape) else value
        if not shape or sum((source.rows or (0, shape[0]))[1] for source in sources) != shape[0]:
            raise AdapterError(f"{parameter}: the file does not hold all rows of it")
        whole = torch.empty(shape, dtype=torch.float32)
        for source in sources:
            start, length = source.rows or (0, shape[0])
            whole[start : start + length] = self._part(source).reshape(length, *shape[1:])
        return whole

    def _part(self, source: _Source) -> Tensor:
        value = self.tensors[source.name].to(torch.float32)
        scale = self._scale(source.name)
        if scale is not None:
            scale = scale.to(torch.float32)
            value = value * (scale if scale.numel() == 1 else scale.reshape(-1, *[1] * (value.dim() - 1)))
        if source.taken is not None:
            value = value.narrow(0, *source.taken)
        return value.roll(value.shape[0] // 2, 0) if source.swap else value

    def _scale(self, name: str) -> Tensor | None:
        module = name.removesuffix(".weight")
        return next((self.tensors[f"{module}.{scale}"] for scale in SCALES if f"{module}.{scale}" in self.tensors and module != name), None)


def _divided(name: str) -> tuple[str, str]:
    """(module, last word): as the module of a checkpoint's tensor is called, and `weight`, `bias`, `scale` ... or nothing."""
    for ending, suffix in GLUED.items():
        if name.endswith(ending):
            return name[: -len(suffix)], suffix[1:]
    module, _, last = name.rpartition(".")
    known = {suffix[1:] for suffix in SUFFIXES} | set(SCALES)
    return (module, last) if last in known else (name, "")


def _fits(candidate: Candidate, shape: Sequence[int], suffix: str) -> bool:
    if suffix == "bias":
        return candidate.out in (0, shape[0])
    return candidate.out in (0, 1, shape[0]) and math.prod(candidate.inner) * candidate.out in (0, math.prod(shape))


def extract(
    base: Model, tuned: Model, how: Tuned, found: Extraction | None = None, told: Callable[[int, int], Any] | None = None
) -> Iterator[Native]:
    """What `tuned` changed against `base`, one parameter at a time, so that memory stays flat.

    Weights become factors (convolutions by their flattened kernel); with extras, vectors and lone parameters become differences.
    What is equal, or equal once rounded to the coarser of the two dtypes, is left out. found: is filled on the way; told(done,
    total) hears of the progress. Raises AdapterError for models of different kinds and for NaN and Inf.
    """
    found = Extraction() if found is None else found
    _check_alike(base, tuned)
    for number, parameter in enumerate(tuned.parameters):
        reason = _obstacle(base, tuned, parameter)
        if reason:
            found.left_out[parameter] = reason
        else:
            yield from _taken(base, tuned, parameter, how, found)
        if told is not None:
            told(number + 1, len(tuned.parameters))
    found.left_out |= {parameter: "the tuned model does not have it" for parameter in base.parameters if parameter not in tuned.parameters}


def _check_alike(base: Model, tuned: Model) -> None:
    names = [model.site.family.name if model.site.family else "" for model in (base, tuned)]
    if names[0] != names[1]:
        raise AdapterError(f"the base is {base.title}, the tuned model is {tuned.title}: there is no difference of the two")
    if base.parameters.keys().isdisjoint(tuned.parameters):
        raise AdapterError("the two models have no weight in common")


def _obstacle(base: Model, tuned: Model, parameter: str) -> str:
    if parameter not in base.parameters:
        return "the base does not have it"
    for model, label in ((base, "base"), (tuned, "tuned model")):
        if parameter in model.strange:
            return f"{label}: {model.strange[parameter]}"
    shapes = base.shape(parameter), tuned.shape(parameter)
    return f"the base has {list(shapes[0])}, the tuned model {list(shapes[1])}" if shapes[0] != shapes[1] else ""


def _taken(base: Model, tuned: Model, parameter: str, how: Tuned, found: Extraction) -> Iterator[Native]:
    first, second = base.read(parameter), tuned.read(parameter)
    if torch.equal(first, second) or _only_rounded(base, tuned, parameter, first, second):
        found.unchanged += 1
        return
    if not how.extras and not _is_matrix(parameter, second):
        found.left_out[parameter] = NOT_ASKED
        return
    change = second.to(how.device) - first.to(how.device)
    # Two weights less while the change is decomposed.
    del first, second
    norm = math.sqrt(energy_of(change))
    if not math.isfinite(norm):
        raise AdapterError(f"{parameter}: one of the models holds NaN or Inf there")
    yield _changed(parameter, change, norm, how, found)


def _only_rounded(base: Model, tuned: Model, parameter: str, first: Tensor, second: Tensor) -> bool:
    """Whether one is the other, rounded to its dtype."""
    kinds = base.dtypes(parameter) | tuned.dtypes(parameter)
    if len(kinds) == 1 or base.scaled(parameter) or tuned.scaled(parameter):
        return False
    coarse = max(kinds, key=lambda dtype: torch.finfo(dtype).eps)
    return torch.equal(first.to(coarse).to(torch.float32), second.to(coarse).to(torch.float32))


def _is_matrix(parameter: str, value: Tensor) -> bool:
    return parameter.endswith(".weight") and value.dim() > 1


def _changed(parameter: str, change: Tensor, norm: float, how: Tuned, found: Extraction) -> Native:
    shape = tuple(change.shape)
    if not _is_matrix(parameter, change):
        found.rows.append(Row(parameter, shape, None, 1.0, 0.0, norm))
        if parameter.endswith(".bias"):
            return Native(f"{parameter.removesuffix('.bias')}.weight", change.cpu(), "bias")
        return Native(parameter, change.cpu(), "weight", shape)
    made = truncated(Factors(None, change.flatten(1)), *how.ask)
    if made.delta.up is None:
        made = truncated(made.delta, energy=1.0)
    made = made if how.clamp is None else _clamped(made, change.flatten(1), how.clamp)
    found.rows.append(Row(parameter, shape, made.rank, made.kept_energy, made.error, norm))
    return Native(parameter, Factors(made.delta.up.cpu(), made.delta.down.cpu()), "weight", shape)


def _clamped(made: Truncation, change: Tensor, quantile: float) -> Truncation:
    """Both factors cut at a quantile of their values, the singular values in up, as sd-scripts has them."""
    if not 0 < quantile <= 1:
        raise ValueError(f"the quantile to clamp to is above 0, up to 1, not {quantile}")
    roots = torch.linalg.vector_norm(made.delta.up, dim=0)
    up, down = made.delta.up * roots, made.delta.down / roots.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    most = _quantile(torch.cat((up.flatten(), down.flatten())), quantile)
    delta = Factors(up.clamp(-most, most), down.clamp(-most, most))
    error = ((change - delta.dense()).norm() / change.norm()).item()
    return Truncation(delta, max(0.0, 1 - error * error), error, made.rank)


def _quantile(values: Tensor, share: float) -> float:
    """torch.quantile, which takes no more than 16 million values."""
    place = share * (values.numel() - 1)
    low, high = (values.kthvalue(index + 1).values.item() for index in (math.floor(place), math.ceil(place)))
    return low + (high - low) * (place - math.floor(place))


def extract_file(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    target: str | os.PathLike[str],
    how: Tuned,
    dialect: str = NATIVE,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    told: Callable[[int, int], Any] | None = None,
) -> Extraction:
    """Write what `tuned` changed against `base` as the LoRA file `target`.

    dialect: `native` (ComfyUI's own names) or one that `write_as` knows. dtype: of the LoRA; None: the tuned model's most common, bf16
    for fp8. Raises LoraFileError for what is no model, AdapterError, ValueError, FileExistsError, OSError; Refused and Unverified
    as `write_as`.
    """
    if how.ask == Ask():
        raise ValueError("a rank, an energy or an error is needed, not nothing")
    check_free(target, overwrite)
    first, second = Model(base), Model(tuned)
    found = Extraction()
    dtype = dtype or _common_dtype(second)
    tensors = native_tensors(_rounded(item, dtype) for item in extract(first, second, how, found, told))
    if not tensors:
        raise LoraFileError(tuned, "it changes nothing of the base that can be extracted", "Check that these are the right two files")
    metadata = FORMAT | _metadata(first, second, found, how)
    if dialect == NATIVE:
        write_lora(target, tensors, metadata, overwrite)
    else:
        plan = make_plan({name: tuple(tensor.shape) for name, tensor in tensors.items()}, metadata, second.site)
        write_as(plan, tensors, target, dialect, overwrite=overwrite)
    return found


def _common_dtype(model: Model) -> torch.dtype:
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters:
        for source in model.parameters[parameter]:
            tensor = model.tensors[source.name]
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    most = max(sizes, key=sizes.get, default=torch.bfloat16)
    return most if most in (torch.float32, torch.float16, torch.bfloat16) else torch.bfloat16


def _rounded(item: Native, dtype: torch.dtype) -> Native:
    """At once, so that only the small dtype is kept."""
    delta = item.delta
    made = delta.to(dtype) if isinstance(delta, Tensor) else Factors(delta.up.to(dtype), delta.down.to(dtype))
    return item._replace(delta=made)


def _metadata(base: Model, tuned: Model, found: Extraction, how: Tuned) -> dict[str, str]:
    ranks = {row.rank for row in found.rows if row.rank}
    rank = str(next(iter(ranks))) if len(ranks) == 1 else "Dynamic"
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "sshs_model_hash": "",
        "locksmith.extracted": str(how.ask),
        "locksmith.source": tuned.path.name,
        "locksmith.base": base.path.name,
    }
