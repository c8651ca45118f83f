"""GLoRA as PEFT defines it (glora/layer.py): W * (1 + A) + B, entry by entry; and a bias b * (1 +
D) + E + W C.
"""

from __future__ import annotations

from ..kind import DERIVED, InStock, Kind, ModuleShape, Said, Shapes, Tensors, roles
from ..lazy import helpers, products, torch
from ..spec import AdapterSpec


class PeftGLoRA(Kind):
    """A and B are each Xd [out, r] @ Xu [r, in], or X: [out, 1] or one number."""

    name, title = "glora_peft", "GLoRA"
    needs = (
        roles("glora_A_up glora_A_down glora_B_up glora_B_down"),
        roles("glora_A_whole glora_B_whole"),
    )
    # Zeros in place of what a layer without a bias lacks.
    takes = silent = roles("glora_C_none glora_D_none glora_E_none")
    stock = InStock("GLoRA (PEFT)")
    bypass = DERIVED

    def shape(self, shapes: Shapes) -> ModuleShape:
        up, down = shapes.get("glora_A_up"), shapes.get("glora_A_down")
        return ModuleShape(up[0], down[1:]) if up and down else super().shape(shapes)

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        factor, added = (self._path(spec, tensors, weight, f"glora_{part}") for part in "AB")
        return weight + strength * (weight * factor + added)

    def _path(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, name: str
    ) -> torch.Tensor:
        if f"{name}_whole" in tensors:
            whole = helpers.take(tensors, f"{name}_whole")
            return (
                whole.reshape(())
                if whole.numel() == 1
                else helpers.output_vector(whole, f"{name}.X", weight, spec.rows)
            )
        cut = (
            helpers.narrow_roles(tensors, *spec.rows, **{f"{name}_up": 0}) if spec.rows else tensors
        )
        return helpers.fit(
            products.low_rank(cut, f"{name}_up", f"{name}_down"), weight.shape, tensors
        )


class PeftGLoRAOfBias(Kind):
    """GLoRA with a bias, which changes by a product with the weight."""

    name, title = "glora_peft_bias", "GLoRA"
    needs = tuple(
        need | roles(text)
        for need in PeftGLoRA.needs
        for text in ("glora_C_up glora_C_down", "glora_C_whole")
    )
    takes = roles("glora_D glora_E glora_D_none glora_E_none")
    precedence = 99
    refusal = Said("adapters.glora_of_bias")


KINDS = (PeftGLoRA(), PeftGLoRAOfBias())
