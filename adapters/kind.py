"""What an adapter kind is: everything that plan, mathematics, measuring, resizing, merging,
writing, host and bypass ask of one.

A kind is a file in `kinds/` with a subclass here and its instances in `KINDS`. What a kind does not
say, the defaults below say of it: a kind that only has `needs` and a `refusal` is named and
refused; one with `needs` and `patched` loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import LocksmithError
from ..messages import joined, message
from .rows import Rows
from .setting import Setting
from .spec import AdapterSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
ToldShapes = Mapping[str, Shape | None]  # None: the header does not tell it
Settings = Mapping[str, Any]  # by their names
HostWeights = tuple[Any, ...]  # what a class of the host makes its adapters of

# How a kind acts in a layer's forward pass, without its weight being changed.
ADDED = "added"  # a delta of the weight
NORMED = "normed"  # a decomposition per output: a delta, and a factor for each output
TURNED = "turned"  # acts on the outputs alone
SCALE, LIMIT = "scale", "limit"  # what an alpha tensor does
DERIVED = (  # a delta that needs the whole weight, each time anew: exact, and twice the work
    "derived"
)


class Misfit(LocksmithError, ValueError):
    """Tensors of one adapter that do not fit each other."""


class Missing(Misfit):
    """An adapter of which some tensors are not in the file."""


class ModuleShape(NamedTuple):
    """Output rows and inner dimensions of the trained module; None: the tensors do not tell.
    `flat`: inner dims are one product.
    """

    out: int | None
    inner: Shape | None
    flat: bool = False


UNKNOWN = ModuleShape(None, None)


class Said:
    """A class attribute that is a sentence: the message of an id, made when it is asked for."""

    def __init__(self, id: str, **values: str):
        self.id, self.values = id, values

    def __get__(self, instance: object, owner: type | None = None) -> str:
        return message(self.id, **self.values)


class InStock(NamedTuple):
    """What the stock loader makes of adapters that it ignores or computes wrongly.

    name: what they are called, or the id of that. id: the sentence, without a full stop, with the
    gap `title`.
    """

    name: str
    id: str = "adapters.stock_ignores"

    @property
    def title(self) -> str:
        """What the adapters are called."""
        return message(self.name) if self.name.startswith(OF_ADAPTERS) else self.name

    @property
    def sentence(self) -> str:
        """What they are called, and what stock does."""
        return message(self.id, title=self.title)


OF_ADAPTERS = "adapters."  # how the ids of this room begin


class Product(NamedTuple):
    """A delta as the matrix up @ down, [out, rank] and [rank, columns]; up None: down is the matrix
    itself, [out, columns].
    """

    up: Tensor | None
    down: Tensor

    def matrix(self) -> Tensor:
        """The delta itself, [out, columns]."""
        return self.down if self.up is None else self.up @ self.down


class KroneckerProduct(NamedTuple):
    """A delta as kron(first, second)."""

    first: Product
    second: Product


class Measured(NamedTuple):
    """What is known of an adapter that needs the model's weight without that weight.

    relative: what it does to the weight, in parts of that weight, as a number or a product whose
    norm, times scale, is it.
    delta: a part that is added, before scale.
    """

    note: str
    relative: float | Product | None = None
    delta: Product | None = None
    rank: int | None = None
    scale: float | None = None


class Scaled(Protocol):
    """A strength as the plan says it."""

    @property
    def scale(self) -> float | None:
        """What multiplies the delta in place of alpha / rank; None: these do."""


class Planned(Protocol):
    """What a kind asks of an adapter of a plan, whose class stands in a room above this one."""

    @property
    def strength(self) -> Scaled:
        """How strong it is at strength 1."""

    @property
    def rank(self) -> int | None:
        """What alpha is divided by, where the shapes tell."""

    @property
    def padded_shape(self) -> Shape | None:
        """What the weight grows to under it; None: it does not."""


def shaped(**shapes: Iterable[int]) -> str:
    """Roles with their shapes, for a sentence: `up [16, 4], down [4, 8]`."""
    return ", ".join(f"{role} {list(shape)}" for role, shape in shapes.items())


def check_ranks(first: int, second: int, **shapes: Iterable[int]) -> None:
    """Raises Misfit where two factors have different ranks; shapes: theirs, by role."""
    if first == second:
        return
    one, other = (shaped(**{role: shape}) for role, shape in shapes.items())
    raise Misfit(
        message(
            "adapters.rank_of_each",
            first=one,
            first_rank=first,
            second=other,
            second_rank=second,
        )
    )


def roles(text: str) -> frozenset[str]:
    """A set of roles, from their names."""
    return frozenset(text.split())


def first_dimension(shapes: Shapes, role: str) -> ModuleShape:
    """The shape of a module whose whole parameter is `role`."""
    whole = shapes[role]
    return ModuleShape(whole[0] if whole else None, whole[1:] if whole else None)


class Kind:
    """An adapter kind. Any of the role sets in `needs` makes it; `takes` are roles it uses where
    present.
    """

    # What makes it
    name = ""
    needs: tuple[frozenset[str], ...] = ()
    takes: frozenset[str] = frozenset()
    borrows: tuple[str, ...] = ()  # roles of another adapter of the module that it reads too
    called: Mapping[str, str] = {}  # role in the file -> what the mathematics calls it
    silent: frozenset[str] = frozenset()  # roles that say something and weigh nothing
    # roles that stand once in the file, for all its adapters of this kind
    shared: frozenset[str] = frozenset()
    # roles that are one truth value each, for the options of the spec
    switches: tuple[str, ...] = ()
    precedence = 100  # kinds with a smaller number take their tensors first
    # roles: where one is in the file, lone tensors of this kind are halves of another
    never_beside: frozenset[str] = frozenset()
    variant_of = ""  # the kind with the same tensors, which this is instead where it `claims` them
    metadata: tuple[str, ...] = ()  # the keys of a header's metadata that `claims` asks for
    # whether its tensors' names and shapes tell it; else only a convention does, and under other
    # names it is another kind
    by_names = True

    # What the plan asks
    parameter = "weight"  # or "bias", or "both": which parameters of the module it changes
    # roles: where one of these is zero, the whole change is
    zeroed_by: frozenset[str] = frozenset()
    # roles by which a file says itself that the weight grows to what it holds
    grows_by: frozenset[str] = frozenset()
    # whether matrices of it may stand for a convolution, its inner dimensions as one
    flattens = False
    linear = True  # whether rows of the module can be changed without the others
    refusal: str | Said = ""  # why it is not applied
    # of a kind with a LoRA's tensors: the name and the value of the setting of PEFT that makes it
    told_by: tuple[str, ...] = ()
    # those of PEFT that the mathematics needs, as options of the spec
    settings: tuple[Setting, ...] = ()
    # what an alpha tensor does: SCALE the change by alpha / rank, LIMIT a rotation; "": nothing
    alpha_is = ""
    scaled = False  # multiplied by alpha / rank
    own_scale = False  # but by another number: a convention says by which, and nothing else can
    # whether PEFT scales it by the rank of its settings, not by that of its tensors
    rank_in_settings = False

    # What people read
    stock: InStock | None = None  # what the stock loader makes of it, where that is wrong

    # The mathematics
    # it adds a delta that does not depend on the weight: `delta`, `count_rows`, `narrow`,
    # `product`; else `patched`
    additive = False
    # the shape of the module, as the option "shape" of the spec, which its own tensors do not tell
    needs_shape = False
    whole = False  # the file holds a difference of the weight's size
    replaces = False  # the file holds values in place of the model's own, as a model does
    # a part of the model it was trained on is computed from the weight at hand: another base, or a
    # rounded one, is off
    of_its_base = False
    is_pair = False  # it is an up and a down, which all others are multiplied out to

    # Writing
    # the first of these roles that is there takes a strength which no tensor can say
    scale_into: tuple[str, ...] = ()
    vector = ""  # of kinds that change a bias: the role of that vector
    # the form of delta (Product or KroneckerProduct) that ComfyUI's own files keep as this kind
    stores: type | None = None

    # Resizing to a smaller up and down
    low_rank = False
    consumed: frozenset[str] = frozenset()  # roles that the new up and down stand for
    mark = ""  # what stands behind the module's name in all its keys

    # Host
    host_class = ""  # the class of the host that computes it as its trainer does
    host_drops: frozenset[str] = frozenset()  # roles that this class drops or computes wrongly

    @property
    def title(self) -> str:
        """As people call it: a name, or Said."""
        return ""

    @property
    def bypass(self) -> str:
        """ADDED, TURNED or DERIVED; "": it cannot act in the forward pass."""
        return ""

    def claims(self, shapes: ToldShapes, metadata: Mapping[str, str], settings: Settings) -> bool:
        """Of a variant: whether tensors of these shapes, in a file with these metadata and settings
        of PEFT, are its own.
        """
        return False

    def alpha_counts(self, present: Iterable[str]) -> bool:
        """Whether the alpha tensor of an adapter with these roles has an effect."""
        return bool(self.alpha_is)

    def asks(self, setting: str, shapes: ToldShapes, module: Shape) -> bool:
        """Whether a setting counts for tensors of these shapes, for a module of this shape."""
        return True

    def lacks(self, options: Settings, shapes: ToldShapes) -> str:
        """Why an adapter of these tensors is not computed with these options: which settings it
        needs besides; "" where it is.
        """
        needed = [
            setting.name
            for setting in self.settings
            if setting.needed and self.asks(setting.name, shapes, ())
        ]
        missing = [name for name in needed if name not in options]
        return self.needs_settings(*missing) if missing else ""

    def needs_settings(self, *names: str) -> str:
        """The sentence for settings that a file does not hold."""
        return message("adapters.needs_settings", kind=self.title, settings=joined(names, "and"))

    def shape(self, shapes: Shapes) -> ModuleShape:
        """The shape of the module it was trained on. Raises Misfit, IndexError or TypeError for
        tensors that do not fit, Missing where some are not there.
        """
        return UNKNOWN

    def part_missing(self, module: ModuleShape, out: int, inner: Shape) -> str:
        """Why a part of it may be missing, where its module is not of the layer's shape; "" where
        nothing says so.
        """
        return ""

    def rank(self, shapes: ToldShapes) -> int | None:
        """What alpha is divided by; None where the shapes do not tell."""
        return None

    def titled(self, kernel: Shape) -> str:
        """The title for a module with this kernel."""
        return self.title or self.name

    def factor(self, spec: AdapterSpec, rank: int | None) -> float:
        """What the product of its own tensors is multiplied with at strength 1."""
        if not self.scaled:
            return 1.0
        return spec.scale_for(rank) if rank else 1.0 if spec.scale is None else spec.scale

    def alpha_saying(
        self, spec: AdapterSpec, rank: int | None, shapes: Shapes
    ) -> tuple[float | None, float]:
        """(the alpha tensor of which readers make the spec's strength, what the tensors are still
        to be multiplied with).

        For readers that demand an alpha. None: the kind has none, or no number says it. An alpha of
        0 means 'not set' to all.
        """
        factor = self.factor(spec, rank)
        if self.alpha_is != SCALE or not rank:
            return None, factor
        return (factor * rank, 1.0) if factor else (float(rank), 0.0)

    def compared_strength(self, spec: AdapterSpec, rank: int | None, shapes: Shapes) -> float:
        """Of a kind that is not additive: a number that differs where adapters of the same tensors
        act differently by their alpha.
        """
        return self.factor(spec, rank) if self.alpha_is == SCALE else spec.alpha or 0.0

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float
    ) -> Tensor:
        """The fp32 weight under the adapter. Raises AdapterError."""
        raise NotImplementedError

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> Tensor:
        """The fp32 delta of a module's weight of this shape. Raises AdapterError."""
        raise NotImplementedError

    def count_rows(self, tensors: Tensors) -> int:
        """Output rows of the module the adapter was trained on."""
        raise NotImplementedError

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        """The tensors of these output rows alone; None where they cannot be cut."""
        return None

    def row_grain(self, tensors: Tensors) -> int | None:
        """Of how many rows a piece of the weight is made that can be patched without the others:
        any multiple of it, from any multiple on. None: all rows are needed at once.
        """
        return None

    def product(
        self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype
    ) -> Product | KroneckerProduct:
        """The delta of the whole module as factors of `dtype`, the scale in them; full matrices
        stay in fp32.
        """
        raise NotImplementedError

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        """The rank of `product` as one pair, for a matrix of these sides; None where it is a matrix
        or a vector.
        """
        return None

    def measured(self, spec: AdapterSpec, tensors: Tensors, out: int, columns: int) -> Measured:
        """What can be told of a kind that is not additive without the weight."""
        return Measured(message("adapters.needs_weight"))

    def stored(self, delta: Any, shape: Shape) -> Iterator[tuple[str, Tensor]]:
        """(name behind the module's, tensor) of a delta of the form `stores`, the scale in it;
        shape: of a convolution's weight, or ().
        """
        raise NotImplementedError

    def kernel(self, shapes: Shapes) -> Shape | None:
        """The kernel of the module; () for a linear layer, None where the tensors
        may be of either.
        """
        return None

    def pairs(self, shapes: Shapes) -> Iterator[tuple[Mapping[str, str], Rows]]:
        """Of a kind that is several LoRAs, each on rows of its own: (their roles -> its own, these
        rows) of each.
        """
        return iter(())

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        """The `weights` of `host_class` for an adapter of a plan, or of these rows of it; None
        where the host computes otherwise.

        Of a kind without a class the host's own patch: ("diff", (tensor,)).
        """
        return None

    def host_pair(self, weights: HostWeights) -> tuple[Tensor, Tensor, float] | None:
        """up, down and scale out of the `weights` of `host_class`, where it holds a plain pair."""
        return None

    def check_base(self, spec: AdapterSpec, tensors: Tensors, weight: Tensor) -> None:
        """Of a kind with `of_its_base`: raises AdapterError where this weight is none that the
        adapter was trained on.
        """

    def on_outputs(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> AdapterSpec | None:
        """The spec, made to say so, of a DERIVED adapter which on a weight of this shape acts on
        outputs alone; else None.
        """
        return None


class Decomposition:
    """A division of a weight into direction and magnitude, beside a kind that adds a delta."""

    title = ""
    roles: tuple[str, ...] = ()  # of the magnitudes
    stock: InStock | None = None  # as Kind.stock
    note: str | Said = ""  # what is measured without the weight

    def titled(self, kind: Kind) -> str:
        """The title for a kind under it."""
        if kind.is_pair:
            return self.title
        return message("adapters.decomposed", decomposition=self.title, kind=kind.title)

    def per_output(self, role: str, shape: Shape) -> bool:
        """Whether magnitudes of this shape are one for each output, and not for each input."""
        raise NotImplementedError

    def goes_by_rows(self, spec: AdapterSpec, tensors: Tensors) -> bool:
        """Whether a row of the weight can be given its length without the others."""
        present = [role for role in self.roles if role in tensors]
        return all(self.per_output(role, tuple(tensors[role].shape)) for role in present)

    def vector(self, role: str, tensor: Tensor, out: int) -> Tensor | None:
        """The magnitudes of `out` outputs as [out]; None where they are something else."""
        raise NotImplementedError

    def stored(self, role: str, vector: Tensor, dimensions: int, flat: bool) -> Tensor:
        """Magnitudes [out] in the form that `role` has for a weight of so many dimensions; flat:
        this writer's is a vector always.
        """
        raise NotImplementedError

    def stock_is_right(self, role: str, shape: Shape | None) -> bool:
        """Whether the stock loader computes magnitudes of this shape."""
        return False

    def decomposed(
        self, spec: AdapterSpec, tensors: Tensors, weight: Tensor, change: Tensor, cut: bool
    ) -> Tensor:
        """The fp32 weight with a change, its length along each direction replaced by the
        magnitudes.

        spec.rows: these rows of the trained module are the weight; cut: there are more of them.
        Raises AdapterError.
        """
        raise NotImplementedError
