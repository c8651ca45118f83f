"""A LoRA file at a smaller rank: every low-rank adapter cut to its best approximation, all other
tensors as they stand.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...adapters.kind import Kind
from ...adapters.registry import decomposition_of, named
from ...adapters.spec import AdapterError, AdapterSpec
from ...adapters.tensors import Tensors, factor_of
from ...files.atomic import check_free
from ...files.hashes import source_metadata
from ...files.header import read_header
from ...key_maps.convention import Conventions, without_settled
from ...messages import joined, message, text_of
from ...planning.assign import assign
from ...planning.groups import Group, network_alpha
from ...planning.plan import Adapter
from ...planning.resolve import Location, locate
from ...planning.scale import read_settings, scale_of, settings_for
from ...planning.target_model import TargetModel
from ...report.inspection import Inspection, inspect_file, inspect_header
from ..copies import compared
from ..from_plan import alpha_value, spec_of
from ..io.mapped import map_tensors
from ..io.writer import PEFT_FILE, STALE, exact, write_lora
from ..math.low_rank import MAGNITUDES, Delta, Factors, Kronecker, both, factors, low_rank_part
from ..math.truncate import Truncation, truncated
from ..not_finite import DAMAGED, PACKED, NotFinite, check_result, odd_tensors, oddities, oddity

__all__ = ["RankTarget", "Resized", "ResizeRow", "resize", "resize_file"]

DYNAMIC = "Dynamic"  # what sd-scripts writes for ranks that differ (networks/resize_lora.py)


class RankTarget(NamedTuple):
    """What every module is cut to: see `truncated`."""

    rank: int | None = None
    energy: float | None = None
    error: float | None = None

    def check(self) -> None:
        """Raises ValueError where nothing is asked."""
        if self == RankTarget():
            raise ValueError(message("lora.rank_target_missing"))

    def __str__(self) -> str:
        limits = [
            f"{name} {value:g}"
            for name, value in zip(self._fields, self, strict=True)
            if value is not None
        ]
        return ", ".join(limits)


class ResizeRow(NamedTuple):
    """What became of one module.

    error: |what was - what stands in the new file| / |what was|, the rounding to the file's dtype
    included. energy: its squared norm at strength 1; note: why it stands as it was, else empty.
    """

    module: str
    kind: str
    before: int
    rank: int
    kept_energy: float
    error: float
    energy: float
    note: str = ""


class Resized(NamedTuple):
    """The new file's tensors and metadata, a row for each adapter, and PEFT's adapter_config.json
    where the source has one beside it.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    rows: tuple[ResizeRow, ...]
    config: dict[str, Any] | None

    @property
    def kept_energy(self) -> float:
        """The share of the squared norm of all resized modules that is kept."""
        total = math.fsum(row.energy for row in self.rows)
        return (
            math.fsum(row.energy * row.kept_energy for row in self.rows) / total if total else 1.0
        )


class _Found(NamedTuple):
    """One adapter of the file; `adapter`: as the plan placed it, None where it has no place."""

    group: Group
    kind: str
    roles: Mapping[str, str]
    adapter: Adapter | None
    location: Location

    @property
    def label(self) -> str:
        return self.group.module


def resize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    rank_target: RankTarget,
    *,
    dtype: torch.dtype | None = None,
    dora: bool = False,
    overwrite: bool = False,
    target_model: TargetModel | None = None,
) -> Resized:
    """Resize the file `source` into the new file `target`; see `resize`. Also raises LoraFileError,
    FileExistsError and OSError.

    target model: the model it was made for, where the file alone does not tell (a flat LoHa or LoKr
    of a convolution).
    """
    check_free(target, overwrite)
    inspection = inspect_file(source, target_model, whole=True)
    onto_itself = os.path.exists(target) and os.path.samefile(source, target)
    tensors = map_tensors(source, inspection.header, passing=True, replaced=onto_itself)
    inspection = inspection.with_plan(compared(inspection, tensors))
    made = resize(inspection, tensors, rank_target, dtype, dora)
    beside = made.config if Path(target).name == PEFT_FILE else None
    check = partial(_check_loads, inspection, config=made.config)
    write_lora(
        target,
        made.tensors,
        made.metadata | source_metadata(source),
        overwrite=overwrite,
        check=check,
        config=beside,
    )
    return made


