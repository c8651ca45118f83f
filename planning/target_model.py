"""The place a LoRA is loaded into: the wired model and text encoders, as names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from copy import copy
from functools import cache, cached_property
from typing import Any, NamedTuple

from ..adapters.rows import Rows
from ..key_maps.dialect import DENOISER, ENCODER, Dialect, Prefix, PrefixSet, dialects
from ..key_maps.table import Family, Inputs, Match, Slice, families, flatten, generalise, slices
from ..key_maps.user_maps import NO_USER_MAPS, UserMaps
from .quantised import is_extra

Shape = tuple[int, ...]
# A module's name without its numbers, these, and its shape.
Sample = tuple[str, tuple[str, ...], Shape]
SUFFIXES = (".weight", ".scale")
DIFFUSION_MODEL = "diffusion_model."  # how names of the diffusion model begin in ComfyUI's model
MIN_EXPLAINED = 0.6  # share of a model's modules a table must explain to be its family
CLOSE = 0.8  # share of the best table's patterns another table must have to be looked at closely
SAMPLES = 4  # modules of one pattern that are looked at


class Target(NamedTuple):
    """One place a module name can mean: slices of weights, the rows and inner dimensions an adapter
    must have there.
    """

    network: str
    module: str  # native name
    # (weight, its rows, the adapter's rows)
    slices: tuple[tuple[str, Rows | None, Rows | None], ...]
    swap: bool
    out: int
    inner: Shape
    naming: int  # which alternative of its row; -1 native
    parts: int  # how many names the row's first alternative fuses (1: no fusion)
    widens_input: Inputs | None = (
        None  # given where its input may grow to the adapter's (control LoRAs)
    )


class ModuleNames:
    """The names in a network, which those that are drawn of one model share.

    modules: local module name -> weight. flat: flattened name -> the modules that it can mean.
    """

    def __init__(self, weights: Iterable[str], prefix: str):
        self.modules = modules_of(weights, prefix)
        self.flat: dict[str, list[str]] = {}
        for module, weight in self.modules.items():
            self.flat.setdefault(flatten(module), []).append(module)
            # ComfyUI leaves out `.weight` only: a lone `.scale` is part of the name to it.
            local = weight.removeprefix(prefix)
            if weight.endswith(SUFFIXES[1]) and module != local:
                self.flat.setdefault(flatten(local), []).append(module)


class Network:
    """One network with weights of its own: the denoiser, or one text encoder. `weights`: full name
    -> logical shape.

    `is_reference`: there is no model, its weights are the family's table's; sizes that are not
    known are 0, and `optional` are the weights that not every model of the family has.
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        weights: Mapping[str, Shape],
        family: Family | None,
        *,
        is_reference: bool = False,
        optional: Set[str] = frozenset(),
    ):
        self.name, self.prefix, self.weights, self.family = name, prefix, weights, family
        self.is_reference, self.optional = is_reference, optional
        self.names = ModuleNames(weights, prefix)
        self.modules, self.flat = self.names.modules, self.names.flat
        self._memory: dict[str, tuple[Target, ...]] = {}
        self._slices: dict[tuple[int, int, int, tuple[Shape, ...]], tuple[Slice, ...] | None] = {}

    def reshaped(self, shapes: Mapping[str, Shape]) -> Network:
        """The network with other shapes of these weights, and the same names."""
        other = copy(self)
        other.weights = {**self.weights, **shapes}
        other._memory, other._slices = {}, {}
        return other

    def find(self, name: str) -> tuple[Target, ...]:
        """Every place in this network that the (unwrapped, dotted or flattened) module name can
        mean.
        """
        found = self._memory.get(name)
        if found is None:
            flat = flatten(name).strip("_")
            found = tuple(self._native(name, flat)) or tuple(self._by_table(flat))
            if found:
                self._memory[name] = found
        return found

    def bias_of(self, weight: str) -> str | None:
        """The bias that belongs to a weight, if the module has one."""
        for suffix in SUFFIXES:
            if weight.endswith(suffix):
                bias = weight[: -len(suffix)] + ".bias"
                return bias if self.is_reference or bias in self.weights else None
        return None

    def counterpart(self, name: str) -> str | None:
        """The native name the family gives a module that this very model does not have."""
        matches = self.family.find(flatten(name)) if self.family else []
        return matches[0].native[0] if matches else None

    def _native(self, name: str, flat: str) -> Iterable[Target]:
        if name in self.modules:
            yield self._whole(name)
            return
        modules = self.flat.get(flat, ())
        if len(modules) == 1:
            yield self._whole(modules[0])

    def _whole(self, module: str) -> Target:
        weight = self.modules[module]
        shape = self.weights[weight]
        rows = (
            [match.row for match in self.family.find(flatten(module)) if match.alternative < 0]
            if self.family
            else []
        )
        parts = max((len(row.alternatives[0].parts) for row in rows if row.alternatives), default=1)
        widens_input = (
            self.family.inputs if self.family and any(row.widens_input for row in rows) else None
        )
        return Target(
            self.name,
            module,
            ((weight, None, None),),
            False,
            shape[0] if shape else 0,
            shape[1:],
            -1,
            parts,
            widens_input,
        )

    def _by_table(self, flat: str) -> Iterable[Target]:
        family = self.family
        if not family:
            return
        for match in family.find(flat):
            present = [self._present(native) for native in match.native]
            weights = [weight for weight in present if weight is not None]
            if len(weights) < len(present):
                continue
            shapes = tuple([self.weights[weight] for weight in weights])
            placed = self._sliced(match, shapes)
            if placed is None:
                continue
            pieces = tuple([(weights[piece.native], piece.rows, piece.source) for piece in placed])
            out = sum(
                [
                    rows.length if rows else self.weights[weight][0]
                    for weight, rows, _ in pieces
                    if self.weights[weight]
                ]
            )
            widens_input = family.inputs if match.row.widens_input else None
            swap = match.alternative >= 0 and match.row.alternatives[match.alternative].swap
            yield Target(
                self.name,
                match.native[0],
                pieces,
                swap,
                out,
                shapes[0][1:],
                match.alternative,
                1,
                widens_input,
            )

    def _sliced(self, match: Match, shapes: tuple[Shape, ...]) -> tuple[Slice, ...] | None:
        # A model's blocks repeat: a few answers serve all its modules.
        key = (match.index, match.alternative, match.part, shapes)
        if key not in self._slices:
            self._slices[key] = slices(match.row, match.alternative, match.part, shapes)
        return self._slices[key]

    def _present(self, native: str) -> str | None:
        if native in self.modules:
            return self.modules[native]
        # A table may spell a native name another way than this version of the host does.
        modules = self.flat.get(flatten(native), ())
        return self.modules[modules[0]] if len(modules) == 1 else None


