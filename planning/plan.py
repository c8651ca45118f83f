"""The one answer to 'what is in this file, and where does each key go': made from names and shapes,
executed by others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from math import isclose, prod
from os.path import commonprefix
from typing import Any, NamedTuple

from ..adapters.registry import asked_metadata, decomposition_of, named, variant
from ..adapters.setting import shown
from ..files.header import TensorInfo
from ..key_maps.convention import USUAL, Conventions, Meaning
from ..key_maps.dialect import DENOISER, ENCODER
from ..key_maps.evidence import Evidence
from ..key_maps.table import flatten, generalise, unify
from ..messages import joined, message, text_of
from .assign import (
    Assignment,
    Kind,
    Misfit,
    Missing,
    ModuleShape,
    assign,
    fits,
    missing_roles,
)
from .copies import Same, fused_twins
from .disagreement import disagreement
from .groups import Group, Groups, group_keys, network_alpha
from .keys import role_spellings
from .misplaced_files import PLAIN_ENDINGS
from .resolve import LONGEST_MODULE, Location, locate, network_named, peeled
from .scale import (
    FROM_TENSORS,
    NUMBERLESS,
    Settings,
    Strength,
    cautions_of,
    read_settings,
    scale_of,
    settings_for,
)
from .siblings import siblings
from .target_model import Target, TargetModel

PLACED = "placed"
BOOKKEEPING = "bookkeeping"
UNKNOWN_MODULE = "unknown module"
UNKNOWN_ROLE = "unknown role"
SHAPE_CONFLICT = "shape conflict"
DUPLICATE_TARGET = "duplicate target"
INCOMPLETE = "incomplete adapter"
UNSUPPORTED = "unsupported adapter"
NOT_WIRED = "not wired"
# Nothing of a file is lost whose keys are all of these.
NO_FAULT = frozenset({PLACED, BOOKKEEPING, NOT_WIRED})
PAIR = frozenset({"down", "up"})
PLAIN_PAIR = "lora"  # the kind of most pairs, which fit their module whatever their rank

# The keys of a file's metadata that a plan depends on.
PLAN_METADATA = ("lora_adapter_metadata", *asked_metadata())  # besides what conventions ask for


class Outcome(NamedTuple):
    """What became of one key; `adapter` is the index of the adapter in
    Plan.adapters that uses it.
    """

    category: str
    reason: str
    adapter: int | None = None


class Adapter(NamedTuple):
    """All tensors of one adapter, where they go, and how strong they are."""

    kind: str
    module: str  # as it stands in the file
    location: Location
    adapter_name: str
    roles: Mapping[str, str]  # role -> key
    spellings: Sequence[str]
    target: Target
    strength: Strength
    rank: int | None
    parameter: str
    options: tuple[tuple[str, object], ...] = ()
    padded_shape: tuple[int, ...] | None = None  # what the weight grows to under it
    columns: int | None = None  # the weight's first inputs, which are all that it knows of

    @property
    def resized(self) -> bool:
        """Whether the weight has another size than the module it was trained on."""
        return self.padded_shape is not None or self.columns is not None


class Plan(NamedTuple):
    """The answer for one file and one target model. Every key of the file is in `outcomes`."""

    adapters: tuple[Adapter, ...]
    outcomes: Mapping[str, Outcome]
    shapes: Mapping[str, tuple[int, ...] | None]
    metadata: Mapping[str, str]
    target_model: TargetModel
    inferred_prefix: str
    # whether values of tensors decided anything: files alike in names and shapes may mean something
    # else
    by_values: bool
    # whether the ranks of pairs decided anything but what the ranks are
    by_ranks: bool
    # sentences: what makes it doubtful that the file comes out as trained
    cautions: tuple[str, ...]


class _Match(NamedTuple):
    """An adapter among the roles of a group: kind, roles, their shapes, the module they were made
    for, or what is wrong and the category that makes it.
    """

    kind: Kind
    roles: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...] | None]
    module: ModuleShape
    rank: int | None
    fault: str
    category: str = SHAPE_CONFLICT


class _GroupAdapters(NamedTuple):
    """The adapters in a group, and the roles that are in none."""

    adapters: tuple[_Match, ...]
    left: tuple[str, ...]
    scaled: bool  # whether any is scaled by a rank
    replaces: bool  # whether all take a weight's place


def make_plan(
    tensors: Mapping[str, TensorInfo | tuple[int, ...] | None],
    metadata: Mapping[str, str],
    target_model: TargetModel,
    *,
    config_beside: Mapping[str, Any] | None = None,
    groups: Groups | None = None,
    number: Callable[[str], float | None] | None = None,
    same: Same | None = None,
) -> Plan:
    """Plan how a file with these tensors (name -> TensorInfo, shape, or None where unknown) goes
    onto `target_model`.

    `metadata` is the header's, `config_beside` the content of PEFT's adapter_config.json, `groups`
    what group_keys gives for the tensors where it is known already, `number` gives the value of a
    tensor of one element by its name, or None where it has none that can be computed with, `same`
    whether adapters make one change (copies.py). Never raises for what a file holds.
    """
    planner = _Planner(
        tensors,
        metadata,
        target_model,
        config_beside=config_beside,
        number=number or _no_number,
        same=same,
    )
    planner.run(groups or group_keys(tensors, (*metadata, *(config_beside or ()))))
    # A file with an alpha for each adapter asks no settings for its strength.
    asked = not planner.adapters or any(
        "alpha" not in adapter.roles for adapter in planner.adapters
    )
    cautions = (
        *planner.cautions(),
        *(disagreement(metadata, config_beside) if asked or config_beside else ()),
    )
    return Plan(
        tuple(planner.adapters),
        planner.outcomes,
        planner.shapes,
        metadata,
        target_model,
        planner.inferred,
        planner.by_values,
        planner.by_ranks,
        cautions,
    )


def without_adapters(plan: Plan, reasons: Mapping[int, str]) -> Plan:
    """The plan without the adapters at these places, whose keys have no effect, for the reason
    given.
    """
    left = tuple(adapter for place, adapter in enumerate(plan.adapters) if place not in reasons)
    dropped = {place: Outcome(UNSUPPORTED, reason) for place, reason in reasons.items()}
    return plan._replace(
        adapters=left, outcomes={**plan.outcomes, **_without(plan.adapters, plan.outcomes, dropped)}
    )


def _without(
    adapters: Sequence[Adapter], before: Mapping[str, Outcome], dropped: Mapping[int, Outcome]
) -> dict[str, Outcome]:
    """What becomes of the adapters' keys when those at the places in `dropped` are left out.

    A key that several adapters share, such as the alpha of a whole file, stays with those that are
    left.
    """
    after = {
        key: outcome for place, outcome in dropped.items() for key in adapters[place].roles.values()
    }
    left = (adapter for place, adapter in enumerate(adapters) if place not in dropped)
    for place, adapter in enumerate(left):
        after |= {
            key: before[key]._replace(category=PLACED, adapter=place)
            for key in adapter.roles.values()
        }
    return after


class _Obstacle(Exception):
    """Why an adapter that has a place is not put there."""

    def __init__(self, category: str, reason: str):
        super().__init__(reason)
        self.category, self.reason = category, reason


class _Planner:
    """Places the groups of one file one by one, and collects `outcomes` (key -> what becomes of it)
    and `adapters`.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo | tuple[int, ...] | None],
        metadata: Mapping[str, str],
        target_model: TargetModel,
        *,
        config_beside: Mapping[str, Any] | None,
        number: Callable[[str], float | None],
        same: Same | None,
    ):
        self.target_model, self.metadata, self.tensors, self.number, self.same = (
            target_model,
            metadata,
            tensors,
            number,
            same,
        )
        self.shapes = {
            key: info.shape if isinstance(info, TensorInfo) else info
            for key, info in tensors.items()
        }
        self.settings = read_settings(metadata, config_beside)
        self.outcomes: dict[str, Outcome] = {}
        self.adapters: list[Adapter] = []
        self.recent: list[tuple[str, tuple[str, ...] | None]] = []
        self.inferred = ""
        self.readings: dict[object, _GroupAdapters] = {}
        self.settings_of: dict[str, Settings | None] = {}
        self.network_alphas: dict[str, str] = {}
        self.conventions: dict[int, Conventions] = {}
        self.doubts: Counter[str] = Counter()
        self.by_values = self.surely_halves = False
        self.by_ranks = bool(self.settings)
        self.halves: list[tuple[list[str], Kind]] = []
        self.groups: tuple[Group, ...] = ()

    def run(self, groups: Groups) -> None:
        unmatched = []
        self.groups = groups.groups
        self.siblings = self._siblings(groups)
        self.roles = frozenset().union(*(group.keys for group in groups.groups))
        for group in self._take(groups):
            location = locate(self.target_model, group.module, self.recent)
            if location.candidates:
                self._place(group, location)
            elif self._unwired(group.module):
                self._unmatched(group, location)
            else:
                unmatched.append((group, location))
        if not self._infer_prefix(unmatched):
            for group, location in unmatched:
                self._unmatched(group, location)
        for network, key in self.network_alphas.items():
            self.outcomes.setdefault(
                key,
                Outcome(
                    BOOKKEEPING,
                    message("planning.alpha_of_network", network=network)
                    if network
                    else message("planning.alpha_of_file"),
                ),
            )
        self._drop_copies()
        self._refuse_halves()
        self._refuse_model()
        self.outcomes = {key: self.outcomes[key] for key in self.shapes}

    def _take(self, groups: Groups) -> tuple[Group, ...]:
        self._set(groups.unread, UNKNOWN_ROLE, message("planning.unknown_ending"))
        for key, note in groups.notes.items():
            self.outcomes[key] = Outcome(BOOKKEEPING, note)
        for key, known in groups.refused.items():
            self.outcomes[key] = Outcome(UNSUPPORTED, known.sentence)
        for key, other in groups.repeated.items():
            self.outcomes[key] = Outcome(
                DUPLICATE_TARGET, message("planning.role_twice", other=other)
            )
        self.network_alphas = groups.network_alphas
        return groups.groups

    def _drop_copies(self) -> None:
        """Leave out fused adapters whose change stands a second time in split ones; where the
        change is another, both count.
        """
        twins = fused_twins(self.adapters, self.same is None)
        split = {index: [self.adapters[part] for part in parts] for index, parts in twins.items()}
        self.by_values |= self.same is not None and bool(twins)
        copies = [
            index
            for index in twins
            if self.same is None or self.same(self.adapters[index], split[index])
        ]
        if len(copies) < len(twins):
            self.doubts[message(DIFFERENT_TWINS)] += len(twins) - len(copies)
        self._drop({index: _outcome_of_copy(self.adapters[index]) for index in copies})

    def _drop(self, dropped: Mapping[int, Outcome]) -> None:
        """Leave out the adapters at these places; what becomes of their keys."""
        if not dropped:
            return
        self.outcomes |= _without(self.adapters, self.outcomes, dropped)
        self.adapters = [
            adapter for place, adapter in enumerate(self.adapters) if place not in dropped
        ]

    def _refuse_model(self) -> None:
        """Whole weights of most of a network are a model, which would take the place of the one
        that is loaded.
        """
        if not all(PLAIN_ENDINGS.issuperset(adapter.spellings) for adapter in self.adapters):
            return
        # By the model's own modules: what is split in the file is one of them.
        own = {
            (adapter.target.network, piece[0], adapter.parameter)
            for adapter in self.adapters
            for piece in adapter.target.slices
        }
        placed = Counter(network for network, _, _ in own)
        if any(
            count > MODEL_SHARE * len(self.target_model.networks[name].modules)
            for name, count in placed.items()
        ):
            for adapter in self.adapters:
                self._set(
                    adapter.roles.values(),
                    UNSUPPORTED,
                    message("planning.whole_model"),
                )
            self.adapters = []

    def _refuse_halves(self) -> None:
        """What may be a whole adapter or half of one is whole only where all of its kind in the
        file are.
        """
        if not self.halves:
            return
        for keys, kind in self.halves:
            self._set(keys, INCOMPLETE, _half_of(kind, self.surely_halves))
        halves = {
            index: Outcome(INCOMPLETE, _half_of(named(adapter.kind), self.surely_halves))
            for index, adapter in enumerate(self.adapters)
            if named(adapter.kind).never_beside
        }
        self._drop(halves)

    def _siblings(self, groups: Groups) -> dict[str, str]:
        """Module -> a tensor beside its adapter that no known adapter has there. Law 3: half an
        adapter is never applied.
        """
        leaves, odd = [], [*groups.unread, *groups.refused]
        for group in groups.groups:
            reading = self._read(group)
            if reading.scaled:
                leaves.append(group.module)
            elif reading.replaces:
                odd.append(next(iter(group.keys.values())))
        return siblings(leaves, odd)

    def _place(self, group: Group, location: Location) -> None:
        reading = self._read(group)
        sibling = self.siblings.get(group.module)
        if sibling is not None:
            reason = message("planning.unknown_sibling", tensor=sibling)
            self._set(group.keys.values(), UNSUPPORTED, reason)
            return
        for match in reading.adapters:
            self._place_adapter(group, location, match)
        for role in reading.left:
            lacking = missing_roles({role: None})
            self._set(
                [group.keys[role]], INCOMPLETE, message("planning.part_missing", part=lacking)
            )

    def _read(self, group: Group) -> _GroupAdapters:
        """The adapters in a group; groups with the same roles and shapes (most of a file) share one
        reading.
        """
        shapes = tuple([self.shapes[key] for key in group.keys.values()])
        settings = self._settings(group.module) if self.settings else None
        key = (tuple(group.keys), shapes, id(settings))
        reading = self.readings.get(key)
        if reading is None:
            assignments, left = assign(group.keys)
            by_role = dict(zip(group.keys, shapes, strict=True))
            adapters = tuple(self._match(one, by_role, settings) for one in assignments)
            reading = self.readings[key] = _GroupAdapters(
                adapters,
                left,
                any(one.kind.scaled for one in adapters),
                all(one.kind.replaces for one in adapters),
            )
        return reading

    def _match(
        self,
        assignment: Assignment,
        by_role: Mapping[str, tuple[int, ...] | None],
        settings: Settings | None,
    ) -> _Match:
        kind, names = assignment
        names += tuple(role for role in kind.borrows if role in by_role)
        shapes = {role: by_role[role] for role in names}
        kind = variant(kind, shapes, self.metadata, settings.config if settings else {})
        rank = kind.rank(shapes)
        self.by_ranks |= kind.name != PLAIN_PAIR and not PAIR.isdisjoint(shapes)
        known = {role: shape for role, shape in shapes.items() if shape is not None}
        if len(known) < len(shapes):
            return _Match(kind, names, shapes, ModuleShape(None, None), rank, "")
        category = SHAPE_CONFLICT
        try:
            return _Match(kind, names, shapes, kind.shape(known), rank, "")
        except Missing as missing:
            fault, category = text_of(missing), INCOMPLETE
        except Misfit as misfit:
            fault = message("planning.tensors_do_not_fit", fault=misfit)
        except (IndexError, TypeError):
            fault = message("planning.too_few_dimensions", shapes=_listed(shapes))
        self.by_ranks = True
        return _Match(kind, names, shapes, ModuleShape(None, None), rank, fault, category)

    def _place_adapter(self, group: Group, location: Location, match: _Match) -> None:
        """Place one adapter of a group, or say of its keys why it has no place."""
        kind, keys = match.kind, [group.keys[role] for role in match.roles]
        if kind.refusal:
            self._set(keys, UNSUPPORTED, kind.refusal)
            return
        if self._is_half(kind, match, location):
            self.halves.append((keys, kind))
            return
        if match.fault:
            self._set(keys, match.category, match.fault)
            return
        roles = dict(zip(match.roles, keys, strict=True))
        try:
            adapter = self._adapter(group, location, match, roles)
        except _Obstacle as obstacle:
            # A bias borrows the alpha and the rank of factors that may be placed themselves.
            keys = [key for key in roles.values() if key not in self.outcomes]
            self._set(keys, obstacle.category, obstacle.reason)
            return
        outcome = Outcome(PLACED, location.rule, len(self.adapters))
        self.adapters.append(adapter)
        self.outcomes.update(dict.fromkeys(roles.values(), outcome))

    def _adapter(
        self, group: Group, location: Location, match: _Match, roles: dict[str, str]
    ) -> Adapter:
        """The adapter at its target. Adds the network's alpha to `roles` where it counts; raises
        _Obstacle.
        """
        target = self._choose(location.candidates, match)
        if target is None:
            raise self._conflict(location.candidates[0], match)
        self._find_alpha(match, location, roles)
        settings = self._settings(location.prefix) if self.settings else None
        meaning = self._meaning(group, match, roles, target, settings, path=location.name)
        kind = named(meaning.kind) if meaning.kind else match.kind
        whole = [piece[2] for piece in target.slices] == [None]
        obstacle = meaning.refusal or ("" if whole else _why_not_partly(kind, match.shapes))
        if obstacle:
            raise _Obstacle(UNSUPPORTED, obstacle)
        strength = self._strength(
            kind.name, roles, location.name, rank=match.rank, settings=settings, meaning=meaning
        )
        return Adapter(
            kind.name,
            group.module,
            location,
            group.adapter_name,
            roles,
            group.spellings,
            target,
            strength,
            match.rank,
            kind.parameter,
            _all_options(kind, match, target, meaning, settings=settings, name=location.name),
            *_other_size(target, match),
        )

    def _find_alpha(self, match: _Match, location: Location, roles: dict[str, str]) -> None:
        """Add the network's alpha where the adapter has none; raises _Obstacle for one that is no
        number.
        """
        shared = self._shared_alpha(match, location, roles)
        if shared is not None:
            roles["alpha"] = shared
        fault = self._alpha_fault(match.kind.name, roles) if "alpha" in roles else ""
        if fault:
            raise _Obstacle(UNSUPPORTED, fault)

    def _shared_alpha(
        self, match: _Match, location: Location, roles: Mapping[str, str]
    ) -> str | None:
        """The key of the network's alpha, where the adapter has none of its own."""
        wanted = self.network_alphas and "alpha" not in roles and match.rank
        return network_alpha(self.network_alphas, location.prefix) if wanted else None

    def _is_half(self, kind: Kind, match: _Match, location: Location) -> bool:
        if not kind.never_beside:
            return False
        whole: bool | None = False
        if kind.never_beside.isdisjoint(self.roles):
            target = self._choose(location.candidates, match)
            whole = target is not None and self._is_whole(match.module, target)
        self.surely_halves |= whole is False
        return not whole

    def _is_whole(self, module: ModuleShape, target: Target) -> bool | None:
        """Whether what has the shape of a module is the target's whole weight; None where it cannot
        be told.

        A drawn model may not know a size, and then fits whatever the file has: what tells there is
        the family's row for the weight ([4, 640] is no `c c`), and how many outputs such matrices
        have in the whole file. Where all have the same number, smaller than any of their inputs, it
        looks like a rank.
        """
        if target.out and 0 not in target.inner:
            return True
        family = self.target_model.networks[target.network].family
        shape = (module.out or 0, *(module.inner or ()))
        rows = family.find(flatten(target.module)) if family else ()
        shapes = [match.row.shape for match in rows]
        if shapes and all(one and unify(one, shape) is None for one in shapes):
            return False
        return None if self.lone_factors_share_a_rank else True

    @cached_property
    def lone_factors_share_a_rank(self) -> bool:
        """Whether all lone factors of the file have one number of rows, below all their inputs."""
        modules = [
            match.module
            for group in self.groups
            for match in self._read(group).adapters
            if match.kind.never_beside and match.module.inner
        ]
        return len({module.out for module in modules}) == 1 and all(
            module.out is not None and module.inner is not None and module.out < prod(module.inner)
            for module in modules
        )

    def cautions(self) -> tuple[str, ...]:
        """What the file's settings say that was not used."""
        doubts = (
            message("planning.modules_of", count=count, what=doubt)
            for doubt, count in self.doubts.most_common()
        )
        return (*cautions_of(self.settings_of.values(), self.metadata), *doubts)

    def _alpha_fault(self, kind: str, roles: Mapping[str, str]) -> str:
        """Why no strength can be made of an alpha tensor, as far as the header tells it: any would
        be a guess.
        """
        key = roles["alpha"]
        shape, info = self.shapes[key], self.tensors[key]
        dtype = info.dtype if isinstance(info, TensorInfo) and info.dtype in NUMBERLESS else ""
        wrong = list(shape) if shape is not None and prod(shape) != 1 else None
        if not (dtype or wrong is not None) or not named(kind).alpha_counts(roles):
            return ""
        if dtype:
            return message("planning.alpha_type", key=key, type=dtype)
        return message("planning.alpha_shape", key=key, shape=wrong)

    def _settings(self, prefix: str) -> Settings | None:
        if prefix not in self.settings_of:
            self.settings_of[prefix] = settings_for(self.settings, prefix)
        return self.settings_of[prefix]

    def _meaning(
        self,
        group: Group,
        match: _Match,
        roles: Mapping[str, str],
        target: Target,
        settings: Settings | None,
        *,
        path: str,
    ) -> Meaning:
        """What the file's writer means by the adapter where that is not what is usual; its doubts
        are counted.
        """
        config = settings.config if settings else {}
        family = self.target_model.family.name if self.target_model.family else ""
        known = self.conventions.get(id(settings))
        if known is None:
            known = self.conventions[id(settings)] = Conventions(
                self.metadata, config, family=family
            )
        possible = known.of(match.kind.name, tuple(roles))
        if not any(one.may_hold(group.module) for one in possible):
            return USUAL
        self.by_ranks = True
        shapes = {role: self.shapes[key] for role, key in roles.items()}
        evidence = Evidence(
            match.kind.name,
            group.module,
            shapes,
            match.rank,
            self.metadata,
            config,
            lambda role: self._value(roles[role]),
            (target.out, *target.inner),
            group.adapter_name,
            family,
            path,
            target.parts,
        )
        meaning = known.meaning(evidence)
        self.doubts.update(meaning.cautions)
        return meaning

    def _value(self, key: str) -> float | None:
        self.by_values = True
        return self.number(key)

    def _usual_scale(self, kind: str, roles: Mapping[str, str], rank: int | None) -> float | None:
        """What the alpha tensor says to whoever knows no more; None where there is none."""
        if "alpha" not in roles:
            return None
        if not named(kind).alpha_counts(roles):
            return 1.0
        alpha = self._value(roles["alpha"])
        return alpha / rank if alpha and rank else None

    def _strength(
        self,
        kind: str,
        roles: Mapping[str, str],
        name: str,
        *,
        rank: int | None,
        settings: Settings | None,
        meaning: Meaning,
    ) -> Strength:
        if meaning.scale is not None:
            usual = self._usual_scale(kind, roles, rank)
            same = usual is not None and isclose(meaning.scale, usual, rel_tol=1e-6)
            return Strength(None if same else meaning.scale, meaning.title)
        if "alpha" in roles:
            times = meaning.times
            return BY_TENSORS if times is None else Strength(None, meaning.title, times)
        return scale_of(settings, name, rank, kind)

    def _choose(self, candidates: Sequence[Target], match: _Match) -> Target | None:
        module = match.module
        for candidate in candidates:
            if match.kind.parameter == "bias":
                biases = [
                    self.target_model.networks[candidate.network].bias_of(piece[0])
                    for piece in candidate.slices
                ]
                if None not in biases and (
                    not candidate.out
                    or module.out in (None, candidate.out)
                    or _widens_input(candidate, match)
                ):
                    return candidate
            elif (
                _fits(candidate, match)
                or _widens_input(candidate, match)
                or _narrow(candidate, module)
            ):
                return candidate
        return None

    def _conflict(self, candidate: Target, match: _Match) -> _Obstacle:
        """Why the target that is meant does not fit."""
        module = match.module
        lacking = match.kind.part_missing(module, candidate.out, candidate.inner)
        if lacking:
            return _Obstacle(INCOMPLETE, lacking)
        if match.kind.parameter == "bias":
            return _Obstacle(SHAPE_CONFLICT, _bias_conflict(candidate, module))
        made = [module.out, *(module.inner if module.inner is not None else ("?",))]
        size = [candidate.out, *candidate.inner]
        reason = message(
            "planning.shape_conflict", trained=made, module=candidate.module, size=size
        )
        return _Obstacle(SHAPE_CONFLICT, reason)

    def _set(self, keys: Iterable[str], category: str, reason: str) -> None:
        for key in keys:
            self.outcomes[key] = Outcome(category, reason)

    def _unmatched(self, group: Group, location: Location) -> None:
        for match in self._read(group).adapters:
            if match.kind.refusal:
                self._set(
                    [group.keys[role] for role in match.roles], UNSUPPORTED, match.kind.refusal
                )
        open_keys = [key for key in group.keys.values() if key not in self.outcomes]
        category, reason = self._why(group.module, location)
        self._set(open_keys, category, reason)

    def _why(self, module: str, location: Location) -> tuple[str, str]:
        unwired = self._unwired(module)
        if unwired:
            return NOT_WIRED, unwired
        denoiser = self.target_model.networks.get(DENOISER)
        counterpart = denoiser.counterpart(location.name) if denoiser else None
        if counterpart:
            return UNKNOWN_MODULE, message("planning.not_in_model", name=counterpart)
        return UNKNOWN_MODULE, message("planning.no_such_module", name=location.name)

    def _unwired(self, module: str) -> str:
        """Why a module cannot be looked for: the network its prefix names is not here. Empty where
        it is.
        """
        network = network_named(self.target_model, module) or self._network_elsewhere(module)
        if network == ENCODER and not self.target_model.slots:
            return message("planning.no_clip")
        if network == DENOISER and DENOISER not in self.target_model.networks:
            return message("planning.no_model")
        return ""

    def _network_elsewhere(self, module: str) -> str | None:
        """ENCODER where a name without a prefix that tells is not the diffusion model's."""
        names = [module, *(rest for _, rest in peeled(self.target_model, module))]
        return ENCODER if any(map(self.target_model.is_elsewhere, names)) else None

    def _infer_prefix(self, unmatched: list[tuple[Group, Location]]) -> bool:
        """Law 3's one guess: an unknown prefix before every unmatched module, all tails resolving,
        all shapes agreeing. A name that some model has as it stands has no unknown prefix: the
        `single_transformer_blocks` of one are not the `transformer_blocks` of another.
        """
        groups = [group for group, _ in unmatched]
        if len(unmatched) < MIN_EVIDENCE or any(map(self._is_known_name, groups)):
            return False
        common = commonprefix([group.module for group in groups])  # noqa: RUF071 - by characters
        for match in re.finditer(r"[._]", common[:MAX_PREFIX]):
            prefix = common[: match.end()]
            locations = self._all_behind(prefix, groups)
            if locations:
                self.inferred = prefix
                for group, location in zip(groups, locations, strict=True):
                    self._place(group, location)
                return True
        return False

    def _is_known_name(self, group: Group) -> bool:
        """Whether the table of any model has a module's name, behind prefixes that are known."""
        if len(group.module) > LONGEST_MODULE:
            return False
        names = [group.module, *(rest for _, rest in peeled(self.target_model, group.module))]
        return any(generalise(flatten(name))[0] in self.target_model.knowing for name in names)

    def _all_behind(self, prefix: str, groups: list[Group]) -> list[Location]:
        locations = []
        for group in groups:
            location = self._behind(prefix, group)
            if location is None:
                return []
            locations.append(location)
        return locations

    def _behind(self, prefix: str, group: Group) -> Location | None:
        location = locate(self.target_model, group.module[len(prefix) :], [])
        reading = self._read(group)
        if reading.left:
            return None
        for match in reading.adapters:
            if match.fault or self._choose(location.candidates, match) is None:
                return None
        return location._replace(
            prefix=prefix + location.prefix,
            rule=message("planning.inferred_prefix", prefix=prefix),
        )


