"""The output LORA_MODEL of the nodes that load files: what they loaded, in ComfyUI's names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from itertools import accumulate
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..adapters.spec import AdapterError
from ..lora.copies import compared
from ..lora.io.lora_model import native_name
from ..lora.merge.block_weights import read_block_weights
from ..lora.merge.merge import MergeConfig
from ..lora.merge.report import MergeReport
from ..lora.not_finite import without_odd
from ..lora.rewrite.convert import Refused, convert
from ..lora.rewrite.rename import NATIVE
from ..messages import Message, joined, message
from ..planning.plan import Plan
from . import host
from .faults import NodeError, in_plain_words
from .files import lora_path, own_maps
from .layer_weights import trained_layers
from .merging import Entry, merged, sources_of
from .rows import StackRow

logger = logging.getLogger("lora_locksmith")
# All by which a dictionary is read or changed.
ASKED = (
    "__contains__",
    "__delitem__",
    "__eq__",
    "__getitem__",
    "__ior__",
    "__iter__",
    "__len__",
    "__ne__",
    "__or__",
    "__reversed__",
    "__ror__",
    "__setitem__",
    "clear",
    "copy",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
)


class MadeWhenUsed(dict[str, Tensor]):
    """A LORA_MODEL that is made when it is first read: it costs nothing where no node takes it, and
    is there for a node that is connected later, when the loader is not run again.
    """

    def __init__(self, make: Callable[[], dict[str, Tensor]]):
        super().__init__()
        self._make: Callable[[], dict[str, Tensor]] | None = make

    def make(self) -> None:
        """Make it, unless it is. Raises NodeError where that cannot be done, each time it is asked
        for.
        """
        if self._make is not None:
            tensors = self._make()
            self._make = None
            super().update(tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied as a plain dictionary."""
        return dict, (dict(self),)


def _after_making(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    @wraps(method)
    def ask(self: MadeWhenUsed, *values: Any, **named: Any) -> Any:
        for one in (self, *values):
            if isinstance(one, MadeWhenUsed):
                one.make()
        return method(self, *values, **named)

    return ask


for _name in ASKED:
    setattr(MadeWhenUsed, _name, _after_making(_name))


def lora_model_output(tooltip: str) -> io.Output:
    """The output LORA_MODEL, which stands behind all others, so that old workflows keep theirs."""
    return io.LoraModel.Output("LORA_MODEL", display_name="LORA_MODEL", tooltip=tooltip)


def is_taken(hidden: Any, slot: int) -> bool:
    """Whether a node of the prompt that runs takes this output, as far as is told.

    hidden: what the host tells the node: `prompt` and `unique_id`.
    """
    prompt = (hidden.prompt if hidden else None) or {}
    values = (value for spec in prompt.values() for value in spec.get("inputs", {}).values())
    return any(
        isinstance(value, list) and value[:2] == [hidden.unique_id, slot] for value in values
    )


def of_file(lora_name: str, model, clip, blocks: str = "") -> MadeWhenUsed:
    """A listed file at strength 1, with its layer weights folded in: layers that keep their
    strength stay as they are. What ComfyUI's names cannot hold so (a DoRA of parts of a fused
    module) becomes what Merge LoRAs makes of it.
    """

    def make() -> dict[str, Tensor]:
        entry = Entry(lora_name, None, blocks=blocks)
        with suppress(Refused):
            kept, plan = _converted(lora_name, model, clip)
            return _weighted(kept, plan, entry, model, clip) if blocks.strip() else kept
        return _merged([entry], model, clip, [])

    return MadeWhenUsed(make)


def of_rows(rows: Sequence[StackRow], model, clip) -> tuple[MadeWhenUsed, list[Message]]:
    """(the rows that are on, merged at their strengths; what that loses, filled in when it is
    made).
    """
    entries = [
        Entry(row.name, None, row.strength, row.strength_clip, row.blocks)
        for row in rows
        if row.on and (row.strength or row.strength_clip)
    ]
    losses: list[Message] = []

    def make() -> dict[str, Tensor]:
        losses[:] = []
        return _merged(entries, model, clip, losses) if entries else {}

    return MadeWhenUsed(make), losses


def _converted(lora_name: str, model, clip) -> tuple[dict[str, Tensor], Plan]:
    """(all of the file that has a place, as Save LoRA would write it; its plan). Copies, as the
    file may be written anew. Raises Refused.
    """
    with in_plain_words(lora_name):
        inspection = host.inspect(model, clip, lora_path(lora_name), own_maps(), whole=True)
        tensors = host.read(inspection.path).to_be_written()
        plan = without_odd(compared(inspection, tensors), tensors.__getitem__, True)
        made = convert(plan, tensors, NATIVE, drop=True)
        return {name: tensor.clone() for name, tensor in made.items()}, plan


def _weighted(
    kept: Mapping[str, Tensor], plan: Plan, entry: Entry, model, clip
) -> dict[str, Tensor]:
    """What `_converted` gives, with what layer weights make of the layers that they change."""
    made = _merged([entry], model, clip, [], whole=0.0)  # which tells weights that are none
    weights = read_block_weights(entry.blocks)
    changed = {
        native_name(weight)
        for _, weight, layer in trained_layers(plan)
        if weights.factor(*layer) != 1
    }
    rest = {name: tensor for name, tensor in kept.items() if changed.isdisjoint(_starts(name))}
    return rest | made


def _starts(name: str) -> Iterator[str]:
    """What a name begins with, word by word."""
    return accumulate(name.split("."), "{}.{}".format)


def _merged(
    entries: Sequence[Entry], model, clip, losses: list[Message], *, whole: float = 1.0
) -> dict[str, Tensor]:
    """whole: what a layer weight of 1 becomes."""
    recipe = MergeConfig()
    try:
        with in_plain_words("LORA_MODEL"):
            sources = [
                source._replace(blocks=source.blocks._replace(whole=whole))
                for source in sources_of(entries, model, clip)
            ]
            report = MergeReport(sources, recipe)
            made = merged(sources, recipe, report, host.weights_of(model, clip), overlaps=False)
    except (AdapterError, ValueError) as error:
        raise NodeError(message("nodes.no_lora_model", error=error)) from None
    losses += report.losses
    if losses:
        logger.warning("LoRA Locksmith: LORA_MODEL: %s", joined(losses, "space"))
    return made