def _check_loads(inspection: Inspection, written: Path, config: Mapping[str, Any] | None) -> None:
    """AdapterError where a module of the file just written does not load as it did, or is kept and
    means something else there.
    """
    again = inspect_header(written, read_header(written), config, inspection.plan.target_model)
    before, after = (
        {(adapter.module, adapter.parameter): adapter for adapter in one.plan.adapters}
        for one in (inspection, again)
    )
    for place in sorted(before.keys() - after.keys()):
        if not before[place].options:
            raise AdapterError(message("lora.would_not_load", module=place[0]))
    for place, adapter in before.items():
        if place not in after:
            raise AdapterError(_lost_meaning(adapter))
        decomposed = (
            decomposition_of(adapter.roles) is not None and adapter.options != after[place].options
        )
        if decomposed or (_stays(named(adapter.kind)) and _meant(adapter) != _meant(after[place])):
            raise AdapterError(_lost_meaning(adapter))


def _lost_meaning(adapter: Adapter) -> str:
    kind = named(adapter.kind).title or adapter.kind
    return message("lora.meaning_lost", module=adapter.module, kind=kind)


def _stays(kind: Kind) -> bool:
    """Whether resizing leaves it as it is: neither cut nor scaled anew with what
    it borrows from.
    """
    return not kind.low_rank and not kind.borrows


def _meant(adapter: Adapter) -> tuple[object, ...]:
    """What a file says of an adapter besides its tensors."""
    return (
        adapter.kind,
        adapter.options,
        *(adapter.strength[::2] if named(adapter.kind).scaled else ()),
    )


def resize(
    inspection: Inspection,
    tensors: Mapping[str, Tensor],
    rank_target: RankTarget,
    dtype: torch.dtype | None = None,
    dora: bool = False,
) -> Resized:
    """Cut every LoRA, LoCon, LoHa and LoKr of a file to what is asked, one module at a time; LoHa
    and LoKr become LoRA.

    tensors: the file's, by name (map_tensors: read when used). Names stay. Where a module has an
    alpha it becomes alpha / rank times the new rank, as sd-scripts does; else its scale goes into
    up, and settings in the metadata say alpha = rank. dtype: of the new factors; None: the file's
    (bf16 for fp8). dora: also cut the low-rank part of DoRA. Raises AdapterError for DoRA unless
    asked, for NaN and Inf, and for tensors that do not fit; ValueError for what cannot be asked.
    """
    rank_target.check()
    adapters = list(_adapters(inspection))
    _refuse_odd(inspection, adapters, tensors)
    if not dora:
        _refuse_dora(adapters, inspection.plan.shapes, rank_target)
    result: dict[str, Tensor] = {}
    rows: list[ResizeRow] = []
    replaced = dict.fromkeys(inspection.groups.network_alphas.values())
    work = _Work(inspection, tensors, rank_target, dtype)
    for item in adapters:
        row, new, gone = work.cut(item)
        _refuse_taken(item, new, {*inspection.header.tensors, *result})
        rows.extend(row)
        result |= new
        replaced |= dict.fromkeys(gone)
    kept = {
        name: _cast(name, tensors[name], dtype)
        for name in inspection.header.tensors
        if name not in replaced and name not in result
    }
    metadata, config = _metadata(inspection, rows, adapters, rank_target)
    return Resized(kept | result, metadata, tuple(rows), config)


def _cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if not dtype or not tensor.is_floating_point() or tensor.numel() < 2 or tensor.dtype in PACKED:
        return tensor
    return tensor.to(dtype) if oddity(tensor) else check_result(tensor.to(dtype), name)


def _adapters(inspection: Inspection) -> Iterator[_Found]:
    """Every adapter of the file that a rank or a scale concerns, placed or not; not what only a
    convention tells the kind of.
    """
    placed = {
        (adapter.module, adapter.adapter_name, adapter.kind): adapter
        for adapter in inspection.plan.adapters
    }
    with_place = {
        (adapter.module, adapter.adapter_name)
        for adapter in inspection.plan.adapters
        if not named(adapter.kind).by_names
    }
    for group in inspection.groups.groups:
        for kind, names in assign(group.keys)[0]:
            if kind.low_rank and (group.module, group.adapter_name) in with_place:
                continue
            if not kind.low_rank and not kind.borrows:
                continue
            names += tuple(role for role in kind.borrows if role in group.keys)
            adapter = placed.get((group.module, group.adapter_name, kind.name))
            location = (
                adapter.location
                if adapter
                else locate(inspection.plan.target_model, group.module, [])
            )
            yield _Found(
                group, kind.name, {role: group.keys[role] for role in names}, adapter, location
            )


