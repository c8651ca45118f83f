"""LoRAs that stand for more than their product, as training took a part off the base model when it
began.

What was taken off is not in the file, but follows from the base: W - taken(W) + scale * up @ down.
"""

from __future__ import annotations

from ...messages import message
from ..kind import (
    ADDED,
    DERIVED,
    SCALE,
    HostWeights,
    InStock,
    Kind,
    Measured,
    Misfit,
    ModuleShape,
    Planned,
    Product,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    check_ranks,
    roles,
    shaped,
)
from ..lazy import helpers, torch
from ..rows import Rows
from ..spec import AdapterError, AdapterSpec
from .lora import LoRA

PRINCIPAL, MIDDLE, LAST = "largest", "middle", "smallest"
# of a T-LoRA's inputs with singular vectors of its base; those of others have some rank / inputs
MIN_OVERLAP = 0.3


class ChangedBase(LoRA):
    """Tensors and strength are a LoRA's; a convention names the kind, as only the
    settings tell it.
    """

    needs: tuple[frozenset[str], ...] = ()
    additive = is_pair = low_rank = linear = False
    of_its_base = True
    by_names = False
    zeroed_by = frozenset()
    scale_into = ()
    stores = None
    host_class = ""
    bypass = DERIVED

    def taken(self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor) -> torch.Tensor:
        """What training began without: [out, in] fp32 of the base weight."""
        raise NotImplementedError

    def pair(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """The product that the file holds, as up [out, r] and down [r, in]."""
        return helpers.take_matrix(tensors, "up"), helpers.take_matrix(tensors, "down")

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        if torch.Size(weight.shape[2:]).numel() != 1 or weight.dim() < 2:
            raise AdapterError(
                message("adapters.linear_layers_only", kind=self.title, weight=list(weight.shape))
            )
        up, down = self.pair(tensors)
        helpers.check_all_rows(spec, up.shape[0], self.title, weight)
        product = helpers.multiply(up, down, ("up", "down"))
        matrix = weight.flatten(1)
        added = helpers.fit(product, matrix.shape, tensors) * helpers.factor_of(self, spec, tensors)
        return weight + strength * (added - self.taken(spec, tensors, matrix)).reshape(weight.shape)

    def measured(self, spec: AdapterSpec, tensors: Tensors, out: int, columns: int) -> Measured:
        pair = Product(*self.pair(tensors))
        return Measured(
            message("adapters.measured_pair_alone"),
            delta=pair,
            rank=pair.down.shape[0],
            scale=helpers.factor_of(self, spec, tensors),
        )

    def host(
        self, tensors: Tensors, alpha: float | None, rows: Rows | None, adapter: Planned
    ) -> HostWeights | None:
        return None


class PiSSA(ChangedBase):
    """The base without its `rank` largest singular parts (PEFT tuners/lora/layer.py, pissa_init;
    arXiv:2404.02948).
    """

    name, title = "pissa", "PiSSA"
    told_by = ("init_lora_weights", "pissa")
    stock = InStock("PiSSA", "adapters.stock_adds_part_twice")

    def taken(self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return Singular(weight).part(PRINCIPAL, helpers.size(tensors, 0, "down"))


class OLoRA(ChangedBase):
    """The base without scale times the first `rank` columns of its QR decomposition (PEFT,
    olora_init; arXiv:2406.01775).
    """

    name, title = "olora", "OLoRA"
    told_by = ("init_lora_weights", "olora")
    stock = InStock("OLoRA", "adapters.stock_leaves_part_in")

    def taken(self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor) -> torch.Tensor:
        rank = helpers.size(tensors, 0, "down")
        first, second = torch.linalg.qr(weight)
        part: torch.Tensor = first[:, :rank] @ second[:rank]
        return part * spec.scale_for(rank)


class KaSA(ChangedBase):
    """The base without its `rank` smallest singular parts, lora_diag [r] between the factors (PEFT
    lora/variants.py; arXiv:2412.06071).
    """

    name, title = "kasa", "KaSA"
    needs = (roles("down up lora_diag"),)
    takes = roles("alpha")
    silent = frozenset()
    precedence = 8
    by_names = True
    stock = InStock("KaSA", "adapters.stock_leaves_part_in_drops_diagonal")

    def shape(self, shapes: Shapes) -> ModuleShape:
        if shapes["lora_diag"] != shapes["down"][:1]:
            raise Misfit(
                message(
                    "adapters.different_ranks",
                    tensors=shaped(lora_diag=shapes["lora_diag"], down=shapes["down"]),
                )
            )
        return super().shape(shapes)

    def pair(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        up, down = super().pair(tensors)
        diagonal = _each(helpers.take(tensors, "lora_diag"), down.shape[0], tensors)
        return up, diagonal[:, None] * down

    def taken(self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return Singular(weight).part(LAST, helpers.size(tensors, 0, "down"))


class _TLoRA(Kind):
    """What both forms of T-LoRA have: q [r, in], p [out, r], lambda [1, r] and alpha."""

    title = "T-LoRA"
    takes = roles("alpha scalar")
    alpha_is = SCALE
    scaled = True
    stock = InStock("T-LoRA")

    def shape(self, shapes: Shapes) -> ModuleShape:
        inputs, outputs = shapes["tlora_q"], shapes["tlora_p"]
        check_ranks(inputs[0], outputs[1], q_layer=inputs, p_layer=outputs)
        return ModuleShape(outputs[0], inputs[1:])

    def rank(self, shapes: ToldShapes) -> int | None:
        inputs = shapes.get("tlora_q")
        return inputs[0] if inputs else None

    def kernel(self, shapes: Shapes) -> Shape | None:
        return tuple(shapes["tlora_q"][2:])

    def count_rows(self, tensors: Tensors) -> int:
        return helpers.size(tensors, 0, "tlora_p")


class TLoRA(_TLoRA, ChangedBase):
    """q [r, in], p [out, r], lambda [1, r]: scale * (p diag(lambda) q - U S V), the singular parts
    that q and p began as.

    LyCORIS modules/tlora.py (4.1.3; arXiv:2507.05964). What is subtracted is not saved; that it is
    of this base is seen by the inputs that q reads, of which training leaves most.
    """

    name = "tlora"
    needs = (roles("tlora_q tlora_p tlora_lambda"),)
    silent = frozenset()
    settings = ()
    precedence = 31
    by_names = True

    def pair(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        return _tlora(tensors, "tlora_")

    def taken(self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor) -> torch.Tensor:
        singular = Singular(weight)
        block = self._began_as(singular, tensors)
        return singular.part(block, helpers.size(tensors, 0, "tlora_q")) * helpers.factor_of(
            self, spec, tensors
        )

    def check_base(self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor) -> None:
        if not weight.is_meta:
            self._began_as(Singular(weight.flatten(1).to(torch.float32)), tensors)

    def _began_as(self, singular: Singular, tensors: Tensors) -> str:
        """Which block of the singular parts q was made of."""
        inputs = helpers.take_matrix(tensors, "tlora_q")
        overlaps = {block: singular.overlap(block, inputs) for block in (PRINCIPAL, MIDDLE, LAST)}
        best = max(overlaps, key=overlaps.__getitem__)
        if overlaps[best] < MIN_OVERLAP:
            raise AdapterError(message("adapters.tlora_other_base", kind=self.title))
        return best

    def measured(self, spec: AdapterSpec, tensors: Tensors, out: int, columns: int) -> Measured:
        return Measured(message("adapters.needs_base_weight"))


class TLoRAWithBase(_TLoRA):
    """As forks save it, with what it began as: base_q, base_p, base_lambda beside
    q, p and lambda.
    """

    name = "tlora_with_base"
    needs = (TLoRA.needs[0] | roles("tlora_base_q tlora_base_p tlora_base_lambda"),)
    precedence = 30
    additive = True
    bypass = ADDED

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        product = self.product(spec, tensors, torch.float32)
        return helpers.fit(product.matrix(), shape, tensors, flattened=True)

    def narrow(self, tensors: Tensors, start: int, length: int) -> Tensors | None:
        return helpers.narrow_roles(tensors, start, length, tlora_p=0, tlora_base_p=0)

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        up, down = _tlora(tensors, "tlora_")
        first_up, first_down = _tlora(tensors, "tlora_base_")
        if (up.shape, down.shape) != (first_up.shape, first_down.shape):
            raise AdapterError(
                message("adapters.not_valid", kind=self.title, tensors=helpers.describe(tensors))
            )
        up = torch.cat((up, -first_up), 1) * helpers.factor_of(self, spec, tensors)
        return Product(up.to(dtype), torch.cat((down, first_down)).to(dtype))

    def product_rank(self, shapes: Shapes, sides: tuple[int, int]) -> int | None:
        return 2 * shapes["tlora_q"][0]


def _tlora(tensors: Tensors, start: str) -> tuple[torch.Tensor, torch.Tensor]:
    """p diag(lambda) and q of the roles that begin so."""
    outputs, inputs = (helpers.take_matrix(tensors, start + role) for role in "pq")
    if outputs.shape[1] != inputs.shape[0]:
        helpers.multiply(outputs, inputs, (f"{start}p", f"{start}q"))
    between = _each(helpers.take(tensors, f"{start}lambda"), inputs.shape[0], tensors)
    return outputs * between, inputs


def _each(numbers: torch.Tensor, rank: int, tensors: Tensors) -> torch.Tensor:
    """One number for each rank as [r]."""
    if numbers.numel() != rank:
        raise AdapterError(
            message("adapters.not_one_per_rank", rank=rank, tensors=helpers.describe(tensors))
        )
    return numbers.flatten()


class Singular:
    """The singular parts of a matrix, in blocks of some rank.

    From the eigenvectors of the smaller Gram matrix, in fp64: a fraction of the time of a singular
    value decomposition.
    """

    def __init__(self, matrix: torch.Tensor):
        self.tall = matrix.shape[0] > matrix.shape[1]
        self.wide = (matrix.T if self.tall else matrix).to(torch.float64)
        self.vectors: torch.Tensor = torch.linalg.eigh(self.wide @ self.wide.T).eigenvectors

    def block(self, which: str, rank: int) -> torch.Tensor:
        """The singular vectors of the shorter side, [side, rank]; `which`: of the largest, middle
        or smallest values.
        """
        side = self.vectors.shape[1]
        rank = min(rank, side)
        # The eigenvalues rise; the middle is counted from the largest one.
        start = {PRINCIPAL: side - rank, MIDDLE: side - (side - rank) // 2 - rank, LAST: 0}[which]
        return self.vectors[:, start : start + rank]

    def part(self, which: str, rank: int) -> torch.Tensor:
        """The matrix made of these singular parts alone, fp32."""
        vectors = self.block(which, rank)
        part = (vectors @ (vectors.T @ self.wide)).to(torch.float32)
        return part.T if self.tall else part

    def overlap(self, which: str, inputs: torch.Tensor) -> float:
        """The share, from 0 to 1, of the space of the rows of `inputs` [r, in] that these parts
        read too.
        """
        if inputs.is_meta:
            return 1.0
        vectors = self.block(which, inputs.shape[0])
        read = vectors if self.tall else torch.linalg.qr((vectors.T @ self.wide).T).Q
        own = torch.linalg.qr(inputs.T.to(torch.float64)).Q
        if read.shape[0] != own.shape[0]:
            return 0.0
        shared: torch.Tensor = torch.linalg.vector_norm(own.T @ read) ** 2
        most: int = min(own.shape[1], read.shape[1])
        return shared.item() / max(1, most)


KINDS = (PiSSA(), OLoRA(), KaSA(), TLoRA(), TLoRAWithBase())
