"""Decides which new name every part of a planned file gets in another dialect: renames, fusions and
splits, from the plan alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...errors import LocksmithError
from ...identify.reference_model import draw_site
from ...key_maps import KEY_MAPS
from ...key_maps.dialect import DENOISER, Dialect
from ...key_maps.lines import lines_of, read_text
from ...planning.names import spell, wrapper_for
from ...planning.plan import BOOKKEEPING, DUPLICATE_TARGET, PLACED, Adapter, Plan, make_plan
from ...planning.target_model import Component, everywhere

if TYPE_CHECKING:
    from ...planning.target_model import Site
    from ...report.inspection import Inspection

RESPELL_TABLE = KEY_MAPS / "respell.table"
ANY = "*"
NATIVE = (  # the dialect of ComfyUI's own names, which the stock loader reads for every model
    "comfyui"
)
ALPHAS = ("tensor", "config", "folded")
# What a file may hold without losing anything when it is left out.
HARMLESS = (PLACED, BOOKKEEPING, DUPLICATE_TARGET)
UNTOLD = "could not identify the base model; specify it"
MOST_TOLD = 3  # names in one sentence

Rows = tuple[int, int]
Roles = tuple[dict[str, str], dict[str, str]]


class RespellError(LocksmithError, ValueError):
    """respell.table breaks its rules: the text names line, fault and remedy."""


class Refused(LocksmithError, ValueError):
    """A file that a dialect cannot hold whole; `reasons` has one sentence for each thing it cannot
    say.
    """

    def __init__(self, reasons: tuple[str, ...]):
        self.reasons = reasons
        super().__init__("; ".join(reasons))


class Writing(NamedTuple):
    """How a dialect is written for one family: record (wrappers, form), names, where alpha goes,
    role -> spelling.

    beside: role -> the role without which the dialect's readers do not look for it.
    """

    dialect: str
    record: str
    names: str
    alpha: str
    roles: Mapping[str, str]
    beside: Mapping[str, str] = {}


class Part(NamedTuple):
    """What one adapter of the plan gives to a new module; None: all rows."""

    adapter: int
    rows: Rows | None  # (start, length) of the adapter
    into: Rows | None  # (start, length) of the new module


class Unit(NamedTuple):
    """One module under its new name: what it is (rows of) in the model, and what of the file goes
    into it.

    wrapper + name is the new module name. shape: of the module's weight, rows applied; swap: its
    halves are exchanged there.
    """

    wrapper: str
    name: str
    component: str
    weight: str
    rows: Rows | None
    swap: bool
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def module(self) -> str:
        """The new module name."""
        return self.wrapper + self.name


class Respelling(NamedTuple):
    """A file's new names: one unit for each new module, the plan's `left_out` keys with the reason,
    and what cannot be said.
    """

    writing: Writing
    units: tuple[Unit, ...]
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


def writing_for(dialect: str, family: str) -> Writing:
    """How `dialect` is written for a family ("" where it is not known). Raises Refused for a
    dialect that is only read.
    """
    lines, roles, *_ = _table()
    for name, families, record, names, alpha, group in lines:
        if name == dialect and (families == (ANY,) or family in families):
            return Writing(name, record, names, alpha, *roles[group])
    raise Refused((f"cannot write format {dialect!r}; choose one of: {', '.join(writable())}",))


def respell(plan: Plan, dialect: str, drop: bool = False) -> Respelling:
    """The new names of everything `plan` placed; `refusals` says what stands against it. Raises
    Refused where there is no model.

    drop: keys without a place, and components without a name, are left out; otherwise each is a
    refusal, bookkeeping and second copies aside.
    """
    site = plan.site
    if not site.components:
        raise Refused((UNTOLD,))
    writing = writing_for(dialect, site.family.name if site.family else "")
    record = site.dialects[writing.record]._replace(names=writing.names)
    left_out = {
        key: f"{outcome.category}: {outcome.reason}"
        for key, outcome in plan.outcomes.items()
        if outcome.category != PLACED
    }
    refusals = [] if drop else list(_losses(plan))
    units: list[Unit] = []
    for component in site.components.values():
        adapters = [
            index
            for index, adapter in enumerate(plan.adapters)
            if adapter.target.component == component.name
        ]
        if not adapters:
            continue
        wrapper = wrapper_for(site, component, record)
        if wrapper is None:
            reason = f"{record.title} has no names for {_called(component)}"
            if drop:
                left_out |= {
                    key: reason for index in adapters for key in plan.adapters[index].roles.values()
                }
            else:
                refusals.append(reason)
            continue
        found = _units(plan, component, record, wrapper, adapters, refusals)
        written = _encoder_wrapper(writing, site, component) or wrapper
        units += [unit._replace(wrapper=written) for unit in found]
    return Respelling(writing, tuple(units), left_out, tuple(refusals))


def _encoder_wrapper(writing: Writing, site: Site, component: Component) -> str:
    """What the table says stands before an encoder's names in this dialect, else in its record; ""
    where it says nothing.
    """
    wrappers, family = _table()[2], site.family.name if site.family else ""
    return next(
        (
            wrappers[key]
            for whose in writing[:2]
            if (key := (whose, family, component.name)) in wrappers
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
    """The first words about a file that holds less than its source; "" where it does not."""
    if not lost:
        return ""
    reasons: dict[str, list[str]] = {}
    for key, reason in lost.items():
        reasons.setdefault(reason, []).append(key)
    told = [f"{_some(keys)}: {reason}" for reason, keys in list(reasons.items())[:MOST_TOLD]]
    more = len(reasons) - MOST_TOLD
    told += [f"and {more} more reasons"] * (more > 0)
    return (
        f"{len(lost)} {'key is' if len(lost) == 1 else 'keys are'} left out ({'; '.join(told)}); "
    )


def _some(keys: Sequence[str]) -> str:
    """The first of these names, and how many there are."""
    more = f" and {len(keys) - MOST_TOLD} more" if len(keys) > MOST_TOLD else ""
    return ", ".join(keys[:MOST_TOLD]) + more


def check_base_known(inspection: Inspection, dialect: str, drop: bool, how: str) -> None:
    """Raises Refused where the file holds no LoRA, or does not say for which model it is.

    how: in which way a person gives the model here, as the end of a sentence.
    """
    if inspection.other:
        raise Refused((inspection.other,))
    if not inspection.plan.site.components:
        raise Refused((f"{UNTOLD} {how}",))
    if apart := rivals_apart(inspection, dialect, drop):
        others = ", ".join(apart)
        told = f"ambiguous: for {others} the keys would differ"
        raise Refused((f"{told}; choose the model {how}",))


def rivals_apart(found: Inspection, dialect: str, drop: bool = False) -> tuple[str, ...]:
    """The models a file fits as well as the one that was drawn for it, and for which `dialect`
    would name it otherwise.

    Empty where a model was given, or where all of them agree (FLUX.1 and Chroma share their
    attention's names).
    """
    if not found.drawn or not found.guess.rivals or not found.plan.site.components:
        return ()
    drawn = _essence(found.plan, dialect, drop)
    apart = []
    for rival in found.guess.rivals:
        guess = found.guess._replace(name=rival, rivals=())
        site = draw_site(guess, found.groups.groups, found.plan.shapes, everywhere())
        plan = make_plan(
            found.header.tensors, found.header.metadata, site, found.config_beside, found.groups
        )
        # A model that has no place for some of it is no better guess.
        if (
            len(plan.adapters) >= len(found.plan.adapters)
            and _essence(plan, dialect, drop) != drawn
        ):
            apart.append(rival)
    return tuple(apart)


def _essence(plan: Plan, dialect: str, drop: bool) -> set[tuple]:
    """What tells two respellings apart: each new module with the adapters' modules in it, its rows
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
        for unit in respell(plan, dialect, drop).units
    }


