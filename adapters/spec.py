"""What an adapter is, apart from its tensors: a torch-free description, and its error."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import LocksmithError
from .rows import Rows

NUMBERS = ("alpha", "scalar")  # roles that are one number each


class AdapterError(LocksmithError, ValueError):
    """Tensors that are no adapter of the named kind, or do not fit the weight: the text names role
    and shapes.
    """


class AdapterSpec(NamedTuple):
    """One adapter as its file describes it; hashable, so it can be a key of a cache.

    kind: the name of a kind.
    alpha: the file's own alpha; None (no alpha stated) and 0 (all trainers' "unset") mean alpha =
        rank. For LyCORIS' and kohya's OFT and BOFT it is the constraint; there None means
        unconstrained.
    scale: what to multiply the delta with instead of alpha / rank: rsLoRA's alpha / sqrt(rank),
        PEFT's alpha / r of a LoKr.
    rows: given when the weight is only these output rows of the module the adapter was trained on.
    swap: the two halves of the output dimension are exchanged between file and model (scale and
        shift of an AdaLN).
    options: what tensors cannot tell, as pairs: the settings a kind names (`Kind.settings`), its
        switches (`Kind.switches`), and
        shape (tuple of int): of the module it was trained on, for kinds with `Kind.needs_shape`;
        pad_to (tuple of int): the weight grows to this shape, filled with zeros, before the
        adapter is applied;
        columns (int): the adapter was trained on so many of the weight's first inputs, and leaves
        the others as they are.
    """

    kind: str
    alpha: float | None = None
    scale: float | None = None
    rows: Rows | None = None
    swap: bool = False
    options: tuple[tuple[str, object], ...] = ()

    @classmethod
    def restored(cls, values: tuple[Any, ...]) -> AdapterSpec:
        """The spec whose values these are; the host's copies are plain tuples, also inside."""
        spec = cls(*values)
        return spec if spec.rows is None else spec._replace(rows=Rows(*spec.rows))

    def option(self, name: str, default: Any = None) -> Any:
        """The value of the option `name`, or `default`."""
        return dict(self.options).get(name, default)

    def scale_for(self, rank: int) -> float:
        """The factor of the delta: `scale` where it is given, else alpha / rank."""
        if self.scale is not None:
            return self.scale
        return self.alpha / rank if self.alpha else 1.0