def modules_of(weights: Iterable[str], prefix: str) -> dict[str, str]:
    """Local module name -> weight; what does not begin with `prefix` keeps its whole name, and what
    only serves to read a quantised weight is none.
    """
    modules = {}
    for weight in weights:
        if is_extra(weight):
            continue
        local = weight.removeprefix(prefix)
        for suffix in SUFFIXES:
            if local.endswith(suffix):
                local = local[: -len(suffix)]
                break
        modules[local] = weight
    return modules


def recognise(
    modules: Mapping[str, str], weights: Mapping[str, Shape], known: Iterable[Family]
) -> Family | None:
    """The family whose table explains most of the model's modules, shapes included; None where none
    explains enough.
    """
    known = list(known)
    patterns: dict[str, list[Sample]] = {}
    for module, weight in modules.items():
        if not weight.endswith(".bias"):
            template, numbers = generalise(flatten(module))
            patterns.setdefault(template, []).append((template, numbers, weights[weight]))
    rough = {
        family.name: sum(template in family.lookup for template in patterns) for family in known
    }
    best = max(rough.values(), default=0)
    close = [
        family for family in known if rough[family.name] and rough[family.name] >= CLOSE * best
    ]
    # Members of one pattern share their shape but for a few; a handful of samples tells.
    samples = [
        sample
        for members in patterns.values()
        for sample in members[:: max(1, len(members) // SAMPLES)]
    ]
    explained = [_explained(family, samples) for family in close]
    most = max(explained, default=0)
    if not samples or most / len(samples) < MIN_EXPLAINED:
        return None
    likely = [family for family, count in zip(close, explained, strict=True) if count == most]
    return (
        max(likely, key=lambda family: _in_use(family, patterns.keys()))
        if len(likely) > 1
        else likely[0]
    )


def _explained(family: Family, samples: Iterable[Sample]) -> int:
    """How many of the model's modules the table explains, shapes included."""
    fits: dict[tuple[int, Shape], bool] = {}

    def fit(index: int, shape: Shape) -> bool:
        if (index, shape) not in fits:
            fits[index, shape] = slices(family.rows[index], -1, 0, (shape,)) is not None
        return fits[index, shape]

    return sum(
        any(
            alternative < 0 and fit(index, shape)
            for _, index, alternative, _ in family.meanings(template, numbers)
        )
        for template, numbers, shape in samples
    )


def _in_use(family: Family, templates: Set[str]) -> float:
    """The share of the table's patterns that the model has."""
    natives = {
        generalise(flatten(row.native[0].replace("{}", "0")))[0]
        for row in family.rows
        if len(row.native) == 1
    }
    return len(natives & templates) / len(natives)


def denoiser_network(
    weights: Mapping[str, Shape], own: Mapping[str, Family] | None = None
) -> Network:
    """The diffusion model: `weights` are full names, `diffusion_model.` included; `own`: a user's
    tables, which go first. What lies beside it is left out unless a table names it.
    """
    known = of_kind("denoiser", own)
    starts = (DIFFUSION_MODEL, *names_beside(known))
    own_weights = {name: shape for name, shape in weights.items() if name.startswith(starts)}
    return _recognised(DENOISER, DIFFUSION_MODEL, own_weights, known)


def names_beside(known: Iterable[Family]) -> tuple[str, ...]:
    """How the names begin of what ComfyUI keeps beside these families' diffusion models."""
    return tuple(sorted({f"{name}." for family in known for name in family.beside}))


def encoder_networks(
    weights: Mapping[str, Shape], own: Mapping[str, Family] | None = None
) -> list[Network]:
    """The text encoders of a CLIP, one for each of ComfyUI's slots (clip_l, t5xxl ...)."""
    known = of_kind("text_encoder", own)
    return [
        _recognised(slot, prefix, members, known)
        for slot, (prefix, members) in encoder_slots(weights).items()
    ]


def _recognised(
    name: str, prefix: str, weights: Mapping[str, Shape], known: Iterable[Family]
) -> Network:
    return Network(name, prefix, weights, recognise(modules_of(weights, prefix), weights, known))


def of_kind(kind: str, own: Mapping[str, Family] | None = None) -> list[Family]:
    """All families of a kind ("denoiser", "text_encoder"), a user's own in front of those of the
    same name.
    """
    return [family for family in {**families(), **(own or {})}.values() if family.kind == kind]


class FamilyNames:
    """What is known of some families' names, and remembered of what names mean in them."""

    def __init__(self, known: Mapping[str, Family]):
        self.memory: dict[object, Any] = {}
        names: dict[str, list[str]] = {}
        for family in known.values():
            for template in family.lookup:
                names.setdefault(template, []).append(family.name)
        self.knowing = {template: tuple(owners) for template, owners in names.items()}


@cache
def _pack_names() -> FamilyNames:
    return FamilyNames(families())


class TargetModel:
    """Everything a LoRA can be placed on: the networks that are wired, and what may stand in
    front of their names.
    """

    def __init__(self, networks: Iterable[Network] = (), own: UserMaps = NO_USER_MAPS):
        self.dialects: Mapping[str, Dialect] = {**dialects(), **own.dialects}
        self.families: Mapping[str, Family] = (
            {**families(), **own.families} if own.families else families()
        )
        self.networks = {network.name: network for network in networks}
        self.slots = tuple(name for name in self.networks if name != DENOISER)
        self.family = self.networks[DENOISER].family if DENOISER in self.networks else None
        self.prefixes = PrefixSet(
            self.dialects, self.slots, self.family.encoders if self.family else self._numbering()
        )

    @cached_property
    def _known(self) -> FamilyNames:
        return _pack_names() if self.families is families() else FamilyNames(self.families)

    @property
    def memory(self) -> dict[object, Any]:
        """What names and shapes can mean in the families (identify), whichever networks there
        are.
        """
        return self._known.memory

    @property
    def knowing(self) -> Mapping[str, tuple[str, ...]]:
        """Which families know a template (table.generalise) of a module name."""
        return self._known.knowing

    def _numbering(self) -> Mapping[str, tuple[str, ...]]:
        """What the text encoders are called where no MODEL is wired: as in the families that have
        just these.
        """
        same = [
            family.encoders
            for family in self.families.values()
            if family.encoders.keys() == set(self.slots)
        ]
        return {
            slot: tuple(dict.fromkeys(text for encoders in same for text in encoders[slot]))
            for slot in self.slots
            if same
        }

    def networks_of(self, prefix: Prefix) -> tuple[str, ...] | None:
        """The networks a prefix names, most likely first; None where it is noise."""
        if prefix.network is None:
            return None
        if prefix.network == DENOISER:
            return (DENOISER,)
        if prefix.network != ENCODER:
            return (prefix.network,)
        told = tuple(
            slot for slot in self.prefixes.slots_of.get(prefix.text, ()) if slot in self.networks
        )
        return told + tuple(slot for slot in self.slots if slot not in told)

    def is_elsewhere(self, name: str) -> bool:
        """Whether a name that no prefix tells the network of is not the diffusion model's, which
        has it too.
        """
        starts = self.family.elsewhere if self.family else ()
        return bool(starts) and generalise(flatten(name))[0].startswith(starts)

    def find(self, networks: tuple[str, ...] | None, name: str) -> tuple[Target, ...]:
        """Every place the unwrapped name can mean, in the named networks or (None) in all, the
        denoiser first.
        """
        found: tuple[Target, ...] = ()
        untold = networks is None and self.is_elsewhere(name)
        for network in networks if networks is not None else self.networks:
            if network in self.networks and not (untold and network == DENOISER):
                found += self.networks[network].find(name)
            if found and networks is None:
                break
        return found


def model_alone(target_model: TargetModel) -> TargetModel:
    """The target model's diffusion model without text encoders: those that were drawn are as large
    as one file needed them.
    """
    return TargetModel(
        [network for name, network in target_model.networks.items() if name == DENOISER]
    )


def encoder_slots(weights: Mapping[str, Shape]) -> dict[str, tuple[str, dict[str, Shape]]]:
    """Split a text encoder's weights by ComfyUI's slot (clip_l, t5xxl ...): slot -> (prefix of its
    names, its weights).
    """
    slots: dict[str, dict[str, Shape]] = {}
    for weight, shape in weights.items():
        slots.setdefault(weight.partition(".")[0], {})[weight] = shape
    divided = {}
    for slot, members in slots.items():
        inner = f"{slot}.transformer."
        prefix = inner if any(weight.startswith(inner) for weight in members) else f"{slot}."
        if all(weight.count(".") == 1 for weight in members):
            prefix = ""  # a lone layer, called as its slot
        divided[slot] = (
            prefix,
            {weight: shape for weight, shape in members.items() if weight.startswith(prefix)},
        )
    return divided


_everywhere: dict[int, tuple[UserMaps, TargetModel]] = {}


def all_families(own: UserMaps = NO_USER_MAPS) -> TargetModel:
    """A target model without any network: all families and dialects, and what is remembered of
    them.
    """
    known = _everywhere.get(id(own))
    if known is None:
        # Of a user's own maps only the latest are asked for.
        for key in [key for key, (maps, _) in _everywhere.items() if maps is not NO_USER_MAPS]:
            del _everywhere[key]
        known = _everywhere[id(own)] = (own, TargetModel((), own))
    return known[1]