def _called(component: Component) -> str:
    return (
        "the diffusion model"
        if component.name == DENOISER
        else f"the text encoder {component.name}"
    )


def _losses(plan: Plan) -> Iterator[str]:
    """One sentence for each category of keys that would be lost."""
    lost: dict[str, list[str]] = {}
    for key, outcome in plan.outcomes.items():
        if outcome.category not in HARMLESS:
            lost.setdefault(outcome.category, []).append(key)
    for category, keys in lost.items():
        yield (
            f"{len(keys)} {'key has' if len(keys) == 1 else 'keys have'} no place in the model"
            f" ({category}: {_some(keys)})"
        )


def _units(
    plan: Plan,
    component: Component,
    record: Dialect,
    wrapper: str,
    adapters: list[int],
    refusals: list[str],
) -> list[Unit]:
    """The new modules of one component that get something, in the order of the file."""
    wanted = {weight for index in adapters for weight, _, _ in plan.adapters[index].target.pieces}
    known: dict[str, list[Unit]] = {}
    for spelled in spell(plan.site, component, record):
        if spelled.weight in wanted:
            name = spelled.module[len(wrapper) :]
            unit = Unit(
                wrapper,
                name,
                component.name,
                spelled.weight,
                spelled.rows,
                spelled.swap,
                spelled.shape,
                (),
            )
            known.setdefault(spelled.weight, []).append(unit)
    parts: dict[str, list[Part]] = {}
    found: dict[str, Unit] = {}
    for index in adapters:
        adapter = plan.adapters[index]
        for weight, rows, source in adapter.target.pieces:
            units = known.get(weight) or [_native_unit(component, record, wrapper, weight)]
            for unit, part in _meeting(
                component, weight, units, index, adapter, rows, source, refusals
            ):
                found.setdefault(unit.module, unit)
                parts.setdefault(unit.module, []).append(part)
    return [unit._replace(parts=tuple(parts[module])) for module, unit in found.items()]


