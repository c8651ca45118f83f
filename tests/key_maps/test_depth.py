"""How many blocks a file trains speaks for and against a model: more than any published size of it
has are a contradiction, unless the metadata or the connected model say otherwise.
"""

from __future__ import annotations

import pytest
from drawn import drawn_weights
from lora_locksmith.identify.lora_family import identify
from lora_locksmith.identify.variants import blocks_of, published, sizes_of
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.key_maps.table import families, numbered
from lora_locksmith.planning.groups import group_keys
from lora_locksmith.planning.names import spell
from lora_locksmith.planning.target_model import TargetModel, all_families, denoiser_network


def has_numbers(name):
    """Whether the blocks that the table counts are numbered in its rows, and not named apart."""
    family = families()[name]
    rows = {prefix for row in family.rows for prefix, _ in numbered(row.native[0], row.native[0])}
    return any(not rows.isdisjoint(blocks) for blocks in family.blocks.values())


COUNTED = [
    (name, variant)
    for name, family in families().items()
    if family.kind == DENOISER and has_numbers(name)
    for variant in published(family)
]
every_variant = pytest.mark.parametrize(("name", "variant"), COUNTED)


def model_with(name, variant, times):
    """A model of a published size with so many times its blocks."""
    return TargetModel([denoiser_network(drawn_weights(name, variant, times))])


def file_for(target_model, layers=""):
    """A LoRA on all matrices, or on those whose names end so."""
    keys = {}
    for module in spell(target_model, target_model.networks[DENOISER], dialects()["comfyui"]):
        if len(module.shape) == 2 and 0 not in module.shape and module.module.endswith(layers):
            out, inner = module.shape
            keys |= {
                f"{module.module}.lora_down.weight": (4, inner),
                f"{module.module}.lora_up.weight": (out, 4),
            }
    return keys


def told(keys, metadata=None, target_model=None):
    return identify(group_keys(keys).groups, keys, metadata or {}, target_model or all_families())


@every_variant
def test_a_file_with_the_published_blocks_is_for_that_model(name, variant):
    guess = told(file_for(model_with(name, variant, 1)))
    assert guess.name == name or name in guess.ties, guess[:4]
    assert "unpublished" not in guess.title and not guess.is_absent


def has_another_with(name, variant, times):
    """Whether another published size has the same widths and so many times the blocks."""
    family = families()[name]
    blocks = {prefix: times * count for prefix, count in blocks_of(family, variant).items()}
    return any(
        sizes_of(family, other) == sizes_of(family, variant) and blocks_of(family, other) == blocks
        for other in published(family)
    )


@every_variant
def test_a_file_with_twice_the_blocks_is_of_no_published_size(name, variant):
    if has_another_with(name, variant, 2):
        return
    guess = told(file_for(model_with(name, variant, 2)))
    assert not guess.title or guess.title.count("unpublished size"), guess[:4]
    assert not guess.name or guess.name == name


@every_variant
def test_the_connected_model_may_have_more_blocks(name, variant):
    target_model = model_with(name, variant, 2)
    guess = told(file_for(target_model), target_model=target_model)
    assert guess.name == name, guess[:4]


QUERY_AND_VALUE = {
    f"base_model.model.model.layers.{block}.self_attn.{layer}.lora_{role}.weight": shape
    for block in range(40)
    for layer, out in (("q_proj", 4096), ("v_proj", 1024))
    for role, shape in (("A", (4, 2560)), ("B", (out, 4)))
}


def test_more_blocks_than_any_model_has_are_told_for_none():
    """ACE-Step 1.5 XL and Qwen3-4B have these names and widths, and 32 and 36 blocks."""
    guess = told(QUERY_AND_VALUE)
    assert (guess.title, guess.name, guess.could_be) == ("", "", ())


def test_metadata_may_say_that_a_model_has_more_blocks():
    guess = told(QUERY_AND_VALUE, {"modelspec.architecture": "ace-step-1.5/lora"})
    assert guess.name == "ace_step_15"
