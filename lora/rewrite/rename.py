"""Decides which new name every part of a planned file gets in another dialect: renames, fusions and
splits, from the plan alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...adapters.rows import Rows
from ...errors import LocksmithError
from ...identify.reference_model import build_reference_model
from ...key_maps import KEY_MAPS
from ...key_maps.dialect import ALPHAS, DENOISER, Dialect
from ...key_maps.lines import lines_of, read_text
from ...key_maps.user_maps import NO_USER_MAPS, UserMaps
from ...messages import first_of, joined, message
from ...planning.names import prefix_for, spell
from ...planning.plan import BOOKKEEPING, DUPLICATE_TARGET, PLACED, Adapter, Plan, make_plan
from ...planning.target_model import Network, all_families
from ...report.load_report import category_title

if TYPE_CHECKING:
    from ...planning.target_model import TargetModel
    from ...report.inspection import Inspection

WRITTEN_TABLE = KEY_MAPS / "written.table"
ANY = "*"
NATIVE = (  # the dialect of ComfyUI's own names, which the stock loader reads for every model
    "comfyui"
)
# What a file may hold without losing anything when it is left out.
HARMLESS = (PLACED, BOOKKEEPING, DUPLICATE_TARGET)
BASE_UNKNOWN = "lora.base_unknown"
MAX_TOLD = 3  # names in one sentence

Roles = tuple[dict[str, str], dict[str, str]]


class RenameError(LocksmithError, ValueError):
    """written.table breaks its rules: the text names line, fault and remedy."""


class Refused(LocksmithError, ValueError):
    """A file that a dialect cannot hold whole; `reasons` has one sentence for each thing it cannot
    say.
    """

    def __init__(self, reasons: tuple[str, ...]):
        self.reasons = reasons
        super().__init__(joined(reasons, "semicolon"))


class ModelNeeded(Refused):
    """A file that does not tell its base model; `families`: those it may be for, () for any."""

    def __init__(self, reasons: tuple[str, ...], families: tuple[str, ...]):
        super().__init__(reasons)
        self.families = families


class OutputFormat(NamedTuple):
    """How a dialect is written for one family: record (prefixes, form), names, where alpha goes,
    role -> spelling.

    beside: role -> the role without which the dialect's readers do not look for it.
    """

    dialect: str
    record: str
    names: str
    alpha: str
    roles: Mapping[str, str]
    beside: Mapping[str, str] = {}


class OutputPart(NamedTuple):
    """What one adapter of the plan gives to a new module; None: all rows."""

    adapter: int
    rows: Rows | None  # of the adapter
    into: Rows | None  # of the new module


class OutputModule(NamedTuple):
    """One module under its new name: what it is (rows of) in the model, and what of the file goes
    into it.

    prefix + name is the new module name. shape: of the module's weight, rows applied; swap: its
    halves are exchanged there.
    """

    prefix: str
    name: str
    network: str
    weight: str
    rows: Rows | None
    swap: bool
    shape: tuple[int, ...]
    parts: tuple[OutputPart, ...]

    @property
    def module(self) -> str:
        """The new module name."""
        return self.prefix + self.name


class RenamePlan(NamedTuple):
    """A file's new names: one unit for each new module, the plan's `left_out` keys with the reason,
    and what cannot be said.
    """

    writing: OutputFormat
    units: tuple[OutputModule, ...]
    left_out: Mapping[str, str]
    refusals: tuple[str, ...]


def writable() -> tuple[str, ...]:
    """The dialects that can be written."""
    return tuple(dict.fromkeys(line[0] for line in _table()[0]))


def is_folder(dialect: str) -> bool:
    """Whether a file in this dialect is a folder with the settings beside the weights."""
    return dialect in _table()[3]


def on_several_ranks(dialect: str) -> str:
    """What the dialect's reader makes of modules of several ranks; "" where it reads them."""
    return _table()[4].get(dialect, "")


def output_format_for(dialect: str, family: str) -> OutputFormat:
    """How `dialect` is written for a family ("" where it is not known). Raises Refused for a
    dialect that is only read.
    """
    lines, roles, *_ = _table()
    for name, families, record, names, alpha, group in lines:
        if name == dialect and (families == (ANY,) or family in families):
            return OutputFormat(name, record, names, alpha, *roles[group])
    raise Refused(
        (message("lora.cannot_write_format", format=dialect, choices=", ".join(writable())),)
    )