def _native_unit(component: Component, record: Dialect, wrapper: str, weight: str) -> Unit:
    """A vector (a norm), which only its native name names."""
    local = weight.removeprefix(component.prefix)
    name = local.removesuffix(".weight")
    name = name.replace(".", "_") if record.form == "flat" else name
    return Unit(wrapper, name, component.name, weight, None, False, component.weights[weight], ())


def _meeting(
    component: Component,
    weight: str,
    units: list[Unit],
    index: int,
    adapter: Adapter,
    rows,
    source,
    refusals,
):
    """(unit, part) for every unit that these rows of the weight reach."""
    shape = component.weights[weight]
    total = shape[0] if shape else 0
    if rows is None and source is None and len(units) == 1 and units[0].rows is None:
        yield units[0], Part(index, None, None)
        return
    if not total:
        refusals.append(
            f"{adapter.module}: the size of {weight} is not known, so it cannot be fused or split;"
            " connect the model"
        )
        return
    start, length = rows or (0, total)
    offset = source[0] if source else 0
    whole = sum(
        piece[1][1] if piece[1] else component.weights[piece[0]][0]
        for piece in adapter.target.pieces
    )
    reached = 0
    for unit in units:
        unit_start, unit_length = unit.rows or (0, total)
        low, high = max(start, unit_start), min(start + length, unit_start + unit_length)
        if low < high:
            reached += high - low
            taken = (offset + low - start, high - low)
            into = (low - unit_start, high - low)
            yield (
                unit,
                Part(
                    index,
                    None if taken == (0, whole) else taken,
                    None if into == (0, unit_length) else into,
                ),
            )
    if reached < length:
        refusals.append(
            f"{adapter.module}: {component.name} has rows of {weight} that this dialect does not"
            " name"
        )


@cache
def _table(
    path: Path = RESPELL_TABLE,
) -> tuple[
    list[tuple],
    Mapping[str, Roles],
    Mapping[tuple[str, str, str], str],
    frozenset[str],
    Mapping[str, str],
]:
    """The lines of respell.table, its groups of roles (spellings, and what stands beside), (record
    or dialect, family, slot) -> wrapper, the dialects that are folders, and dialect -> what it
    makes of several ranks. Raises RespellError.
    """
    lines: list[tuple] = []
    encoders: dict[tuple[str, str, str], str] = {}
    roles: dict[str, Roles] = {}
    folders: set[str] = set()
    several_ranks: dict[str, str] = {}
    for number, line in lines_of(read_text(path, RespellError)):
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
            remedy = (
                "write dialect NAME FAMILIES RECORD NAMES ALPHA ROLES, roles GROUP ROLE..., encoder"
                " WHOSE FAMILIES SLOT WRAPPER, folder NAME, or several_ranks NAME SENTENCE"
            )
            raise RespellError(f"{path}, line {number}: {remedy}")
    unknown = {line[5] for line in lines} - roles.keys()
    if unknown:
        raise RespellError(f"{path}: no line says the roles of {', '.join(sorted(unknown))}")
    return lines, roles, encoders, frozenset(folders), several_ranks
