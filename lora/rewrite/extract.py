"""A LoRA from two models: what a tuned checkpoint changed, weight by weight, at the best small
rank.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...adapters.spec import AdapterError
from ...files.atomic import check_free
from ...files.header import LoraFileError
from ...messages import Message, joined, message
from ...planning.plan import make_plan
from ...planning.target_model import TargetModel
from ..io.lora_model import Native, native_tensors
from ..io.model_file import ModelFile
from ..io.writer import write_as, write_lora
from ..math.low_rank import Factors, both
from ..math.truncate import Truncation, energy_of, truncated
from ..not_finite import DAMAGED, check_result, oddity
from .rename import NATIVE
from .resize import RankTarget

__all__ = [
    "ExtractOptions",
    "ExtractRow",
    "Extraction",
    "ModelWeights",
    "extract",
    "extract_file",
    "extract_tensors",
    "not_asked",
]

FORMAT = {"format": "pt"}


def not_asked() -> Message:
    """The reason why what only `extras` takes is left out."""
    return message("lora.not_asked")


class ModelWeights(Protocol):
    """A model by ComfyUI's names, one parameter at a time: a file (ModelFile), or one that is
    connected.

    name: what errors call it; title: what model it is; parameters: native names; strange: those
    whose values cannot be read, with the reason.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def target_model(self) -> TargetModel: ...
    @property
    def parameters(self) -> Collection[str]: ...
    @property
    def strange(self) -> Mapping[str, str]: ...
    def shape(self, parameter: str) -> tuple[int, ...]:
        """The native shape; () where it is not told."""

    def dtypes(self, parameter: str) -> set[torch.dtype]:
        """Of what it is stored as."""

    def scaled(self, parameter: str) -> bool:
        """Whether its values are more than what is stored, rounded."""

    def read(self, parameter: str) -> Tensor:
        """Its values: fp32, on the CPU, of the native shape; not to be written to."""

    def stored(self) -> Iterator[Tensor]:
        """Its tensors as they are stored."""


class ExtractRow(NamedTuple):
    """What became of one changed weight: the share of its change's squared norm that is kept,
    |change - kept| / |change|, |change|.
    """

    weight: str
    shape: tuple[int, ...]
    rank: int | None  # None: a difference, kept whole
    kept_energy: float
    error: float
    norm: float


class ExtractOptions(NamedTuple):
    """How to extract. ask: rank, energy or error of every weight; extras: norms, biases and lone
    parameters too, as differences.

    clamp: the quantile to which sd-scripts clamps both factors
    (networks/extract_lora_from_models.py, 0.99 there), None: not at all. device: where the
    decompositions run.
    """

    rank_target: RankTarget
    extras: bool = False
    clamp: float | None = None
    device: str = "cpu"


@dataclass
class Extraction:
    """What was found, filled while `extract` runs: rows, how many weights are equal, and what is
    left out with the reason.
    """

    rows: list[ExtractRow] = field(default_factory=list)
    unchanged: int = 0
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def kept_energy(self) -> float:
        """The share of the squared norm of all changes taken that is kept."""
        total = math.fsum(row.norm**2 for row in self.rows)
        return (
            math.fsum(row.norm**2 * row.kept_energy for row in self.rows) / total if total else 1.0
        )


