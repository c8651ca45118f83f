"""What is in a LoRA file, from its header alone: for which model, by which trainer, what was
trained, what will load.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from ..adapters.registry import decomposition_of, named
from ..files.gc_pause import without_collection
from ..files.header import (
    Header,
    LoraFileError,
    adapter_config_beside,
    read_header,
    read_numbers,
    stock_fault,
)
from ..identify.lora_family import FAMILY_METADATA, OWN_FAMILY, FamilyMatch, Shapes, identify
from ..identify.reference_model import build_reference_model, with_encoders
from ..identify.stock_loader import stock_placed
from ..identify.trainer import UNTOLD, metadata_matches
from ..key_maps.arithmetic import as_number
from ..key_maps.convention import asked_metadata, noticed_metadata
from ..key_maps.dialect import DENOISER
from ..key_maps.user_maps import NO_USER_MAPS, UserMaps
from ..messages import as_sentence, joined, message
from ..planning.groups import Groups, group_keys
from ..planning.misplaced_files import other_file
from ..planning.numbered_layers import numbered_layers
from ..planning.orientation import ways
from ..planning.plan import (
    BOOKKEEPING,
    DUPLICATE_TARGET,
    INCOMPLETE,
    NO_FAULT,
    NOT_WIRED,
    PLACED,
    PLAN_METADATA,
    SHAPE_CONFLICT,
    UNKNOWN_MODULE,
    UNKNOWN_ROLE,
    UNSUPPORTED,
    Adapter,
    Plan,
    make_plan,
)
from ..planning.scale import NUMBERLESS
from ..planning.target_model import TargetModel, all_families
from .beside import Beside, read_beside
from .judgement import BAD
from .load_report import SCHEMA, Report, category_title, is_scaled, stock_failure
from .metadata import Metadata, read_metadata, with_words
from .presets import PresetReport, match_presets

# Asks the host which of a plan's keys its own loader would place.
AskStock = Callable[[Plan], Set[str]]

MEANINGS = {
    UNKNOWN_MODULE: "inspect.means_unknown_module",
    UNKNOWN_ROLE: "inspect.means_unknown_role",
    SHAPE_CONFLICT: "inspect.means_shape_conflict",
    DUPLICATE_TARGET: "inspect.means_duplicate_target",
    INCOMPLETE: "inspect.means_incomplete_adapter",
    UNSUPPORTED: "inspect.means_unsupported_adapter",
    NOT_WIRED: "inspect.means_not_wired",
    BOOKKEEPING: "inspect.means_bookkeeping",
}


class Health(NamedTuple):
    """One finding about the state of a file, and what it means for the picture."""

    finding: str
    meaning: str


class Inspection:
    """Everything the header of one file tells. Nothing is worked out before it is asked for.

    header, groups, guess, plan: as read; `report` adds what becomes of every key. `is_reference`:
    no model was given, the plan is for the model drawn from the family's table.
    """

    def __init__(
        self,
        path: str,
        header: Header,
        config_beside: Mapping[str, Any] | None,
        *,
        groups: Groups,
        guess: FamilyMatch,
        plan: Plan,
        stock: AskStock | None = None,
        own: UserMaps = NO_USER_MAPS,
    ):
        self.path, self.header, self.config_beside = path, header, config_beside
        self.groups, self.guess, self.plan = groups, guess, plan
        self.size = header.data_start + max(
            (info.end for info in header.tensors.values()), default=0
        ) or _size_on_disk(path)
        self._stock, self._own = stock, own
        fault = stock_fault(header)
        self.report = Report(
            plan, path, stock=self._ask_stock, errors=own.errors, guess=guess, stock_fault=fault
        )

    def with_plan(self, plan: Plan) -> Inspection:
        """The inspection of the same file by another plan, as one that knows its numbers makes."""
        return Inspection(
            self.path,
            self.header,
            self.config_beside,
            groups=self.groups,
            guess=self.guess,
            plan=plan,
            stock=self._stock,
            own=self._own,
        )

    def _ask_stock(self) -> Set[str]:
        return self._stock(self.plan) if self._stock else stock_placed(self.plan)

    @property
    def is_reference(self) -> bool:
        """Whether no model was given."""
        return self.report.is_reference

    @cached_property
    def family(self) -> FamilyMatch:
        """The family the file was made for."""
        return self.report.guess

    @property
    def loads_whole(self) -> bool:
        """Whether every key of the file that means something has its effect; text encoders aside
        that the given model lacks.
        """
        categories = self.report.categories.keys()
        if NOT_WIRED in categories and DENOISER not in self.plan.target_model.networks:
            return False
        return bool(self.report.modules["placed"]) and not (categories - NO_FAULT)

    @property
    def family_metadata(self) -> dict[str, str]:
        """What a new file made of this one tells of its model, whose names alone may fit several;
        {} where it cannot be told.
        """
        family = self.plan.target_model.family
        return (
            {OWN_FAMILY: family.name}
            if family and not (self.is_reference and self.family.ties)
            else {}
        )

    @property
    def only_encoders(self) -> bool:
        """Whether all its modules name a text encoder, so that no family of
        diffusion models shows.
        """
        return bool(self.guess.encoder_modules) and not self.guess.samples

    @cached_property
    def metadata(self) -> Metadata:
        """The header's metadata, readable, with the trigger words that lie beside the file."""
        metadata = read_metadata(self.header.metadata)
        return with_words(metadata, self.beside.words) if self.beside.words else metadata

    @cached_property
    def beside(self) -> Beside:
        """What other tools keep beside the file; nothing is asked of another machine."""
        return read_beside(self.path) if self.header.fetch is None else Beside()

    @cached_property
    def presets(self) -> PresetReport:
        """The trainer's documented choice of layers the file agrees with, and what that choice
        misses.
        """
        return match_presets(self.plan, self.report.trainer)

    @cached_property
    def kinds(self) -> Counter[str]:
        """Adapters by kind, as people call them."""
        shapes, counts = self.plan.shapes, Counter[str]()
        alike = Counter(
            (
                adapter.kind,
                tuple(adapter.roles),
                (shapes.get(adapter.roles.get("down", "")) or ())[2:],
            )
            for adapter in self.report.adapters
        )
        for (kind, roles, kernel), count in alike.items():
            counts[_kind_title(kind, roles, kernel)] += count
        return counts

    @cached_property
    def ranked(self) -> list[Adapter]:
        """The adapters whose rank counts."""
        return [one for one in self.report.adapters if one.rank and is_scaled(one)]

    @cached_property
    def ranks(self) -> Counter[int]:
        """Adapters by rank, for those that have one."""
        return Counter(adapter.rank for adapter in self.ranked if adapter.rank)

    @cached_property
    def alphas(self) -> dict[str, float]:
        """The value of every alpha tensor, by key."""
        return (
            read_numbers(self.path, self.header, alphas_of(self.groups))
            if self.header.data_start
            else {}
        )

    @cached_property
    def alpha_counts(self) -> Counter[float]:
        """Adapters by alpha, for those that have an alpha tensor which counts: with a rank to
        divide it by.
        """
        adapters = [
            adapter
            for adapter in self.report.adapters
            if "alpha" in adapter.roles and adapter.rank and is_scaled(adapter)
        ]
        return _counted(
            self.alphas[adapter.roles["alpha"]]
            for adapter in adapters
            if adapter.roles["alpha"] in self.alphas
        )

    @cached_property
    def scales(self) -> Counter[float]:
        """Adapters by the factor of their delta: alpha / rank, or what the trainer's settings say;
        4 digits.
        """
        return Counter(
            scale for adapter in self.report.adapters if (scale := self._scale(adapter)) is not None
        )

    def _scale(self, adapter: Adapter) -> float | None:
        if not is_scaled(adapter):
            return None
        if adapter.strength.scale is not None:
            return _rounded(adapter.strength.scale)
        alpha = self.alphas.get(adapter.roles.get("alpha", ""))
        if not alpha or not adapter.rank or not math.isfinite(alpha):
            return None if "alpha" in adapter.roles and not alpha else 1.0
        return _rounded(adapter.strength.factor * alpha / adapter.rank)

    @cached_property
    def dtypes(self) -> Counter[str]:
        """Tensors by dtype, as safetensors calls it."""
        return Counter(info.dtype for info in self.header.tensors.values())

    @cached_property
    def gains(self) -> list[str]:
        """What loading with this pack changes against the stock loader; empty where it changes
        nothing.
        """
        if self.report.stock_fails and self.report.modules["placed"]:
            return [
                message("inspect.loads_where_stock_fails"),
                *(correction.short for correction in self.report.corrections),
            ]
        more = self.report.modules["placed"] - self.report.stock_modules
        return [message("inspect.more_modules_load", count=more)] * bool(more) + [
            correction.short for correction in self.report.corrections
        ]

    @cached_property
    def writer(self) -> str:
        """Who wrote the file, with the version where the metadata say it; UNTOLD else."""
        version = self.metadata.trainer_version
        return version if version and self.report.trainer == UNTOLD else self.report.trainer

    @cached_property
    def other(self) -> str:
        """What the file is, and where it belongs, if it holds no LoRA; "" for all others."""
        return other_file(self.header.tensors, self.groups)

    @property
    def is_nameless(self) -> bool:
        """Whether the file numbers its layers and does not name them."""
        return numbered_layers(self.header.tensors) is not None

    @cached_property
    def verdict(self) -> str:
        """One line: for which model, by whom, what, and what will load."""
        if self.other and not self.report.modules["placed"]:
            return as_sentence(self.other)
        return joined(filter(None, (self._origin(), self._adapters(), self._loads())), "space")

    def _origin(self) -> str:
        """For which model, and by whom."""
        unknown = "inspect.unknown_encoders" if self.only_encoders else "inspect.unknown_model"
        made_for = self.family.title or message(unknown)
        if self.family.could_be and not self.family.is_likely:
            made_for = message("inspect.not_told_apart", models=made_for)
        if self.writer == UNTOLD:
            return message("inspect.origin_unknown_writer", made_for=made_for)
        guessed = self.report.writer.is_guess
        id = "inspect.origin_guess" if guessed else "inspect.origin"
        return message(id, made_for=made_for, writer=self.writer)

    def _adapters(self) -> str:
        """Which adapters the file holds, in a sentence; "" where it holds none."""
        if not self.kinds:
            return ""
        if all(named(adapter.kind).replaces for adapter in self.report.adapters):
            return message("inspect.whole_weights")
        kinds = joined((kind for kind, _ in self.kinds.most_common(2)), "and")
        ranks, alphas = spread(self.ranks), spread(self.alpha_counts)
        if ranks and alphas:
            return message("inspect.kinds_rank_alpha", kinds=kinds, rank=ranks, alpha=alphas)
        if ranks:
            return message("inspect.kinds_rank", kinds=kinds, rank=ranks)
        if alphas:
            return message("inspect.kinds_alpha", kinds=kinds, alpha=alphas)
        return as_sentence(kinds)

    def _loads(self) -> str:
        """How much of it loads here, and with the stock loader."""
        modules = self.report.modules
        if not modules["total"]:
            return message("inspect.no_adapter")
        if not self.plan.target_model.networks:
            if self.guess.is_absent:
                return message("inspect.no_such_model")
            return message(
                "inspect.connect_clip" if self.only_encoders else "inspect.connect_model"
            )
        line = message("inspect.modules_load", placed=modules["placed"], count=modules["total"])
        clause = self.report.fitting.wrong or self.report.fitting.lacking
        if clause:
            return as_sentence(message("joints.about", subject=line, text=clause))
        if modules["placed"] < modules["total"]:
            line = message("inspect.with_losses", line=line, losses=joined(self.report.losses))
        return as_sentence(joined(filter(None, (line, self._stock_loads())), "semicolon"))

    def _stock_loads(self) -> str:
        """What the stock loader would load of it, as a clause; "" where that is not known."""
        placed = self.report.modules["placed"]
        if self.report.stock_keys is None or not placed:
            return ""
        if self.report.stock_fails:
            return stock_failure(self.report.stock_fails)
        if self.report.stock_modules != placed:
            return message("inspect.stock_loads", count=self.report.stock_modules)
        wrongly = bool(self.report.corrections)
        return message(
            "inspect.stock_loads_wrongly" if wrongly else "inspect.stock_loads_too", count=placed
        )

    def _stacked(self) -> list[Health]:
        """Several adapters on the same rows of one weight: they add up, which is seldom meant."""
        seen = Counter(
            (adapter.parameter, adapter.kind, adapter.target.slices)
            for adapter in self.report.adapters
        )
        several = [pieces[0][0] for (_, _, pieces), count in seen.items() if count > 1]
        if not several:
            return []
        return [
            Health(
                message("inspect.several_adapters", count=len(several), name=several[0]),
                message("inspect.means_several_adapters"),
            )
        ]

    @cached_property
    def health(self) -> list[Health]:
        """What is odd about the file, and what each finding means for the picture; empty for a
        sound file.
        """
        findings = [
            Health(
                message("report.keys_of", count=count, category=category_title(category)),
                message(MEANINGS[category]),
            )
            for category, count in self.report.categories.most_common()
            if category not in (PLACED, NOT_WIRED) and self.plan.target_model.networks
        ]
        if self.other:
            meaning = "inspect.means_no_key_fits" if self.is_nameless else "inspect.means_no_lora"
            findings.append(Health(as_sentence(self.other, stop=False), message(meaning)))
        elif not self.report.modules["total"]:
            findings.append(
                Health(message("inspect.no_key_fits"), message("inspect.means_no_key_fits"))
            )
        elif self.guess.is_absent and self.report.state == BAD:
            findings.append(
                Health(
                    message("identify.not_in_host", model=self.guess.title),
                    message("inspect.means_no_key_fits"),
                )
            )
        elif not self.plan.target_model.networks and not self.only_encoders:
            findings.append(
                Health(message("inspect.unknown_model"), message("inspect.means_unknown_model"))
            )
        findings += [
            Health(problem, message("inspect.means_damaged_metadata"))
            for problem in self.metadata.problems
        ]
        return findings + self._odd_numbers() + self._odd_tensors() + self._stacked()

    def _odd_numbers(self) -> list[Health]:
        findings = []
        for fault, meaning, is_odd in ODD_ALPHAS:
            odd = [key for key, alpha in self.alphas.items() if is_odd(alpha)]
            if odd:
                findings.append(
                    Health(message(fault, count=len(odd), name=odd[0]), message(meaning))
                )
        large = [scale for scale in self.scales if abs(scale) > LARGE_SCALE]
        if large:
            findings.append(
                Health(
                    message("inspect.large_scale", scale=f"{max(large, key=abs):g}"),
                    message("inspect.means_large_scale"),
                )
            )
        return findings

    def _odd_tensors(self) -> list[Health]:
        empty = [name for name, info in self.header.tensors.items() if 0 in info.shape]
        if not empty:
            return []
        finding = message("inspect.empty_tensors", count=len(empty), name=empty[0])
        return [Health(finding, message("inspect.means_empty_tensors"))]

    def as_dict(self) -> dict[str, Any]:
        """Everything a program needs; plain JSON types."""
        loads, contradiction = self.report.as_dict(), self.report.contradiction
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "file": self.path,
            "bytes": self.size,
            "tensors": len(self.header.tensors),
            "family": {
                "name": self.family.name,
                "title": self.family.title,
                "could_be": list(self.family.could_be),
                "evidence": list(self.guess.evidence),
                **({"contradiction": contradiction} if contradiction else {}),
                "close": [
                    {"title": title, "share": round(share, 3)}
                    for title, share in self.guess.near_misses
                ],
            },
            "trainer": {**self.report.writer._asdict(), "version": self.metadata.trainer_version},
            "kinds": dict(self.kinds.most_common()),
            "ranks": {str(rank): count for rank, count in sorted(self.ranks.items())},
            "alphas": {f"{alpha:g}": count for alpha, count in self.alpha_counts.most_common()},
            "scales": {f"{scale:g}": count for scale, count in self.scales.most_common()},
            "strength_source": self.report.strength_source,
            "dtypes": dict(self.dtypes.most_common()),
            "loads": {
                "exact": not self.is_reference and bool(self.plan.target_model.networks),
                "model": self.report.model_title,
                "state": self.report.state,
                "modules": self.report.modules,
                "keys": loads["keys"],
                "stock": (
                    {"modules": self.report.stock_modules, "keys": loads["stock"]["placed"]}
                    | _fails(loads["stock"])
                ),
                "categories": loads["categories"],
                "gains": self.gains,
                "notes": loads["notes"],
                "cautions": loads["cautions"],
                "unplaced": loads["unplaced"],
            },
            "trained": [trained.as_dict() for trained in self.report.trained],
            "missed": {
                "untrained": self.report.untrained,
                "untrained_words": self.report.untrained_words,
                "preset": self.presets.as_dict(),
            },
            "metadata": self.metadata.as_dict(),
            "beside": {"strength": self.beside.strength and self.beside.strength._asdict()},
            "health": [finding._asdict() for finding in self.health],
        }

    def as_json(self) -> str:
        """`as_dict()` as JSON text."""
        return json.dumps(self.as_dict(), ensure_ascii=False, indent=1)