def plan_renames(plan: Plan, dialect: str | OutputFormat, drop: bool = False) -> RenamePlan:
    """The new names of everything `plan` placed; `refusals` says what stands against it. Raises
    Refused where there is no model.

    dialect: by name, or a format that stands in no table. drop: keys without a place, and networks
    without a name, are left out; otherwise each is a refusal, bookkeeping and second copies aside.
    """
    target_model = plan.target_model
    if not target_model.networks:
        raise Refused((message(BASE_UNKNOWN),))
    family = target_model.family.name if target_model.family else ""
    writing = output_format_for(dialect, family) if isinstance(dialect, str) else dialect
    record = target_model.dialects[writing.record]._replace(names=writing.names)
    left_out = {
        key: message("joints.about", subject=category_title(outcome.category), text=outcome.reason)
        for key, outcome in plan.outcomes.items()
        if outcome.category != PLACED
    }
    refusals = [] if drop else list(_losses(plan))
    units: list[OutputModule] = []
    for network in target_model.networks.values():
        adapters = [
            index
            for index, adapter in enumerate(plan.adapters)
            if adapter.target.network == network.name
        ]
        if not adapters:
            continue
        prefix = prefix_for(target_model, network, record)
        if prefix is None:
            reason = message("lora.no_names_for", title=record.title, network=_called(network))
            if drop:
                left_out |= {
                    key: reason for index in adapters for key in plan.adapters[index].roles.values()
                }
            else:
                refusals.append(reason)
            continue
        named_units = _units(plan, network, record, prefix, adapters=adapters, refusals=refusals)
        written = _encoder_prefix(writing, target_model, network) or prefix
        units += [unit._replace(prefix=written) for unit in named_units]
    return RenamePlan(writing, tuple(units), left_out, tuple(refusals))


def _encoder_prefix(writing: OutputFormat, target_model: TargetModel, network: Network) -> str:
    """What the table says stands before an encoder's names in this dialect, else in its record; ""
    where it says nothing.
    """
    prefixes, family = _table()[2], target_model.family.name if target_model.family else ""
    return next(
        (
            prefixes[key]
            for whose in writing[:2]
            if (key := (whose, family, network.name)) in prefixes
        ),
        "",
    )


def losses(plan: Plan, left_out: Mapping[str, str]) -> dict[str, str]:
    """Of the keys that a new file leaves out, those without which it does less, with the reason."""
    harmless = (BOOKKEEPING, DUPLICATE_TARGET)
    return {
        key: reason
        for key, reason in left_out.items()
        if plan.outcomes[key].category not in harmless
    }


def losses_told(lost: Mapping[str, str]) -> str:
    """What a file lacks that holds less than its source; "" where it holds as much."""
    if not lost:
        return ""
    reasons: dict[str, list[str]] = {}
    for key, reason in lost.items():
        reasons.setdefault(reason, []).append(key)
    parts = [
        message("joints.about", subject=first_of(keys, MAX_TOLD), text=reason)
        for reason, keys in list(reasons.items())[:MAX_TOLD]
    ]
    more = len(reasons) - MAX_TOLD
    if more > 0:
        parts.append(message("lora.more_reasons", count=more))
    return message("lora.keys_left_out", count=len(lost), reasons=joined(parts, "semicolon"))


def check_base_known(inspection: Inspection, dialect: str, drop: bool, option: str) -> None:
    """Raises Refused where the file holds no LoRA, ModelNeeded where it does not say for which
    model it is.

    option: with which a person gives the model here.
    """
    if inspection.other:
        raise Refused((inspection.other,))
    if not inspection.plan.target_model.networks:
        raise ModelNeeded((message("lora.specify_base", option=option),), ())
    if apart := rivals_apart(inspection, dialect, drop):
        families = inspection.plan.target_model.families
        titles = joined(families[name].title for name in apart)
        reason = message("lora.ambiguous", models=titles, option=option)
        raise ModelNeeded((reason,), inspection.guess.ties)


