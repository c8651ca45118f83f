"""MoSLoRA (arXiv:2406.11909; PEFT's lora_mixer): scale * up @ mixer @ down."""

from __future__ import annotations

from ..kind import Misfit, Product, roles
from ..lazy import helpers, products
from .lora import LoRA


class MoSLoRA(LoRA):
    """A LoRA with a square matrix, mixer [r, r], between its factors."""

    name, title = "moslora", "MoSLoRA"
    needs = (roles("up down mixer"),)
    takes = frozenset({"alpha"})
    silent = frozenset()
    precedence = 8
    is_pair = False
    zeroed_by = roles("up down mixer")
    stores = None
    consumed = roles("up down mixer")
    stock = "MoSLoRA. Stock would leave out the matrix between the factors"
    host_class = ""
    host_drops = frozenset()

    def shape(self, shapes):
        mixer, rank = shapes["mixer"], shapes["down"][0]
        if tuple(mixer) != (rank, rank):
            raise Misfit(f"mixer {list(mixer)} must be square, and down {list(shapes['down'])} has rank {rank}")
        return super().shape({role: shapes[role] for role in ("up", "down")})

    def titled(self, kernel):
        return self.title

    def kernel(self, shapes):
        return tuple(shapes["down"][2:])

    def delta(self, spec, tensors, shape):
        product = self.product(spec, tensors, helpers.take(tensors, "up").dtype)
        delta = helpers.multiply(*product, ("up", "mixer"))
        return helpers.fit(delta.reshape(delta.shape[0], *tensors["down"].shape[1:]), shape, tensors)

    def narrow(self, tensors, start, length):
        return helpers.narrow_roles(tensors, start, length, up=0)

    def product(self, spec, tensors, dtype):
        up, mixer, down = (products.matrix(tensors, role, dtype) for role in ("up", "mixer", "down"))
        return Product(up * helpers.factor_of(self, spec, tensors), helpers.multiply(mixer, down, ("mixer", "down")))

    def product_rank(self, shapes, sides):
        return shapes["up"][1]

    def host(self, tensors, alpha, rows, adapter):
        return None

    def host_pair(self, weights):
        return None


KINDS = (MoSLoRA(),)