def _refuse_dora(
    adapters: Sequence[_Found], shapes: Mapping[str, Sequence[int] | None], rank_target: RankTarget
) -> None:
    dora = [
        item
        for item in adapters
        if named(item.kind).low_rank and any(role in item.roles for role in MAGNITUDES)
    ]
    cut = [item for item in dora if _is_cut(item, shapes, rank_target)]
    if cut:
        raise AdapterError(message("lora.dora_not_cut", count=len(cut), module=cut[0].label))


def _refuse_odd(
    inspection: Inspection, adapters: Sequence[_Found], tensors: Mapping[str, Tensor]
) -> None:
    """NotFinite where the file holds NaN or infinite numbers that count, whatever adapter they are
    of.
    """
    unplaced = [item for item in adapters if item.adapter is None]
    odd = odd_tensors(enumerate([*inspection.plan.adapters, *unplaced]), tensors.__getitem__)
    if odd:
        fault = joined((oddities(odd), message(DAMAGED)), "semicolon")
        raise NotFinite(message("joints.about", subject=str(inspection.path), text=fault))


def _refuse_taken(item: _Found, new: Iterable[str], taken: Set[str]) -> None:
    """AdapterError where another adapter of the layer has the names of the new factors: one of both
    would be lost.
    """
    own = {*item.roles.values(), item.group.keys.get("alpha")}
    for name in new:
        if name in taken and name not in own:
            raise AdapterError(message("lora.name_taken", module=item.label, key=name))


def _is_cut(
    item: _Found, shapes: Mapping[str, Sequence[int] | None], rank_target: RankTarget
) -> bool:
    """Whether an adapter may lose rank: always but for a LoRA that has no more than is asked."""
    if (
        not named(item.kind).is_pair
        or rank_target.rank is None
        or rank_target.energy is not None
        or rank_target.error is not None
        or "bias_values" in item.roles
    ):
        return True
    return (shapes[item.roles["down"]] or (0,))[0] > rank_target.rank