def _no_number(key: str) -> None:
    return None


BY_TENSORS = Strength(None, FROM_TENSORS)
# Doubts about modules, as ids.
DIFFERENT_TWINS = "planning.different_twins"
MODEL_SHARE = 0.5  # of a network's modules: a file with whole weights for more of them is no LoRA
MIN_EVIDENCE = 2  # modules behind an unknown prefix
MAX_PREFIX = 120  # characters of a name among which an unknown prefix is looked for


def _fits(candidate: Target, match: _Match) -> bool:
    flat = match.module.flat or (match.kind.flattens and len(match.module.inner or ()) == 1)
    return fits(match.module._replace(flat=flat), candidate.out, candidate.inner)


def _widens_input(candidate: Target, match: _Match) -> bool:
    """Whether the adapter makes the weight larger: as its file says itself, or its input where the
    family's table allows it.
    """
    inner = candidate.inner if match.kind.parameter != "bias" else ()
    if match.module.out is None:
        return False
    ours, theirs = (match.module.out, *(match.module.inner or ())), (candidate.out, *inner)
    if len(ours) != len(theirs) or ours == theirs or 0 in theirs:
        return False
    if any(own < other for own, other in zip(ours, theirs, strict=True)):
        return False
    if not match.kind.grows_by.isdisjoint(match.roles):
        return [piece[1] for piece in candidate.slices] == [None]
    return (
        candidate.widens_input is not None
        and ours[0] == theirs[0]
        and ours[1] not in candidate.widens_input.fixed
    )