LARGE_SCALE = 16.0
ODD_ALPHAS = (
    (
        "inspect.alpha_no_number",
        "inspect.means_alpha_no_number",
        lambda alpha: not math.isfinite(alpha),
    ),
    ("inspect.alpha_zero", "inspect.means_alpha_zero", lambda alpha: alpha == 0),
    ("inspect.alpha_negative", "inspect.means_alpha_negative", lambda alpha: alpha < 0),
)


def inspect_file(
    path: str | os.PathLike[str],
    target_model: TargetModel | None = None,
    own: UserMaps = NO_USER_MAPS,
    stock: AskStock | None = None,
    whole: bool = False,
) -> Inspection:
    """Inspect the safetensors file at `path`; nothing but its header and its alphas is read. Raises
    LoraFileError.

    `target_model`: the connected model and text encoders; a missing model is drawn from the tables.
    `whole`: so are missing text encoders, for whoever writes the file again and must lose nothing.
    `stock`: asks the host what its loader would place; without it the answer comes from what is
    known of the stock loader.
    """
    return inspect_header(
        path,
        read_header(path),
        adapter_config_beside(path),
        target_model,
        own=own,
        stock=stock,
        whole=whole,
    )


def inspect_header(
    path: str | os.PathLike[str],
    header: Header,
    config_beside: Mapping[str, Any] | None,
    target_model: TargetModel | None = None,
    *,
    own: UserMaps = NO_USER_MAPS,
    stock: AskStock | None = None,
    whole: bool = False,
) -> Inspection:
    """Inspect a file whose header was read before."""
    if target_model is None and own is NO_USER_MAPS:
        read = _read_or_remember(path, header, config_beside)
    else:
        read = _read(path, header, config_beside, target_model, own=own, whole=whole)
    plan = read.plan._replace(metadata=header.metadata)
    return Inspection(
        os.fspath(path),
        header,
        config_beside,
        groups=read.groups,
        guess=read.guess,
        plan=plan,
        stock=stock,
        own=own,
    )