class _Work:
    """Cuts one adapter after the other."""

    def __init__(
        self,
        inspection: Inspection,
        tensors: Mapping[str, Tensor],
        rank_target: RankTarget,
        dtype: torch.dtype | None,
    ):
        self.plan, self.tensors, self.rank_target, self.dtype = (
            inspection.plan,
            tensors,
            rank_target,
            dtype,
        )
        self.settings = read_settings(inspection.plan.metadata, inspection.config_beside)
        self.network_alphas = inspection.groups.network_alphas

    def cut(self, item: _Found) -> tuple[list[ResizeRow], dict[str, Tensor], Sequence[str]]:
        """(its row, its new tensors, the keys that are gone)."""
        tensors = {role: self.tensors[key] for role, key in item.roles.items()}
        if item.adapter is not None and "alpha" in item.adapter.roles:
            tensors["alpha"] = self.tensors[item.adapter.roles["alpha"]]
        elif (
            item.adapter is None
            and "alpha" not in tensors
            and (shared := network_alpha(self.network_alphas, item.location.prefix))
        ):
            tensors["alpha"] = self.tensors[shared]
        try:
            spec = self._spec(item, tensors)
            if named(item.kind).vector:
                return [], self._bias(item, spec, tensors), ()
            return self._low_rank(item, spec, tensors)
        except (AdapterError, ArithmeticError, IndexError, RuntimeError) as error:
            raise AdapterError(
                message("joints.about", subject=item.label, text=text_of(error))
            ) from None

    def _spec(self, item: _Found, tensors: Tensors) -> AdapterSpec:
        """As the file's own tensors stand: without the target's rows and swap."""
        if item.adapter is not None:
            return spec_of(item.adapter, tensors)._replace(swap=False)
        self._check_usual(item)
        if "alpha" in tensors:
            counts = named(item.kind).alpha_counts(tensors)
            return AdapterSpec(
                item.kind, alpha_value(tensors["alpha"], item.kind) if counts else None
            )
        rank = named(item.kind).rank({role: tensor.shape for role, tensor in tensors.items()})
        settings = settings_for(self.settings, item.location.prefix)
        return AdapterSpec(
            item.kind, scale=scale_of(settings, item.location.name, rank, item.kind).scale
        )

    def _check_usual(self, item: _Found) -> None:
        """AdapterError where an adapter without a place means something else than its tensors say,
        as the new file would not tell it.
        """
        settings = settings_for(self.settings, item.location.prefix)
        known = Conventions(self.plan.metadata, settings.config if settings else {}).of(
            item.kind, tuple(item.roles)
        )
        meanings = [one for one in known if any(case.decides for case, _ in one.cases)]
        placed = next(
            (
                one
                for one in self.plan.adapters
                if set(one.roles.values()) & set(item.roles.values())
            ),
            None,
        )
        if placed is not None and placed.kind != item.kind:
            raise AdapterError(
                message("lora.stands_for_base_too", kind=named(placed.kind).title or placed.kind)
            )
        if meanings:
            conventions = joined(one.convention.title for one in meanings)
            raise AdapterError(message("lora.strength_beside_unplaced", conventions=conventions))

    def _bias(self, item: _Found, spec: AdapterSpec, tensors: Tensors) -> dict[str, Tensor]:
        """A bias is scaled as the factors are: with an alpha that keeps its ratio it stays, else
        the scale goes into it.
        """
        scale = spec.scale_for(tensors["down"].shape[0]) if "down" in tensors else spec.scale_for(1)
        if "alpha" in item.group.keys or scale == 1:
            return {}
        role = named(item.kind).vector
        return {
            item.roles[role]: (
                (tensors[role].to(torch.float32) * scale).to(self._dtype(tensors[role]))
            )
        }

    def _low_rank(
        self, item: _Found, spec: AdapterSpec, tensors: Tensors
    ) -> tuple[list[ResizeRow], dict[str, Tensor], Sequence[str]]:
        parts = low_rank_part(tensors)
        unscaled = {role: tensor for role, tensor in parts.items() if role != "scalar"}
        scale = factor_of(named(item.kind), spec, unscaled)
        plain = factors(spec._replace(alpha=None, scale=1.0), parts, torch.float32)
        energy = (scale * plain.frobenius()) ** 2
        if not math.isfinite(energy):
            raise AdapterError(message("lora.no_singular_values"))
        kernel = self._kernel(item, tensors, plain)
        if kernel is None:
            note, ranks = message("lora.kernel_unknown"), (plain.rank, plain.rank)
            return [ResizeRow(item.label, item.kind, *ranks, 1.0, 0.0, energy, note)], {}, ()
        if _is_cut(item, self.plan.shapes, self.rank_target):
            return self._cut(item, plain, tensors, scale=scale, kernel=kernel, energy=energy)
        rank = _inner(plain)
        new = self._scaled(item, scale, tensors)
        error = self._rounding(item, Factors(*both(plain)), tensors, new, scale)
        return [ResizeRow(item.label, item.kind, rank, rank, 1.0, error, energy)], new, ()

    def _cut(
        self,
        item: _Found,
        plain: Delta,
        tensors: Tensors,
        *,
        scale: float,
        kernel: tuple[int, ...],
        energy: float,
    ) -> tuple[list[ResizeRow], dict[str, Tensor], Sequence[str]]:
        """Rows and tensors of an item whose rank is lowered, and what of it the new file lacks."""
        made = truncated(plain, *self.rank_target)
        delta = _with_factors(made)
        new = self._named(item, delta, scale, kernel, tensors)
        gone = [
            key
            for role, key in item.roles.items()
            if role in named(item.kind).consumed and key not in new
        ]
        rounding = self._rounding(item, delta, tensors, new, scale)
        # What is cut off and what is rounded have next to nothing in common.
        error = math.hypot(made.error, rounding * math.sqrt(made.kept_energy))
        ranks = _inner(plain), delta.down.shape[0]
        row = ResizeRow(item.label, item.kind, *ranks, made.kept_energy, error, energy)
        return [row], new, gone

    def _rounding(
        self, item: _Found, made: Factors, tensors: Tensors, new: Mapping[str, Tensor], scale: float
    ) -> float:
        """|what the new file holds of these factors - the factors| / |the factors|."""
        names = _names(item)
        if not self.dtype and new.keys().isdisjoint(names):
            return 0.0
        if names[1] in new:
            up, down = (new[name].flatten(1).to(made.down.dtype) for name in names)
        else:
            kept = {
                role: self._cast_like(tensor) for role, tensor in low_rank_part(tensors).items()
            }
            kept["up"] = new.get(names[0], kept["up"])
            pair = factors(AdapterSpec(item.kind, scale=1.0), kept, torch.float32)
            up, down = both(pair)
        if names[0] in new and "alpha" not in item.group.keys:
            up = up / (scale or 1.0)
        return _apart(made, up, down)

    def _cast_like(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if self.dtype and tensor.numel() > 1 else tensor

    def _scaled(self, item: _Found, scale: float, tensors: Tensors) -> dict[str, Tensor]:
        """A LoRA whose rank stays: its own tensors, with the scale where the new file's readers
        look for it.
        """
        if "alpha" in item.group.keys:
            return self._alpha(item, scale, tensors["down"].shape[0])
        return (
            {}
            if scale == 1
            else {
                item.roles["up"]: (
                    (tensors["up"].to(torch.float32) * scale).to(self._dtype(tensors["up"]))
                )
            }
        )

    def _named(
        self, item: _Found, made: Factors, scale: float, kernel: tuple[int, ...], tensors: Tensors
    ) -> dict[str, Tensor]:
        up, down = both(made)
        names, tail = _names(item), [1] * len(kernel)
        if named(item.kind).is_pair:
            tail = [1] * max(len(kernel), tensors["up"].dim() - 2)
        alpha = {}
        if "alpha" in item.group.keys:
            alpha = self._alpha(item, scale, down.shape[0])
        else:
            up = up * scale
        dtype = self._dtype(
            next(tensor for role, tensor in tensors.items() if role not in ("alpha", "scalar"))
        )
        up = up.reshape(*up.shape, *tail).to(dtype).contiguous()
        down = down.reshape(down.shape[0], -1, *kernel).to(dtype).contiguous()
        return {
            names[0]: check_result(up, names[0]),
            names[1]: check_result(down, names[1]),
            **alpha,
        }

    def _alpha(self, item: _Found, scale: float, rank: int) -> dict[str, Tensor]:
        old = self.tensors[item.group.keys["alpha"]]
        value = torch.tensor(scale * rank, dtype=torch.float32).reshape(old.shape)
        # A narrow dtype that rounds it would change the strength.
        same = old.dtype.is_floating_point and torch.equal(
            value.to(old.dtype).to(torch.float32), value
        )
        return {item.group.keys["alpha"]: value.to(old.dtype) if same else value}

    def _dtype(self, old: Tensor) -> torch.dtype:
        return self.dtype or (
            old.dtype if old.dtype.is_floating_point and old.dtype.itemsize > 1 else torch.bfloat16
        )

    def _kernel(self, item: _Found, tensors: Tensors, delta: Delta) -> tuple[int, ...] | None:
        """The kernel of the module; () for a linear layer, None where a flat LoHa or LoKr may be
        either.
        """
        kernel = named(item.kind).kernel({role: tensor.shape for role, tensor in tensors.items()})
        if kernel is not None:
            return kernel
        inner = item.adapter.target.inner if item.adapter is not None else ()
        return tuple(inner[1:]) if math.prod(inner) == delta.shape[1] else None


def _apart(made: Factors, up: Tensor, down: Tensor) -> float:
    """|up @ down - made| / |made|, from the small differences of the factors, so that nothing
    cancels.
    """
    norm = made.frobenius()
    own_up, own_down = both(made)
    gap = Factors(torch.cat((up - own_up, own_up), 1), torch.cat((down, down - own_down)))
    return gap.frobenius() / norm if norm else 0.0


def _inner(delta: Delta) -> int:
    return (
        delta.down.shape[0] if isinstance(delta, Factors) and delta.up is not None else delta.rank
    )


def _with_factors(made: Truncation) -> Factors:
    """What came back uncut, a Kronecker product or a matrix, as factors too."""
    delta = made.delta
    if isinstance(delta, Kronecker) or delta.up is None:
        delta = truncated(delta, energy=1.0).delta
    return Factors(*both(delta))


def _names(item: _Found) -> tuple[str, str]:
    """The keys of up and down: a LoRA's own, or beside where the other kind stood, as all its
    readers know them.
    """
    kind = named(item.kind)
    if kind.is_pair:
        return item.roles["up"], item.roles["down"]
    key = next(key for role, key in item.roles.items() if role.startswith(kind.mark))
    stem = key[: key.rindex(kind.mark)]
    return f"{stem}lora_up.weight", f"{stem}lora_down.weight"


def _metadata(
    inspection: Inspection,
    rows: Sequence[ResizeRow],
    adapters: Sequence[_Found],
    rank_target: RankTarget,
) -> tuple[dict[str, str], dict[str, Any] | None]:
    source = inspection.header.metadata
    metadata = without_settled({key: value for key, value in source.items() if key not in STALE})
    if "sshs_legacy_hash" in source:
        metadata.setdefault("sshs_model_hash", "")
    ranks = {row.rank for row in rows if not row.note}
    if "ss_network_dim" in source:
        metadata["ss_network_dim"] = str(next(iter(ranks))) if len(ranks) == 1 else DYNAMIC
        metadata["ss_network_alpha"] = _alpha_told(source, ranks)
    if "ss_network_args" in source:
        metadata["ss_network_args"] = _arguments(
            metadata["ss_network_args"], metadata.get("ss_network_dim", DYNAMIC)
        )
    settings = read_settings(source, inspection.config_beside)
    folded = settings and not any("alpha" in item.group.keys for item in adapters)
    configs = _configs(settings, adapters, rows) if folded else {}
    if configs:
        flat = {
            f"{name}.{key}" if name else key: value
            for name, config in configs.items()
            for key, value in config.items()
        }
        metadata["lora_adapter_metadata"] = json.dumps(flat, indent=2, sort_keys=True)
    metadata["locksmith.resized"] = str(rank_target)
    return metadata, configs.get("") if inspection.config_beside else None


def _alpha_told(source: Mapping[str, str], ranks: set[int]) -> str:
    """alpha / rank stays what it was, where the file tells it."""
    try:
        ratio = float(source["ss_network_alpha"]) / float(source["ss_network_dim"])
        return (
            exact(ratio * next(iter(ranks)))
            if len(ranks) == 1 and math.isfinite(ratio)
            else DYNAMIC
        )
    except (KeyError, ValueError, ZeroDivisionError, OverflowError):
        return DYNAMIC


def _arguments(text: str, rank: str) -> str:
    """The network's arguments without ranks that are no more."""
    try:
        arguments = json.loads(text)
        return json.dumps(
            {
                key: rank if key == "conv_dim" else value
                for key, value in arguments.items()
                if key != "conv_alpha"
            }
        )
    except (ValueError, AttributeError, TypeError, RecursionError):
        return text


def _configs(
    settings: Mapping[str, Any], adapters: Sequence[_Found], rows: Sequence[ResizeRow]
) -> dict[str, dict[str, Any]]:
    """PEFT's settings with the new ranks, alpha = rank in all of them as the scale is in the
    tensors.
    """
    configs = {}
    by_module = {row.module: row.rank for row in rows if not row.note}
    mine: dict[str, dict[str, int]] = {}
    for item in adapters:
        network = _network(settings, item.location.prefix)
        if network is not None and item.label in by_module:
            mine.setdefault(network, {})[item.location.name] = by_module[item.label]
    for network, ranks in mine.items():
        common = max(set(ranks.values()), key=list(ranks.values()).count)
        pattern = {
            name: rank
            for name, rank in sorted(ranks.items(), key=lambda pair: -pair[0].count("."))
            if rank != common
        }
        own = {
            key: value
            for key, value in settings[network].config.items()
            if key not in ("alpha", "rank_stabilized")
        }
        configs[network] = own | {
            "peft_type": "LORA",
            "r": common,
            "lora_alpha": common,
            "rank_pattern": pattern,
            "alpha_pattern": dict(pattern),
            "use_rslora": False,
        }
    return configs


def _network(settings: Mapping[str, Any], prefix: str) -> str | None:
    chosen = settings_for(settings, prefix)
    return next((name for name, candidate in settings.items() if candidate is chosen), None)