def extract(
    base: ModelWeights,
    tuned: ModelWeights,
    how: ExtractOptions,
    extraction: Extraction | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Iterator[Native]:
    """What `tuned` changed against `base`, one parameter at a time, so that memory stays flat.

    Weights become factors (convolutions by their flattened kernel); with extras, vectors and lone
    parameters become differences. What is equal, or equal once rounded to the coarser of the two
    dtypes, is left out. found: is filled on the way; told(done, total) hears of the progress.
    Raises AdapterError for models of different kinds and for NaN and Inf.
    """
    extraction = Extraction() if extraction is None else extraction
    _check_alike(base, tuned)
    for number, parameter in enumerate(tuned.parameters):
        reason = _obstacle(base, tuned, parameter)
        if reason:
            extraction.left_out[parameter] = reason
        else:
            yield from _taken(base, tuned, parameter, how, extraction)
        if progress is not None:
            progress(number + 1, len(tuned.parameters))
    extraction.left_out |= {
        parameter: message("lora.tuned_lacks_it")
        for parameter in base.parameters
        if parameter not in tuned.parameters
    }


def _check_alike(base: ModelWeights, tuned: ModelWeights) -> None:
    names = [
        model.target_model.family.name if model.target_model.family else ""
        for model in (base, tuned)
    ]
    if names[0] != names[1]:
        raise AdapterError(message("lora.models_differ", base=base.title, tuned=tuned.title))
    if set(base.parameters).isdisjoint(tuned.parameters):
        raise AdapterError(message("lora.no_weight_in_common"))


def _obstacle(base: ModelWeights, tuned: ModelWeights, parameter: str) -> str:
    if parameter not in base.parameters:
        return message("lora.base_lacks_it")
    for model, label in ((base, "lora.base"), (tuned, "lora.tuned_model")):
        if parameter in model.strange:
            return message("joints.about", subject=message(label), text=model.strange[parameter])
    shapes = base.shape(parameter), tuned.shape(parameter)
    return (
        message("lora.shapes_of_models", base=list(shapes[0]), tuned=list(shapes[1]))
        if shapes[0] != shapes[1]
        else ""
    )


def _taken(
    base: ModelWeights,
    tuned: ModelWeights,
    parameter: str,
    how: ExtractOptions,
    extraction: Extraction,
) -> Iterator[Native]:
    first, second = base.read(parameter), tuned.read(parameter)
    if torch.equal(first, second) or _only_rounded(base, tuned, parameter, first, second):
        extraction.unchanged += 1
        return
    if not how.extras and not _is_matrix(parameter, second):
        extraction.left_out[parameter] = not_asked()
        return
    change = second.to(how.device) - first.to(how.device)
    # Two weights less while the change is decomposed.
    del first, second
    norm = math.sqrt(energy_of(change))
    if not math.isfinite(norm):
        raise AdapterError(
            message(
                "lora.change_not_finite",
                file=_odd_model(base, tuned, parameter),
                parameter=parameter,
                damaged=message(DAMAGED),
            )
        )
    yield _changed(parameter, change, norm, how, extraction)


def _odd_model(base: ModelWeights, tuned: ModelWeights, parameter: str) -> str:
    """Which of the two files is not finite there."""
    odd = [model.name for model in (base, tuned) if oddity(model.read(parameter))]
    return joined(odd, "and") if odd else message("lora.the_difference")


def _only_rounded(
    base: ModelWeights, tuned: ModelWeights, parameter: str, first: Tensor, second: Tensor
) -> bool:
    """Whether one is the other, rounded to its dtype."""
    kinds = base.dtypes(parameter) | tuned.dtypes(parameter)
    if len(kinds) == 1 or base.scaled(parameter) or tuned.scaled(parameter):
        return False
    coarse = max(kinds, key=lambda dtype: torch.finfo(dtype).eps)
    return torch.equal(first.to(coarse).to(torch.float32), second.to(coarse).to(torch.float32))


def _is_matrix(parameter: str, value: Tensor) -> bool:
    return parameter.endswith(".weight") and value.dim() > 1


def _changed(
    parameter: str, change: Tensor, norm: float, how: ExtractOptions, extraction: Extraction
) -> Native:
    shape = tuple(change.shape)
    if not _is_matrix(parameter, change):
        extraction.rows.append(ExtractRow(parameter, shape, None, 1.0, 0.0, norm))
        if parameter.endswith(".bias"):
            return Native(f"{parameter.removesuffix('.bias')}.weight", change.cpu(), "bias")
        return Native(parameter, change.cpu(), "weight", shape)
    made = truncated(Factors(None, change.flatten(1)), *how.rank_target)
    if isinstance(made.delta, Factors) and made.delta.up is None:
        made = truncated(made.delta, energy=1.0)
    made = made if how.clamp is None else _clamped(made, change.flatten(1), how.clamp)
    extraction.rows.append(
        ExtractRow(parameter, shape, made.rank, made.kept_energy, made.error, norm)
    )
    return Native(
        parameter, Factors(*(factor.cpu() for factor in both(made.delta))), "weight", shape
    )


def _clamped(made: Truncation, change: Tensor, quantile: float) -> Truncation:
    """Both factors cut at a quantile of their values, the singular values in up, as sd-scripts has
    them.
    """
    if not 0 < quantile <= 1:
        raise ValueError(message("lora.quantile_range", quantile=quantile))
    own_up, own_down = both(made.delta)
    roots: Tensor = torch.linalg.vector_norm(own_up, dim=0)
    up, down = (
        own_up * roots,
        own_down / roots.clamp(min=torch.finfo(torch.float32).tiny)[:, None],
    )
    most = _quantile(torch.cat((up.flatten(), down.flatten())), quantile)
    delta = Factors(up.clamp(-most, most), down.clamp(-most, most))
    error = ((change - delta.dense()).norm() / change.norm()).item()
    return Truncation(delta, max(0.0, 1 - error * error), error, made.rank)


def _quantile(values: Tensor, share: float) -> float:
    """torch.quantile, which takes no more than 16 million values."""
    place = share * (values.numel() - 1)
    low, high = (
        values.kthvalue(index + 1).values.item() for index in (math.floor(place), math.ceil(place))
    )
    return low + (high - low) * (place - math.floor(place))


def extract_file(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    target: str | os.PathLike[str],
    how: ExtractOptions,
    *,
    dialect: str = NATIVE,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], Any] | None = None,
) -> Extraction:
    """Write what `tuned` changed against `base` as the LoRA file `target`.

    dialect: one that `write_as` knows. dtype: of the LoRA; None: the tuned model's most common,
    bf16 for fp8. Raises LoraFileError for what is no model, AdapterError, ValueError,
    FileExistsError, OSError; Refused and VerificationError as `write_as`.
    """
    how.rank_target.check()
    check_free(target, overwrite)
    first, second = ModelFile(base), ModelFile(tuned)
    extraction = Extraction()
    tensors = extract_tensors(
        first, second, how, dtype=dtype, extraction=extraction, progress=progress
    )
    if not tensors:
        raise LoraFileError(
            tuned,
            message("lora.nothing_changed"),
            message("lora.check_both_files"),
        )
    metadata = FORMAT | _metadata(first, second, extraction, how)
    if dialect == NATIVE:
        write_lora(target, tensors, metadata, overwrite=overwrite)
    else:
        plan = make_plan(
            {name: tuple(tensor.shape) for name, tensor in tensors.items()},
            metadata,
            second.target_model,
        )
        write_as(plan, tensors, target, dialect, overwrite=overwrite)
    return extraction


