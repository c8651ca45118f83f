"""A diffusers model beside the host's with the same weights, and the one comparison: what the
trainer's library makes of each weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

# Rounding of the base weight shows in a small change: this much of the weight's norm is allowed for
# beside the change's own.
SHARE_OF_WEIGHT = 1e-2


class Both(NamedTuple):
    """The host's model, a diffusers model with the same weights, and ComfyUI's own map from its
    names to the host's weights.
    """

    native: Any
    twin: torch.nn.Module
    names: Mapping[str, Any]


def flux_twin(native) -> Both:
    """The tiny FLUX `native` (a ModelPatcher), given biases and gains that are no round numbers,
    and its twin in diffusers' form.
    """
    import comfy.utils
    from diffusers import FluxTransformer2DModel

    shake_vectors(native)
    names = comfy.utils.flux_to_diffusers(
        native.model.model_config.unet_config, output_prefix="diffusion_model."
    )
    twin = FluxTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=128,
        num_layers=2,
        num_single_layers=2,
        in_channels=64,
        joint_attention_dim=768,
        pooled_projection_dim=768,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    return with_the_same_weights(native, twin, names)


def unet_twin() -> Both:
    """A Stable Diffusion 1.5 of a tenth of the width, all weights random, and its twin in
    diffusers' form.
    """
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils
    import comfy_models
    from diffusers import UNet2DConditionModel

    config = comfy.supported_models.SD15(comfy_models.SD15 | {"model_channels": 32})
    config.set_inference_dtype(torch.float32, None)
    torch.manual_seed(6)
    model = config.get_model({}, device=torch.device("cpu"))
    for weight in model.diffusion_model.state_dict().values():
        weight.normal_(std=0.1)
    native = comfy.model_patcher.ModelPatcher(
        model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    twin = UNet2DConditionModel(block_out_channels=(32, 64, 128, 128), cross_attention_dim=768)
    return with_the_same_weights(
        native, twin, {name: "diffusion_model." + target for name, target in names.items()}
    )


def shake_vectors(native) -> None:
    """Move the biases and gains, which tiny models have at 0 and 1, where an adapter's effect on
    them would not show.
    """
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in native.model.state_dict().values():
            if weight.dim() == 1 and weight.is_floating_point() and weight.numel() > 1:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)


def with_the_same_weights(native, twin: torch.nn.Module, names: Mapping[str, Any]) -> Both:
    """Copy the host's weights into `twin`."""
    weights = dict(native.model.state_dict())
    twin.load_state_dict(
        {name: part_of(weights, names[name]).clone() for name in twin.state_dict()}
    )
    return Both(native, twin.eval(), names)


def part_of(weights: Mapping[str, torch.Tensor], target) -> torch.Tensor:
    """The part of the host's weights that ComfyUI's map says a diffusers weight is."""
    if isinstance(target, str):
        return weights[target]
    weight = weights[target[0]]
    if target[1] is not None:
        weight = weight.narrow(*target[1])
    return target[2](weight) if len(target) > 2 else weight


def as_native(both: Both, truth: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The host's state dict with the weights of `truth`, a state dict of the twin."""
    weights = {name: weight.clone() for name, weight in both.native.model.state_dict().items()}
    for name, value in truth.items():
        target = both.names[name]
        if not isinstance(target, str) and len(target) > 2:
            value = target[2](value)  # exchanging the halves undoes itself
        part_of(weights, target if isinstance(target, str) else target[:2]).copy_(value)
    return weights


def check(
    host,
    patched,
    both: Both,
    path,
    truth: Mapping[str, torch.Tensor],
    tolerance: float = 1e-5,
    strength: float = 1.0,
    but=(),
):
    """Load the file at `path` with this pack and compare every weight's change with `truth`, a
    state dict of the twin; gives the report.

    strength: how far toward `truth` the weights are to go. but: what may become of keys besides
    being placed.
    """
    native, twin, names = both
    fixed, _, report = host.load_and_fix(native, None, path, strength)
    assert [one for one in report.unplaced() if one["category"] not in but] == []
    after, before = patched(fixed), dict(native.model.state_dict())
    assert any(
        (truth[name] - weight).norm() > SHARE_OF_WEIGHT * weight.norm()
        for name, weight in twin.state_dict().items()
    )
    for name, weight in twin.state_dict().items():
        target = names[name] if isinstance(names[name], str) else names[name][0]
        change = (
            weight.new_zeros(())
            if target not in after
            else part_of(after, names[name]) - part_of(before, names[name])
        )
        expected = strength * (truth[name] - weight)
        if expected.norm() == 0:
            assert change.norm() == 0, name
        else:
            error = (change - expected).norm() / (expected.norm() + SHARE_OF_WEIGHT * weight.norm())
            assert error < tolerance, f"{name}: relative error {error:.1e}"
    return report
