"""What an adapter is, apart from its tensors: a torch-free description, its error, and the registry of the kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..key_maps.errors import LocksmithError, exhausted

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor]


MAGNITUDES = ("magnitude", "dora_scale")  # the roles of a DoRA: per output, and along either axis
NUMBERS = ("alpha", "scalar")  # roles that are one number each


class AdapterError(LocksmithError, ValueError):
    """Tensors that are no adapter of the named kind, or do not fit the weight: the text names role and shapes."""


# What torch and our own checks raise for tensors that are not what was promised; AdapterError and Refused are among them.
FAULTS = (ValueError, RuntimeError, IndexError, TypeError, KeyError, OverflowError, ZeroDivisionError)


def first_line(error: Exception) -> str:
    """What an error says, without the rest of a long story; its kind where it says nothing."""
    return exhausted(error) or (str(error) or type(error).__name__).splitlines()[0]


class AdapterSpec(NamedTuple):
    """One adapter as its file describes it; hashable, so it can be a key of a cache.

    kind: one of `kinds()`.
    alpha: the file's own alpha; None (no alpha stated) and 0 (all trainers' "unset") mean alpha = rank. For LyCORIS and kohya
        OFT and BOFT it is the constraint; there None means unconstrained.
    scale: what to multiply the delta with instead of alpha / rank: rsLoRA's alpha / sqrt(rank), PEFT's alpha / r of a LoKr.
    rows: (start, length) when the weight is only these output rows of the module the adapter was trained on.
    swap: the two halves of the output dimension are exchanged between file and model (scale and shift of an AdaLN).
    options: what tensors cannot tell, as pairs. Known names:
        feedforward (bool): PEFT (IA)^3 scales the input; on_input (bool): the same of LyCORIS.
        use_cayley_neumann (bool), num_cayley_neumann_terms (int), coft (bool), eps (float): as in PEFT's OFTConfig.
        pad_to (tuple of int): the weight grows to this shape, filled with zeros, before the adapter is applied.
    """

    kind: str
    alpha: float | None = None
    scale: float | None = None
    rows: tuple[int, int] | None = None
    swap: bool = False
    options: tuple[tuple[str, object], ...] = ()

    def option(self, name: str, default: Any = None) -> Any:
        """The value of the option `name`, or `default`."""
        return dict(self.options).get(name, default)

    def scale_for(self, rank: int) -> float:
        """The factor of the delta: `scale` where it is given, else alpha / rank."""
        if self.scale is not None:
            return self.scale
        return self.alpha / rank if self.alpha else 1.0


class Additive(NamedTuple):
    """A kind whose effect is a delta that does not depend on the weight.

    delta: (spec, tensors, shape of the module's weight) -> fp32 delta of this shape.
    count_rows: tensors -> output rows of the module the adapter was trained on.
    narrow: (tensors, start, length) -> the tensors of these output rows alone, or None where they cannot be cut.
    """

    delta: Callable[[AdapterSpec, Tensors, tuple[int, ...]], Tensor]
    count_rows: Callable[[Tensors], int]
    narrow: Callable[[Tensors, int, int], Tensors | None]


Patch = Callable[[AdapterSpec, "Tensors", "Tensor", float], "Tensor"]

ADDITIVE: dict[str, Additive] = {}
PATCHES: dict[str, Patch] = {}


def additive(*kinds: str, count_rows, narrow):
    """Register a function as the delta of `kinds`; see Additive."""

    def register(delta):
        ADDITIVE.update(dict.fromkeys(kinds, Additive(delta, count_rows, narrow)))
        return delta

    return register


def patches(*kinds: str):
    """Register (spec, tensors, fp32 weight, strength) -> new weight as the effect of `kinds`, which depends on the weight."""

    def register(patch):
        PATCHES.update(dict.fromkeys(kinds, patch))
        return patch

    return register