def _other_size(target: Target, match: _Match) -> tuple[tuple[int, ...] | None, int | None]:
    """What the weight grows to under an adapter, and of how many of its inputs the adapter knows;
    None where it is the weight's own size.
    """
    module, inner = match.module, match.module.inner or ()
    grows = module.out is not None and _widens_input(target, match)
    grown = (module.out, *inner) if module.out is not None and grows else None
    return grown, inner[0] if _narrow(target, module) else None


def _narrow(candidate: Target, module: ModuleShape) -> bool:
    """Whether the adapter is of a model with fewer inputs, which are the first ones of this one."""
    inner = module.inner or ()
    if not candidate.widens_input or module.out != candidate.out or len(inner) != 1:
        return False
    return (*inner, *candidate.inner) in candidate.widens_input.begins


def _bias_conflict(candidate: Target, module: ModuleShape) -> str:
    if module.out in (None, candidate.out):
        return message("planning.no_bias", module=candidate.module)
    return message(
        "planning.bias_shape", trained=module.out, module=candidate.module, size=candidate.out
    )


def _why_not_partly(kind: Kind, shapes: Mapping[str, tuple[int, ...] | None]) -> str:
    """Why this adapter cannot be applied to a target that is only part of the module it was trained
    on.
    """
    if not kind.linear:
        return message("planning.changes_fused", kind=kind.name)
    decomposition = decomposition_of(shapes)
    if decomposition is None:
        return ""
    for role in decomposition.roles:
        shape = shapes.get(role)
        if shape is not None and not decomposition.per_output(role, shape):
            return message("planning.magnitudes_per_input", title=decomposition.title)
    return ""