class _Found(NamedTuple):
    """What files that are alike share."""

    groups: Groups
    guess: FamilyMatch
    plan: Plan


MAX_ALIKE = 8  # kinds of files whose plans are remembered
_alike: OrderedDict[tuple[object, ...], _Found] = OrderedDict()


def _read_or_remember(
    path: str | os.PathLike[str], header: Header, config_beside: Mapping[str, Any] | None
) -> _Found:
    key = cache_key(header, config_beside)
    inspected = _alike.pop(key, None) or _read(path, header, config_beside, None, own=NO_USER_MAPS)
    if not inspected.plan.by_values:
        _alike[key] = inspected
    while len(_alike) > MAX_ALIKE:
        _alike.popitem(last=False)
    return inspected


def _read(
    path: str | os.PathLike[str],
    header: Header,
    config_beside: Mapping[str, Any] | None,
    target_model: TargetModel | None,
    *,
    own: UserMaps,
    whole: bool = False,
) -> _Found:
    shapes = {name: info.shape for name, info in header.tensors.items()}
    known = target_model if target_model is not None else all_families(own)
    with without_collection():
        groups = group_keys(shapes, (*header.metadata, *(config_beside or ())))
        guess = identify(groups.groups, shapes, header.metadata, known)
        place = whole_model(target_model, guess, groups, shapes=shapes, known=known, own=own)
        if whole:
            place = with_encoders(place, guess, groups.groups, shapes, own)
        plan = make_plan(
            header.tensors,
            header.metadata,
            place,
            config_beside=config_beside,
            groups=groups,
            number=numbers_in(path, header, groups),
        )
        if plan.by_values and _are_elsewhere(path, header, groups):
            unsettled = message("inspect.alphas_not_fetched")
            plan = plan._replace(cautions=(*plan.cautions, unsettled))
        return _Found(groups, guess, plan)


