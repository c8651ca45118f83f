"""Tells people and programs what a plan found: verdict, family, trainer, strength, and the fate of
every key.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from ..adapters.kind import Decomposition
from ..adapters.registry import decompositions, magnitudes, named
from ..adapters.spec import NUMBERS
from ..identify.claims import Stage, contradiction, may_contradict, stage_of
from ..identify.lora_family import NUMBER, FamilyMatch
from ..identify.stock_loader import StockKeys
from ..identify.trainer import UNTOLD, Writer, guess_family, model_title, name_trainer, nearest_name
from ..key_maps.dialect import DENOISER
from ..messages import ENGLISH, Message, Speaker, as_sentence, columns, joined, message, translate
from ..planning.groups import group_keys
from ..planning.keys import parse_key
from ..planning.misplaced_files import other_file
from ..planning.plan import (
    BOOKKEEPING,
    DUPLICATE_TARGET,
    INCOMPLETE,
    NO_FAULT,
    NOT_WIRED,
    PLACED,
    SHAPE_CONFLICT,
    UNKNOWN_MODULE,
    UNKNOWN_ROLE,
    UNSUPPORTED,
    Adapter,
    Outcome,
    Plan,
)
from ..planning.scale import in_words
from .base_model import Fitting, fitting
from .coverage import TrainedLayers, trained_layers, untrained_kinds, untrained_words
from .judgement import BAD, judged

SCHEMA = 1  # of the JSON that reports are; it rises when a key changes its meaning or goes
MAX_PATTERNS = 12
MAX_SCALES = 4
MAX_UNTRAINED = 8
MAX_IF_MISMATCHED = 3
MAX_CORRECTIONS = 2


# What a user can do about keys of a category, the most telling category first.
REMEDIES = {
    UNKNOWN_MODULE: "report.other_model",
    SHAPE_CONFLICT: "report.other_size",
    INCOMPLETE: "report.download_again",
    UNKNOWN_ROLE: "report.report_format",
    UNSUPPORTED: "report.see_reasons",
}
CATEGORIES = {
    PLACED: "categories.placed",
    BOOKKEEPING: "categories.bookkeeping",
    UNKNOWN_MODULE: "categories.unknown_module",
    UNKNOWN_ROLE: "categories.unknown_role",
    SHAPE_CONFLICT: "categories.shape_conflict",
    DUPLICATE_TARGET: "categories.duplicate_target",
    INCOMPLETE: "categories.incomplete_adapter",
    UNSUPPORTED: "categories.unsupported_adapter",
    NOT_WIRED: "categories.not_wired",
}


class Report:
    """What became of one file. `text(language)` is readable, `as_dict()` is what report_json
    prints.

    cautions: sentences besides those of the plan that make it doubtful that the file comes out as
    trained. checked: how much of the file's numbers was looked at for NaN, infinity and zeros
    ("all", "a sample"; "" none).
    stock_fault: why safetensors, and so the stock loader, refuses the file; "" where it does not.
    acts: where its adapters act, beside the layers or in the weights, and why; "" where that was
    not chosen for the user. layer_weights: network -> layer -> what its strength was multiplied
    with, where that is not 1.
    """

    def __init__(
        self,
        plan: Plan,
        path: str = "",
        *,
        failures: Mapping[int, str] | None = None,
        stock: Callable[[], Set[str]] | None = None,
        errors: tuple[str, ...] = (),
        guess: FamilyMatch | None = None,
        cautions: tuple[str, ...] = (),
        checked: str = "",
        stock_fault: str = "",
        acts: str = "",
        layer_weights: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    ):
        self.plan, self.path, self.errors, self.checked, self.acts = (
            plan,
            path,
            errors,
            checked,
            acts,
        )
        self.cautions, self.layer_weights = (*plan.cautions, *cautions), layer_weights
        self._stock, self._guess, self._stock_fault = stock, guess, stock_fault
        self._patterns: dict[str, list[Pattern]] = {}
        failed = failures or {}
        self.outcomes: Mapping[str, Outcome] = plan.outcomes
        self.adapters: Sequence[Adapter] = plan.adapters
        if failed:
            self.outcomes = {
                key: (
                    Outcome(UNSUPPORTED, failed[outcome.adapter])
                    if outcome.adapter is not None and outcome.adapter in failed
                    else outcome
                )
                for key, outcome in plan.outcomes.items()
            }
            self.adapters = [
                adapter for index, adapter in enumerate(plan.adapters) if index not in failed
            ]

    def count(self, category: str) -> int:
        """Number of keys in a category."""
        return self.categories[category]

    @cached_property
    def categories(self) -> Counter[str]:
        """Number of keys by category."""
        return Counter([outcome.category for outcome in self.outcomes.values()])

    @cached_property
    def modules(self) -> dict[str, int]:
        """Modules of the file: {placed, total}; bookkeeping is none, an unwired text encoder
        counts.
        """
        placed = {adapter.module for adapter in self.adapters}
        rest = {
            parse_key(key).module
            for key, outcome in self.outcomes.items()
            if outcome.category not in (PLACED, BOOKKEEPING)
        }
        return {"placed": len(placed), "total": len(placed | rest)}

    @cached_property
    def guess(self) -> FamilyMatch:
        """The family the file was trained for: the model's where all fits, else read off its names
        and shapes.
        """
        if self._guess and self.is_reference:
            return self._guess
        family = self.plan.target_model.family
        misplaced = self.categories.keys() - {*NO_FAULT, UNSUPPORTED}
        if family is not None and self.adapters and not misplaced:
            return FamilyMatch(family.name, self.model_title)
        return self._guess or guess_family(self.plan)

    @property
    def is_reference(self) -> bool:
        """Whether no model is connected, and the plan was made for one drawn from the family's
        table.
        """
        denoiser = self.plan.target_model.networks.get(DENOISER)
        return denoiser is not None and denoiser.is_reference

    @cached_property
    def model_title(self) -> str:
        """The wired model's family and variant, "" where no table knows it."""
        return model_title(self.plan.target_model)

    @property
    def trainer(self) -> str:
        """The tool that wrote the file, as far as its names, roles and metadata tell; UNTOLD."""
        return self.writer.title

    @property
    def trainer_title(self) -> str:
        """The trainer as people read it: what names alone tell is said to look so."""
        if self.trainer == UNTOLD:
            return message("report.unknown")
        if self.writer.is_guess:
            return message("report.looks_like", trainer=self.trainer)
        return self.trainer

    @cached_property
    def writer(self) -> Writer:
        """The trainer, with what says so."""
        return name_trainer(self.plan, (self.guess.name,) if self.guess.name else self.guess.ties)

    @cached_property
    def strength_source(self) -> str:
        """Where the scale of the adapters comes from; several sources are joined, the most common
        first.
        """
        origins = Counter(
            [adapter.strength.origin for adapter in self.adapters if is_scaled(adapter)]
        )
        if not origins:
            return message("report.no_strength")
        return joined((in_words(origin) for origin, _ in origins.most_common()), "semicolon")

    @cached_property
    def stock_keys(self) -> Set[str] | None:
        """The keys the stock loader would place; None where there is no host to ask."""
        if self._stock_fault:
            return StockKeys.raising(self._stock_fault)
        return self._stock() if self._stock else None

    @cached_property
    def stock_works(self) -> Set[str]:
        """Those of them that change the model: others fail while it samples."""
        return (self.stock_keys or frozenset()) - self._stock_failing

    @cached_property
    def stock_modules(self) -> int:
        """How many of the modules that load here the stock loader would load too,
        at least in part.
        """
        if len(self.stock_works) == self.count(PLACED):
            return self.modules["placed"]
        return len(
            {
                adapter.module
                for adapter in self.adapters
                if not self.stock_works.isdisjoint(_weights_of(adapter))
            }
        )

    @property
    def _stock_failing(self) -> frozenset[str]:
        return getattr(self.stock_keys, "failing", frozenset())

    @property
    def stock_fails(self) -> str:
        """Why the stock loader raises on this file, "" where it does not."""
        return getattr(self.stock_keys, "fails", "")

    @cached_property
    def verdict(self) -> str:
        """One line: what loads here, and the main reason for what does not."""
        modules = self.modules
        if not modules["total"]:
            return as_sentence(self.other) if self.other else message("report.no_lora")
        line = message("report.modules_load", placed=modules["placed"], count=modules["total"])
        if self.other:
            return message("joints.about", subject=line, text=as_sentence(self.other))
        clause = self.fitting.wrong or self.fitting.lacking
        if clause:
            return as_sentence(message("joints.about", subject=line, text=clause))
        lost = self.losses
        return as_sentence(joined([line, joined(lost)], "semicolon") if lost else line)

    @property
    def state(self) -> str:
        """How well it loads, in a word for programs."""
        return judged(**self.modules, mismatch=self.mismatch, cautions=self.cautions)

    @cached_property
    def remedy(self) -> str:
        """What to do about the keys without effect, as a sentence; "" where all is right."""
        if self.other or not self.modules["total"]:
            return ""  # the verdict says where such a file belongs
        if self.guess.is_absent and self.state == BAD:
            return message("report.no_such_model", model=self.guess.title)
        if self.mismatch:
            return message("report.use_model", model=self.fitting.better)
        if self.lacking and self.fitting.better:
            return message("report.use_for_all", model=self.fitting.better)
        if self.count(NOT_WIRED):
            lacks_model = DENOISER not in self.plan.target_model.networks
            return message("report.connect_model" if lacks_model else "report.connect_clip")
        for category, remedy in REMEDIES.items():
            if self.count(category):
                return message(remedy)
        return ""

    @cached_property
    def other(self) -> str:
        """What the file is, and where it belongs, if it holds no LoRA and nothing
        of it is placed.
        """
        return (
            ""
            if self.adapters
            else other_file(self.plan.shapes, group_keys(self.plan.shapes, self.plan.metadata))
        )

    @cached_property
    def fitting(self) -> Fitting:
        """What is to be said of the file and the connected model, as clauses."""
        if self.other:
            return Fitting()
        placed = {adapter.module for adapter in self.adapters}
        return fitting(self.plan.target_model, self.outcomes, placed, self.guess, self.model_title)

    @cached_property
    def contradiction(self) -> str:
        """Says that the metadata name another model than names and shapes do; "" where they do
        not.
        """
        if not may_contradict(self.plan.metadata):
            return ""
        guess = self.guess if self.guess.samples else self._guess or guess_family(self.plan)
        return contradiction(self.plan.metadata, guess, self.plan.target_model)

    @cached_property
    def stage(self) -> Stage | None:
        """For which of a family's models that sample one after the other the file says it is."""
        family = self.plan.target_model.families.get(self.guess.name)
        if family is None or not family.stages:
            return None
        return stage_of(family, self.plan.metadata, os.path.basename(self.path))

    @property
    def mismatch(self) -> str:
        """Says that the file is for another model, where it is."""
        return as_sentence(self.fitting.wrong) if self.fitting.wrong else ""

    @property
    def lacking(self) -> str:
        """Says which part of a file for this kind of model has no place in this very one."""
        return as_sentence(self.fitting.lacking) if self.fitting.lacking else ""

    @property
    def losses(self) -> list[str]:
        """Categories of the keys without effect, bookkeeping left out, with their counts."""
        return [
            message("report.keys_of", count=count, category=category_title(category))
            for category, count in self.categories.most_common()
            if category not in (PLACED, BOOKKEEPING)
        ]

    @cached_property
    def trained(self) -> list[TrainedLayers]:
        """What the file trains of each network it touches, block by block."""
        return trained_layers(self.plan)

    @property
    def untrained(self) -> list[str]:
        """Kinds of layers of the networks it touches that the file trains in no block."""
        return untrained_kinds(self.trained)

    @property
    def untrained_words(self) -> list[Message]:
        """The same for people, by their blocks."""
        return untrained_words(self.trained)

    def unplaced(self) -> list[dict[str, str]]:
        """Every key without effect, with its category and reason, in the file's order."""
        return [
            {"key": key, "category": outcome.category, "reason": outcome.reason}
            for key, outcome in self.outcomes.items()
            if outcome.category != PLACED
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything a program needs; plain JSON types."""
        stock = self.stock_keys
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "state": self.state,
            "remedy": self.remedy,
            "file": self.path,
            "family": self.guess.name,
            "family_title": self.guess.title,
            "model_family": self.plan.target_model.family.name
            if self.plan.target_model.family
            else "",
            "trainer": self.trainer,
            "trainer_guessed": self.writer.is_guess,
            "strength_source": self.strength_source,
            **({"acts": self.acts} if self.acts else {}),
            "keys": {"placed": self.count(PLACED), "total": len(self.outcomes)},
            "modules": self.modules,
            "stock": (
                {
                    "placed": len(self.stock_works) if stock is not None else None,
                    "modules": self.stock_modules if stock is not None else None,
                }
                | ({"failing": len(self._stock_failing)} if self._stock_failing else {})
                | ({"fails": self.stock_fails} if self.stock_fails else {})
            ),
            "kinds": dict(Counter(adapter.kind for adapter in self.adapters).most_common()),
            "categories": {
                category_title(category): count for category, count in self.categories.most_common()
            },
            "inferred_prefix": self.plan.inferred_prefix,
            "notes": self.notes(),
            "cautions": list(self.cautions),
            "checked": self.checked,
            "mismatch": self.mismatch,
            "lacking": self.lacking,
            "contradiction": self.contradiction,
            "gains": [correction.short for correction in self.corrections],
            "unplaced": self.unplaced(),
            "patterns": self.all_patterns(),
            "trained": [trained.as_dict() for trained in self.trained],
            "untrained": self.untrained,
            "untrained_words": self.untrained_words,
            "layer_weights": {name: dict(one) for name, one in self.layer_weights.items()},
        }

    def role_of(self, key: str) -> str | None:
        """What a key is in its adapter; of one without a place, as it is spelled."""
        place = self.outcomes[key].adapter
        roles = self.plan.adapters[place].roles if place is not None else {}
        found = next((role for role, own in roles.items() if own == key), None)
        return found or parse_key(key).role

    def explain(self, key: str) -> dict[str, Any]:
        """How one key was read: prefix, module, role, targets with their slices, transform, rule;
        KeyError for a key not in the file.
        """
        outcome, parsed = self.outcomes[key], parse_key(key)
        told = {
            "key": key,
            "category": outcome.category,
            "reason": outcome.reason,
            "role": self.role_of(key),
            "adapter_name": parsed.adapter,
        }
        if outcome.category != PLACED or outcome.adapter is None:
            return told | {"module": parsed.module}
        adapter = self.plan.adapters[outcome.adapter]
        targets = [
            {"weight": weight, "rows": rows, "rows_of_adapter": source}
            for weight, rows, source in adapter.target.slices
        ]
        return told | {
            "wrapper": adapter.location.prefix,
            "module": adapter.location.name,
            "kind": adapter.kind,
            "changes": adapter.parameter,
            "targets": targets,
            "transform": "halves swapped" if adapter.target.swap else "",
            "rule": adapter.location.rule,
            "strength": adapter.strength.source,
        }

    def as_json(self) -> str:
        """`as_dict()` as JSON text."""
        return json.dumps(self.as_dict(), ensure_ascii=False, indent=1)

    def notes(self) -> list[str]:
        """What a user should know besides the counts."""
        inferred = self.plan.inferred_prefix
        return [
            *self.cautions,
            *self.errors,
            *([self.contradiction] if self.contradiction else []),
            *([message("report.stage", **self.stage._asdict())] if self.stage else []),
            *([message("report.inferred_prefix", prefix=inferred)] if inferred else []),
            *dict.fromkeys(self._resized()),
            *(correction.sentence for correction in self.corrections),
        ]

    def _resized(self) -> Iterator[str]:
        """Weights of another size than the module that an adapter was trained on."""
        for adapter in self.adapters:
            name, here = adapter.target.module, [adapter.target.out, *adapter.target.inner]
            if adapter.padded_shape:
                yield message(
                    "report.grows_to_control"
                    if adapter.target.widens_input
                    else "report.grows_as_file_says",
                    module=name,
                    size=here,
                    new_size=list(adapter.padded_shape),
                )
            if adapter.columns:
                yield message(
                    "report.fewer_inputs", module=name, count=adapter.columns, inputs=here[1]
                )

    @cached_property
    def corrections(self) -> list[Correction]:
        """What is computed otherwise than the stock loader computes it."""
        return [*self._restored(), *self._rebuilt()]

    def _restored(self) -> Iterator[Correction]:
        """Strengths that stock does not see, or sees wrong."""
        factors: dict[str, list[float]] = {}
        for adapter in self.adapters:
            if adapter.strength.factor != 1:
                factors.setdefault(adapter.strength.origin, []).append(adapter.strength.factor)
        for origin, ones in factors.items():
            shares = joined((f"1/{factor:g}" for factor in sorted(set(ones))), "or")
            yield Correction(
                message("report.full_strength", count=len(ones)),
                message("report.restored", count=len(ones), source=in_words(origin), shares=shares),
            )
        by_origin: dict[tuple[str, bool], list[Adapter]] = {}
        for adapter in self.adapters:
            by_alpha = "alpha" in adapter.roles and named(adapter.kind).alpha_counts(adapter.roles)
            if (
                adapter.strength.scale is not None
                and (by_alpha or adapter.strength.scale != 1)
                and not named(adapter.kind).own_scale
            ):
                by_origin.setdefault((adapter.strength.origin, by_alpha), []).append(adapter)
        for (origin, by_alpha), scaled in by_origin.items():
            scales = ", ".join(
                sorted({f"{adapter.strength.scale:.4g}" for adapter in scaled})[:MAX_SCALES]
            )
            yield Correction(
                message("report.scaled", count=len(scaled), scales=scales),
                message(
                    "report.scaled_from",
                    count=len(scaled),
                    source=in_words(origin),
                    scales=scales,
                    stock="alpha / rank" if by_alpha else "x 1",
                ),
            )

    def _rebuilt(self) -> Iterator[Correction]:
        """Adapters of kinds that stock ignores or computes otherwise."""
        counts = Counter(stock for adapter in self.adapters if (stock := named(adapter.kind).stock))
        for decomposition in decompositions():
            if decomposition.stock:
                counts[decomposition.stock] = sum(
                    self._is_wrong_in_stock(decomposition, adapter) for adapter in self.adapters
                )
        for stock, count in counts.items():
            if count:
                yield Correction(
                    message("report.as_trained", kind=stock.title, count=count),
                    message("planning.modules_of", count=count, what=as_sentence(stock.sentence)),
                )

    def _is_wrong_in_stock(self, decomposition: Decomposition, adapter: Adapter) -> bool:
        shapes = self.plan.shapes
        return any(
            not decomposition.stock_is_right(role, shapes[adapter.roles[role]])
            for role in decomposition.roles
            if role in adapter.roles
        )

    def __str__(self) -> str:
        return self.text()

    def text(self, language: str = ENGLISH) -> str:
        """The report for people: the verdict, what to do, the facts, and why keys have no effect.

        At most 12 lines for a file that loads as trained without a caution.
        """
        return f"{translate(self.verdict, language)}\n{self.details(language)}"

    def details(self, language: str = ENGLISH) -> str:
        """The report without its verdict; an empty line first where nothing is to be done."""
        speak = Speaker(language)
        lines = [speak.text(self.remedy)] if self.remedy else []
        lines += ["", *(f"{label}{fact}" for label, fact in self._facts(speak))]
        for category, count in self.categories.most_common():
            if category not in (PLACED, BOOKKEEPING, NOT_WIRED):
                lines += self._category_lines(category, count, speak)
        return "\n".join(lines)

    def _facts(self, speak: Speaker) -> Iterator[tuple[str, str]]:
        """(label, fact), the labels padded to one width."""
        left = self.untrained
        facts = [
            ("report.file", self.path),
            ("report.made_for", speak.text(self.guess.title) or speak("report.unknown")),
            ("report.trainer", speak.text(self.trainer_title)),
            ("report.strength", speak.text(self.strength_source)),
            ("report.acts", speak.text(self.acts)),
            ("report.keys", self._keys_fact(speak)),
            ("report.untrained", self._untrained_fact(speak, left)),
            *(("report.note", speak.text(note)) for note in self._main_notes()),
        ]
        labels = {id: speak(id) for id, _ in facts}
        width = max(map(columns, labels.values())) + 1
        for id, fact in facts:
            if fact:
                yield labels[id] + " " * (width - columns(labels[id])), fact

    def _keys_fact(self, speak: Speaker) -> str:
        parts = [message("report.placed", placed=self.count(PLACED), count=len(self.outcomes))]
        if self.count(BOOKKEEPING):
            parts.append(message("report.bookkeeping", count=self.count(BOOKKEEPING)))
        if self.stock_fails:
            parts.append(stock_failure(self.stock_fails))
        elif self.stock_keys is not None:
            parts.append(message("report.stock_places", count=len(self.stock_works)))
            if self._stock_failing:
                parts.append(message("report.stock_misfits", count=len(self._stock_failing)))
        return speak.joined(parts, "semicolon")

    def _untrained_fact(self, speak: Speaker, left: Sequence[str]) -> str:
        if not left:
            return ""
        told = self.untrained_words
        names = speak.joined(told[:MAX_UNTRAINED], "semicolon") + " ..." * (
            len(told) > MAX_UNTRAINED
        )
        return speak("report.layer_types", count=len(left), names=names)

    def _main_notes(self) -> list[str]:
        """All notes, but of many corrections, which harm nothing, only the first ones."""
        notes, count = self.notes(), len(self.corrections)
        if count <= MAX_CORRECTIONS:
            return notes
        hidden = count - MAX_CORRECTIONS
        return [*notes[: len(notes) - hidden], message("report.more_corrections", count=hidden)]

    def _category_lines(self, category: str, count: int, speak: Speaker) -> list[str]:
        """One line per pattern of module names; few where the whole file is for another model."""
        patterns = self.patterns(category)
        head = speak("report.keys_of", count=count, category=category_title(category))
        most = MAX_IF_MISMATCHED if self.mismatch else MAX_PATTERNS
        lines = ["", head]
        lines += [
            f"  {pattern.name}  ({pattern.keys}): {speak.text(pattern.reason)}"
            for pattern in patterns[:most]
        ]
        if len(patterns) > most:
            lines.append("  " + speak("report.more_patterns", count=len(patterns) - most))
        return lines

    def all_patterns(self) -> list[dict[str, Any]]:
        """The patterns of every category of keys without effect, as plain JSON types."""
        return [
            {"category": category_title(category), **pattern._asdict()}
            for category in self.categories
            for pattern in self.patterns(category)
        ]

    def patterns(self, category: str) -> list[Pattern]:
        """The keys of a category by their modules' names without block numbers, in the file's
        order; the first key's reason.

        None for what is placed.
        """
        if category not in self._patterns:
            self._patterns[category] = self._patterns_of(category) if category != PLACED else []
        return self._patterns[category]

    def _patterns_of(self, category: str) -> list[Pattern]:
        members: dict[str, list[str]] = {}
        for key, outcome in self.outcomes.items():
            if outcome.category == category:
                members.setdefault(NUMBER.sub("{}", parse_key(key).module), []).append(key)
        patterns = []
        for place, (name, keys) in enumerate(members.items()):
            near = ""
            if category == UNKNOWN_MODULE and not self.mismatch and place < MAX_PATTERNS:
                near = nearest_name(self.plan.target_model, keys[0])
            reason = self.outcomes[keys[0]].reason
            if near:
                reason = message("report.reason_near", reason=reason, near=near)
            patterns.append(Pattern(name, len(keys), reason))
        return patterns


class Correction(NamedTuple):
    """What is done otherwise than stock does it, in a few words and in a sentence."""

    short: str
    sentence: str


class Pattern(NamedTuple):
    """Keys alike: the module's name with {} for block numbers, how many keys, and why they have no
    effect.
    """

    name: str
    keys: int
    reason: str


def stock_failure(reason: str) -> Message:
    """That the stock loader raises, and why, as a clause."""
    return message("report.stock_fails", reason=reason)


def category_title(category: str) -> Message:
    """What people call a category of keys: its own name in English."""
    return message(CATEGORIES[category])


def _weights_of(adapter: Adapter) -> Iterator[str]:
    """Its keys but for alpha and magnitudes, which stock reads also where it can do nothing with
    the rest.
    """
    beside = {*NUMBERS, *magnitudes()}
    return (key for role, key in adapter.roles.items() if role not in beside)


def is_scaled(adapter: Adapter) -> bool:
    """Whether an adapter's change of a weight is multiplied by alpha / rank."""
    kind = named(adapter.kind)
    return kind.scaled and kind.parameter != "bias"