def assumption(
    inspection: Inspection, dialect: str | OutputFormat, drop: bool = False
) -> tuple[str, ...]:
    """A caution for which model the keys are, where the file is only most likely for it and the
    keys would differ for others; else ().
    """
    family = inspection.plan.target_model.family
    apart = _differing(inspection, dialect, drop) if family and inspection.guess.is_likely else ()
    if not family or not apart:
        return ()
    titles = joined(inspection.plan.target_model.families[name].title for name in apart)
    return (message("lora.assumed", model=family.title, models=titles),)


def rivals_apart(
    inspection: Inspection, dialect: str | OutputFormat, drop: bool = False
) -> tuple[str, ...]:
    """The models a file fits as well as the one that was drawn for it, and for which `dialect`
    would name it otherwise.

    Empty where a model was given, where all of them agree (FLUX.1 and Chroma share their
    attention's names), or where the one that was drawn is likelier (see `assumption`).
    """
    return () if inspection.guess.is_likely else _differing(inspection, dialect, drop)


def _differing(inspection: Inspection, dialect: str | OutputFormat, drop: bool) -> tuple[str, ...]:
    """Models the file fits as well, likely or not, under which its new names would differ."""
    if (
        not inspection.is_reference
        or not inspection.guess.ties
        or not inspection.plan.target_model.networks
    ):
        return ()
    own_essence = _essence(inspection.plan, dialect, drop)
    apart = []
    for rival in inspection.guess.ties:
        plan = plan_for_rival(inspection, rival)
        # A model that has no place for some of it is no better guess.
        if (
            len(plan.adapters) >= len(inspection.plan.adapters)
            and _essence(plan, dialect, drop) != own_essence
        ):
            apart.append(rival)
    return tuple(apart)


def model_of_family(
    inspection: Inspection, family: str, own: UserMaps = NO_USER_MAPS
) -> TargetModel:
    """The model that a file of this family was made for, drawn from its table and the file."""
    guess = inspection.guess._replace(name=family, ties=())
    groups, shapes = inspection.groups.groups, inspection.plan.shapes
    return build_reference_model(guess, groups, shapes, all_families(own), own)


def plan_for_rival(inspection: Inspection, rival: str) -> Plan:
    """The plan of the file if it were for another of the models that it fits, by its table's
    name.
    """
    return make_plan(
        inspection.header.tensors,
        inspection.header.metadata,
        model_of_family(inspection, rival),
        config_beside=inspection.config_beside,
        groups=inspection.groups,
    )


def _essence(plan: Plan, dialect: str | OutputFormat, drop: bool) -> set[tuple[object, ...]]:
    """What distinguishes two rename plans: each new module, the adapters' modules in it, its rows
    and its halves.
    """
    return {
        (
            unit.module,
            unit.swap,
            tuple(
                (plan.adapters[part.adapter].module, part.rows, part.into) for part in unit.parts
            ),
        )
        for unit in plan_renames(plan, dialect, drop).units
    }


def _called(network: Network) -> str:
    if network.name == DENOISER:
        return message("lora.the_diffusion_model")
    return message("lora.the_text_encoder", name=network.name)


def _losses(plan: Plan) -> Iterator[str]:
    """One sentence for each category of keys that would be lost."""
    lost: dict[str, list[str]] = {}
    for key, outcome in plan.outcomes.items():
        if outcome.category not in HARMLESS:
            lost.setdefault(outcome.category, []).append(key)
    for category, keys in lost.items():
        title, names = category_title(category), first_of(keys, MAX_TOLD)
        yield message("lora.no_place", count=len(keys), category=title, keys=names)


def _units(
    plan: Plan,
    network: Network,
    record: Dialect,
    prefix: str,
    *,
    adapters: list[int],
    refusals: list[str],
) -> list[OutputModule]:
    """The new modules of one network that get something, in the order of the file."""
    wanted = {weight for index in adapters for weight, _, _ in plan.adapters[index].target.slices}
    known: dict[str, list[OutputModule]] = {}
    for spelled in spell(plan.target_model, network, record):
        if spelled.weight in wanted:
            name = spelled.module[len(prefix) :]
            unit = OutputModule(
                prefix,
                name,
                network.name,
                spelled.weight,
                spelled.rows,
                spelled.swap,
                spelled.shape,
                (),
            )
            known.setdefault(spelled.weight, []).append(unit)
    parts: dict[str, list[OutputPart]] = {}
    by_module: dict[str, OutputModule] = {}
    for index in adapters:
        adapter = plan.adapters[index]
        for weight, rows, source in adapter.target.slices:
            units = known.get(weight) or [_native_unit(network, record, prefix, weight)]
            for unit, part in _overlap(
                network,
                (weight, rows, source),
                units,
                index=index,
                adapter=adapter,
                refusals=refusals,
            ):
                by_module.setdefault(unit.module, unit)
                parts.setdefault(unit.module, []).append(part)
    return [unit._replace(parts=tuple(parts[module])) for module, unit in by_module.items()]