def _outcome_of_copy(adapter: Adapter) -> Outcome:
    """What becomes of the keys of a fused adapter that split ones repeat."""
    return Outcome(DUPLICATE_TARGET, message("planning.fused_copy", module=adapter.target.module))


def _half_of(kind: Kind, surely: bool) -> str:
    named_so = role_spellings().named.items()
    words = [word for (word, _), role in named_so if role in kind.never_beside]
    part = joined(dict.fromkeys(words), "or")
    if surely:
        return message("planning.part_missing", part=part)
    return message("planning.part_missing_or_whole", part=part, kind=kind.title)


def _all_options(
    kind: Kind,
    match: _Match,
    target: Target,
    meaning: Meaning,
    *,
    settings: Settings | None,
    name: str,
) -> tuple[tuple[str, object], ...]:
    """What the settings and the writer's meaning ask of the kind; raises _Obstacle where a value
    that it needs is not there.
    """
    layer = (target.out, *target.inner)
    options = _options(kind, settings, name, match.shapes, layer) if settings else ()
    lacking = kind.lacks(dict(options + meaning.options), match.shapes)
    if lacking:
        unknown = _unknown_value(kind, settings, dict(options)) if settings else ""
        raise _Obstacle(UNSUPPORTED, unknown or lacking)
    return options + meaning.options


def _options(
    kind: Kind,
    settings: Settings,
    module: str,
    shapes: Mapping[str, tuple[int, ...] | None],
    layer: tuple[int, ...],
) -> tuple[tuple[str, object], ...]:
    """Those of the kind's settings that count for an adapter and are not what holds anyway."""
    stated = (
        one
        for one in kind.settings
        if settings.values.states(one.name) and kind.asks(one.name, shapes, layer)
    )
    values = ((setting, settings.values.of(setting.name, module)) for setting in stated)
    return tuple((setting.name, value) for setting, value in values if value != setting.default)


def _unknown_value(kind: Kind, settings: Settings, options: Mapping[str, object]) -> str:
    """Why a needed setting that is there is of no use; "" where none is there."""
    stated = (
        one
        for one in kind.settings
        if one.needed and one.name not in options and settings.values.states(one.name)
    )
    for one in stated:
        return message(
            "planning.setting_not_computed",
            kind=kind.title,
            name=one.name,
            value=shown(settings.config[one.name]),
            lawful=one.lawful,
        )
    return ""


def _listed(shapes: Mapping[str, tuple[int, ...] | None]) -> str:
    return ", ".join(f"{role} {list(shape or ())}" for role, shape in shapes.items())
