"""LoRAs for which PEFT changed the base model when training began: PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775).

What was taken off the base is not in the file, but follows from the base: W - taken(W) + scale * up @ down.
"""

from __future__ import annotations

from ..kind import DERIVED, Measured, Product
from ..lazy import helpers, products, torch
from ..spec import AdapterError
from .lora import LoRA

NOTE = "measured is the pair alone; what was taken off the base model when training began needs that model's weight"


class ChangedBase(LoRA):
    """Tensors and strength are a LoRA's; a convention names the kind, as only the settings tell it."""

    needs = ()
    additive = is_pair = low_rank = linear = by_names = False
    rebuilds_base = True
    zeroed_by = scale_into = ()
    stores = None
    host_class = ""
    bypass = DERIVED

    def taken(self, spec, weight, tensors):
        """What training began without: [out, in] fp32 of the base weight."""
        raise NotImplementedError

    def patched(self, spec, tensors, weight, strength):
        if weight.dim() < 2 or weight[0].numel() != weight.shape[1]:
            raise AdapterError(f"{self.title} is of linear layers and 1x1 convolutions, and the weight is {list(weight.shape)}")
        if spec.rows is not None and spec.rows != (0, self.count_rows(tensors)):
            raise AdapterError(f"{self.title} needs all rows of its module; the weight {list(weight.shape)} is some of them")
        added, matrix = self.added(tensors), weight.flatten(1)
        change = helpers.fit(helpers.multiply(*added, ("up", "down")), matrix.shape, tensors) * spec.scale_for(added.down.shape[0])
        return weight + strength * (change - self.taken(spec, matrix, tensors)).reshape(weight.shape)

    def added(self, tensors):
        """The pair that is added, before its scale, in fp32."""
        return Product(*(products.matrix(tensors, role, torch.float32) for role in ("up", "down")))

    def measured(self, spec, tensors, out, columns):
        added = self.added(tensors)
        return Measured(NOTE, delta=added, rank=added.down.shape[0], scale=spec.scale_for(added.down.shape[0]))

    def host(self, tensors, alpha, rows, adapter):
        return None


class PiSSA(ChangedBase):
    """The base without its `rank` largest singular parts (PEFT tuners/lora/layer.py, pissa_init)."""

    name, title = "pissa", "PiSSA"
    stock = "PiSSA: the part that training took off the base model is taken off. Stock would add it a second time"

    def taken(self, spec, weight, tensors):
        return singular_parts(weight, helpers.size(tensors, 0, "down"))


class OLoRA(ChangedBase):
    """The base without scale times the first `rank` columns of its QR decomposition (PEFT tuners/lora/layer.py, olora_init)."""

    name, title = "olora", "OLoRA"
    stock = "OLoRA: the part that training took off the base model is taken off. Stock would leave it in"

    def taken(self, spec, weight, tensors):
        rank = helpers.size(tensors, 0, "down")
        first, second = torch.linalg.qr(weight)
        return (first[:, :rank] @ second[:rank]) * spec.scale_for(rank)


def singular_parts(weight, rank, largest=True):
    """The `rank` largest, or smallest, singular parts of a matrix as one fp32 matrix of its shape; their signs do not count in it."""
    tall = weight.shape[0] > weight.shape[1]
    # The eigenvectors of the smaller Gram matrix, in fp64, cost a fraction of a singular value decomposition.
    wide = (weight.T if tall else weight).to(torch.float64)
    vectors = torch.linalg.eigh(wide @ wide.T).eigenvectors
    vectors = vectors[:, -rank:] if largest else vectors[:, :rank]
    part = (vectors @ (vectors.T @ wide)).to(torch.float32)
    return part.T if tall else part


KINDS = (PiSSA(), OLoRA())