def _are_elsewhere(path: str | os.PathLike[str], header: Header, groups: Groups) -> bool:
    """Whether the alphas of the file are on another machine, and not fetched from there."""
    alphas = alphas_of(groups)
    if header.fetch is None or not alphas:
        return False
    with suppress(LoraFileError):
        return not read_numbers(path, header, alphas)
    return True


def numbers_in(
    path: str | os.PathLike[str], header: Header, groups: Groups
) -> Callable[[str], float | None]:
    """Gives the value of an alpha of the file by its name, None for one that is no number; all are
    read when the first is asked for.
    """
    values: dict[str, float] = {}

    def number(name: str) -> float | None:
        if not values and header.data_start:
            values.update(dict.fromkeys(header.tensors, math.nan))
            with suppress(LoraFileError):
                values.update(read_numbers(path, header, alphas_of(groups)))
        return as_number(values.get(name))

    return number


def alphas_of(groups: Groups) -> list[str]:
    """The keys of all alphas of a file."""
    return [group.keys["alpha"] for group in groups.groups if "alpha" in group.keys] + [
        *groups.network_alphas.values()
    ]


def cache_key(header: Header, config_beside: Mapping[str, Any] | None) -> tuple[object, ...]:
    """Equal for files that are reported alike: names, shapes, and what plan, family, trainer and
    the stock loader read off the header.
    """
    shapes = tuple([info.shape for info in header.tensors.values()])
    numberless = [name for name, info in header.tensors.items() if info.dtype in NUMBERLESS]
    return (
        tuple(header.tensors),
        shapes,
        tuple(numberless),
        telling(header.metadata),
        repr(config_beside),
        header.refusal,
    )


