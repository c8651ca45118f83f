"""Models as the tables draw them: every published size, with more blocks too."""

from __future__ import annotations

from lora_locksmith.identify import reference_model
from lora_locksmith.identify.reference_model import ReferenceSpec
from lora_locksmith.identify.variants import blocks_of, sizes_of
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.key_maps.table import families, numbered

UNSTATED = 96  # a size that no table states


def drawn_weights(name, variant, times=1):
    """The names and shapes of a model of this published size, or with so many times its blocks, as
    ComfyUI has them.
    """
    family = families()[name]
    symbols = {symbol for row in family.rows for size in row.shape or () for symbol, _ in size}
    sizes = dict.fromkeys(symbols - {""}, UNSTATED) | dict(sizes_of(family, variant))
    blocks = dict.fromkeys(
        (prefix for row in family.rows for prefix, _ in numbered(row.native[0], row.native[0])), 2
    ) | blocks_of(family, variant)
    blocks = {prefix: times * count for prefix, count in blocks.items()}
    prefix = "diffusion_model."
    spec = ReferenceSpec(name, DENOISER, prefix, tuple(sizes.items()), tuple(blocks.items()))
    network = reference_model._draw(family, spec)
    return {weight: shape for weight, shape in network.weights.items() if 0 not in shape}
