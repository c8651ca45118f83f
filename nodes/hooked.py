"""The host's hook of a LoRA's weights, made of what this pack knows: it is planned when it meets a
model, and what becomes of it there is told in the log.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import comfy.hooks
import torch

from ..files.gc_pause import without_collection
from ..key_maps.dialect import ENCODER
from ..key_maps.user_maps import NO_USER_MAPS, UserMaps
from ..messages import Message, joined, message
from ..planning.keys import parse_key
from ..planning.plan import (
    BOOKKEEPING,
    NO_FAULT,
    NOT_WIRED,
    PLACED,
    Outcome,
    Plan,
    without_adapters,
)
from ..planning.resolve import network_named
from ..report.judgement import GOOD
from ..report.load_report import Report
from .faults import NodeError
from .host import LoraFile, doubts, planned
from .patches import build_patches
from .watched import watched

Layers = Sequence[dict[Any, Any]]
NO_LAYERS: Layers = ({},)  # the host knows a hook by its patches, also where it has none
MAX_TOLD = 3  # patterns of keys without effect in a line of the log
logger = logging.getLogger("lora_locksmith")


class EncoderOf(NamedTuple):
    """A text encoder of which only the ModelPatcher is at hand, by the names a CLIP has."""

    patcher: Any

    @property
    def cond_stage_model(self) -> torch.nn.Module:
        """The encoder itself."""
        return self.patcher.model


class Meeting(NamedTuple):
    """What a file does to one model: layers of patches for the host's add_hook_patches, the report
    on this model alone, and how many of its keys are for another (a text encoder, or the model).
    """

    layers: Layers
    report: Report
    elsewhere: int


class HookedFile:
    """One LoRA file in memory, and what it does to each model it has met; the clones of a hook
    share it.

    name: what the log calls the file.
    """

    def __init__(self, file: LoraFile, name: str, own: UserMaps = NO_USER_MAPS):
        self.file, self.name, self.own = file, name, own
        self._layers: weakref.WeakKeyDictionary[torch.nn.Module, Layers] = (
            weakref.WeakKeyDictionary()
        )
        self._met_encoder = False

    def layers_for(self, patcher, *, encoder: bool, wants_encoder: bool = False) -> Layers:
        """Layers of patches for a ModelPatcher, with `encoder` that of a CLIP; made once for each
        model, and told in the log then.

        wants_encoder: whether text encoders are to be changed as well, and so had to be met before.
        Raises NodeError where the host cannot change this model by hooks.
        """
        self._met_encoder |= encoder
        if patcher.model not in self._layers:
            met = meet(self.file, self.name, patcher, own=self.own, encoder=encoder)
            unmet = met.elsewhere if wants_encoder and not self._met_encoder else 0
            _tell(met, self.name, encoder=encoder, unmet=unmet)
            self._layers[patcher.model] = met.layers
        layers = self._layers[patcher.model]
        if any(layers):
            _demand_patchable(patcher, self.name)
        return layers


class LocksmithHook(comfy.hooks.WeightHook):
    """Stock's hook in all but its weights, which it asks a HookedFile for; the host makes clones
    without arguments.
    """

    def __init__(
        self,
        shared: HookedFile | None = None,
        strength_model: float = 1.0,
        strength_clip: float = 1.0,
    ):
        super().__init__(strength_model=strength_model, strength_clip=strength_clip)
        self.shared, self.need_weight_init = shared, False

    def add_hook_patches(self, model, model_options, target_dict, registered) -> bool:
        """Give a ModelPatcher what the file does to its model; False where it is not to have it."""
        if self.shared is None or not self.should_register(
            model, model_options, target_dict, registered
        ):
            return False
        encoder = target_dict.get("target") == comfy.hooks.EnumWeightTarget.Clip
        strength = self._strength_clip if encoder else self._strength_model
        layers: Layers = ()
        if strength:
            wants = bool(self._strength_clip)
            layers = self.shared.layers_for(model, encoder=encoder, wants_encoder=wants)
        for layer in layers or NO_LAYERS:
            model.add_hook_patches(hook=self, patches=layer, strength_patch=strength)
        registered.add(self)
        return True

    def clone(self) -> LocksmithHook:
        """Another of the same value, which shares the file."""
        made = super().clone()
        made.shared = self.shared
        return made


def hooks_of(shared: HookedFile, strength_model: float, strength_clip: float):
    """A HookGroup with the hook of a file alone."""
    group = comfy.hooks.HookGroup()
    group.add(LocksmithHook(shared, strength_model, strength_clip))
    return group


def combined(before: Any, more: Any = None) -> Any:
    """A new HookGroup with the hooks of one and of another behind them; either may be None."""
    return (before or comfy.hooks.HookGroup()).clone_and_combine(more)


def meet(file: LoraFile, name: str, patcher, *, own: UserMaps, encoder: bool) -> Meeting:
    """What a LoRA in memory does to the model of a ModelPatcher, with `encoder` that of a CLIP.

    What would change a weight's size is left out: the host writes a hooked weight into the memory
    of the model's own.
    """
    model, clip = (None, EncoderOf(patcher)) if encoder else (patcher, None)
    with without_collection():
        plan, rounded = planned(file, model, clip, own)
        resizing = [place for place, one in enumerate(plan.adapters) if one.padded_shape]
        plan = without_adapters(plan, dict.fromkeys(resizing, message("nodes.hook_cannot_resize")))
        total = len(plan.outcomes)
        plan = _concerning(plan, encoder)
        patches = build_patches(plan, file.tensors)
        doubted, checked = doubts(file, plan)
        layers = watched(patches.layers, file.watch)
    report = Report(
        plan,
        name,
        failures=patches.failures,
        errors=own.errors,
        cautions=(*doubted, *rounded),
        checked=checked,
    )
    return Meeting(layers, report, total - len(plan.outcomes))


def _concerning(plan: Plan, encoder: bool) -> Plan:
    """The plan without the keys that are for a network it was not made for."""

    def concerns(key: str, outcome: Outcome) -> bool:
        if not encoder or outcome.category in (PLACED, BOOKKEEPING):
            return outcome.category != NOT_WIRED
        return network_named(plan.target_model, parse_key(key).module) == ENCODER

    kept = {key: outcome for key, outcome in plan.outcomes.items() if concerns(key, outcome)}
    return plan._replace(outcomes=kept)


def _demand_patchable(patcher, name: str) -> None:
    """NodeError where the host's hooks cannot change a model, as is so with quantised ones: it
    would say in the sampler that a layer has no `weight_scale`.
    """
    try:
        patcher.get_key_patches()
    except AttributeError:
        raise NodeError(message("nodes.hooks_need_dense", file=name)) from None


def _tell(met: Meeting, name: str, *, encoder: bool, unmet: int) -> None:
    """A line in the log: what loads on a model that was met, and what has no effect and why.

    unmet: keys for a text encoder that the hook has not met.
    """
    title = message("nodes.hook_encoder" if encoder else "nodes.hook_model")
    network = title if encoder else met.report.model_title or title
    empty = not met.report.modules["total"] and met.elsewhere
    sentences = [message("nodes.hook_nothing_here")] if empty else list(_sentences(met.report))
    if unmet:
        sentences.append(message("nodes.hook_without_clip", count=unmet))
    line = message("nodes.log_hook", file=name, network=network, text=joined(sentences, "space"))
    sound = not unmet and (empty or met.report.state == GOOD)
    logger.log(logging.INFO if sound else logging.WARNING, line)


def _sentences(report: Report) -> Iterator[str]:
    yield report.verdict
    if report.remedy:
        yield report.remedy
    patterns = [
        pattern
        for category in report.categories
        if category not in NO_FAULT
        for pattern in report.patterns(category)
    ]
    told: list[Message] = [
        message("nodes.hook_lost", module=one.name, count=one.keys, reason=one.reason)
        for one in patterns[:MAX_TOLD]
    ]
    if len(patterns) > MAX_TOLD:
        told.append(message("report.more_patterns", count=len(patterns) - MAX_TOLD))
    if told:
        yield message("joints.sentence", text=joined(told, "semicolon"))
    yield from report.cautions
    yield from report.errors
