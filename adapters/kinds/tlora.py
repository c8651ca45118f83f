"""T-LoRA (LyCORIS modules/tlora.py, arXiv:2507.05964): the largest singular parts of the base, changed."""

from __future__ import annotations

from ..kind import SCALE, Misfit, ModuleShape, Product, roles
from ..lazy import helpers, products, torch
from ..spec import AdapterError
from .changed_base import ChangedBase, singular_parts

LEAST_SHARE = 0.3  # of the file's inputs in the space of the base's; without training it is 1, for another base about rank / inputs


class TLoRA(ChangedBase):
    """q_layer [r, in], p_layer [out, r], lambda_layer [1, r]: W + scale * (p diag(lambda) q - the r largest singular parts of W).

    What it subtracts is not in the file. LyCORIS starts from the base's own singular vectors, so that it follows from the base, and
    the file's q_layer still lies near them: where it does not, this is another base or another start.
    """

    name, title = "tlora", "T-LoRA"
    needs = (roles("tlora_q tlora_p tlora_lambda"),)
    takes = frozenset({"alpha"})
    silent = frozenset()
    by_names = True
    precedence = 31
    alpha_is = SCALE
    stock = "T-LoRA. Stock would ignore it"

    def shape(self, shapes):
        down, up, values = (shapes[role] for role in ("tlora_q", "tlora_p", "tlora_lambda"))
        if len(down) < 2 or len(up) < 2 or down[0] != up[1] or values[-1] != up[1]:
            raise Misfit(f"q_layer {list(down)}, p_layer {list(up)} and lambda_layer {list(values)} have different ranks")
        return ModuleShape(up[0], down[1:])

    def rank(self, shapes):
        down = shapes.get("tlora_q")
        return down[0] if down else None

    def titled(self, kernel):
        return self.title

    def kernel(self, shapes):
        return tuple(shapes["tlora_q"][2:])

    def count_rows(self, tensors):
        return helpers.size(tensors, 0, "tlora_p")

    def added(self, tensors):
        up, down = (products.matrix(tensors, role, torch.float32) for role in ("tlora_p", "tlora_q"))
        values = helpers.take(tensors, "tlora_lambda").flatten()
        if values.shape[0] != up.shape[1]:
            raise AdapterError(f"lambda_layer [{len(values)}] does not go with p_layer {list(up.shape)}")
        return Product(up * values, down)

    def taken(self, spec, weight, tensors):
        down = products.matrix(tensors, "tlora_q", torch.float32)
        part = singular_parts(weight, down.shape[0])
        if not weight.is_meta and _share_in(part, down) < LEAST_SHARE:
            raise AdapterError(
                "T-LoRA: the start that it subtracts is not in the file and is not the singular vectors of this model: "
                "it was trained on another base, or from a random start"
            )
        return part * spec.scale_for(down.shape[0])


def _share_in(part, rows):
    """How much of some rows [r, in] lies in the row space of a matrix of rank r: 0 to 1."""
    drawn = torch.randn(part.shape[0], rows.shape[0], generator=torch.Generator().manual_seed(0)).to(part)
    space, norm = torch.linalg.qr(part.T @ drawn)[0], rows.norm()
    return float((rows @ space).norm() / norm) ** 2 if norm else 0.0


KINDS = (TLoRA(),)
