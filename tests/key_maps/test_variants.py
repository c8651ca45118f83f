"""The published size of a model and of a file is named, whatever stands beside its weights."""

from __future__ import annotations

import comfy_models
import pytest
from drawn import drawn_weights
from lora_locksmith.identify.lora_family import identify
from lora_locksmith.identify.trainer import model_title
from lora_locksmith.identify.variants import published, titled
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.key_maps.table import families
from lora_locksmith.planning.groups import group_keys
from lora_locksmith.planning.names import spell
from lora_locksmith.planning.target_model import TargetModel, all_families, denoiser_network

PUBLISHED = [
    (name, variant)
    for name, family in families().items()
    if family.kind == DENOISER
    for variant in published(family)
]
every_variant = pytest.mark.parametrize(("name", "variant"), PUBLISHED)


def plain(weights):
    biases = {
        f"{weight.removesuffix('.weight')}.bias": shape[:1]
        for weight, shape in weights.items()
        if len(shape) > 1
    }
    return weights | biases


def without_biases(weights):
    return weights


def beside(weights, **extras):
    """Every matrix with these tensors beside it: the end of the name -> the shape for (out, in)."""
    added = {
        f"{weight.removesuffix('weight')}{end}": shape_of(*shape[:2])
        for weight, shape in weights.items()
        if len(shape) > 1
        for end, shape_of in extras.items()
    }
    return plain(weights) | added


def scaled_fp8(weights):
    scalar = lambda out, inner: ()  # noqa: E731
    marked = {"diffusion_model.scaled_fp8": (0,)}
    return beside(weights, scale_weight=scalar, scale_input=scalar) | marked


def row_wise(weights):
    return beside(
        weights, weight_scale=lambda out, inner: (out, 1), comfy_quant=lambda out, inner: (40,)
    )


def nvfp4(weights):
    return beside(
        weights,
        weight_scale=lambda out, inner: (out, inner // 16),
        weight_scale_2=lambda out, inner: (),
        input_scale=lambda out, inner: (),
    )


def with_odd_layers(weights):
    """As another node pack adds them to a model."""
    odd = {f"diffusion_model.reference_adapter.{n}.proj_q.weight": (48, 72) for n in range(9)}
    return plain(weights) | odd


@every_variant
@pytest.mark.parametrize(
    "form", [plain, without_biases, scaled_fp8, row_wise, nvfp4, with_odd_layers]
)
def test_a_model_of_every_published_size_is_called_by_it(name, variant, form):
    network = denoiser_network(form(drawn_weights(name, variant)))
    assert network.family is not None and network.family.name == name
    assert model_title(TargetModel([network])) == titled(families()[name], variant)


@every_variant
def test_a_file_that_trains_all_of_a_published_size_is_called_by_it(name, variant):
    """As is one with a few modules that no table knows."""
    target_model = TargetModel([denoiser_network(drawn_weights(name, variant))])
    dialect = dialects()["comfyui"]
    keys = {}
    for module in spell(target_model, target_model.networks[DENOISER], dialect):
        if len(module.shape) == 2:
            out, inner = module.shape
            keys |= {
                f"{module.module}.lora_down.weight": (4, inner),
                f"{module.module}.lora_up.weight": (out, 4),
            }
    odd = {
        "diffusion_model.extra_adapter.to_q.lora_down.weight": (4, 48),
        "diffusion_model.extra_adapter.to_q.lora_up.weight": (72, 4),
    }
    for each in (keys, keys | odd):
        told = identify(group_keys(each).groups, each, {}, all_families())
        title = titled(families()[name], variant)
        assert told.title == title or name in told.ties, told[:4]


@pytest.mark.parametrize("name", comfy_models.MODELS)
def test_every_real_model_that_has_a_published_size_is_called_by_one(target_model_of, name):
    """Held against the tables' sizes, not against a list: a size that is named nowhere is a fault."""
    model = comfy_models.MODELS[name]
    family = families()[model.family]
    title = model_title(target_model_of(name))
    titles = [titled(family, variant) for variant in published(family)]
    assert not model.published or title in titles