def telling(metadata: Mapping[str, str]) -> tuple[object, ...]:
    """What a plan, the family and the trainer read off the metadata; the rest differs in every
    file.
    """
    if not metadata:
        return ()
    values = [metadata.get(key) for key in _counting()]
    there = [key in metadata for key in (*noticed_metadata(), *ways().told)]
    return (*values, *there, *metadata_matches(all_families().dialects.values(), metadata))


@lru_cache(maxsize=1)
def _counting() -> tuple[str, ...]:
    """The keys of the metadata whose values plan, family and trainer read."""
    asked = dict.fromkeys(asked_metadata())
    for key in noticed_metadata():
        del asked[key]
    return tuple(dict.fromkeys((*PLAN_METADATA, *FAMILY_METADATA, *asked)))


def whole_model(
    target_model: TargetModel | None,
    guess: FamilyMatch,
    groups: Groups,
    *,
    shapes: Shapes,
    known: TargetModel,
    own: UserMaps,
) -> TargetModel:
    """The given target model; without a model, what the file was made for, with the given text
    encoders in it.
    """
    if target_model is not None and DENOISER in target_model.networks:
        return target_model
    reference = build_reference_model(guess, groups.groups, shapes, known, own)
    if target_model is None or not reference.networks:
        return target_model if target_model is not None else reference
    return TargetModel(
        [
            *(
                network
                for name, network in reference.networks.items()
                if name not in target_model.networks
            ),
            *target_model.networks.values(),
        ],
        own,
    )


def spread(counts: Counter[int] | Counter[float]) -> str:
    """A distribution in few words: "16", or "4 to 64 (most 16)"; "" of nothing."""
    if len(counts) < 2:
        return "".join(f"{number:g}" for number in counts)
    most = counts.most_common(1)[0][0]
    numbers = [number for number in counts if not math.isnan(number)]
    return message(
        "inspect.spread",
        low=f"{min(numbers):g}",
        high=f"{max(numbers):g}",
        most=f"{most:g}",
    )


def _kind_title(kind: str, roles: Sequence[str], kernel: Sequence[int]) -> str:
    known, decomposition = named(kind), decomposition_of(roles)
    return decomposition.titled(known) if decomposition else known.titled(tuple(kernel))


def _fails(stock: Mapping[str, Any]) -> dict[str, str]:
    return {"fails": stock["fails"]} if "fails" in stock else {}


def _size_on_disk(path: str) -> int:
    """For pickle files, whose header is made up from their tensors."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _counted(numbers: Iterable[float]) -> Counter[float]:
    """How often each number occurs; what is no number is unequal to itself, and would be counted
    anew each time.
    """
    return Counter(math.nan if math.isnan(number) else number for number in numbers)


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