def _native_unit(network: Network, record: Dialect, prefix: str, weight: str) -> OutputModule:
    """A vector (a norm), which only its native name names."""
    local = weight.removeprefix(network.prefix)
    name = local.removesuffix(".weight")
    name = name.replace(".", "_") if record.form == "flat" else name
    return OutputModule(
        prefix, name, network.name, weight, None, False, network.weights[weight], ()
    )


def _overlap(
    network: Network,
    piece: tuple[str, Rows | None, Rows | None],
    units: list[OutputModule],
    *,
    index: int,
    adapter: Adapter,
    refusals: list[str],
) -> Iterator[tuple[OutputModule, OutputPart]]:
    """Yield (unit, part) for every unit that the piece, one of the target's, reaches."""
    weight, rows, source = piece
    shape = network.weights[weight]
    total = shape[0] if shape else 0
    if rows is None and source is None and len(units) == 1 and units[0].rows is None:
        yield units[0], OutputPart(index, None, None)
        return
    if not total:
        refusals.append(message("lora.size_unknown", module=adapter.module, weight=weight))
        return
    reached = rows or Rows(0, total)
    offset = (source.start if source else 0) - reached.start
    whole = sum(
        piece.length if piece else network.weights[weight][0]
        for weight, piece, _ in adapter.target.slices
    )
    named = 0
    for unit in units:
        own = unit.rows or Rows(0, total)
        common = reached.intersect(own)
        if common:
            named += common.length
            taken = common.shift(offset).unless_all(whole)
            yield unit, OutputPart(index, taken, common.shift(-own.start).unless_all(own.length))
    if named < reached.length:
        refusals.append(
            message("lora.rows_unnamed", module=adapter.module, network=network.name, weight=weight)
        )


@cache
def _table(
    path: Path = WRITTEN_TABLE,
) -> tuple[
    list[tuple[Any, ...]],
    Mapping[str, Roles],
    Mapping[tuple[str, str, str], str],
    frozenset[str],
    Mapping[str, str],
]:
    """The lines of written.table, its groups of roles (spellings, and what stands beside), (record
    or dialect, family, slot) -> prefix, the dialects that are folders, and dialect -> what it
    makes of several ranks. Raises RenameError.
    """
    lines: list[tuple[Any, ...]] = []
    encoders: dict[tuple[str, str, str], str] = {}
    roles: dict[str, Roles] = {}
    folders: set[str] = set()
    several_ranks: dict[str, str] = {}
    for number, line in lines_of(read_text(path, RenameError)):
        words = line.split()
        if words[0] == "dialect" and len(words) == 7 and words[5] in ALPHAS:
            name, families, *rest = words[1:]
            lines.append((name, tuple(families.split(",")), *rest))
        elif words[0] == "encoder" and len(words) == 5:
            encoders |= {(words[1], family, words[3]): words[4] for family in words[2].split(",")}
        elif words[0] == "folder" and len(words) == 2:
            folders.add(words[1])
        elif words[0] == "several_ranks" and len(words) > 2:
            several_ranks[words[1]] = " ".join(words[2:])
        elif words[0] == "roles" and len(words) > 2:
            spellings, beside = roles.setdefault(words[1], ({}, {}))
            for word in words[2:]:
                word, _, other = word.removesuffix(")").partition("(")
                role, _, spelling = word.partition("=")
                spellings[role] = spelling or role
                beside |= {role: other} if other else {}
        else:
            remedy = message("lora.table_forms")
            raise RenameError(
                message("lora.table_line", path=str(path), number=number, remedy=remedy)
            )
    unknown = {line[5] for line in lines} - roles.keys()
    if unknown:
        raise RenameError(
            message("lora.table_roles", path=str(path), roles=", ".join(sorted(unknown)))
        )
    return lines, roles, encoders, frozenset(folders), several_ranks