def extract_tensors(
    base: ModelWeights,
    tuned: ModelWeights,
    how: ExtractOptions,
    *,
    dtype: torch.dtype | None = None,
    extraction: Extraction | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> dict[str, Tensor]:
    """What `extract` gives as a LORA_MODEL; empty where nothing changed. dtype: None: as most of
    the tuned model, bf16 for fp8.
    """
    dtype = dtype or _lora_dtype(tuned)
    return native_tensors(
        _rounded(item, dtype) for item in extract(base, tuned, how, extraction, progress)
    )


def _lora_dtype(model: ModelWeights) -> torch.dtype:
    """The dtype of a LoRA of this model: as most of it, bf16 for fp8."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in model.stored():
        sizes[tensor.dtype] += tensor.numel()
    most = max(sizes, key=sizes.__getitem__, default=torch.bfloat16)
    return most if most in (torch.float32, torch.float16, torch.bfloat16) else torch.bfloat16


def _rounded(item: Native, dtype: torch.dtype) -> Native:
    """At once, so that only the small dtype is kept."""
    delta = item.delta

    def cast(tensor: Tensor) -> Tensor:
        return check_result(tensor.to(dtype), item.weight)

    return item._replace(
        delta=(cast(delta) if isinstance(delta, Tensor) else Factors(*map(cast, both(delta))))
    )


def _metadata(
    base: ModelFile, tuned: ModelFile, extraction: Extraction, how: ExtractOptions
) -> dict[str, str]:
    ranks = {row.rank for row in extraction.rows if row.rank}
    rank = str(next(iter(ranks))) if len(ranks) == 1 else "Dynamic"
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "sshs_model_hash": "",
        "locksmith.extracted": str(how.rank_target),
        "locksmith.source": tuned.path.name,
        "locksmith.base": base.path.name,
    }
