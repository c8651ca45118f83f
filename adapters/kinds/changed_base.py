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
    additive = is_pair = low_rank = linear = False
    zeroed_by = scale_into = ()
    stores = None
    host_class = ""
    bypass = DERIVED

    def taken(self, spec, weight, rank):
        """What training began without: [out, in] fp32 of the base weight."""
        raise NotImplementedError

    def patched(self, spec, tensors, weight, strength):
        if weight.dim() != 2:
            raise AdapterError(f"{self.title} is of linear layers, and the weight is {list(weight.shape)}")
        if spec.rows is not None and spec.rows != (0, self.count_rows(tensors)):
            raise AdapterError(f"{self.title} needs all rows of its module; the weight {list(weight.shape)} is some of them")
        rank = helpers.size(tensors, 0, "down")
        added = helpers.fit(products.low_rank(tensors), weight.shape, tensors) * spec.scale_for(rank)
        return weight + strength * (added - self.taken(spec, weight, rank))

    def measured(self, spec, tensors, out, columns):
        up, down = (products.matrix(tensors, role, torch.float32) for role in ("up", "down"))
        return Measured(NOTE, delta=Product(up, down), rank=down.shape[0], scale=spec.scale_for(down.shape[0]))

    def host(self, tensors, alpha, rows, adapter):
        return None


class PiSSA(ChangedBase):
    """The base without its `rank` largest singular parts (PEFT tuners/lora/layer.py, pissa_init)."""

    name, title = "pissa", "PiSSA"
    told_by = ("init_lora_weights", "pissa")
    stock = "PiSSA: the part that training took off the base model is taken off. Stock would add it a second time"

    def taken(self, spec, weight, rank):
        tall = weight.shape[0] > weight.shape[1]
        matrix = weight.T if tall else weight
        # The eigenvectors of the smaller Gram matrix, in fp64, cost a fraction of a singular value decomposition.
        wide = matrix.to(torch.float64)
        vectors = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:]
        part = (vectors @ (vectors.T @ wide)).to(torch.float32)
        return part.T if tall else part


class OLoRA(ChangedBase):
    """The base without scale times the first `rank` columns of its QR decomposition (PEFT tuners/lora/layer.py, olora_init)."""

    name, title = "olora", "OLoRA"
    told_by = ("init_lora_weights", "olora")
    stock = "OLoRA: the part that training took off the base model is taken off. Stock would leave it in"

    def taken(self, spec, weight, rank):
        first, second = torch.linalg.qr(weight)
        return (first[:, :rank] @ second[:rank]) * spec.scale_for(rank)


KINDS = (PiSSA(), OLoRA())
