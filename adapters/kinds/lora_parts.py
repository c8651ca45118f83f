"""LoRA in parts (kohya-ss/musubi-tuner networks/lora.py LoRAModule with split_dims, as its fork for
YuE2, AkaneTendo25/musubi-tuner networks/lora_yue2.py, saves it): a pair for each part of a fused
layer, one behind another in its outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ...messages import joined, message
from ..kind import (
    ADDED,
    SCALE,
    InStock,
    Kind,
    Misfit,
    Missing,
    ModuleShape,
    Product,
    Said,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    check_ranks,
    roles,
    shaped,
)
from ..lazy import helpers, products, torch
from ..rows import Rows, laid
from ..spec import AdapterError, AdapterSpec
from .dora import DECOMPOSED

DOWN, UP = "lora_down.", "lora_up."
MOST = 8  # parts; as many have a row in roles.table


class LoRAInParts(Kind):
    """lora_down.N [r, in], lora_up.N [rows of part N, r]: each part's rows change by alpha / r *
    up @ down; alpha and r are the same for all.
    """

    name, title = "lora_parts", Said("adapters.lora_in_parts")
    # Any pair makes it, so that what the file lacks of the others can be said.
    needs = tuple(roles(f"{DOWN}{part} {UP}{part}") for part in range(MOST))
    consumed = frozenset().union(*needs)
    takes = DECOMPOSED | consumed
    scaled = additive = low_rank = True
    alpha_is = SCALE
    mark = "lora_"
    stock = InStock("adapters.lora_in_parts")
    bypass = ADDED

    def shape(self, shapes: Shapes) -> ModuleShape:
        count = max(_parts(shapes)) + 1
        missing = [role for part in range(count) for role in _named(part) if role not in shapes]
        if missing:
            tensors = shaped(**shapes)
            raise Missing(
                message("adapters.parts_missing", roles=joined(missing, "and"), tensors=tensors)
            )
        first = shapes[f"{DOWN}0"]
        for down, up in map(_named, range(count)):
            both = {up: shapes[up], down: shapes[down]}
            if any(len(shape) != 2 for shape in both.values()):
                raise Misfit(message("adapters.must_be_matrices", tensors=shaped(**both)))
            check_ranks(shapes[up][1], shapes[down][0], **both)
            if shapes[down] != first:
                tensors = shaped(**{f"{DOWN}0": first, down: shapes[down]})
                raise Misfit(message("adapters.do_not_belong_together", tensors=tensors))
        return ModuleShape(sum(shapes[up][0] for _, up in map(_named, range(count))), first[1:])

    def part_missing(self, module: ModuleShape, out: int, inner: Shape) -> str:
        if module.out is None or module.inner != inner or module.out >= out:
            return ""
        return message("adapters.last_part_missing", rows=module.out, outputs=out)

    def rank(self, shapes: ToldShapes) -> int | None:
        down = next((shape for role, shape in shapes.items() if role.startswith(DOWN)), None)
        return down[0] if down else None

    def kernel(self, shapes: Shapes) -> Shape | None:
        return ()

    def pairs(self, shapes: Shapes) -> Iterator[tuple[Mapping[str, str], Rows]]:
        names = [_named(part) for part in _parts(shapes)]
        for (down, up), rows in zip(names, laid(shapes[up][0] for _, up in names), strict=True):
            yield {"down": down, "up": up}, rows

    def _pairs(self, tensors: Tensors) -> list[tuple[str, str, Rows]]:
        """(the role of an up, that of its down, the rows of the module that they change)."""
        for part in _parts(tensors) or [0]:
            for role in _named(part):
                helpers.size(tensors, 1, role)
        shapes = {role: tuple(tensor.shape) for role, tensor in tensors.items()}
        return [(pair["up"], pair["down"], rows) for pair, rows in self.pairs(shapes)]

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        deltas = [products.low_rank(tensors, up, down) for up, down, _ in self._pairs(tensors)]
        if len({delta.shape[1:] for delta in deltas}) > 1:
            text = message("adapters.do_not_belong_together", tensors=helpers.describe(tensors))
            raise AdapterError(text)
        whole = torch.cat(deltas) * helpers.factor_of(self, spec, tensors)
        return helpers.fit(whole, shape, tensors)

    def count_rows(self, tensors: Tensors) -> int:
        return sum(rows.length for _, _, rows in self._pairs(tensors))

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        wanted, cut = Rows(start, length), dict(tensors)
        for up, down, rows in self._pairs(tensors):
            common = rows.intersect(wanted)
            if common is None:
                del cut[up], cut[down]
            else:
                cut[up] = tensors[up].narrow(0, *common.shift(-rows.start))
        return cut

    def row_grain(self, tensors: Tensors) -> int | None:
        return 1

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        pairs = [
            products.pair(tensors, up, down, "", dtype) for up, down, _ in self._pairs(tensors)
        ]
        up = torch.block_diag(*(up for up, _ in pairs))
        down = torch.cat([down for _, down in pairs])
        return Product(up * helpers.factor_of(self, spec, tensors), down)

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return sum(shape[0] for role, shape in shapes.items() if role.startswith(DOWN))


def _parts(names: Iterable[str]) -> list[int]:
    """The numbers of the parts of which there is anything, in their order."""
    numbers = (name.rpartition(".")[2] for name in names if name.startswith((DOWN, UP)))
    return sorted({int(number) for number in numbers})


def _named(part: int) -> tuple[str, str]:
    """The roles of a part's pair."""
    return f"{DOWN}{part}", f"{UP}{part}"


KINDS = (LoRAInParts(),)
